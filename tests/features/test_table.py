import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cvpipe.features.file_facts import FILE_FACTS_COLUMNS
from cvpipe.features.table import FEATURES, Feature, FileFeature

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
        assert feature.identity.startswith(f"{name}-")


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images_become_finite_rows(name):
    feature = FEATURES[name]
    height, width = feature.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    transformer = feature.build()
    rows = transformer.fit_transform(images)
    assert rows.shape == (3, transformer.n_features_out_)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == 3
    # A row depends on nothing but its image, so it can be kept.
    np.testing.assert_array_equal(transformer.transform(images[1:2]), rows[1:2])


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


def test_identity_of_raw_pixels():
    feature = FEATURES["raw_pixels"]
    height, width = feature.image_size
    assert (height, width) == (32, 32)
    assert feature.identity == f"raw_pixels-1: {height}x{width}"
    assert feature.title.endswith(f" {height}x{width}")


def test_identity_of_the_colour_histogram():
    feature = FEATURES["colour_histogram"]
    height, width = feature.image_size
    num_bins = feature.build().num_bins
    assert (height, width, num_bins) == (128, 128, 32)
    assert feature.identity == f"colour_histogram-1: {height}x{width}, {num_bins} bins"


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
