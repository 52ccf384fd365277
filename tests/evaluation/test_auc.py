"""DeLong's and Obuchowski's variances against a published example, plain loops and simulations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cvpipe.evaluation.auc import (
    auc_components,
    auc_covariance,
    auc_difference,
    two_sided_p_value,
)
from cvpipe.evaluation.metrics import roc_auc

# Albumin, total protein, K-G score (10 minus it predicts) and outcome of 43 patients with ovarian
# cancer: the data of DeLong, DeLong and Clarke-Pearson 1988, as printed in the SAS/STAT User's
# Guide, LOGISTIC procedure, "Comparing Receiver Operating Characteristic Curves".
PRINTED = """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
    1.6 5.6  5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
    4.3 7.0  4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
    3.0 4.7  8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
    3.2 5.1  5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
    3.5 6.2  5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
    3.6 6.6  5 1
"""
PATIENTS = np.array(PRINTED.split(), dtype=float).reshape(43, 4)
OUTCOMES = PATIENTS[:, 3].astype(int)


def two_columns(scores):
    return np.column_stack([-np.asarray(scores, dtype=float), scores])


ALBUMIN, PROTEIN = two_columns(PATIENTS[:, 0]), two_columns(PATIENTS[:, 1])
KG_SCORE = two_columns(10 - PATIENTS[:, 2])


def random_case(seed, n=40, num_classes=2, num_groups=None):
    """Targets, two contenders' scores with ties, groups whose images have something in common."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) if num_groups is None else rng.integers(0, num_groups, n)
    targets = rng.integers(0, num_classes, n)
    shared = rng.normal(size=(n, num_classes))[groups] + rng.normal(size=(n, num_classes))
    shared[np.arange(n), targets] += 1
    ours, theirs = (np.round(shared + rng.normal(size=shared.shape), 1) for _ in range(2))
    return targets, ours, theirs, groups


def wins(one, other):
    return float(one > other) + 0.5 * float(one == other)


def slow_obuchowski(targets, ours, theirs, groups):
    """Covariance of two areas of two classes, sum by sum as in the paper."""
    tables = []
    for scores in (ours[:, 1], theirs[:, 1]):
        pos, neg = scores[targets == 1], scores[targets == 0]
        v10 = [np.mean([wins(x, y) for y in neg]) for x in pos]
        v01 = [np.mean([wins(x, y) for x in pos]) for y in neg]
        area = np.mean(v10)
        rows = []
        for group in np.unique(groups):
            of_pos, of_neg = groups[targets == 1] == group, groups[targets == 0] == group
            rows.append(
                (
                    sum(v for v, mine in zip(v10, of_pos, strict=True) if mine)
                    - of_pos.sum() * area,
                    sum(v for v, mine in zip(v01, of_neg, strict=True) if mine)
                    - of_neg.sum() * area,
                )
            )
        tables.append(np.array(rows))
    m, n = (targets == 1).sum(), (targets == 0).sum()
    i10 = len(np.unique(groups[targets == 1]))
    i01 = len(np.unique(groups[targets == 0]))
    i = len(np.unique(groups))
    covariance = np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            one, other = tables[r], tables[s]
            s10 = i10 / ((i10 - 1) * m) * (one[:, 0] * other[:, 0]).sum()
            s01 = i01 / ((i01 - 1) * n) * (one[:, 1] * other[:, 1]).sum()
            s11 = i / (i - 1) * (one[:, 0] * other[:, 1]).sum()
            s11_back = i / (i - 1) * (other[:, 0] * one[:, 1]).sum()
            covariance[r, s] = s10 / m + s01 / n + (s11 + s11_back) / (m * n)
    return covariance


def covariance_of(targets, ours, theirs, groups):
    components = [auc_components(targets, p)[1] for p in (ours, theirs)]
    return auc_covariance(components, targets, groups)


def test_published_example():
    contenders = [ALBUMIN, KG_SCORE, PROTEIN]
    areas, components = zip(*(auc_components(OUTCOMES, p) for p in contenders), strict=True)
    covariance = auc_covariance(components, OUTCOMES, np.arange(43))
    assert areas == pytest.approx([0.7366, 0.7258, 0.6478], abs=5e-5)
    errors = np.sqrt(np.diag(covariance))
    assert errors == pytest.approx([0.0927, 0.1028, 0.1000], abs=5e-5)
    for ours, expected in (
        (ALBUMIN, (0.0108, 0.0953, 0.9102)),
        (PROTEIN, (-0.0780, 0.1046, 0.4561)),
    ):
        found = auc_difference(OUTCOMES, ours, KG_SCORE, np.arange(43))
        assert (*found, two_sided_p_value(*found)) == pytest.approx(expected, abs=5e-5)
    # All three at once: chi-square 2.5340 with two degrees of freedom.
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    change = contrast @ areas
    chi_square = change @ np.linalg.solve(contrast @ covariance @ contrast.T, change)
    assert chi_square == pytest.approx(2.5340, abs=5e-5)


def test_components_by_hand():
    # Positives score 3 and 1, negatives 1, 0 and 2: placements 1, .5 and 0.75, 1, .5.
    targets = np.array([1, 1, 0, 0, 0])
    area, components = auc_components(targets, two_columns([3, 1, 1, 0, 2]))
    assert area == pytest.approx(0.75)
    expected = [0.25 / 2, -0.25 / 2, 0, 0.25 / 3, -0.25 / 3]
    assert components == pytest.approx(expected)
    # 1/(m(m-1)) times the squares of .25, .25; 1/(n(n-1)) times those of 0, .25, .25.
    variance = auc_covariance([components], targets, np.arange(5))
    assert variance == pytest.approx(np.array([[0.125 / 2 + 0.125 / 6]]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_groups", [None, 12])
def test_covariance_is_that_of_the_definition(seed, num_groups):
    case = random_case(seed, num_groups=num_groups)
    np.testing.assert_allclose(covariance_of(*case), slow_obuchowski(*case), rtol=1e-10)
    targets, ours, theirs, _ = case
    (a, c), (_, b) = slow_obuchowski(*case)
    difference, error = auc_difference(*case)
    assert error == pytest.approx(math.sqrt(a + b - 2 * c))
    assert difference == pytest.approx(float(roc_auc(targets, ours) - roc_auc(targets, theirs)))


def test_groups_of_one_image_are_delong():
    """The usual formula: sample covariances of the placements of either side."""
    targets, ours, theirs, groups = random_case(9)
    placements = []
    for scores in (ours[:, 1], theirs[:, 1]):
        table = [[wins(x, y) for y in scores[targets == 0]] for x in scores[targets == 1]]
        placements.append((np.mean(table, axis=1), np.mean(table, axis=0)))
    v10, v01 = (np.cov([p[side] for p in placements]) for side in (0, 1))
    delong = v10 / (targets == 1).sum() + v01 / (targets == 0).sum()
    np.testing.assert_allclose(covariance_of(targets, ours, theirs, groups), delong, rtol=1e-12)


@pytest.mark.parametrize("num_classes", [3, 5])
def test_several_classes_are_the_mean_of_each_against_the_rest(num_classes):
    targets, ours, _, _ = random_case(1, num_classes=num_classes)
    area, components = auc_components(targets, ours)
    assert area == pytest.approx(float(roc_auc(targets, ours)))
    each = [
        auc_components((targets == c).astype(int), two_columns(ours[:, c]))[1]
        for c in range(num_classes)
    ]
    np.testing.assert_allclose(components, np.mean(each, axis=0))
    assert components.sum() == pytest.approx(0, abs=1e-12)


def test_a_class_without_images_is_left_out():
    targets, ours, theirs, groups = random_case(2, num_classes=4)
    keep = targets != 3
    targets, ours, theirs, groups = targets[keep], ours[keep], theirs[keep], groups[keep]
    area, _ = auc_components(targets, ours)
    assert area == pytest.approx(float(roc_auc(targets, ours)))
    without = auc_difference(targets, ours[:, :3], theirs[:, :3], groups)
    assert auc_difference(targets, ours, theirs, groups) == pytest.approx(without)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 3]), st.sampled_from([None, 6]))
def test_names_and_scales_do_not_matter(seed, num_classes, num_groups):
    targets, ours, theirs, groups = random_case(seed, 30, num_classes, num_groups)
    found = auc_difference(targets, ours, theirs, groups)
    swapped = auc_difference(targets, theirs, ours, groups)
    assert swapped == pytest.approx((-found[0], found[1]), nan_ok=True)
    order = np.random.default_rng(seed).permutation(30)
    renamed = (7 - groups if num_groups else groups)[order]
    moved = auc_difference(targets[order], np.exp(ours)[order], theirs[order] * 3, renamed)
    assert moved == pytest.approx(found, nan_ok=True)
    assert found[1] >= 0 or math.isnan(found[1])


def test_copies_of_images_in_one_group_add_no_evidence():
    targets, ours, theirs, _ = random_case(3)
    single = auc_difference(targets, ours, theirs, np.arange(40))
    four = [np.repeat(values, 4, axis=0) for values in (targets, ours, theirs, np.arange(40))]
    assert auc_difference(*four) == pytest.approx(single)
    apart = auc_difference(*four[:3], np.arange(160))
    assert apart[1] < 0.55 * single[1]


def test_what_cannot_be_known():
    targets, ours, theirs, groups = random_case(4)
    assert all(map(math.isnan, auc_difference(targets * 0, ours, theirs, groups)))
    assert math.isnan(auc_components(targets * 0, ours)[0])
    # One image of class 1: how another one would have scored is not known.
    lonely = (np.arange(40) == 5).astype(int)
    assert auc_difference(lonely, ours, theirs, groups)[1] == math.inf
    assert two_sided_p_value(0.4, math.inf) == 1
    # Not even when it went from the last place to the first.
    last, first = two_columns(-lonely), two_columns(lonely)
    assert auc_difference(lonely, first, last, groups) == (1, math.inf)
    assert auc_difference(targets, two_columns(targets), two_columns(-targets), groups) == (1, 0)
    same_group = np.where(targets == 1, 0, groups + 1)
    assert auc_difference(targets, ours, theirs, same_group)[1] == math.inf
    assert auc_difference(lonely, ours, np.exp(ours), groups) == (0, 0)


def test_p_value():
    assert two_sided_p_value(0.0, 0.0) == 1
    assert two_sided_p_value(math.nan, math.nan) == 1
    assert two_sided_p_value(1e-12, 0.0) == 1  # rounding is no difference
    assert two_sided_p_value(-0.1, 0.0) == 0
    for difference, error in ((0.1, 0.05), (-0.3, 0.1), (0.02, 0.05)):
        assert two_sided_p_value(difference, error) == pytest.approx(
            2 * norm.sf(abs(difference) / error)
        )


@pytest.mark.parametrize(("num_classes", "num_groups"), [(2, None), (4, None), (2, 30), (4, 30)])
def test_equally_good_contenders_seldom_differ(num_classes, num_groups):
    cases = [random_case(5000 + seed, 90, num_classes, num_groups) for seed in range(400)]
    found = [auc_difference(*case) for case in cases]
    p_values = np.array([two_sided_p_value(*pair) for pair in found])
    assert 0.02 <= (p_values <= 0.05).mean() <= 0.085
    differences, errors = np.array(found).T
    assert errors.mean() == pytest.approx(differences.std(), rel=0.12)
