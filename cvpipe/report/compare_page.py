"""One self-contained HTML page that compares the contenders of one run or of several.

Values flow in, a `ContenderComparison`; the text of a page flows out, which loads nothing and
runs nothing. Equal values give equal bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cvpipe.plots import numbers
from cvpipe.report.cost_figure import cost_figure
from cvpipe.report.page import render_page, trusted
from cvpipe.report.wording import openings_sentence

# What the verdict of the contender is called with which all others are compared.
REFERENCE = "reference"
CONTENDER_COLUMNS = (
    *("contender", "run", "accuracy", "accuracy_low", "accuracy_high"),
    *("difference", "difference_low", "difference_high", "p_adjusted", "verdict"),
    *("log_loss", "log_loss_low", "log_loss_high", "ece", "ece_low", "ece_high"),
    *("fit_seconds", "milliseconds_per_image", "model_bytes"),
)


@dataclass(frozen=True)
class ContenderComparison:
    """Contenders of one run or of several, on the same test images.

    Attributes:
        runs: Names of the run folders, in the order given.
        reference: The contender all others are compared with, as the table names it.
        is_chosen: Whether the reference is what the first run chose on val.
        baselines: Contenders that look at no pixel, as the table names them.
        table: One row per contender, `CONTENDER_COLUMNS`. `contender` is its name, or
            `run/name` where several runs have one of that name; `difference` is its accuracy
            minus the reference's. What was not measured is missing.
        num_images: Number of test images.
        num_groups: In how many groups they are.
        test_openings: How many configs have scored these test images so far.
        notes: Sentences about what else a reader must know.
    """

    runs: Sequence[str]
    reference: str
    is_chosen: bool
    baselines: frozenset[str]
    table: pd.DataFrame
    num_images: int
    num_groups: int
    test_openings: int
    notes: Sequence[str]

    @property
    def several_runs(self) -> bool:
        """Whether contenders come from more than one run."""
        return len(self.runs) > 1

    def own_name(self, row: dict) -> str:
        """Name the contender of a row as its run does, for tables with a column for the run."""
        return str(row["contender"]).removeprefix(f"{row['run']}/")


def render_compare_page(comparison: ContenderComparison) -> str:
    """Write the page of a comparison."""
    figure = cost_figure(comparison.table, comparison.reference, comparison.baselines)
    return render_page(
        "compare.html.j2",
        comparison=comparison,
        rows=comparison.table.to_dict("records"),
        figure=trusted(figure),
        openings=openings_sentence(comparison.test_openings),
        interval=numbers.format_interval,
        p_value=numbers.format_p_value,
        value=numbers.format_metric,
        points=lambda value: numbers.format_difference("accuracy", value).split(numbers.SPACE)[0],
        reference_verdict=REFERENCE,
    )
