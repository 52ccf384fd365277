"""Areas under ROC curves: how sure they are, and how sure the difference of two is.

An area is the share of pairs, one image of the class and one of another, in which the first
scores higher, ties counting one half. An image's *placement* is that share over the pairs it is
in. The area is the mean of the placements, on either side, so how they vary says how sure the
area is; and two contenders are compared by the differences of the placements of the same images.
The area is that of `cvpipe.evaluation.metrics.roc_auc`.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata, t

from cvpipe.evaluation.intervals import ROUNDING


def auc_components(targets: np.ndarray, probabilities: np.ndarray) -> tuple[float, np.ndarray]:
    """`roc_auc`, and what each image adds to its deviation from the expected value.

    Of one class against the rest, an image's component is its placement minus the area, divided
    by the number of images on its side. Of more than two classes it is the mean of its
    components over the classes that `roc_auc` averages, so that all it does to the mean area is
    in one number and the variance needs no covariances of classes.

    Args:
        targets: Integers, `(n,)`.
        probabilities: `(n, num_classes)`; any scores will do.

    Returns:
        The area, and the components, `float64 (n,)`, whose sum is 0; NaN where all images have
        one class.

    References:
        DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated
        Receiver Operating Characteristic Curves: A Nonparametric Approach", Biometrics 44,
        1988 (the structural components); Sun and Xu, "Fast Implementation of DeLong's
        Algorithm for Comparing the Areas Under Correlated Receiver Operating Characteristic
        Curves", IEEE Signal Processing Letters 21, 2014 (their computation from midranks).
    """
    num_classes = probabilities.shape[1]
    ranks = rankdata(probabilities, axis=0)
    classes = [1] if num_classes == 2 else range(num_classes)
    parts = [
        _components_of_class(targets == index, ranks[:, index])
        for index in classes
        if 0 < (targets == index).sum() < len(targets)
    ]
    if not parts:
        return math.nan, np.full(len(targets), np.nan)
    areas, components = zip(*parts, strict=True)
    return float(np.mean(areas)), np.mean(components, axis=0)


def auc_covariance(
    components: Sequence[np.ndarray], targets: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Covariance of the areas of several contenders on the same images.

    With two classes and one image per group it is DeLong's, with larger groups Obuchowski's.
    Images of one group are summed up before they are squared: what they share does not average
    out. The factors n / (n - 1) are those of the two papers, and count for each true class the
    groups that have images of it; between two classes they count all groups. With more than two
    classes, which neither paper has, the same factors hold for each class and pair of classes.

    Args:
        components: Those of each contender, each `(n,)`, see `auc_components`.
        targets: Integers, `(n,)`.
        groups: One group per image, `(n,)`, integers from 0.

    Returns:
        `float64 (num_contenders, num_contenders)`; infinite where a class has images of one group
        only, because nothing is known of what another group would have scored.

    References:
        DeLong, DeLong and Clarke-Pearson, see `auc_components`; Obuchowski, "Nonparametric
        Analysis of Clustered ROC Curve Data", Biometrics 53, 1997, section 2.
    """
    present, strata = np.unique(targets, return_inverse=True)
    num_groups = len(np.unique(groups))
    sums = np.zeros((groups.max() + 1, len(present), len(components)))
    np.add.at(sums, (groups, strata), np.column_stack(components))
    counts = [len(np.unique(groups[strata == stratum])) for stratum in range(len(present))]
    if min(counts) < 2:
        return np.full((len(components), len(components)), np.inf)
    factors = np.full((len(present), len(present)), num_groups / (num_groups - 1))
    np.fill_diagonal(factors, [count / (count - 1) for count in counts])
    return np.einsum("gcr,gds,cd->rs", sums, sums, factors, optimize=True)


def auc_difference(
    targets: np.ndarray, ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """Difference of two contenders' `roc_auc` on the same images, and its standard error.

    Args:
        targets: Integers, `(n,)`.
        ours: Probabilities `(n, num_classes)` of the contender.
        theirs: The same of the one it is compared with.
        groups: One group per image, `(n,)`, integers from 0.

    Returns:
        `(difference, standard_error)`, ours minus theirs; both NaN where all images have one
        class. The standard error is 0 where both order the images alike, otherwise infinite
        where `auc_covariance` is.
    """
    area, components = auc_components(targets, ours)
    other_area, other_components = auc_components(targets, theirs)
    change = components - other_components
    if math.isnan(area):
        return math.nan, math.nan
    if area == other_area and not change.any():
        return 0.0, 0.0  # they order all images alike, and one group is enough to say so
    variance = auc_covariance([change], targets, groups)[0, 0]
    return area - other_area, math.sqrt(max(variance, 0.0))


def two_sided_p_value(difference: float, standard_error: float, degrees: float = math.inf) -> float:
    """Two-sided p-value of a difference that scatters about 0 if there is none.

    Args:
        difference: The difference; NaN where it cannot be computed.
        standard_error: Its standard error, from 0 to infinity.
        degrees: Degrees of freedom of Student's t, at least 1; infinite: the normal distribution.

    Returns:
        A number in [0, 1]; 1 where there is no difference or none is defined, whatever the
        standard error.

    Example:
        >>> [round(two_sided_p_value(1.96, 1.0, degrees), 3) for degrees in (math.inf, 9)]
        [0.05, 0.082]
    """
    if math.isnan(difference) or abs(difference) <= ROUNDING:
        return 1.0
    if standard_error == 0:
        return 0.0
    return float(2 * t.cdf(-abs(difference) / standard_error, degrees))


def _components_of_class(positive: np.ndarray, ranks: np.ndarray) -> tuple[float, np.ndarray]:
    """Area and components of one class against the rest; both have images."""
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    # The rank among all minus that within the own side counts those of the other side below.
    placements = np.empty(len(ranks))
    placements[positive] = (ranks[positive] - rankdata(ranks[positive])) / num_negative
    placements[~positive] = 1 - (ranks[~positive] - rankdata(ranks[~positive])) / num_positive
    area = float(placements[positive].mean())
    return area, (placements - area) / np.where(positive, num_positive, num_negative)
