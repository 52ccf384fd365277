import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from cvpipe.errors import InputError
from cvpipe.evaluation.intervals import bootstrap, percentile_interval, wilson_interval
from cvpipe.evaluation.planning import (
    effective_number,
    expect,
    expected_half_width,
    in_words,
    smallest_detectable_difference,
    warning_of,
)


def test_half_width_by_hand():
    # Wilson at 9 of 10: z sqrt(.09/10 + z^2/400) / (1 + z^2/10), z = 1.96.
    z = norm.ppf(0.975)
    by_hand = z * math.sqrt(0.09 / 10 + z**2 / 400) / (1 + z**2 / 10)
    assert expected_half_width(10, 0.9) == pytest.approx(by_hand)
    low, high = wilson_interval(540, 600)
    assert expected_half_width(600, 0.9) == pytest.approx((high - low) / 2)
    # Nothing is known after one image but that it was right.
    assert 0.3 < expected_half_width(1, 1.0) < 0.5


@pytest.mark.parametrize(
    ("sizes", "number"),
    [([1] * 7, 7), ([4] * 7, 7), ([5, 1], 1), ([3, 1, 1, 1], 3), ([2, 1, 1], 2), ([100], 1)],
)
def test_effective_number(sizes, number):
    # 36 / 26 = 1.4, 36 / 12 = 3, 16 / 6 = 2.7.
    assert effective_number(sizes) == number


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_range_holds_what_correlated_groups_do(alike):
    """Images of a group repeat the group's answer with a chance of `alike`.

    The standard deviation of the accuracy over many samples, times 1.96, is the half width.
    """
    rng = np.random.default_rng(0)
    sizes = np.tile([1, 1, 2, 3, 8], 50)  # 750 images in 250 groups
    group_of_image = np.repeat(np.arange(len(sizes)), sizes)
    accuracies = []
    for _ in range(2000):
        answers = rng.random(len(sizes)) < 0.9
        own = rng.random(len(group_of_image)) < 0.9
        repeats = rng.random(len(group_of_image)) < alike
        accuracies.append(np.where(repeats, answers[group_of_image], own).mean())
    measured = 1.96 * np.std(accuracies)
    expected = expect(sizes.tolist())
    # 2,000 samples: the standard deviation is known to 1.6 %; Wilson's width is 2 % off it.
    assert 0.94 * expected.half_width < measured < 1.06 * expected.half_width_of_groups
    if alike == 0.0:
        assert measured == pytest.approx(expected.half_width, rel=0.06)
    if alike == 1.0:
        assert measured == pytest.approx(expected.half_width_of_groups, rel=0.06)
        # As many images as groups would claim too much: large groups weigh more.
        assert measured > 1.2 * expected_half_width(len(sizes), 0.9)


@pytest.mark.parametrize("num_images", [300, 600, 3000])
def test_a_difference_that_is_found_in_four_of_five_cases(num_images):
    disagreement = 0.1
    difference = smallest_detectable_difference(num_images, disagreement)
    rng = np.random.default_rng(1)
    only_ours = (disagreement + difference) / 2
    counts = rng.multinomial(
        num_images, [only_ours, disagreement - only_ours, 1 - disagreement], 2000
    )
    # McNemar without continuity correction, as the formula has it.
    ours, theirs = counts[:, 0], counts[:, 1]
    statistic = np.abs(ours - theirs) / np.sqrt(np.maximum(ours + theirs, 1))
    assert (statistic > 1.96).mean() == pytest.approx(0.8, abs=0.04)


def test_the_difference_solves_connors_formula():
    for num_images in (150, 400, 10_000):
        for disagreement in (0.1, 0.3):
            d = smallest_detectable_difference(num_images, disagreement)
            numerator = norm.ppf(0.975) * math.sqrt(disagreement) + norm.ppf(0.8) * math.sqrt(
                disagreement - d**2
            )
            assert (numerator / d) ** 2 == pytest.approx(num_images)


def test_a_difference_is_never_larger_than_the_disagreement():
    """So few images that .1 of them cannot tell: then of two that disagree by the difference."""
    difference = smallest_detectable_difference(30, 0.1)
    assert difference > 0.1
    assert smallest_detectable_difference(30, 0.0) == difference
    assert smallest_detectable_difference(30, difference) == pytest.approx(difference)
    # All disagreements on one side: 7 of 30 are significant, 4 are not.
    assert 4 / 30 < difference < 10 / 30
    assert binomtest(7, 7).pvalue < 0.05 < binomtest(4, 4).pvalue
    assert smallest_detectable_difference(1, 0.1) == 1.0


def test_what_is_expected_of_images_without_groups():
    expected = expect([1] * 600)
    assert (expected.num_images, expected.num_groups) == (600, 600)
    assert expected.half_width == expected.half_width_of_groups == expected_half_width(600, 0.9)
    assert expected.difference == expected.difference_of_groups
    assert in_words("test", expected) == (
        "test: 600 images; at 90 % accuracy its 95 % interval will be about ±2.4 points; "
        "differences between contenders below about 3.6 points will probably not be seen"
    )
    assert warning_of("test", expected) == ""


def test_what_is_expected_of_groups():
    expected = expect([3] * 200)
    assert expected.half_width == expected_half_width(600, 0.9)
    assert expected.half_width_of_groups == expected_half_width(200, 0.9)
    assert expected.difference == smallest_detectable_difference(600, 0.1)
    assert expected.difference_of_groups == smallest_detectable_difference(200, 0.1)
    assert in_words("folds", expected) == (
        "folds: 600 images in 200 groups; at 90 % accuracy its 95 % interval will be about ±2.4 "
        "points (±4.2 if images of a group all behave alike); differences between contenders "
        "below about 3.6 points (6.2) will probably not be seen"
    )
    assert warning_of("folds", expected) == ""


def test_a_warning_of_too_few_images():
    assert warning_of("test", expect([1] * 141)) == ""
    few = expect([10] * 60)
    assert few.half_width < 0.05 < few.half_width_of_groups
    assert warning_of("test", few) == (
        "the test images are too few to place an accuracy of 90 % to within 5 points: its 95 % "
        "interval can be as wide as ±7.7 points. Read small differences as no difference, or "
        "collect more images of new groups"
    )


def test_of_few_groups_their_number_counts():
    """Of 19 groups the group figure leads; of 20 it does not, nor of 19 images on their own."""
    few = expect([10] * 19)
    wide, narrow = (
        100 * expected_half_width(19, 0.9),
        100 * expected_half_width(190, 0.9),
    )
    far, near = (100 * smallest_detectable_difference(n, 0.1) for n in (19, 190))
    assert in_words("test", few) == (
        f"test: 190 images in 19 groups; at 90 % accuracy its 95 % interval will be about "
        f"±{wide:.1f} points (±{narrow:.1f} if images of a group are as different as any); "
        f"differences between contenders below about {far:.1f} points ({near:.1f}) will probably "
        "not be seen"
    )
    assert warning_of("test", few).endswith(
        " or collect more images of new groups. They form 19 groups only, and of fewer than 20 the "
        "intervals themselves come out too narrow: it is the number of groups that counts, not "
        "that of images"
    )
    for enough in (expect([10] * 20), expect([1] * 19)):
        assert not enough.has_few_groups
        assert warning_of("test", enough).endswith(" or collect more images of new groups")
    assert f"±{100 * expected_half_width(200, 0.9):.1f} points (±" in in_words(
        "t", expect([10] * 20)
    )


@pytest.mark.parametrize(("num_groups", "least", "most"), [(4, 0.74, 0.86), (20, 0.9, 0.96)])
def test_how_narrow_intervals_of_few_groups_are(num_groups, least, most):
    """The figures of the comment beside MIN_GROUPS: 80 and 93 %."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        accuracies = rng.binomial(50, rng.beta(18, 2, num_groups)) / 50
        resampled = bootstrap(
            lambda weights, a=accuracies: (weights @ a / num_groups)[..., None],
            np.arange(num_groups),
            300,
            np.random.default_rng(seed),
        )
        low, high = percentile_interval(resampled[:, 0])
        held += low <= 0.9 <= high
    assert least < held / 400 < most


def test_refused_arguments():
    for sizes in ([], [2, 0]):
        with pytest.raises(InputError) as caught:
            expect(sizes)
        assert str(caught.value) == (
            f"groups of the sizes {sizes}; pass at least one group, each of at least one image."
        )
    for function, name in (
        (expected_half_width, "an accuracy"),
        (smallest_detectable_difference, "a disagreement"),
    ):
        with pytest.raises(InputError, match=r"^0 images cannot be scored; pass at least 1\.$"):
            function(0, 0.5)
        for share in (-0.1, 1.1, math.nan):
            with pytest.raises(InputError) as caught:
                function(10, share)
            assert str(caught.value) == f"{name} is a share in [0, 1], but {share} was given."
