import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cvpipe.errors import InputError
from cvpipe.features.file_facts import FILE_FACTS_COLUMNS
from cvpipe.features.table import (
    FEATURES,
    KINDS,
    Feature,
    FeatureKind,
    FileFeature,
    make_feature,
)

OF_IMAGES = [name for name, feature in FEATURES.items() if isinstance(feature, Feature)]
OF_FILES = [name for name, feature in FEATURES.items() if isinstance(feature, FileFeature)]


def test_names():
    assert {"raw_pixels", "colour_histogram", "hog"} <= set(OF_IMAGES)
    assert OF_FILES == ["file_facts"]
    assert sorted(OF_IMAGES + OF_FILES) == sorted(FEATURES)


@pytest.mark.parametrize("name", FEATURES)
def test_a_title_fits_into_a_sentence(name):
    title = FEATURES[name].title
    assert title == title.strip()
    assert title[0].islower()
    assert title[-1] != "."


def test_identities_tell_features_apart():
    identities = [feature.identity for feature in FEATURES.values()]
    assert len(set(identities)) == len(identities)
    for name, feature in FEATURES.items():
        kind = feature.kind if isinstance(feature, Feature) else name
        assert feature.identity.startswith(f"{kind}-1: ")


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images_become_finite_rows(name):
    feature = FEATURES[name]
    height, width = feature.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    transformer = feature.build()
    rows = transformer.fit_transform(images)
    assert rows.shape == (3, transformer.n_features_out_)
    assert len(np.unique(rows, axis=0)) == 3


@pytest.mark.parametrize("name", OF_FILES)
def test_files_become_finite_rows(name, tmp_path):
    feature = FEATURES[name]
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for number, path in enumerate(paths):
        Image.new("RGB", (4 + number, 6)).save(path)
    describe = feature.build()
    rows = describe(paths)
    assert rows.shape == (2, feature.row_size)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == 2
    np.testing.assert_array_equal(describe(paths[1:]), rows[1:])
    assert describe([]).shape == (0, feature.row_size)


# An identity says what is built.


def test_an_identity_names_size_and_all_settings():
    feature = make_feature("hog", (40, 48), {"cell_pixels": 10})
    assert feature.identity == (
        'hog-1: 40x48, {"block_cells": 2, "block_norm": "l2-hys", "cell_pixels": 10, '
        '"colour": "colour", "orientations": 9, "signed": false, "soft": false, '
        '"square_root": false}'
    )
    assert feature.title == "histogram of oriented gradients at 40x48, cell_pixels 10"
    transformer = feature.build()
    assert (transformer.cell_pixels, transformer.orientations) == (10, 9)


def test_a_whole_number_is_a_number_where_a_fraction_may_stand(monkeypatch):
    kind = FeatureKind("noise", ("noise", "Noise"), (8, 8), {"share": 0.5, "steps": (1, 2)})
    monkeypatch.setitem(KINDS, "noise", kind)
    assert make_feature("noise", settings={"share": 1}).settings["share"] == 1.0
    assert make_feature("noise", settings={"steps": (4,)}).settings["steps"] == (4,)
    with pytest.raises(InputError, match=r"^steps .* a list of whole numbers, such as \[1, 2\]"):
        make_feature("noise", settings={"steps": 4})
    with pytest.raises(InputError, match=r"^share .* must be a number, such as 0\.5, but is 'x'"):
        make_feature("noise", settings={"share": "x"})


def test_what_is_listed_says_what_can_be_set():
    text = make_feature("raw_pixels").described
    assert text == (
        'raw pixels at 32x32; kind raw_pixels, settings {colour = "colour", normalise = "none"}'
    )
    assert FEATURES["file_facts"].described == FEATURES["file_facts"].title


def test_identity_of_the_file_facts():
    feature = FEATURES["file_facts"]
    assert feature.row_size == len(FILE_FACTS_COLUMNS)
    assert feature.identity == f"file_facts-1: {', '.join(FILE_FACTS_COLUMNS)}"


def test_the_table_loads_nothing_heavy():
    heavy = {"cv2", "sklearn", "PIL", "pandas", "scipy", "tensorflow", "keras"}
    code = f"import sys, cvpipe.features.table; print({heavy} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"
