"""What every kind of feature must do, whatever it looks at."""

import inspect
import re

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import FeatureUnion
from sklearn.utils import estimator_checks as checks
from threadpoolctl import threadpool_limits

from cvpipe.errors import InputError
from cvpipe.features.base import ImageTransformer
from cvpipe.features.deep import DeepFeatures
from cvpipe.features.table import FEATURES, KINDS, Feature, make_feature

SIZE = (40, 48)  # not square, so that height and width cannot be mistaken for each other
# Small enough for a few images.
FEW = {"num_words": 8, "num_gaussians": 4, "num_samples": 2_000, "num_dimensions": 8}


def photos(number: int = 7, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Cut crops of real photos; the last one is constant."""
    rng = np.random.default_rng(0)
    crops = []
    for name in ("chelsea", "coffee", "rocket", "astronaut", "cat", "camera")[: number - 1]:
        photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        left, top = rng.integers(0, photo.width - 160), rng.integers(0, photo.height - 160)
        crop = photo.crop((left, top, left + 160, top + 160)).resize(size[::-1])
        crops.append(np.asarray(crop))
    return np.stack([*crops, np.full((*size, 3), 90, np.uint8)])


def build(kind: str, **settings) -> ImageTransformer:
    few = {name: value for name, value in FEW.items() if name in KINDS[kind].settings}
    return make_feature(kind, SIZE, {**few, **settings}).build()


def described(kind: str, **settings) -> np.ndarray:
    images = photos()
    return build(kind, **settings).fit(images).transform(images)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_says_what_the_class_says(kind):
    parameters = inspect.signature(KINDS[kind].load()).parameters
    usual = {name: p.default for name, p in parameters.items() if name != "random_state"}
    assert KINDS[kind].settings == usual
    for name, value in usual.items():
        assert type(value) is type(KINDS[kind].settings[name]) in (bool, int, float, str, tuple)
    assert ("random_state" in parameters) == KINDS[kind].learns == KINDS[kind].load().learns


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learns_checks_of_parameters(kind):
    transformer = build(kind)
    for check in (
        checks.check_parameters_default_constructible,
        checks.check_no_attributes_set_in_init,
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_get_params_invariance,
        checks.check_set_params,
        checks.check_mixin_order,
        checks.check_estimator_tags_renamed,
    ):
        check(kind, clone(transformer))


@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind):
    images = photos()
    transformer = build(kind)
    with pytest.raises(NotFittedError):
        transformer.transform(images)
    before = transformer.get_params()
    assert transformer.fit(images, [1]) is transformer
    assert transformer.get_params() == before
    rows = transformer.transform(images)
    assert rows.shape == (len(images), transformer.n_features_out_)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == len(images)
    assert len(transformer.get_feature_names_out()) == rows.shape[1]
    assert transformer.transform(images[:0]).shape == (0, rows.shape[1])
    # Scales near 1: what a penalty or a kernel of usual strength can work with.
    assert 0.01 < np.linalg.norm(rows[:-1], axis=1).mean() < 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_in_whatever_company(kind):
    images = photos()
    transformer = build(kind).fit(images)
    rows = transformer.transform(images)
    for some in ([0], [3, 1], [6, 5, 4, 3, 2, 1, 0], [2] * 40):
        np.testing.assert_array_equal(transformer.transform(images[some]), rows[some])
    # Nor do memory layout and number of threads decide one.
    mirrored = images[:, :, ::-1]
    expected = transformer.transform(mirrored.copy())
    np.testing.assert_array_equal(transformer.transform(mirrored), expected)
    turned = np.asfortranarray(images)
    np.testing.assert_array_equal(transformer.transform(turned), rows)
    for threads in (1, 2):
        with threadpool_limits(threads):
            np.testing.assert_array_equal(transformer.transform(images), rows)


@pytest.mark.parametrize("name", [n for n, f in FEATURES.items() if isinstance(f, Feature)])
def test_the_table_says_which_rows_hold_negative_numbers(name):
    feature = FEATURES[name]
    settings = {k: v for k, v in dict(feature.changed).items() if k != "cell_pixels"}
    assert (described(feature.kind, **settings) < 0).any() == feature.is_signed


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_not_changed(kind):
    images = photos()
    before = images.copy()
    images.flags.writeable = False
    build(kind).fit(images).transform(images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_again_gives_the_same_bits(kind):
    first = described(kind)
    np.random.seed(7)  # nobody may look at the state of the whole process
    np.testing.assert_array_equal(described(kind), first)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].learns])
def test_what_is_learned_depends_on_images_and_seed(kind):
    images = photos()
    rows = [
        build(kind).set_params(random_state=seed).fit(part).transform(images)
        for seed, part in ((0, images), (1, images), (0, images[:3]))
    ]
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    learned = {k: v for k, v in vars(build(kind).fit(images)).items() if k.endswith("_")}
    assert len(learned) > 2  # besides the size of images and rows
    assert all(np.asarray(value).dtype != object for value in learned.values())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].learns])
def test_what_does_not_learn_does_not(kind):
    images = photos()
    blank = build(kind).fit(np.zeros((1, *SIZE, 3), np.uint8))
    np.testing.assert_array_equal(blank.transform(images), described(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, *SIZE), np.uint8), r"got uint8 of shape \(2, 40, 48\); decode them"),
        (np.zeros((2, *SIZE, 1), np.uint8), r"got uint8 of shape \(2, 40, 48, 1\)"),
        (np.zeros((2, *SIZE, 3), np.float32), r"got float32 of shape \(2, 40, 48, 3\)"),
    ],
)
def test_what_are_no_images(kind, wrong, message):
    with pytest.raises(InputError, match=message):
        build(kind).fit(wrong)
    transformer = build(kind).fit(photos())
    with pytest.raises(InputError, match=message):
        transformer.transform(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_and_another_size(kind):
    with pytest.raises(InputError, match=r"cannot be fitted on no image; give at least one\.$"):
        build(kind).fit(np.zeros((0, *SIZE, 3), np.uint8))
    transformer = build(kind).fit(photos())
    message = r"was fitted on images of size \(40, 48\), but these are \(48, 40\); resize them\.$"
    with pytest.raises(InputError, match=message):
        transformer.transform(np.zeros((1, 48, 40, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_bounds(kind):
    """A value far from all sense is answered by a sentence."""
    for name, usual in KINDS[kind].settings.items():
        wrong = {int: [-3, 10**7], float: [-1e9, float("nan")], str: ["nonsense"], tuple: [(-3,)]}
        for number, value in enumerate(wrong.get(type(usual), [])):
            transformer = build(kind).set_params(**{name: value})
            with pytest.raises(InputError) as caught:
                transformer.check_settings(SIZE)
            # What is too large may be so for the images alone, and then they are spoken of.
            assert number or re.search(rf"\b{name}\b", str(caught.value))


@pytest.mark.parametrize("name", [n for n, f in FEATURES.items() if isinstance(f, Feature)])
def test_named_features_are_possible(name):
    FEATURES[name].build().check_settings(FEATURES[name].image_size)


def test_features_can_be_joined():
    images = photos()
    union = FeatureUnion([(kind, build(kind)) for kind in ("raw_pixels", "hog")])
    rows = union.fit(images).transform(images)
    np.testing.assert_array_equal(rows, np.hstack([described("raw_pixels"), described("hog")]))
    assert len(union.get_feature_names_out()) == rows.shape[1]


def test_deep_features_are_those_of_the_function():
    images = photos()
    deep = DeepFeatures(lambda batch: batch.mean(axis=(1, 2)))
    rows = deep.fit_transform(images)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, images.mean(axis=(1, 2)), rtol=1e-6)
    assert deep.n_features_out_ == 3
    with pytest.raises(InputError, match=r"^a deep feature describes uint8 images"):
        deep.transform(images.astype(float))
