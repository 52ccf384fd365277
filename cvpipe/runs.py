"""The run folder: every path in it, its provenance, and the ledger of test openings.

A file in a run folder exists if and only if it is complete (see `cvpipe.files`). That is
all a stage needs to resume: what exists is done.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from cvpipe import frames
from cvpipe.config import Config, config_hash, load_config
from cvpipe.errors import InputError
from cvpipe.files import read_json, write_json
from cvpipe.formats import reader_versions
from cvpipe.opencv import installed_builds

SOURCE_KEYS = {"name", "licence", "citation"}
LEDGER_NAME = "test_openings.csv"
LEDGER_COLUMNS = ("test_fingerprint", "config_hash", "run", "opened")
# Each with an interval in the table of contenders.
CONTENDER_FIGURES = ("accuracy", "difference", "log_loss", "ece")
RECORDED_PACKAGES = (
    "cvpipe",
    "tensorflow",
    "keras",
    "scikit-learn",
    "numpy",
    "scipy",
    "pandas",
)


def manifest_fingerprint(rows: pd.DataFrame) -> str:
    """Name a set of labelled images by its content.

    Args:
        rows: Scanned rows: `image_id`, `label`, `sha256` of the file, `group` and all further
            columns, because groups and subgroups decide figures, too.

    Returns:
        64 hexadecimal digits, independent of the order of rows and columns.
    """
    columns = sorted(rows)
    # JSON separates the fields unambiguously, whatever characters a file name holds.
    values = sorted(rows[columns].to_numpy().tolist())
    return hashlib.sha256(json.dumps([columns, values]).encode()).hexdigest()


def run_name(config: Config, fingerprint: str) -> str:
    """Name the run of a config on a set of images."""
    digest = hashlib.sha256((config_hash(config) + fingerprint).encode()).hexdigest()
    return f"{config.name}-{digest[:6]}"


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.path / "config.json"

    @property
    def provenance_path(self) -> Path:
        """Command, versions, device, fingerprints."""
        return self.path / "provenance.json"

    @property
    def findings_path(self) -> Path:
        """What the audit found."""
        return self.path / "audit.csv"

    @property
    def audit_page_path(self) -> Path:
        """The page with the pictures of what the audit found."""
        return self.path / "audit.html"

    @property
    def images_path(self) -> Path:
        """Facts of each file: hashes, size, format."""
        return self.path / "images.csv"

    @property
    def duplicates_path(self) -> Path:
        """Clusters of near-duplicates against the threshold."""
        return self.path / "duplicates.csv"

    @property
    def manifest_path(self) -> Path:
        """The rows, groups and splits used."""
        return self.path / "manifest.csv"

    @property
    def classes_path(self) -> Path:
        """Class names; the position is the target."""
        return self.path / "classes.json"

    @property
    def choice_path(self) -> Path:
        """The chosen contender and why."""
        return self.path / "choice.json"

    @property
    def metrics_path(self) -> Path:
        """Metrics with intervals."""
        return self.path / "metrics.csv"

    @property
    def comparison_path(self) -> Path:
        """Paired comparisons."""
        return self.path / "comparison.csv"

    @property
    def contenders_path(self) -> Path:
        """What each contender reaches on test, and what it costs."""
        return self.path / "contenders.csv"

    @property
    def timings_path(self) -> Path:
        """Seconds per stage."""
        return self.path / "timings.json"

    @property
    def report_path(self) -> Path:
        """The HTML page; written last, so it marks a finished run."""
        return self.path / "report.html"

    @property
    def export_path(self) -> Path:
        """Folder of the bundles."""
        return self.path / "export"

    @property
    def careless_path(self) -> Path:
        """What a careless split would have claimed."""
        return self.path / "careless.csv"

    @property
    def subgroups_path(self) -> Path:
        """Accuracy for each value of the columns in `evaluate.subgroups`."""
        return self.path / "subgroups.csv"

    @property
    def members_path(self) -> Path:
        """What each member of each ensemble is worth; there when there are ensembles."""
        return self.path / "members.csv"

    @property
    def suspects_path(self) -> Path:
        """Images whose label is probably wrong, the most suspicious first."""
        return self.path / "suspects.csv"

    @property
    def repeats_path(self) -> Path:
        """How far the division into folds moves the figures; there when it was repeated."""
        return self.path / "repeats.csv"

    @property
    def folds_path(self) -> Path:
        """What the folds say of each recipe; there when there were folds."""
        return self.path / "folds.csv"

    @property
    def expectation_path(self) -> Path:
        """What test figures can be expected to tell, from the numbers of images and groups."""
        return self.path / "expectation.json"

    @property
    def calibration_path(self) -> Path:
        """Log loss, Brier score and calibration error before and after calibration."""
        return self.path / "calibration.csv"

    @property
    def operating_points_path(self) -> Path:
        """What the frozen operating points do on test; there when the config has a goal."""
        return self.path / "operating_points.csv"

    @property
    def abstention_path(self) -> Path:
        """How many test images the frozen thresholds of confidence answer, and how well."""
        return self.path / "abstention.csv"

    @property
    def conformal_path(self) -> Path:
        """How often the prediction sets hold the true class on test."""
        return self.path / "conformal.csv"

    def decisions_path(self, contender: str) -> Path:
        """Thresholds of a contender, frozen before test was opened."""
        return self.part_path(contender) / "decisions.json"

    @property
    def learning_curve_path(self) -> Path:
        """Accuracy of fits on parts of train."""
        return self.path / "learning_curve.csv"

    @property
    def forecast_path(self) -> Path:
        """What more training images would bring."""
        return self.path / "forecast.csv"

    @property
    def unlike_path(self) -> Path:
        """How many test images are called unlike the training images."""
        return self.path / "unlike.csv"

    @property
    def neighbours_path(self) -> Path:
        """Nearest training images of some test images; there when a contender compares images."""
        return self.path / "neighbours.csv"

    def search_path(self, contender: str) -> Path:
        """What cross-validation inside train said of each setting of a contender."""
        return self.part_path(contender) / "search.csv"

    def part_path(self, contender: str, part: str = "holdout") -> Path:
        """Folder of a fitted contender: `holdout`, or `r0-f3` for fold 3 of repeat 0."""
        return self.path / "contenders" / contender / part

    def predictions_path(
        self,
        contender: str,
        split: str,
        protocol: str = "holdout",
        repeat: int = 0,
        view: str = "",
    ) -> Path:
        """File of a predictions table; of k-fold, the number of the repeat is named too.

        Args:
            contender: Name of the contender.
            split: As in `predictions`.
            protocol: As in `predictions`.
            repeat: As in `predictions`.
            view: Where several were asked for: one of them; `""`: the contender's own table, which
                is that of its chosen view.
        """
        name = f"{protocol}-{split}" + (f"-r{repeat}" if protocol == "kfold" else "")
        folder = self.path / "contenders" / contender / "predictions"
        return folder / f"{_in_view(name, view)}.csv"

    def uncalibrated_path(self, contender: str, split: str, view: str = "") -> Path:
        """File of the predictions of the holdout protocol before calibration."""
        return self.predictions_path(contender, f"{split}-uncalibrated", view=view)

    def fitted_calibration_path(self, contender: str, view: str = "") -> Path:
        """What makes a contender's probabilities calibrated ones; of a view as for tables."""
        return self.part_path(contender) / f"{_in_view('calibration', view)}.json"

    def fold_predictions_path(self, contender: str, part: str, view: str = "") -> Path:
        """File of the predictions of a fold; of a view as for tables."""
        return self.part_path(contender, part) / f"{_in_view('predictions', view)}.csv"

    def rounded_fold_path(self, contender: str, part: str, label: str) -> Path:
        """File of what the network of a fold predicts as a file in 8 bits."""
        return self.part_path(contender, part) / f"rounded-{label}.csv"

    def view_path(self, contender: str) -> Path:
        """The chosen view of a contender and why; there when several were asked for."""
        return self.part_path(contender) / "view.json"

    @property
    def views_path(self) -> Path:
        """Every view beside the single one; there when several were asked for."""
        return self.path / "views.csv"

    @property
    def view_speeds_path(self) -> Path:
        """Image files per second of each contender in each view; there like `views_path`."""
        return self.path / "view_speeds.json"

    @property
    def is_finished(self) -> bool:
        """Whether every stage of the run is complete."""
        return self.report_path.exists()

    def config(self) -> Config:
        """Load the resolved config."""
        return load_config(self.config_path)

    def class_names(self) -> list[str]:
        """Load the class order."""
        return list(read_json(self.classes_path))

    def manifest(self) -> pd.DataFrame:
        """Load the rows, groups and splits used."""
        return frames.read_manifest(self.manifest_path)

    def metrics(self) -> pd.DataFrame:
        """Load the tidy table of metrics with intervals."""
        return _read_numbers(self.metrics_path, ("value", "low", "high"), ("repeat", "n"))

    def view(self, contender: str) -> str:
        """Load the name of the view in which a contender predicts."""
        path = self.view_path(contender)
        return str(read_json(path)["chosen"]) if path.exists() else "single"

    def views(self) -> pd.DataFrame:
        """Load the figures and costs of every view; without rows where there was only one."""
        figures = ("accuracy", "log_loss", "difference")
        floats = [f"{name}{end}" for name in figures for end in ("", "_low", "_high")]
        floats += ["milliseconds_per_image", "relative_cost", "p_adjusted"]
        if not self.views_path.exists():
            return pd.DataFrame({"contender": pd.Series(dtype=str)})
        table = _read_numbers(self.views_path, floats, ("passes", "n"))
        return table.assign(chosen=table["chosen"] == "True")

    def view_speeds(self) -> dict[str, dict[str, float]]:
        """Load the image files per second of each contender in each view."""
        return read_json(self.view_speeds_path) if self.view_speeds_path.exists() else {}

    def comparison(self) -> pd.DataFrame:
        """Load the table of paired comparisons."""
        floats = ("difference", "low", "high", "p_value", "p_adjusted", "detectable")
        whole = ("only_contender_right", "only_reference_right", "n")
        table = _read_numbers(self.comparison_path, floats, whole)
        # Runs from before these columns know neither.
        later = {"detectable": math.nan, "no_worse": ""}
        return table.assign(**{name: later[name] for name in later if name not in table})

    def contenders(self) -> pd.DataFrame:
        """Load the table of what each contender reaches on test, and what it costs."""
        floats = [f"{name}{end}" for name in CONTENDER_FIGURES for end in ("", "_low", "_high")]
        floats += ["p_adjusted", "fit_seconds", "milliseconds_per_image"]
        return _read_numbers(self.contenders_path, floats, ("model_bytes",))

    def careless(self) -> pd.DataFrame:
        """Load the table of what a careless split would have claimed."""
        return _read_numbers(
            self.careless_path, ("holdout", "careless", "difference", "low", "high"), ()
        )

    def subgroups(self) -> pd.DataFrame:
        """Load the table of accuracies in subgroups."""
        return _read_numbers(self.subgroups_path, ("value", "low", "high"), ("n",))

    def members(self) -> pd.DataFrame:
        """Load the table of the members of ensembles; without rows where there are none."""
        floats = ("weight", "disagreement", "correlation", "worth", "low", "high")
        if not self.members_path.exists():
            return pd.DataFrame(columns=["protocol", "ensemble", "member", *floats, "verdict", "n"])
        return _read_numbers(self.members_path, floats, ("n",))

    def suspects(self) -> pd.DataFrame:
        """Load the images whose label is probably wrong, the most suspicious first."""
        numbers = ("label_probability", "suggested_probability", "margin")
        return _read_numbers(self.suspects_path, numbers, ())

    def repeats(self) -> pd.DataFrame:
        """Load the table of means and standard deviations over the repeats of k-fold."""
        floats = ("mean", "standard_deviation")
        return _read_numbers(self.repeats_path, floats, ("num_repeats",))

    def operating_points(self) -> pd.DataFrame:
        """Load the figures of the frozen operating points; empty where there was no goal."""
        floats = ("threshold", "value", "low", "high")
        if not self.operating_points_path.exists():
            return pd.DataFrame({"contender": pd.Series(dtype=str)})
        return _read_numbers(self.operating_points_path, floats, ("n",))

    def abstention(self) -> pd.DataFrame:
        """Load the table of images answered at the frozen thresholds of confidence."""
        floats = (
            *("asked_share", "threshold", "answered_share", "answered_low", "answered_high"),
            *("accuracy", "accuracy_low", "accuracy_high"),
        )
        return _read_numbers(self.abstention_path, floats, ("num_answered", "n"))

    def conformal(self) -> pd.DataFrame:
        """Load the table of prediction sets: coverage and size."""
        floats = ("level", "coverage", "low", "high", "mean_set_size", "single_share")
        return _read_numbers(self.conformal_path, floats, ("n",))

    def folds(self) -> pd.DataFrame:
        """Load the table of what the folds say of each recipe."""
        means = ("mean", "low", "high", "difference", "difference_low", "difference_high")
        return _read_numbers(self.folds_path, (*means, "p_value", "p_adjusted"), ("num_fits",))

    def expectations(self) -> dict[str, dict[str, Any]]:
        """Load what test figures can be expected to tell; empty in runs that did not store it."""
        return read_json(self.expectation_path) if self.expectation_path.exists() else {}

    def calibration(self) -> pd.DataFrame:
        """Load the figures before and after calibration."""
        ends = [f"{when}{end}" for when in ("before", "after") for end in ("", "_low", "_high")]
        return _read_numbers(self.calibration_path, ("temperature", *ends), ("n",))

    def learning_curve(self) -> pd.DataFrame:
        """Load the table of accuracies of fits on parts of train."""
        floats, whole = ("share", "accuracy", "low", "high"), ("num_train", "n")
        return _read_numbers(self.learning_curve_path, floats, whole)

    def forecast(self) -> pd.DataFrame:
        """Load the table of what more training images would bring."""
        floats = ("multiple", "accuracy", "low", "high", "gain", "gain_low", "gain_high")
        return _read_numbers(self.forecast_path, floats, ("num_train",))

    def duplicates(self) -> pd.DataFrame:
        """Load the table of near-duplicate clusters against the threshold."""
        columns = ("threshold", "clusters", "largest", "mixed")
        return _read_numbers(self.duplicates_path, (), columns)

    def predictions(
        self,
        split: str,
        contender: str,
        protocol: str = "holdout",
        repeat: int = 0,
        view: str = "",
    ) -> pd.DataFrame:
        """Load a predictions table.

        Args:
            split: `"val"` or `"test"`; of k-fold and of the careless split there is only test.
            contender: Name of the contender.
            protocol: `"holdout"`, `"kfold"` or `"careless"`.
            repeat: Of k-fold: number of the repeat.
            view: Where the run asked for several: one of them; `""`: the one that was chosen.

        Raises:
            InputError: The run has no such table; the message lists what it has.
        """
        path = self.predictions_path(contender, split, protocol, repeat, view)
        if not path.exists():
            present = sorted(
                p.parent.parent.name + "/" + p.stem
                for p in self.path.glob("contenders/*/predictions/*.csv")
                if ".partial" not in p.suffixes
            )
            raise InputError(
                f"{self.path} has no predictions {contender}/{path.stem} (it has {present}); "
                f"make them with: cvpipe run {self.config_path}"
            )
        return frames.read_predictions(path)

    def unlike(self) -> pd.DataFrame:
        """Load the shares of unlike test images; without rows in runs that did not store them."""
        numbers = ("flagged_fraction", "low", "high")
        if not self.unlike_path.exists():
            return pd.DataFrame(columns=["contender", "score", "images", *numbers, "n"])
        return _read_numbers(self.unlike_path, numbers, ("n",))

    def neighbours(self) -> pd.DataFrame:
        """Load the nearest training images; without rows in runs that did not store them."""
        columns = ["image_id", "label", "space", "rank", "train_image_id", "train_label"]
        if not self.neighbours_path.exists():
            return pd.DataFrame(columns=[*columns, "distance"])
        return _read_numbers(self.neighbours_path, ("distance",), ("rank",))

    def search(self, contender: str) -> pd.DataFrame:
        """Load the table of a contender's search; without rows where nothing was searched.

        A hyperparameter whose values are all numbers is one of numbers, others are text.
        """
        columns = ("mean", "std", "folds")
        path = self.search_path(contender)
        if not path.exists():
            return pd.DataFrame(columns=list(columns))
        table = _read_numbers(path, columns[:2], columns[2:])
        for name in [name for name in table if name not in columns]:
            with contextlib.suppress(ValueError):
                table[name] = pd.to_numeric(table[name])
        return table

    def unlike_bounds(self, contender: str) -> dict[str, float]:
        """Load the bound of each score of a contender; empty where none are stored."""
        path = self.part_path(contender) / "unlike.json"
        return read_json(path)["bounds"] if path.exists() else {}

    @property
    def speeds_path(self) -> Path:
        """Image files per second of each contender."""
        return self.path / "speeds.json"

    def speeds(self) -> dict[str, float]:
        """Load the image files per second of each contender."""
        return read_json(self.speeds_path) if self.speeds_path.exists() else {}

    def record_seconds(self, stage: str, seconds: float) -> None:
        """Add to the duration of a stage; the part before an interruption counts, too."""
        timings = self.timings()
        timings[stage] = round(timings.get(stage, 0.0) + seconds, 2)
        write_json(self.timings_path, timings)

    def timings(self) -> dict[str, float]:
        """Load the seconds per stage."""
        return read_json(self.timings_path) if self.timings_path.exists() else {}


def open_run(path: str | Path) -> Run:
    """Open an existing run folder.

    Raises:
        InputError: The folder is not one.
    """
    path = Path(path)
    if path.name in ("", ".."):  # `.` and `..` have no name of their own
        path = path.resolve()
    run = Run(path)
    if not run.config_path.exists():
        nearby = sorted(str(p.parent) for p in path.parent.glob("*/config.json"))
        raise InputError(
            f"{str(path)!r} is not a run folder (it has no config.json); "
            f"the run folders beside it are {nearby}."
        )
    return run


def open_finished(path: str | Path) -> Run:
    """Open a run folder that is finished.

    Raises:
        InputError: The folder is none, or its run is not finished.
    """
    run = open_run(path)
    if not run.is_finished:
        raise InputError(
            f"the run {str(path)!r} is not finished; finish it with: cvpipe run {run.config_path}"
        )
    return run


def _in_view(name: str, view: str) -> str:
    return f"{name}-{view}" if view else name


def _read_numbers(path: Path, floats: Sequence[str], integers: Sequence[str]) -> pd.DataFrame:
    """Read a table of which some columns are numbers and all others text; "" is a NaN."""
    table = frames.read_text_table(path)
    for name in (n for n in floats if n in table):
        table[name] = table[name].map(lambda text: float(text or "nan"))
    for name in (n for n in integers if n in table):
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    return table


def record_test_opening(runs_path: Path, run: Run, test_fingerprint: str) -> None:
    """Write into the ledger that this run scores this test split; once per run.

    Everything is appended in one write, so runs that end at the same time do not lose a
    line. Two that begin the file together may both write its header; reading skips it.
    """
    ledger = runs_path / LEDGER_NAME
    identity = config_hash(run.config())
    if any(
        row["run"] == run.path.name and row["test_fingerprint"] == test_fingerprint
        for row in read_ledger(runs_path)
    ):
        return
    runs_path.mkdir(parents=True, exist_ok=True)
    row = {
        "test_fingerprint": test_fingerprint,
        "config_hash": identity,
        "run": run.path.name,
        "opened": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with ledger.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, LEDGER_COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def read_ledger(runs_path: Path) -> list[dict[str, str]]:
    """Load all openings of test splits over the runs of a folder."""
    ledger = runs_path / LEDGER_NAME
    if not ledger.exists():
        return []
    with ledger.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if tuple(row.values()) != LEDGER_COLUMNS]


def count_test_openings(runs_path: Path, fingerprints: Sequence[str]) -> int:
    """Count the configs that have scored any of these sets of images."""
    rows = read_ledger(runs_path)
    return len({r["config_hash"] for r in rows if r["test_fingerprint"] in fingerprints})


def provenance(
    config: Config, data_fingerprint: str, weights: dict[str, str], devices: list[str]
) -> dict[str, Any]:
    """Describe what a run was made with.

    Args:
        config: The run's config.
        data_fingerprint: See `manifest_fingerprint`.
        weights: sha256 of the weights of each backbone in use.
        devices: What TensorFlow computes on; empty when no contender is a network.
    """
    return {
        "command": ["cvpipe", *map(_without_folders, sys.argv[1:])],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "devices": devices,
        "threads": config.threads,
        "versions": {
            **{name: metadata.version(name) for name in RECORDED_PACKAGES},
            **reader_versions(),
            **installed_builds(),
        },
        "config_hash": config_hash(config),
        "data_fingerprint": data_fingerprint,
        "weights": weights,
    }


def _without_folders(argument: str) -> str:
    """Shorten a path to somewhere else to its name: a run folder says nothing of somebody's disk.

    That is a path that starts at a root or a drive, or that climbs by `..`, in the way of either
    system: a run may be made on one and read on another.

    Example:
        >>> [_without_folders(a) for a in ("/home/me/photos", "--data=../me/photos", "a/b")]
        ['photos', '--data=photos', 'a/b']
    """
    elsewhere = r"""[/\\]|[A-Za-z]:|(?:[^"'=]*[/\\])?\.\.[/\\]"""
    path = rf"""(^|["'=])(?:{elsewhere})(?:.*[/\\])?(?=[^/\\])"""
    return re.sub(path, r"\1", argument, flags=re.DOTALL)


def _git_state() -> dict[str, Any]:
    """Return commit and dirty flag of the working directory's repository, if there is one."""
    git = shutil.which("git")
    if git is None:
        return {}
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    answers = [
        subprocess.run([git, *c], capture_output=True, text=True, check=False)  # noqa: S603 (fixed)
        for c in commands
    ]
    if any(answer.returncode for answer in answers):
        return {}
    return {"commit": answers[0].stdout.strip(), "dirty": bool(answers[1].stdout.strip())}


def data_root(run: Run, data: Path | None) -> Path:
    """Find the images of a run.

    Args:
        run: The run.
        data: Where the caller says they are, if anywhere.

    Raises:
        InputError: There is no such folder.
    """
    stored = run.config().data.root
    root = data or run.path / stored
    # A bare name is all that is kept of a folder elsewhere; it is no folder of the run.
    if not root.is_dir() or (data is None and "/" not in stored):
        raise InputError(
            f"the images of {str(run.path)!r} are not at {str(root)!r}; give their folder with "
            "--data DIR."
        )
    return root


def read_source(root: Path) -> dict[str, str]:
    """Load what a packaged data set says about its origin; empty for other folders."""
    path = root / "SOURCE.json"
    facts = read_json(path) if path.exists() else {}
    # Somebody's own file may bear the same name.
    return facts if isinstance(facts, dict) and facts.keys() >= SOURCE_KEYS else {}


def stored_root(root: Path, run_path: Path) -> str:
    """Write where the images are, for a run's config.

    When both lie inside the working directory, the folder is stored relative to the run,
    so the config can be run again as it stands. Otherwise only its name is stored: a path
    of somebody's machine does not belong into a file that is handed on.
    """
    folder, run_path = Path(os.path.abspath(root)), run_path.resolve()  # noqa: PTH100 (keeps links)
    if folder.is_relative_to(Path.cwd()) and run_path.is_relative_to(Path.cwd()):
        return Path(os.path.relpath(folder, run_path)).as_posix()
    return folder.name
