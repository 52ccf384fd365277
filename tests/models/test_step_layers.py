"""Classifiers as layers behind a backbone, against the estimators that were fitted."""

import numpy as np
import pytest

from cvpipe.classifiers.search import fit_classifier, predictor_of
from cvpipe.classifiers.steps import Step, apply_steps
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.classifiers.to_steps import steps_of
from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import ends_with_linear_head, head_weights
from cvpipe.models.step_layers import attach_classifier, fold_lines, join_backbones

AS_LAYERS = [name for name, classifier in CLASSIFIERS.items() if classifier.as_layers]
OTHERS = sorted(set(CLASSIFIERS) - set(AS_LAYERS) - {"majority"})
SIZE = (4, 3)
ONE_HEAD = ("softmax", "softmax_common_scale", "softmax_l1", "softmax_elastic_net", "two_layer_net")


def build_backbone(name="backbone", factor=1 / 128):
    """A network whose features are the numbers of an image."""
    layers = import_keras().layers
    images = import_keras().Input((*SIZE, 3), dtype="uint8", name="images")
    scaled = layers.Rescaling(factor, name="scale")(images)
    return import_keras().Model(images, layers.Flatten(name="flat")(scaled), name=name)


def draw_images(num_classes, count=120, seed=0):
    """Images of classes that overlap."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % num_classes
    places = np.random.default_rng(7).uniform(40, 200, (num_classes, *SIZE, 3))
    images = places[targets] + rng.normal(0, 60, (count, *SIZE, 3))
    return images.clip(0, 255).astype(np.uint8), targets.astype(np.int32)


def fitted(name, num_classes, backbone):
    images, targets = draw_images(num_classes)
    rows = np.asarray(backbone(images))
    groups = [str(number) for number in range(len(rows))]
    found = fit_classifier(name, rows, targets, groups, search="coarse", seed=0, threads=1)
    return found.estimator


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("name", AS_LAYERS)
def test_layers_give_the_probabilities_of_the_estimator(name, num_classes):
    backbone = build_backbone()
    estimator = fitted(name, num_classes, backbone)
    images, _ = draw_images(num_classes, 200, seed=1)
    expected = predictor_of(estimator)(np.asarray(backbone(images)))

    model = attach_classifier(backbone, steps_of(estimator), "whole")

    found = np.asarray(model(images))
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (200, num_classes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert len(np.unique(expected.argmax(axis=1))) == num_classes  # it tells them apart
    assert ends_with_linear_head(model) == (num_classes == 2 or name in ONE_HEAD)


@pytest.mark.parametrize("name", AS_LAYERS)
def test_what_is_stored_gives_the_same(name, tmp_path):
    backbone = build_backbone()
    model = attach_classifier(backbone, steps_of(fitted(name, 3, backbone)), "whole")
    model.save(tmp_path / "model.keras")
    loaded = import_keras().saving.load_model(tmp_path / "model.keras", safe_mode=True)
    images, _ = draw_images(3, 50, seed=2)
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.parametrize("name", OTHERS)
def test_other_classifiers_are_no_layers(name):
    backbone = build_backbone()
    steps = steps_of(fitted(name, 3, backbone))
    with pytest.raises(InputError) as caught:
        attach_classifier(backbone, steps, "whole")
    kernels = [values["kernel"] for kind, values in steps if kind == "kernel_machine"]
    (kind,) = {kind for kind, _ in steps} - {"scale", "linear", "platt", "softmax"}
    assert str(caught.value) == (
        f"a kernel {kernels[0]!r} is no layer; choose 'rbf'."
        if kernels
        else f"the classifier of 'whole' has the step {kind!r}, which is no layer; choose another "
        "classifier, such as 'softmax' or 'linear_svm'."
    )


def test_lines_are_folded_by_hand():
    scale = Step("scale", {"mean": np.array([1.0, 2.0]), "scale": np.array([2.0, 4.0])})
    line = Step("linear", {"weights": np.array([[2.0], [8.0]]), "intercepts": np.array([0.5])})
    # 2 * (x - 1) / 2 + 8 * (y - 2) / 4 + 0.5 = x + 2 * y - 4.5
    (kind, values), softmax = fold_lines([scale, line, Step("softmax", {})])
    assert (kind, softmax) == ("linear", ("softmax", {}))
    np.testing.assert_array_equal(values["weights"], [[0.0, 1.0], [0.0, 2.0]])
    np.testing.assert_array_equal(values["intercepts"], [0.0, -4.5])
    platt = Step("platt", {"slopes": np.array([-3.0]), "offsets": np.array([0.25])})
    # The sigmoid of 3 * score - 0.25, where the score is 2 * x + 8 * y + 0.5.
    (kind, values), softmax = fold_lines([line, platt])
    assert (kind, softmax) == ("linear", ("softmax", {}))
    np.testing.assert_array_equal(values["weights"], [[0.0, 6.0], [0.0, 24.0]])
    np.testing.assert_array_equal(values["intercepts"], [0.0, 1.25])


@pytest.mark.parametrize(
    "scores", [(-75.0, -90.0, -72.0), (-500.0, -503.0, -501.0), (80.0, 90.0, -1.0), (0.0, 1.0, 2.0)]
)
def test_shares_of_sigmoids_of_images_that_are_far_from_everything(scores):
    """Too small for 32 bits, or all but 1."""
    backbone = build_backbone()
    line = Step("linear", {"weights": np.zeros((36, 3)), "intercepts": np.array(scores)})
    platt = Step("platt", {"slopes": np.full(3, -1.0), "offsets": np.zeros(3)})
    model = attach_classifier(backbone, [line, platt], "whole")
    images, _ = draw_images(3, 2)
    rows = np.asarray(backbone(images), dtype=np.float64)
    expected = apply_steps([line, platt], rows)
    np.testing.assert_allclose(model(images), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected[0]) > 0.1


def test_backbones_stand_side_by_side_each_with_its_scale():
    first, second = build_backbone("first"), build_backbone("second", 1 / 255)
    images, _ = draw_images(3, 5)
    joined = join_backbones([first, second], [0.5, 3.0])
    expected = np.hstack([0.5 * np.asarray(first(images)), 3.0 * np.asarray(second(images))])
    np.testing.assert_allclose(joined(images), expected, rtol=1e-6)
    assert join_backbones([first]) is first
    plain = join_backbones([first, second])
    np.testing.assert_array_equal(plain(images), np.hstack([first(images), second(images)]))


def test_the_head_of_a_softmax_is_found():
    backbone = build_backbone()
    estimator = fitted("softmax", 3, backbone)
    model = attach_classifier(backbone, steps_of(estimator), "whole")
    kernel, bias = head_weights(model)
    scaler, softmax = (part for _, part in estimator.steps)
    np.testing.assert_allclose(kernel, softmax.coef_.T / scaler.scale_[:, None], rtol=1e-6)
    assert bias.shape == (3,)
