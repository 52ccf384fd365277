"""Measure how bright and how sharp pictures are, and find those far below the others.

Thumbnails flow in; figures in a table flow out, and from that table the findings `dark`,
`bright` and `blurred`. What is dark among scans with a black
background is not what is dark among photos, so nothing is compared with a fixed level: a picture
stands out only from the others of its data set.
"""

import numpy as np
import pandas as pd

from cvpipe.data.findings import Finding, make_finding
from cvpipe.data.thumbnails import THUMBNAIL_PIXELS

# What is measured of each picture; see `measure_quality`.
QUALITY_COLUMNS = ["brightness", "highlights", "contrast", "sharpness"]
# Pictures are measured in blocks that fit into the cache of a processor.
BLOCK_ROWS = 64
# The place of the highlights among the sorted pixels.
HIGHLIGHT = round(0.99 * THUMBNAIL_PIXELS**2)
# Where the median says little, nothing stands out from it.
MIN_IMAGES = 20
# The bound that the source of the modified z-score recommends.
MAX_Z_SCORE = 3.5
# In a uniform data set the z-score alone finds differences that nobody sees.
MIN_RATIO = 2.0
# The median absolute deviation of a normal distribution, in standard deviations.
NORMAL_MAD = 0.6745


def measure_quality(thumbnails: np.ndarray) -> pd.DataFrame:
    """Measure the brightness, contrast and sharpness of pictures.

    The thumbnails ignore the aspect ratio. Being divided by the variance of the grey values,
    sharpness does not change with exposure or contrast; being measured on a thumbnail, it does
    not change with resolution, and blur that is finer than a thumbnail pixel is not seen.

    Args:
        thumbnails: `uint8` array of shape `(n, 64, 64)`, see `cvpipe.data.thumbnails`.

    Returns:
        One row per picture: `brightness`, the mean grey value in [0, 1]; `highlights`, the grey
        value that 1 % of the pixels exceed, in [0, 1]; `contrast`, the standard deviation of
        the grey values, in [0, 0.5]; and `sharpness`, the variance of the Laplacian over that
        of the grey values, 0 for one colour.

    References:
        Pech-Pacheco, Cristobal, Chamorro-Martinez and Fernandez-Valdivia, "Diatom autofocusing
        in brightfield microscopy: a comparative study", ICPR 2000: the variance of the
        Laplacian. Departure: divided by the variance of the grey values.
    """
    figures = np.empty((len(thumbnails), len(QUALITY_COLUMNS)))
    for start in range(0, len(thumbnails), BLOCK_ROWS):
        block = thumbnails[start : start + BLOCK_ROWS]
        pixels = block.reshape(len(block), -1)
        # Stable means a radix sort here: three times as fast as a partition of single bytes.
        highlights = np.sort(pixels, axis=1, kind="stable")[:, HIGHLIGHT]
        brightness, variance = _moments(block)
        _, of_laplacian = _moments(_laplacian(block))
        # Exactly 0 for one colour, because the sums are whole numbers.
        sharpness = np.divide(
            of_laplacian, variance, out=np.zeros_like(variance), where=variance > 0
        )
        figures[start : start + BLOCK_ROWS] = np.stack(
            [brightness / 255, highlights / 255, np.sqrt(variance) / 255, sharpness], axis=1
        )
    return pd.DataFrame(figures.round(4), columns=QUALITY_COLUMNS)


def _moments(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the values of each picture."""
    values = pictures.reshape(len(pictures), -1).astype(np.int32)
    mean = values.mean(axis=1, dtype=np.float64)
    mean_square = np.einsum("ij,ij->i", values, values, dtype=np.int64) / values.shape[1]
    return mean, mean_square - mean**2


def _laplacian(pictures: np.ndarray) -> np.ndarray:
    """Sum of the four neighbours minus four times the value; the border is repeated outside."""
    padded = np.pad(pictures.astype(np.int16), ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]
    neighbours += padded[:, 1:-1, :-2]
    neighbours += padded[:, 1:-1, 2:]
    return neighbours - 4 * padded[:, 1:-1, 1:-1]


def is_constant(pixels: np.ndarray) -> bool:
    """Tell whether an image has one colour all over.

    The pixels themselves are asked: in a small grey picture of them, colours of the same
    brightness, fine noise and sparse dots vanish.

    Args:
        pixels: `uint8` array of shape `(height, width, 3)`, none of them 0.
    """
    first = pixels[0]
    # Row by row, so that a picture is dismissed at the first row that differs.
    return bool((first == first[0]).all()) and all(np.array_equal(row, first) for row in pixels)


def far_below(values: np.ndarray) -> np.ndarray:
    """Mark the values that are far below the others on a scale of ratios.

    Logarithms are compared, by the modified z-score: the distance from the median over the
    median absolute deviation, which a few outliers do not move.

    Args:
        values: Non-negative numbers of shape `(n,)`.

    Returns:
        `bool` array of shape `(n,)`: the modified z-score is below -3.5 and the value at most
        half the median. All false for fewer than 20 values.

    Example:
        >>> values = np.array([0.9, 1.0, 1.1] * 10 + [0.1])
        >>> np.flatnonzero(far_below(values)).tolist()
        [30]

    References:
        Iglewicz and Hoaglin, "How to Detect and Handle Outliers", ASQC 1993, section 3.3.
        Departure: the deviation is that of the lower half alone, so that a part of the images
        that is far above the others, such as textures among portraits, hides nothing below.
    """
    if len(values) < MIN_IMAGES:
        return np.zeros(len(values), dtype=bool)
    logs = np.log(np.maximum(values, 1e-4))  # the figures have four digits
    distance = logs - np.median(logs)
    spread = -np.median(distance[distance <= 0]) / NORMAL_MAD
    return (distance < -MAX_Z_SCORE * spread) & (distance <= -np.log(MIN_RATIO))


def quality_outliers(facts: pd.DataFrame) -> list[Finding]:
    """Find pictures that are far darker, brighter or less sharp than the others.

    A picture is dark when even its lightest parts are: a mean would find those with a large
    black background.

    Args:
        facts: Columns `image_id`, `constant` and `QUALITY_COLUMNS`, one row per picture.
    """
    facts = facts[~facts["constant"].astype(bool)].set_index("image_id")  # those are told as such
    findings = []
    for kind, what, values in (
        ("dark", "its lightest parts reach", facts["highlights"]),
        ("bright", "its mean distance from white is", 1 - facts["brightness"]),
        # Where the thumbnail is one grey value, nothing can be said of its sharpness.
        ("blurred", "its sharpness is", facts.loc[facts["contrast"] > 0, "sharpness"]),
    ):
        found = far_below(values.to_numpy(dtype=float))
        for image_id, value in values[found].items():
            reason = f"{what} {value:.3f}, while the median of all images is {values.median():.3f}"
            findings.append(make_finding(kind, reason, str(image_id)))
    return findings
