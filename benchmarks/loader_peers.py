"""The loaders that `loader.py` measures ours against, each as its users write it.

All do the same to the same files: decode, cut a random part (share of the area from .35 to 1, ratio
from 3/4 to 4/3), resize it bilinearly, mirror half of the images, change brightness, contrast and
saturation by up to 20 %. `ImageDataGenerator` cannot cut so: it zooms and shifts instead. `float32`
is in [0, 255], of TensorFlow's functions, which ask for it, in [0, 1].

A contender is a generator function `(paths, size, num_threads)`: it yields batches of 32 views
`(height, width, 3)` without end, one shuffled epoch after the other. What it does before its first
batch is not timed. Frameworks are imported where they are used, so that PyTorch's worker
processes do not import TensorFlow; a framework that is missing raises `ModuleNotFoundError`.
"""

import contextlib
import io
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance

BATCH_SIZE = 32
AREA = (0.35, 1.0)
RATIO = (3 / 4, 4 / 3)
FACTORS = (0.8, 1.2)
CACHED_SIZE = (256, 256)

Paths = Sequence[str]
Size = tuple[int, int]
Batches = Generator[Sized, None, None]


class Contender(NamedTuple):
    """A loader and the kinds of images on which it makes sense."""

    batches: Callable[[Paths, Size, int], Batches]
    images: tuple[str, ...] = ("small", "large")


# TensorFlow


def tf_decode(path: Any, ratio: int = 1) -> Any:
    """Read and decode one file, scaled down by a factor that the decoder itself offers."""
    import tensorflow as tf

    return tf.io.decode_jpeg(tf.io.read_file(path), channels=3, ratio=ratio)


def tf_crop(shape: Any) -> tuple[Any, Any]:
    """Draw a part of an image: its first row and column, and its size."""
    import tensorflow as tf

    start, extent, _ = tf.image.sample_distorted_bounding_box(
        shape,
        tf.zeros((1, 0, 4)),
        min_object_covered=0.0,
        area_range=AREA,
        aspect_ratio_range=RATIO,
        use_image_if_no_bounding_boxes=True,
    )
    return start, extent


def tf_finish(image: Any, size: Size) -> Any:
    """Resize, mirror and colour one cut image."""
    import tensorflow as tf

    image = tf.image.resize(image, size, "bilinear") / 255
    image = tf.image.random_flip_left_right(image)
    image = tf.clip_by_value(image * tf.random.uniform((), *FACTORS), 0, 1)
    image = tf.image.random_contrast(image, *FACTORS)
    image = tf.image.random_saturation(image, *FACTORS)
    return tf.clip_by_value(image, 0, 1)


def tf_augment(image: Any, size: Size) -> Any:
    """Make a view of one decoded image with TensorFlow's own functions."""
    import tensorflow as tf

    view = tf_finish(tf.slice(image, *tf_crop(tf.shape(image))), size)
    return tf.ensure_shape(view, (*size, 3))


def tf_batches(dataset: Any, augment: Callable, num_threads: int, calls: int) -> Batches:
    """Map, batch and prefetch as TensorFlow's guide says, in a pool of so many threads."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = num_threads
    options.deterministic = True  # the default, and what ours is
    views = dataset.map(augment, num_parallel_calls=calls or tf.data.AUTOTUNE)
    yield from views.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE).with_options(options)


def tf_paths(paths: Paths) -> Any:
    """Shuffle the paths anew in every epoch, without end."""
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(list(paths))
    return dataset.shuffle(len(paths), seed=0).repeat()


def tf_native(paths: Paths, size: Size, num_threads: int, ratio: int = 1) -> Batches:
    """Do everything in tf.data and tf.image."""

    def view(path: Any) -> Any:
        return tf_augment(tf_decode(path, ratio), size)

    yield from tf_batches(tf_paths(paths), view, num_threads, 0)


def tf_decode_and_crop(paths: Paths, size: Size, num_threads: int) -> Batches:
    """Decode only the part that is cut."""
    import tensorflow as tf

    def view(path: Any) -> Any:
        content = tf.io.read_file(path)
        start, extent = tf_crop(tf.io.extract_jpeg_shape(content))
        window = tf.concat([start[:2], extent[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(content, window, channels=3)
        return tf.ensure_shape(tf_finish(image, size), (*size, 3))

    yield from tf_batches(tf_paths(paths), view, num_threads, 0)


def tf_numpy_function(paths: Paths, size: Size, num_threads: int) -> Batches:
    """Decode in TensorFlow and augment by albumentations."""
    import tensorflow as tf

    change = transform(size)

    def view(path: Any) -> Any:
        augment = partial(augmented, change=change, dtype=np.float32)
        image = tf.numpy_function(augment, [tf_decode(path)], tf.float32)
        return tf.ensure_shape(image, (*size, 3))

    # As many calls as threads: AUTOTUNE takes more, and they wait for Python's lock.
    yield from tf_batches(tf_paths(paths), view, num_threads, num_threads)


def tf_cache(paths: Paths, size: Size, num_threads: int) -> Batches:
    """Keep all decoded images, shrunk to 256 x 256, in memory; filled before the first batch."""
    import tensorflow as tf

    def shrink(path: Any) -> Any:
        return tf.cast(tf.image.resize(tf_decode(path), CACHED_SIZE, "bilinear"), tf.uint8)

    images = tf.data.Dataset.from_tensor_slices(list(paths))
    images = images.map(shrink, num_parallel_calls=tf.data.AUTOTUNE).cache()
    deque(images, maxlen=0)
    shuffled = images.shuffle(len(paths), seed=0).repeat()
    yield from tf_batches(shuffled, partial(tf_augment, size=size), num_threads, 0)


# albumentations, OpenCV and Pillow


def transform(size: Size, interpolation: int = cv2.INTER_LINEAR) -> Callable:
    """Build albumentations' transformation; OpenCV's own threads would fight the loader's."""
    import albumentations

    cv2.setNumThreads(0)  # after the import, which sets it
    return albumentations.Compose(
        [
            albumentations.RandomResizedCrop(size, AREA, RATIO, interpolation=interpolation),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(FACTORS, FACTORS, FACTORS, (0, 0), p=1),
        ]
    )


def augmented(image: np.ndarray, change: Callable, dtype: type) -> np.ndarray:
    """Make a view, as `uint8` or as `float32`, in [0, 255]."""
    view = change(image=image)["image"]
    return view.astype(dtype, copy=False)


def read(path: str) -> np.ndarray:
    """Decode a file by OpenCV."""
    return cv2.imread(path, cv2.IMREAD_COLOR_RGB)


def shuffled_batches(paths: Paths) -> Iterator[list[str]]:
    """Cut endless shuffled epochs into batches."""
    rng = np.random.default_rng(0)
    endless = (paths[row] for _ in itertools.count() for row in rng.permutation(len(paths)))
    while True:
        yield list(itertools.islice(endless, BATCH_SIZE))


def in_threads(load: Callable[[str], np.ndarray], paths: Paths, num_threads: int) -> Batches:
    """Give whole batches to threads, a few ahead: the plainest loader in Python."""

    def load_batch(batch: list[str]) -> np.ndarray:
        return np.stack([load(path) for path in batch])

    tasks = shuffled_batches(paths)
    with ThreadPoolExecutor(num_threads) as pool:
        ahead = deque(pool.submit(load_batch, next(tasks)) for _ in range(num_threads + 2))
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(load_batch, next(tasks)))


def opencv_area(paths: Paths, size: Size, num_threads: int) -> Batches:
    """Decode fully and average over areas, as one does against aliasing."""
    change = transform(size, cv2.INTER_AREA)
    yield from in_threads(lambda path: augmented(read(path), change, np.uint8), paths, num_threads)


def draw_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Draw a part `(left, top, right, bottom)` of an image as albumentations does."""
    for _ in range(10):
        area, ratio = rng.uniform(*AREA), np.exp(rng.uniform(*np.log(RATIO)))
        w, h = np.sqrt(width * height * area * ratio), np.sqrt(width * height * area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def pillow_view(path: str, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Make a view with Pillow alone, decoded as small as the drawn part allows."""
    height, width = size
    with Image.open(path) as image:
        full = image.size
        box = np.array(draw_box(*full, rng))
        share = (box[2:] - box[:2]) / full
        image.draft("RGB", (int(width / share[0]), int(height / share[1])))
        box *= np.tile(np.divide(image.size, full), 2)
        view = image.resize((width, height), Image.Resampling.BILINEAR, tuple(box))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = change(view).enhance(rng.uniform(*FACTORS))
    return np.asarray(view)


def pillow_draft(paths: Paths, size: Size, num_threads: int) -> Batches:
    """Load with Pillow's scaled decoding."""
    streams = itertools.count()

    def load(path: str) -> np.ndarray:
        return pillow_view(path, size, np.random.default_rng(next(streams)))

    yield from in_threads(load, paths, num_threads)


# Keras


def keras_batches(dataset: Any) -> Batches:
    """Batches as `fit` gets them; in the end its workers are stopped, which nothing else does."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    adapter = PyDatasetAdapter(dataset)
    try:
        for (batch,) in adapter.get_tf_dataset():
            yield batch
    finally:
        adapter.on_epoch_end()


def through_keras(contender: Contender) -> Contender:
    """Take the batches of another contender as `fit` gets those of a generator."""

    def batches(paths: Paths, size: Size, num_threads: int) -> Batches:
        from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter

        with contextlib.closing(contender.batches(paths, size, num_threads)) as plain:
            pairs = ((batch,) for batch in plain)
            for (batch,) in GeneratorDataAdapter(pairs).get_tf_dataset():
                yield batch

    return contender._replace(batches=batches)


def py_dataset(paths: Paths, size: Size, num_threads: int) -> Batches:
    """Give Keras a PyDataset with albumentations, its workers threads."""
    import keras

    change = transform(size)
    num_steps = -(-len(paths) // BATCH_SIZE)

    class Views(keras.utils.PyDataset):
        num_batches = None  # Keras' sign for no end

        def __getitem__(self, index: int) -> np.ndarray:
            """Make one batch of any epoch."""
            epoch, step = divmod(index, num_steps)
            order = np.random.default_rng(epoch).permutation(len(paths))
            rows = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            return np.stack([augmented(read(paths[row]), change, np.float32) for row in rows])

    yield from keras_batches(Views(workers=num_threads))


def image_data_generator(paths: Paths, size: Size, num_threads: int) -> Batches:
    """Use Keras' old generator with what it offers; large photos take it seconds a batch."""
    import pandas as pd
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    generator = ImageDataGenerator(
        zoom_range=(0.6, 1.0),
        width_shift_range=0.1,
        height_shift_range=0.1,
        brightness_range=FACTORS,
        horizontal_flip=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how many files there are
        views = generator.flow_from_dataframe(
            pd.DataFrame({"path": paths}),
            x_col="path",
            target_size=size,
            batch_size=BATCH_SIZE,
            class_mode=None,
            interpolation="bilinear",
            validate_filenames=False,
        )
    views.workers = num_threads
    while True:
        yield from keras_batches(views)


# PyTorch


class TorchViews:
    """What PyTorch's worker processes do; at the top level, so that they can import it."""

    def __init__(self, paths: Paths, size: Size, dtype: type):
        self.paths, self.dtype, self.change = paths, dtype, transform(size)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Make one view."""
        return augmented(read(self.paths[row]), self.change, self.dtype)


def one_opencv_thread(_: int) -> None:
    """Start a worker process."""
    cv2.setNumThreads(0)


def torch_loader(paths: Paths, size: Size, num_threads: int, dtype: type) -> Batches:
    """Use PyTorch's DataLoader with albumentations in worker processes that live on."""
    from torch.utils.data import DataLoader

    context = multiprocessing.get_context("forkserver")  # TensorFlow's threads forbid a fork
    context.set_forkserver_preload(["torch", "albumentations"])
    loader = DataLoader(
        TorchViews(paths, size, dtype),
        BATCH_SIZE,
        shuffle=True,
        num_workers=num_threads,
        multiprocessing_context=context,
        worker_init_fn=one_opencv_thread,
        persistent_workers=True,
    )
    while True:
        yield from loader


NATIVE = "tf.data native, float32"
PEERS = {
    NATIVE: Contender(tf_native),
    "tf.data decode_and_crop, float32": Contender(tf_decode_and_crop),
    "tf.data decoding at 1/4, float32": Contender(partial(tf_native, ratio=4), ("large",)),
    "tf.data + numpy_function + albumentations, float32": Contender(tf_numpy_function),
    "tf.data cache(), float32": Contender(tf_cache, ("small",)),
    "PyDataset + albumentations, float32": Contender(py_dataset),
    "ImageDataGenerator, float32": Contender(image_data_generator, ("small",)),
    "DataLoader + albumentations, float32": Contender(partial(torch_loader, dtype=np.float32)),
    "DataLoader + albumentations, uint8": Contender(partial(torch_loader, dtype=np.uint8)),
    "threads, full decoding, area resize, uint8": Contender(opencv_area),
    "threads, Pillow draft, uint8": Contender(pillow_draft, ("large",)),
}
