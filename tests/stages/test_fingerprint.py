"""The numbers of a fingerprint, against values worked out by hand; real photos against noise."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from cvpipe.data.images import resize_image
from cvpipe.evaluation.planning import expect, in_words
from cvpipe.stages.fingerprint import (
    IMAGE_SIZE,
    Spread,
    answer_in_words,
    columns_of_few_values,
    describe_fingerprint,
    groups_in_words,
    measure_similarity,
    sample_ids,
    share_of_grey,
    similarity_in_words,
    similarity_of,
    spread_of,
    take_fingerprint,
)


def make_rows(**columns):
    rows = pd.DataFrame(
        {
            "image_id": [f"{number}.png" for number in range(10)],
            "label": ["0"] * 8 + ["NA"] * 2,
            "group": ["a", "a", "a", "b", "c", "d", "e", "f", "g", "h"],
        }
    )
    return rows.assign(**columns)


def make_facts(**columns):
    facts = pd.DataFrame(
        {
            "image_id": [f"{number}.png" for number in range(10)],
            "width": [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
            "height": [200] * 5 + [500] * 5,
            "format": ["PNG"] * 7 + ["JPEG"] * 3,
            "largest_value": [0] * 9 + [3700],
            "patient": [""] * 10,
        }
    )
    return facts.assign(**columns)


def fingerprint(rows=None, facts=None, groups_given=False):
    rows = make_rows() if rows is None else rows
    facts = make_facts() if facts is None else facts
    return take_fingerprint(rows, facts, groups_given, 0.5, None)


def test_counts_and_sizes():
    f = fingerprint()
    assert f.num_images == 10
    assert f.class_images == {"0": 8, "NA": 2}
    assert f.class_groups == {"0": 6, "NA": 2}
    assert f.imbalance == 4.0
    assert f.width == Spread(pytest.approx(145), 550, pytest.approx(955))
    assert f.height == Spread(200, 350, 500)
    # 200/100, 1, 1.5, 2, 2.5, 1.2, 1.4, 1.6, 1.8, 2 sorted: 1 1.2 1.4 1.5 1.6 1.8 2 2 2 2.5
    assert f.elongation.median == pytest.approx(1.7)
    assert f.small_fraction == 0.5
    assert f.grey_fraction == 0.5
    assert f.formats == {"PNG": 7, "JPEG": 3}
    assert f.largest_value == 3700
    assert (f.num_groups, f.largest_group, f.grouped_fraction) == (8, 3, 0.3)
    assert (f.groups_given, f.num_patients) == (False, 0)
    # 10^2 / (3^2 + 7) = 6.25, rounded down; a fifth of it
    assert (f.test_images, f.test_groups, f.test_effective) == (2, 2, 1)
    assert (f.given_split, f.columns, f.similarity) == ({}, {}, None)


def test_images_that_cannot_be_decoded_do_not_count():
    f = fingerprint(facts=make_facts().iloc[:9])
    assert (f.num_images, f.class_images["NA"], f.largest_value) == (9, 1, 0)


def test_facts_belong_to_their_image_whatever_the_order_of_the_rows():
    shuffled = make_rows().iloc[::-1].reset_index(drop=True)
    facts = make_facts().sample(frac=1, random_state=0)
    assert fingerprint(shuffled, facts) == fingerprint()


def test_a_given_split_says_how_large_test_is():
    rows = make_rows(split=["test"] * 4 + ["train"] * 6)
    f = fingerprint(rows)
    assert f.given_split == {"train": 6, "test": 4}
    assert (f.test_images, f.test_groups, f.test_effective) == (4, 2, 1)
    unusable = fingerprint(make_rows(split=["train"] * 6 + ["val"] * 4))
    assert (unusable.test_images, unusable.given_split) == (2, {"train": 6, "val": 4})


def test_columns_of_the_table_do_not_disturb_the_facts_of_the_files():
    rows = make_rows(width=["wide"] * 10, format=["a", "b"] * 5)
    f = fingerprint(rows)
    assert f.width == fingerprint().width
    assert f.formats == {"PNG": 7, "JPEG": 3}
    assert f.columns == {"format": 2}


def test_columns_with_2_to_20_values_are_kept():
    rows = pd.concat([make_rows()] * 3, ignore_index=True)
    columns = {
        "one": ["x"] * 30,
        "two": ["", "x"] * 15,
        "twenty": [str(n % 20) for n in range(30)],
        "many": [str(n % 21) for n in range(30)],
        "split": ["train", "test"] * 15,
        "sha256": ["1", "2"] * 15,
        "label_given": ["1", "2"] * 15,
    }
    assert columns_of_few_values(rows.assign(**columns)) == {"two": 2, "twenty": 20}


def test_patients_are_groups_that_the_data_give():
    f = fingerprint(facts=make_facts(patient=["p", "q"] * 5))
    assert (f.num_patients, f.groups_given) == (2, True)
    assert not fingerprint(facts=make_facts(patient=["p"] * 10)).groups_given
    assert fingerprint(groups_given=True).groups_given


def test_a_fingerprint_is_json():
    similarity = similarity_of(np.full((3, 1000), 1e-3))
    f = take_fingerprint(make_rows(site=["a", "b"] * 5), make_facts(), False, 0.5, similarity)
    values = json.loads(json.dumps(asdict(f)))
    assert values["similarity"]["verdict"] == "different"
    assert values["columns"] == {"site": 2}


def test_spread_of_one_value():
    assert spread_of([7]) == Spread(7, 7, 7)


def test_a_sample_is_even_over_classes_and_does_not_depend_on_the_order():
    labels = ["x"] * 90 + ["y"] * 6 + ["z"] * 4
    rows = pd.DataFrame({"image_id": [f"{n}.png" for n in range(100)], "label": labels})
    ids = sample_ids(rows, 12)
    drawn = rows.set_index("image_id").loc[ids, "label"].value_counts()
    assert drawn.to_dict() == {"x": 4, "y": 4, "z": 4}
    assert sample_ids(rows.sample(frac=1, random_state=1), 12) == ids
    assert ids != rows["image_id"].tolist()[:12]
    assert sorted(sample_ids(rows, 1000)) == sorted(rows["image_id"])
    more = pd.concat([rows, pd.DataFrame({"image_id": ["new.png"], "label": ["x"]})])
    assert len(set(sample_ids(more, 12)) - set(ids)) <= 1


def test_grey_is_what_has_no_colour_not_what_has_one_channel():
    images = np.full((4, 2, 2, 3), 100, np.uint8)
    images[1, ..., 0] = 101  # within what JPEG leaves
    images[2, ..., 0] = 102
    images[3, ..., 2] = 0
    assert share_of_grey(images) == 0.5
    assert share_of_grey(np.array([[[[255, 0, 0]]]], np.uint8)) == 0.0


def test_entropy_by_hand():
    uniform, sure, two = np.full(1000, 1e-3), np.eye(1000)[0], np.eye(1000)[:2].mean(axis=0)
    assert similarity_of(np.stack([uniform])).entropy == 1.0
    assert similarity_of(np.stack([uniform])).verdict == "different"
    assert asdict(similarity_of(np.stack([sure]))) == {
        "verdict": "similar", "entropy": 0.0, "largest_probability": 1.0, "num_images": 1,
    }  # fmt: skip
    median = similarity_of(np.stack([uniform, two, two]))
    assert median.entropy == round(math.log(2) / math.log(1000), 3)
    assert median.largest_probability == 0.5


@pytest.mark.parametrize(
    ("num_equal", "verdict"),
    [(22, "similar"), (23, "in between"), (72, "in between"), (73, "different")],
)
def test_bounds_of_the_verdict(num_equal, verdict):
    """With k equal probabilities the entropy is log k / log 1000."""
    p = np.zeros((1, 1000))
    p[:, :num_equal] = 1 / num_equal
    assert similarity_of(p).verdict == verdict


def test_photos_are_similar_to_imagenet_and_noise_is_not():
    import skimage.data

    rng = np.random.default_rng(0)
    photos = [getattr(skimage.data, n)() for n in ("astronaut", "chelsea", "coffee", "rocket")]
    crops = []
    for photo in photos:
        for _ in range(4):
            top, left = (int(rng.integers(0, size - 280)) for size in photo.shape[:2])
            crop = np.ascontiguousarray(photo[top : top + 280, left : left + 280])
            crops.append(resize_image(crop, IMAGE_SIZE, "stretch"))
    similar = measure_similarity(np.stack(crops), threads=2)
    noise = rng.integers(0, 256, (16, *IMAGE_SIZE, 3), dtype=np.uint8)
    different = measure_similarity(noise, threads=2)
    assert (similar.verdict, different.verdict) == ("similar", "different")
    assert similar.num_images == 16


def test_how_exact_the_answer_is():
    """As a run says it; by Wilson's formula 600 images tell .9 to 2.4 points, 200 to 4.2."""
    f = replace(fingerprint(), test_images=600, test_groups=200, test_effective=200)
    assert answer_in_words(f) == in_words("test", expect([3] * 200))
    assert answer_in_words(f).startswith("test: 600 images in 200 groups; at 90 % accuracy")
    assert "±2.4 points" in answer_in_words(f)
    assert "±4.2" in answer_in_words(f)
    alone = replace(f, test_images=10, test_groups=10, test_effective=10)
    assert answer_in_words(alone) == in_words("test", expect([1] * 10))


def test_one_image_is_a_test_of_one():
    f = fingerprint(make_rows().iloc[:1])
    assert (f.test_images, f.test_groups, f.test_effective) == (1, 1, 1)
    assert describe_fingerprint(f)


def test_what_a_person_reads_about_groups():
    f = fingerprint()
    assert groups_in_words(f) == (
        "none given; 30% of the images have a near-duplicate; 8 groups, the largest of 3"
    )
    assert groups_in_words(replace(f, groups_given=True)) == (
        "given with the images; 30% of the images share a group with another; 8 groups, the "
        "largest of 3"
    )
    assert groups_in_words(replace(f, groups_given=True, num_patients=1200)).startswith(
        "1,200 DICOM patients; 30% "
    )
    alone = replace(f, grouped_fraction=0.0)
    assert groups_in_words(alone) == "none given; every image stands alone"


def test_what_a_person_reads():
    lines = describe_fingerprint(fingerprint(make_rows(site=["a", "b"] * 5)))
    assert lines[0] == (
        "images: 10 in 2 classes: '0' 8, 'NA' 2; largest to smallest 4.0 to 1"
    )  # fmt: skip
    assert lines[2] == (
        "sizes: width 145 to 955 (median 550), height 200 to 500 (median 350); "
        "50% have a side below 224 pixels"
    )
    assert lines[4] == "content: 50% without colour; 'PNG' 7, 'JPEG' 3; 16-bit values up to 3,700"
    assert lines[5].startswith("split: none given; test: 2 images; at 90 % accuracy")
    assert lines[6] == "columns: 'site' (2 values)"
    assert lines[7] == "ImageNet: not compared"


def test_a_thousand_classes_fit_into_few_lines():
    many = replace(fingerprint(), class_images={f"class {n}": 3 for n in range(1000)})
    lines = describe_fingerprint(many)
    assert len(lines) <= 15
    assert lines[0].endswith("'class 5' 3 and 994 more; largest to smallest 4.0 to 1")


def test_similarity_in_words():
    similarity = similarity_of(np.full((3, 1000), 1e-3))
    assert similarity_in_words(similarity) == (
        "different (entropy of its own classes 1.00: below 0.45 is similar, from 0.62 different; "
        "3 images)"
    )
