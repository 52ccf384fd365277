"""Paired comparison of contenders on the same images, and the choice on val.

Two contenders that see the same images make many of the same mistakes. Comparing them image
by image removes what they share, so far smaller differences can be told apart than by
looking at whether two intervals overlap.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import pandas as pd
from scipy.stats import binomtest, t

from cvpipe.errors import InputError, check_name
from cvpipe.evaluation.auc import auc_difference, two_sided_p_value
from cvpipe.evaluation.intervals import (
    CONFIDENCE,
    NUM_RESAMPLES,
    ROUNDING,
    block_sizes,
    bootstrap,
    percentile_interval,
    wilson_interval,
)
from cvpipe.evaluation.metrics import (
    METRICS,
    class_terms,
    image_log_losses,
    is_correct,
    macro_f1_of_counts,
    metrics_for,
)
from cvpipe.evaluation.scoring import groups_of, sort_labelled
from cvpipe.frames import (
    check_predictions,
    match_rows,
    predicted_class_names,
    probabilities_of,
    targets_of,
)

# Where costs are given, `cost` comes before the last.
RESAMPLED_METRICS = ("accuracy", "log_loss", "macro_f1")
COMPARED_METRICS = (*RESAMPLED_METRICS, "roc_auc")
SIGNIFICANCE = 0.05
POWER = 0.8
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
# The loss of accuracy that `no_worse` still allows.
MARGIN = 0.02
NUM_PERMUTATIONS = 9999
COLUMNS = [
    "contender",
    "reference",
    "metric",
    "difference",
    "low",
    "high",
    "p_value",
    "p_adjusted",
    "verdict",
    "only_contender_right",
    "only_reference_right",
    "n",
    "detectable",
    "no_worse",
]


def compare_predictions(
    reference_name: str,
    tables: Mapping[str, pd.DataFrame],
    groups_by_image_id: Mapping[str, str] | pd.Series,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    costs: np.ndarray | None = None,
    margin: float = MARGIN,
) -> pd.DataFrame:
    """Compare every contender with the reference, image by image.

    *Interval*: percentile interval of the difference over clustered bootstrap resamples, in
    which both contenders see the same images. When no resample differs from another although
    the predictions do, the interval is the difference plus or minus the upper end of Wilson's
    interval for 0 out of as many as there are groups (of the rarest class, for what is a mean
    over classes): so much could go unseen. The area under the ROC curve has no resamples, which
    would cost more than all else together: its interval comes from the standard error by the
    method of DeLong, for groups of several images Obuchowski's, with t for as many groups as the
    rarest class has, cut at -1 and 1. Where a class has one group only it is all of that.

    *p-value*: for accuracy, when each group is a single image, McNemar's exact test on the
    images that only one of the two gets right. Otherwise a permutation test: if the contenders
    were equally good, swapping their predictions on any group of images would change nothing
    that matters, so the difference is ranked among those after random swaps. For means over
    images this is the sign-flip test on the groups' differences; it serves macro F1, which is
    no such mean, equally well. The area under the ROC curve has the t-test that belongs to its
    interval.

    *Verdict*: the p-value decides, after Holm's correction over all contenders, at 5 %. The
    interval shows how large the difference may be and is *not* corrected, so it can leave out
    0 while the verdict is "cannot be told apart": with several contenders, or with few
    images, where the percentile interval is too narrow and the exact test careful. The
    opposite, an interval that includes 0 beside "better" or "worse", is rare (skewed
    differences); the verdict counts then, too.

    *Detectable*: the smallest true difference that the test would have shown in 80 % of samples
    like this one, at the strictest level of Holm's correction, 5 % divided by the number of
    contenders: so many standard errors as the two quantiles of the normal distribution add up
    to. The standard error is the standard deviation over the resamples; where they show no
    spread, the half-width of the interval is taken for 1.96 of it. This is an approximation,
    and a kind one where few images make the difference.

    *No worse*: for accuracy, whether the interval shows that no more than the margin is lost. The
    interval counts as at least as wide as where nothing differs in any resample: with a few
    images that only the contender gets right, losses could have gone unseen.

    Args:
        reference_name: The contender all others are compared with.
        tables: Predictions of each contender on the same labelled images.
        groups_by_image_id: The group of each image; it may know further images.
        seed: Seed of resamples and swaps. A contender's difference, interval and p-value do
            not depend on which others are compared.
        num_resamples: Number of bootstrap resamples.
        costs: What each mistake costs, see `cost_matrix`; without it the mean cost is not
            compared.
        margin: The loss of accuracy against the reference that does no harm, a share in [0, 1].

    Returns:
        One row per other contender and metric of `COMPARED_METRICS`, and `cost`. `difference` is
        contender minus reference; `verdict` is "better", "worse" or "cannot be told apart"
        and speaks of the contender; `only_contender_right` and `only_reference_right` count
        images and are missing except for accuracy; `n` is the number of images. `detectable` is
        missing where nothing could have been shown: both gave the same answers, the groups are
        too few for any swap of them to be rare, or the difference would exceed the largest
        possible one. `no_worse` is "shown" or "not shown", and "" except for accuracy. An area
        that cannot be computed has a missing difference, with the p-value 1.

    Raises:
        InputError: The reference is not among the tables, the tables do not hold the same
            images, labels and classes, a table breaks its contract or is empty, a label is
            missing or unknown, an image has no group, there is not one resample, the costs are
            no cost matrix, or the margin is not within [0, 1].

    References:
        McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions
        or Percentages", Psychometrika 12, 1947 (here with the exact binomial distribution).
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 15
        (permutation tests).
        DeLong, DeLong and Clarke-Pearson, and Obuchowski, see `cvpipe.evaluation.auc`.
        Piaggio, Elbourne, Pocock, Evans and Altman, "Reporting of Noninferiority and
        Equivalence Randomized Trials", JAMA 308, 2012 (the interval against the margin).
    """
    check_name("contender", reference_name, tables)
    if not 0 <= margin <= 1:
        raise InputError(f"margin {margin} is no share in [0, 1]; pass 0.02 for 2 points.")
    reference = sort_labelled(tables[reference_name])
    groups = groups_of(reference["image_id"], groups_by_image_id)
    comparisons = [
        _compare_pair(name, reference_name, table, reference, groups, seed, num_resamples, costs)
        for name, table in tables.items()
        if name != reference_name
    ]
    if not comparisons:
        return pd.DataFrame(columns=COLUMNS)
    result = pd.concat(comparisons, ignore_index=True)
    result["p_adjusted"] = result.groupby("metric")["p_value"].transform(holm_adjust)
    columns = (result["metric"], result["difference"], result["p_adjusted"])
    result["verdict"] = [verdict_of(*row) for row in zip(*columns, strict=True)]
    level = SIGNIFICANCE / len(comparisons)
    result["detectable"] = [
        _detectable(*row, int(groups.max()) + 1, level)
        for row in zip(result["standard_error"], result["upper"], strict=True)
    ]
    # A contender that lost no image here has a percentile end of 0, but losses could go unseen.
    least = np.minimum(result["low"], result["difference"] - result["slack"])
    shown = np.where(least >= -margin - ROUNDING, "shown", "not shown")
    result["no_worse"] = np.where(result["metric"] == "accuracy", shown, "")
    return result[COLUMNS]


def holm_adjust(p_values: np.ndarray | pd.Series) -> np.ndarray:
    """Adjust p-values for their number, so that any false finding at all stays improbable.

    Args:
        p_values: One p-value per test, `(k,)`, in [0, 1].

    Returns:
        Adjusted p-values in the same order, at most 1. Compare them with the level as it is.

    Example:
        >>> holm_adjust(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]

    References:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal
        of Statistics 6, 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def choose(
    val_tables: Mapping[str, pd.DataFrame], select_by: str, costs: np.ndarray | None = None
) -> str:
    """Name the contender that is best on val.

    Args:
        val_tables: Predictions of each contender on the same labelled images.
        select_by: A name in `metrics_for` these classes and costs.
        costs: What each mistake costs, see `cost_matrix`.

    Returns:
        The best contender's name; the first one in the order given on a tie.

    Raises:
        InputError: The metric is unknown or cannot be computed on these images, there is no
            contender, the costs are no cost matrix, or the tables do not fit, as for
            `compare_predictions`.
    """
    if not val_tables:
        raise InputError("there is no contender to choose from; pass at least one table.")
    reference = sort_labelled(next(iter(val_tables.values())))
    class_names = predicted_class_names(reference)
    metrics = metrics_for(len(class_names), costs)
    metric = metrics[check_name("metric", select_by, metrics)]
    targets = targets_of(reference["label"], class_names)
    values = {
        name: float(
            metric.function(targets, probabilities_of(match_rows(reference, check_predictions(t))))
        )
        for name, t in val_tables.items()
    }
    if not all(np.isfinite(value) for value in values.values()):
        raise InputError(
            f"{select_by!r} cannot be computed on these {len(reference)} images, which have the "
            f"labels {sorted(set(reference['label']))}; choose by 'log_loss'."
        )
    best = max if metric.higher_is_better else min
    return best(values, key=lambda name: values[name])


def _compare_pair(
    name: str,
    reference_name: str,
    table: pd.DataFrame,
    reference: pd.DataFrame,
    groups: np.ndarray,
    seed: int,
    num_resamples: int,
    costs: np.ndarray | None,
) -> pd.DataFrame:
    """Compute the rows of one contender as far as they do not depend on the others.

    Beside columns of the result they have the `standard_error` of each difference and the `upper`
    end of what it can be.
    """
    targets = targets_of(reference["label"], predicted_class_names(reference))
    ours = probabilities_of(match_rows(reference, check_predictions(table)))
    theirs = probabilities_of(reference)
    metrics = metrics_for(ours.shape[1], costs)
    names = [*RESAMPLED_METRICS, *(["cost"] if costs is not None else [])]
    our_sums = _group_sums(targets, ours, groups, costs)
    their_sums = _group_sums(targets, theirs, groups, costs)
    num_groups = len(our_sums)
    rng = np.random.default_rng(seed)

    def differences(weights: np.ndarray) -> np.ndarray:
        return _metrics_of_sums(weights @ our_sums) - _metrics_of_sums(weights @ their_sums)

    observed = differences(np.ones(num_groups))
    resampled = bootstrap(differences, np.arange(num_groups), num_resamples, rng)
    p_values = _swap_p_values(our_sums, their_sums, rng)
    right, reference_right = is_correct(targets, ours), is_correct(targets, theirs)
    only_ours = int((right & ~reference_right).sum())
    only_theirs = int((~right & reference_right).sum())
    if num_groups == len(reference):
        p_values[names.index("accuracy")] = _mcnemar_p_value(only_ours, only_theirs)
    same = np.array_equal(ours, theirs)
    slack = 0.0 if same else wilson_interval(0, num_groups)[1]
    slack_of_classes = 0.0 if same else wilson_interval(0, _smallest_class(targets, groups))[1]
    figures = []
    for metric, value, p_value, column in zip(names, observed, p_values, resampled.T, strict=True):
        share = slack_of_classes if metrics[metric].over_classes else slack
        interval = _interval_and_error(value, column, share, metrics[metric].upper)
        figures.append((metric, value, p_value, *interval))
    areas = (targets, ours, theirs, groups)
    figures.append(("roc_auc", *_compare_areas(*areas, slack_of_classes)))
    columns = ["metric", "difference", "p_value", "low", "high", "standard_error"]
    result = pd.DataFrame(figures, columns=columns)
    others = [None] * len(names)
    return result.assign(
        contender=name,
        reference=reference_name,
        only_contender_right=pd.array([only_ours, *others], dtype="Int64"),
        only_reference_right=pd.array([only_theirs, *others], dtype="Int64"),
        n=len(reference),
        slack=slack,
        upper=[metrics[metric].upper for metric in result["metric"]],
    )


def _group_sums(
    targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, costs: np.ndarray | None
) -> np.ndarray:
    """Sum up, for each group, all that the compared metrics are made of.

    Groups are drawn and swapped as a whole, so their sums are all that is needed.

    Returns:
        `(num_groups, 4 + 3 * num_classes)`: images, correct images, log losses, costs,
        `class_terms`. Without costs their column is missing.
    """
    cost = [] if costs is None else [costs[targets, probabilities.argmax(axis=1)]]
    per_image = np.column_stack(
        [
            np.ones(len(targets)),
            is_correct(targets, probabilities),
            image_log_losses(targets, probabilities),
            *cost,
            class_terms(targets, probabilities).reshape(len(targets), -1),
        ]
    )
    sums = np.zeros((groups.max() + 1, per_image.shape[1]))
    np.add.at(sums, groups, per_image)
    return sums


def _metrics_of_sums(sums: np.ndarray) -> np.ndarray:
    """Turn sums of `_group_sums` into the compared metrics, `(..., 3)`, or 4 with costs."""
    num_means = 2 + sums.shape[-1] % 3  # the counts of the classes are three for each
    means = sums[..., 1 : 1 + num_means] / sums[..., :1]
    counts = sums[..., 1 + num_means :].reshape(*sums.shape[:-1], 3, -1)
    macro_f1 = macro_f1_of_counts(counts)[..., None]
    return np.concatenate([means[..., :2], macro_f1, means[..., 2:]], axis=-1)


def _swap_p_values(
    our_sums: np.ndarray, their_sums: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Two-sided permutation p-values of the compared metrics, swapping whole groups.

    The observed arrangement counts as one of the permutations, so no p-value is 0.
    """
    change = their_sums - our_sums
    change = change[change.any(axis=1)]  # swapping equals changes nothing
    ours, theirs = our_sums.sum(axis=0), their_sums.sum(axis=0)
    observed = np.abs(_metrics_of_sums(ours) - _metrics_of_sums(theirs))
    num_as_large = np.zeros(len(observed))
    for size in block_sizes(NUM_PERMUTATIONS, len(change)):
        moved = rng.integers(0, 2, (size, len(change)), dtype=np.int8).astype(np.float64) @ change
        swapped = np.abs(_metrics_of_sums(ours + moved) - _metrics_of_sums(theirs - moved))
        num_as_large += (swapped >= observed - ROUNDING).sum(axis=0)
    return (1 + num_as_large) / (1 + NUM_PERMUTATIONS)


def _mcnemar_p_value(only_ours: int, only_theirs: int) -> float:
    """Exact two-sided p-value of a fair coin; 1 when the contenders never differ."""
    discordant = only_ours + only_theirs
    return float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0


def _interval_and_error(
    value: float, resampled: np.ndarray, slack: float, upper: float
) -> tuple[float, float, float]:
    """Percentile interval and standard error of a difference; see `compare_predictions`.

    Args:
        value: The difference itself.
        resampled: The difference in each resample.
        slack: Half the width of a collapsed interval, as a share of `upper`.
        upper: Largest possible difference.
    """
    low, high = percentile_interval(resampled)
    error = float(np.nanstd(resampled))
    if high - low <= ROUNDING:
        low, high = max(value - slack * upper, -upper), min(value + slack * upper, upper)
        error = slack * upper / Z
    return min(low, value), max(high, value), error


def _compare_areas(
    targets: np.ndarray, ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray, slack: float
) -> tuple[float, float, float, float, float]:
    """Difference of the areas under the ROC curves, p-value, interval and standard error.

    The standard error is that of a normal distribution with this interval.
    """
    difference, error = auc_difference(targets, ours, theirs, groups)
    # The variance is estimated from as few values as the rarest class has groups.
    degrees = max(_smallest_class(targets, groups) - 1, 1)
    half_width = float(t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    p_value = two_sided_p_value(difference, error, degrees)
    if error <= ROUNDING:
        half_width = slack
        p_value = two_sided_p_value(difference, slack / Z)
    low, high = max(difference - half_width, -1.0), min(difference + half_width, 1.0)
    return difference, p_value, low, high, half_width / Z


def _smallest_class(targets: np.ndarray, groups: np.ndarray) -> int:
    """Count the groups of the class that has the fewest, but at least one."""
    return min(len(np.unique(groups[targets == target])) for target in np.unique(targets))


def _detectable(error: float, upper: float, num_groups: int, level: float) -> float:
    """The smallest true difference that is probably shown; NaN where none can be.

    Args:
        error: Standard error of the difference.
        upper: Largest possible difference.
        num_groups: Number of groups.
        level: Significance level.
    """
    size = (NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(POWER)) * error
    smallest_p_value = 2.0 ** (1 - num_groups)  # of all ways to swap groups, two are as extreme
    return size if 0 < size <= upper and smallest_p_value <= level else math.nan


def verdict_of(metric: str, difference: float, p_adjusted: float) -> str:
    """Say what a test has shown of a contender.

    Args:
        metric: One of `METRICS`, or `"cost"`.
        difference: Contender minus reference.
        p_adjusted: The p-value, corrected for the number of comparisons.

    Returns:
        `"better"`, `"worse"` or `"cannot be told apart"`.
    """
    if p_adjusted > SIGNIFICANCE:
        return "cannot be told apart"
    higher_is_better = metric != "cost" and METRICS[metric].higher_is_better
    return "better" if (difference > 0) == higher_is_better else "worse"
