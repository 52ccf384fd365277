"""The result of a run as a small table of text, for the terminal and for documents."""

import pandas as pd

from cvpipe.files import read_json
from cvpipe.runs import Run
from cvpipe.stages.evaluate import accuracies_on_test

NUMBERS = ["value", "low", "high"]


def accuracy_table(run: Run) -> pd.DataFrame:
    """Write the accuracies of all contenders with their intervals, and the verdicts on test.

    Args:
        run: An evaluated run.

    Returns:
        One row per contender in the config's order, all values text: `contender`, `view` where
        there were several, `test`, `<n> folds` and `careless split` where the run has them, and
        `verdict`.
    """
    config = run.config()
    chosen = str(read_json(run.choice_path)["chosen"])
    metrics = run.metrics()
    names = [contender.name for contender in config.contender]
    titles = {
        "holdout": "test",
        "kfold": f"{config.split.num_folds} folds",
        "careless": "careless split",
    }
    columns = {"contender": names}
    if run.views_path.exists():
        columns["view"] = [run.view(name) for name in names]
    for protocol, title in titles.items():
        rows = accuracies_on_test(metrics, protocol)
        if len(rows):
            columns[title] = [with_interval(**rows.loc[name, NUMBERS]) for name in names]
    return pd.DataFrame({**columns, "verdict": _verdicts(run.comparison(), chosen, names)})


def with_interval(value: float, low: float, high: float) -> str:
    """Write a share with its interval.

    Example:
        >>> with_interval(0.973, 0.958, 0.987)
        '97.3% (95.8% to 98.7%)'
    """
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def _verdicts(comparison: pd.DataFrame, chosen: str, names: list[str]) -> list[str]:
    """Say how each contender's test accuracy compares with the chosen one's."""
    rows = comparison.query(
        "protocol == 'holdout' and metric == 'accuracy' and reference == @chosen"
    )
    verdicts = rows.set_index("contender")["verdict"].to_dict()
    sentences = {chosen: "chosen on val"}
    for name, verdict in verdicts.items():
        joint = "from" if verdict.startswith("cannot") else "than"
        sentences[name] = f"{verdict} {joint} {chosen}"
    return [sentences[name] for name in names]


def aligned(table: pd.DataFrame) -> list[str]:
    """Write a table of text as lines with aligned columns, its titles first."""
    cells = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def markdown(table: pd.DataFrame) -> list[str]:
    """Write a table of text in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return ["| " + " | ".join(row) + " |" for row in rows]
