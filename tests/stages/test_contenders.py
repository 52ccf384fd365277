"""Stored models: what they may hold, and what is refused."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cvpipe.classifiers.search import fit_classifier
from cvpipe.errors import InputError
from cvpipe.stages.stored_models import (
    is_sound_tree,
    load_estimator,
    parts_of,
    store_estimator,
    trees_of,
)


@pytest.fixture
def boosting():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 3))
    targets = (features[:, 0] > 0).astype(int) + (features[:, 2] > 0.5)
    groups = [str(row) for row in range(90)]
    return fit_classifier(
        "gradient_boosting", features, targets, groups, "coarse", 0, 1
    ).estimator  # fmt: skip


def test_every_tree_of_a_fitted_boosting_is_sound(boosting):
    trees = trees_of(boosting)
    assert len(trees) == 100 * 3
    assert all(is_sound_tree(tree.nodes, 3) for tree in trees)
    assert max(tree.nodes["feature_idx"].max() for tree in trees) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("left", 4_000_000_000),
        ("right", 4_000_000_000),
        ("left", 0),  # a circle
        ("feature_idx", 3),
        ("feature_idx", -1),
        ("is_categorical", 1),
    ],
)
def test_a_tree_that_leads_nowhere_is_refused(boosting, tmp_path, field, value):
    path = tmp_path / "model.skops"
    store_estimator(path, boosting)
    assert load_estimator(path).n_features_in_ == 3
    trees_of(boosting)[7].nodes[field][0] = value
    store_estimator(path, boosting)
    with pytest.raises(InputError, match="a decision tree in it leads nowhere"):
        load_estimator(path)


@pytest.mark.parametrize(
    "damage", ["beyond", "negative", "sum", "sign", "classes", "weights", "bare"]
)
def test_a_support_vector_that_is_no_row_is_refused(tmp_path, damage):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 3)), np.arange(40) % 2
    groups = [str(row) for row in range(40)]
    estimator = fit_classifier("rbf_svm", features, targets, groups, "coarse", 0, 1).estimator
    path = tmp_path / "model.skops"
    store_estimator(path, estimator)
    expected = estimator.predict_proba(features)
    np.testing.assert_array_equal(load_estimator(path).predict_proba(features), expected)
    machine = next(part for part in parts_of(estimator) if hasattr(part, "svm_")).svm_
    if damage in ("beyond", "negative"):
        machine.support_[-1] = 40 if damage == "beyond" else -1
    elif damage == "weights":
        machine._dual_coef_ = machine._dual_coef_[:, :1]
    elif damage == "bare":
        estimator = machine
    else:
        first, second = machine._n_support
        counts = {
            "sum": [first + 1, second],
            "sign": [first + second + 10**8, -(10**8)],
            "classes": [first, second, 0],
        }
        machine._n_support = np.array(counts[damage], dtype=np.int32)
    store_estimator(path, estimator)
    with pytest.raises(InputError, match="a support vector of it is none of its rows"):
        load_estimator(path)


def test_a_tree_inside_a_pipeline_is_looked_at(boosting, tmp_path):
    trees_of(boosting)[7].nodes["left"][0] = 4_000_000_000
    path = tmp_path / "model.skops"
    store_estimator(path, make_pipeline(StandardScaler(), boosting))
    with pytest.raises(InputError, match="a decision tree in it leads nowhere"):
        load_estimator(path)


def test_a_type_that_is_not_on_the_list_is_refused(tmp_path):
    from sklearn.preprocessing import FunctionTransformer

    path = tmp_path / "model.skops"
    store_estimator(path, FunctionTransformer(print))
    with pytest.raises(InputError, match="was not written by cvpipe and is not loaded"):
        load_estimator(path)
