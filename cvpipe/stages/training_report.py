"""Collect what a run stored of the training of its networks, for its page."""

from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.errors import InputError
from cvpipe.files import read_json
from cvpipe.models.rate_range import smooth_losses, suggest_rate
from cvpipe.report.training import CheckResult, RateTest, Training
from cvpipe.runs import Run
from cvpipe.stages.contenders import EPOCHS


def collect_training(run: Run) -> list[Training]:
    """Read how the networks of a run were trained, in the order of its config.

    Contenders without a history are left out: all that are not networks, and those of older runs.
    """
    parts = {c.name: run.part_path(c.name) for c in run.config().contender}
    return [
        Training(
            contender=name,
            history=read_numbers(part / "history.csv"),
            kept=read_json(part / "fit.json")["chosen"][EPOCHS],
            checks=read_checks(part / "checks.json"),
            rate_test=read_rate_test(part / "rate_test.csv"),
        )
        for name, part in parts.items()
        if (part / "history.csv").exists()
    ]


def read_checks(path: Path) -> list[CheckResult]:
    """Read the checks of a network; none where none were stored."""
    rows = read_json(path) if path.exists() else []
    # JSON has no NaN.
    return [
        CheckResult(**{**row, "value": float("nan") if row["value"] is None else row["value"]})
        for row in rows
    ]


def read_rate_test(path: Path) -> RateTest | None:
    """Read a test of learning rates, and suggest a rate; `None` where there was no test."""
    if not path.exists():
        return None
    table = read_numbers(path)
    rates, losses = (table[name].to_numpy() for name in ("learning_rate", "loss"))
    return RateTest(rates, losses, smooth_losses(losses), suggested(rates, losses))


def suggested(rates: np.ndarray, losses: np.ndarray) -> float:
    """Suggest a learning rate; NaN where the losses suggest none."""
    try:
        return suggest_rate(rates, losses)
    except InputError:  # the page is about what was trained, with or without a suggestion
        return float("nan")


def read_numbers(path: Path) -> pd.DataFrame:
    """Read a table of numbers; what is empty is NaN."""
    return frames.read_text_table(path).replace("", "nan").astype(float)
