"""Say which images are unlike the training images, and how well that works.

The scores are those of `cvpipe.inference.unlike`. What they need is fitted on train, their bounds
on the half of val that nothing was chosen on, both before the test split is opened. Beside a
contender's model lie `unlike.npz` (arrays), `unlike.json` (bounds; written last) and, once test
was opened, `unlike-test.csv` (the scores of each test image).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.cache import cache_root, max_bytes, trim
from cvpipe.classifiers.search import linear_head
from cvpipe.contender_sections import Contender, EnsembleContender, NetworkContender
from cvpipe.data.audit import hash_file
from cvpipe.data.images import DecodeRule, decode_rule, read_image
from cvpipe.data.manifest import is_image_name
from cvpipe.data.threads import ordered_map
from cvpipe.errors import InputError, check_name
from cvpipe.evaluation.detection import area_with_interval
from cvpipe.evaluation.means import mean_with_interval
from cvpipe.files import atomic_path, read_json, write_json, write_table
from cvpipe.inference.crops import SINGLE, average_over_views
from cvpipe.inference.unlike import (
    DEFAULT_SCORE,
    FLAGGED_FRACTION,
    SCORES,
    bound_of,
    improbability,
    neighbour_distance,
    score_images,
    unit_rows,
)
from cvpipe.models.deep_features import DeepFeature
from cvpipe.models.features import build_embed
from cvpipe.models.framework import set_threads
from cvpipe.models.heads import backbone_of, head_weights
from cvpipe.numerics import one_thread
from cvpipe.report.content import UNLIKE_COLUMNS
from cvpipe.runs import Run, open_run
from cvpipe.stages.calibration import load_calibration
from cvpipe.stages.contenders import (
    features_of,
    load_network,
    load_predictor,
    stored_describer,
)
from cvpipe.stages.evaluate import fix_choice
from cvpipe.stages.export import contender_to_export
from cvpipe.stages.features import ImageFiles, from_images
from cvpipe.stages.halves import rows_for_fitting
from cvpipe.stages.job import Job, Nobody, Watcher
from cvpipe.stages.predict import bundle_of, calibrated, load_contender
from cvpipe.stages.recipes import classifier_of, feature_names, is_baseline, known_features
from cvpipe.stages.split import rows_of_split
from cvpipe.stages.stored_models import load_estimator
from cvpipe.stages.summary import aligned, with_interval

SOFTMAX = "softmax"  # the classifier that is a linear head
MAX_NAMED = 10


@dataclass(frozen=True)
class UnlikeResult:
    """How well the scores of a contender tell the images of a folder from the test images.

    Attributes:
        contender: Whose scores.
        num_images: Images of the folder that were scored.
        unreadable: Path in the folder and reason of each image that was left out.
        table: One row per score: `score`, `bound`, and value, `_low` and `_high` of
            `test` and `folder` (the shares above the bound) and of `area` (under the ROC curve).
    """

    contender: str
    num_images: int
    unreadable: list[tuple[str, str]]
    table: pd.DataFrame


@dataclass(frozen=True)
class Flags:
    """A score of new images beside its bound.

    Attributes:
        score: One of `SCORES`.
        bound: What 95 % of images like those of training do not exceed.
        values: Array of shape `(n,)`.
    """

    score: str
    bound: float
    values: np.ndarray

    @property
    def is_unlike(self) -> np.ndarray:
        """`bool (n,)`: which images are above the bound."""
        return self.values > self.bound


def fit_unlike(job: Job) -> None:
    """Fit the scores of the chosen and the exported contender; what is stored is kept."""
    fix_choice(job)
    for contender in watched_contenders(job):
        if not bounds_path(job.run, contender.name).exists():
            with job.timed("unlike", f"unlike: how unlike train images may be, {contender.name}"):
                fit_scores(job, contender)


def watched_contenders(job: Job) -> list[Contender]:
    """List the chosen contender and the exported one; none that looks at no pixel."""
    names = {fix_choice(job), contender_to_export(job)}
    return [c for c in job.config.contender if c.name in names and not is_baseline(c)]


def fit_scores(job: Job, contender: Contender) -> None:
    """Store what the scores of a contender need, and their bounds."""
    val = rows_of_split(job, "val")
    val = val[rows_for_fitting(val)].reset_index(drop=True)
    parts = fit_parts(job, contender)
    predictions = job.run.predictions("val", contender.name)
    scores = score_rows(job, contender, val, parts, predictions)
    part = job.run.part_path(contender.name)
    with atomic_path(part / "unlike.npz") as partial:
        np.savez(partial, **parts)
    write_json(
        bounds_path(job.run, contender.name),
        {
            "bounds": {name: bound_of(values) for name, values in scores.items()},
            "flagged_fraction": FLAGGED_FRACTION,
            "num_images": len(val),
        },
    )


def fit_parts(job: Job, contender: Contender) -> dict[str, Any]:
    """Collect the arrays that the scores of a contender need; see `score_images`."""
    names = feature_names(contender)
    known = known_features(job.config)
    if not names or not all(isinstance(known[name], DeepFeature) for name in names):
        return {}
    describer = stored_describer(job.run, contender)
    train = features_of(job, describer, rows_of_split(job, "train"))
    parts = {"train_rows": unit_rows(train)}
    if classifier_of(contender) == SOFTMAX:
        parts["kernel"], parts["bias"] = load_head(job, contender)
    return parts


def load_head(job: Job, contender: Contender) -> tuple[np.ndarray, np.ndarray]:
    """Load matrix and vector of a contender's linear head."""
    part = job.run.part_path(contender.name)
    if isinstance(contender, NetworkContender):
        set_threads(job.config.threads)
        return head_weights(load_network(part / "model.keras"))
    return linear_head(load_estimator(part / "model.skops"), len(job.run.class_names()))


def score_rows(
    job: Job,
    contender: Contender,
    rows: pd.DataFrame,
    parts: Mapping[str, np.ndarray],
    predictions: pd.DataFrame,
) -> dict[str, np.ndarray]:
    """Score manifest rows, whose stored predictions are among those given."""
    of_rows = predictions.set_index("image_id").loc[rows["image_id"]].reset_index()
    features = np.empty((len(rows), 0))
    if parts:
        features = features_of(job, stored_describer(job.run, contender), rows)
    with one_thread():  # as everywhere: more threads sum in another order
        return score_images(parts, frames.probabilities_of(of_rows), features)


def measure_unlike(job: Job) -> None:
    """Store the scores of the test images and the shares above the bounds."""
    if job.run.unlike_path.exists():
        return
    test = rows_of_split(job, "test")
    tables = []
    for contender in watched_contenders(job):
        parts = load_parts(job.run, contender.name)
        predictions = job.run.predictions("test", contender.name)
        scores = pd.DataFrame(score_rows(job, contender, test, parts, predictions))
        scores.insert(0, "image_id", test["image_id"].to_numpy())
        write_table(test_scores_path(job.run, contender.name), scores)
        tables.append(flagged_shares(job, contender.name, scores, test["group"].to_numpy()))
    table = pd.concat(tables) if tables else pd.DataFrame(columns=list(UNLIKE_COLUMNS))
    write_table(job.run.unlike_path, table)


def flagged_shares(job: Job, name: str, scores: pd.DataFrame, groups: np.ndarray) -> pd.DataFrame:
    """Compute the share of test images above each bound, with its interval."""
    seed, resamples = job.config.seed, job.config.evaluate.resamples
    rows = []
    for score, bound in job.run.unlike_bounds(name).items():
        flagged = scores[score].to_numpy() > bound
        share = mean_with_interval(flagged, groups, seed, resamples)
        rows.append((name, score, "test", *share, len(scores)))
    return pd.DataFrame(rows, columns=list(UNLIKE_COLUMNS))


def bounds_path(run: Run, name: str) -> Path:
    """File of the bounds of a contender; there when all that its scores need is there."""
    return run.part_path(name) / "unlike.json"


def test_scores_path(run: Run, name: str) -> Path:
    """File of the scores of the test images."""
    return run.part_path(name) / "unlike-test.csv"


def parts_path(run: Run, name: str) -> Path:
    """File of the arrays that the scores of a contender need; large, so it may be missing."""
    return run.part_path(name) / "unlike.npz"


def load_parts(run: Run, name: str) -> dict[str, np.ndarray]:
    """Load the arrays that the scores of a contender need."""
    with np.load(parts_path(run, name), allow_pickle=False) as stored:
        return dict(stored)


def compare_with_folder(
    run: Run, folder: Path, contender: str = "", watcher: Watcher | None = None
) -> UnlikeResult:
    """Measure how well the scores tell the images of a folder from the test images of a run.

    Nothing is written into the run.

    Args:
        run: A finished run.
        folder: Images at any depth; no labels are needed.
        contender: Whose scores; those of the chosen contender where none is named.
        watcher: Who is told what happens.

    Raises:
        InputError: The run or the contender has no scores, the folder is missing, or no image
            in it can be read.
    """
    config = run.config()
    name = watched_name(run, contender)
    image_ids = list_images(folder)
    rule = decode_rule(config.images, config.data)
    reasons = dict(zip(image_ids, read_all(folder, image_ids, rule, config.threads), strict=True))
    readable = [image_id for image_id, reason in reasons.items() if not reason]
    if not readable:
        raise InputError(
            f"none of the {len(image_ids)} images in {str(folder)!r} can be read; the first: "
            f"{reasons[image_ids[0]]}"
        )
    chosen = config.contender_called(name)
    theirs = score_files(run, chosen, folder, readable, watcher or Nobody())
    ours = read_scores(test_scores_path(run, name))
    groups = run.manifest().set_index("image_id")["group"].loc[ours["image_id"]].to_numpy()
    settings = (config.seed, config.evaluate.resamples)
    rows = []
    for score, bound in run.unlike_bounds(name).items():
        test, foreign = ours[score].to_numpy(), theirs[score]
        alone = np.arange(len(foreign))
        rows.append(
            (
                *(score, bound),
                *mean_with_interval(test > bound, groups, *settings),
                *mean_with_interval(foreign > bound, alone, *settings),
                *area_with_interval(test, foreign, groups, *settings),
            )
        )
    figures = [n + end for n in ("test", "folder", "area") for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=["score", "bound", *figures])
    unreadable = [(image_id, reason) for image_id, reason in reasons.items() if reason]
    return UnlikeResult(name, len(readable), unreadable, table)


def watched_name(run: Run, contender: str) -> str:
    """Name the contender whose scores are asked for.

    Raises:
        InputError: The run is not finished, or it stores no scores of that contender.
    """
    if not run.is_finished:
        raise InputError(
            f"the run {str(run.path)!r} is not finished; finish it with: cvpipe run "
            f"{run.config_path}"
        )
    names = [c.name for c in run.config().contender]
    name = check_name("contender", contender or read_json(run.choice_path)["chosen"], names)
    stored = [n for n in names if test_scores_path(run, n).exists()]
    if name not in stored:
        raise InputError(
            f"the run {str(run.path)!r} has no scores of {name!r} that tell what is unlike the "
            f"training images (it has those of {stored}: the chosen and the exported contender, "
            "where they look at pixels); name one of them with --contender, or, if there is "
            f"none, make the run anew with: cvpipe run {run.config_path} --again"
        )
    return name


def list_images(folder: Path) -> list[str]:
    """List the images of a folder at any depth, hidden ones left out, as sorted POSIX paths.

    Raises:
        InputError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}; give a folder of images.")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if is_image_name(path.name))
    images = sorted(
        path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)
    )
    if not images:
        raise InputError(f"no image was found in {str(folder)!r} or below; give a folder of some.")
    return images


def read_all(folder: Path, image_ids: Sequence[str], rule: DecodeRule, threads: int) -> list[str]:
    """Say of each image why it cannot be read; `""` of those that can."""

    def reason(image_id: str) -> str:
        try:
            read_image(folder / image_id, rule)
        except InputError as error:
            return str(error)
        return ""

    return list(ordered_map(reason, image_ids, threads))


def score_files(
    run: Run, contender: Contender, folder: Path, image_ids: Sequence[str], watcher: Watcher
) -> dict[str, np.ndarray]:
    """Score image files that can be read: their probabilities are those of the chosen view."""
    if isinstance(contender, EnsembleContender):  # of its probabilities alone
        predictions = load_contender(run, contender.name).predict_proba(
            [folder / image_id for image_id in image_ids]
        )
        return score_images(
            {}, frames.probabilities_of(predictions), np.empty((len(predictions), 0))
        )
    sha256s = [hash_file(folder / image_id) for image_id in image_ids]
    files, view = ImageFiles(folder, image_ids, sha256s), run.view(contender.name)
    features = seen = stored_describer(run, contender).describe(files, watcher)
    if view != SINGLE:
        seen = stored_describer(run, contender, view).describe(files, watcher)
    trim(cache_root(), max_bytes())
    mean_of = run.config().evaluate.view_mean
    predict = average_over_views(load_predictor(run, contender), view, mean_of)
    probabilities = calibrated(predict, load_calibration(run, contender.name))(seen)
    with one_thread():
        return score_images(load_parts(run, contender.name), probabilities, features)


def read_scores(path: Path) -> pd.DataFrame:
    """Load the scores of the test images."""
    table = frames.read_text_table(path)
    names = [name for name in SCORES if name in table]
    table[names] = table[names].map(float)
    return table


def find_unlike(path: Path, contender: str, predictions: pd.DataFrame) -> Flags | None:
    """Say which newly predicted images are unlike the training images.

    A run is asked for its best score, which takes a second pass through the backbone where that
    is a distance; a bundle holds the bound of the probability alone.

    Args:
        path: The run or bundle that predicted.
        contender: Of a run: the contender that did; the chosen one where none is named.
        predictions: Its predictions table, keyed by path.

    Returns:
        `None` when no bound is stored there, as in what an older cvpipe made.
    """
    improbable = improbability(frames.probabilities_of(predictions))
    bundle = bundle_of(path)
    if bundle:
        stated = read_json(bundle / "bundle.json").get("unlike")
        return Flags("probability", stated["bound"], improbable) if stated else None
    run = open_run(path)
    name = contender or read_json(run.choice_path)["chosen"]
    bounds = run.unlike_bounds(name)
    if DEFAULT_SCORE not in bounds or not parts_path(run, name).exists():
        return Flags("probability", bounds["probability"], improbable) if bounds else None
    features = describe_files(run, name, [Path(p) for p in predictions["image_id"]])
    with one_thread():
        values = neighbour_distance(features, load_parts(run, name)["train_rows"])
    return Flags(DEFAULT_SCORE, bounds[DEFAULT_SCORE], values)


def describe_files(run: Run, name: str, paths: Sequence[Path]) -> np.ndarray:
    """Compute the features of image files by what the run stores, not looking into the cache."""
    config = run.config()
    contender = config.contender_called(name)
    if isinstance(contender, NetworkContender):
        rule = decode_rule(config.images, config.data)
        # TensorFlow has computed by now, so its number of threads is what it is.
        backbone = backbone_of(load_network(run.part_path(name) / "model.keras"))
        size = tuple(backbone.input_shape[1:3])
        return from_images(build_embed(backbone), size, rule, config.threads)(paths)
    return stored_describer(run, contender).prepare()(paths)


def describe_flags(flags: Flags, images: Sequence[str]) -> str:
    """Write which images are unlike the training images."""
    named = [image for image, flagged in zip(images, flags.is_unlike, strict=True) if flagged]
    more = ", ..." if len(named) > MAX_NAMED else ""
    return (
        f"{len(named)} of {len(images)} images are unlike the training images ({flags.score} above "
        f"{flags.bound:.3g}): {', '.join(named[:MAX_NAMED])}{more}"
    )


def describe_result(result: UnlikeResult) -> list[str]:
    """Write a comparison with a folder as lines for the terminal."""
    table = result.table
    titles = {"test": "test images", "folder": "folder", "area": "area under the ROC curve"}
    shown = pd.DataFrame({"score": table["score"]})
    for name, title in titles.items():
        write = area_text if name == "area" else with_interval
        figures = table[[name, f"{name}_low", f"{name}_high"]].to_numpy().tolist()
        shown[title] = [write(value, low, high) for value, low, high in figures]
    left_out = f", {len(result.unreadable)} left out" if result.unreadable else ""
    return [
        f"{result.contender}: called unlike the training images, with 95 % intervals "
        f"({result.num_images} images in the folder{left_out})",
        *(f"  {line}" for line in aligned(shown)),
        "area: 1 tells the folder from the test images, 0.5 is chance; below, the images of the "
        "folder look more familiar than the test images",
    ]


def area_text(value: float, low: float, high: float) -> str:
    """Write an area with its interval."""
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def result_as_dict(result: UnlikeResult) -> dict[str, Any]:
    """Write a comparison with a folder as what JSON knows."""
    return {
        "contender": result.contender,
        "images": result.num_images,
        "unreadable": [{"image": image, "reason": reason} for image, reason in result.unreadable],
        "scores": result.table.to_dict("records"),
    }
