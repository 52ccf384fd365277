"""Label suspects: images whose label the images of all classes together speak against.

Each image is predicted by a simple classifier that was fitted on other groups, and
`cvpipe.evaluation.label_suspects` says which labels do not agree. In 1,500 images of each
packaged data set 5 % of the labels were made wrong at random (mean of three draws; "first 20" is
the share of planted ones among the twenty most suspicious; `benchmarks/label_suspects.py`):

| images      | features           | precision | recall | first 20 |
|-------------|--------------------|-----------|--------|----------|
| brain_mri   | backbone           | .69       | .73    | .82      |
| brain_mri   | hog and colours    | .26       | .60    | .60      |
| digits      | backbone           | .72       | .66    | .80      |
| digits      | hog and colours    | .91       | .70    | .98      |
| solar_cells | backbone           | .40       | .60    | .78      |
| solar_cells | hog and colours    | .23       | .58    | .45      |

The others are images that look like another class, or whose label was doubtful before: of the
solar cells that the experts were not sure of, 10.7 % are suspects as given, of all others 2.6 %
(backbone; the run of `pipelines/solar_cells.toml`). So a suspect is a reason to look, never one to
change a label.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.config import Config
from cvpipe.data.audit import Audit
from cvpipe.data.findings import Finding, findings_in, findings_table, make_finding
from cvpipe.data.splits import assign_splits
from cvpipe.evaluation.label_suspects import SUSPECT_COLUMNS, find_suspects
from cvpipe.features.table import Feature
from cvpipe.files import write_table
from cvpipe.models.deep_features import DeepFeature
from cvpipe.numerics import one_thread
from cvpipe.stages.features import files_of, fixed_describer, setup_of
from cvpipe.stages.fingerprint import counted
from cvpipe.stages.job import Job, Watcher
from cvpipe.stages.recipes import feature_names, is_baseline, known_features

NUM_FOLDS = 5
# Strong enough a penalty that wrong labels among the train rows are not learned by heart: with
# 1e-1 and features of a network more of the suspects bore the right label. Linear discriminants
# took ten to thirty times as long.
C = 3e-3
# What suspects are searched with where no network is at hand.
HANDCRAFTED = ("hog", "colour_histogram")


def suspect_findings(
    rows: pd.DataFrame, features: np.ndarray, seed: int
) -> tuple[list[Finding], pd.DataFrame]:
    """Find images whose label is probably wrong.

    Args:
        rows: Audited rows with `image_id`, `label` and `group`; see `classes_left_out`.
        features: `float` array of shape `(n, num_features)`, in the order of `rows`.
        seed: Of the folds.

    Returns:
        A finding for each suspect, and the suspects as `find_suspects` gives them.
    """
    known = ~rows["label"].isin(list(classes_left_out(rows))).to_numpy()
    if not known.any():
        return [], pd.DataFrame(columns=SUSPECT_COLUMNS)
    suspects = find_suspects(predict_out_of_fold(rows[known], features[known], seed))
    findings = [
        make_finding(
            "label_suspect",
            f"labelled {row.label!r}, but images of other groups suggest {row.suggested!r} "
            f"(probability {row.suggested_probability:.0%} against {row.label_probability:.0%})",
            str(row.image_id),
        )
        for row in suspects.itertuples()
    ]
    return findings, suspects


def classes_left_out(rows: pd.DataFrame) -> dict[str, int]:
    """Name the classes whose labels are not looked at, with their number of groups.

    Those of fewer groups than there are folds: too little is known of them to doubt anything.
    All of them where only one class is left, because there is nothing to compare it with.

    Args:
        rows: With `label` and `group`, which `split.by` may have joined to a few large ones.
    """
    groups = rows.groupby("label")["group"].nunique()
    enough = groups >= NUM_FOLDS
    return (groups[~enough] if enough.sum() >= 2 else groups).to_dict()


def describe_left_out(rows: pd.DataFrame) -> str:
    """Say which classes are left out of the search; `""` when none is.

    Example:
        >>> rows = pd.DataFrame({"label": ["a", "b"], "group": ["1", "2"]})
        >>> describe_left_out(rows).split("): ")[1]
        "'a' 1, 'b' 1"
    """
    left_out = classes_left_out(rows)
    if not left_out:
        return ""
    return (
        f"labels of these classes were not looked at, because it takes {NUM_FOLDS} groups of a "
        f"class, and two such classes (number of groups): {counted(left_out)}"
    )


def predict_out_of_fold(rows: pd.DataFrame, features: np.ndarray, seed: int) -> pd.DataFrame:
    """Predict every image by a softmax regression that was fitted on other groups.

    Args:
        rows: As in `suspect_findings`.
        features: As in `suspect_findings`.
        seed: Of the folds.

    Returns:
        A predictions table in the order of `rows`.
    """
    class_names = frames.class_names_of(rows["label"])
    targets = frames.targets_of(rows["label"], class_names)
    fractions = {str(fold): 1.0 / NUM_FOLDS for fold in range(NUM_FOLDS)}
    folds = assign_splits(targets, rows["group"].tolist(), fractions, f"suspects {seed}")
    probabilities = np.zeros((len(rows), len(class_names)))
    for fold in np.unique(folds):
        held_out = folds == fold
        estimator = CLASSIFIERS["softmax"].build(C)
        # More threads make these small fits slower, and change the order of sums.
        with one_thread():
            estimator.fit(features[~held_out], targets[~held_out])
            # Where groups mix classes, a class may be missing from the train rows of a fold.
            columns = np.ix_(held_out, estimator.classes_)
            probabilities[columns] = estimator.predict_proba(features[held_out])
    return frames.make_predictions(
        rows["image_id"].tolist(), rows["label"].tolist(), probabilities, class_names
    )


def describe_rows(
    rows: pd.DataFrame, names: Sequence[str], root: Path, config: Config, watcher: Watcher
) -> np.ndarray:
    """Compute or recall named features of rows that carry their `sha256`.

    Args:
        rows: Rows with `image_id` and `sha256`.
        names: Features that learn nothing, or backbones; `HANDCRAFTED` needs no TensorFlow.
        root: Folder of the images.
        config: Says how files become pixels, and the number of threads.
        watcher: Who is shown the progress.

    Returns:
        `float32` array of shape `(n, num_features)`.
    """
    return fixed_describer(names, setup_of(config)).describe(files_of(root, rows), watcher)


def doubt_labels(
    audit: Audit, root: Path, config: Config, watcher: Watcher
) -> tuple[Audit, pd.DataFrame]:
    """Look for label suspects among audited images, with hand-crafted features alone.

    The test images of a given split are left out: who mends what was found in them has looked
    at them before the split is opened.

    Args:
        audit: Of the images; those that cannot be decoded are left out here.
        root: Folder of the images.
        config: Says how files become pixels, the seed, and the number of threads.
        watcher: Who is shown the progress.

    Returns:
        The audit with a finding for each suspect, and the suspects as `find_suspects` gives them.
    """
    rows = audit.rows[audit.rows["image_id"].isin(audit.facts["image_id"])]
    if config.split.protocol == "given":
        is_test = rows["split"] == "test"
        watcher.say(
            f"labels of the {is_test.sum():,} test images of the given split were not looked at"
        )
        rows = rows[~is_test]
    if rows.empty:
        return audit, pd.DataFrame(columns=SUSPECT_COLUMNS)
    if left_out := describe_left_out(rows):
        watcher.say(left_out)
    features = describe_rows(rows, HANDCRAFTED, root, config, watcher)
    further, suspects = suspect_findings(rows, features, config.seed)
    return replace(
        audit, findings=findings_table([*findings_in(audit.findings), *further])
    ), suspects


def source_of(config: Config) -> tuple[str, ...]:
    """Name the features of a run that suspects are searched with; none if no pixel is looked at.

    A backbone's if there is one: its suspects are right more often on two of the three data sets
    above, and on digits, where they are not, still in three of four cases.
    """
    looking = [contender for contender in config.contender if not is_baseline(contender)]
    features = known_features(config)
    others = [name for contender in looking for name in feature_names(contender)]
    backbones = [name for name in others if isinstance(features.get(name), DeepFeature)]
    # Vocabularies are learned from train, and these predictions are of folds of their own.
    fixed = [n for n in others if isinstance(f := features.get(n), Feature) and not f.learns]
    if backbones or fixed:
        return tuple((backbones or fixed)[:1])
    return HANDCRAFTED if looking else ()


def run_suspects(job: Job) -> None:
    """Store the label suspects of a run, for its report.

    Those of test are doubted as well, so this looks at test labels. It comes after
    the test split was opened and scored, and reads nothing but the manifest and cached features:
    what was chosen, fitted and measured cannot depend on it. Labels that are corrected because
    of it make another data set, hence another run.

    Raises:
        RuntimeError: The run has not been scored yet.
    """
    if not job.run.metrics_path.exists():
        raise RuntimeError("label suspects look at test labels, so a run is scored before")
    if job.run.suspects_path.exists():
        return
    with job.timed("suspects", "suspects: which labels do the images speak against?"):
        names = source_of(job.config)
        suspects = pd.DataFrame(columns=SUSPECT_COLUMNS)
        if names:
            manifest = job.run.manifest()
            if left_out := describe_left_out(manifest):
                job.watcher.say(f"  {left_out}")
            features = describe_rows(manifest, names, job.root, job.config, job.watcher)
            _, suspects = suspect_findings(manifest, features, job.config.seed)
        write_table(job.run.suspects_path, suspects)
