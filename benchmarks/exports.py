"""Write four kinds of contenders of three data sets in every format: a table of docs/export.md.

Part of `make results`. Every file goes through the gate of `cvpipe export`: it is kept if it gives
the measured numbers, and otherwise the table says what it was refused for. A run that is finished
already is only read, and a file that was written or refused already is not made again.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

import cvpipe
from cvpipe.cli import Terminal
from cvpipe.export.formats import list_exports
from cvpipe.runs import Run
from cvpipe.stages.export import export_contender, is_settled, obstacle_to
from cvpipe.stages.fetch import fetch
from cvpipe.stages.summary import markdown
from cvpipe.stages.verify import BY_ACCURACY, read_parity

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "export.md"
NAMES = ("brain_mri", "solar_cells", "digits")
BLOCK = re.compile(r"(?<=<!-- exports -->\n).*?(?=<!-- /exports -->)", re.DOTALL)


def run_of(pipeline: str) -> Run:
    """Run a pipeline, or read its run."""
    return cvpipe.run(
        ROOT / "pipelines" / f"{pipeline}.toml",
        runs_path=ROOT / "runs",
        watcher=Terminal(quiet=False),
    )


def table_of(run: Run) -> pd.DataFrame:
    """Export every contender in every format that it can have: a row for each format."""
    config = run.config()
    rows = []
    for label in list_exports():
        row = {"format": label}
        for contender in config.contender:
            name = contender.name
            if obstacle_to(run, config, contender, label):
                row[name] = ""
                continue
            if not is_settled(run.export_path / name, label):
                print(f"{run.path.name}: {name} as {label}", flush=True)
                export_contender(run, name, label)
            row[name] = cell_of(label, read_parity(run.export_path / name)["formats"][label])
        rows.append(row)
    return pd.DataFrame(rows)


def cell_of(label: str, found: dict[str, Any]) -> str:
    """Say of a file how far it is from what was measured, and whether it was kept."""
    accuracy = found["accuracy"]
    if label.endswith(BY_ACCURACY):
        told = loss_of(accuracy)
        if "folds" in found:
            told += f", over folds {loss_of(found['folds'])}"
    else:
        splits = found["splits"].values()
        told = f"{max(one['largest_difference'] for one in splits):.1e}"
        if min(one["same_class_fraction"] for one in splits) < 1:
            told += ", not all named the same"
    told += f"; {found['bytes'] / 1e6:.1f} MB"
    return told if found["passed"] else f"*refused:* {told}"


def loss_of(accuracy: dict[str, Any]) -> str:
    """Say what accuracy changed by, in points with the interval."""
    value, low, high = (f"{100 * accuracy[key]:+.1f}" for key in ("difference", "low", "high"))
    return f"{value} ({low} to {high})"


def main() -> None:
    """Fetch, run, export, and rewrite the block between the marks on the page."""
    written = []
    for name in NAMES:
        fetch(name, target_root=ROOT / "data" / "raw")
        run = run_of(f"export_{name}")
        num_test = len(run.predictions("test", "hog_rbf"))
        title = f"**{name}**, {num_test:,} test images"
        written.append("\n".join([title, "", *markdown(table_of(run))]))
    block = "\n" + "\n\n".join(written) + "\n\n"
    PAGE.write_text(BLOCK.sub(lambda _: block, PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
