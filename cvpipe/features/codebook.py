"""Visual words: what k-means finds among sampled local descriptors, and how it is looked up."""

import warnings
from collections.abc import Callable

import numpy as np

from cvpipe.errors import TooLittleToLearnError
from cvpipe.numerics import one_thread

BLOCK_IMAGES = 8  # described at a time while sampling
CANDIDATES_PER_WORD = 6  # among which k-means++ chooses the first centres
MAX_SAMPLES = 1_000_000  # descriptors to learn from: 512 MB of SIFT-like ones
MAX_WORDS = 10_000
CLUSTERING_ROUNDS = 10


def share_out(num_samples: int, num_images: int, random_state: int) -> np.ndarray:
    """Decide how many samples each image gives, as evenly as possible.

    Returns:
        `int64` array of shape `(num_images,)` with the sum `num_samples`; two entries
        differ by one at most, and chance decides which are larger.
    """
    least, rest = divmod(num_samples, num_images)
    shares = np.full(num_images, least)
    shares[np.random.default_rng(random_state).permutation(num_images)[:rest]] += 1
    return shares


def sample_rows(
    describe: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    num_samples: int,
    random_state: int,
) -> np.ndarray:
    """Draw random descriptors of images, as evenly from all images as possible.

    It holds the sample, `4 * num_samples * length` bytes (51 MB for 100,000 SIFT descriptors),
    and the descriptors of 8 images, however many images there are.

    Args:
        describe: Turns `b` images into a `float32` array of shape `(b, num_points, length)`.
        images: Array of shape `(n, ...)`, at least one.
        num_samples: How many descriptors; fewer if there are not as many.
        random_state: Seed.

    Returns:
        `float32` array of shape `(m, length)` with `m <= num_samples`, in the order of the images.
        No descriptor is drawn twice.
    """
    _, num_points, length = describe(images[:1]).shape
    shares = np.minimum(share_out(num_samples, len(images), random_state), num_points)
    rng = np.random.default_rng(random_state)
    samples = np.empty((int(shares.sum()), length), dtype=np.float32)
    filled = 0
    chosen = np.flatnonzero(shares)
    for start in range(0, len(chosen), BLOCK_IMAGES):
        block = chosen[start : start + BLOCK_IMAGES]
        for rows, share in zip(describe(images[block]), shares[block], strict=True):
            drawn = np.sort(rng.choice(num_points, share, replace=False))
            samples[filled : filled + share] = rows[drawn]
            filled += share
    return samples


def learn_codebook(samples: np.ndarray, num_words: int, random_state: int) -> np.ndarray:
    """Find words, the centres of clusters of descriptors.

    Ten rounds of k-means after k-means++ on a part of the samples: choosing the first centres among
    all would take several times as long as the rounds, and the words were not better. All in
    one thread, so that the same input gives the same bits. It holds the samples twice more.

    Args:
        samples: `float32` array of shape `(num_samples, length)`.
        num_words: Number of words, at most that of the samples.
        random_state: Seed.

    Returns:
        `float32` array of shape `(num_words, length)`. If fewer samples than that are
        distinct, some words are there more than once.

    Raises:
        TooLittleToLearnError: There are fewer samples than words.

    References:
        Csurka et al., "Visual Categorization with Bags of Keypoints", ECCV workshop
        2004. Arthur and Vassilvitskii, "k-means++", SODA 2007.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning

    if len(samples) < num_words:
        raise TooLittleToLearnError(
            f"{num_words} visual words cannot be learned from {len(samples)} descriptors; lower "
            "num_words or step_pixels, raise num_samples or give more images."
        )
    num_candidates = min(len(samples), CANDIDATES_PER_WORD * num_words)
    rng = np.random.default_rng(random_state)
    candidates = samples[rng.choice(len(samples), num_candidates, replace=False)]
    with one_thread(), warnings.catch_warnings():
        # It warns of words that are there more than once.
        warnings.simplefilter("ignore", ConvergenceWarning)
        first, _ = kmeans_plusplus(candidates, num_words, random_state=random_state)
        clusters = KMeans(
            num_words, init=first, n_init=1, max_iter=CLUSTERING_ROUNDS, random_state=random_state
        )
        clusters.fit(samples)
    return clusters.cluster_centers_.astype(np.float32)


def assign_words(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Find the nearest word to each descriptor (hard assignment).

    Call it with the descriptors of one image: the last bits of a matrix product, and thus
    a near tie, depend on the number of its rows.

    Args:
        descriptors: `float32` array of shape `(num_points, length)`.
        words: `float32` array of shape `(num_words, length)`.

    Returns:
        `int64` array of shape `(num_points,)`; at equal Euclidean distances the first word.

    Example:
        >>> words = np.array([[0, 0], [2, 0], [2, 0]], np.float32)
        >>> assign_words(np.array([[0.5, 1], [1.0, 3], [9, 9]], np.float32), words)
        array([0, 0, 1])
    """
    return _relative_distances(descriptors, words).argmin(axis=1)


def soft_assign(
    descriptors: np.ndarray, words: np.ndarray, num_nearest: int = 5, sharpness: float = 20.0
) -> np.ndarray:
    """Share each descriptor out between its nearest words (localised soft assignment).

    A word at the squared distance d gets a share in proportion to exp(-sharpness * d), and words
    that are not among the nearest get nothing. With all words this is the kernel codebook of van
    Gemert et al., whose far words Liu et al. found to do harm.

    Args:
        descriptors: As in `assign_words`, and of one image as there.
        words: As in `assign_words`.
        num_nearest: How many words may have a share, the first ones at equal distances; all of
            them if there are not as many. Each costs one more look at all distances.
        sharpness: How fast shares fall with distance; 20 suits descriptors of length 1, and was
            better than the 10 of Liu et al. on our data.

    Returns:
        `float32` array of shape `(num_points, num_words)`, rows with the sum 1.

    References:
        Liu, Wang and Liu, "In Defense of Soft-assignment Coding", ICCV 2011, section 3.
        Van Gemert et al., "Visual Word Ambiguity", PAMI 32, 2010, equation 11.
    """
    distances = 2 * _relative_distances(descriptors, words)
    points = np.arange(len(descriptors))
    nearest, near = [], []
    # For few neighbours looking again and again is several times as fast as `argpartition`.
    for _ in range(min(num_nearest, len(words))):
        nearest.append(distances.argmin(axis=1))
        near.append(distances[points, nearest[-1]])
        distances[points, nearest[-1]] = np.inf
    # Shares depend on differences of distances only; the nearest word has the exponent 0.
    weights = np.exp(-sharpness * (np.array(near) - near[0]))
    shares = np.zeros_like(distances)
    shares[points, nearest] = weights / weights.sum(axis=0)
    return shares


def _relative_distances(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Half of each squared distance, less half of the descriptor's squared length."""
    products = descriptors @ words.T
    return np.subtract(np.vecdot(words, words) / 2, products, out=products)
