import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cvpipe.classifiers.search import (
    SCORE_COLUMNS,
    _best_of,
    fit_at,
    group_folds,
    linear_head,
    row_weights,
    shorten_rows,
)
from cvpipe.classifiers.table import CLASSIFIERS, SEARCHES
from cvpipe.errors import InputError
from tests.classifiers.examples import blobs, fit, histograms, pairs, singles

SEARCHED = [name for name, classifier in CLASSIFIERS.items() if classifier.parameters]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Predict in one thread: on busy cores, threads that wait for each other take long."""
    import sklearn.ensemble  # noqa: F401 (only libraries that are loaded can be limited)

    with threadpool_limits(1):
        yield


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# Rows that are longer than there are.


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 60), st.integers(0, 1000))
def test_short_rows_have_the_same_dot_products(num_rows, num_columns, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_rows, num_columns)).astype(np.float32)
    rows[-1] = rows[0]  # rows may be equal, or zero
    rows[num_rows // 2] *= seed % 2
    before = rows.copy()
    short = shorten_rows(rows)
    pays = num_columns >= num_rows and np.count_nonzero(rows) >= num_rows**2
    assert short.shape[1] == (num_rows if pays else num_columns)
    assert not pays or not np.triu(short, 1).any()
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(short @ short.T, exact @ exact.T, atol=1e-5)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("name", ["linear_svm", "linear_svm_hinge"])
def test_a_search_among_short_rows_is_that_among_long_ones(name, monkeypatch):
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], 40)
    features = rng.normal(size=(80, 200)) + 0.25 * targets[:, None]
    short = fit(name, features, targets, search="fine")
    calls = []
    monkeypatch.setattr(
        "cvpipe.classifiers.search.shorten_rows", lambda rows: calls.append(rows.shape) or rows
    )
    long = fit(name, features, targets, search="fine")
    assert calls == [(80, 200)]
    # A row in eighty may fall on the other side: solvers stop before the last digit.
    pd.testing.assert_frame_equal(short.search, long.search, rtol=0, atol=1 / 80)
    assert short.chosen == long.chosen
    assert short.search["mean"].nunique() > 1


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


def slow_scores(name, features, targets, folds, setting, weights=None):
    """Fit and score one setting in every fold by a plain loop."""
    scores = []
    for train, rest in folds:
        model = CLASSIFIERS[name].build(**setting)
        step = f"{model.steps[-1][0]}__" if hasattr(model, "steps") else ""
        own = {} if weights is None else {f"{step}sample_weight": weights[train]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features[train], targets[train], **own)
        if name.startswith("softmax") or name == "two_layer_net":
            shown = model.predict_proba(features[rest])[np.arange(len(rest)), targets[rest]]
            values = np.log(shown)
        else:
            values = model.predict(features[rest]) == targets[rest]
        scores.append(np.average(values, weights=None if weights is None else weights[rest]))
    return scores


def slow_search(name, features, targets, folds, table, weights=None):
    """Fill in the scores of a search's table once more."""
    names = [parameter.name for parameter in CLASSIFIERS[name].parameters]
    settings = table[names].to_dict("records")
    scores = np.array(
        [slow_scores(name, features, targets, folds, setting, weights) for setting in settings]
    )
    return table[names].assign(
        mean=scores.mean(axis=1), std=scores.std(axis=1, ddof=1), folds=len(folds)
    )


DECADES = [1e-3, 1e-2, 0.1, 1, 10, 100]
KERNEL = {"C": [0.1, 1, 10, 100, 1000], "gamma_factor": [0.25, 1, 4, 16, 64]}
NEIGHBOURS = {"k": [1, 3, 9, 27], "vote": ["majority", "distance"]}
COARSE = {
    "nearest_mean": {"metric": ["l2", "l1", "cosine"]},
    "nearest_neighbours": NEIGHBOURS,
    "nearest_neighbours_l1": NEIGHBOURS,
    "nearest_neighbours_cosine": NEIGHBOURS,
    "linear_svm": {"C": DECADES},
    "linear_svm_hinge": {"C": DECADES},
    "rbf_svm": KERNEL,
    "chi2_svm": KERNEL,
    "intersection_svm": {"C": KERNEL["C"]},
    "softmax": {"C": [1e-4, *DECADES[:-1]]},
    "softmax_common_scale": {"C": [1e-4, *DECADES[:-1]]},
    "softmax_l1": {"C": [0.01, 0.1, 1, 10]},
    "softmax_elastic_net": {"C": [0.01, 0.1, 1, 10], "l1_ratio": [0.5, 0.1]},
    "two_layer_net": {"weight_decay": [100, 10, 1, 0.1], "learning_rate": [0.01, 0.1]},
}
K_FINE = [1, 3, 4, 5, 7, 9, 11, 14, 18, 23, 29, 37, 47, 60]
QUICK = [name for name in SEARCHED if name not in ("two_layer_net", "softmax_elastic_net")]


def test_every_searched_classifier_is_listed():
    assert set(COARSE) == set(SEARCHED)


@pytest.mark.parametrize("name", COARSE)
def test_coarse_search_table_and_choice(name):
    features, targets = histograms(seed=2)
    features = features / 5
    fitted = fit(name, features, targets, pairs(targets), seed=3)
    grid = pd.MultiIndex.from_product(COARSE[name].values(), names=COARSE[name])
    columns = list(COARSE[name])
    assert fitted.search[columns].to_dict("records") == grid.to_frame(False).to_dict("records")
    folds = group_folds(targets, pairs(targets), 3, 3)
    check_table(name, fitted, features, targets, folds)


def check_table(name, fitted, features, targets, folds, weights=None):
    some = fitted.search.iloc[:: max(1, len(fitted.search) // 6)]
    expected = slow_search(name, features, targets, folds, some, weights)
    assert list(fitted.search) == [*COARSE[name], *SCORE_COLUMNS]
    assert fitted.search["mean"].nunique() > 1
    pd.testing.assert_frame_equal(some, expected, check_exact=False, rtol=1e-4)
    # The first of the largest: on a tie the simplest.
    best = fitted.search.loc[(fitted.search["mean"].round(9)).idxmax()]
    assert fitted.chosen == {column: best[column] for column in COARSE[name]}


@pytest.mark.parametrize("name", QUICK)
def test_a_fine_search_looks_around_the_best_of_the_coarse_grid(name):
    features, targets = histograms(seed=2)
    features = features / 5
    fitted = fit(name, features, targets, pairs(targets), search="fine", seed=3)
    folds = group_folds(targets, pairs(targets), 5, 3)
    check_table(name, fitted, features, targets, folds)
    if name.startswith("nearest_neighbours"):
        grid = pd.MultiIndex.from_product([K_FINE, ["majority", "distance"]], names=["k", "vote"])
        pd.testing.assert_frame_equal(fitted.search[["k", "vote"]], grid.to_frame(False))
        return
    columns = list(COARSE[name])
    first = pd.MultiIndex.from_product(COARSE[name].values(), names=columns).to_frame(False)
    scored = first.merge(fitted.search)
    assert len(scored) == len(first)
    best = scored.loc[scored["mean"].round(9).idxmax()]
    steps = {"C": 10**0.5, "gamma_factor": 2.0}
    around = [
        [best[c] * steps[c] ** n for n in (-1, 0, 1)] if c in steps else [best[c]] for c in columns
    ]
    second = pd.MultiIndex.from_product(around, names=columns).to_frame(False)
    expected = pd.concat([first, second])
    if "metric" not in columns:
        expected = expected.astype(float).round(5 if not name.startswith("softmax") else 7)
        for column in columns:  # to three digits
            expected[column] = [float(f"{value:.3g}") for value in expected[column]]
    expected = expected.drop_duplicates()
    assert len(expected) == len(fitted.search)
    assert len(expected.merge(fitted.search.round(7))) == len(expected)


def test_settings_are_listed_the_simplest_first():
    features, targets = histograms(seed=2)
    table = fit("rbf_svm", features, targets, search="fine").search
    columns = ["C", "gamma_factor"]
    pd.testing.assert_frame_equal(
        table[columns], table.sort_values(columns, ignore_index=True)[columns]
    )


@pytest.mark.parametrize("name", ["rbf_svm", "nearest_neighbours", "linear_svm", "softmax"])
def test_balanced_weights_count_in_fits_and_scores(name):
    features, targets = histograms(num_classes=3)
    keep = np.r_[0:30, 30:44, 60:67]
    features, targets = features[keep], targets[keep]
    fitted = fit(name, features, targets, class_weights="balanced", seed=1)
    weights = row_weights(targets, "balanced")
    folds = group_folds(targets, singles(targets), 3, 1)
    check_table(name, fitted, features, targets, folds, weights)


def test_the_chosen_value_is_fitted_on_all_rows():
    features, targets = blobs(distance=0.7)
    fitted = fit("softmax", features, targets)
    again = CLASSIFIERS["softmax"].build(**fitted.chosen).fit(features, targets)
    np.testing.assert_allclose(
        fitted.estimator.predict_proba(features), again.predict_proba(features), atol=1e-6
    )


@pytest.mark.parametrize("search", SEARCHES)
def test_svm_with_the_chosen_value_is_calibrated_out_of_fold(search):
    features, targets = blobs(num_classes=2, distance=0.7)
    groups = pairs(targets)
    fitted = fit("linear_svm", features, targets, groups, search)
    value = fitted.chosen["C"]
    build = CLASSIFIERS["linear_svm"].build
    # One machine, fitted on all rows; its sigmoid, fitted on scores of rows not seen.
    [calibrated] = fitted.estimator.calibrated_classifiers_
    whole = build(value).fit(features, targets)
    np.testing.assert_allclose(calibrated.estimator.coef_, whole.coef_, rtol=1e-6)
    scores = np.empty(len(targets))
    for train, rest in group_folds(targets, groups, SEARCHES[search], seed=0):
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
    assert fitted.chosen["C"] in fitted.search["C"].tolist()[1:-1]
    assert fitted.warnings == []
    assert (fitted.estimator.predict(features) == targets).mean() > 0.7


def test_the_smallest_value_wins_a_tie_and_the_edge_is_told():
    targets = np.repeat([0, 1], 10).astype(np.int32)
    # No feature tells anything, so all values are equally good.
    fitted = fit("linear_svm", np.zeros((20, 2)), targets)
    assert fitted.search["mean"].nunique() == 1
    assert fitted.chosen == {"C": 0.001}
    assert fitted.warnings == [
        "the best C is the smallest that was tried (0.001); a better one may lie outside the range"
    ]


def test_sums_in_another_order_are_a_tie():
    # The means of these are a digit in the last place apart.
    scores = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    assert scores.mean(axis=1)[1] > scores.mean(axis=1)[0]
    assert _best_of(scores) == 0
    assert _best_of(scores + np.array([[0.0], [1e-6]])) == 1


def test_the_largest_value_is_told():
    features, targets = blobs(num_classes=2, distance=30.0)
    # Perfectly separable: the surer, the better. A fine search also looks beyond the end.
    for search, largest in (("coarse", 10.0), ("fine", 31.6)):
        fitted = fit("softmax", features, targets, search=search)
        assert fitted.chosen == {"C": largest}
        assert fitted.warnings == [
            f"the best C is the largest that was tried ({largest:g}); a better one may lie outside "
            "the range"
        ]


@pytest.mark.parametrize("search", SEARCHES)
def test_threads_do_not_decide_between_neighbours_at_equal_distance(search):
    # Few values make many ties, and enough rows for scikit-learn to divide among its threads.
    rng = np.random.default_rng(0)
    features = rng.integers(0, 3, (500, 4)).astype(np.float32)
    targets = (features.sum(axis=1) + rng.normal(size=500) > 4).astype(int)
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
    check_table("softmax", fitted, features, targets, folds)


def test_a_fit_that_fails_is_not_passed_over():
    features, targets = blobs()
    features[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit("softmax", features, targets)


def test_neighbours_are_bounded_by_the_rows_of_a_training_part():
    # Three folds over 12 rows: 8 rows to learn from, so 9 and 27 neighbours are not there.
    targets = np.repeat([0, 1], 6)
    features = np.random.default_rng(0).normal(size=(12, 2))
    fitted = fit("nearest_neighbours", features, targets, pairs(targets), search="fine")
    assert fitted.search["folds"].tolist() == [3] * 10
    assert sorted(set(fitted.search["k"])) == [1, 3, 4, 5, 7]
    # The bound itself is allowed: two folds over 6 rows leave 3 rows for 3 neighbours.
    targets = np.repeat([0, 1], 3)
    fitted = fit("nearest_neighbours", features[:6], targets, list("abbccd"))
    assert fitted.search["folds"].tolist() == [2] * 4
    assert fitted.search["k"].tolist() == [1, 1, 3, 3]


def test_one_neighbour_is_the_natural_end_of_the_range():
    targets = np.repeat([0, 1], 30)
    fitted = fit("nearest_neighbours", targets[:, None] * 9.0, targets)  # any k is right
    assert fitted.search["mean"].tolist() == [1.0] * 8
    assert (fitted.chosen, fitted.warnings) == ({"k": 1, "vote": "majority"}, [])


def test_the_largest_number_of_neighbours_is_told():
    # Two clouds with many wrong labels: the more votes, the better.
    rng = np.random.default_rng(0)
    cloud = np.repeat([0, 1], 200)
    features = rng.normal(size=(400, 1)) + 9 * cloud[:, None]
    targets = np.where(rng.random(400) < 0.42, 1 - cloud, cloud)
    fitted = fit("nearest_neighbours", features, targets)
    assert fitted.chosen == {"k": 27, "vote": "majority"}
    assert fitted.warnings == [
        "the best k is the largest that was tried (27); a better one may lie outside the range"
    ]


# A value that is known already.


@pytest.mark.parametrize(
    ("name", "search"),
    [*((name, "coarse") for name in CLASSIFIERS), ("rbf_svm", "fine"), ("majority", "fine")],
)
def test_fit_at_the_chosen_value_is_the_fitted_classifier(name, search):
    features, targets = blobs(distance=0.7)
    features = features - features.min()
    groups = pairs(targets)
    fitted = fit(name, features, targets, groups, search, seed=5)
    again = fit_at(name, fitted.chosen, features, targets, groups, search, 5, 2)
    new = np.random.default_rng(1).uniform(0, 5, size=(40, 4))
    expected = fitted.estimator.predict_proba(new)
    np.testing.assert_array_equal(again.predict_proba(new), expected)
    for parameter in CLASSIFIERS[name].parameters:  # the values given are those that count
        name_, values = parameter.name, parameter.coarse
        if name_ in ("vote", "learning_rate", "l1_ratio"):
            continue
        other = values[0] if fitted.chosen[name_] != values[0] else values[-1]
        changed = fit_at(
            name, {**fitted.chosen, name_: other}, features, targets, groups, search, 5, 2
        )
        assert not np.allclose(changed.predict_proba(new), expected)


def test_what_older_runs_did_not_choose_has_its_usual_value():
    features, targets = histograms()
    groups = singles(targets)
    for name, old, usual in [
        ("rbf_svm", {"C": 5.0}, {"gamma_factor": 1.0}),
        ("nearest_neighbours", {"k": 3.0}, {"vote": "majority"}),
    ]:
        shown = [
            fit_at(name, chosen, features, targets, groups, "coarse", 0, 1).predict_proba(features)
            for chosen in (old, {**old, **usual})
        ]
        np.testing.assert_array_equal(*shown)


# Weights of classes.


def test_every_class_has_the_same_weight():
    weights = row_weights(np.array([3, 3, 3, 0, 3, 7]), "balanced")
    np.testing.assert_allclose(weights, [0.5, 0.5, 0.5, 2, 0.5, 2])
    assert row_weights(np.array([0, 1]), "none") is None


def test_unknown_weights_of_classes():
    features, targets = blobs()
    for name in ("softmax", "majority"):
        with pytest.raises(InputError, match="unknown class_weights 'balance'; did you mean"):
            fit(name, features, targets, class_weights="balance")


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

    from cvpipe.classifiers import search

    seen = []
    build = joblib.parallel_config

    def spy(**options):
        seen.append(options["n_jobs"])
        return build(**options)

    monkeypatch.setattr(joblib, "parallel_config", spy)
    monkeypatch.setattr(search, "MAX_PAIR_BYTES", 2 * 16 * 90**2)
    features, targets = blobs()  # 90 rows: two fits at a time
    features -= features.min()
    for name, expected in (("rbf_svm", 2), ("linear_svm", 8), ("linear_svm_hinge", 1)):
        seen.clear()
        fit(name, features, targets, threads=8)
        assert set(seen) == {expected}
    monkeypatch.setattr(search, "MAX_PAIR_BYTES", 1)
    seen.clear()
    fit("rbf_svm", features, targets, threads=8)
    assert set(seen) == {1}
