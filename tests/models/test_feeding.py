import threading

import numpy as np
import pytest

from cvpipe.data.loading import Loader
from cvpipe.data.pixels import DecodedImages
from cvpipe.errors import InputError
from cvpipe.models.feeding import feed
from cvpipe.models.framework import import_keras
from cvpipe.models.normalisation import normalise
from cvpipe.sections import AugmentSection

AUGMENT = AugmentSection.model_validate({"preset": "natural", "mixup": 0.2})
EPOCHS = 3


@pytest.fixture(autouse=True)
def _no_worker_is_left_over():
    before = set(threading.enumerate())  # other libraries have threads of their own
    yield
    left = [t.name for t in threading.enumerate() if t not in before]
    assert not [name for name in left if name.startswith("ThreadPoolExecutor")]


class Failing(DecodedImages):
    def open(self, position):
        if position == 5:
            raise OSError(5, "the disk is gone")
        return super().open(position)


def build_loader(threads, source=DecodedImages, **changes):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (21, 20, 20, 3), dtype=np.uint8)
    settings = {"batch_size": 4, "num_classes": 3, "augment": AUGMENT, **changes}
    augment = settings.pop("augment")
    ids = [f"{number}.png" for number in range(21)]
    targets = np.arange(21) % 3
    return Loader(source(rows), ids, targets, (16, 16), augment, threads=threads, **settings)


def build_model(num_classes=3):
    keras = import_keras()
    keras.utils.set_random_seed(3)
    images = keras.Input((16, 16, 3), dtype="uint8")
    scaled = normalise(
        images,
        "channel_mean_std",
        {"channel_mean": np.full(3, 127.5), "channel_std": np.full(3, 70.0)},
    )
    hidden = keras.layers.Conv2D(4, 3, activation="relu")(scaled)
    hidden = keras.layers.BatchNormalization()(hidden)
    pooled = keras.layers.GlobalAveragePooling2D()(hidden)
    outputs = keras.layers.Dense(num_classes, activation="softmax")(pooled)
    model = keras.Model(images, outputs)
    model.compile("sgd", "categorical_crossentropy", jit_compile=False)
    return model


def fit(model, pairs, **arguments):
    model.fit(pairs, verbose=0, shuffle=False, **arguments)


def train(threads, epochs=EPOCHS):
    loader, model = build_loader(threads), build_model()
    with feed(loader.batches(epochs)) as pairs:
        fit(model, pairs, steps_per_epoch=loader.batches_per_epoch, epochs=epochs)
    return model.get_weights()


def test_weights_do_not_depend_on_the_number_of_loader_threads():
    untrained = build_model().get_weights()
    one, four, none = train(1), train(4), train(0)
    for left, right, third in zip(one, four, none, strict=True):
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(left, third)
    assert any((left != right).any() for left, right in zip(one, untrained, strict=True))


def test_fit_sees_what_a_plain_loop_sees():
    loader, model = build_loader(2), build_model()
    for batch in loader.batches(EPOCHS):
        model.train_on_batch(batch.images, batch.targets)
    # Keras compiles the two loops differently, so last bits may differ.
    for left, right in zip(model.get_weights(), train(2), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_fit_may_stop_early():
    keras = import_keras()

    class StopAtOnce(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    loader, model = build_loader(2), build_model()
    with feed(loader.batches(1000)) as pairs:
        fit(model, pairs, steps_per_epoch=6, epochs=1000, callbacks=[StopAtOnce()])
    assert loader.report.num_images < 200  # of 21,000


def test_an_error_of_the_loader_is_raised_as_it_was():
    loader, model = build_loader(2, Failing), build_model()
    with (
        pytest.raises(InputError, match=r"^cannot read the image '5.png': the disk is gone\.$"),
        feed(loader.batches(2)) as pairs,
    ):
        fit(model, pairs, steps_per_epoch=6, epochs=2)


def test_an_error_of_the_consumer_is_raised_as_it_was():
    def consume():
        with feed(build_loader(2).batches(2)) as pairs:
            next(pairs)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()


def test_nothing_is_delivered_after_the_end():
    with feed(build_loader(2).batches(2)) as pairs:
        next(pairs)
    assert list(pairs) == []
