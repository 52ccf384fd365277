"""What the report page is made from: values only; whoever calls has read the files.

Tables keep the columns of the run folder (`METRIC_COLUMNS`, `COMPARISON_COLUMNS`).
Images are `uint8` RGB arrays of shape `(height, width, 3)`. Every text may come from
file names and is treated as untrusted by the page.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cvpipe.errors import InputError

METRIC_COLUMNS = (
    *("protocol", "repeat", "contender", "split", "view", "metric", "label"),
    *("value", "low", "high", "n"),
)
COMPARISON_COLUMNS = (
    *("contender", "reference", "metric", "difference", "low", "high", "p_value", "p_adjusted"),
    *("verdict", "only_contender_right", "only_reference_right", "n"),
)
VERDICTS = ("better", "worse", "cannot be told apart")
SEVERITIES = ("error", "warning", "note")


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
    """

    name: str
    description: str
    view: str
    chosen_values: dict[str, str]
    fit_seconds: float
    predict_images_per_second: float


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
        comparison: Paired comparisons with the chosen contender, `COMPARISON_COLUMNS`;
            differences are contender minus reference; the two counts of images may be
            missing. Empty with one contender.
        predictions: Test predictions per contender.
        mistakes: Of the chosen contender, the most confident first.
        timings: `(stage, seconds)` in order.
        test_openings: How many configs have been scored on this test split so far.
        warnings: Sentences in plain words.
        repeat_commands: Commands that repeat the run.
        versions: Library or part to its version.
        parity: One entry per exported file.
        exported: Contender of the exported file; `""` when there is none.
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
    parity: list[ParityResult] = field(default_factory=list)
    exported: str = ""


def check_content(content: ReportContent) -> ReportContent:
    """Return a content whose parts agree with one another.

    Raises:
        InputError: A table lacks a column, the chosen contender is missing from the
            contenders or the predictions, a contender does not have one test accuracy, a
            verdict or severity is unknown, or the test split was never opened.
    """
    _check_columns("metrics", content.metrics, METRIC_COLUMNS)
    _check_columns("comparison", content.comparison, COMPARISON_COLUMNS)
    _check_columns("findings", content.data.findings, ("image_id", "finding", "severity", "reason"))
    _check_values("verdict", content.comparison["verdict"], VERDICTS)
    _check_values("severity", content.data.findings["severity"], SEVERITIES)
    names = [contender.name for contender in content.contenders]
    for part, known in (("contenders", names), ("predictions", list(content.predictions))):
        if content.chosen not in known:
            raise InputError(
                f"the chosen contender {content.chosen!r} is not among the {part} {known}; "
                "pass it along."
            )
    test = headline_metrics(content, "test")
    accuracies = test[(test["metric"] == "accuracy") & (test["label"] == "")]["contender"].to_list()
    for name in names:
        if accuracies.count(name) != 1:
            raise InputError(
                f"contender {name!r} has {accuracies.count(name)} test accuracies in the metrics "
                "(protocol 'holdout', its own view), expected one; score it on the test split "
                "exactly once."
            )
    if content.test_openings < 1:
        raise InputError(
            f"test_openings is {content.test_openings}, but the page shows test figures; "
            "count the opening that made them."
        )
    return content


def headline_metrics(content: ReportContent, split: str) -> pd.DataFrame:
    """Select the holdout rows of a split, each contender in its own view."""
    return content.metrics[in_headline(content, split)]


def in_headline(content: ReportContent, split: str) -> pd.Series:
    """Mark the metric rows that `headline_metrics` selects."""
    views = {contender.name: contender.view for contender in content.contenders}
    rows = content.metrics
    keep = (rows["protocol"] == "holdout") & (rows["split"] == split)
    return keep & (rows["view"] == rows["contender"].map(views))


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
