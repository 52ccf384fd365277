import numpy as np
import pandas as pd
import pytest

from cvpipe.evaluation.intervals import clustered_wilson_interval, wilson_interval
from cvpipe.evaluation.metrics import calibration_gaps
from cvpipe.evaluation.reliability import reliability


def table(confidences, right):
    labels = ["b" if is_right else "a" for is_right in right]
    ids = [f"{i}.png" for i in range(len(labels))]
    values = np.asarray(confidences)
    return pd.DataFrame({"image_id": ids, "label": labels, "p_a": 1 - values, "p_b": values})


def test_bins_by_hand():
    # Bins of width 1/15: .9 and .92 lie in the 14th (to .9333), .95 in the 15th, .6 in the 9th.
    predictions = table([0.95, 0.9, 0.6, 0.92], [True, True, False, False])
    groups = {f"{i}.png": str(i) for i in range(4)}
    bins = reliability(predictions, groups)
    np.testing.assert_allclose(bins["confidence"], [0.6, 0.91, 0.95])
    assert bins["accuracy"].tolist() == [0.0, 0.5, 1.0]
    assert bins["n"].tolist() == [1, 2, 1]
    assert (bins["low"][1], bins["high"][1]) == wilson_interval(1, 2)


def test_the_images_of_a_group_count_as_fewer():
    predictions = table([0.95, 0.96, 0.97], [True, True, True])
    bins = reliability(predictions, dict.fromkeys(predictions["image_id"], "one patient"))
    assert bins["n"].tolist() == [3]
    right, group = np.full(3, True), np.zeros(3, dtype=int)
    assert bins["low"][0] == clustered_wilson_interval(right, group)[0]
    assert bins["low"][0] < wilson_interval(3, 3)[0] / 2


def test_the_bins_make_up_the_calibration_error():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1.0, 200)
    predictions = table(confidences, rng.random(200) < confidences**2)
    bins = reliability(predictions, {i: i for i in predictions["image_id"]})
    error = ((bins["confidence"] - bins["accuracy"]).abs() * bins["n"]).sum() / 200
    targets = (predictions["label"] == "b").to_numpy(dtype=int)
    probabilities = predictions[["p_a", "p_b"]].to_numpy()
    assert error == pytest.approx(np.abs(calibration_gaps(targets, probabilities)).sum())
    assert bins["n"].sum() == 200
