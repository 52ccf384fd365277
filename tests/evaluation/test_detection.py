import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from cvpipe.errors import InputError
from cvpipe.evaluation.detection import area_with_interval


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=20),
    st.lists(st.integers(0, 6), min_size=1, max_size=20),
)
def test_area_is_scikit_learns_and_lies_in_its_interval(test, foreign):
    value, low, high = area_with_interval(
        np.array(test), np.array(foreign), np.arange(len(test)), seed=0, num_resamples=20
    )
    truth = [0] * len(test) + [1] * len(foreign)
    assert value == pytest.approx(roc_auc_score(truth, test + foreign))
    assert 0 <= low <= value <= high <= 1


def test_area_by_hand():
    # 4 beats 1 and 3; 2 beats 1 alone; 3 beats 1 and half of 3: 4.5 of 6 pairs.
    value, *_ = area_with_interval(np.array([1, 3]), np.array([4, 2, 3]), np.arange(2), seed=0)
    assert value == pytest.approx(4.5 / 6)


def test_interval_of_an_area_is_as_a_slow_loop_draws_both_samples():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 4)
    test = rng.normal(size=25)[groups] + 0.1 * rng.normal(size=100)
    foreign = rng.normal(size=40) + 0.8
    value, low, high = area_with_interval(test, foreign, groups, seed=3, num_resamples=2000)
    areas = []
    for _ in range(2000):
        drawn = np.concatenate([test[groups == g] for g in rng.integers(0, 25, 25)])
        others = foreign[rng.integers(0, 40, 40)]
        areas.append(np.mean(others[:, None] > drawn))
    assert value == pytest.approx(np.mean(foreign[:, None] > test))
    assert (low, high) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.02)


def test_a_perfect_area_has_wilsons_interval_of_the_smaller_sample():
    for num_groups, num_foreign, trials in ((10, 30, 10), (40, 6, 6)):
        test, groups = np.zeros(2 * num_groups), np.repeat(np.arange(num_groups), 2)
        value, low, high = area_with_interval(test, np.ones(num_foreign), groups, seed=0)
        wilson = proportion_confint(trials, trials, method="wilson")
        assert (value, low, high) == pytest.approx((1.0, wilson[0], 1.0))


@pytest.mark.parametrize(("test", "foreign", "resamples"), [(0, 3, 9), (3, 0, 9), (3, 3, 0)])
def test_area_refuses_an_empty_sample(test, foreign, resamples):
    told = f"got {test} test images, {foreign} foreign ones and {resamples} resamples"
    with pytest.raises(InputError, match=told):
        area_with_interval(np.ones(test), np.ones(foreign), np.arange(test), 0, resamples)
