"""Find copies of images that a perceptual hash misses: cropped, mirrored, much brightened.

Grey 64x64 thumbnails flow in, pairs of rows flow out, in two steps.

**Candidates.** Every image is looked at in several *views*: whole, mirrored, and without the
border that a crop would take away. For each whole image, and each kind of view, the view of
another that is most like it is looked up by the correlation of 16x16 pixels. All are compared;
there is no index that could miss one.

**Proof.** Images of one kind are much alike at 16x16 pixels without being copies, so a candidate
counts only when the fine structure agrees as well: the correlation of what is left after a blur
was taken away. How much is enough, and at how many pixels, depends on the view. A crop is in one
frame with nothing but its original, so 32x32 pixels tell. Different objects in the same frame,
such as the cells of one solar module, reach .995 at 32x32 pixels and .98 only at 128x128, where
the grain of each shows; so what is in the same frame is proven there, unless the images are
small themselves. The bounds were chosen on planted copies; `benchmarks/near_duplicates.py` shows
what they find and what they merge falsely.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from cvpipe.data.duplicates import (
    Clusters,
    Pairs,
    find_clusters,
    hash_both_ways,
    hash_distance,
)
from cvpipe.data.thumbnails import THUMBNAIL_PIXELS

COARSE_PIXELS = 16
DETAIL_PIXELS = 32
FINE_PIXELS = 128
# Standard deviation of the blur that is taken away, in pixels of the picture compared.
BLUR_PIXELS = 1.0
BLOCK_ROWS = 1_024
# Every planted copy was above .9 in the view it was made by; below, no proof is tried.
MIN_COARSE = 0.85
MIN_DETAIL = 0.94
# Together with a near hash less is enough.
MIN_HASHED = 0.9
# What is in the same frame and large is looked at more closely, if the hashes are not far apart.
MIN_FINE = 0.98
MAX_DISTANCE_OF_FINE = 40
# Images with a shorter side have no grain to show at 128x128 pixels.
FINE_SIDE_PIXELS = 96


class View(NamedTuple):
    """A part of an image, mirrored or not.

    Attributes:
        scale: Share of the height and of the width that is kept.
        top: Where it lies: 0 at the upper edge, 1 at the lower.
        left: Where it lies: 0 at the left edge, 1 at the right.
        mirrored: Whether left and right are exchanged.
    """

    scale: float
    top: float
    left: float
    mirrored: bool = False

    @property
    def same_frame(self) -> bool:
        """Whether nothing is cut off."""
        return self.scale == 1.0

    @property
    def how(self) -> str:
        """What a copy is that is found by this view."""
        if self.same_frame:
            return "mirrored" if self.mirrored else "copy"
        return "cropped"


WHOLE = View(1.0, 0.5, 0.5)
MIRRORED = View(1.0, 0.5, 0.5, mirrored=True)
CROPPED = (
    View(0.95, 0.5, 0.5),
    *(View(0.95, top, left) for top in (0.0, 1.0) for left in (0.0, 1.0)),
    View(0.9, 0.5, 0.5),
)
VIEWS = (WHOLE, MIRRORED, *CROPPED)


class Copies(NamedTuple):
    """Pairs of rows that are copies of one another, in arrays of the same length.

    Attributes:
        first: `int64`, the row that shows the whole image.
        second: `int64`, the row of which a view is like it.
        view: `int64`, position in `VIEWS`.
        score: `float64`, the correlation that proves it.
    """

    first: np.ndarray
    second: np.ndarray
    view: np.ndarray
    score: np.ndarray


def near_duplicates(
    image_ids: Sequence[str],
    labels: Sequence[str],
    thumbnails: np.ndarray,
    sizes: np.ndarray,
    load_fine: Callable[[Sequence[str]], np.ndarray],
) -> tuple[Clusters, pd.DataFrame]:
    """Cluster the near-duplicates among images: by their hashes, and by views of them.

    Two near hashes count only when the fine structure of the images agrees, too.

    Args:
        image_ids: Key of each image, unique.
        labels: Label of each image.
        thumbnails: `uint8` array of shape `(n, 64, 64)`.
        sizes: `int` array of shape `(n, 2)`: height and width of each image.
        load_fine: Makes the 128x128 thumbnails of some images, an array `(k, 128, 128)`.

    Returns:
        The clusters, and the pairs that hold them together as a table: `image_id`, `other`,
        and `how`: `"copy"`, `"mirrored"` or `"cropped"`.
    """
    ids = np.asarray(image_ids, dtype=object)
    hashes, mirrored = hash_both_ways(thumbnails)
    details = detail(thumbnails, sizes, WHOLE)
    turned = details.reshape(-1, DETAIL_PIXELS, DETAIL_PIXELS)[:, :, ::-1].reshape(details.shape)
    ways: dict[tuple[int, int], str] = {}

    def agree(first: np.ndarray, second: np.ndarray, is_mirrored: bool) -> np.ndarray:
        return correlate(details, turned if is_mirrored else details, first, second) >= MIN_HASHED

    def find_more(known: np.ndarray) -> Pairs:
        copies = find_copies(
            thumbnails,
            sizes,
            details,
            known,
            hashes,
            mirrored,
            lambda rows: load_fine(ids[rows].tolist()),
        )
        first, second = np.sort([copies.first, copies.second], axis=0)
        for pair, number in zip(
            zip(first.tolist(), second.tolist(), strict=True), copies.view, strict=True
        ):
            # The simplest view comes first: half of a smooth image is like a crop of it, too.
            ways.setdefault(pair, VIEWS[number].how)
        return Pairs(first, second, copies.score)

    clusters = find_clusters(
        image_ids, labels, hashes, mirrored=mirrored, agree=agree, find_more=find_more
    )
    first, second, distance = clusters.pairs
    direct = hash_distance(hashes[first], hashes[second])
    names = [
        ways.get((one, other)) or ("copy" if near else "mirrored")
        for one, other, near in zip(
            first.tolist(), second.tolist(), direct <= distance, strict=True
        )
    ]
    return clusters, pd.DataFrame({"image_id": ids[first], "other": ids[second], "how": names})


def find_copies(
    thumbnails: np.ndarray,
    sizes: np.ndarray,
    details: np.ndarray,
    known: np.ndarray,
    hashes: np.ndarray,
    mirrored: np.ndarray,
    load_fine: Callable[[np.ndarray], np.ndarray],
    block_rows: int = BLOCK_ROWS,
) -> Copies:
    """Find copies by views of thumbnails, proven by their fine structure.

    Args:
        thumbnails: `uint8` array of shape `(n, 64, 64)`.
        sizes: `int` array of shape `(n, 2)`: height and width of each image.
        details: Their fine structure, see `detail`.
        known: `int` array of shape `(n,)`: rows of the same number are known to belong
            together already, so they need no proof.
        hashes: `uint64` array of shape `(n, 20)`.
        mirrored: The same of the mirrored images.
        load_fine: Makes the 128x128 thumbnails of some rows, an array `(k, 128, 128)`.
        block_rows: Memory grows with its product with `n`.
    """
    whole = coarse(thumbnails, sizes, WHOLE)
    found = []
    for number, view in enumerate(VIEWS):
        seen = whole if view is WHOLE else coarse(thumbnails, sizes, view)
        first, second = most_alike(whole, seen, block_rows)
        new = known[first] != known[second]
        first, second = first[new], second[new]
        rows, place = np.unique(second, return_inverse=True)
        score = correlate(details, detail(thumbnails[rows], sizes[rows], view), first, place)
        proven = score >= MIN_DETAIL
        first, second, score = first[proven], second[proven], score[proven]
        pairs = Copies(first, second, np.full(len(first), number), score)
        if view.same_frame:
            seen_hashes = mirrored if view.mirrored else hashes
            near = hash_distance(hashes[first], seen_hashes[second]) <= MAX_DISTANCE_OF_FINE
            pairs = prove_by_grain(pairs, sizes, near, view, load_fine)
        found.append(pairs)
    return Copies(*(np.concatenate(column) for column in zip(*found, strict=True)))


def prove_by_grain(
    pairs: Copies,
    sizes: np.ndarray,
    near: np.ndarray,
    view: View,
    load_fine: Callable[[np.ndarray], np.ndarray],
) -> Copies:
    """Keep the pairs of one frame that are too small to have a grain, or whose grain agrees.

    Args:
        pairs: Pairs that a view of the same frame has found.
        sizes: Height and width of each image.
        near: `bool`, which pairs have hashes near enough for the closer look.
        view: The view.
        load_fine: See `find_copies`.
    """
    large = np.minimum(sizes[pairs.first], sizes[pairs.second]).min(axis=1) >= FINE_SIDE_PIXELS
    asked = large & near
    score = pairs.score.copy()
    score[large] = -1.0
    score[asked] = fine_agreement(pairs.first[asked], pairs.second[asked], view, load_fine)
    proven = ~large | (score >= MIN_FINE)
    return Copies(*(column[proven] for column in pairs._replace(score=score)))


def most_alike(
    whole: np.ndarray, seen: np.ndarray, block_rows: int = BLOCK_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each whole image the view of another that is most like it.

    Args:
        whole: `float32` array of shape `(n, k)`, rows of mean 0 and length 1.
        seen: The same for a view of each image.
        block_rows: Rows compared at once.

    Returns:
        Rows of `whole` and rows of `seen`, as two arrays of the same length: at most one
        pair for each whole image, none with a correlation below `MIN_COARSE`.
    """
    best = np.zeros(len(whole), dtype=np.int64)
    highest = np.full(len(whole), -1.0, dtype=np.float32)
    for top in range(0, len(whole), block_rows):
        likeness = whole[top : top + block_rows] @ seen.T
        row = np.arange(len(likeness))
        likeness[row, top + row] = -1.0
        best[top + row] = likeness.argmax(axis=1)
        highest[top + row] = likeness[row, best[top + row]]
    first = np.flatnonzero(highest >= MIN_COARSE)
    return first, best[first]


def fine_agreement(
    first: np.ndarray,
    second: np.ndarray,
    view: View,
    load_fine: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Correlate the grain of pairs of images in the same frame, one of them perhaps mirrored.

    Returns:
        `float64` array with one correlation in [-1, 1] per pair.
    """
    if not len(first):
        return np.empty(0)
    rows, place = np.unique([first, second], return_inverse=True)
    pictures = load_fine(rows).astype(np.float32)
    details = unit_rows(without_blur(pictures))
    seen = unit_rows(without_blur(pictures[:, :, ::-1])) if view.mirrored else details
    one, other = place.reshape(2, -1)
    return correlate(details, seen, one, other)


def correlate(
    rows: np.ndarray, others: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Correlate pairs of rows of mean 0 and length 1.

    Args:
        rows: `float32` array of shape `(n, k)`.
        others: The same.
        first: Which of `rows`.
        second: Which of `others`.

    Returns:
        `float64` array with one correlation in [-1, 1] per pair.
    """
    scores = [np.empty(0)]
    for start in range(0, len(first), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        scores.append(np.einsum("ij,ij->i", rows[first[block]], others[second[block]]))
    return np.concatenate(scores)


def coarse(thumbnails: np.ndarray, sizes: np.ndarray, view: View) -> np.ndarray:
    """See images by a view at 16x16 pixels, as rows of mean 0 and length 1."""
    return unit_rows(see(thumbnails, sizes, view, COARSE_PIXELS))


def detail(thumbnails: np.ndarray, sizes: np.ndarray, view: View) -> np.ndarray:
    """See the fine structure of images by a view, as rows of mean 0 and length 1."""
    return unit_rows(without_blur(see(thumbnails, sizes, view, DETAIL_PIXELS)))


def see(thumbnails: np.ndarray, sizes: np.ndarray, view: View, num_pixels: int) -> np.ndarray:
    """Resample a view of thumbnails.

    Args:
        thumbnails: `uint8` array of shape `(n, 64, 64)`.
        sizes: Height and width of each image: a crop keeps whole pixels of the image.
        view: The view.
        num_pixels: Side of the result.

    Returns:
        `float32` array of shape `(n, num_pixels, num_pixels)`.
    """
    pictures = np.empty((len(thumbnails), num_pixels, num_pixels), dtype=np.float32)
    for start in range(0, len(thumbnails), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        down, across = (
            resamplings(sides, view.scale, place, num_pixels)
            for sides, place in zip(sizes[block].T, (view.top, view.left), strict=True)
        )
        if view.mirrored:
            across = across[:, :, ::-1]
        pictures[block] = down @ thumbnails[block].astype(np.float32) @ across.swapaxes(1, 2)
    return pictures


def edges(side: int, scale: float, place: float) -> tuple[float, float]:
    """Say between which two places of a line of 64 thumbnail pixels a cut keeps it.

    Args:
        side: Pixels of the line in the image itself; the cut falls between two of them.
        scale: Share that is kept.
        place: 0 when the start is kept, 1 when the end is.

    Example:
        >>> edges(28, 0.95, 1.0)  # one of 28 pixels is cut off
        (2.3125, 64.0)
    """
    kept = max(1, round(side * scale))
    start = round((side - kept) * place)
    # Sixteenths of a pixel are fine enough, and keep the number of matrices small.
    first, last = (round(16 * THUMBNAIL_PIXELS * end / side) / 16 for end in (start, start + kept))
    return first, last


def resamplings(sides: np.ndarray, scale: float, place: float, num_pixels: int) -> np.ndarray:
    """Stack the matrices that resample a cut of lines, see `edges` and `resampling`.

    Args:
        sides: Pixels of each line in its image, shape `(n,)`.
        scale: Share that is kept.
        place: 0 when the start is kept, 1 when the end is.
        num_pixels: Pixels of the result.

    Returns:
        `float32` array of shape `(n, num_pixels, 64)`.
    """
    distinct, which = np.unique(sides, return_inverse=True)  # few images differ in size
    matrices = [resampling(*edges(side, scale, place), num_pixels) for side in distinct.tolist()]
    return np.stack(matrices)[which]


@functools.lru_cache(maxsize=1_024)
def resampling(first: float, last: float, num_pixels: int) -> np.ndarray:
    """Make the matrix that resamples a part of a line of 64 thumbnail pixels.

    Args:
        first: Where the part begins, in thumbnail pixels.
        last: Where it ends.
        num_pixels: Pixels of the result.

    Returns:
        `float32` array of shape `(num_pixels, 64)`, bicubic and antialiased as Pillow does it.
    """
    # Resampling the unit matrix gives the matrix of the resampling.
    unit = Image.fromarray(np.eye(THUMBNAIL_PIXELS, dtype=np.float32))
    box = (0, first, THUMBNAIL_PIXELS, last)
    size = (THUMBNAIL_PIXELS, num_pixels)
    return np.asarray(unit.resize(size, Image.Resampling.BICUBIC, box))


def without_blur(pictures: np.ndarray) -> np.ndarray:
    """Take the coarse structure away: pictures minus their blur."""
    sigma = (0, BLUR_PIXELS, BLUR_PIXELS)
    return pictures - gaussian_filter(pictures, sigma, truncate=3.0)


def unit_rows(pictures: np.ndarray) -> np.ndarray:
    """Make rows of mean 0 and length 1, so that a product of two rows is their correlation.

    A picture without structure becomes a row of zeros, which correlates with nothing.
    """
    # Not -1 for the length of a row: there may be no row to tell it by.
    rows = pictures.reshape(len(pictures), math.prod(pictures.shape[1:]))
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-3)
