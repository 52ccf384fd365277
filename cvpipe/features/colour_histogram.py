"""Histogram of colours."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np

from cvpipe.errors import InputError
from cvpipe.features.base import ImageSize, ImageTransformer, check_choice
from cvpipe.features.grid import check_grid, grid_cells
from cvpipe.opencv import import_cv2

NUM_LEVELS = 256  # of an 8-bit channel
BIN_NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # all that divide the levels evenly
JOINT_BIN_NUMBERS = (1, 2, 4, 8, 16)  # 16 per channel are 4096 together
SPACES = ("hsv", "lab", "rgb", "hue")


class ColourHistogram(ImageTransformer):
    """Describe an image by how often each colour occurs in it.

    Good for things that have colours of their own, in whatever pose, size or place. Where a
    colour stands does not matter (within a cell of the grid), so the row stays the same when the
    image is mirrored or turned. It sees neither shape nor texture, and takes the colour of the
    light for a colour of the thing.

    The shares of pixels are counted in one of these ways:

    - A histogram per channel, side by side: short, but it cannot tell light red beside dark blue
      from dark red beside light blue.
    - `joint`: combinations of the three channels, as Swain and Ballard count them (theirs are
      opponent colours): it can, with far more bins, most of them empty.

    A pixel belongs to one bin alone, so colours near its border change sides with a little more
    light. Hue is a circle that the bins cut at pure red: a red just short of it is in the last bin.

    The hue of a nearly grey pixel is noise. Among the channels of `"hsv"`, a pixel therefore
    counts by its saturation at its hue; the hues of an image sum to its mean saturation, and those
    of a grey image to nothing. Joint, each pixel counts once: nearly grey ones at all hues of the
    lowest saturation, grey ones at the first. `"hue"` counts hues alone, as the lecture does, once
    per pixel, nearly grey or not; only pixels without any hue (as much red as green as blue) are
    left out, which would count as red.

    Args:
        num_bins: Bins per channel; a power of two up to 256, so that all are equally wide, and up
            to 16 if joint.
        space: `"hsv"`; `"lab"`, CIE L*a*b* of sRGB, where distances are nearer to what people
            see, and most colours are in the middle bins of a* and b*; `"rgb"`; or `"hue"`. Each
            channel has 256 levels.
        joint: Whether to count combinations of the three channels.
        grid: Cells per side of a grid over the image, with a histogram for each cell; sides that
            are no multiples of it are divided as in `cvpipe.features.grid.cell_borders`.
        square_root: Whether to take the square root of the shares. Frequent colours then weigh
            less, and L2 distances of rows compare histograms as the Hellinger distance does.

    References:
        Swain and Ballard, "Color Indexing", International Journal of Computer Vision 7,
        1991. CS231n 2017, lecture 3. Arandjelovic and Zisserman, "Three Things Everyone Should
        Know to Improve Object Retrieval", CVPR 2012 (square root).
    """

    title: ClassVar[str] = "the colour histogram"

    def __init__(
        self,
        num_bins: int = 32,
        space: str = "hsv",
        joint: bool = False,
        grid: int = 1,
        square_root: bool = False,
    ) -> None:
        self.num_bins = num_bins
        self.space = space
        self.joint = joint
        self.grid = grid
        self.square_root = square_root

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, and that the image has a pixel for each cell.

        Raises:
            InputError: A setting is not possible.
        """
        check_choice(self.title, "space", self.space, SPACES)
        if self.joint and self.space == "hue":
            raise InputError(
                f"{self.title} cannot be joint in the space 'hue', which has one channel; set "
                "joint to false, or choose another space."
            )
        bin_numbers = JOINT_BIN_NUMBERS if self.joint else BIN_NUMBERS
        title = f"{self.title} (joint)" if self.joint else self.title
        check_choice(title, "num_bins", self.num_bins, bin_numbers)
        check_grid(self.title, self.grid, image_size)

    def _describe(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Cell by cell, row by row from the top. In a cell, channel by channel, or, if joint, the
        first channel in the slowest changing place. Values in [0, 1]; the shares of a histogram
        sum to 1, those of hue as the class says.
        """
        cells = grid_cells((images.shape[1], images.shape[2]), self.grid)
        num_channels = 1 if self.space == "hue" else 3
        size = self.num_bins**num_channels if self.joint else self.num_bins * num_channels
        count = self._counter()
        rows = np.empty((len(images), len(cells), size), dtype=np.float32)
        for shares_of_image, image in zip(rows, images, strict=True):
            pixels = convert_colours(image, self.space)
            for shares, cell in zip(shares_of_image, cells, strict=True):
                inside = pixels[cell]
                num_pixels = inside.shape[0] * inside.shape[1]
                np.divide(count(inside), num_pixels, out=shares, casting="same_kind")
        if self.square_root:
            np.sqrt(rows, out=rows)
        return rows.reshape(len(images), -1)

    def _counter(self) -> Callable[[np.ndarray], np.ndarray]:
        """Choose how the converted pixels of a cell are counted."""
        if self.joint:
            return partial(count_levels, num_bins=dict.fromkeys(range(3), self.num_bins))
        if self.space == "hue":
            return partial(count_hues, num_bins=self.num_bins)
        if self.space == "hsv":
            return partial(count_weighted_hues, num_bins=self.num_bins)
        return partial(count_each_channel, num_bins=self.num_bins)


def convert_colours(image: np.ndarray, space: str) -> np.ndarray:
    """Convert an image to another colour space of 8 bits.

    Args:
        image: `uint8` array of shape `(height, width, 3)`, RGB.
        space: One of `SPACES`.

    Returns:
        `uint8` array of the same shape. `"hsv"` and `"hue"`: hue, which goes round once in 256
        levels, saturation and value. `"lab"`: L* of 0 to 100 stretched to 255, a* + 128, b* + 128.
    """
    cv2 = import_cv2()
    if space == "rgb":
        return np.ascontiguousarray(image)
    code = cv2.COLOR_RGB2LAB if space == "lab" else cv2.COLOR_RGB2HSV_FULL
    return cv2.cvtColor(image, code)


def count_levels(
    pixels: np.ndarray, num_bins: dict[int, int], mask: np.ndarray | None = None
) -> np.ndarray:
    """Count pixels in bins of equally many levels of one or several channels.

    Args:
        pixels: `uint8` array of shape `(height, width, num_channels)`.
        num_bins: For each of the channels to count, by number, the number of its bins, which
            divides 256. Combinations of several channels have bins of their own.
        mask: `uint8` array of shape `(height, width)`; pixels where it is 0 are not counted.

    Returns:
        `float32` array of as many counts as there are combinations, the last channel changing
        fastest; exact for up to `2 ** 24` pixels.

    Example:
        >>> count_levels(np.array([[[0], [127], [128]]], np.uint8), {0: 2})
        array([2., 1.], dtype=float32)
    """
    limits = [0, NUM_LEVELS] * len(num_bins)
    counts = import_cv2().calcHist([pixels], [*num_bins], mask, [*num_bins.values()], limits)
    return counts.ravel()


def count_each_channel(pixels: np.ndarray, num_bins: int) -> np.ndarray:
    """Count the levels of three channels, side by side.

    Args:
        pixels: `uint8` array of shape `(height, width, 3)`.
        num_bins: Bins per channel; divides 256.

    Returns:
        `float32` array of shape `(3 * num_bins,)`.
    """
    return np.concatenate([count_levels(pixels, {channel: num_bins}) for channel in range(3)])


def count_hues(hsv: np.ndarray, num_bins: int) -> np.ndarray:
    """Count the pixels that have a hue.

    Args:
        hsv: `uint8` array of shape `(height, width, 3)`, see `convert_colours`.
        num_bins: Number of bins; divides 256.

    Returns:
        `float32` array of shape `(num_bins,)`.
    """
    saturation = np.ascontiguousarray(hsv[:, :, 1])
    return count_levels(hsv, {0: num_bins}, mask=saturation)


def count_weighted_hues(hsv: np.ndarray, num_bins: int) -> np.ndarray:
    """Count hues by saturation, and saturations and values by pixel.

    Args:
        hsv: `uint8` array of shape `(height, width, 3)`, see `convert_colours`.
        num_bins: Bins per channel; divides 256.

    Returns:
        `float64` array of shape `(3 * num_bins,)`: hues, where a pixel counts its saturation in
        [0, 1], then saturations, then values.
    """
    # Whole numbers have exact sums, so the order of the pixels changes no last bit.
    by_level = count_levels(hsv, {0: num_bins, 1: NUM_LEVELS}).reshape(num_bins, NUM_LEVELS)
    hues = by_level @ np.arange(NUM_LEVELS, dtype=np.float64) / (NUM_LEVELS - 1)
    saturations = by_level.sum(axis=0).reshape(num_bins, -1).sum(axis=1)
    return np.concatenate([hues, saturations, count_levels(hsv, {2: num_bins})])
