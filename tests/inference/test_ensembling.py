import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from cvpipe.errors import InputError
from cvpipe.inference import ensembling
from cvpipe.inference.calibration import FLOOR
from cvpipe.inference.ensembling import (
    GAP,
    METHODS,
    PENALTIES,
    Ensemble,
    choose_penalty,
    disagreement,
    ensemble_from_dict,
    error_correlation,
    fit_ensemble,
    fit_greedy,
    fit_stacking,
    fit_weighted,
    leave_one_out,
)

LINEAR = [name for name, method in METHODS.items() if method.pool == "linear"]
FITTED = [name for name, method in METHODS.items() if method.is_fitted]
UNFITTED = [name for name in METHODS if name not in FITTED]


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def draw(num_members=3, n=40, num_classes=3, seed=0, noise=None):
    """Members that know the logits the labels are drawn from, each with noise of its own."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, num_classes))
    targets = (softmax(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    noise = np.linspace(0.5, 2.5, num_members) if noise is None else np.asarray(noise)
    blurred = logits + noise[:, None, None] * rng.normal(size=(num_members, n, num_classes))
    return softmax(blurred), targets.clip(max=num_classes - 1)


def fit(method, members, targets):
    if method == "stacking":  # choosing the penalty takes thirty fits
        return fit_stacking(members, targets, 1.0)
    return fit_ensemble(method, members, targets, np.arange(len(targets)), seed=0)


def log_loss(probabilities, targets):
    likelihoods = probabilities[..., np.arange(len(targets)), targets]
    return -np.log(np.maximum(likelihoods, FLOOR)).mean(axis=-1)


sizes = {
    "num_members": st.integers(2, 5),
    "n": st.integers(1, 25),
    "num_classes": st.integers(2, 4),
    "seed": st.integers(0, 10_000),
}
few = settings(max_examples=25)


# Combining.


def test_mean_and_weighted_by_hand():
    members = np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.2, 0.6]]])
    mean = Ensemble("mean", (0.5, 0.5)).apply(members)
    np.testing.assert_allclose(mean, [[0.4, 0.25, 0.35]])
    weighted = Ensemble("weighted", (0.25, 0.75)).apply(members)
    np.testing.assert_allclose(weighted, [[0.3, 0.225, 0.475]])


def test_geometric_mean_by_hand():
    """Roots of 0.8 * 0.2 = 0.16 and 0.2 * 0.05 = 0.01 are 0.4 and 0.1; those of 0 are floored."""
    members = np.array([[[0.8, 0.2], [1.0, 0.0]], [[0.2, 0.8], [1.0, 0.0]]])
    mean = Ensemble("geometric_mean", (0.5, 0.5)).apply(members)
    np.testing.assert_allclose(mean[0], [0.5, 0.5])
    np.testing.assert_allclose(mean[1], [1 / (1 + FLOOR), FLOOR / (1 + FLOOR)], rtol=1e-12)
    members = np.array([[[0.8, 0.1, 0.1]], [[0.2, 0.4, 0.4]]])
    mean = Ensemble("geometric_mean", (0.5, 0.5)).apply(members)
    np.testing.assert_allclose(mean, [[0.5, 0.25, 0.25]])


def test_stacking_by_hand():
    """0.8^2 * 0.5^0.5 : 0.2^2 * 0.5^0.5 is 16 : 1, and the intercepts make it 4 : 1."""
    members = np.array([[[0.8, 0.2]], [[0.5, 0.5]]])
    quarter = math.log(0.25)
    stacked = Ensemble("stacking", (2.0, 0.5), (quarter / 2, -quarter / 2)).apply(members)
    np.testing.assert_allclose(stacked, [[0.8, 0.2]])


def test_vote_by_hand():
    members = np.array(
        [
            [[0.6, 0.4, 0.0], [0.9, 0.1, 0.0], [0.5, 0.5, 0.0]],
            [[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.0, 0.5, 0.5]],
            [[0.0, 1.0, 0.0], [0.0, 0.4, 0.6], [0.0, 0.2, 0.8]],
        ]
    )
    vote = Ensemble("vote", (1 / 3,) * 3).apply(members)
    expected = [
        [(2 + 0.4) / 4, (1 + 0.6) / 4, 0.0],  # two against one, though the mean says otherwise
        [(1 + 0.3) / 4, (1 + 1.1 / 3) / 4, (1 + 1 / 3) / 4],  # one each: the mean decides
        [(1 + 0.5 / 3) / 4, (1 + 0.4) / 4, (1 + 1.3 / 3) / 4],  # a member's tie: its first class
    ]
    np.testing.assert_allclose(vote, expected)


@few
@given(**sizes)
def test_the_winner_of_the_vote_is_the_most_probable_class(num_members, n, num_classes, seed):
    members, _ = draw(num_members, n, num_classes, seed)
    vote = fit("vote", members, np.zeros(n, dtype=int)).apply(members)
    for image in range(n):
        named = [int(member[image].argmax()) for member in members]
        rank = [(named.count(c), members[:, image, c].mean()) for c in range(num_classes)]
        assert vote[image].argmax() == max(range(num_classes), key=lambda c: rank[c])
        assert vote[image].min() > 0


@pytest.mark.parametrize("method", METHODS)
@few
@given(**sizes)
def test_an_ensemble_gives_probabilities_and_survives_json(
    method, num_members, n, num_classes, seed
):
    members, targets = draw(num_members, n, num_classes, seed, noise=np.full(num_members, 9.0))
    ensemble = fit(method, members, targets)
    combined = ensemble.apply(members)
    assert combined.shape == (n, num_classes)
    assert combined.dtype == np.float64
    assert combined.min() >= 0
    np.testing.assert_allclose(combined.sum(axis=1), 1.0, rtol=1e-12)
    read = ensemble_from_dict(json.loads(json.dumps(ensemble.to_dict())))
    assert read == ensemble
    np.testing.assert_array_equal(read.apply(members), combined)


@pytest.mark.parametrize("method", METHODS)
def test_images_do_not_depend_on_each_other(method):
    members, targets = draw(5, 31, 3)
    ensemble = fit(method, members, targets)
    one_by_one = [ensemble.apply(members[:, [image]])[0] for image in range(31)]
    np.testing.assert_array_equal(ensemble.apply(members), one_by_one)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_float32_softmax_are_taken(method):
    members, targets = draw()
    single = fit(method, members.astype(np.float32), targets).apply(members.astype(np.float32))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(single, fit(method, members, targets).apply(members), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@few
@given(order=st.permutations(range(4)), seed=st.integers(0, 10_000))
def test_the_order_of_the_members_is_of_no_account(method, order, seed):
    members, targets = draw(4, 30, 3, seed)
    there, back = fit(method, members, targets), fit(method, members[order], targets)
    np.testing.assert_allclose(np.array(there.weights)[order], back.weights, atol=1e-4)
    np.testing.assert_allclose(there.apply(members), back.apply(members[order]), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@few
@given(**sizes)
def test_members_that_say_the_same(method, num_members, n, num_classes, seed):
    member, targets = draw(2, n, num_classes, seed)
    members = np.repeat(member[:1], num_members, axis=0)
    ensemble = fit(method, members, targets)
    combined = ensemble.apply(members)
    if method == "vote":
        assert (combined.argmax(axis=1) == member[0].argmax(axis=1)).all()
    elif method == "stacking":  # one member alone may be made surer, or less sure
        np.testing.assert_allclose(ensemble.weights, ensemble.weights[0], atol=1e-6)
        geometric = fit_stacking(members, targets, 1e12).apply(members)
        np.testing.assert_allclose(geometric, member[0], atol=1e-6)
    else:
        np.testing.assert_allclose(combined, member[0], atol=1e-6)


@few
@given(**sizes)
def test_pools_are_at_least_as_good_as_the_members_are_on_average(
    num_members, n, num_classes, seed
):
    """Jensen's inequality for the mean; Hölder's for the geometric mean."""
    members, targets = draw(num_members, n, num_classes, seed)
    on_average = log_loss(members, targets).mean() + 1e-6  # the floor
    for method in ("mean", "geometric_mean"):
        assert log_loss(fit(method, members, targets).apply(members), targets) <= on_average


def test_the_mean_is_weighted_with_equal_weights():
    members, targets = draw(5)
    mean = fit("mean", members, targets)
    assert mean == Ensemble("mean", (0.2,) * 5)
    same = Ensemble("weighted", (0.2,) * 5).apply(members)
    np.testing.assert_array_equal(mean.apply(members), same)
    np.testing.assert_allclose(same, members.mean(axis=0))


@pytest.mark.parametrize("method", UNFITTED)
def test_what_is_not_fitted_ignores_targets_and_needs_no_images(method):
    members, _ = draw(3)
    assert fit_ensemble(method, members, np.array([]), [], seed=0).weights == (1 / 3,) * 3
    ensemble = fit_ensemble(method, members[:, :0], np.array([7]), ["a"], seed=0)
    assert ensemble.apply(members[:, :0]).shape == (0, 3)


# Weighted.


def weighted_slopes(weights, members, targets, pseudo_images):
    likelihoods = members[:, np.arange(len(targets)), targets]
    mixture = np.array(weights) @ likelihoods
    return (likelihoods / mixture).sum(axis=1) + pseudo_images / np.array(weights)


@pytest.mark.parametrize("pseudo_images", [0.5, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_weights_agree_with_a_general_optimiser(pseudo_images, seed):
    members, targets = draw(4, 60, 3, seed)
    likelihoods = members[:, np.arange(60), targets]

    def loss(weights):
        return -np.log(weights @ likelihoods).sum() - pseudo_images * np.log(weights).sum()

    best = minimize(
        loss,
        np.full(4, 0.25),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    weights = fit_weighted(members, targets, pseudo_images).weights
    np.testing.assert_allclose(weights, best.x, atol=1e-4)
    assert loss(np.array(weights)) <= best.fun + 1e-7


@few
@given(**sizes, pseudo_images=st.sampled_from([0.3, 1.0, 10.0]))
def test_weights_fulfil_the_conditions_of_an_optimum(
    num_members, n, num_classes, seed, pseudo_images
):
    """All weights are above 0, so all slopes are equal: to the multiplier of their sum."""
    members, targets = draw(num_members, n, num_classes, seed)
    weights = fit_weighted(members, targets, pseudo_images).weights
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert min(weights) > 0
    total = n + num_members * pseudo_images
    slopes = weighted_slopes(weights, members, targets, pseudo_images)
    assert slopes.max() <= total * (1 + 2 * GAP)
    np.testing.assert_allclose(slopes, total, rtol=1e-5)


def test_without_a_prior_weights_can_be_0():
    members, targets = draw(3, 200, 3, noise=[0.1, 3.0, 3.0])
    weights = fit_weighted(members, targets, 0.0).weights
    slopes = weighted_slopes(np.maximum(weights, 1e-300), members, targets, 0.0)
    assert weights[0] > 0.9
    assert min(weights) < 1e-6
    assert slopes.max() <= 200 * (1 + 1e-5)  # at a weight of 0 the slope may be smaller
    assert slopes[0] == pytest.approx(200, rel=1e-5)


def test_pseudo_images_draw_towards_equal_weights():
    members, targets = draw(3, 200, 3, noise=[0.1, 3.0, 3.0])
    first = [fit_weighted(members, targets, p).weights[0] for p in (0, 1, 10, 100, 1e6)]
    assert first == sorted(first, reverse=True)
    assert first[0] > 0.95
    assert first[-1] == pytest.approx(1 / 3, abs=1e-3)


def test_a_perfect_member_gets_all_images():
    """It is alone in the right on all n images: its weight is (n + 1) / (n + 3)."""
    targets = np.arange(30) % 3
    right, wrong = np.eye(3)[targets], np.eye(3)[(targets + 1) % 3]
    members = np.stack([wrong, right, wrong])
    weights = fit_weighted(members, targets).weights
    np.testing.assert_allclose(weights, [1 / 33, 31 / 33, 1 / 33], atol=1e-6)
    assert fit_greedy(members, targets).weights == (0.0, 1.0, 0.0)
    stacked = fit("stacking", members, targets)
    assert stacked.weights[1] > 1 / 3 > max(stacked.weights[0], stacked.weights[2])
    assert (stacked.apply(members).argmax(axis=1) == targets).all()


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("n", [1, 4])
def test_all_members_are_certain_and_wrong(method, n):
    """Nothing tells them apart, and no logarithm of 0 is taken."""
    members = np.tile([0.0, 1.0], (2, n, 1))
    ensemble = fit(method, members, np.zeros(n, dtype=int))
    assert np.isfinite([*ensemble.weights, *ensemble.intercepts]).all()
    assert np.isfinite(ensemble.apply(members)).all()
    if method == "weighted":
        np.testing.assert_allclose(ensemble.weights, 0.5)


# Greedy.


def select_slowly(members, targets, num_rounds):
    bag, best = [], (math.inf, [])
    for _ in range(num_rounds):
        losses = []
        for candidate in range(len(members)):
            tried = [*bag, candidate]
            likelihoods = [
                math.fsum(max(members[m][i][t], FLOOR) for m in tried) / len(tried)
                for i, t in enumerate(targets)
            ]
            losses.append(math.fsum(-math.log(value) for value in likelihoods) / len(targets))
        bag.append(losses.index(min(losses)))
        if min(losses) < best[0] - 1e-12:
            best = min(losses), list(bag)
    return [best[1].count(m) / len(best[1]) for m in range(len(members))]


@few
@given(**sizes)
def test_greedy_agrees_with_a_plain_loop(num_members, n, num_classes, seed):
    members, targets = draw(num_members, n, num_classes, seed)
    weights = fit_greedy(members, targets, num_rounds=8).weights
    np.testing.assert_allclose(weights, select_slowly(members, targets, 8), atol=1e-12)


def test_greedy_by_hand():
    """First the second member: 0.6 * 0.6 is more than 0.9 * 0.3. With the first it is better.

    Then the means are 0.75 * 0.45 = 0.3375, less than 0.36: the first prefix is the best of two.
    """
    members = np.array([[[0.9, 0.1], [0.3, 0.7]], [[0.6, 0.4], [0.6, 0.4]]])
    targets = np.array([0, 0])
    assert fit_greedy(members, targets, num_rounds=2).weights == (0.0, 1.0)
    # 0.9 and 0.3, 0.3 and 0.9: apart 0.27, together 0.36.
    members[1] = [[0.3, 0.7], [0.9, 0.1]]
    assert fit_greedy(members, targets, num_rounds=1).weights == (1.0, 0.0)  # the first of equals
    assert fit_greedy(members, targets, num_rounds=2).weights == (0.5, 0.5)
    assert fit_greedy(members, targets, num_rounds=3).weights == (0.5, 0.5)  # 2/3 : 1/3 is worse


def test_greedy_is_never_worse_than_the_best_member():
    for seed in range(10):
        members, targets = draw(4, 25, 3, seed)
        combined = fit_greedy(members, targets).apply(members)
        assert log_loss(combined, targets) <= log_loss(members, targets).min() + 1e-12


# Stacking.


def stacking_loss(values, members, targets, penalty):
    num_members, n, _ = members.shape
    weights, intercepts = values[:num_members], values[num_members:]
    logits = sum(w * np.log(p) for w, p in zip(weights, members, strict=True)) + intercepts
    away = np.sum((weights - 1 / num_members) ** 2) + np.sum(intercepts**2)
    return -np.log(softmax(logits)[np.arange(n), targets]).sum() + penalty / 2 * away


@pytest.mark.parametrize("penalty", [0.5, 5.0, 500.0])
@pytest.mark.parametrize("seed", range(3))
def test_stacking_agrees_with_a_general_optimiser(penalty, seed):
    members, targets = draw(3, 60, 3, seed, noise=[0.3, 1.0, 6.0])
    start = np.array([1 / 3] * 3 + [0.0] * 3)
    best = minimize(
        stacking_loss,
        start,
        args=(np.maximum(members, FLOOR), targets, penalty),
        method="SLSQP",
        bounds=[(0, None)] * 3 + [(None, None)] * 3,
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    found = fit_stacking(members, targets, penalty)
    np.testing.assert_allclose([*found.weights, *found.intercepts], best.x, atol=1e-4)


def test_weights_of_stacking_are_not_below_0():
    members, targets = draw(2, 300, 2, noise=[0.5, 0.5])
    members[1] = members[1, :, ::-1]  # says the opposite
    weights = fit_stacking(members, targets, 1.0).weights
    assert weights[1] == 0.0
    assert weights[0] > 0.5


@few
@given(**sizes, penalty=st.sampled_from([0.1, 1.0, 100.0]))
def test_intercepts_sum_to_0(num_members, n, num_classes, seed, penalty):
    members, targets = draw(num_members, n, num_classes, seed)
    assert sum(fit_stacking(members, targets, penalty).intercepts) == pytest.approx(0, abs=1e-9)


def test_stacking_with_a_large_penalty_is_the_geometric_mean():
    members, targets = draw(4, 100)
    stacked, mean = fit_stacking(members, targets, 1e12), fit("geometric_mean", members, targets)
    np.testing.assert_allclose(stacked.apply(members), mean.apply(members), atol=1e-7)


def test_stacking_mends_members_that_are_too_sure_and_favour_a_class():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 3))
    targets = (softmax(logits).cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    members = np.stack([softmax(3 * logits + [1, 0, 0])] * 2)
    stacked = fit_stacking(members, targets, 0.1)
    assert sum(stacked.weights) == pytest.approx(1 / 3, abs=0.03)
    np.testing.assert_allclose(stacked.apply(members), softmax(logits), atol=0.05)


def test_the_penalty_is_chosen_on_groups_that_are_not_cut():
    """Labels drawn by lot: what is learned of a group helps with its other images alone."""
    rng = np.random.default_rng(0)
    members = softmax(rng.normal(0, 2, (3, 25, 2)))
    targets = rng.integers(2, size=25)
    repeated, labels = np.repeat(members, 20, axis=1), np.repeat(targets, 20)
    groups = np.repeat([f"patient {number}" for number in range(25)], 20)
    kept = choose_penalty(repeated, labels, groups, seed=0)
    cut = choose_penalty(repeated, labels, np.arange(500), seed=0)
    assert kept > cut
    order = rng.permutation(500)
    shuffled = repeated[:, order], labels[order], groups[order].tolist()
    assert choose_penalty(*shuffled, seed=0) == kept


def test_many_images_choose_a_weak_penalty_and_few_a_strong_one():
    members, targets = draw(3, 1500, 3, noise=[0.1, 4.0, 4.0])
    assert choose_penalty(members, targets, np.arange(1500), seed=0) <= 10
    assert choose_penalty(members, targets, ["one patient"] * 1500, seed=0) == PENALTIES[0]
    assert choose_penalty(members[:, :1], targets[:1], ["a"], seed=0) == PENALTIES[0]


def test_every_image_is_held_out_once(monkeypatch):
    members, targets = draw(2, 23, 3)
    groups = [f"g{n // 2}" for n in range(23)]
    fitted_on, applied_to = [], []

    class Spy(Ensemble):
        def apply(self, members):
            applied_to.append(members[0, :, 0].tolist())
            return super().apply(members)

    def spy(rest, rest_targets, penalty):
        fitted_on.append(rest[0, :, 0].tolist())
        found = fit_stacking(rest, rest_targets, penalty)
        return Spy("stacking", found.weights, found.intercepts)

    monkeypatch.setattr(ensembling, "fit_stacking", spy)
    choose_penalty(members, targets, groups, seed=0)
    images = members[0, :, 0].tolist()
    folds = applied_to[:: len(PENALTIES)]
    assert len(folds) == ensembling.NUM_FOLDS
    assert sorted(itertools.chain(*folds)) == sorted(images)
    for fitted, held_out in zip(fitted_on, applied_to, strict=True):
        assert sorted(fitted + held_out) == sorted(images)
        inside = {groups[images.index(image)] for image in held_out}
        assert inside.isdisjoint(groups[images.index(image)] for image in fitted)
    for seed, same in ((0, True), (1, False)):
        applied_to.clear()
        choose_penalty(members, targets, groups, seed)
        assert (applied_to[:: len(PENALTIES)] == folds) == same


def test_fit_ensemble_stacks_with_the_penalty_that_it_chose():
    members, targets = draw(3, 80)
    groups = [f"g{n // 4}" for n in range(80)]
    penalty = choose_penalty(members, targets, groups, seed=5)
    expected = fit_stacking(members, targets, penalty)
    assert fit_ensemble("stacking", members, targets, groups, seed=5) == expected
    assert fit_ensemble("weighted", members, targets, groups, 5) == fit_weighted(members, targets)
    assert fit_ensemble("greedy", members, targets, groups, 5) == fit_greedy(members, targets)


# Understanding.


def name_classes(rows, num_classes=3):
    """Members that name the given classes."""
    return np.eye(num_classes)[np.array(rows)] * 0.7 + 0.3 / num_classes


def test_diversity_by_hand():
    members = name_classes([[0, 1, 2, 0], [0, 1, 1, 1], [0, 2, 1, 0]])
    targets = np.array([0, 1, 2, 0])  # wrong: none; the last two; the second and third
    np.testing.assert_array_equal(
        disagreement(members), [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    )
    nan = np.nan
    np.testing.assert_array_equal(
        error_correlation(members, targets), [[nan, nan, nan], [nan, 1, 0], [nan, 0, 1]]
    )


def test_members_that_err_on_the_same_images_or_on_the_others():
    targets = np.array([0, 0, 0, 1, 1])
    members = name_classes([[0, 1, 1, 1, 1], [0, 2, 1, 1, 1], [1, 0, 0, 2, 0], [1, 1, 2, 0, 0]])
    correlation = error_correlation(members, targets)
    assert correlation[0, 1] == 1.0  # though they name different classes
    assert correlation[0, 2] == -1.0
    assert np.isnan(correlation[3]).all()  # it makes nothing but mistakes


@few
@given(**sizes)
def test_diversity_agrees_with_plain_loops(num_members, n, num_classes, seed):
    members, targets = draw(num_members, n, num_classes, seed)
    named = members.argmax(axis=2)
    differ = disagreement(members)
    correlation = error_correlation(members, targets)
    for a, b in itertools.product(range(num_members), repeat=2):
        pairs = list(zip(named[a], named[b], targets, strict=True))
        assert differ[a, b] == pytest.approx(np.mean([x != y for x, y, _ in pairs]))
        wrong = [[float(x != t) for x, _, t in pairs], [float(y != t) for _, y, t in pairs]]
        if min(np.std(wrong, axis=1)) == 0:
            assert np.isnan(correlation[a, b])
        else:
            assert correlation[a, b] == pytest.approx(np.corrcoef(wrong)[0, 1], abs=1e-12)


def test_leave_one_out_by_hand():
    members = np.array([[[1.0, 0.0]], [[0.5, 0.5]], [[0.0, 1.0]]])
    weighted = leave_one_out(Ensemble("weighted", (0.5, 0.25, 0.25)), members)
    np.testing.assert_allclose(weighted[:, 0, 0], [0.25, 2 / 3, (0.5 + 0.125) / 0.75])
    # Without the only member that counts, the others count the same.
    greedy = leave_one_out(Ensemble("greedy", (0.0, 1.0, 0.0)), members)
    np.testing.assert_allclose(greedy[:, 0, 0], [0.5, 0.5, 0.5])
    greedy = leave_one_out(Ensemble("greedy", (1.0, 0.0, 0.0)), members)
    np.testing.assert_allclose(greedy[:, 0, 0], [0.25, 1.0, 1.0])


def test_leave_one_out_of_stacking_keeps_the_sum_of_the_weights_and_the_intercepts():
    members, _ = draw(3, 10)
    intercepts = (0.3, -0.1, -0.2)
    without = leave_one_out(Ensemble("stacking", (1.0, 0.5, 0.5), intercepts), members)
    logs = np.log(np.maximum(members, FLOOR))
    np.testing.assert_allclose(without[0], softmax(logs[1] + logs[2] + intercepts))
    np.testing.assert_allclose(without[1], softmax((4 * logs[0] + 2 * logs[2]) / 3 + intercepts))
    # The others have no weight: equal ones of the same sum.
    without = leave_one_out(Ensemble("stacking", (1.5, 0.0, 0.0), intercepts), members)
    np.testing.assert_allclose(without[0], softmax(0.75 * (logs[1] + logs[2]) + intercepts))
    # Nobody has: the intercepts alone.
    without = leave_one_out(Ensemble("stacking", (0.0, 0.0, 0.0), intercepts), members)
    np.testing.assert_allclose(without, np.tile(softmax(np.array(intercepts)), (3, 10, 1)))


@pytest.mark.parametrize("method", UNFITTED)
def test_leaving_one_out_of_equals_is_the_ensemble_of_the_others(method):
    members, targets = draw(4, 20)
    without = leave_one_out(fit(method, members, targets), members)
    assert without.shape == members.shape
    for position in range(4):
        others = np.delete(members, position, axis=0)
        np.testing.assert_allclose(without[position], fit(method, others, targets).apply(others))


@pytest.mark.parametrize("method", LINEAR)
def test_of_two_members_the_other_is_left(method):
    members, _ = draw(2, 10)
    weights = (0.5, 0.5) if method == "mean" else (0.7, 0.3)
    without = leave_one_out(Ensemble(method, weights), members)
    np.testing.assert_allclose(without, members[::-1], atol=1e-12)


# What cannot be used.

GOOD = {"method": "weighted", "weights": [0.5, 0.5], "intercepts": []}
NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "meen"},
            "unknown ensemble method 'meen'; did you mean 'mean'?",
        ),
        (
            {"weights": [1.0]},
            "the weights of an ensemble are [1.0]; pass one for each of at least two members, none "
            "below 0.",
        ),
        (
            {"weights": [1.5, -0.5]},
            "the weights of an ensemble are [1.5, -0.5]; pass one for each of at least two "
            "members, none below 0.",
        ),
        (
            {"weights": [0.5, NAN]},
            "the weights of an ensemble are [0.5, nan]; pass a list of finite numbers.",
        ),
        (
            {"weights": ["0.5", 0.5]},
            "the weights of an ensemble are ['0.5', 0.5]; pass a list of finite numbers.",
        ),
        ({"weights": 1}, "the weights of an ensemble are 1; pass a list of finite numbers."),
        (
            {"intercepts": None},
            "the intercepts of an ensemble are None; pass a list of finite numbers.",
        ),
        (
            {"weights": [0.5, 0.25]},
            "the weights of the ensemble 'weighted' sum to 0.750; pass weights that sum to 1.",
        ),
        (
            {"method": "vote", "weights": [0.75, 0.25]},
            "the weights of the ensemble 'vote' are [0.75, 0.25], but its members all count the "
            "same; pass equal weights, or the method 'weighted'.",
        ),
        (
            {"method": "stacking"},
            "the ensemble 'stacking' has 0 intercepts; pass one per class for 'stacking', and none "
            "for any other method.",
        ),
        (
            {"method": "greedy", "intercepts": [0.0, 0.0]},
            "the ensemble 'greedy' has 2 intercepts; pass one per class for 'stacking', and none "
            "for any other method.",
        ),
        (
            {"method": "stacking", "intercepts": [0.5, float("inf")]},
            "the intercepts of an ensemble are [0.5, inf]; pass a list of finite numbers.",
        ),
    ],
)
def test_entries_that_cannot_be_applied(changes, message):
    assert ensemble_from_dict({**GOOD, "note": "ignored"}) == Ensemble("weighted", (0.5, 0.5))
    with pytest.raises(InputError) as caught:
        ensemble_from_dict({**GOOD, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize("name", GOOD)
def test_missing_entries(name):
    with pytest.raises(InputError, match="None"):
        ensemble_from_dict({key: value for key, value in GOOD.items() if key != name})


def all_calls(members, targets):
    """Everything that takes members."""
    yield from (lambda m=method: fit(m, members, targets) for method in METHODS)
    yield lambda: choose_penalty(members, targets, np.arange(len(targets)), seed=0)
    yield lambda: disagreement(members)
    yield lambda: error_correlation(members, targets)
    yield lambda: Ensemble("mean", (0.5, 0.5)).apply(members)
    yield lambda: leave_one_out(Ensemble("mean", (0.5, 0.5)), members)


@pytest.mark.parametrize("shape", [(4, 2), (1, 4, 2), (2, 4, 1), (0,), (2, 4, 2, 1)])
def test_shapes_that_are_no_ensemble(shape):
    for call in all_calls(np.ones(shape), np.zeros(4, dtype=int)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == (
            f"the members' probabilities have shape {shape}; pass (num_members, n, num_classes) "
            "with at least two members and two classes."
        )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([2.0, 3.0], "sum to 5.000, the smallest being 2.000"),
        ([1.2, -0.2], "sum to 1.000, the smallest being -0.200"),
        ([NAN, 0.5], "sum to nan, the smallest being nan"),
    ],
)
def test_rows_that_are_no_probabilities(row, said):
    members = np.full((2, 4, 2), 0.5)
    members[1, 2] = row
    for call in all_calls(members, np.zeros(4, dtype=int)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == (
            "the probabilities of each member and image must be at least 0 and sum to 1, but those "
            f"of member 1 for image 2 {said}; pass probabilities, not logits."
        )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            [0, 1, 0],
            "the targets are int64 of shape (3,) for 4 images; pass the position of the true "
            "class, a whole number, of each.",
        ),
        (
            [0.0, 1.0, 0.0, 1.0],
            "the targets are float64 of shape (4,) for 4 images; pass the position of the true "
            "class, a whole number, of each.",
        ),
        (
            [0, 1, 2, 0],
            "the targets go from 0 to 2, but there are 2 classes; pass positions from 0 to 1.",
        ),
        (
            [0, 1, -1, 0],
            "the targets go from -1 to 1, but there are 2 classes; pass positions from 0 to 1.",
        ),
    ],
)
def test_targets_that_do_not_fit(targets, message):
    members, targets = np.full((2, 4, 2), 0.5), np.array(targets)
    for call in (
        *(lambda m=method: fit(m, members, targets) for method in FITTED),
        lambda: choose_penalty(members, targets, np.arange(4), seed=0),
        lambda: error_correlation(members, targets),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == message


def test_no_images():
    members, targets = np.full((2, 0, 2), 0.5), np.array([], dtype=int)
    for call in (
        *(lambda m=method: fit(m, members, targets) for method in FITTED),
        lambda: disagreement(members),
        lambda: error_correlation(members, targets),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == (
            "there are no images; pass the members' probabilities for at least one."
        )


def test_members_or_classes_of_another_ensemble():
    members, _ = draw(3, 5, 3)
    for call in (Ensemble.apply, leave_one_out):
        with pytest.raises(InputError) as caught:
            call(Ensemble("weighted", (0.5, 0.5)), members)
        assert str(caught.value) == (
            "the ensemble has 2 members, but the probabilities are of 3; pass those of its own "
            "members, in their order."
        )
        with pytest.raises(InputError) as caught:
            call(Ensemble("stacking", (1.0, 1.0, 1.0), (0.5, -0.5)), members)
        assert str(caught.value) == (
            "the ensemble knows 2 classes, but the probabilities are of 3; pass those of the "
            "classes it was fitted on."
        )


def test_settings_that_cannot_be_used():
    members, targets = draw(2, 4)
    for call, message in (
        (
            lambda: fit("average", members, targets),
            f"unknown ensemble method 'average'; choose one of {sorted(METHODS)}.",
        ),
        (
            lambda: fit_weighted(members, targets, -1.0),
            "pseudo_images is -1.0; pass a number of at least 0.",
        ),
        (lambda: fit_greedy(members, targets, 0), "num_rounds is 0; pass at least 1."),
        (lambda: fit_stacking(members, targets, 0.0), "penalty is 0.0; pass a number above 0."),
        (lambda: fit_stacking(members, targets, NAN), "penalty is nan; pass a number above 0."),
        (
            lambda: choose_penalty(members, targets, ["a"], seed=0),
            "1 groups and 4 images; pass the group of each image.",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == message


def test_without_a_member_of_no_weight_nothing_changes_by_a_bit():
    rng = np.random.default_rng(5)
    powers = np.exp(rng.normal(size=(3, 40, 4)))
    members = powers / powers.sum(axis=2, keepdims=True)
    ensemble = Ensemble("greedy", (0.3, 0.0, 0.7))
    without = leave_one_out(ensemble, members)
    np.testing.assert_array_equal(without[1], ensemble.apply(members))
    assert np.abs(without[0] - without[1]).max() > 0.01
