"""Find copies of images that a perceptual hash misses: cropped, mirrored, much brightened.

Grey 64x64 thumbnails flow in, pairs of rows flow out, in two steps.

**Candidates.** Every image is looked at in several *views*: whole, mirrored, and without the
border that a crop would take away. For each whole image, and each kind of view, the view of
another that is most like it is looked up by the correlation of 16x16 pixels, among those that are
not known to belong together with it already. All are compared; there is no index that could miss
one.

**Proof.** Images of one kind are much alike at 16x16 pixels without being copies, so a candidate
counts only when the fine structure agrees as well: the correlation of what is left after a blur
was taken away. How much is enough, and at how many pixels, depends on the view. A crop is in one
frame with nothing but its original, so 32x32 pixels tell. Different objects in the same frame,
such as the cells of one solar module, reach .995 at 32x32 pixels and .994 at 64x64, but no more
than .973 at 128x128, where the grain of each shows; so what is in the same frame is proven there,
unless the images are small themselves. A brighter copy, or one of more contrast, is cut off at
white and black, and has no structure left where it was; so those places are not compared,
unless hardly any other is left.
Without this, one in twenty brightened solar cells falls below .98; with it, one in 200.

The bounds were chosen on planted copies; `benchmarks/near_duplicates.py` shows what they find
and what they merge falsely.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from cvpipe.data.duplicates import (
    Clusters,
    Pairs,
    find_clusters,
    hash_both_ways,
    hash_distance,
)
from cvpipe.data.thumbnails import THUMBNAIL_PIXELS
from cvpipe.opencv import import_cv2

COARSE_PIXELS = 16
DETAIL_PIXELS = 32
FINE_PIXELS = 128
# Standard deviation of the blur that is taken away, in pixels of the picture compared.
BLUR_PIXELS = 1.0
BLOCK_ROWS = 1_024
# Every planted copy was above .9 in the view it was made by; below, no proof is tried.
MIN_COARSE = 0.85
MIN_DETAIL = 0.94
# Together with a near hash less is enough, and for a closer look.
MIN_ALIKE = 0.9
# What is in the same frame and large is looked at more closely: at the thumbnails, which are at
# hand, and if those agree, at 128x128 pixels, for which the files are decoded again. Thumbnails
# of fine texture agree less, because that of a mirrored image is not quite the mirrored thumbnail.
MIN_THUMBNAIL = 0.97
MIN_GRAIN = 0.98
# Shorter than any structure: of one colour, rounding leaves a length below a thousandth.
ROUNDING = 1e-2
# Images with a shorter side have no grain to show at 128x128 pixels.
FINE_SIDE_PIXELS = 96
# Values up to and from which a pixel may have been cut off, and how far that reaches.
BLACK, WHITE = 5, 250
REACH_PIXELS = 2
# Where a smaller share is left to compare, such as of a page of text, everything is compared.
MIN_SHARE = 0.05
# Pairs whose grain is compared at once: about 180 MB.
BLOCK_PAIRS = 256


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
        return correlate(details, turned if is_mirrored else details, first, second) >= MIN_ALIKE

    def find_more(known: np.ndarray) -> Pairs:
        copies = find_copies(
            thumbnails, sizes, details, known, lambda rows: load_fine(ids[rows].tolist())
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
        load_fine: Makes the 128x128 thumbnails of some rows, an array `(k, 128, 128)`.
        block_rows: Memory grows with its product with `n`.
    """
    whole = coarse(thumbnails, sizes, WHOLE)
    found = []
    for number, view in enumerate(VIEWS):
        seen = whole if view is WHOLE else coarse(thumbnails, sizes, view)
        first, second = most_alike(whole, seen, known, block_rows)
        if view.same_frame:  # either row may have found the other
            first, second = np.unique(np.sort([first, second], axis=0), axis=1)
        rows, place = np.unique(second, return_inverse=True)
        score = correlate(details, detail(thumbnails[rows], sizes[rows], view), first, place)
        if view.same_frame:
            large = np.minimum(sizes[first], sizes[second]).min(axis=1) >= FINE_SIDE_PIXELS
            asked = np.flatnonzero(large & (score >= MIN_ALIKE))
            score[large] = -1.0
            score[asked] = prove_by_grain(first[asked], second[asked], view, thumbnails, load_fine)
        proven = score >= MIN_DETAIL
        found.append(
            Copies(first[proven], second[proven], np.full(proven.sum(), number), score[proven])
        )
    return Copies(*(np.concatenate(column) for column in zip(*found, strict=True)))


def most_alike(
    whole: np.ndarray, seen: np.ndarray, known: np.ndarray, block_rows: int = BLOCK_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each whole image the view of another that is most like it.

    Args:
        whole: `float32` array of shape `(n, k)`, rows of mean 0 and length 1.
        seen: The same for a view of each image.
        known: `int` array of shape `(n,)`: rows of the same number are not compared.
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
        likeness[known[top + row, None] == known] = -1.0
        best[top + row] = likeness.argmax(axis=1)
        highest[top + row] = likeness[row, best[top + row]]
    first = np.flatnonzero(highest >= MIN_COARSE)
    return first, best[first]


def prove_by_grain(
    first: np.ndarray,
    second: np.ndarray,
    view: View,
    thumbnails: np.ndarray,
    load_fine: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Correlate the grain of pairs in the same frame, finely where the thumbnails agree.

    Args:
        first: Rows of the images seen as they are.
        second: Rows of those seen by the view.
        view: The view.
        thumbnails: See `find_copies`.
        load_fine: See `find_copies`.

    Returns:
        `float64` array with one correlation per pair; -1 where a look refutes the pair.
    """
    score = np.full(len(first), -1.0)
    asked = np.arange(len(first))
    for load, least in ((thumbnails.__getitem__, MIN_THUMBNAIL), (load_fine, MIN_GRAIN)):
        agreement = compare_grain(first[asked], second[asked], view, load)
        agrees = agreement >= least
        asked, agreement = asked[agrees], agreement[agrees]
    score[asked] = agreement
    return score


def compare_grain(
    first: np.ndarray,
    second: np.ndarray,
    view: View,
    load: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Correlate the fine structure of pairs of images in the same frame, one perhaps mirrored.

    Args:
        first: Rows of the images seen as they are.
        second: Rows of those seen by the view.
        view: The view.
        load: Makes pictures of some rows, an array `(k, side, side)`.

    Returns:
        `float64` array with one correlation in [-1, 1] per pair, of what neither has cut off at
        black or white; of everything where that is less than a twentieth. -1 for one colour.
    """
    turn = slice(None, None, -1 if view.mirrored else 1)
    scores = [np.empty(0)]
    for start in range(0, len(first), BLOCK_PAIRS):
        pairs = np.stack([first[start : start + BLOCK_PAIRS], second[start : start + BLOCK_PAIRS]])
        rows, place = np.unique(pairs, return_inverse=True)
        pictures = load(rows)
        grain, shown = without_blur(pictures.astype(np.float32)), not_cut_off(pictures)
        one, other = place.reshape(2, -1)
        scores.append(
            correlate_shown(
                grain[one], grain[other][:, :, turn], shown[one] & shown[other][:, :, turn]
            )
        )
    return np.concatenate(scores)


def not_cut_off(pictures: np.ndarray) -> np.ndarray:
    """Mark the pixels that are neither black nor white, nor near to one that is.

    Args:
        pictures: `uint8` array of shape `(n, side, side)`.

    Returns:
        `bool` array of the same shape.
    """
    cv2 = import_cv2()  # a tenth of the time that SciPy takes
    cut_off = ((pictures <= BLACK) | (pictures >= WHITE)).astype(np.uint8)
    around = np.ones((2 * REACH_PIXELS + 1,) * 2, np.uint8)
    grown = [cv2.dilate(picture, around) for picture in cut_off]
    return np.reshape(grown, pictures.shape) == 0


def correlate_shown(pictures: np.ndarray, others: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Correlate pairs of pictures where both are shown, or everywhere if that is too little.

    Args:
        pictures: `float32` array of shape `(n, side, side)`.
        others: The same.
        shown: `bool` array of the same shape.

    Returns:
        `float64` array of shape `(n,)` in [-1, 1]; about 0 or -1 where one has one value only.
    """
    weights = shown.reshape(len(shown), -1).astype(np.float32)
    weights[weights.mean(axis=1) < MIN_SHARE] = 1.0
    rows = []
    for picture in (pictures, others):
        row = picture.reshape(weights.shape) * weights
        mean = row.sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        rows.append(row - mean * weights)
    one, other = rows
    length = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    product = np.einsum("ij,ij->i", one, other, dtype=np.float64)
    return np.divide(product, length, out=np.full(len(one), -1.0), where=length > ROUNDING)


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
    """Take the coarse structure away: pictures minus their blur.

    Args:
        pictures: `float32` array of shape `(n, side, side)`.
    """
    blur = blurring(pictures.shape[-1])
    return pictures - blur @ pictures @ blur.T


@functools.lru_cache
def blurring(num_pixels: int) -> np.ndarray:
    """Make the matrix that blurs a line of pixels by a Gaussian filter."""
    # Blurring the unit matrix gives the matrix of the blur, and for small pictures a product
    # with it takes a fifth of the time.
    unit = np.eye(num_pixels, dtype=np.float32)
    return gaussian_filter1d(unit, BLUR_PIXELS, axis=0, truncate=3.0)


def unit_rows(pictures: np.ndarray) -> np.ndarray:
    """Make rows of mean 0 and length 1, so that a product of two rows is their correlation.

    A picture without structure becomes a row of zeros, which correlates with nothing.
    """
    # Not -1 for the length of a row: there may be no row to tell it by.
    rows = pictures.reshape(len(pictures), math.prod(pictures.shape[1:]))
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > ROUNDING)
