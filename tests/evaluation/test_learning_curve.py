import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from cvpipe.errors import InputError
from cvpipe.evaluation.intervals import clustered_wilson_interval, wilson_interval
from cvpipe.evaluation.learning_curve import (
    FORECAST_COLUMNS,
    fit_power_law,
    forecast_accuracy,
    score_curve,
    spread_of_draws,
)
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.frames import make_predictions

SIZES = np.array([50.0, 50, 100, 100, 200, 400])
IMAGES = [f"{number:04}" for number in range(600)]
ALONE = {name: name for name in IMAGES}


def predictions(answers) -> pd.DataFrame:
    """Make a table of two classes in which an answer of 1 is right and 0 is wrong."""
    answers = np.asarray(answers, dtype=float)
    images = IMAGES[: len(answers)]
    labels = ["a" if number % 2 else "b" for number in range(len(answers))]
    is_a = np.array([label == "a" for label in labels])
    p_a = np.where(is_a == (answers == 1), 0.8, 0.2)
    return make_predictions(images, labels, np.stack([p_a, 1 - p_a], axis=1), ["a", "b"])


def curve_of(accuracies, num_train, shares, num_test, rng):
    """Draw independent answers of fits with these accuracies."""
    fits = pd.DataFrame({"share": shares, "num_train": num_train})
    fits["draw"] = fits.groupby("share").cumcount().astype(str)
    tables = [predictions(rng.random(num_test) < accuracy) for accuracy in accuracies]
    return fits, tables


# The law.


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"), [(0.0, 0.9, 0.07), (0.1, 2.0, 0.5), (0.02, 8.0, 1.0)]
)
def test_a_curve_that_follows_the_law_gives_it_back(floor, scale, exponent):
    law = fit_power_law(SIZES, (floor + scale * SIZES**-exponent)[None])
    assert law.exponent.item() == exponent
    assert law.floor.item() == pytest.approx(floor, abs=1e-9)
    assert law.scale.item() == pytest.approx(scale)
    expected = floor + scale * np.array([800.0, 1600]) ** -exponent
    np.testing.assert_allclose(law.error_at(np.array([800, 1600]))[0], expected)


def test_the_fit_is_that_of_a_general_optimiser():
    """Started at many places, because the sum of squares is flat where sizes are few."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        errors = np.clip(0.1 + 0.8 * SIZES**-0.4 + rng.normal(0, 0.02, len(SIZES)), 0, 1)

        def residuals(parameters, errors=errors):
            floor, scale, exponent = parameters
            model = floor + scale * (SIZES / 400) ** -exponent
            return np.sqrt(SIZES / SIZES.sum()) * (errors - model)

        starts = itertools.product((0.0, 0.1), (0.05, 0.3), (0.05, 0.3, 0.9))
        bounds = ([0, 0, 0.01], [1, 1, 1])
        fits = [least_squares(residuals, start, bounds=bounds) for start in starts]
        best = min(2 * fit.cost for fit in fits)
        law = fit_power_law(SIZES, errors[None])
        mine = (SIZES / SIZES.sum() * (errors - law.error_at(SIZES)[0]) ** 2).sum()
        assert mine <= best * 1.01 + 1e-9  # the grid of exponents is that fine


def test_each_row_is_fitted_by_itself():
    errors = np.random.default_rng(1).uniform(0, 0.5, (20, len(SIZES)))
    together = fit_power_law(SIZES, errors)
    for row, error in enumerate(errors):
        alone = fit_power_law(SIZES, error[None])
        for name in ("floor", "scale", "exponent"):
            assert getattr(together, name)[row] == pytest.approx(getattr(alone, name).item())


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_law_is_possible_and_never_rises(errors):
    law = fit_power_law(SIZES, np.array([errors]))
    assert law.floor.item() >= 0
    assert law.scale.item() >= 0
    assert 0 < law.exponent.item() <= 1
    ahead = law.error_at(np.array([50.0, 400, 800, 1600]))[0]
    assert (np.diff(ahead) <= 1e-12).all()
    # With an exponent of 1 at most, twice the images halve the error at best.
    assert ahead[2] >= ahead[1] / 2 - 1e-12
    weighted_mean = SIZES @ errors / SIZES.sum()
    assert (SIZES * (errors - law.error_at(SIZES)[0]) ** 2).sum() <= (
        SIZES * (errors - weighted_mean) ** 2
    ).sum() + 1e-9


def test_errors_that_rise_have_no_slope_and_the_weighted_mean():
    law = fit_power_law(np.array([100, 200, 400]), np.array([[0.1, 0.2, 0.3]]))
    assert law.scale.item() == 0
    # (100 * .1 + 200 * .2 + 400 * .3) / 700
    assert law.floor.item() == pytest.approx(17 / 70)


def test_errors_that_fall_too_fast_have_the_best_curve_that_is_allowed():
    """Exponent 1 and floor 0: then the scale is the sum of y over the sum of 1 / n."""
    law = fit_power_law(np.array([100, 200, 400]), np.array([[0.4, 0.12, 0.03]]))
    assert (law.exponent.item(), law.floor.item()) == (1.0, 0.0)
    assert law.scale.item() == pytest.approx(0.55 / 0.0175)


def test_a_law_needs_three_sizes():
    with pytest.raises(InputError) as caught:
        fit_power_law(np.array([100, 100, 200]), np.zeros((1, 3)))
    assert str(caught.value) == (
        "a power law needs at least 3 different numbers of training images, but got [100, 200]; "
        "fit on more parts of train."
    )


# The spread of the draws.


def test_spread_by_hand():
    sizes = np.array([100, 100, 200, 200, 200, 400])
    shares = np.array([0.25, 0.25, 0.5, 0.5, 0.5, 1.0])
    accuracies = np.array([0.8, 0.84, 0.86, 0.88, 0.9, 0.1])
    # Squares .0008 and .0008, times 100 / .75 and 200 / .5, over 1 + 2 degrees of freedom.
    expected = np.sqrt((0.0008 * 100 / 0.75 + 0.0008 * 200 / 0.5) / 3)
    assert spread_of_draws(sizes, shares, accuracies) == pytest.approx(expected)


def test_spread_of_means_of_overlapping_parts():
    """For the mean of a sample it is the standard deviation of the values, whatever the shares."""
    rng = np.random.default_rng(2)
    shares = np.repeat([0.25, 0.5, 0.8], 3)
    variances = []
    for _ in range(1500):
        pool = rng.normal(0, 1, 80)
        means = [rng.permutation(pool)[: int(80 * share)].mean() for share in shares]
        variances.append(spread_of_draws(80 * shares, shares, np.array(means)) ** 2)
    assert np.mean(variances) == pytest.approx(1, rel=0.05)


def test_no_spread_without_a_second_draw():
    shares = np.array([0.25, 0.5, 1.0])
    assert spread_of_draws(100 * shares, shares, np.array([0.1, 0.5, 0.9])) == 0


# The measured points.


def test_points_by_hand():
    answers = np.zeros((3, 10))
    answers[0, :6] = answers[1, :8] = answers[2, :9] = 1
    fits = pd.DataFrame({"share": [1.0, 0.5, 0.5], "draw": [0, 0, 1], "num_train": [40, 19, 22]})
    # Tables may come in any order of images.
    tables = [predictions(answers[k]).sample(frac=1, random_state=k) for k in (2, 0, 1)]
    table = score_curve(fits, tables, ALONE, 0, 100)
    assert table[["share", "num_train", "draw", "n"]].to_numpy().tolist() == [
        [0.5, 19, "0", 10],
        [0.5, 22, "1", 10],
        [0.5, 20, "mean", 10],
        [1.0, 40, "0", 10],
        [1.0, 40, "mean", 10],
    ]
    np.testing.assert_allclose(table["accuracy"], [0.6, 0.8, 0.7, 0.9, 0.9])
    for row in table.drop(index=2).itertuples():
        assert (row.low, row.high) == pytest.approx(wilson_interval(10 * row.accuracy, 10))
    # The mean of two draws varies less than a share: some images are named rightly in one of them.
    mean, wilson = table.loc[2], wilson_interval(7, 10)
    assert wilson[0] < mean["low"] < 0.5 < 0.85 < mean["high"] < wilson[1]


def test_points_of_groups_have_the_interval_of_the_metrics():
    rng = np.random.default_rng(3)
    groups = {name: f"g{number // 6}" for number, name in enumerate(IMAGES)}
    fits = pd.DataFrame({"share": [1.0], "draw": ["0"], "num_train": [40]})
    table = predictions(np.repeat(rng.random(50) < 0.8, 6) ^ (rng.random(300) < 0.1))
    point = score_curve(fits, [table], groups, 7, 500).iloc[-1]
    scored = score_predictions(table, groups, 7, 500).set_index("metric").loc["accuracy"]
    assert [point["accuracy"], point["low"], point["high"]] == pytest.approx(
        scored[["value", "low", "high"]].tolist()
    )
    assert point["high"] - point["low"] > 1.3 * np.subtract(*wilson_interval(240, 300)[::-1])


def test_perfect_answers_of_groups_have_the_interval_of_their_number():
    groups = {name: f"g{number // 6}" for number, name in enumerate(IMAGES)}
    fits = pd.DataFrame({"share": [1.0], "draw": ["0"], "num_train": [40]})
    point = score_curve(fits, [predictions(np.ones(60))], groups, 0, 100).iloc[0]
    expected = clustered_wilson_interval(np.full(60, True), np.repeat(np.arange(10), 6))
    assert (point["low"], point["high"]) == pytest.approx(expected)


# The forecast.

SHARES = [0.125] * 3 + [0.25] * 3 + [0.5] * 3 + [1.0]


def test_a_forecast_follows_the_law():
    rng = np.random.default_rng(4)
    sizes = 800 * np.array(SHARES)
    fits, tables = curve_of(1 - 0.05 - 1.5 * sizes**-0.5, sizes, SHARES, 600, rng)
    table = forecast_accuracy(fits, tables, ALONE, 0, 400)
    assert list(table) == FORECAST_COLUMNS
    np.testing.assert_allclose(table["multiple"], 2 ** (np.arange(-12, 9) / 4))
    assert table["num_train"].tolist() == [round(800 * m) for m in table["multiple"]]
    assert (np.diff(table["accuracy"]) >= 0).all()
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert table["kind"].tolist() == ["fitted"] * 13 + ["forecast"] * 4 + ["extrapolated"] * 4
    twice = table.set_index("multiple").loc[2.0]
    assert twice["accuracy"] == pytest.approx(1 - 0.05 - 1.5 * 1600**-0.5, abs=0.02)
    errors = 1 - np.array([(t["p_a"] > 0.5).eq(t["label"] == "a").mean() for t in tables])
    law = fit_power_law(sizes, errors[None])
    assert twice["accuracy"] == pytest.approx(1 - law.error_at([1600]).item())
    # The gain starts at what was measured, not at the line.
    assert twice["gain"] == pytest.approx(twice["accuracy"] - (1 - errors[-1]))
    now_low, now_high = wilson_interval(600 * (1 - errors[-1]), 600)
    assert (table["high"] - table["low"]).min() > 0.9 * (now_high - now_low)
    pd.testing.assert_frame_equal(table, forecast_accuracy(fits, tables, ALONE, 0, 400))
    assert not table.equals(forecast_accuracy(fits, tables, ALONE, 1, 400))


def test_draws_that_scatter_widen_the_forecast():
    """By the luck of the fit to come, and by that of each fit that was measured."""
    sizes = 800 * np.array(SHARES)
    right = np.array([420, 420, 420, 450, 450, 450, 480, 480, 480, 510])
    scattered = right + np.array([-25, 0, 25] * 3 + [0])
    squares = []
    for numbers in (right, scattered):
        fits, _ = curve_of(numbers / 600, sizes, SHARES, 600, np.random.default_rng(0))
        tables = [predictions(np.arange(600) < number) for number in numbers]
        twice = forecast_accuracy(fits, tables, ALONE, 0, 400).set_index("multiple").loc[2.0]
        squares.append(((twice["gain_high"] - twice["gain_low"]) / 3.92) ** 2)
    variance = spread_of_draws(sizes, np.array(SHARES), scattered / 600) ** 2
    of_fit_to_come = variance / 1600
    assert squares[1] > 1.5 * (squares[0] + of_fit_to_come)


def test_groups_widen_the_forecast():
    rng = np.random.default_rng(5)
    sizes = 800 * np.array(SHARES)
    fits, tables = curve_of([0.8] * 10, sizes, SHARES, 600, rng)
    answers = np.repeat(rng.random((10, 60)) < 0.8, 10, axis=1)
    tables = [predictions(row) for row in answers]
    groups = {name: f"g{number // 10}" for number, name in enumerate(IMAGES)}
    alone, grouped = (
        forecast_accuracy(fits, tables, g, 0, 400).set_index("multiple").loc[2.0]
        for g in (ALONE, groups)
    )
    widths = [row["high"] - row["low"] for row in (alone, grouped)]
    assert widths[1] > 1.5 * widths[0]


def test_a_perfect_curve_is_not_surer_than_its_test_images():
    fits, tables = curve_of([1.0] * 10, 800 * np.array(SHARES), SHARES, 30, np.random.default_rng())
    table = forecast_accuracy(fits, tables, ALONE, 0, 100)
    low, high = wilson_interval(30, 30)
    assert set(table["accuracy"]) == {1.0}
    assert table["low"].to_numpy() == pytest.approx(low)
    assert set(table["high"]) == {high}
    assert table["gain_low"].to_numpy() == pytest.approx(low - 1)
    assert set(table["gain_high"]) == {0.0}


def test_the_interval_holds_the_accuracy_of_the_fit_to_come():
    """Simulated fits whose true accuracies scatter around a law, over 40 data sets."""
    rng = np.random.default_rng(6)
    sizes = np.append(800 * np.array(SHARES), 1600.0)
    truth = 0.93 - 1.2 * sizes**-0.5
    held = 0
    for _ in range(40):
        actual = truth + rng.normal(0, 0.3, len(sizes)) / np.sqrt(sizes)
        # Fits err on much the same images: one hardness per image, moved a little by each fit.
        hardness = rng.random(500)
        tables = [
            predictions(np.clip(hardness + rng.normal(0, 0.03, 500), 0, 1) < accuracy)
            for accuracy in actual[:-1]
        ]
        fits, _ = curve_of(actual[:-1], sizes[:-1], SHARES, 500, rng)
        row = forecast_accuracy(fits, tables, ALONE, 0, 100).set_index("multiple").loc[2.0]
        held += row["low"] <= actual[-1] <= row["high"]
    assert held >= 36


def test_forecasts_refuse_what_is_no_curve():
    rng = np.random.default_rng(7)
    fits, tables = curve_of([0.8] * 3, [25, 50, 100], [0.25, 0.5, 1.0], 20, rng)
    with pytest.raises(InputError, match=r"one table of predictions per fit, but got 3 fits and 2"):
        forecast_accuracy(fits, tables[:2], ALONE, 0)
    with pytest.raises(InputError, match=r"one table of predictions per fit, but got 0 fits and 0"):
        score_curve(fits[:0], [], ALONE, 0)
    with pytest.raises(InputError, match=r"at one fit on all of train, but 0 have share 1"):
        forecast_accuracy(fits.assign(share=[0.1, 0.25, 0.5]), tables, ALONE, 0)
    with pytest.raises(InputError, match=r"at one fit on all of train, but 2 have share 1"):
        forecast_accuracy(fits.assign(share=[0.1, 1.0, 1.0]), tables, ALONE, 0)
    with pytest.raises(InputError, match="at least 3 different numbers"):
        forecast_accuracy(fits[1:], tables[1:], ALONE, 0)
    with pytest.raises(InputError, match="differ in 1 image"):
        score_curve(fits, [*tables[:2], tables[2][1:]], ALONE, 0)
