"""Pictures of the nearest training images, with what they say about the class."""

from collections.abc import Sequence

import numpy as np

from cvpipe.errors import InputError
from cvpipe.opencv import import_cv2
from cvpipe.plots.charts import CHOSEN, MISTAKE
from cvpipe.plots.features import tile_sheet

FRAME_PIXELS = 3
BADGE_PIXELS = 15
GAP_PIXELS = 4
# Corners of the marks, as (across, down) in a badge.
TICK = [(3, 8), (6, 11), (11, 4)]
CROSS = [[(4, 4), (10, 10)], [(10, 4), (4, 10)]]


def neighbour_strip(pictures: np.ndarray, right: Sequence[bool]) -> np.ndarray:
    """Put neighbours side by side, the nearest at the left, each in a frame.

    Those of the right class have a blue frame and a tick, the others an orange frame and a cross,
    so that nothing depends on the colour alone.

    Args:
        pictures: `uint8` RGB of shape `(n, height, width, 3)`, at least one; not smaller than
            `BADGE_PIXELS`.
        right: Of each, whether it has the class of the image that is looked up.

    Returns:
        `uint8` RGB picture; each neighbour is larger by the frame on all sides.

    Raises:
        InputError: There are not as many pictures as classes, or they are too small.

    References:
        CS231n 2017, lecture 2 (test images of CIFAR-10 with their nearest training images).
    """
    if len(pictures) != len(right) or not len(pictures) or min(pictures.shape[1:3]) < BADGE_PIXELS:
        raise InputError(
            f"a strip needs a picture of at least {BADGE_PIXELS} pixels for each neighbour, but "
            f"got pictures of shape {pictures.shape} for {len(right)} neighbours."
        )
    framed = np.stack([_frame(*pair) for pair in zip(pictures, right, strict=True)])
    return tile_sheet(framed, len(framed), GAP_PIXELS)


def _frame(picture: np.ndarray, is_right: bool) -> np.ndarray:
    """Put a picture into a frame with a mark in its upper left corner."""
    cv2 = import_cv2()
    colour = tuple(bytes.fromhex((CHOSEN if is_right else MISTAKE).removeprefix("#")))
    height, width = picture.shape[:2]
    framed = np.empty((height + 2 * FRAME_PIXELS, width + 2 * FRAME_PIXELS, 3), dtype=np.uint8)
    framed[:] = colour
    framed[FRAME_PIXELS:-FRAME_PIXELS, FRAME_PIXELS:-FRAME_PIXELS] = picture
    badge = np.empty((BADGE_PIXELS, BADGE_PIXELS, 3), dtype=np.uint8)
    badge[:] = colour
    lines = [np.array(line) for line in ([TICK] if is_right else CROSS)]
    framed[:BADGE_PIXELS, :BADGE_PIXELS] = cv2.polylines(
        badge, lines, isClosed=False, color=(255, 255, 255), thickness=2, lineType=cv2.LINE_AA
    )
    return framed
