import math
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.evaluation.intervals import clustered_wilson_interval, wilson_interval
from cvpipe.evaluation.metrics import CLASS_METRICS, METRICS, cost, metrics_for
from cvpipe.evaluation.scoring import groups_of, score_predictions, sort_labelled
from cvpipe.frames import make_predictions

CLASSES = ["0", "NA", "poppy"]


def random_predictions(seed, n=40, classes=CLASSES, skill=1.5):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), targets] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    image_ids = [f"dir ü/{index:04}.jpg" for index in range(n)]
    return make_predictions(image_ids, [classes[t] for t in targets], probabilities, classes)


def one_hot_predictions(labels, predicted, classes=CLASSES):
    probabilities = np.eye(len(classes))[[classes.index(name) for name in predicted]]
    return make_predictions(
        [f"{i}.jpg" for i in range(len(labels))], labels, probabilities, classes
    )


def own_groups(predictions):
    return {name: name for name in predictions["image_id"]}


def row(table, metric, label=""):
    found = table[(table["metric"] == metric) & (table["label"] == label)]
    assert len(found) == 1
    return found.iloc[0]


def ends(table, metric, label=""):
    found = row(table, metric, label)
    return found["low"], found["high"]


def test_rows_and_columns_in_order():
    table = score_predictions(random_predictions(0), own_groups(random_predictions(0)), 0, 50)
    assert list(table) == ["metric", "label", "value", "low", "high", "n"]
    per_class = [(name, label) for name in CLASS_METRICS for label in CLASSES]
    expected = [(name, "") for name in METRICS] + per_class
    assert list(zip(table["metric"], table["label"], strict=True)) == expected
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_values_counts_and_wilson_by_hand():
    predictions = one_hot_predictions(
        ["0", "0", "NA", "NA", "NA", "poppy"], ["0", "NA", "NA", "NA", "poppy", "poppy"]
    )
    table = score_predictions(predictions, own_groups(predictions), 0, 50)
    accuracy = row(table, "accuracy")
    assert (accuracy["value"], accuracy["n"]) == (4 / 6, 6)
    assert ends(table, "accuracy") == pytest.approx(wilson_interval(4, 6))
    assert row(table, "precision", "NA")[["value", "n"]].tolist() == [2 / 3, 3]
    assert row(table, "precision", "poppy")[["value", "n"]].tolist() == [1 / 2, 2]
    assert row(table, "recall", "0")[["value", "n"]].tolist() == [1 / 2, 2]
    assert row(table, "recall", "poppy")[["value", "n"]].tolist() == [1, 1]
    assert row(table, "f1", "poppy")[["value", "n"]].tolist() == [2 / 3, 1]
    assert row(table, "specificity", "poppy")[["value", "n"]].tolist() == [4 / 5, 5]
    assert ends(table, "specificity", "poppy") == pytest.approx(wilson_interval(4, 5))
    assert ends(table, "recall", "poppy") == pytest.approx(wilson_interval(1, 1))
    assert ends(table, "precision", "NA") == pytest.approx(wilson_interval(2, 3))


def test_a_perfect_classifier_is_not_certain_to_stay_perfect():
    labels = ["0"] * 10 + ["NA"] * 5 + ["poppy"] * 20
    predictions = one_hot_predictions(labels, labels)
    table = score_predictions(predictions, own_groups(predictions), 0, 100)
    assert ends(table, "accuracy") == pytest.approx(wilson_interval(35, 35))
    assert ends(table, "recall", "NA") == pytest.approx(wilson_interval(5, 5))
    for name in ("balanced_accuracy", "macro_f1", "roc_auc", "pr_auc"):
        assert ends(table, name) == pytest.approx(wilson_interval(5, 5)), name
    assert ends(table, "specificity", "NA") == pytest.approx(wilson_interval(30, 30))
    # From -1 to 1: of two classes in equal numbers, kappa is twice the accuracy minus 1.
    for name in ("matthews", "kappa"):
        assert ends(table, name) == pytest.approx((2 * wilson_interval(5, 5)[0] - 1, 1)), name
    missed = wilson_interval(0, 35)[1]
    assert ends(table, "brier") == pytest.approx((0, 2 * missed))
    assert ends(table, "log_loss") == pytest.approx((0, METRICS["log_loss"].upper * missed))
    assert ends(table, "ece") == pytest.approx((0, missed))

    # Seven groups of five images, a group holding one class: 2, 1 and 4 groups.
    groups = {f"{index}.jpg": f"patient {index // 5}" for index in range(35)}
    clustered = score_predictions(predictions, groups, 0, 100)
    of_groups = clustered_wilson_interval(np.full(35, True), np.arange(35) // 5)
    assert ends(clustered, "accuracy") == pytest.approx(of_groups)
    assert of_groups == pytest.approx(wilson_interval(7, 7), abs=0.03)
    of_poppy = clustered_wilson_interval(np.full(20, True), np.arange(20) // 5)
    assert ends(clustered, "recall", "poppy") == pytest.approx(of_poppy)
    assert ends(clustered, "f1", "0") == pytest.approx(wilson_interval(2, 2))
    assert ends(clustered, "roc_auc") == pytest.approx(wilson_interval(1, 1))


def test_a_constant_answer_has_figures_that_depend_on_the_mix_alone():
    labels = list("aabb") * 10
    even = np.full((40, 2), 0.5)
    names = [f"image {number:02}" for number in range(40)]
    predictions = make_predictions(names, labels, even, ["a", "b"])
    table = score_predictions(predictions, own_groups(predictions), 0, 200)
    # Whatever the mix, an even answer costs log 2 and has half of the classes right.
    assert ends(table, "log_loss") == pytest.approx((math.log(2), math.log(2)))
    assert ends(table, "balanced_accuracy") == pytest.approx((0.5, 0.5))
    # How often it is right does depend on the mix.
    low, high = ends(table, "accuracy")
    assert low < 0.4 < 0.6 < high
    # One group shows nothing of the mix.
    alone = score_predictions(predictions, dict.fromkeys(names, "one"), 0, 200)
    assert np.diff(ends(alone, "log_loss")) > 1


def test_a_collapsed_value_is_taken_as_a_share_of_its_largest():
    # Every image has the same loss, and yet the answers differ.
    probabilities = np.array([[0.3, 0.7], [0.7, 0.3]] * 2)
    predictions = make_predictions(list("uvwx"), list("abab"), probabilities, ["a", "b"])
    table = score_predictions(predictions, own_groups(predictions), 0, 50)
    largest = METRICS["log_loss"].upper
    low, high = wilson_interval(-4 * math.log(0.3) / largest, 4)
    assert ends(table, "log_loss") == pytest.approx((low * largest, high * largest))
    low, high = wilson_interval(4 * 0.98 / 2, 4)
    assert ends(table, "brier") == pytest.approx((2 * low, 2 * high))
    assert ends(table, "roc_auc") == pytest.approx(wilson_interval(0, 2))


def test_a_classifier_that_is_always_wrong_has_intervals_from_the_lower_end():
    labels = ["a"] * 6 + ["b"] * 9
    turned = [{"a": "b", "b": "a"}[name] for name in labels]
    predictions = one_hot_predictions(labels, turned, ["a", "b"])
    table = score_predictions(predictions, own_groups(predictions), 0, 100)
    missed = wilson_interval(0, 6)[1]
    assert row(table, "matthews")["value"] == -1
    assert ends(table, "matthews") == pytest.approx((-1, 2 * missed - 1))
    # Kappa reaches -1 only where the two classes are equally frequent.
    by_chance = 2 * 0.4 * 0.6
    assert row(table, "kappa")["value"] == pytest.approx(-by_chance / (1 - by_chance))
    assert -1 <= row(table, "kappa")["low"] < row(table, "kappa")["high"] < 0
    assert ends(table, "balanced_accuracy") == pytest.approx((0, missed))


def test_resamples_without_a_rare_class_do_not_widen_agreement():
    # One of 20 resamples lacks the class.
    labels = ["a"] * 57 + ["b"] * 3
    predictions = one_hot_predictions(labels, ["a"] * 56 + ["b"] * 4, ["a", "b"])
    table = score_predictions(predictions, own_groups(predictions), 0, 1000)
    for name in ("matthews", "kappa"):
        low, _ = ends(table, name)
        assert low > -0.3, name


def test_worse_than_chance_has_negative_intervals():
    predictions = random_predictions(11, n=200, skill=-1.5)
    table = score_predictions(predictions, own_groups(predictions), 0, 200)
    for name in ("matthews", "kappa"):
        low, high = ends(table, name)
        assert -1 <= low < row(table, name)["value"] < high < 0


def test_a_constant_answer_correlates_with_nothing():
    labels = list("aaab") * 10
    predictions = one_hot_predictions(labels, ["a"] * 40, ["a", "b"])
    table = score_predictions(predictions, own_groups(predictions), 0, 200)
    for name in ("matthews", "kappa"):
        assert row(table, name)[["value", "low", "high"]].tolist() == [0, 0, 0], name
    # Half the sum of the classes' shares.
    assert row(table, "pr_auc")[["value", "low", "high"]].tolist() == pytest.approx([0.5] * 3)


def test_the_k_most_probable_classes():
    classes = [f"class {number}" for number in range(6)]
    predictions = random_predictions(3, n=50, classes=classes)
    table = score_predictions(predictions, own_groups(predictions), 0, 50)
    probabilities = predictions.filter(regex="^p_").to_numpy()
    true = [classes.index(label) for label in predictions["label"]]
    places = (probabilities > probabilities[np.arange(50), true][:, None]).sum(axis=1)
    for k in (3, 5):
        hits = int((places < k).sum())
        assert row(table, f"top_{k}")[["value", "n"]].tolist() == [hits / 50, 50]
        assert ends(table, f"top_{k}") == pytest.approx(wilson_interval(hits, 50))
    five = score_predictions(random_predictions(3, classes=classes[:5]), own_groups(predictions), 0)
    assert "top_3" in set(five["metric"])
    assert "top_5" not in set(five["metric"])


COSTS = np.array([[0, 2, 2], [30, 0, 2], [1, 1, 0]], dtype=float)


def test_costs():
    predictions = one_hot_predictions(
        ["0", "0", "NA", "NA", "NA", "poppy"], ["0", "NA", "0", "NA", "poppy", "poppy"]
    )
    groups = own_groups(predictions)
    table = score_predictions(predictions, groups, 0, 200, COSTS)
    assert row(table, "cost")[["value", "n"]].tolist() == [(2 + 30 + 2) / 6, 6]
    low, high = ends(table, "cost")
    assert 0 <= low < 34 / 6 < high <= 30
    # All else is as it is without costs.
    without = score_predictions(predictions, groups, 0, 200)
    rest = table[table["metric"] != "cost"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, without, check_exact=True)
    # Without a mistake: as a share of the largest cost.
    perfect = one_hot_predictions(["0", "NA", "poppy"] * 4, ["0", "NA", "poppy"] * 4)
    found = score_predictions(perfect, own_groups(perfect), 0, 50, COSTS)
    assert ends(found, "cost") == pytest.approx((0, 30 * wilson_interval(0, 12)[1]))
    with pytest.raises(InputError, match=r"costs of shape \(2, 2\) do not fit 3 classes"):
        score_predictions(predictions, groups, 0, 50, COSTS[:2, :2])


def test_every_interval_holds_its_value():
    for seed in range(10):  # two resamples rarely lie on both sides
        predictions = random_predictions(seed)
        table = score_predictions(predictions, own_groups(predictions), seed, 2, COSTS)
        assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_the_calibration_error_of_a_calibrated_classifier_may_be_zero():
    rng = np.random.default_rng(0)
    second = rng.uniform(size=200)
    labels = [
        "ab"[int(draw < chance)] for draw, chance in zip(rng.uniform(size=200), second, strict=True)
    ]
    ids = [f"{index:03}" for index in range(200)]
    predictions = make_predictions(ids, labels, np.column_stack([1 - second, second]), ["a", "b"])
    found = row(score_predictions(predictions, own_groups(predictions), 0, 200), "ece")
    assert found["value"] > 0.03
    assert found["low"] < 0.005


def test_one_image():
    predictions = one_hot_predictions(["0"], ["NA"])
    table = score_predictions(predictions, own_groups(predictions), 0, 20)
    assert ends(table, "accuracy") == pytest.approx(wilson_interval(0, 1))
    assert row(table, "accuracy")["value"] == 0
    for name in ("roc_auc", "pr_auc", "matthews"):
        assert row(table, name)[["value", "low", "high"]].isna().all(), name
    assert row(table, "recall", "poppy")[["value", "low", "high"]].isna().all()
    assert row(table, "recall", "poppy")["n"] == 0
    assert row(table, "specificity", "0")[["value", "low", "high"]].isna().all()
    assert row(table, "specificity", "0")["n"] == 0
    assert row(table, "precision", "NA")[["value", "n"]].tolist() == [0, 1]


def test_a_class_missing_from_the_split():
    predictions = random_predictions(1, n=60)
    predictions = predictions[predictions["label"] != "NA"]
    table = score_predictions(predictions, own_groups(predictions), 0, 100)
    assert row(table, "recall", "NA")[["value", "low", "high"]].isna().all()
    overall = table[table["label"] == ""]
    assert overall[["value", "low", "high"]].notna().all(axis=None)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_the_rows_changes_nothing(seed):
    predictions = random_predictions(seed, n=25)
    groups = pd.Series(
        [f"g{index // 2}" for index in range(25)], index=predictions["image_id"], name="group"
    )
    expected = score_predictions(predictions, groups, seed, 50)
    shuffled = predictions.sample(frac=1, random_state=seed)
    other_groups = groups.sample(frac=1, random_state=seed + 1).to_dict()
    result = score_predictions(shuffled, other_groups, seed, 50)
    pd.testing.assert_frame_equal(result, expected, check_exact=True)
    # The names of the groups do not matter either.
    renamed = groups.map(lambda name: f"{9 - int(name[-1])}{name}")
    pd.testing.assert_frame_equal(
        score_predictions(predictions, renamed, seed, 50), expected, check_exact=True
    )


def test_the_seed_decides():
    predictions = random_predictions(2)
    groups = own_groups(predictions)
    first = score_predictions(predictions, groups, 0, 50)
    pd.testing.assert_frame_equal(first, score_predictions(predictions, groups, 0, 50))
    assert not first.equals(score_predictions(predictions, groups, 1, 50))


def test_groups_that_agree_widen_the_intervals():
    predictions = random_predictions(3, n=50, skill=1)
    copies = pd.concat([predictions.assign(image_id=predictions["image_id"] + c) for c in "abcd"])
    single = score_predictions(copies, own_groups(copies), 0, 400)
    groups = {name: name[:-1] for name in copies["image_id"]}
    clustered = score_predictions(copies, groups, 0, 400)
    pd.testing.assert_series_equal(single["value"], clustered["value"])
    ratio = (clustered["high"] - clustered["low"]) / (single["high"] - single["low"])
    # Four copies are worth one image: twice as wide. The calibration error's lower end is
    # cut off at 0, hence less.
    assert (ratio[clustered["metric"] != "ece"] > 1.6).all()
    assert ratio.median() == pytest.approx(2, rel=0.15)
    assert ratio[clustered["metric"] == "ece"].item() > 1.2


def test_images_of_other_classes_may_share_a_group_and_recall_stays_wilson():
    predictions = one_hot_predictions(["0", "NA", "0", "NA"], ["0", "NA", "NA", "NA"])
    groups = {"0.jpg": "a", "1.jpg": "a", "2.jpg": "b", "3.jpg": "b"}
    table = score_predictions(predictions, groups, 0, 50)
    assert ends(table, "recall", "0") == pytest.approx(wilson_interval(1, 2))
    assert ends(table, "accuracy") != pytest.approx(wilson_interval(3, 4))


def test_coverage_of_the_intervals():
    # Overlapping normal scores, sampled in groups of two that share label and noise.
    rng = np.random.default_rng(4)

    def draw(num_groups):
        targets = np.repeat(rng.integers(0, 2, num_groups), 2)
        scores = np.repeat(rng.normal(size=num_groups), 2) + 1.2 * targets
        scores += 0.5 * rng.normal(size=2 * num_groups)
        second = 1 / (1 + np.exp(-2 * (scores - 0.6)))
        return targets, np.column_stack([1 - second, second])

    population = draw(200_000)
    costs = np.array([[0.0, 1.0], [5.0, 0.0]])
    metrics = metrics_for(2, costs)
    truth = {name: float(metrics[name].function(*population)) for name in metrics}
    assert truth["cost"] == float(cost(*population, costs=costs))
    covered = dict.fromkeys(truth, 0)
    for seed in range(300):
        targets, probabilities = draw(60)
        ids = [f"{index:03}" for index in range(120)]
        predictions = make_predictions(ids, ["ab"[t] for t in targets], probabilities, ["a", "b"])
        groups = {name: str(index // 2) for index, name in enumerate(ids)}
        table = score_predictions(predictions, groups, seed, 200, costs)
        for row_ in table[table["label"] == ""].itertuples():
            covered[row_.metric] += row_.low <= truth[row_.metric] <= row_.high
    for name, count in covered.items():
        assert (0.87 if name == "ece" else 0.90) <= count / 300 <= 0.99, (name, count)


def test_groups_of():
    ids = pd.Series(["b", "a", "c"])
    assert groups_of(ids, {"a": "x", "b": "y", "c": "x", "d": "z"}).tolist() == [0, 1, 1]
    assert (
        groups_of(ids, types.MappingProxyType({"a": "x", "b": "x", "c": "x"})).tolist() == [0] * 3
    )
    assert groups_of(ids, pd.Series([7, 8, 8], index=["a", "b", "c"])).tolist() == [0, 1, 0]


def test_error_messages():
    predictions = random_predictions(5, n=4)
    groups = own_groups(predictions)
    first = predictions["image_id"].iloc[0]
    with pytest.raises(InputError, match=f"1 of 4 images have no label, first '{first}'; only"):
        score_predictions(predictions.assign(label=["", "0", "0", "0"]), groups, 0)
    with pytest.raises(InputError, match="2 of 4 images have no label"):
        sort_labelled(predictions.assign(label=[None, "0", math.nan, "0"]))
    with pytest.raises(InputError, match="no rows; score at least one"):
        score_predictions(predictions.iloc[:0], groups, 0)
    with pytest.raises(InputError, match="label 'rose' is not one of the classes"):
        score_predictions(predictions.assign(label="rose"), groups, 0)
    with pytest.raises(InputError, match="predicted once"):
        score_predictions(pd.concat([predictions, predictions]), groups, 0)
    with pytest.raises(InputError, match=f"1 of 4 images have no group, first '{first}'; pass"):
        score_predictions(predictions, {k: v for k, v in groups.items() if k != first}, 0)
    with pytest.raises(InputError, match=f"1 of 4 images have no group, first '{first}'"):
        score_predictions(predictions, groups | {first: ""}, 0)
    with pytest.raises(InputError, match="4 of 4 images have no group"):
        score_predictions(predictions, pd.Series(["a", "b", "c", "d"]), 0)
    with pytest.raises(InputError, match=f"the groups list '{first}' more than once; give"):
        score_predictions(predictions, pd.Series(["a", "b"], index=[first, first]), 0)
    with pytest.raises(InputError, match="0 resamples"):
        score_predictions(predictions, groups, 0, num_resamples=0)
