import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.classifiers import (
    CLASSIFIERS,
    SEARCH_COLUMNS,
    SEARCHES,
    fit_classifier,
    group_folds,
    linear_head,
)
from cvpipe.errors import InputError

SEARCHED = [name for name, classifier in CLASSIFIERS.items() if classifier.parameter]


def blobs(num_classes=3, per_class=30, distance=2.0, seed=0):
    """Draw normal clouds, one per class, in four dimensions."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    centres = rng.normal(size=(num_classes, 4)) * distance
    return centres[targets] + rng.normal(size=(len(targets), 4)), targets


def singles(targets) -> list[str]:
    return [f"image {number}" for number in range(len(targets))]


def fit(name, features, targets, groups=None, search="coarse", seed=0, threads=1):
    groups = singles(targets) if groups is None else groups
    return fit_classifier(name, features, targets, groups, search, seed, threads)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# Folds.


@st.composite
def grouped_targets(draw):
    """Up to 40 rows whose groups may hold several classes."""
    num_groups = draw(st.integers(2, 15))
    row = st.tuples(st.integers(0, 2), st.integers(0, num_groups - 1))
    rows = draw(st.lists(row, min_size=6, max_size=40))
    return np.array([target for target, _ in rows]), [f"g{group}" for _, group in rows]


@settings(max_examples=40, deadline=None)
@given(grouped_targets(), st.integers(2, 5), st.integers(0, 1000))
def test_folds(rows, num_folds, seed):
    targets, groups = rows
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folds = group_folds(targets, groups, num_folds, seed)
    except InputError:
        return
    assert 2 <= len(folds) <= num_folds
    held_out = np.concatenate([rows for _, rows in folds])
    assert sorted(held_out) == list(range(len(targets)))
    for train, rest in folds:
        assert sorted([*train, *rest]) == list(range(len(targets)))
        assert not {groups[row] for row in train} & {groups[row] for row in rest}
        assert set(targets[train]) == set(targets)


def test_folds_are_stratified_and_drawn_by_seed():
    targets = np.repeat([0, 1], [20, 40])
    folds = group_folds(targets, singles(targets), 5, seed=0)
    assert [np.bincount(targets[rows]).tolist() for _, rows in folds] == [[4, 8]] * 5

    def rows_of(seed):
        return [rows.tolist() for _, rows in group_folds(targets, singles(targets), 5, seed)]

    assert rows_of(0) == [rows.tolist() for _, rows in folds]
    assert rows_of(1) != rows_of(0)


@pytest.mark.parametrize(("num_groups", "num_folds"), [(2, 2), (3, 3), (5, 5), (9, 5)])
def test_few_groups_make_few_folds(num_groups, num_folds):
    targets = np.repeat([0, 1], [20, 2 * num_groups])
    groups = singles(range(20)) + [f"pair {number // 2}" for number in range(2 * num_groups)]
    assert len(group_folds(targets, groups, 5, seed=0)) == num_folds


@pytest.mark.parametrize(
    ("targets", "groups", "fewest"),
    [
        ([0, 0, 0, 1, 1, 1], "abcddd", 1),  # a class with a single group
        # Groups that mix classes: both groups of a class come into the same fold.
        ([2, 0, 2, 0, 2, 1, 2, 1, 2], "abcdefabb", 2),
    ],
)
def test_too_few_groups_are_refused(targets, groups, fewest):
    message = (
        "cross-validation inside train needs every class in every training part, but the rarest "
        f"class has only {fewest} group(s); add images or lower split.val_fraction and "
        "split.test_fraction."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        group_folds(np.array(targets), list(groups), 3, seed=0)
    with pytest.raises(InputError, match="cross-validation inside train"):
        fit("softmax", np.zeros((len(targets), 2)), np.array(targets), list(groups))


# The search.


def slow_search(name, features, targets, folds, values):
    """Score every value in every fold by a plain loop."""
    rows = []
    for value in values:
        scores = []
        for train, rest in folds:
            model = CLASSIFIERS[name].build(value).fit(features[train], targets[train])
            if name == "softmax":
                own = model.predict_proba(features[rest])[np.arange(len(rest)), targets[rest]]
                scores.append(np.log(own).mean())
            else:
                scores.append((model.predict(features[rest]) == targets[rest]).mean())
        rows.append((value, np.mean(scores), np.std(scores, ddof=1), len(folds)))
    return pd.DataFrame(rows, columns=SEARCH_COLUMNS)


VALUES = {
    ("linear_svm", "coarse"): [1e-2, 1, 100],
    ("linear_svm", "fine"): [1e-2, 1e-1, 1, 10, 100],
    ("softmax", "coarse"): [1e-4, 1e-2, 1],
    ("softmax", "fine"): [1e-4, 1e-3, 1e-2, 1e-1, 1],
}


@pytest.mark.parametrize(("name", "search"), VALUES)
def test_search_table_and_choice(name, search):
    features, targets = blobs(distance=0.7)
    groups = [f"pair {row // 2}" for row in range(len(targets))]
    fitted = fit(name, features, targets, groups, search=search, seed=3)
    folds = group_folds(targets, groups, SEARCHES[search][1], 3)
    expected = slow_search(name, features, targets, folds, VALUES[name, search])
    pd.testing.assert_frame_equal(fitted.search, expected, check_exact=False, rtol=1e-4)
    # The first of the largest: on a tie the most regularised.
    best = max(expected.itertuples(), key=lambda row: (row.mean, -row.value))
    assert fitted.chosen == {"C": pytest.approx(best.value)}


def test_the_chosen_value_is_fitted_on_all_rows():
    features, targets = blobs(distance=0.7)
    fitted = fit("softmax", features, targets)
    again = CLASSIFIERS["softmax"].build(fitted.chosen["C"]).fit(features, targets)
    np.testing.assert_allclose(
        fitted.estimator.predict_proba(features), again.predict_proba(features), atol=1e-6
    )


def test_svm_with_the_chosen_value_is_calibrated_out_of_fold():
    features, targets = blobs(num_classes=2, distance=0.7)
    groups = [f"pair {row // 2}" for row in range(len(targets))]
    fitted = fit("linear_svm", features, targets, groups)
    value = fitted.chosen["C"]
    build = CLASSIFIERS["linear_svm"].build
    # One machine, fitted on all rows; its sigmoid, fitted on scores of rows not seen.
    [calibrated] = fitted.estimator.calibrated_classifiers_
    whole = build(value).fit(features, targets)
    np.testing.assert_allclose(calibrated.estimator.coef_, whole.coef_, rtol=1e-6)
    scores = np.empty(len(targets))
    for train, rest in group_folds(targets, groups, 3, seed=0):
        scores[rest] = (
            build(value).fit(features[train], targets[train]).decision_function(features[rest])
        )
    [sigmoid] = calibrated.calibrators
    # Platt's two targets, (positives + 1) / (positives + 2) and 1 / (negatives + 2): at the
    # minimum of his loss the predictions have the same sum as they.
    prior = np.where(targets == 1, 31 / 32, 1 / 32)
    predicted = sigmoid.predict(scores)
    np.testing.assert_allclose(predicted.sum(), prior.sum(), rtol=1e-3)
    np.testing.assert_allclose(predicted @ scores, prior @ scores, rtol=1e-2)


def test_an_easy_problem_is_solved_inside_the_range():
    features, targets = blobs(distance=1.2)
    # Features that tell nothing make some, but not too much, regularisation the best.
    features = np.hstack([features, np.random.default_rng(1).normal(size=(len(targets), 20))])
    fitted = fit("softmax", features, targets, search="fine")
    assert fitted.chosen["C"] in fitted.search["value"].tolist()[1:-1]
    assert fitted.warnings == []
    assert (fitted.estimator.predict(features) == targets).mean() > 0.7


def test_the_smallest_value_wins_a_tie_and_the_edge_is_told():
    targets = np.repeat([0, 1], 10).astype(np.int32)
    # No feature tells anything, so all values are equally good.
    fitted = fit("linear_svm", np.zeros((20, 2)), targets)
    assert fitted.search["mean"].nunique() == 1
    assert fitted.chosen == {"C": 0.01}
    assert fitted.warnings == [
        "the best C is the smallest that was tried (0.01); a better one may lie outside the range"
    ]


def test_the_largest_value_is_told():
    features, targets = blobs(num_classes=2, distance=30.0)
    fitted = fit("softmax", features, targets)  # perfectly separable: the surer, the better
    assert fitted.chosen == {"C": 1.0}
    assert fitted.warnings == [
        "the best C is the largest that was tried (1); a better one may lie outside the range"
    ]


@pytest.mark.parametrize("name", SEARCHED)
def test_threads_and_repetition_do_not_change_a_bit(name):
    features, targets = blobs()
    reference, *others = (fit(name, features, targets, threads=threads) for threads in (1, 2, 1))
    expected = reference.estimator.predict_proba(features)
    for other in others:
        pd.testing.assert_frame_equal(other.search, reference.search, check_exact=True)
        assert other.chosen == reference.chosen
        np.testing.assert_array_equal(other.estimator.predict_proba(features), expected)


def test_another_seed_gives_other_folds():
    features, targets = blobs(distance=0.7)
    searches = [fit("softmax", features, targets, seed=seed).search["mean"] for seed in (0, 1)]
    assert not np.allclose(searches[0], searches[1], rtol=1e-6)


def test_a_class_that_a_held_out_part_lacks():
    targets = np.array([2, 0, 1, 1, 0, 1, 0, 2, 2])
    groups = list("abcdefgfe")
    folds = group_folds(targets, groups, 3, seed=0)
    assert min(len(set(targets[rest])) for _, rest in folds) < 3
    features = np.random.default_rng(0).normal(size=(9, 2)) + targets[:, None]
    fitted = fit("softmax", features, targets, groups)
    expected = slow_search("softmax", features, targets, folds, VALUES["softmax", "coarse"])
    pd.testing.assert_frame_equal(fitted.search, expected, check_exact=False, rtol=1e-4)


def test_a_fit_that_fails_is_not_passed_over():
    features, targets = blobs()
    features[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit("softmax", features, targets)


@pytest.mark.parametrize("name", SEARCHED)
def test_smaller_values_mean_smaller_weights(name):
    features, targets = blobs(num_classes=2, distance=0.7)
    estimators = [
        CLASSIFIERS[name].build(value).fit(features, targets) for value in (1e-4, 1e-2, 1)
    ]
    sizes = [
        np.linalg.norm(getattr(estimator, "steps", [("", estimator)])[-1][1].coef_)
        for estimator in estimators
    ]
    assert sizes[0] < 0.5 * sizes[1] < 0.5 * sizes[2]


# Probabilities.


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("num_classes", [2, 5])
def test_every_classifier_gives_one_probability_per_class(name, num_classes):
    features, targets = blobs(num_classes=num_classes, per_class=12, distance=4.0)
    fitted = fit(name, features, targets)
    probabilities = fitted.estimator.predict_proba(features)
    assert probabilities.shape == (12 * num_classes, num_classes)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    assert list(fitted.search) == SEARCH_COLUMNS
    if name != "majority":
        assert (probabilities.argmax(axis=1) == targets).mean() > 0.9


def test_majority_is_the_class_frequencies():
    targets = np.array([0, 2, 1, 2, 2, 1, 2, 2])
    fitted = fit("majority", np.zeros((8, 1)), targets, groups=["one"] * 8)
    shown = fitted.estimator.predict_proba(np.array([[5.0], [-1.0]]))
    np.testing.assert_allclose(shown, [[1 / 8, 2 / 8, 5 / 8]] * 2)
    assert (fitted.chosen, len(fitted.search), fitted.warnings) == ({}, 0, [])


@pytest.mark.parametrize("name", SEARCHED)
def test_probabilities_are_calibrated(name):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, 3))
    truth = 1 / (1 + np.exp(-2 * features[:, 0] + features[:, 1]))
    targets = (rng.random(3000) < truth).astype(np.int32)
    fitted = fit(name, features[:800], targets[:800])
    shown = fitted.estimator.predict_proba(features[800:])[:, 1]
    assert np.abs(shown - truth[800:]).mean() < 0.04
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (shown >= low) & (shown < low + 0.2)
        assert abs(targets[800:][inside].mean() - shown[inside].mean()) < 0.1


# The head of a network.


@pytest.mark.parametrize("num_classes", [2, 5])
def test_linear_head_is_the_softmax_classifier(num_classes):
    features, targets = blobs(num_classes=num_classes)
    features = features * [1.0, 10.0, 0.1, 3.0] + [0.0, 50.0, 1.0, -7.0]  # different units
    features = np.hstack([features, np.full((len(features), 1), 3.0)])  # one tells nothing
    features = features.astype(np.float32)
    estimator = fit("softmax", features, targets).estimator
    kernel, bias = linear_head(estimator, num_classes)
    assert (kernel.shape, bias.shape) == ((5, num_classes), (num_classes,))
    assert kernel.dtype == bias.dtype == np.float32
    new = np.random.default_rng(1).normal(size=(50, 5)) * features.std(axis=0) + features.mean(0)
    expected = estimator.predict_proba(new)
    assert np.ptp(expected, axis=0).min() > 0.3
    shown = softmax(new.astype(np.float32) @ kernel + bias)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5)


def test_features_are_standardised():
    # Otherwise the penalty would depend on the unit that a feature is measured in.
    features, targets = blobs(distance=0.7)
    rescaled = features * np.array([1e-3, 1e3, 7, 1]) + 5
    shown = [fit("softmax", x, targets).estimator.predict_proba(x) for x in (features, rescaled)]
    np.testing.assert_allclose(shown[0], shown[1], atol=1e-3)
