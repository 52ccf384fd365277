"""What test figures will be able to tell, from the number of images and groups alone.

Said before training: a test split that is too small cannot be mended by a better contender.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from cvpipe.errors import InputError
from cvpipe.evaluation.intervals import CONFIDENCE, wilson_interval

# What is assumed of contenders that nobody has seen yet: at .9 accuracy, two of them differ in
# whether they are right on a tenth of the images.
ASSUMED_ACCURACY = 0.9
ASSUMED_DISAGREEMENT = 0.1
POWER = 0.8
# A wider interval than this leaves open whether .9 is .85 or .95: not an answer.
MAX_HALF_WIDTH = 0.05
# Below, resampling groups understates the uncertainty: of 20 sites of 50 images whose accuracies
# scatter around .9, the 95 % interval held .9 in 93 % of 1,000 simulations, of 10 in 89 %, of 4 in
# 80 % and of 2 in 55 %.
MIN_GROUPS = 20


@dataclass(frozen=True)
class Expectation:
    """What can be expected of figures on some images, all assumed accuracies being .9.

    Attributes:
        num_images: Number of images that are scored.
        num_groups: Number of groups that they form.
        half_width: Of the 95 % interval of an accuracy, if images of a group are as different
            as any.
        half_width_of_groups: The same, if images of a group are all alike.
        difference: The smallest difference of two accuracies that will probably be seen.
        difference_of_groups: The same, if images of a group are all alike.
    """

    num_images: int
    num_groups: int
    half_width: float
    half_width_of_groups: float
    difference: float
    difference_of_groups: float

    @property
    def has_few_groups(self) -> bool:
        """Whether groups are too few for their resampling to tell how sure a figure is."""
        return self.num_groups < min(MIN_GROUPS, self.num_images)


def expect(group_sizes: Sequence[int]) -> Expectation:
    """Compute what images in groups of these sizes can show.

    Raises:
        InputError: There is no group, or an empty one.
    """
    return expect_of(sum(group_sizes), len(group_sizes), effective_number(group_sizes))


def expect_of(num_images: int, num_groups: int, num_effective: int) -> Expectation:
    """Compute what images can show, given how many independent ones they are worth.

    Args:
        num_images: Number of images.
        num_groups: Number of their groups.
        num_effective: See `effective_number`.
    """
    numbers = (num_images, num_effective)
    return Expectation(
        num_images,
        num_groups,
        *(expected_half_width(n, ASSUMED_ACCURACY) for n in numbers),
        *(smallest_detectable_difference(n, ASSUMED_DISAGREEMENT) for n in numbers),
    )


def effective_number(group_sizes: Sequence[int]) -> int:
    """Count the independent images that are worth as much as groups whose images are all alike.

    The number of groups when they are of equal size, fewer otherwise: a mean over the images
    then hangs on the large ones. Rounded down.

    Args:
        group_sizes: Number of images in each group, at least 1.

    Raises:
        InputError: There is no group, or an empty one.

    Example:
        >>> effective_number([3, 3]), effective_number([5, 1])
        (2, 1)

    References:
        Kish, "Survey Sampling", 1965, sections 5.4 and 8.2: the design effect of clusters whose
        members are alike.
    """
    if not group_sizes or min(group_sizes) < 1:
        raise InputError(
            f"groups of the sizes {list(group_sizes)}; pass at least one group, each of at least "
            "one image."
        )
    return sum(group_sizes) ** 2 // sum(size**2 for size in group_sizes)


def expected_half_width(num_images: int, accuracy: float) -> float:
    """Half the width of the 95 % interval that an accuracy will have.

    Args:
        num_images: Number of independent images, at least 1.
        accuracy: The accuracy that is assumed, in [0, 1].

    Raises:
        InputError: An argument is out of its range.

    Example:
        >>> round(expected_half_width(100, 0.9), 3)
        0.06

    References:
        Wilson, see `wilson_interval`.
    """
    _check(num_images, accuracy, "an accuracy")
    low, high = wilson_interval(accuracy * num_images, num_images)
    return (high - low) / 2


def smallest_detectable_difference(num_images: int, disagreement: float) -> float:
    """The difference of two accuracies that a paired comparison finds in 80 % of the cases.

    McNemar's test at 5 %, two-sided, by the normal approximation: below some 200 images the power
    is a little off. Where the difference would exceed the disagreement, which cannot be, it is
    the one of two contenders that disagree just as much: one is right wherever they differ.

    Args:
        num_images: Number of independent images, at least 1.
        disagreement: Share of the images on which one contender is right and the other wrong,
            in [0, 1].

    Returns:
        A difference in [0, 1].

    Raises:
        InputError: An argument is out of its range.

    Example:
        >>> round(smallest_detectable_difference(600, 0.1), 3)
        0.036

    References:
        Connor, "Sample size for testing differences in proportions for the paired-sample
        design", Biometrics 43, 1987; its formula for the number of pairs, solved for the
        difference.
    """
    _check(num_images, disagreement, "a disagreement")
    level, power = (NormalDist().inv_cdf(p) for p in ((1 + CONFIDENCE) / 2, POWER))
    # Connor: d sqrt(n) = level sqrt(disagreement) + power sqrt(disagreement - d^2), a quadratic
    # equation for d whose larger root is sqrt(disagreement) times this.
    root = math.sqrt(max(0.0, num_images - level**2 + power**2))
    factor = (level * math.sqrt(num_images) + power * root) / (num_images + power**2)
    return min(1.0, factor * max(math.sqrt(disagreement), factor))


def _check(num_images: int, share: float, name: str) -> None:
    if num_images < 1:
        raise InputError(f"{num_images} images cannot be scored; pass at least 1.")
    if not 0 <= share <= 1:
        raise InputError(f"{name} is a share in [0, 1], but {share} was given.")


def in_words(name: str, expected: Expectation) -> str:
    """Say in one sentence what can be expected.

    The figures for images as different as any come first, those for groups whose images are all
    alike second; of fewer than `MIN_GROUPS` groups the other way round, because what sets few
    sites or patients apart seldom averages out.

    Args:
        name: What the images are: `"test"`.
        expected: Of these images.

    Example:
        >>> in_words("test", expect([1] * 600)).split("; ")[1]
        'at 90 % accuracy its 95 % interval will be about ±2.4 points'
    """
    widths = [expected.half_width, expected.half_width_of_groups]
    differences = [expected.difference, expected.difference_of_groups]
    condition = "if images of a group all behave alike"
    if expected.has_few_groups:
        widths, differences = widths[::-1], differences[::-1]
        condition = "if images of a group are as different as any"
    width, other_width = (f"{100 * share:.1f}" for share in widths)
    difference, other_difference = (f"{100 * share:.1f}" for share in differences)
    groups = otherwise = otherwise_too = ""
    if expected.num_groups < expected.num_images:
        groups = f" in {expected.num_groups:,} groups"
        otherwise = f" (±{other_width} {condition})"
        otherwise_too = f" ({other_difference})"
    return (
        f"{name}: {expected.num_images:,} images{groups}; at {100 * ASSUMED_ACCURACY:.0f} % "
        f"accuracy its 95 % interval will be about ±{width} points{otherwise}; differences "
        f"between contenders below about {difference} points{otherwise_too} will probably not be "
        "seen"
    )


def warning_of(name: str, expected: Expectation) -> str:
    """Warn when the images are too few for an answer, or their groups even for an interval.

    Returns:
        `""` when the interval will be narrow enough even if images of a group are all alike.
    """
    if expected.half_width_of_groups <= MAX_HALF_WIDTH:
        return ""
    too_narrow = (
        f". They form {expected.num_groups} groups only, and of fewer than {MIN_GROUPS} the "
        "intervals themselves come out too narrow: it is the number of groups that counts, not "
        "that of images"
    )
    return (
        f"the {name} images are too few to place an accuracy of {100 * ASSUMED_ACCURACY:.0f} % to "
        f"within {100 * MAX_HALF_WIDTH:.0f} points: its 95 % interval can be as wide as "
        f"±{100 * expected.half_width_of_groups:.1f} points. Read small differences as no "
        "difference, or collect more images of new groups"
        + (too_narrow if expected.has_few_groups else "")
    )
