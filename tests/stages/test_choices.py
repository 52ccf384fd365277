"""What is chosen for the images that a fingerprint tells of, and that each choice has a reason."""

import re
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.config import usable_cores, validate_config
from cvpipe.sections import SplitSection
from cvpipe.stages.choices import choose, white_level
from cvpipe.stages.fingerprint import Fingerprint, Similarity, Spread
from cvpipe.stages.pipeline_file import pipeline_text, raw_config

FINGERPRINT = Fingerprint(
    num_images=3000,
    class_images={"no": 1500, "yes": 1500},
    class_groups={"no": 1000, "yes": 1000},
    imbalance=1.0,
    width=Spread(300, 300, 300),
    height=Spread(300, 300, 300),
    elongation=Spread(1.0, 1.0, 1.0),
    small_fraction=0.0,
    grey_fraction=0.0,
    formats={"PNG": 3000},
    largest_value=0,
    num_groups=2000,
    groups_given=False,
    num_patients=0,
    grouped_fraction=0.3,
    largest_group=9,
    given_split={},
    columns={},
    test_images=600,
    test_groups=400,
    test_effective=300,
    similarity=None,
)


DIVIDED, GIVEN = SplitSection(), SplitSection(protocol="given")


def values_of(fingerprint, split=DIVIDED):
    """Choose for a fingerprint; give the config and the text of the file."""
    blocks = choose(fingerprint, "photos", "folders", split, threads=2)
    text = pipeline_text(blocks, ["a header"])
    assert tomllib.loads(text) == raw_config(blocks)
    return validate_config({"name": "x", **raw_config(blocks)}), text


def one_line(text):
    """Undo the line breaks of comments."""
    return text.replace("\n# ", " ")


def uncommented_keys(text):
    """Name the keys without a comment above; the block of a contender has one for all."""
    found, header, above = [], "", ""
    for line in text.splitlines():
        if line.startswith("["):
            header, has_reason = line, above.startswith("# ")
            if header == "[[contender]]" and not has_reason:
                found.append(header)
        elif re.match(r"\w+ = ", line) and header != "[[contender]]" and not above.startswith("# "):
            found.append(line)
        above = line
    return found


@pytest.mark.parametrize(
    ("largest", "white"),
    [(0, 65_535), (7, 255), (256, 511), (4095, 4095), (4096, 8191), (32_768, 65_535)],
)
def test_white_level(largest, white):
    assert white_level(largest) == white
    config, text = values_of(replace(FINGERPRINT, largest_value=largest))
    assert config.images.white_level == white
    assert ("white_level" in text) == (white < 65_535)


def test_sixteen_bits_say_how_dark_they_would_be():
    # 3,700 / 257 is 14.4, 32,000 / 257 is 124.5: dark, but far from black.
    for largest, grey in ((3700, "14"), (32_000, "125")):
        text = one_line(values_of(replace(FINGERPRINT, largest_value=largest))[1])
        assert f"values end at {largest:,}: " in text
        assert f"the brightest would be grey value {grey} of 255" in text


def test_only_long_images_are_padded():
    assert values_of(FINGERPRINT)[0].images.fit == "stretch"
    for high, fit in ((2.0, "stretch"), (2.1, "pad")):
        fingerprint = replace(FINGERPRINT, elongation=Spread(1.0, 1.5, high))
        assert values_of(fingerprint)[0].images.fit == fit


def test_a_rare_class_changes_what_is_selected_by():
    config, text = values_of(replace(FINGERPRINT, imbalance=10.0))
    assert config.evaluate.select_by == "balanced_accuracy"
    assert "largest to smallest class 10.0 to 1: every class counts the same" in one_line(text)
    assert values_of(replace(FINGERPRINT, imbalance=9.9))[0].evaluate.select_by == "log_loss"


@pytest.mark.parametrize(
    ("images", "groups", "protocol"),
    [(200, 100, "holdout"), (199, 100, "kfold"), (200, 99, "kfold")],
)
def test_few_test_images_ask_for_folds(images, groups, protocol):
    config, text = values_of(replace(FINGERPRINT, test_images=images, test_groups=groups))
    assert config.split.protocol == protocol
    assert f"A holdout's test: {images} images in {groups} groups; at 90 %" in one_line(text)


def test_a_careless_split_is_shown_where_it_can_flatter():
    config, text = values_of(FINGERPRINT)
    assert config.split.careless
    assert "30% of the images belong together with others" in one_line(text)
    assert not values_of(replace(FINGERPRINT, grouped_fraction=0.0))[0].split.careless


def test_columns_are_told_of():
    config, text = values_of(replace(FINGERPRINT, columns={"site": 2, "sex": 2}))
    assert config.evaluate.subgroups == ("site", "sex")
    assert "name it in by = [...]: 'site', 'sex'." in one_line(text)
    assert "by = [" not in values_of(FINGERPRINT)[1]


def test_patients_are_kept_together():
    config, text = values_of(replace(FINGERPRINT, num_patients=40))
    assert config.data.patient_groups
    assert "one of the 40 DICOM patients are never parted" in one_line(text)
    assert "patient_groups" not in values_of(replace(FINGERPRINT, num_patients=1))[1]


def test_a_given_split_with_val_needs_no_fraction():
    fingerprint = replace(FINGERPRINT, given_split={"train": 9, "val": 3, "test": 3})
    assert "val_fraction" not in values_of(fingerprint, GIVEN)[1]


def test_many_images_leave_out_what_grows_with_their_square():
    config, text = values_of(replace(FINGERPRINT, num_images=60_000))
    names = [contender.name for contender in config.contender]
    assert names == ["majority", "shortcut", "colour_softmax", "hog_svm", "linear_probe"]
    searches = {c.name: c.search for c in config.contender}
    assert searches["linear_probe"] == searches["hog_svm"] == "coarse"
    assert "60,000 images make the fine search" in text
    few = values_of(replace(FINGERPRINT, num_images=9_999))[0]
    assert len(few.contender) == 8
    assert {contender.search for contender in few.contender} == {"fine"}


@pytest.mark.parametrize(
    ("groups", "verdict", "advice"),
    [
        (499, "similar", "so the network stays frozen and one linear layer is fitted"),
        (499, "in between", "so the network stays frozen and one linear layer is fitted"),
        (499, "different", "the hard corner"),
        (500, "similar", "fine-tuning the network would be justified"),
        (500, "different", "fine-tuning larger parts of the network would be justified"),
    ],
)
def test_the_recipe_follows_the_lectures_table(groups, verdict, advice):
    similarity = Similarity(verdict, 0.5, 0.5, 128)
    fingerprint = replace(
        FINGERPRINT, class_groups={"no": groups, "yes": groups}, similarity=similarity
    )
    config, text = values_of(fingerprint)
    assert advice in one_line(text)
    assert f"ImageNet: {verdict} (entropy" in one_line(text)
    assert ("Worth a try on images that are unlike ImageNet's" in one_line(text)) == (
        verdict == "different"
    )
    assert config.contender[-1].recipe == "linear_probe"


def test_notes_name_what_is_in_the_images():
    text = one_line(values_of(replace(FINGERPRINT, grey_fraction=0.95))[1])
    assert "95% of the images have no colour, so this sees brightness alone" in text
    assert "All files have one size and format" in text
    text = one_line(values_of(replace(FINGERPRINT, width=Spread(1, 2, 3)))[1])
    assert "Sizes or formats differ here" in text
    assert "Colours alone" in text
    assert "the most frequent class has 50% of the images" in text
    assert "Sizes or formats differ" in values_of(
        replace(FINGERPRINT, formats={"PNG": 1, "JPEG": 2})
    )[1].replace("\n# ", " ")


names = st.text(min_size=1, max_size=30).filter(
    lambda text: text.encode(errors="replace").decode() == text
)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.dictionaries(names, st.integers(1, 5000), min_size=2, max_size=9),
    columns=st.dictionaries(names, st.integers(2, 20), max_size=3),
    imbalance=st.floats(1, 1e4),
    largest_value=st.integers(0, 65_535),
    test_images=st.integers(1, 500),
    grouped_fraction=st.sampled_from([0.0, 0.4, 1.0]),
    split=st.sampled_from([DIVIDED, GIVEN]),
)
def test_any_fingerprint_gives_a_valid_commented_file(classes, columns, split, **changes):
    fingerprint = replace(
        FINGERPRINT, class_images=classes, class_groups=classes, columns=columns, **changes
    )
    config, text = values_of(fingerprint, split)  # compares parsed text and choices
    assert uncommented_keys(text) == []
    assert config.evaluate.subgroups == tuple(columns)


def test_threads_are_those_asked_for():
    blocks = choose(FINGERPRINT, "x", "folders", DIVIDED, usable_cores() + 3)
    assert raw_config(blocks)["threads"] == usable_cores() + 3
