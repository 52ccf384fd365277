import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cvpipe.classifiers import (
    CLASSIFIERS,
    SEARCH_COLUMNS,
    SEARCHES,
    fit_at,
    fit_classifier,
    group_folds,
    linear_head,
)
from cvpipe.errors import InputError
from cvpipe.stages.contenders import load_estimator, store_estimator

SEARCHED = [name for name, classifier in CLASSIFIERS.items() if classifier.parameter]
LINEAR = ["linear_svm", "softmax"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Predict in one thread: on busy cores, threads that wait for each other take long."""
    import sklearn.ensemble  # noqa: F401 (only libraries that are loaded can be limited)

    with threadpool_limits(1):
        yield


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
    ("rbf_svm", "coarse"): [1, 25, 625],
    ("rbf_svm", "fine"): [1, 5, 25, 125, 625],
    ("nearest_neighbours", "coarse"): [1, 5, 17],
    ("nearest_neighbours", "fine"): [1, 3, 5, 9, 17],
}


def test_every_searched_classifier_has_values():
    assert {name for name, _ in VALUES} == set(SEARCHED)
    assert all(CLASSIFIERS[name].values == () for name in CLASSIFIERS if name not in SEARCHED)


@pytest.mark.parametrize(("name", "search"), VALUES)
def test_search_table_and_choice(name, search):
    features, targets = blobs(distance=0.7)
    groups = [f"pair {row // 2}" for row in range(len(targets))]
    fitted = fit(name, features, targets, groups, search=search, seed=3)
    folds = group_folds(targets, groups, SEARCHES[search][1], 3)
    expected = slow_search(name, features, targets, folds, VALUES[name, search])
    assert expected["mean"].nunique() > 1
    pd.testing.assert_frame_equal(
        fitted.search, expected, check_exact=False, check_dtype=False, rtol=1e-4
    )
    # The first of the largest: on a tie the smallest value.
    best = max(expected.itertuples(), key=lambda row: (round(row.mean, 9), -row.value))
    assert fitted.chosen == {CLASSIFIERS[name].parameter: best.value}


def test_the_chosen_value_is_fitted_on_all_rows():
    features, targets = blobs(distance=0.7)
    fitted = fit("softmax", features, targets)
    again = CLASSIFIERS["softmax"].build(fitted.chosen["C"]).fit(features, targets)
    np.testing.assert_allclose(
        fitted.estimator.predict_proba(features), again.predict_proba(features), atol=1e-6
    )


@pytest.mark.parametrize("search", SEARCHES)
def test_svm_with_the_chosen_value_is_calibrated_out_of_fold(search):
    features, targets = blobs(num_classes=2, distance=0.7)
    groups = [f"pair {row // 2}" for row in range(len(targets))]
    fitted = fit("linear_svm", features, targets, groups, search)
    value = fitted.chosen["C"]
    build = CLASSIFIERS["linear_svm"].build
    # One machine, fitted on all rows; its sigmoid, fitted on scores of rows not seen.
    [calibrated] = fitted.estimator.calibrated_classifiers_
    whole = build(value).fit(features, targets)
    np.testing.assert_allclose(calibrated.estimator.coef_, whole.coef_, rtol=1e-6)
    scores = np.empty(len(targets))
    for train, rest in group_folds(targets, groups, SEARCHES[search][1], seed=0):
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


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_threads_and_repetition_do_not_change_a_bit(name):
    features, targets = blobs()
    reference, *others = (fit(name, features, targets, threads=threads) for threads in (1, 2, 1))
    expected = reference.estimator.predict_proba(features)
    for other in others:
        pd.testing.assert_frame_equal(other.search, reference.search, check_exact=True)
        assert other.chosen == reference.chosen
        np.testing.assert_array_equal(other.estimator.predict_proba(features), expected)


@pytest.mark.parametrize("search", SEARCHES)
def test_threads_do_not_decide_between_neighbours_at_equal_distance(search):
    # Few values make many ties, and enough rows for scikit-learn to divide among its threads.
    rng = np.random.default_rng(0)
    features = rng.integers(0, 3, (1500, 4)).astype(np.float32)
    targets = (features.sum(axis=1) + rng.normal(size=1500) > 4).astype(int)
    with threadpool_limits(2):  # as in a process that has set no limit
        searches = [
            fit("nearest_neighbours", features, targets, search=search, threads=threads).search
            for threads in (1, 2, 2)
        ]
    for other in searches[1:]:
        pd.testing.assert_frame_equal(other, searches[0], check_exact=True)


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


@pytest.mark.parametrize("name", LINEAR)
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


# The truth here is a sigmoid of a linear score, which a linear classifier can find; the Gaussian
# kernel is flexible enough to follow noise, too. Votes of a few neighbours claim no calibration.
@pytest.mark.parametrize(
    ("name", "bound"), [("linear_svm", 0.04), ("softmax", 0.04), ("rbf_svm", 0.08)]
)
def test_probabilities_are_calibrated(name, bound):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, 3))
    truth = 1 / (1 + np.exp(-2 * features[:, 0] + features[:, 1]))
    targets = (rng.random(3000) < truth).astype(np.int32)
    fitted = fit(name, features[:800], targets[:800])
    shown = fitted.estimator.predict_proba(features[800:])[:, 1]
    assert np.abs(shown - truth[800:]).mean() < bound
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (shown >= low) & (shown < low + 0.2)
        assert abs(targets[800:][inside].mean() - shown[inside].mean()) < 0.1


# Nearest neighbours.

# On a line: the class of a point follows from its neighbours, counted by hand.
LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
LINE_TARGETS = np.array([0, 0, 1, 1, 1, 2])


@pytest.mark.parametrize(
    ("k", "point", "votes"),
    [
        (1, 1.9, [0, 1, 0]),
        (3, 1.9, [2 / 3, 1 / 3, 0]),  # 0, 1 and 2
        (3, 11.5, [0, 2 / 3, 1 / 3]),  # 10, 11 and 12
        (5, 5.9, [2 / 5, 3 / 5, 0]),  # all but 12
        (5, 6.1, [1 / 5, 3 / 5, 1 / 5]),  # all but 0
    ],
)
def test_neighbours_vote_with_equal_weight(k, point, votes):
    groups = singles(LINE_TARGETS)
    estimator = fit_at("nearest_neighbours", {"k": k}, LINE, LINE_TARGETS, groups, "fine", 0, 1)
    np.testing.assert_allclose(estimator.predict_proba([[point]]), [votes])


def test_distance_is_euclidean():
    # Nearer to class 1 along the axes (3 against 4), to class 0 in a straight line (√8 against 3).
    features, targets = np.array([[2.0, 2.0], [0.0, 3.0]]), np.array([0, 1])
    chosen = {"k": 1.0}
    estimator = fit_at("nearest_neighbours", chosen, features, targets, ["a", "b"], "fine", 0, 1)
    assert estimator.predict([[0.0, 0.0]]).tolist() == [0]


def test_number_of_neighbours_outvotes_wrong_labels():
    # Two far clouds; every fifth label is wrong, so one neighbour is wrong more often than three.
    rng = np.random.default_rng(0)
    cloud = np.repeat([0, 1], 50)
    features = rng.normal(size=(100, 2)) + 20 * cloud[:, None]
    targets = np.where(np.arange(100) % 5 == 0, 1 - cloud, cloud)
    fitted = fit("nearest_neighbours", features, targets, search="fine")
    scores = fitted.search.set_index("value")["mean"]
    # Expected: .8 * .8 + .2 * .2 for one neighbour, .8 for a vote that is always right.
    assert scores[1.0] == pytest.approx(0.68, abs=0.1)
    assert scores[9.0] == pytest.approx(0.8, abs=0.02)
    assert fitted.chosen["k"] > 1


def test_neighbours_are_bounded_by_the_rows_of_a_training_part():
    # Three folds over 12 rows: 8 rows to learn from, so 9 and 17 neighbours are not there.
    targets = np.repeat([0, 1], 6)
    features = np.random.default_rng(0).normal(size=(12, 2))
    groups = [f"group {row // 2}" for row in range(12)]
    fitted = fit("nearest_neighbours", features, targets, groups, search="fine")
    assert fitted.search["folds"].tolist() == [3, 3, 3]
    assert fitted.search["value"].tolist() == [1, 3, 5]
    # The bound itself is allowed: two folds over 10 rows leave 5 rows for 5 neighbours.
    targets = np.repeat([0, 1], 5)
    fitted = fit("nearest_neighbours", features[:10], targets, list("aaabbcccdd"))
    assert fitted.search["folds"].tolist() == [2, 2]
    assert fitted.search["value"].tolist() == [1, 5]


def test_one_neighbour_is_the_natural_end_of_the_range():
    targets = np.repeat([0, 1], 30)
    fitted = fit("nearest_neighbours", targets[:, None] * 9.0, targets)  # any k is right
    assert fitted.search["mean"].tolist() == [1.0, 1.0, 1.0]
    assert (fitted.chosen, fitted.warnings) == ({"k": 1.0}, [])


def test_the_largest_number_of_neighbours_is_told():
    # Many wrong labels: the more votes, the better.
    rng = np.random.default_rng(1)
    cloud = np.repeat([0, 1], 100)
    features = rng.normal(size=(200, 1)) + 9 * cloud[:, None]
    targets = np.where(rng.random(200) < 0.35, 1 - cloud, cloud)
    fitted = fit("nearest_neighbours", features, targets, search="fine")
    assert fitted.chosen == {"k": 17.0}
    assert fitted.warnings == [
        "the best k is the largest that was tried (17); a better one may lie outside the range"
    ]


# The Gaussian kernel.


def ring(per_class=60, seed=0):
    """Draw a disc and the ring around it: no line parts them."""
    rng = np.random.default_rng(seed)
    targets = np.repeat([0, 1], per_class)
    radius = rng.uniform(0, 1, 2 * per_class) + 2 * targets
    angle = rng.uniform(0, 2 * np.pi, 2 * per_class)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + 3, targets


def test_kernel_against_a_plain_computation():
    features, targets = ring()
    features = features * [1.0, 5.0]  # columns of different variance: theirs together counts
    new = np.random.default_rng(1).uniform(-1, 30, (20, 2))
    fitted = fit("rbf_svm", features, targets)
    [calibrated] = fitted.estimator.calibrated_classifiers_
    machine = calibrated.estimator
    gamma = 1 / (2 * np.mean((features - features.mean()) ** 2))
    expected = np.zeros(20)
    for row, point in enumerate(new):
        weights = machine.svm_.dual_coef_[0]
        for vector, weight in zip(machine.support_vectors_, weights, strict=True):
            expected[row] += weight * np.exp(-gamma * ((point - vector) ** 2).sum())
        expected[row] += machine.svm_.intercept_[0]
    np.testing.assert_allclose(machine.decision_function(new), expected, rtol=1e-6, atol=1e-9)
    # The support vectors are rows as they were given, and no weight is above the chosen C.
    np.testing.assert_array_equal(machine.support_vectors_, features[machine.support_])
    assert np.abs(machine.svm_.dual_coef_).max() <= fitted.chosen["C"] * (1 + 1e-9)
    # Platt's sigmoid of the score.
    [sigmoid] = calibrated.calibrators
    probability = 1 / (1 + np.exp(sigmoid.a_ * expected + sigmoid.b_))
    np.testing.assert_allclose(fitted.estimator.predict_proba(new)[:, 1], probability, rtol=1e-6)


def test_rows_of_one_value_are_no_error():
    # Their variance is zero, and gamma would be infinite.
    targets = np.repeat([0, 1], [10, 20])
    fitted = fit("rbf_svm", np.full((30, 3), 7.0), targets)
    shown = fitted.estimator.predict_proba(np.full((1, 3), 7.0))
    np.testing.assert_allclose(shown, [[1 / 3, 2 / 3]], atol=0.05)


# What a line cannot part.


@pytest.mark.parametrize("name", ["rbf_svm", "nearest_neighbours", "gradient_boosting"])
def test_a_disc_in_a_ring_is_told_apart(name):
    (features, targets), (new, truth) = ring(seed=0), ring(seed=1)
    assert (fit(name, features, targets).estimator.predict(new) == truth).mean() > 0.95
    for linear in LINEAR:
        assert (fit(linear, features, targets).estimator.predict(new) == truth).mean() < 0.75


def test_boosting_finds_an_interval():
    # The class is told by whether one of five numbers lies within an interval.
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(400, 5))
    targets = ((features[:, 2] > 0.3) & (features[:, 2] < 0.7)).astype(int)
    boosting, *linear = (
        fit(name, features[:200], targets[:200]).estimator.predict(features[200:])
        for name in ("gradient_boosting", *LINEAR)
    )
    assert (boosting == targets[200:]).mean() > 0.95
    assert max((shown == targets[200:]).mean() for shown in linear) < 0.7


def test_boosting_learns_from_every_row_of_few():
    # Leaves of five rows, and no row set aside: 5 rows of the rarer class are enough.
    targets = np.repeat([0, 1], [5, 25])
    fitted = fit("gradient_boosting", targets[:, None] * 1.0, targets)
    assert (fitted.chosen, len(fitted.search), fitted.warnings) == ({}, 0, [])
    assert fitted.estimator.predict([[0.0], [1.0]]).tolist() == [0, 1]
    assert fitted.estimator.n_iter_ == 100  # nothing stops it early


# A value that is known already.


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fit_at_the_chosen_value_is_the_fitted_classifier(name, search):
    features, targets = blobs(distance=0.7)
    groups = [f"pair {row // 2}" for row in range(len(targets))]
    fitted = fit(name, features, targets, groups, search, seed=5)
    again = fit_at(name, fitted.chosen, features, targets, groups, search, 5, 2)
    new = np.random.default_rng(1).normal(size=(40, 4))
    expected = fitted.estimator.predict_proba(new)
    np.testing.assert_array_equal(again.predict_proba(new), expected)
    if CLASSIFIERS[name].parameter:  # the value given is the one that counts
        [parameter] = fitted.chosen
        values = CLASSIFIERS[name].values
        other = {parameter: values[0] if fitted.chosen[parameter] != values[0] else values[-1]}
        changed = fit_at(name, other, features, targets, groups, search, 5, 2)
        assert not np.allclose(changed.predict_proba(new), expected)


# What is stored.


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_stored_classifier_gives_the_same_bits(name, num_classes, tmp_path):
    features, targets = blobs(num_classes=num_classes, distance=0.7)
    estimator = fit(name, features.astype(np.float32), targets).estimator
    store_estimator(tmp_path / "model.skops", estimator)
    loaded = load_estimator(tmp_path / "model.skops")
    new = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict_proba(new), estimator.predict_proba(new))


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


def test_machines_that_hold_pairs_are_fitted_as_memory_allows(monkeypatch):
    import joblib

    from cvpipe import classifiers

    seen = []
    build = joblib.parallel_config

    def spy(**options):
        seen.append(options["n_jobs"])
        return build(**options)

    monkeypatch.setattr(joblib, "parallel_config", spy)
    monkeypatch.setattr(classifiers, "MAX_PAIR_BYTES", 2 * 16 * 90**2)
    features, targets = blobs()  # 90 rows: two fits at a time
    for name, expected in (("rbf_svm", 2), ("linear_svm", 8)):
        seen.clear()
        fit(name, features, targets, threads=8)
        assert set(seen) == {expected}
    monkeypatch.setattr(classifiers, "MAX_PAIR_BYTES", 1)
    seen.clear()
    fit("rbf_svm", features, targets, threads=8)
    assert set(seen) == {1}
