"""Show how the contenders see the images: what they compare, what they learned, how they chose.

Nothing is chosen by any of it. The nearest training images of some test images are stored once
test was opened; all else is read from what the run has stored, whenever its page is written.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from cvpipe.cache import cache_root, mapped_rows
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.config import Config
from cvpipe.data.images import decode_rule, resize_image
from cvpipe.data.threads import load_batches
from cvpipe.features.table import KINDS, Feature
from cvpipe.files import read_json, write_table
from cvpipe.models.deep_features import DeepFeature
from cvpipe.plots.distance import equal_distance_versions
from cvpipe.plots.features import class_templates, hog_glyphs, tile_sheet
from cvpipe.plots.neighbours import neighbour_strip
from cvpipe.report.understanding import (
    Captioned,
    Codebook,
    EqualDistances,
    Glyphs,
    NeighbourRow,
    Neighbours,
    Search,
    Templates,
    Understanding,
)
from cvpipe.runs import Run
from cvpipe.stages.features import (
    Descriptor,
    build_descriptor,
    files_of,
    learned_path,
    recall_rows,
    setup_of,
)
from cvpipe.stages.fingerprint import sample_ids
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import SOFTMAX, AnyFeature, classifier_of, feature_names, known_features
from cvpipe.stages.split import rows_of_split
from cvpipe.stages.stored_models import load_estimator

if TYPE_CHECKING:
    from cvpipe.features.bag_of_words import BagOfWords

NUM_NEIGHBOURS = 5
LOOKED_UP_PER_CLASS = 2
MAX_LOOKED_UP = 8
BLOCK_BYTES = 32_000_000  # of rows of training images that are compared at a time
NEIGHBOUR_COLUMNS = (
    *("image_id", "label", "space", "rank", "train_image_id", "train_label", "distance"),
)
NEIGHBOUR_PIXELS = 64
GLYPHS_PIXELS = 192  # of a whole image, or more where a cell needs `MIN_GLYPH_PIXELS`
MIN_GLYPH_PIXELS = 8
TRIED_FOR_DISTANCE = 6
MAX_GLYPH_CLASSES = 6
MAX_TILES = 200
TILE_PIXELS = 18
TILE_COLUMNS = 16
# Where words are no pictures: how many are shown by how many patches of how many images.
MAX_EXEMPLIFIED, PATCHES_PER_WORD, IMAGES_FOR_PATCHES = 24, 6, 48
PATCH_PIXELS, PATCH_COLUMNS, PATCH_GAP = 22, 3, 6
MAX_TEMPLATES = 12
SOFTMAXES = ("softmax", "softmax_l1", "softmax_elastic_net")
LINEAR_CLASSIFIERS = ("linear_svm", "linear_svm_hinge", *SOFTMAXES)
CODEBOOK_KINDS = ("bag_of_words", "kmeans_features")
PICTURES_AT_ONCE = 8  # large photos are held whole until they are resized


class Reading(NamedTuple):
    """A feature and the names of the contenders that read it."""

    feature: Feature
    contenders: list[str]


def run_neighbours(job: Job) -> None:
    """Store the nearest training images of some test images; what is stored is kept.

    Without a contender that reads pixels, HOG or a network nothing is stored.
    """
    spaces = neighbour_spaces(job.config)
    if not spaces or job.run.neighbours_path.exists():
        return
    with job.timed("neighbours", "neighbours: training images nearest to some test images"):
        train, test = rows_of_split(job, "train"), rows_of_split(job, "test")
        number = min(MAX_LOOKED_UP, LOOKED_UP_PER_CLASS * test["label"].nunique())
        looked_up = test.set_index("image_id").loc[sample_ids(test, number)].reset_index()
        # The first of every class, then the second.
        turn = looked_up.groupby("label").cumcount()
        looked_up = looked_up.iloc[np.lexsort([looked_up["label"], turn])].reset_index(drop=True)
        setup = setup_of(job.config)
        tables = []
        for space in spaces:
            descriptor = build_descriptor(space, setup)
            queries = recall_rows(descriptor, files_of(job.root, looked_up), job.watcher)
            nearest, distances = nearest_rows(job, descriptor, train, queries)
            tables.append(neighbour_table(space, looked_up, train, nearest, distances))
        write_table(job.run.neighbours_path, pd.concat(tables, ignore_index=True))


def neighbour_spaces(config: Config) -> list[str]:
    """Name the features in which images are compared: pixels, HOG and a backbone.

    Of each the first that a contender reads; none where no contender reads such a one.
    """
    known = known_features(config)
    spaces: dict[str, str] = {}
    for contender in config.contender:
        for name in feature_names(contender):
            feature = known.get(name)
            kind = feature.kind if isinstance(feature, Feature) else ""
            spaces.setdefault("backbone" if isinstance(feature, DeepFeature) else kind, name)
    return [spaces[kind] for kind in ("raw_pixels", "hog", "backbone") if kind in spaces]


def nearest_rows(
    job: Job, descriptor: Descriptor, train: pd.DataFrame, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the training rows that are nearest to some rows by Euclidean distance.

    The rows of train stay on disk but for a block of `BLOCK_BYTES`, held three times. Of equal
    distances the first in the order of train comes first.

    Args:
        job: The run.
        descriptor: Makes the rows of train.
        train: Manifest rows of train.
        queries: `float32` array of shape `(n, row_size)`.

    Returns:
        Positions in train and distances, of shape `(n, k)`, the nearest first; `k` is
        `NUM_NEIGHBOURS` or all of a smaller train.
    """
    files, prepare = files_of(job.root, train), functools.cache(descriptor.prepare)
    paths = files.paths
    rows = mapped_rows(
        descriptor.space,
        files.sha256s,
        lambda positions: prepare()([paths[position] for position in positions]),
        (descriptor.row_size,),
        np.dtype(np.float32),
        cache_root(),
    )
    per_block = max(1, BLOCK_BYTES // (8 * descriptor.row_size))
    positions: np.ndarray = np.empty((len(queries), 0), dtype=np.int64)
    distances: np.ndarray = np.empty((len(queries), 0))
    for start in range(0, len(train), per_block):
        block = range(start, min(start + per_block, len(train)))
        values = np.stack([rows[position] for position in block]).astype(np.float64)
        found = np.stack([np.sqrt(np.square(values - query).sum(axis=1)) for query in queries])
        distances = np.hstack([distances, found])
        positions = np.hstack([positions, np.tile(block, (len(queries), 1))])
        order = np.argsort(distances, axis=1, kind="stable")[:, :NUM_NEIGHBOURS]
        distances, positions = (np.take_along_axis(a, order, 1) for a in (distances, positions))
    return positions, distances


def neighbour_table(
    space: str,
    looked_up: pd.DataFrame,
    train: pd.DataFrame,
    nearest: np.ndarray,
    distances: np.ndarray,
) -> pd.DataFrame:
    """Write neighbours as rows of `NEIGHBOUR_COLUMNS`, image by image, the nearest first."""
    num_images, num_neighbours = nearest.shape
    found = train.iloc[nearest.ravel()]
    table = looked_up[["image_id", "label"]].loc[np.repeat(np.arange(num_images), num_neighbours)]
    return table.assign(
        space=space,
        rank=np.tile(np.arange(1, num_neighbours + 1), num_images),
        train_image_id=found["image_id"].to_numpy(),
        train_label=found["label"].to_numpy(),
        distance=distances.ravel(),
    )[list(NEIGHBOUR_COLUMNS)]


def collect_understanding(run: Run, root: Path, manifest: pd.DataFrame) -> Understanding:
    """Collect what the contenders of a run call for.

    Args:
        run: A run that was evaluated.
        root: Folder of the images.
        manifest: All images of the run.
    """
    train = manifest[manifest["split"] == "train"]
    return Understanding(
        neighbours=collect_neighbours(run, root),
        equal_distances=collect_equal_distances(run, root, train),
        glyphs=collect_glyphs(run, root, train),
        codebooks=collect_codebooks(run, root, train),
        templates=collect_templates(run),
        searches=collect_searches(run),
    )


def collect_neighbours(run: Run, root: Path) -> list[Neighbours]:
    """Read the nearest training images and load their pictures."""
    table, known = run.neighbours(), known_features(run.config())
    ids = pd.unique(table[["image_id", "train_image_id"]].to_numpy().ravel()).tolist()
    side = (NEIGHBOUR_PIXELS, NEIGHBOUR_PIXELS)
    pictures = dict(zip(ids, load_pictures(run, root, ids, side), strict=True))
    grids = []
    for (image_id, label), of_image in table.groupby(["image_id", "label"], sort=False):
        rows = []
        for space, nearest in of_image.groupby("space", sort=False):
            labels = nearest["train_label"].tolist()
            right = [train_label == label for train_label in labels]
            found = np.stack([pictures[image] for image in nearest["train_image_id"]])
            words = space_in_words(str(space), known)
            rows.append(NeighbourRow(words, neighbour_strip(found, right), labels, right))
        grids.append(Neighbours(str(image_id), str(label), pictures[image_id], rows))
    return grids


def space_in_words(name: str, known: Mapping[str, AnyFeature]) -> str:
    """Say in a few words what is compared in a space.

    Example:
        >>> space_in_words("efficientnet_lite0", {})
        'features of efficientnet_lite0'
    """
    feature = known.get(name)
    words = {"raw_pixels": "pixels", "hog": "HOG"}
    return words[feature.kind] if isinstance(feature, Feature) else f"features of {name}"


def collect_equal_distances(run: Run, root: Path, train: pd.DataFrame) -> EqualDistances | None:
    """Make versions of a training image, all at one distance, where neighbours of pixels vote.

    The distance is that of the levels of all three colours, so nothing else may be compared.
    """
    config = run.config()
    read = features_read(config, "raw_pixels", ["nearest_neighbours"])
    lone = {one.name for one in config.contender if len(feature_names(one)) == 1}
    usual = KINDS["raw_pixels"].settings
    for feature, names in read.values():
        contenders = [name for name in names if name in lone]
        if contenders and feature.settings == usual:
            break
    else:
        return None
    images = load_pictures(run, root, sample_ids(train, TRIED_FOR_DISTANCE), feature.image_size)
    # Of some images the one that shows most: of a dark or smooth one all versions look the same.
    tried = [(equal_distance_versions(image), image) for image in images]
    versions, image = max(tried, key=lambda pair: pair[0][0].distance)
    pictures = [Captioned(version.picture, version.name) for version in versions]
    return EqualDistances(
        contenders=contenders,
        image_size=feature.image_size,
        distance=versions[0].distance,
        pictures=[Captioned(image, "the image"), *pictures],
    )


def collect_glyphs(run: Run, root: Path, train: pd.DataFrame) -> Glyphs | None:
    """Draw what the first HOG that a contender reads keeps of an image of each class."""
    read = features_read(run.config(), "hog")
    if not read:
        return None
    feature, contenders = next(iter(read.values()))
    class_names = run.class_names()
    rows = train[train["label"].isin(class_names[:MAX_GLYPH_CLASSES])]
    ids = sample_ids(rows, rows["label"].nunique())  # one of each class
    images = load_pictures(run, root, ids, feature.image_size)
    hog = feature.build().fit(images)
    strengths = hog.cell_strengths(hog.transform(images))
    cell_pixels = max(MIN_GLYPH_PIXELS, GLYPHS_PIXELS // max(strengths.shape[1:3]))
    labels = train.set_index("image_id")["label"].loc[ids]
    signed = bool(feature.settings.get("signed"))
    drawn = [np.repeat(hog_glyphs(s, cell_pixels, signed)[..., None], 3, 2) for s in strengths]
    pairs = sorted(zip(labels, images, drawn, strict=True), key=lambda pair: str(pair[0]))
    return Glyphs(feature.title, contenders, pairs, len(class_names))


def collect_codebooks(run: Run, root: Path, train: pd.DataFrame) -> list[Codebook]:
    """Show the words of each feature that has learned some.

    Contenders that read the same feature have learned the same words from the same images.
    """
    books = []
    for kind in CODEBOOK_KINDS:
        for name, (feature, contenders) in features_read(run.config(), kind).items():
            path = learned_path(run.part_path(contenders[0]), name)
            if not path.exists():
                continue
            learned = load_estimator(path)
            if feature.settings.get("descriptor") == "sift":
                ids = sample_ids(train, IMAGES_FOR_PATCHES)
                images = load_pictures(run, root, ids, feature.image_size)
                books.append(exemplify(learned, images, feature.title, contenders))
            else:
                tiles = learned.word_tiles()
                shown = some_of(tiles, MAX_TILES)
                sheet = tile_sheet(enlarge(shown, TILE_PIXELS), TILE_COLUMNS)
                books.append(Codebook(feature.title, contenders, sheet, len(tiles), len(shown)))
    return books


def exemplify(
    bag: "BagOfWords", images: np.ndarray, title: str, contenders: Sequence[str]
) -> Codebook:
    """Show some words of a bag by the patches of images that are nearest to them.

    Args:
        bag: Fitted on images of the same size.
        images: `uint8` array of shape `(n, height, width, 3)`.
        title: What the feature is called.
        contenders: Names of those that read it.
    """
    from cvpipe.features.bag_of_words import example_patches

    examples = example_patches(bag, images, PATCHES_PER_WORD)
    # Missing patches are black; words that have all of them say most.
    found = examples.any(axis=(2, 3, 4)).sum(axis=1)
    shown = some_of(examples[found == found.max()], MAX_EXEMPLIFIED)
    side = (PATCH_PIXELS, PATCH_PIXELS)
    rows = [
        tile_sheet(np.stack([resize_image(patch, side, "stretch") for patch in word]), len(word))
        for word in shown
    ]
    sheet = tile_sheet(np.stack(rows), PATCH_COLUMNS, PATCH_GAP)
    return Codebook(title, contenders, sheet, len(examples), len(shown), PATCHES_PER_WORD)


def some_of(rows: np.ndarray, number: int) -> np.ndarray:
    """Take so many rows, evenly spaced, or all where there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)]


def enlarge(tiles: np.ndarray, pixels: int) -> np.ndarray:
    """Repeat the pixels of tiles so often that a side comes near to a length."""
    times = max(1, round(pixels / tiles.shape[1]))
    return tiles.repeat(times, axis=1).repeat(times, axis=2)


def collect_templates(run: Run) -> list[Templates]:
    """Show the weights of each linear classifier that reads pixels and nothing else."""
    config, class_names = run.config(), run.class_names()
    known, found = known_features(config), []
    for contender in config.contender:
        path = run.part_path(contender.name) / "model.skops"
        features = [known.get(name) for name in feature_names(contender)]
        linear = classifier_of(contender) in LINEAR_CLASSIFIERS
        if not linear or len(features) != 1 or not path.exists():
            continue
        (feature,) = features
        if not isinstance(feature, Feature) or feature.kind != "raw_pixels":
            continue
        kernel = kernel_of(load_estimator(path))
        templates = class_templates(kernel, feature.image_size)[:MAX_TEMPLATES]
        shown = [Captioned(t, label) for t, label in zip(templates, class_names, strict=False)]
        found.append(Templates(contender.name, shown, len(class_names)))
    return found


def kernel_of(estimator: Any) -> np.ndarray:
    """Read the weights of a fitted linear classifier, on features as they are.

    Returns:
        Array of shape `(num_features, num_classes)`; of two classes a single column, which
        speaks for the second one.
    """
    if hasattr(estimator, "calibrated_classifiers_"):  # a support vector machine
        return np.asarray(estimator.calibrated_classifiers_[0].estimator.coef_.T)
    scaler, model = estimator[0], estimator[1]
    kernel = np.asarray(model.coef_.T / scaler.scale_[:, None])
    return kernel[:, 1:] - kernel[:, :1] if kernel.shape[1] == 2 else kernel


def collect_searches(run: Run) -> list[Search]:
    """Read what cross-validation said of the settings of each contender that had a choice."""
    searches = []
    for contender in run.config().contender:
        table = run.search(contender.name)
        fit = read_json(run.part_path(contender.name) / "fit.json")
        chosen = fit["chosen"]
        if "value" in table and len(chosen) == 1:  # the name of the column in older runs
            table = table.rename(columns={"value": next(iter(chosen))})
        searched = [name for name in chosen if name in table and table[name].nunique() > 1]
        if not searched:
            continue
        # Along the axis runs the one of numbers of which most were tried.
        searched.sort(key=lambda name: (not is_numeric_dtype(table[name]), -table[name].nunique()))
        metric = "accuracy"
        if CLASSIFIERS[classifier_of(contender) or SOFTMAX].scoring == "log_likelihood":
            metric, table = "log_loss", table.assign(mean=-table["mean"])
        settings = {name: chosen[name] for name in searched}
        num_folds = int(table["folds"].max())
        searches.append(Search(contender.name, table, settings, metric, num_folds))
    return searches


def features_read(config: Config, kind: str, classifiers: Sequence[str] = ()) -> dict[str, Reading]:
    """Map the names of the features of a kind to who reads them, in the order of the config.

    Args:
        config: The run's.
        kind: One of `cvpipe.features.table.KINDS`.
        classifiers: Only contenders with one of these; all if there is none.
    """
    known = known_features(config)
    found: dict[str, Reading] = {}
    for contender in config.contender:
        for name in feature_names(contender):
            feature = known.get(name)
            wanted = not classifiers or classifier_of(contender) in classifiers
            if isinstance(feature, Feature) and feature.kind == kind and wanted:
                found.setdefault(name, Reading(feature, [])).contenders.append(contender.name)
    return found


def load_pictures(
    run: Run, root: Path, image_ids: Sequence[str], image_size: tuple[int, int]
) -> np.ndarray:
    """Load images as contenders of a run see them: `uint8 (n, height, width, 3)`."""
    config = run.config()
    rule = decode_rule(config.images, config.data)
    paths = [root / image_id for image_id in image_ids]
    pictures = np.empty((len(paths), *image_size, 3), dtype=np.uint8)
    start = 0
    for batch in load_batches(paths, image_size, rule, PICTURES_AT_ONCE, config.threads):
        pictures[start : start + len(batch)] = batch
        start += len(batch)
    return pictures
