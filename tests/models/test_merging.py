import re

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.inference.calibration import FLOOR, NETWORK_FLOOR, Scaling
from cvpipe.inference.crops import (
    VIEWS,
    average_over_views,
    crop_origins,
    cut_batch,
    num_views,
    sizes_to_load,
)
from cvpipe.models import merging
from cvpipe.models.backbones import BackboneSpec, build_backbone
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import LOGITS_LAYER, PROBABILITIES_LAYER, initial_head
from cvpipe.models.merging import (
    GEOMETRIC_MEAN,
    METHODS,
    STACKING,
    merge_networks,
    scale_probabilities,
    share_trunk,
    views_inside,
)
from cvpipe.models.runtimes import RUNTIMES, build_run
from cvpipe.models.transfer import attach_trainable_head, part_network
from tests.models.test_runtimes import installed

LITE = BackboneSpec("efficientnet_lite0", image_size=(64, 96))
SIZE = (16, 13)  # higher than wide
NUM_CLASSES = 3
BATCH_SIZE = 4  # five images leave a last batch of one


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def compute(model, images):
    return np.asarray(model(images, training=False)).astype(np.float64)


def draw_images(size=SIZE, count=5):
    """Noise on slopes of brightness, so that images and their crops differ in what they show."""
    rng = np.random.default_rng(count)
    ends = rng.uniform(0, 200, (2, count, 1, 1, 3))
    along = np.linspace(0, 1, size[0]).reshape(1, -1, 1, 1) * np.linspace(0.2, 1, size[1])[:, None]
    values = ends[0] * along + ends[1] * (1 - along) + rng.uniform(0, 55, (count, *size, 3))
    return values.astype(np.uint8)


def tiny_logits(seed=0, size=SIZE):
    """All that a copy can lose: averages, dropout, a plain operation, a layer called twice."""
    keras = import_keras()
    layers = keras.layers
    images = keras.Input((*size, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 128, offset=-1.0, name="rescaling")(images)
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(x)
    x = layers.Activation("relu", name="boundary")(x)
    x = layers.BatchNormalization(name="norm")(x)
    twice = layers.Conv2D(6, 3, padding="same", name="twice")
    x = twice(twice(layers.SpatialDropout2D(0.5, seed=1, name="noise")(x)))
    x = layers.GlobalAveragePooling2D(name="features")(keras.ops.multiply(x, 2.0))
    x = layers.Dropout(0.5, seed=seed, name="dropout")(x)
    model = keras.Model(images, layers.Dense(NUM_CLASSES, name=LOGITS_LAYER)(x), name="tiny")
    draw_weights(model, seed)
    return model


def draw_weights(model, seed):
    """Draw weights with which logits lie some units apart."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed_generator" not in variable.path:
            low, high = (0.5, 1.0) if "norm" in variable.path else (-0.2, 0.25)
            variable.assign(rng.uniform(low, high, variable.shape))
    kernel = model.get_layer(LOGITS_LAYER).kernel
    kernel.assign(rng.normal(0, 0.5, kernel.shape))


def tiny(seed=0, size=SIZE, factor=1.0):
    """A whole network with a softmax; a large factor makes it sure of itself."""
    keras = import_keras()
    model = tiny_logits(seed, size)
    kernel = model.get_layer(LOGITS_LAYER).kernel
    kernel.assign(kernel * factor)
    probabilities = keras.layers.Softmax(name=PROBABILITIES_LAYER)(model.output)
    return keras.Model(model.input, probabilities, name=f"tiny_{seed}")


def tiny_parts():
    keras = import_keras()
    model = tiny_logits()
    boundary = model.get_layer("boundary").output
    return keras.Model(model.input, boundary), keras.Model(boundary, model.output, name="tail")


def lite_parts(point):
    head = initial_head(1280, NUM_CLASSES, seed=0)
    model = attach_trainable_head(build_backbone(LITE), *head, dropout=0.2, seed=1)
    return part_network(LITE, model, point) if point else (None, model)


def scratch(seed):
    """A network from scratch; its images are normalised by statistics of its own."""
    statistics = {"channel_mean": np.full(3, 90.0 + 30 * seed), "channel_std": np.full(3, 50.0)}
    spec = BackboneSpec("lenet5", "none", image_size=SIZE)
    backbone = build_backbone(spec, seed=seed, statistics=statistics)
    kernel = np.random.default_rng(seed).normal(0, 0.3, (84, NUM_CLASSES)).astype(np.float32)
    bias = np.linspace(-1, 1, NUM_CLASSES, dtype=np.float32)
    return attach_trainable_head(backbone, kernel, bias, dropout=0.5, seed=seed)


def values_of(model):
    return [variable.numpy() for variable in model.variables]


def vary(tail, num_members):
    """Draw values of a tail's variables for each member."""
    members, kernel = [], [v.path for v in tail.variables].index(f"{LOGITS_LAYER}/kernel")
    for seed in range(num_members):
        rng = np.random.default_rng(seed)
        values = [
            value * rng.uniform(0.9, 1.1, value.shape).astype(np.float32)
            if value.dtype == np.float32
            else value + 1  # the state of a dropout
            for value in values_of(tail)
        ]
        values[kernel] = rng.normal(0, 0.3, values[kernel].shape).astype(np.float32)
        members.append(values)
    return members


def mean_of_members(trunk, tail, weights, images):
    """By NumPy, of what the tail itself gives with the values of each member."""
    kept, members = values_of(tail), []
    activations = images if trunk is None else trunk(images, training=False)
    for values in weights:
        assign(tail, values)
        members.append(softmax(compute(tail, activations)))
    assign(tail, kept)
    assert all(np.abs(members[0] - other).max() > 0.01 for other in members[1:])
    return np.mean(members, axis=0)


def assign(model, values):
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)


def check_stored(model, images, path):
    """A model comes back by Keras alone, bit for bit."""
    model.save(path)
    loaded = import_keras().saving.load_model(path, compile=False, safe_mode=True)
    assert [o.name for o in loaded.operations] == [o.name for o in model.operations]
    np.testing.assert_array_equal(compute(loaded, images), compute(model, images))
    return loaded


def check_flat(model, name, size):
    keras = import_keras()
    assert model.name == name
    assert (model.input_shape, model.inputs[0].dtype) == ((None, *size, 3), "uint8")
    assert model.inputs[0].name == "images"
    assert model.output_shape == (None, NUM_CLASSES)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.layers[-1].name == PROBABILITIES_LAYER
    noise = (keras.layers.Dropout, keras.layers.GaussianNoise)
    assert not any(isinstance(layer, noise) for layer in model.layers)


# Members that share a trunk


@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_the_mean_of_members(whole, num_members, tmp_path):
    trunk, tail = (None, tiny_logits()) if whole else tiny_parts()
    weights, images = vary(tail, num_members), draw_images()
    before = values_of(tail)
    expected = mean_of_members(trunk, tail, weights, images)
    model = share_trunk(trunk, tail, weights, "ensemble")
    check_flat(model, "ensemble", SIZE)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)
    check_stored(model, images, tmp_path / "größe 1.keras")
    assert all(map(np.array_equal, values_of(tail), before))


@pytest.mark.parametrize("point", ["block_11", "block_15", "features", ""])
def test_the_trunk_of_a_pretrained_network_is_there_once(point):
    trunk, tail = lite_parts(point)
    weights, images = vary(tail, 3), draw_images(LITE.size, 3)
    expected = mean_of_members(trunk, tail, weights, images)
    model = share_trunk(trunk, tail, weights, "ensemble")
    check_flat(model, "ensemble", LITE.size)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)

    def num_weights(network):
        return sum(v.shape.num_elements() for v in network.weights if "seed_gen" not in v.path)

    shared = trunk.layers if trunk else []
    trunk_weights = num_weights(trunk) if trunk else 0
    assert num_weights(model) == trunk_weights + 3 * num_weights(tail)
    assert model.layers[: len(shared)] == shared
    names = [layer.name for layer in tail.layers[1:] if layer.name != "dropout"]
    copied = [f"{name}_member_{number}" for name in names for number in (1, 2, 3)]
    averaged = [f"{PROBABILITIES_LAYER}_member_{number}" for number in (1, 2, 3)]
    others = [layer.name for layer in model.layers[len(shared) or 1 :]]
    assert sorted(others) == sorted([*copied, *averaged, PROBABILITIES_LAYER])


def test_networks_from_scratch_keep_statistics_of_their_own(tmp_path):
    """`finalize_state` has to be called: Keras normalises with copies of the weights."""
    networks, images = [scratch(seed) for seed in range(3)], draw_images()
    model = share_trunk(None, networks[0], [values_of(n) for n in networks], "ensemble")
    expected = np.mean([softmax(compute(network, images)) for network in networks], axis=0)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)
    check_flat(model, "ensemble", SIZE)
    check_stored(model, images, tmp_path / "model.keras")


def test_any_number_of_images():
    trunk, tail = tiny_parts()
    weights, images = vary(tail, 2), draw_images()
    expected = mean_of_members(trunk, tail, weights, images)
    model = share_trunk(trunk, tail, weights, "ensemble")
    np.testing.assert_allclose(build_embed(model, BATCH_SIZE)(images), expected, atol=1e-6)
    np.testing.assert_allclose(compute(model, images[:1]), expected[:1], atol=1e-6)


def test_wrong_members():
    trunk, tail = tiny_parts()
    (values,) = vary(tail, 1)
    with pytest.raises(InputError, match="no member to average; pass the weights of at least one"):
        share_trunk(trunk, tail, [], "ensemble")
    with pytest.raises(InputError, match=r"^member 2 has 9 arrays, but 'tail' has 10 variables; p"):
        share_trunk(trunk, tail, [values, values[:-1]], "ensemble")
    message = (
        r"member 1 has 10 arrays, the first other one \(3,\) for \(6, 3\), but 'tail' has 10 "
        r"variables; pass the values of all of tail\.variables, in their order\."
    )
    with pytest.raises(InputError, match=message):
        share_trunk(trunk, tail, [[*values[:-2], values[-1], values[-2]]], "ensemble")
    with pytest.raises(InputError, match="'tiny_0' ends with the layer 'probabilities', but must"):
        share_trunk(None, tiny(), [values_of(tiny())], "ensemble")
    other = import_keras().Model(trunk.input, trunk.get_layer("rescaling").output)
    message = r"gives \(None, 16, 13, 3\), but the tail takes \(None, 14, 11, 6\); pass both parts"
    with pytest.raises(InputError, match=message):
        share_trunk(other, tail, [values], "ensemble")


# Whole networks


def merged_by_hand(rows, weights, method, floor=FLOOR):
    weights = np.reshape(weights, (-1, 1, 1))
    if method != GEOMETRIC_MEAN:
        return (np.array(rows) * weights).sum(axis=0)
    return softmax((np.log(np.maximum(rows, floor)) * weights).sum(axis=0))


def test_stacking_sums_logarithms_with_free_weights_and_intercepts(tmp_path):
    networks, images = [tiny(seed) for seed in range(3)], draw_images()
    rows = [compute(network, images) for network in networks]
    weights, intercepts = [1.4, 0.0, 0.9], [0.3, -0.5, 0.2]
    model = merge_networks(networks, weights, STACKING, "merged", intercepts=intercepts)
    logs = 1.4 * np.log(rows[0]) + 0.9 * np.log(rows[2])
    np.testing.assert_allclose(compute(model, images), softmax(logs + intercepts), atol=1e-6)
    check_stored(model, images, tmp_path / "model.keras")
    alone = merge_networks(networks, [0.0, 0.0, 2.0], STACKING, "merged")
    np.testing.assert_allclose(compute(alone, images), softmax(2 * np.log(rows[2])), atol=1e-6)
    with pytest.raises(InputError, match="weights must not be negative"):
        merge_networks(networks, [0.0, 0.0, 0.0], STACKING, "merged")


@pytest.mark.parametrize("factor", [1, 30])  # with 30 some probabilities are below the floor
@pytest.mark.parametrize("method", [method for method in METHODS if method != STACKING])
def test_whole_networks(method, factor, tmp_path):
    networks = [tiny(seed, factor=factor) for seed in range(3)]
    images, weights = draw_images(), [0.5, 0.2, 0.3]
    rows = [compute(network, images) for network in networks]
    assert (np.min(rows) < FLOOR) == (factor == 30)
    model = merge_networks(networks, weights, method, "merged")
    expected = merged_by_hand(rows, weights, method)
    check_flat(model, "merged", SIZE)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(compute(model, images[:1]), expected[:1], rtol=0, atol=1e-6)
    check_stored(model, images, tmp_path / "model.keras")


def test_the_floor_is_that_of_the_calibration_and_can_be_another():
    assert merging.FLOOR == FLOOR
    networks, images = [tiny(seed, factor=3) for seed in range(2)], draw_images()
    rows = [compute(network, images) for network in networks]
    model = merge_networks(networks, [0.5, 0.5], GEOMETRIC_MEAN, "merged", floor=0.2)
    expected = merged_by_hand(rows, [0.5, 0.5], GEOMETRIC_MEAN, 0.2)
    assert np.abs(expected - merged_by_hand(rows, [0.5, 0.5], GEOMETRIC_MEAN)).max() > 0.01
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)


def test_other_backbones_and_stored_networks(tmp_path):
    keras = import_keras()
    from_scratch = scratch(0)
    softmax_layer = keras.layers.Softmax(name=PROBABILITIES_LAYER)
    other = keras.Model(from_scratch.input, softmax_layer(from_scratch.output), name="other")
    images = draw_images()
    networks = [tiny(), check_stored(other, images, tmp_path / "other.keras")]
    model = merge_networks(networks, [0.25, 0.75], "weighted", "merged")
    expected = merged_by_hand([compute(n, images) for n in networks], [0.25, 0.75], "weighted")
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)


def test_networks_that_were_merged_can_be_merged_again(tmp_path):
    trunk, tail = tiny_parts()
    ensemble = share_trunk(trunk, tail, vary(tail, 2), "ensemble")
    images, networks = draw_images(), [tiny(1), tiny(2)]
    inner = merge_networks(networks, [0.5, 0.5], GEOMETRIC_MEAN, "inner")
    inner = check_stored(inner, images, tmp_path / "inner.keras")
    model = merge_networks([ensemble, inner, inner], [0.5, 0.2, 0.3], GEOMETRIC_MEAN, "outer")
    rows = [compute(network, images) for network in (ensemble, inner, inner)]
    expected = merged_by_hand(rows, [0.5, 0.2, 0.3], GEOMETRIC_MEAN)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)
    check_stored(model, images, tmp_path / "outer.keras")


def test_a_network_of_no_weight_is_left_out():
    networks, images = [tiny(seed) for seed in range(3)], draw_images()
    model = merge_networks(networks, [0.0, 1.0, 0.0], "greedy", "merged")
    assert model.count_params() == networks[1].count_params()
    np.testing.assert_allclose(compute(model, images), compute(networks[1], images), atol=1e-7)


def test_names_do_not_depend_on_what_was_built_before():
    """Keras numbers operations through a process; a stored network brings numbers of its own."""
    names = []
    for _ in range(2):
        model = views_inside(tiny(), (20, 20), [(0, 0)], mirrored=True)
        model = scale_probabilities(model, [1.0] * 3, [0.5] * 3, FLOOR)
        names.append([o.name for o in model.operations if "multiply" not in o.name])
        model = merge_networks([model] * 2, [0.5, 0.5], GEOMETRIC_MEAN, "merged")
        names[-1] += [o.name for o in model.operations if "multiply" not in o.name]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0]) - 2  # images and probabilities, in both


@pytest.mark.parametrize("method", ["vote", "means"])
def test_methods_that_are_no_mean(method):
    message = f"by {method!r} cannot become one network; choose one of ['mean', 'weighted', 'gre"
    with pytest.raises(InputError, match=re.escape(message)):
        merge_networks([tiny()], [1.0], method, "merged")


def test_networks_that_cannot_be_merged():
    small, large = tiny(0), tiny(1, (20, 20))
    message = (
        "networks can be merged where they take images of one shape, but these are: 'tiny_0' "
        "(16, 13, 3), 'tiny_1' (20, 20, 3); choose networks trained at one size, or keep them"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        merge_networks([small, large], [0.5, 0.5], "mean", "merged")
    layers = import_keras().layers
    logits = layers.Dense(4)(small.get_layer("features").output)
    more = import_keras().Model(small.input, layers.Softmax()(logits), name="more")
    with pytest.raises(InputError, match=r"rows of one shape.* 'tiny_0' \(3,\), 'more' \(4,\); ch"):
        merge_networks([small, more], [0.5, 0.5], "mean", "merged")
    with pytest.raises(InputError, match="no network to merge; pass at least one"):
        merge_networks([], [], "mean", "merged")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"1 weights for 2 networks; pass one for each\."),
        ([0.5, 0.6], r"must sum to 1, but are \[0\.5, 0\.6\]; divide them by their sum"),
        ([1.5, -0.5], r"must not be negative"),
        ([0.5, np.nan], r"must sum to 1"),
    ],
)
def test_weights_that_are_none(weights, message):
    with pytest.raises(InputError, match=message):
        merge_networks([tiny()] * 2, weights, "weighted", "merged")


# Views


ONE_SIZE = [kind for kind in VIEWS if len(sizes_to_load(kind, (7, 7))) == 1]


def operation_of(model, name):
    (operation,) = (o for o in model.operations if o.name == name)
    return operation


@pytest.mark.parametrize("mean_of", ["probabilities", "logits"])
@pytest.mark.parametrize("kind", ONE_SIZE)
def test_views_are_cut_to_the_pixel_and_averaged(kind, mean_of, tmp_path):
    (image_size,) = sizes_to_load(kind, SIZE)  # margins of 3 and 2: one centre is not even
    crops_model, images = tiny(), draw_images(image_size)
    expected_crops = cut_batch([images], SIZE, kind).reshape(-1, *SIZE, 3)
    rows = compute(crops_model, expected_crops)
    assert (np.ptp(rows[: num_views(kind)], axis=0).max() > 0.005) == (num_views(kind) > 1)
    expected = average_over_views(lambda part: part, kind, mean_of)(rows.reshape(len(images), -1))
    model = views_inside(crops_model, image_size, *crop_origins(kind, SIZE), mean_of)
    check_flat(model, crops_model.name, image_size)
    crops = import_keras().Model(model.input, operation_of(model, "views_as_batch").output)
    assert crops(images).dtype == "uint8"
    np.testing.assert_array_equal(crops(images), expected_crops)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(compute(model, images[:1]), expected[:1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(build_embed(model, BATCH_SIZE)(images), expected, atol=1e-6)
    check_stored(model, images, tmp_path / "model.keras")


def test_views_leave_the_network_as_it_was():
    network, images = tiny(), draw_images()
    before = compute(network, images)
    views = views_inside(network, (20, 20), [(0, 0), (4, 7)], mirrored=True)
    assert views.get_layer("conv") is network.get_layer("conv")
    np.testing.assert_array_equal(compute(network, images), before)
    assert network.layers[-1].name == PROBABILITIES_LAYER


def test_views_outside_the_image():
    message = (
        r"a crop of \(16, 13\) pixels at \(5, 0\) does not lie inside images of \(20, 20\); pass "
        r"origins inside them, or a larger image size\."
    )
    with pytest.raises(InputError, match=message):
        views_inside(tiny(), (20, 20), [(0, 0), (5, 0)], mirrored=False)
    for origins, size in (([(0, 8)], (20, 20)), ([(-1, 0)], (20, 20)), ([(0, 0)], (16, 12))):
        with pytest.raises(InputError, match="does not lie inside"):
            views_inside(tiny(), size, origins, mirrored=False)
    with pytest.raises(InputError, match="no view to look at; pass the origin of at least one"):
        views_inside(tiny(), (20, 20), [], mirrored=True)


# Calibration


@pytest.mark.parametrize("floor", [FLOOR, NETWORK_FLOOR])
@pytest.mark.parametrize("factor", [1, 30])
@pytest.mark.parametrize(
    ("slopes", "offsets"),
    [
        ((0.4,) * 3, (0.0,) * 3),
        ((0.3, 1.0, 2.0), (0.7, -1.2, 0.1)),
        ((0.05, 20.0, 5.0), (0.0, 0.0, 0.0)),
        ((1.0,) * 3, (0.0,) * 3),
    ],
)
def test_a_calibration_behind_a_mean(slopes, offsets, factor, floor, tmp_path):
    networks, images = [tiny(seed, factor=factor) for seed in range(2)], draw_images()
    merged = merge_networks(networks, [0.5, 0.5], "mean", "merged")
    model = scale_probabilities(merged, slopes, offsets, floor)
    expected = Scaling(slopes, offsets, floor).apply(compute(merged, images))
    check_flat(model, "merged", SIZE)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-6)
    check_stored(model, images, tmp_path / "model.keras")


def test_a_calibration_needs_a_number_for_each_class():
    with pytest.raises(InputError, match="'tiny_0' has 3 classes, but got 2 slopes and 3 offsets"):
        scale_probabilities(tiny(), [1.0] * 2, [0.0] * 3, FLOOR)
    with pytest.raises(InputError, match=r"3 slopes and 4 offsets; pass one of each per class\."):
        scale_probabilities(tiny(), [1.0] * 3, [0.0] * 4, FLOOR)


# Other programs


def build_shared():
    trunk, tail = tiny_parts()
    return share_trunk(trunk, tail, vary(tail, 3), "shared")


def build_geometric():
    return merge_networks([tiny(seed) for seed in range(2)], [0.3, 0.7], GEOMETRIC_MEAN, "merged")


def build_calibrated_views():
    (image_size,) = sizes_to_load("ten_crop", SIZE)
    views = views_inside(build_shared(), image_size, *crop_origins("ten_crop", SIZE))
    return scale_probabilities(views, (0.3, 1.0, 2.0), (0.7, -1.2, 0.1), NETWORK_FLOOR)


@pytest.mark.parametrize("build", [build_shared, build_geometric, build_calibrated_views])
@pytest.mark.parametrize("runtime", installed(*RUNTIMES))
def test_every_runtime_computes_them(runtime, build):
    model = build()
    images = draw_images(model.input_shape[1:3], BATCH_SIZE)
    run = build_run(model, runtime, batch_size=BATCH_SIZE)
    np.testing.assert_allclose(run(images), compute(model, images), rtol=0, atol=2e-6)
