"""Find near-duplicates, and the clusters of them that no split may part.

Hashes flow in, one row per image; clusters named by image flow out. Rows of hashes, labels
and image ids are matched by position within one call.

**Distance.** Every image has two perceptual hashes of its grey 64x64 thumbnail: 256 bits from
the lowest 16x16 cosine frequencies and 1,024 bits from the lowest 32x32. The distance of two
images is the larger share of differing bits, counted in 256ths: `max(coarse, fine / 4)`. A copy
(re-encoded, resized, brightened) differs by the same small share in both. Pictures that only
share a layout agree in the coarse hash and part in the fine one: of the 208 pairs among 5,000
handwritten digits that are within 40 in the coarse hash, none is within 55 in the fine one. The
correlation of grey values is no substitute: it is above .99 for different solar cells of one
design and below .95 for copies of a brain scan with another contrast.

**Mirror images.** The hash of a mirrored image is computed as well, and compared with those of the
others as they are.

**Threshold.** 24 is where false pairs begin: up to there 2 of 189 pairs of solar cells are
different cells of one design, from there to 27 it is 10 of 79, while JPEG at quality 75, half
the size or more light cost 0 to 20. A crop by 2 % costs 48 or more: those are found by other
means, see `cvpipe.data.copies`, and counted here from the threshold on. No threshold suits all
data, so the table of clusters against it is part of every result.

**No near-duplicate of anything** is a picture with hardly any structure (one colour, plain
stripes): most of its frequencies are zero, so its hash says nothing. Whether such pictures are
identical is for a comparison of their pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.fft import dct
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import squareform

from cvpipe.data.thumbnails import grey_thumbnail
from cvpipe.errors import InputError

COARSE_SIDE, FINE_SIDE = 16, 32  # frequencies of a hash in either direction
HASH_WORDS = 20
COARSE_WORDS = 4
DISTANCE = 24
THRESHOLDS = range(0, 65, 4)
# A photo's hash has 128 of its 256 coarse bits set. A picture that varies in one direction only
# has at most 16, so two of them are near for lack of bits; a centred ring still has about 30.
MIN_SET_BITS = 17
RECUT_FRACTION = 0.05
RECUT_IMAGES = 25
# Complete linkage holds all distances of a cluster at once: 4,000 hashes take 256 MB.
LINKAGE_ROWS = 4_000
BLOCK_ROWS = 1_024
# Thumbnails transformed at once: 8 MB.
HASHED_ROWS = 256
# Pairs held before they are reduced to a forest.
HELD_PAIRS = 1_000_000


class Pairs(NamedTuple):
    """Pairs of rows, in three arrays of the same length.

    Attributes:
        first: `int64`, the smaller row of each pair.
        second: `int64`, the larger row.
        distance: `float64`, see `hash_distance`.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


NO_PAIRS = Pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))
# Given rows, other rows, and whether the latter are mirrored: which of the pairs agree.
Agreement = Callable[[np.ndarray, np.ndarray, bool], np.ndarray]


class Recut(NamedTuple):
    """A large cluster that was cut again by complete linkage.

    Attributes:
        image_id: The smallest `image_id` in it.
        num_images: How many images it had.
        num_parts: How many clusters it became.
    """

    image_id: str
    num_images: int
    num_parts: int


class Mixed(NamedTuple):
    """A cluster with more than one label, shown by its nearest two images that disagree.

    Attributes:
        cluster: Name of the cluster.
        image_ids: The two images, sorted.
        labels: Their labels, in that order.
        distance: Their distance, which may exceed the threshold within a chain.
    """

    cluster: str
    image_ids: tuple[str, str]
    labels: tuple[str, str]
    distance: float


@dataclass(frozen=True)
class Clusters:
    """The near-duplicate clusters of a set of images.

    Attributes:
        cluster: Name of each image's cluster, in the order of the images: the smallest
            `image_id` in it. An image without near-duplicates is a cluster of its own.
        table: See `threshold_table`; without the second cut of large clusters.
        recut: The clusters that were cut again, sorted by `image_id`.
        mixed: The final clusters with more than one label, sorted by name.
        threshold: The largest distance of two near-duplicates.
        pairs: Near-duplicates that hold the clusters together, at most one pair less than
            images; before the second cut of large clusters.
    """

    cluster: tuple[str, ...]
    table: pd.DataFrame
    recut: tuple[Recut, ...]
    mixed: tuple[Mixed, ...]
    threshold: float
    pairs: Pairs


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Hash what an image shows, so that copies have hashes with few differing bits.

    Args:
        image: `uint8` array of shape `(height, width, 3)`, RGB.

    Returns:
        `uint64` array of shape `(20,)`, see `hash_thumbnails`.
    """
    return hash_thumbnails(grey_thumbnail(image)[None])[0]


def hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Hash grey thumbnails.

    They are transformed by the two-dimensional cosine transform of type II. A bit says whether
    a coefficient is above the median of its square: rows of the square from low to high
    vertical frequency, the constant term included.

    Args:
        thumbnails: `uint8` array of shape `(n, 64, 64)`.

    Returns:
        `uint64` array of shape `(n, 20)`: 4 words with the bits of the lowest 16x16
        frequencies, then 16 words with those of the lowest 32x32.

    References:
        Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010,
        section 3.2.1, with 8x8 frequencies of 32x32 pixels. Departures: more frequencies, no
        mean filter, and the constant term belongs to the median and to the bits.
    """
    return hash_both_ways(thumbnails)[0]


def hash_both_ways(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash grey thumbnails and their mirror images.

    Mirroring turns the sign of the odd horizontal frequencies, so one transform serves both.

    Args:
        thumbnails: `uint8` array of shape `(n, 64, 64)`.

    Returns:
        Two `uint64` arrays of shape `(n, 20)`, see `hash_thumbnails`: left and right as they
        are, and exchanged.
    """
    hashes = np.empty((2, len(thumbnails), HASH_WORDS), dtype=np.uint64)
    turned = np.where(np.arange(FINE_SIDE) % 2, -1.0, 1.0)
    for start in range(0, len(thumbnails), HASHED_ROWS):
        block = thumbnails[start : start + HASHED_ROWS].astype(np.float64)
        # An absent frequency comes out as exactly zero (there is a test), so it sets no bit.
        lines = dct(block, type=2, axis=1)[:, :FINE_SIDE]
        frequencies = dct(lines, type=2, axis=2)[:, :, :FINE_SIDE]
        for way, seen in enumerate((frequencies, frequencies * turned)):
            bits = [_above_median(seen[:, :side, :side]) for side in (COARSE_SIDE, FINE_SIDE)]
            packed = np.packbits(np.concatenate(bits, axis=1), axis=1)
            hashes[way, start : start + HASHED_ROWS] = packed.view(np.uint64)
    return hashes[0], hashes[1]


def _above_median(squares: np.ndarray) -> np.ndarray:
    rows = squares.reshape(len(squares), -1)
    # Sorting whole rows is faster than the partition inside `np.median`, which says the same.
    middle = np.sort(rows, axis=1)[:, rows.shape[1] // 2 - 1 : rows.shape[1] // 2 + 1]
    return rows > middle.mean(axis=1, keepdims=True)


def hash_distance(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Measure how far hashes are apart.

    Args:
        hashes: `uint64` array of shape `(..., 20)`.
        others: The same; the shapes are broadcast.

    Returns:
        `float64` array of shape `(...)` with steps of 1/4 in [0, 256]: the larger share of
        differing bits of the coarse and the fine hash, in 256ths.
    """
    differing = np.bitwise_count(hashes ^ others)
    coarse = differing[..., :COARSE_WORDS].sum(axis=-1, dtype=np.int64)
    fine = differing[..., COARSE_WORDS:].sum(axis=-1, dtype=np.int64)
    return np.maximum(coarse, fine / 4)


def near_pairs(
    hashes: np.ndarray,
    max_distance: float,
    block_rows: int = BLOCK_ROWS,
    others: np.ndarray | None = None,
) -> Iterator[Pairs]:
    """Find all pairs of hashes within a distance, block by block.

    Every pair is compared; there is no index that could miss one. The coarse hashes of two
    blocks are compared by a matrix product of +1 and -1, which is exact in `float32`, takes a
    third of the time of counting bits on one core, and uses all; the fine ones are compared
    only where the coarse ones are near.

    Args:
        hashes: `uint64` array of shape `(n, 20)`.
        max_distance: The largest distance of a pair.
        block_rows: Memory grows with its square, not with `n`.
        others: What the second row of a pair is seen as, such as the hashes of the mirrored
            images; the hashes themselves if left out.

    Yields:
        The pairs of two blocks.
    """
    others = hashes if others is None else others
    signs, other_signs = _signs(hashes), _signs(others)
    # The product of two rows is the number of equal bits minus that of differing ones.
    least = 256 - 2 * max_distance
    for top in range(0, len(hashes), block_rows):
        for left in range(top, len(hashes), block_rows):
            near = signs[top : top + block_rows] @ other_signs[left : left + block_rows].T >= least
            near = np.triu(near, 1) if top == left else near
            # On the flat array this takes a fortieth of the time of `np.nonzero(near)`.
            row, column = np.divmod(np.flatnonzero(near), near.shape[1])
            first, second = row + top, column + left
            distance = hash_distance(hashes[first], others[second])
            kept = distance <= max_distance
            yield Pairs(first[kept], second[kept], distance[kept])


def _signs(hashes: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(hashes[:, :COARSE_WORDS])
    return np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32) * 2 - 1


def spanning_forest(
    hashes: np.ndarray,
    max_distance: float,
    block_rows: int = BLOCK_ROWS,
    mirrored: np.ndarray | None = None,
    agree: Agreement | None = None,
) -> Pairs:
    """Reduce all near pairs to the few that hold every cluster together.

    At each threshold up to `max_distance` these pairs connect the same images as all pairs
    do: they are a minimum spanning forest. So one search serves all thresholds, and memory
    stays small however many pairs there are.

    Args:
        hashes: `uint64` array of shape `(n, 20)`; rows with too few set bits have no pairs.
        max_distance: The largest distance of a pair.
        block_rows: See `near_pairs`.
        mirrored: Hashes of the mirrored images, if mirror images are to be found as well.
        agree: Keeps a pair of near hashes only when the images agree; all, if left out.

    Returns:
        At most `n - 1` pairs.
    """
    set_bits = np.bitwise_count(hashes[:, :COARSE_WORDS]).sum(axis=1, dtype=np.int64)
    rows = np.flatnonzero(set_bits >= MIN_SET_BITS)
    # Equal hashes are joined here: a sparse matrix cannot tell distance 0 from no pair.
    distinct, representative, copy_of = np.unique(
        hashes[rows], axis=0, return_index=True, return_inverse=True
    )
    originals = rows[representative]
    searches = [(near_pairs(distinct, max_distance, block_rows), False)]
    if mirrored is not None:
        turned = mirrored[originals]
        searches.append((near_pairs(distinct, max_distance, block_rows, turned), True))
    held = [NO_PAIRS]
    num_held = 0
    for pairs, is_mirrored in ((p, flag) for search, flag in searches for p in search):
        if agree is not None and len(pairs.first):
            kept = agree(originals[pairs.first], originals[pairs.second], is_mirrored)
            pairs = Pairs(*(column[kept] for column in pairs))  # noqa: PLW2901
        held.append(pairs)
        num_held += len(pairs.first)
        if num_held > HELD_PAIRS:
            held, num_held = [_minimum_forest(_join(held), len(distinct))], 0
    forest = _minimum_forest(_join(held), len(distinct))

    copies = np.flatnonzero(originals[copy_of] != rows)
    first = np.concatenate([originals[forest.first], originals[copy_of[copies]]])
    second = np.concatenate([originals[forest.second], rows[copies]])
    distance = np.concatenate([forest.distance, np.zeros(len(copies))])
    return Pairs(np.minimum(first, second), np.maximum(first, second), distance)


def _join(pairs: Sequence[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate(column) for column in zip(*pairs, strict=True)))


def _minimum_forest(pairs: Pairs, num_rows: int) -> Pairs:
    # A sparse matrix adds up what a pair has twice, such as two symmetric images, one of them
    # mirrored, and takes 0 for no pair.
    order = np.lexsort((pairs.distance, pairs.second, pairs.first))
    first, second, distance = (column[order] for column in pairs)
    once = np.ones(len(order), dtype=bool)
    once[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    graph = coo_array((distance[once] + 1, (first[once], second[once])), (num_rows, num_rows))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo() if num_rows else graph
    return Pairs(tree.row.astype(np.int64), tree.col.astype(np.int64), tree.data - 1)


def connect(num_images: int, pairs: Pairs, threshold: float) -> np.ndarray:
    """Number the clusters of images that are connected by pairs within a threshold.

    Args:
        num_images: How many images there are.
        pairs: All near pairs, or their spanning forest.
        threshold: The largest distance that connects.

    Returns:
        `int` array of shape `(num_images,)`; numbers from 0 without gaps.

    Example:
        >>> pairs = Pairs(np.array([0, 1]), np.array([2, 3]), np.array([8.0, 30.0]))
        >>> connect(4, pairs, 24).tolist()
        [0, 1, 0, 2]
    """
    if num_images == 0:
        return np.empty(0, dtype=np.int32)
    near = pairs.distance <= threshold
    ends = (pairs.first[near], pairs.second[near])
    graph = coo_array((np.ones(near.sum()), ends), shape=(num_images, num_images))
    return connected_components(graph, directed=False)[1]


def threshold_table(
    forest: Pairs, labels: Sequence[str], thresholds: Sequence[int] = THRESHOLDS
) -> pd.DataFrame:
    """Show how clusters grow with the threshold.

    Args:
        forest: See `spanning_forest`, searched up to the largest threshold.
        labels: Label of each image.
        thresholds: Distances to look at.

    Returns:
        One row per threshold: `threshold`, `clusters` (images without a near-duplicate
        count), `largest` (number of images) and `mixed` (clusters of more than one label).
    """
    rows = []
    for threshold in thresholds:
        cluster = connect(len(labels), forest, threshold)
        members = pd.DataFrame({"label": list(labels), "cluster": cluster}).groupby("cluster")
        largest, mixed = members.size().max(), (members["label"].nunique() > 1).sum()
        rows.append((threshold, len(members), largest if len(labels) else 0, mixed))
    columns = ["threshold", "clusters", "largest", "mixed"]
    return pd.DataFrame(rows, columns=columns).astype(int)


def cut_by_complete_linkage(
    hashes: np.ndarray,
    threshold: float,
    mirrored: np.ndarray | None = None,
    together: Pairs | None = None,
) -> np.ndarray:
    """Cut a cluster so that no two images of a part are farther apart than the threshold.

    Equal hashes stay together. The result does not depend on the order of the rows.

    Args:
        hashes: `uint64` array of shape `(n, 20)`.
        threshold: The largest distance within a part.
        mirrored: Hashes of the mirrored images; the smaller distance counts.
        together: Pairs that are no farther apart than their distance, whatever the hashes say.

    Returns:
        `int` array of shape `(n,)`: the number of each image's part.
    """
    distinct, original, copy_of = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    turned = None if mirrored is None else mirrored[original]
    pairs = NO_PAIRS if together is None else together
    one, other = copy_of[pairs.first], copy_of[pairs.second]
    part = np.zeros(len(distinct), dtype=np.int64)
    for start in range(0, len(distinct), LINKAGE_ROWS):
        rows = slice(start, start + LINKAGE_ROWS)
        square = _distances(distinct[rows], None if turned is None else turned[rows])
        inside = (np.stack([one, other]) // LINKAGE_ROWS == start // LINKAGE_ROWS).all(axis=0)
        at = (one[inside] - start, other[inside] - start)
        np.minimum.at(square, at, pairs.distance[inside])
        square = np.minimum(square, square.T)
        np.fill_diagonal(square, 0)
        if len(square) > 1:
            joined = linkage(squareform(square, checks=False), "complete")
            numbers = fcluster(joined, threshold, criterion="distance")
        else:
            numbers = np.ones(1, dtype=np.int64)
        part[rows] = part.max() + numbers
    return part[copy_of]


def _distances(hashes: np.ndarray, mirrored: np.ndarray | None) -> np.ndarray:
    """Measure all distances of a few hashes, mirrored or not: a symmetric `(n, n)` array."""
    square = np.stack([hash_distance(row, hashes) for row in hashes]).astype(np.float32)
    if mirrored is None:
        return square
    turned = np.stack([hash_distance(row, mirrored) for row in hashes])
    return np.minimum(square, np.minimum(turned, turned.T)).astype(np.float32)


def find_clusters(
    image_ids: Sequence[str],
    labels: Sequence[str],
    hashes: np.ndarray,
    threshold: float = DISTANCE,
    mirrored: np.ndarray | None = None,
    agree: Agreement | None = None,
    find_more: Callable[[np.ndarray], Pairs] | None = None,
) -> Clusters:
    """Cluster near-duplicates: whoever is near is together, directly or through others.

    A cluster above 5 % of the images and above 25 images is more likely a chain of
    look-alikes than one scene, so it is cut again by complete linkage.

    Args:
        image_ids: Key of each image, unique.
        labels: Label of each image.
        hashes: `uint64` array of shape `(n, 20)`, see `hash_thumbnails`.
        threshold: The largest distance of two near-duplicates, in [0, 64].
        mirrored: The hashes of the mirrored images, if those are to be found as well.
        agree: See `spanning_forest`.
        find_more: Given the number of each image's cluster, finds further pairs that belong
            together although their hashes are far apart. Their distance is not used: they
            count as being at the threshold.

    Raises:
        InputError: The arguments do not have one row per image, or the threshold is outside
            its range.
    """
    num_images = len(image_ids)
    if hashes.shape != (num_images, HASH_WORDS) or len(labels) != num_images:
        raise InputError(
            f"one label and one hash of {HASH_WORDS} words are needed for each of "
            f"{num_images} image(s), but there are {len(labels)} label(s) and hashes of shape "
            f"{hashes.shape}; stack the results of perceptual_hash."
        )
    if not 0 <= threshold <= THRESHOLDS[-1]:
        raise InputError(
            f"the distance of near-duplicates is {threshold}, but must be between 0 and "
            f"{THRESHOLDS[-1]}; {DISTANCE} suits most photos."
        )
    ids, names = np.asarray(image_ids, dtype=object), np.asarray(labels, dtype=object)
    forest = spanning_forest(hashes, THRESHOLDS[-1], mirrored=mirrored, agree=agree)
    more = find_more(connect(num_images, forest, threshold)) if find_more else NO_PAIRS
    more = more._replace(distance=np.full(len(more.first), float(threshold)))
    # Two images may be found by several views, and each from the other.
    forest = _minimum_forest(_join([forest, more]), num_images)
    cluster = connect(num_images, forest, threshold)
    recut = []
    for rows in _members(cluster):
        if len(rows) > max(RECUT_IMAGES, RECUT_FRACTION * num_images):
            turned = None if mirrored is None else mirrored[rows]
            part = cut_by_complete_linkage(hashes[rows], threshold, turned, _within(more, rows))
            recut.append(Recut(min(ids[rows]), len(rows), len(np.unique(part))))
            cluster[rows] = cluster.max() + part
    name = np.empty(num_images, dtype=object)
    mixed = []
    for rows in _members(cluster):
        name[rows] = min(ids[rows])
        if len(set(names[rows])) > 1:
            mixed.append(_nearest_disagreement(ids[rows], names[rows], hashes[rows]))
    return Clusters(
        cluster=tuple(name),
        table=threshold_table(forest, labels),
        recut=tuple(sorted(recut)),
        mixed=tuple(sorted(mixed)),
        threshold=threshold,
        pairs=Pairs(*(column[forest.distance <= threshold] for column in forest)),
    )


def _within(pairs: Pairs, rows: np.ndarray) -> Pairs:
    """Keep the pairs inside some rows, sorted, and number them by their place among those."""
    kept = np.isin(pairs.first, rows) & np.isin(pairs.second, rows)
    first, second = (np.searchsorted(rows, ends[kept]) for ends in (pairs.first, pairs.second))
    return Pairs(first, second, pairs.distance[kept])


def _members(cluster: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(cluster, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1) if len(order) else []


def _nearest_disagreement(ids: np.ndarray, labels: np.ndarray, hashes: np.ndarray) -> Mixed:
    # Sorted, so that the smallest ids win a tie whatever the order of the rows.
    order = np.argsort(ids)
    ids, labels, hashes = ids[order], labels[order], hashes[order]
    best = (np.inf, 0, 0)
    for row in range(len(ids) - 1):
        distance = hash_distance(hashes[row], hashes[row + 1 :])
        distance[labels[row + 1 :] == labels[row]] = np.inf
        nearest = int(distance.argmin())
        best = min(best, (float(distance[nearest]), row, row + 1 + nearest))
        if best[0] == 0:
            break  # nothing is nearer, and a heap of equal images needs no square of its size
    distance_of_best, one, other = best
    return Mixed(ids[0], (ids[one], ids[other]), (labels[one], labels[other]), distance_of_best)
