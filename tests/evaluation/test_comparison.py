import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from cvpipe.errors import InputError
from cvpipe.evaluation import comparison
from cvpipe.evaluation.auc import auc_difference
from cvpipe.evaluation.comparison import choose, compare_predictions, holm_adjust
from cvpipe.evaluation.intervals import wilson_interval
from cvpipe.evaluation.metrics import METRICS
from cvpipe.frames import make_predictions, probabilities_of, targets_of

CLASSES = ["0", "NA", "poppy"]


def random_tables(seed, skills, n=80, classes=CLASSES):
    """One table per skill, named a, b, c, ..., on the same images."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(classes), n)
    shared = rng.normal(size=(n, len(classes)))
    tables = {}
    for name, skill in zip("abcdef", skills, strict=False):
        logits = shared + 0.7 * rng.normal(size=shared.shape)
        logits[np.arange(n), targets] += skill
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        ids = [f"{index:04}.jpg" for index in range(n)]
        tables[name] = make_predictions(ids, [classes[t] for t in targets], probabilities, classes)
    return tables


def two_class_table(labels, second):
    second = np.asarray(second, dtype=float)
    ids = [f"{index:03}.jpg" for index in range(len(labels))]
    return make_predictions(ids, labels, np.column_stack([1 - second, second]), ["a", "b"])


def own_groups(tables):
    return {name: name for name in next(iter(tables.values()))["image_id"]}


def row(result, metric, contender="b"):
    found = result[(result["metric"] == metric) & (result["contender"] == contender)]
    assert len(found) == 1
    return found.iloc[0]


def test_columns_rows_and_differences():
    tables = random_tables(0, [1, 1.5, 0.5])
    result = compare_predictions("b", tables, own_groups(tables), 0, 100)
    assert list(result) == [
        *("contender", "reference", "metric", "difference", "low", "high", "p_value"),
        *("p_adjusted", "verdict", "only_contender_right", "only_reference_right", "n"),
        *("detectable", "no_worse"),
    ]
    keys = list(itertools.product("ac", ["accuracy", "log_loss", "macro_f1", "roc_auc"]))
    assert list(zip(result["contender"], result["metric"], strict=True)) == keys
    assert (result["reference"] == "b").all()
    assert (result["n"] == 80).all()
    assert (
        (result["low"] <= result["difference"]) & (result["difference"] <= result["high"])
    ).all()
    targets = targets_of(tables["a"]["label"], CLASSES)
    for _, found in result.iterrows():
        function = METRICS[found["metric"]].function
        ours = function(targets, probabilities_of(tables[found["contender"]]))
        theirs = function(targets, probabilities_of(tables["b"]))
        assert found["difference"] == pytest.approx(float(ours - theirs))


def test_mcnemar_and_discordant_counts_by_hand():
    # Nine images of class b: the reference is right on the first 2, the contender on all but
    # the first; 1 against 7 discordant, p = 2 (1 + 8) / 2^8.
    reference = two_class_table(["b"] * 9, [0.9] * 2 + [0.1] * 7)
    contender = two_class_table(["b"] * 9, [0.1] + [0.9] * 8)
    tables = {"a": reference, "b": contender}
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 200), "accuracy")
    assert found["difference"] == pytest.approx(6 / 9)
    assert (found["only_contender_right"], found["only_reference_right"]) == (7, 1)
    assert found["p_value"] == pytest.approx(18 / 256)
    assert found["verdict"] == "cannot be told apart"
    other = row(compare_predictions("a", tables, own_groups(tables), 0, 200), "log_loss")
    assert pd.isna(other["only_contender_right"])
    assert pd.isna(other["only_reference_right"])


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_agrees_with_statsmodels(seed):
    tables = random_tables(seed, [1, 1.4])
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 50), "accuracy")
    discordant = [found["only_contender_right"], found["only_reference_right"]]
    assert found["p_value"] == pytest.approx(
        mcnemar([[0, discordant[0]], [discordant[1], 0]], exact=True).pvalue
    )


def test_permutation_p_values_agree_with_full_enumeration():
    tables = random_tables(1, [0.8, 1.4], n=20)
    groups = {name: str(index // 2) for index, name in enumerate(tables["a"]["image_id"])}
    result = compare_predictions("a", tables, groups, 0, 50)
    targets = targets_of(tables["a"]["label"], CLASSES)
    pair = np.stack([probabilities_of(tables["a"]), probabilities_of(tables["b"])])
    for name in ("accuracy", "log_loss", "macro_f1"):
        function = METRICS[name].function
        differences = []
        for swap in itertools.product([False, True], repeat=10):
            mask = np.repeat(swap, 2)[:, None]
            first, second = np.where(mask, pair[::-1], pair)
            differences.append(abs(float(function(targets, second) - function(targets, first))))
        exact = np.mean(np.array(differences) >= differences[0] - 1e-12)
        assert 0.003 < exact < 0.9
        # 9,999 random swaps: a standard error of at most 0.005.
        assert row(result, name)["p_value"] == pytest.approx(exact, abs=0.015), name


def test_no_permutation_p_value_is_zero():
    tables = random_tables(2, [0, 6])
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 50), "log_loss")
    assert found["p_value"] == 1 / 10_000
    assert found["verdict"] == "better"


def test_verdicts_speak_of_the_contender():
    tables = random_tables(3, [1, 4, -2, 1])
    result = compare_predictions("a", tables, own_groups(tables), 0, 200)
    for metric in ("accuracy", "log_loss", "macro_f1"):
        assert row(result, metric, "b")["verdict"] == "better"
        assert row(result, metric, "c")["verdict"] == "worse"
        assert row(result, metric, "d")["verdict"] == "cannot be told apart"
    better = row(result, "log_loss", "b")
    assert better["high"] < 0
    assert row(result, "accuracy", "b")["low"] > 0


def test_a_contender_does_not_depend_on_the_others_but_for_holm():
    tables = random_tables(4, [1, 1.3, 1.6])
    groups = own_groups(tables)
    alone = compare_predictions("a", {k: tables[k] for k in "ac"}, groups, 0, 100)
    both = compare_predictions("a", tables, groups, 0, 100)
    both_c = both[both["contender"] == "c"].reset_index(drop=True)
    same = ["difference", "low", "high", "p_value"]
    pd.testing.assert_frame_equal(alone[same], both_c[same], check_exact=True)
    assert (alone["p_adjusted"] == alone["p_value"]).all()
    for _, rows in both.groupby("metric"):
        expected = multipletests(rows["p_value"], method="holm")[1]
        assert rows["p_adjusted"].to_numpy() == pytest.approx(expected)


def test_the_adjusted_p_value_decides():
    # 6 discordant images, all for the contender: p = 2 / 2^6 = .031, twice that after Holm.
    reference = two_class_table(["b"] * 20, [0.1] * 6 + [0.9] * 14)
    contender = two_class_table(["b"] * 20, [0.9] * 20)
    tables = {"a": reference, "b": contender}
    groups = own_groups(tables)
    assert row(compare_predictions("a", tables, groups, 0, 50), "accuracy")["verdict"] == "better"
    found = row(compare_predictions("a", tables | {"c": contender}, groups, 0, 50), "accuracy")
    assert found["p_value"] == pytest.approx(1 / 32)
    assert found["p_adjusted"] == pytest.approx(1 / 16)
    assert found["verdict"] == "cannot be told apart"
    assert found["low"] > 0  # the interval is not corrected


def test_equal_predictions():
    tables = random_tables(5, [1])
    tables["b"] = tables["a"].sample(frac=1, random_state=0)
    result = compare_predictions("a", tables, own_groups(tables), 0, 100)
    assert (result[["difference", "low", "high"]] == 0).all(axis=None)
    assert (result[["p_value", "p_adjusted"]] == 1).all(axis=None)
    assert (result["verdict"] == "cannot be told apart").all()
    assert row(result, "accuracy")[["only_contender_right", "only_reference_right"]].sum() == 0


def test_no_discordant_image_leaves_room_for_a_difference():
    tables = {
        "a": two_class_table(["a", "b"] * 10, [0.1, 0.9] * 10),
        "b": two_class_table(["a", "b"] * 10, [0.2, 0.8] * 10),
    }
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 100), "accuracy")
    slack = wilson_interval(0, 20)[1]
    assert (found["low"], found["high"]) == pytest.approx((-slack, slack))
    assert (found["difference"], found["p_value"]) == (0, 1)
    # Always right against always wrong: the difference cannot exceed 1.
    wrong = two_class_table(["a", "b"] * 10, [0.9, 0.1] * 10)
    tables = {"a": wrong, "b": tables["b"]}
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 100), "accuracy")
    assert (found["low"], found["high"]) == pytest.approx((1 - slack, 1))
    tables = {"a": tables["b"], "b": wrong}
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 100), "accuracy")
    assert (found["low"], found["high"]) == pytest.approx((-1, slack - 1))


def test_one_image_and_one_group():
    tables = {"a": two_class_table(["b"], [0.1]), "b": two_class_table(["b"], [0.9])}
    result = compare_predictions("a", tables, own_groups(tables), 0, 20)
    assert (result["p_value"] == 1).all()
    tables = random_tables(6, [0, 3], n=20)
    groups = dict.fromkeys(tables["a"]["image_id"], "one patient")
    result = compare_predictions("a", tables, groups, 0, 20)
    assert (result["p_value"] == 1).all()
    assert (result["low"] < 0).any()
    assert (result["verdict"] == "cannot be told apart").all()


def test_order_of_rows_and_seed():
    tables = random_tables(7, [1, 1.5], n=40)
    groups = {name: str(index // 3) for index, name in enumerate(tables["a"]["image_id"])}
    expected = compare_predictions("a", tables, groups, 3, 50)
    shuffled = {
        name: table.sample(frac=1, random_state=len(name)) for name, table in tables.items()
    }
    result = compare_predictions("a", shuffled, pd.Series(groups), 3, 50)
    pd.testing.assert_frame_equal(result, expected, check_exact=True)
    assert not expected.equals(compare_predictions("a", tables, groups, 4, 50))


def test_groups_that_agree_widen_the_interval_and_raise_p():
    tables = random_tables(8, [1, 1.8], n=50)
    copies = {
        name: pd.concat([table.assign(image_id=table["image_id"] + c) for c in "abcd"])
        for name, table in tables.items()
    }
    single = compare_predictions("a", copies, own_groups(copies), 0, 400)
    groups = {name: name[:-1] for name in copies["a"]["image_id"]}
    clustered = compare_predictions("a", copies, groups, 0, 400)
    ratio = (clustered["high"] - clustered["low"]) / (single["high"] - single["low"])
    assert ratio.to_numpy() == pytest.approx(2, rel=0.2)
    assert (clustered["p_value"] > single["p_value"]).all()
    # Four equal copies of each image are what the images are on their own.
    plain = compare_predictions("a", tables, own_groups(tables), 0, 400)
    assert clustered["p_value"].to_numpy() == pytest.approx(plain["p_value"].to_numpy(), abs=0.02)


def test_blocks_do_not_change_the_p_values(monkeypatch):
    tables = random_tables(9, [1, 1.3], n=30)
    groups = {name: str(index // 2) for index, name in enumerate(tables["a"]["image_id"])}
    expected = compare_predictions("a", tables, groups, 0, 20)
    monkeypatch.setattr("cvpipe.evaluation.intervals.BLOCK_VALUES", 7000)
    result = compare_predictions("a", tables, groups, 0, 20)
    # Blocks take their random bits afresh, so p-values agree within their own error.
    np.testing.assert_allclose(result["p_value"], expected["p_value"], atol=0.02)
    assert (result["p_value"] <= 1).all()


@pytest.mark.parametrize("group_size", [1, 2])
def test_equally_good_contenders_are_rarely_told_apart(monkeypatch, group_size):
    monkeypatch.setattr(comparison, "NUM_PERMUTATIONS", 199)
    found = dict.fromkeys(comparison.COMPARED_METRICS, 0)
    for seed in range(300):
        tables = random_tables(1000 + seed, [1, 1], n=60 // group_size)
        tables = {
            name: pd.concat(
                [table.assign(image_id=table["image_id"] + str(c)) for c in range(group_size)]
            )
            for name, table in tables.items()
        }
        groups = {name: name[:-1] for name in tables["a"]["image_id"]}
        result = compare_predictions("a", tables, groups, seed, 2)
        for metric in found:
            verdict = result.loc[result["metric"] == metric, "verdict"].item()
            found[metric] += verdict != "cannot be told apart"
    assert max(found.values()) / 300 <= 0.08, found
    assert found["log_loss"] / 300 >= 0.015, found  # nor does the test never fire


def test_costs_of_mistakes_are_compared():
    tables = random_tables(4, [1, 3])
    ids = tables["a"]["image_id"]
    groups = {name: str(index // 2) for index, name in enumerate(ids)}
    # Where every mistake costs 1, the cost is what the accuracy lacks.
    result = compare_predictions("a", tables, groups, 0, 100, 1 - np.eye(3))
    assert result["metric"].tolist() == ["accuracy", "log_loss", "macro_f1", "cost", "roc_auc"]
    accuracy, cost = row(result, "accuracy"), row(result, "cost")
    assert cost["difference"] == pytest.approx(-accuracy["difference"])
    assert (cost["low"], cost["high"]) == pytest.approx((-accuracy["high"], -accuracy["low"]))
    assert cost["p_value"] == accuracy["p_value"]
    assert cost["verdict"] == accuracy["verdict"] == "better"
    assert pd.isna(cost["only_contender_right"])
    # All else is as it is without costs.
    without = compare_predictions("a", tables, groups, 0, 100)
    all_else = result[result["metric"] != "cost"].reset_index(drop=True)
    pd.testing.assert_frame_equal(all_else, without)


def test_costs_decide_where_accuracy_does_not():
    # Both miss four of twelve, but not the same kind.
    labels = ["a"] * 6 + ["b"] * 6
    careful = two_class_table(labels, [0.1] * 2 + [0.9] * 4 + [0.9] * 6)
    careless = two_class_table(labels, [0.1] * 6 + [0.9] * 2 + [0.1] * 4)
    tables = {"careless": careless, "careful": careful}
    costs = np.array([[0.0, 1.0], [9.0, 0.0]])
    result = compare_predictions("careless", tables, own_groups(tables), 0, 100, costs)
    assert row(result, "accuracy", "careful")["difference"] == 0
    found = row(result, "cost", "careful")
    assert found["difference"] == pytest.approx(4 * (1 - 9) / 12)
    assert found["low"] < found["difference"] < found["high"]
    assert choose(tables, "cost", costs) == "careful"
    assert choose(tables, "cost", costs.T) == "careless"
    # Never a mistake apart: what could go unseen is a share of the largest cost.
    sure = {"a": two_class_table(labels, [0.2] * 6 + [0.8] * 6),
            "b": two_class_table(labels, [0.1] * 6 + [0.9] * 6)}  # fmt: skip
    found = row(compare_predictions("a", sure, own_groups(sure), 0, 50, costs), "cost")
    slack = 9 * wilson_interval(0, 12)[1]
    assert (found["low"], found["high"]) == pytest.approx((-slack, slack))


# Areas under the ROC curve.


@pytest.mark.parametrize("group_size", [1, 2])
def test_areas_have_the_interval_and_the_test_of_delong(group_size):
    tables = random_tables(21, [1, 1.3, 3])
    ids = tables["a"]["image_id"]
    groups = {name: str(index // group_size) for index, name in enumerate(ids)}
    result = compare_predictions("a", tables, groups, 0, 20)
    targets = targets_of(tables["a"]["label"], CLASSES)
    for name in "bc":
        difference, error = auc_difference(
            targets,
            *(probabilities_of(tables[key]) for key in (name, "a")),
            np.arange(len(ids)) // group_size,
        )
        found = row(result, "roc_auc", name)
        assert found["difference"] == pytest.approx(difference)
        # t with as many degrees as the rarest class has groups, less one.
        rarest = min(
            len(np.unique(np.array(list(groups.values()))[targets == k])) for k in (0, 1, 2)
        )
        quantile = student.ppf(0.975, rarest - 1)
        ends = [difference - quantile * error, difference + quantile * error]
        assert [found["low"], found["high"]] == pytest.approx(ends)
        assert found["p_value"] == pytest.approx(
            2 * student.sf(abs(difference) / error, rarest - 1)
        )
        # Two contenders: the strictest level is 2.5 %.
        wider = quantile / 1.959964
        assert found["detectable"] == pytest.approx((2.241403 + 0.841621) * error * wider)
        assert found["no_worse"] == ""
    assert row(result, "roc_auc", "b")["verdict"] == "cannot be told apart"
    assert row(result, "roc_auc", "c")["verdict"] == "better"


def test_areas_without_spread():
    # Both order all images right: the rarest class has 4 groups, not 12.
    labels = ["a"] * 8 + ["b"] * 4
    tables = {
        "a": two_class_table(labels, [0.1] * 8 + [0.9] * 4),
        "b": two_class_table(labels, [0.2] * 8 + [0.8] * 4),
        "flat": two_class_table(labels, [0.5] * 12),
    }
    result = compare_predictions("a", tables, own_groups(tables), 0, 50)
    slack = wilson_interval(0, 4)[1]
    found = row(result, "roc_auc", "b")
    assert (found["low"], found["high"]) == pytest.approx((-slack, slack))
    assert found["p_value"] == 1
    # A perfect area against a half: no spread on either side, but 12 images are not certain.
    found = row(result, "roc_auc", "flat")
    assert found["difference"] == -0.5
    assert found["p_value"] == pytest.approx(2 * norm.sf(0.5 / (slack / 1.959964)))
    assert (found["low"], found["high"]) == pytest.approx((-0.5 - slack, slack - 0.5))


def test_areas_that_cannot_be_known():
    # One image of class b: all is possible. None: there is no area.
    one = {
        "a": two_class_table(["a", "b", *"aaaaaa"], [0.4, 0.3, *[0.5] * 6]),
        "b": two_class_table(["a", "b", *"aaaaaa"], [0.4, 0.9, *[0.5] * 6]),
    }
    found = row(compare_predictions("a", one, own_groups(one), 0, 50), "roc_auc")
    assert (found["low"], found["high"], found["p_value"]) == (-1, 1, 1)
    assert np.isnan(found["detectable"])
    none = {name: table.assign(label="a") for name, table in one.items()}
    found = row(compare_predictions("a", none, own_groups(none), 0, 50), "roc_auc")
    assert found[["difference", "low", "high", "detectable"]].isna().all()
    assert found["p_value"] == found["p_adjusted"] == 1
    assert found["verdict"] == "cannot be told apart"


# What could have been shown.


def test_detectable_is_in_standard_errors_of_the_resamples():
    tables = random_tables(22, [1, 1.2, 1.4, 0.8], n=300)
    result = compare_predictions("a", tables, own_groups(tables), 0, 4000)
    right = {
        name: probabilities_of(t).argmax(axis=1) == targets_of(t["label"], CLASSES)
        for name, t in tables.items()
    }
    for name in "bcd":
        change = right[name].astype(float) - right["a"]
        error = change.std() / np.sqrt(300)
        # Three contenders: the strictest level is 5 / 3 %.
        expected = (norm.isf(0.05 / 6) + norm.isf(0.2)) * error
        assert row(result, "accuracy", name)["detectable"] == pytest.approx(expected, rel=0.05)
    alone = compare_predictions("a", {k: tables[k] for k in "ab"}, own_groups(tables), 0, 4000)
    ratio = row(alone, "accuracy")["detectable"] / row(result, "accuracy")["detectable"]
    expected = (norm.isf(0.025) + norm.isf(0.2)) / (norm.isf(0.05 / 6) + norm.isf(0.2))
    assert ratio == pytest.approx(expected)


def test_differences_of_the_detectable_size_are_shown_in_four_of_five_samples(monkeypatch):
    monkeypatch.setattr(comparison, "NUM_PERMUTATIONS", 99)
    rng = np.random.default_rng(3)
    sizes, found = [], []
    # One of 100 images is lost, 1 + 10 of 100 gained: a difference of 10 points.
    for _ in range(150):
        kinds = rng.choice(3, size=100, p=[0.88, 0.11, 0.01])
        tables = {
            "a": two_class_table(["b"] * 100, np.where(kinds == 1, 0.1, 0.9)),
            "b": two_class_table(["b"] * 100, np.where(kinds == 2, 0.1, 0.9)),
        }
        accuracy = row(compare_predictions("a", tables, own_groups(tables), 0, 60), "accuracy")
        sizes.append(accuracy["detectable"])
        found.append(accuracy["verdict"] == "better")
    assert np.median(sizes) == pytest.approx(0.092, abs=0.01)
    assert np.mean(found) == pytest.approx(0.85, abs=0.1)


def test_detectable_where_the_contenders_agree():
    tables = {
        "a": two_class_table(["a", "b"] * 20, [0.1, 0.9] * 20),
        "b": two_class_table(["a", "b"] * 20, [0.2, 0.8] * 20),
    }
    # Never a mistake apart: the half-width of the interval counts as 1.96 standard errors.
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 50), "accuracy")
    expected = wilson_interval(0, 40)[1] * (1.959964 + 0.841621) / 1.959964
    assert found["detectable"] == pytest.approx(expected)
    # The same answers: there is nothing that could have been shown.
    same = compare_predictions("a", tables | {"b": tables["a"]}, own_groups(tables), 0, 50)
    assert same["detectable"].isna().all()


def test_nothing_can_be_shown_by_few_groups():
    tables = random_tables(23, [1, 1.5], n=60)

    def detectable(num_groups):
        ids = tables["a"]["image_id"]
        groups = {name: str(index % num_groups) for index, name in enumerate(ids)}
        result = compare_predictions("a", tables, groups, 0, 200)
        return row(result, "accuracy")["detectable"]

    # Two of the 32 swaps of 5 groups are as extreme as can be: p is .06 at best.
    assert np.isnan(detectable(5))
    assert 0 < detectable(6) < 1
    # More than all there is.
    three = {
        "a": two_class_table(["b"] * 6, [0.1, 0.9] * 3),
        "b": two_class_table(["b"] * 6, [0.9, 0.1] * 3),
    }
    found = row(compare_predictions("a", three, own_groups(three), 0, 200), "accuracy")
    assert np.isnan(found["detectable"])


# No worse.


def test_no_worse_is_shown_by_the_end_of_the_interval():
    tables = random_tables(24, [2, 1.9, 3.5], n=400)
    groups = own_groups(tables)
    result = compare_predictions("a", tables, groups, 0, 300)
    low = row(result, "accuracy", "b")["low"]
    assert low < -0.02
    assert row(result, "accuracy", "b")["no_worse"] == "not shown"
    assert row(result, "accuracy", "c")["no_worse"] == "shown"
    assert (result.loc[result["metric"] != "accuracy", "no_worse"] == "").all()
    # Exactly at the margin the loss is at most the margin.
    for margin, expected in ((-low, "shown"), (-low - 1e-6, "not shown"), (1, "shown")):
        table = compare_predictions("a", tables, groups, 0, 300, margin=margin)
        assert row(table, "accuracy", "b")["no_worse"] == expected
    # The verdict is another question: better or worse, nothing else changes.
    pd.testing.assert_frame_equal(table.drop(columns="no_worse"), result.drop(columns="no_worse"))


def test_identical_answers_are_no_worse_but_few_images_do_not_show_it():
    tables = {
        "a": two_class_table(["b"] * 20, [0.9] * 20),
        "b": two_class_table(["b"] * 20, [0.8] * 20),
        "same": two_class_table(["b"] * 20, [0.9] * 20),
    }
    result = compare_predictions("a", tables, own_groups(tables), 0, 50)
    assert row(result, "accuracy", "same")["no_worse"] == "shown"
    assert row(result, "accuracy", "b")["no_worse"] == "not shown"


def test_nothing_to_compare_with():
    tables = random_tables(0, [1])
    result = compare_predictions("a", tables, own_groups(tables), 0)
    assert result.empty
    assert list(result) == comparison.COLUMNS


@pytest.mark.parametrize("seed", range(4))
def test_holm_agrees_with_statsmodels(seed):
    p_values = np.round(np.random.default_rng(seed).uniform(0, 0.3, 8), 2)  # with ties
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm_adjust(p_values), expected)
    np.testing.assert_allclose(holm_adjust(pd.Series(p_values)), expected)


def test_holm_by_hand():
    assert holm_adjust(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjust(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm_adjust(np.array([])).tolist() == []


def test_choose():
    tables = random_tables(10, [0.5, 3, 1])
    for name in METRICS:
        if name != "ece":
            assert choose(tables, name) == "b", name
    # Calibration may well favour another: whatever the metric's own values say.
    targets = targets_of(tables["a"]["label"], CLASSES)
    values = {
        k: float(METRICS["ece"].function(targets, probabilities_of(t))) for k, t in tables.items()
    }
    assert choose(tables, "ece") == min(values, key=lambda name: values[name])


def test_choose_takes_the_first_on_a_tie_and_matches_by_name():
    tables = random_tables(11, [1])
    shuffled = tables["a"].sample(frac=1, random_state=1)
    for select_by in ("accuracy", "log_loss"):
        assert choose({"z": tables["a"], "a": shuffled}, select_by) == "z"
        assert choose({"a": shuffled, "z": tables["a"]}, select_by) == "a"


def test_error_messages():
    tables = random_tables(12, [1, 1], n=6)
    groups = own_groups(tables)
    with pytest.raises(InputError, match=r"unknown contender 'c'; choose one of \['a', 'b'\]"):
        compare_predictions("c", tables, groups, 0)
    with pytest.raises(InputError, match="differ in 1 image"):
        compare_predictions("a", tables | {"b": tables["b"].iloc[1:]}, groups, 0)
    with pytest.raises(InputError, match="disagree about the true labels"):
        compare_predictions("a", tables | {"b": tables["b"].assign(label="")}, groups, 0)
    twice = pd.concat([tables["b"], tables["b"]])
    with pytest.raises(InputError, match="predicted once"):
        compare_predictions("a", tables | {"b": twice}, groups, 0)
    with pytest.raises(InputError, match="6 of 6 images have no label"):
        compare_predictions("a", tables | {"a": tables["a"].assign(label="")}, groups, 0)
    with pytest.raises(InputError, match="6 of 6 images have no group"):
        compare_predictions("a", tables, {}, 0)
    with pytest.raises(InputError, match="0 resamples"):
        compare_predictions("a", tables, groups, 0, num_resamples=0)
    with pytest.raises(InputError, match=r"margin 2 is no share in \[0, 1\]; pass 0.02 for 2 po"):
        compare_predictions("a", tables, groups, 0, 50, margin=2)
    with pytest.raises(InputError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        choose(tables, "acuracy")
    with pytest.raises(InputError, match="unknown metric 'cost'; choose one of"):
        choose(tables, "cost")
    with pytest.raises(InputError, match=r"shape \(2, 2\) do not fit 3 classes"):
        compare_predictions("a", tables, groups, 0, 50, 1 - np.eye(2))
    with pytest.raises(InputError, match=r"shape \(2, 2\) do not fit 3 classes"):
        choose(tables, "accuracy", 1 - np.eye(2))
    with pytest.raises(InputError, match="no contender to choose from; pass at least one"):
        choose({}, "log_loss")
    with pytest.raises(InputError, match="differ in 1 image"):
        choose(tables | {"b": tables["b"].iloc[1:]}, "log_loss")
    one_class = {name: table.assign(label="NA") for name, table in tables.items()}
    with pytest.raises(
        InputError, match=r"'roc_auc' cannot be computed on these 6 images.*\['NA'\]; choose by"
    ):
        choose(one_class, "roc_auc")


def test_few_images_do_not_show_that_nothing_was_lost():
    """One image more and none less of 30: up to one in nine could be lost elsewhere."""
    labels = ["a", "b"] * 15
    reference = two_class_table(labels, [0.2, 0.8] * 14 + [0.2, 0.2])
    contender = two_class_table(labels, [0.2, 0.8] * 15)
    tables = {"a": reference, "b": contender}
    found = row(compare_predictions("a", tables, own_groups(tables), 0, 500), "accuracy")
    assert (found["low"], found["only_contender_right"], found["only_reference_right"]) == (0, 1, 0)
    assert found["no_worse"] == "not shown"
    wide = compare_predictions("a", tables, own_groups(tables), 0, 500, margin=0.09)
    assert row(wide, "accuracy")["no_worse"] == "shown"


@pytest.mark.parametrize("num_positives", [2, 3, 5])
def test_two_equal_areas_of_a_rare_class_are_rarely_told_apart(num_positives):
    """With a normal test it was one in five (two positives) to one in twelve (five)."""
    rng = np.random.default_rng(0)
    labels = ["b"] * num_positives + ["a"] * 60
    truth = np.array([1.0] * num_positives + [0.0] * 60)
    told = 0
    for seed in range(150):
        shared = truth + rng.normal(size=len(truth))
        scores = [1 / (1 + np.exp(-(shared + rng.normal(size=len(truth))))) for _ in "ab"]
        tables = dict(zip("ab", (two_class_table(labels, s) for s in scores), strict=True))
        found = row(compare_predictions("a", tables, own_groups(tables), seed, 2), "roc_auc")
        told += found["p_value"] <= 0.05
    assert told / 150 <= 0.075
