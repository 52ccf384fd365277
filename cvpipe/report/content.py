"""What the report page is made from: values only; whoever calls has read the files.

Tables keep the columns of the run folder (`METRIC_COLUMNS`, `COMPARISON_COLUMNS`, ...).
Images are `uint8` RGB arrays of shape `(height, width, 3)`. Every text may come from
file names and is treated as untrusted by the page.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from cvpipe.errors import InputError
from cvpipe.report.contact_sheet import ContactSheet
from cvpipe.report.decisions import Decisions
from cvpipe.report.training import HISTORY_COLUMNS, Training
from cvpipe.report.understanding import Understanding

METRIC_COLUMNS = (
    *("protocol", "repeat", "contender", "split", "view", "metric", "label"),
    *("value", "low", "high", "n"),
)
COMPARISON_COLUMNS = (
    *("protocol", "contender", "reference", "metric", "difference", "low", "high"),
    *("p_value", "p_adjusted", "verdict", "only_contender_right", "only_reference_right", "n"),
    *("detectable", "no_worse"),
)
FOLD_COLUMNS = (
    *("contender", "metric", "mean", "low", "high", "difference", "difference_low"),
    *("difference_high", "p_value", "p_adjusted", "verdict", "num_fits"),
)
# The loss of accuracy that does no harm; pooled folds have more images to show it.
NO_WORSE_MARGINS = {"holdout": 0.02, "kfold": 0.01}
MEMBER_COLUMNS = (
    *("protocol", "ensemble", "member", "weight", "disagreement", "correlation"),
    *("worth", "low", "high", "verdict", "n"),
)
CARELESS_COLUMNS = ("contender", "holdout", "careless", "difference", "low", "high")
CALIBRATION_COLUMNS = (
    *("contender", "method", "temperature", "metric", "before", "before_low", "before_high"),
    *("after", "after_low", "after_high", "verdict", "n"),
)
DUPLICATE_COLUMNS = ("threshold", "clusters", "largest", "mixed")
SUBGROUP_COLUMNS = (
    *("protocol", "contender", "column", "subgroup", "metric", "value", "low", "high", "n"),
)
CURVE_COLUMNS = ("contender", "share", "num_train", "draw", "accuracy", "low", "high", "n")
FORECAST_COLUMNS = (
    *("contender", "multiple", "num_train", "accuracy", "low", "high"),
    *("gain", "gain_low", "gain_high", "kind"),
)
VIEW_COLUMNS = (
    *("protocol", "contender", "view", "chosen", "passes", "milliseconds_per_image"),
    *("relative_cost", "accuracy", "accuracy_low", "accuracy_high"),
    *("log_loss", "log_loss_low", "log_loss_high"),
    *("difference", "difference_low", "difference_high", "p_adjusted", "verdict", "n"),
)
UNLIKE_COLUMNS = ("contender", "score", "images", "flagged_fraction", "low", "high", "n")
COMPARED_PROTOCOLS = ("holdout", "kfold")
VERDICTS = ("better", "worse", "cannot be told apart")
SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class DataSummary:
    """What the data are.

    Attributes:
        title: Name for people: `"Brain MRI"`.
        root_name: Name of the folder or file the images came from, without its path.
        licence: Licence of the images; `""` when not known.
        citation: What to cite; `""` when nothing is known.
        num_images: Number of images in all splits.
        counts: Images per class, indexed by label, columns `train`, `val`, `test`.
        findings: Columns `image_id`, `finding`, `severity` (`SEVERITIES`), `reason`.
        samples: A few thumbnails per label.
    """

    title: str
    root_name: str
    licence: str
    citation: str
    num_images: int
    counts: pd.DataFrame
    findings: pd.DataFrame
    samples: dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class ContenderSummary:
    """What one contender is and what it costs.

    Attributes:
        name: Key in every table.
        description: One sentence.
        view: The view whose figures stand for this contender, as in the metrics table.
        chosen_values: Hyperparameter to its value and how that was chosen.
        fit_seconds: Wall time of fitting.
        predict_images_per_second: Speed of predicting; NaN when not measured.
        is_baseline: It looks at no pixel: a yardstick that cannot be chosen.
        model_bytes: Size of its stored model; `None` when that is not there.
    """

    name: str
    description: str
    view: str
    chosen_values: dict[str, str]
    fit_seconds: float
    predict_images_per_second: float
    is_baseline: bool = False
    model_bytes: int | None = None

    @property
    def milliseconds_per_image(self) -> float:
        """Time from an image file to the answer; NaN when not measured."""
        per_second = self.predict_images_per_second
        return 1000 / per_second if per_second > 0 else float("nan")


@dataclass(frozen=True)
class Risk:
    """What could make the answer mean something else than a reader thinks.

    Attributes:
        headline: One short sentence.
        text: The figures behind it, what it means, and what to do.
    """

    headline: str
    text: str


@dataclass(frozen=True)
class Mistake:
    """One test image the chosen contender named wrongly.

    Attributes:
        image_id: Key of the image.
        label: What it is.
        predicted: What it was called.
        probability: With which probability, in [0, 1].
        image: Thumbnail.
    """

    image_id: str
    label: str
    predicted: str
    probability: float
    image: np.ndarray


@dataclass(frozen=True)
class ParityResult:
    """How far an exported file is from the trained model on real images.

    Attributes:
        format: Export format.
        split: Which images were compared.
        num_images: How many.
        largest_difference: Largest difference of any probability.
        tolerance: What was allowed.
        passed: Whether it was kept.
    """

    format: str
    split: str
    num_images: int
    largest_difference: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class ExportedFile:
    """What an app has of a file that was exported, or why there is none.

    Attributes:
        format: Format and precision.
        passed: Whether it is what was measured, and was kept.
        reason: Why it was not kept; `""` if it was.
        note: What it passed by, if not by its answers on test alone; `""` otherwise.
        accuracy: Of its answers on test, with the ends of the 95 % interval.
        difference: The same minus that of the measured answers, paired.
        num_bytes: Size on disk.
        milliseconds: Per image, of an image alone and in batches.
        peak_bytes: Most memory that its process held, images and Python among it; 0 if the
            system does not say.
    """

    format: str
    passed: bool
    reason: str
    note: str
    accuracy: tuple[float, float, float]
    difference: tuple[float, float, float]
    num_bytes: int
    milliseconds: tuple[float, float]
    peak_bytes: int


def _empty_table(columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns))


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page.

    Attributes:
        run_name: Name of the run folder.
        created: When the run was started, ISO 8601 in UTC.
        chosen: The contender chosen on val before test was opened.
        chosen_because: The rule, as the end of a sentence: `"it has the lowest log loss
            of 4 contenders on 120 validation images"`.
        class_names: Class order.
        data: See `DataSummary`.
        contenders: Every contender, the chosen one included.
        metrics: Tidy table, `METRIC_COLUMNS`; `label` is `""` for all classes together.
        comparison: Paired comparisons, `COMPARISON_COLUMNS`; `protocol` is one of
            `COMPARED_PROTOCOLS`; differences are contender minus reference; the two counts
            of images may be missing, and so may `detectable`; `no_worse` is "shown", "not
            shown" or "", by the margins `NO_WORSE_MARGINS`. The page shows the rows whose
            reference is the chosen contender. Empty with one contender.
        predictions: Test predictions per contender.
        mistakes: Of the chosen contender, the most confident first.
        timings: `(stage, seconds)` in order.
        test_openings: How many configs have been scored on this test split so far.
        warnings: Sentences in plain words, the gravest first.
        repeat_commands: Commands that repeat the run.
        versions: Library or part to its version.
        audit_page: Address of the page of the audit, from this page on; `""` when there is none.
        split_story: How the images were divided, in one sentence; `""` when it is not told.
        parity: One entry per exported file and split that it was compared on.
        files: One entry per file that was to be exported.
        exported: Contender of the exported file; `""` when there is none.
        risks: What endangers the answer in these data, the gravest first.
        folds: Number of folds of the k-fold protocol; 0 when there was none. Its metrics
            have protocol `"kfold"` and split `"test"`.
        careless: Accuracy in [0, 1] per contender on the holdout split and on a careless
            one, `CARELESS_COLUMNS`; `difference` is careless minus holdout with its 95 %
            interval. The metrics hold the same figures with their own intervals. Empty
            when no careless split was made.
        duplicates: Clusters of near-duplicates at each threshold, `DUPLICATE_COLUMNS`: how
            many, the size of the largest, how many with more than one label.
        duplicate_threshold: The threshold in use; NaN when there is none.
        subgroups: Figures per subgroup of the images, `SUBGROUP_COLUMNS`: `column` names
            what parts the images, `subgroup` is its value.
        costs: What mistakes cost, true class to predicted class to cost, as in the config;
            empty when the metrics hold no mean cost.
        calibration: Figures of the test split before and after calibration,
            `CALIBRATION_COLUMNS`; empty when nothing was calibrated.
        reliability: Of the chosen contender, `"before"` and `"after"` calibration: columns
            `confidence`, `accuracy`, `low`, `high`, `n`, one row per bin; empty like
            `calibration`.
        small_val: Whether val was too small to set half of it aside for calibration.
        decisions: What the chosen contender may decide; `None` where nothing was frozen.
        recipes: What the folds say of each recipe, `FOLD_COLUMNS`: the mean over the folds and
            the difference to the chosen one, with intervals for another training set. Empty
            when there were no folds.
        learning_curve: Test accuracy of fits on parts of train, `CURVE_COLUMNS`; `draw` is
            `"mean"` in the rows that stand for a share. Empty when none were made.
        forecast: What more training images would bring, `FORECAST_COLUMNS`; `multiple` is that
            of the present number. Without rows of a contender that had too few parts.
        unlike: Shares of the test images that are called unlike the training images,
            `UNLIKE_COLUMNS`; empty in runs that did not measure them.
        augmentation: What augmentation does to training images; `None` where it is off.
        understanding: Pictures and figures of what the contenders see and look for.
        training: How the networks among the contenders were trained; empty without any.
        members: What each member of each ensemble is worth, `MEMBER_COLUMNS`; empty without any.
        views: Test figures and costs of each view of each contender, `VIEW_COLUMNS`; differences
            are view minus `"single"`, whose own verdict is `""`. Empty where there was one view.
        view_reasons: Why each contender has its view, as the end of a sentence.
        views_warning: What a reader must know of these views; `""` when there is nothing.
    """

    run_name: str
    created: str
    chosen: str
    chosen_because: str
    class_names: list[str]
    data: DataSummary
    contenders: list[ContenderSummary]
    metrics: pd.DataFrame
    comparison: pd.DataFrame
    predictions: dict[str, pd.DataFrame]
    mistakes: list[Mistake]
    timings: list[tuple[str, float]]
    test_openings: int
    warnings: list[str]
    repeat_commands: list[str]
    versions: dict[str, str]
    audit_page: str = ""
    split_story: str = ""
    parity: list[ParityResult] = field(default_factory=list)
    files: list[ExportedFile] = field(default_factory=list)
    exported: str = ""
    risks: list[Risk] = field(default_factory=list)
    folds: int = 0
    careless: pd.DataFrame = field(default_factory=partial(_empty_table, CARELESS_COLUMNS))
    duplicates: pd.DataFrame = field(default_factory=partial(_empty_table, DUPLICATE_COLUMNS))
    duplicate_threshold: float = float("nan")
    subgroups: pd.DataFrame = field(default_factory=partial(_empty_table, SUBGROUP_COLUMNS))
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    calibration: pd.DataFrame = field(default_factory=partial(_empty_table, CALIBRATION_COLUMNS))
    reliability: dict[str, pd.DataFrame] = field(default_factory=dict)
    small_val: bool = False
    decisions: Decisions | None = None
    recipes: pd.DataFrame = field(default_factory=partial(_empty_table, FOLD_COLUMNS))
    learning_curve: pd.DataFrame = field(default_factory=partial(_empty_table, CURVE_COLUMNS))
    forecast: pd.DataFrame = field(default_factory=partial(_empty_table, FORECAST_COLUMNS))
    unlike: pd.DataFrame = field(default_factory=partial(_empty_table, UNLIKE_COLUMNS))
    augmentation: ContactSheet | None = None
    understanding: Understanding = field(default_factory=Understanding)
    training: list[Training] = field(default_factory=list)
    members: pd.DataFrame = field(default_factory=partial(_empty_table, MEMBER_COLUMNS))
    views: pd.DataFrame = field(default_factory=partial(_empty_table, VIEW_COLUMNS))
    view_reasons: dict[str, str] = field(default_factory=dict)
    views_warning: str = ""


def check_content(content: ReportContent) -> ReportContent:
    """Return a content whose parts agree with one another.

    Raises:
        InputError: A table lacks a column, the chosen contender is missing from the
            contenders or the predictions, a contender does not have one test accuracy in a
            protocol that was run, a verdict, severity or protocol is unknown, there is one
            fold only, or the test split was never opened.
    """
    _check_columns("metrics", content.metrics, METRIC_COLUMNS)
    _check_columns("comparison", content.comparison, COMPARISON_COLUMNS)
    _check_columns("findings", content.data.findings, ("image_id", "finding", "severity", "reason"))
    _check_columns("careless", content.careless, CARELESS_COLUMNS)
    _check_columns("duplicates", content.duplicates, DUPLICATE_COLUMNS)
    _check_columns("subgroups", content.subgroups, SUBGROUP_COLUMNS)
    _check_columns("calibration", content.calibration, CALIBRATION_COLUMNS)
    _check_columns("recipes", content.recipes, FOLD_COLUMNS)
    _check_columns("learning curve", content.learning_curve, CURVE_COLUMNS)
    _check_columns("forecast", content.forecast, FORECAST_COLUMNS)
    _check_columns("unlike", content.unlike, UNLIKE_COLUMNS)
    _check_columns("members", content.members, MEMBER_COLUMNS)
    _check_columns("views", content.views, VIEW_COLUMNS)
    for training in content.training:
        _check_columns("history", training.history, HISTORY_COLUMNS)
    _check_values("verdict", content.comparison["verdict"], VERDICTS)
    _check_values("protocol of a comparison", content.comparison["protocol"], COMPARED_PROTOCOLS)
    _check_values("severity", content.data.findings["severity"], SEVERITIES)
    names = [contender.name for contender in content.contenders]
    for part, known in (("contenders", names), ("predictions", list(content.predictions))):
        if content.chosen not in known:
            raise InputError(
                f"the chosen contender {content.chosen!r} is not among the {part} {known}; "
                "pass it along."
            )
    if content.folds < 0 or content.folds == 1:
        raise InputError(
            f"folds is {content.folds}, but a page knows 0 (no k-fold) or at least 2 folds; "
            "pass the number of folds."
        )
    _check_accuracies(content, "holdout", names)
    _check_accuracies(content, "kfold", [content.chosen] if content.folds else [])
    _check_accuracies(content, "careless", content.careless["contender"].to_list())
    if content.test_openings < 1:
        raise InputError(
            f"test_openings is {content.test_openings}, but the page shows test figures; "
            "count the opening that made them."
        )
    return content


def headline_metrics(content: ReportContent, split: str, protocol: str = "holdout") -> pd.DataFrame:
    """Select the metric rows that stand for the contenders on a split, each in its own view."""
    return content.metrics[in_headline(content, split, protocol)]


def in_headline(content: ReportContent, split: str, protocol: str = "holdout") -> pd.Series:
    """Mark the metric rows that `headline_metrics` selects."""
    rows = content.metrics
    views = {contender.name: contender.view for contender in content.contenders}
    view = rows["contender"].map(views)
    once = rows["repeat"] == 0  # further repeats of the folds only show how far figures move
    return once & (rows["protocol"] == protocol) & (rows["split"] == split) & (rows["view"] == view)


def overall_accuracies(content: ReportContent, protocol: str = "holdout") -> pd.DataFrame:
    """Select the test accuracy over all classes of each contender."""
    test = headline_metrics(content, "test", protocol)
    return test[(test["metric"] == "accuracy") & (test["label"] == "")]


def _check_accuracies(content: ReportContent, protocol: str, names: list[str]) -> None:
    """Check that these contenders have one test accuracy each."""
    scored = overall_accuracies(content, protocol)["contender"].to_list()
    for name in names:
        if scored.count(name) != 1:
            raise InputError(
                f"contender {name!r} has {scored.count(name)} test accuracies in the metrics "
                f"(protocol {protocol!r}, its own view), expected one; score it on the test split "
                "exactly once."
            )


def _check_columns(name: str, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(
            f"the {name} table of a report lacks the columns {missing}; it has {list(table)}."
        )


def _check_values(name: str, values: pd.Series, known: tuple[str, ...]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"unknown {name} {unknown[0]!r}; a report knows {list(known)}.")
