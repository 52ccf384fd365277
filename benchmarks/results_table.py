"""Run the pipelines of the README's table and write the table: `make results`.

Every contender's accuracy with its 95 % interval: on the test split, over five grouped folds,
and on a careless split. A run that is finished already is only read.
"""

import re
from pathlib import Path

import cvpipe
from cvpipe.cli import Terminal
from cvpipe.runs import Run
from cvpipe.stages.fetch import fetch
from cvpipe.stages.summary import accuracy_table, markdown

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
NAMES = ("brain_mri", "digits", "solar_cells")
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def table_of(run: Run) -> str:
    """Write a run's accuracies in Markdown; the chosen contender is marked."""
    table = accuracy_table(run)
    chosen = table["verdict"] == "chosen on val"
    table["contender"] = table["contender"].where(~chosen, "**" + table["contender"] + "**")
    num_images = f"{len(run.manifest()):,}"
    title = f"**{run.config().name}**, {num_images} images"
    return "\n".join([title, "", *markdown(table.drop(columns="verdict"))])


def main() -> None:
    """Fetch, run, and rewrite the block between the marks in the README."""
    tables = []
    for name in NAMES:
        fetch(name, target_root=ROOT / "data" / "raw")
        run = cvpipe.run(
            ROOT / "pipelines" / f"{name}.toml",
            ["split.protocol=kfold"],
            runs_path=ROOT / "runs",
            watcher=Terminal(quiet=False),
        )
        tables.append(table_of(run))
    block = "\n" + "\n\n".join(tables) + "\n\n"
    README.write_text(BLOCK.sub(lambda _: block, README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
