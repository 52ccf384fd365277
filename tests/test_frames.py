import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe import frames
from cvpipe.errors import InputError
from cvpipe.files import write_table

HARD_NAMES = [
    "0",
    "1",
    "1e5",
    "007",
    "NA",
    "nan",
    "None",
    "poppy",
    "",
    "größe ü",
    "a,b",
    'he said "no"',
    "'",
    "two\nlines",
    "old\rmac",
    "dos\r\nline",
    " spaces ",
    "tab\there",
    "#comment",
    "back\\slash",
    "p_a",
    "p_",
    "label",
    "image_id",
]
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)


def predictions_of(probabilities, class_names, labels=None, image_ids=None):
    n = len(probabilities)
    return frames.make_predictions(
        image_ids or [f"{i}.jpg" for i in range(n)],
        labels or [class_names[0]] * n,
        np.asarray(probabilities),
        class_names,
    )


def manifest_of(**columns):
    return pd.DataFrame(columns, dtype=str)


def test_every_class_name_survives_a_file(tmp_path):
    probabilities = np.full((len(HARD_NAMES), len(HARD_NAMES)), 1 / len(HARD_NAMES))
    table = predictions_of(probabilities, HARD_NAMES, labels=HARD_NAMES, image_ids=HARD_NAMES)
    write_table(tmp_path / "p.csv", table)
    read = frames.read_predictions(tmp_path / "p.csv")
    assert frames.predicted_class_names(read) == HARD_NAMES
    assert read["label"].tolist() == HARD_NAMES
    assert read["image_id"].tolist() == HARD_NAMES
    np.testing.assert_array_equal(frames.probabilities_of(read), probabilities)
    pd.testing.assert_frame_equal(read, table)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, names), min_size=1, max_size=4, unique_by=lambda row: row[0]))
def test_any_text_survives_a_file(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any" / "m.csv"
    image_ids, labels = zip(*sorted(rows), strict=True)
    manifest = manifest_of(image_id=image_ids, label=labels, group=labels, p_value=labels)
    write_table(path, manifest)
    read = frames.read_manifest(path)
    assert list(read) == ["image_id", "label", "group", "p_value"]
    assert read.to_numpy().tolist() == manifest.to_numpy().tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 1.0, allow_subnormal=True), min_size=1, max_size=8))
def test_probabilities_survive_a_file_bit_for_bit(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "bits" / "p.csv"
    values = [*values, 5e-324, 2.2250738585072014e-308 / 3, 0.1 + 0.2, np.nextafter(1.0, 0.0)]
    table = predictions_of([[v, 1.0 - v] for v in values], ["a", "b"])
    write_table(path, table)
    read = frames.read_predictions(path)
    # Compared as bytes, because 0.0 == -0.0.
    assert [struct.pack("d", v) for v in read["p_a"]] == [struct.pack("d", v) for v in values]


def test_manifest_may_have_further_columns_of_any_name():
    manifest = manifest_of(image_id=["a"], label=["x"], group=["g"], p_value=["0.05"])
    assert frames.check_manifest(manifest) is manifest


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image_id": ["a"], "p_label": ["b"]},
            r"a manifest needs the columns \['label', 'group'\]; it has \['image_id', 'p_label'\]",
        ),
        (
            {"image_id": ["a", "b", "b"], "label": list("xyz"), "group": list("xyz")},
            "image_id must be unique, but 'b' appears more than once; keep one row per image",
        ),
        (
            {"image_id": ["b", "a"], "label": list("xy"), "group": list("xy")},
            "a manifest must be sorted by image_id",
        ),
    ],
)
def test_manifest_errors(columns, message):
    with pytest.raises(InputError, match=message):
        frames.check_manifest(manifest_of(**columns))


def test_manifest_is_sorted_as_python_sorts(tmp_path):
    image_ids = sorted(
        ["a/10.jpg", "a/9.jpg", "B/1.jpg", "ä/1.jpg", "a.jpg", "a 1.jpg", "\U0001f33b"]
    )
    frames.check_manifest(manifest_of(image_id=image_ids, label=image_ids, group=image_ids))


def test_class_names_and_targets():
    assert frames.class_names_of(["b", "10", "9", "B", "b"]) == ["10", "9", "B", "b"]
    targets = frames.targets_of(pd.Series(["b", "a", "b"]), ["b", "c", "a"])
    assert targets.dtype == np.int32
    assert targets.tolist() == [0, 2, 0]
    with pytest.raises(InputError, match=r"label 'x' is not one of the classes \['a', 'b'\]"):
        frames.targets_of(["a", "z", "x"], ["a", "b"])


def test_make_predictions():
    table = predictions_of([[0.25, 0.75]], ["b", "p_a"], labels=[""])
    assert list(table) == ["image_id", "label", "p_b", "p_p_a"]
    assert frames.probability_columns(table) == ["p_b", "p_p_a"]
    assert frames.predicted_class_names(table) == ["b", "p_a"]
    assert frames.probabilities_of(table).dtype == np.float64
    assert table["label"].tolist() == [""]
    assert predictions_of(np.array([[0.5, 0.5]], np.float32), ["a", "b"])["p_a"].dtype == np.float64


@pytest.mark.parametrize(
    ("image_ids", "labels", "num_rows"), [("abc", "xx", 3), ("ab", "xx", 3), ("abc", "xxx", 2)]
)
def test_make_predictions_needs_equal_numbers(image_ids, labels, num_rows):
    counts = f"{len(image_ids)}, {len(labels)} and {num_rows}"
    with pytest.raises(InputError, match=f"as many image_ids, labels and rows .* got {counts}"):
        frames.make_predictions(image_ids, labels, np.full((num_rows, 2), 0.5), ["x", "y"])


@pytest.mark.parametrize("missing", [["label"], ["image_id"], ["p_a", "p_b"]])
def test_predictions_lack_a_column(missing):
    table = predictions_of([[0.5, 0.5]], ["a", "b"]).drop(columns=missing)
    with pytest.raises(InputError, match=r"need the columns image_id, label and p_<class> .* has "):
        frames.check_predictions(table)


def test_predictions_repeat_an_image():
    with pytest.raises(InputError, match="must be predicted once, but 'x' appears more than once"):
        predictions_of([[0.5, 0.5]] * 2, ["a", "b"], image_ids=["x", "x"])


@pytest.mark.parametrize(
    "row",
    [
        [3.0, 2.0],
        [1.5, -0.5],
        [np.nan, 1.0],
        [np.inf, 0.0],
        [np.inf, -np.inf],
        [0.5, 0.5002],
        [0.5, 0.4998],
    ],
)
def test_predictions_that_are_no_probabilities(row):
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(InputError, match=r"non-negative and sum to 1, but image '1.jpg' has \["),
    ):
        predictions_of([[0.5, 0.5], row], ["a", "b"])


def test_predictions_error_names_the_numbers():
    with pytest.raises(InputError) as caught:
        predictions_of([[3.0, 2.0]], ["a", "b"])
    assert str(caught.value) == (
        "each row of predictions must be non-negative and sum to 1, but image '0.jpg' has "
        "[3.0, 2.0], which sums to 5.000; pass probabilities, not logits."
    )


def test_rounding_of_float32_is_no_error():
    predictions_of([[0.5, 0.50009], [0.5, 0.49991]], ["a", "b"])


def test_predicted_labels():
    table = predictions_of([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [0.1, 0.2, 0.7]], ["10", "9", "NA"])
    assert frames.predicted_labels(table).tolist() == ["10", "9", "NA"]
    assert frames.predicted_labels(table.iloc[:0]).tolist() == []


def test_match_rows_shuffled():
    rng = np.random.default_rng(0)
    values = rng.dirichlet([1, 1], size=20)
    table = predictions_of(values, ["a", "b"], labels=list("ab") * 10)
    shuffled = table.iloc[rng.permutation(20)].reset_index(drop=True)
    assert shuffled["image_id"].tolist() != table["image_id"].tolist()
    pd.testing.assert_frame_equal(frames.match_rows(table, shuffled), table)
    empty = table.iloc[:0]
    assert frames.match_rows(empty, empty).empty


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            predictions_of([[0.5, 0.5]] * 2, ["b", "a"], labels=["a", "b"]),
            r"different classes cannot be matched: \['a', 'b'\] and \['b', 'a'\]",
        ),
        (
            predictions_of([[0.5, 0.5]], ["a", "b"]),
            "differ in 1 image.s., first '1.jpg'; predict the same split with every contender",
        ),
        (
            predictions_of([[0.5, 0.5]] * 3, ["a", "b"]),
            "differ in 1 image.s., first '2.jpg'",
        ),
        (
            predictions_of([[0.5, 0.5]] * 2, ["a", "b"], image_ids=["0.jpg", "00.jpg"]),
            "differ in 2 image.s., first '00.jpg'",
        ),
        (
            predictions_of([[0.5, 0.5]] * 2, ["a", "b"], labels=["b", "a"]),
            "disagree about the true labels of the same images",
        ),
    ],
)
def test_match_rows_errors(other, message):
    reference = predictions_of([[0.5, 0.5]] * 2, ["a", "b"], labels=["a", "b"])
    with pytest.raises(InputError, match=message):
        frames.match_rows(reference, other)


def test_reading_checks(tmp_path):
    (tmp_path / "m.csv").write_text("image_id,label,group\nb,x,b\na,x,a\n")
    with pytest.raises(InputError, match="sorted"):
        frames.read_manifest(tmp_path / "m.csv")
    (tmp_path / "p.csv").write_text("image_id,label,p_a\nb,x,0.5\n")
    with pytest.raises(InputError, match=r"sums to 0\.500"):
        frames.read_predictions(tmp_path / "p.csv")
