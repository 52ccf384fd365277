"""Plant wrong labels and count how many of the label suspects they are.

Some images of a data set, a share of their labels made wrong at random, and the search for
suspects over them; several draws. Prints the table of `cvpipe/stages/suspects.py`:

    make run PIPELINE=brain_mri && make run PIPELINE=digits && make run PIPELINE=solar_cells
    python benchmarks/label_suspects.py runs/brain_mri-* runs/digits-* runs/solar_cells-*

Images, groups and settings are those of the runs, the labels those of the data set, which may be
wrong here and there themselves: such a suspect counts as a mistake of the search.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe.runs import Run, open_run
from cvpipe.stages.job import Nobody
from cvpipe.stages.summary import markdown
from cvpipe.stages.suspects import HANDCRAFTED, describe_rows, suspect_findings

FEATURES = {"backbone": ("efficientnet_lite0",), "hog and colours": HANDCRAFTED}
RAW = Path(__file__).parent.parent / "data" / "raw"
NUM_IMAGES = 1_500
SHARE = 0.05
NUM_DRAWS = 3
NUM_FIRST = 20


def plant(labels: pd.Series, class_names: list[str], rng: np.random.Generator) -> pd.Series:
    """Give a share of the rows another class each, drawn at random."""
    planted = rng.permutation(len(labels))[: round(SHARE * len(labels))]
    targets = labels.map(class_names.index).to_numpy(copy=True)
    targets[planted] += rng.integers(1, len(class_names), len(planted))
    return pd.Series([class_names[target % len(class_names)] for target in targets])


def measure(rows: pd.DataFrame, features: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Compute precision, recall, and the share of planted ones among the most suspicious."""
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(rows))[:NUM_IMAGES])
    true = rows.iloc[drawn].reset_index(drop=True)
    given = true.assign(label=plant(true["label"], sorted(rows["label"].unique()), rng))
    _, suspects = suspect_findings(given, features[drawn], seed)
    is_wrong = given["label"] != true["label"]
    hits = suspects["image_id"].isin(set(true.loc[is_wrong, "image_id"]))
    return hits.mean(), hits.sum() / is_wrong.sum(), hits.head(NUM_FIRST).mean()


def table_rows(run: Run) -> Iterator[dict[str, str]]:
    """Measure each kind of features on the images of a run."""
    rows, name = run.manifest(), run.config().name
    for title, names in FEATURES.items():
        features = describe_rows(
            rows, names, RAW / Path(run.config().data.root).name, run.config(), Nobody()
        )
        shares = np.mean([measure(rows, features, seed) for seed in range(NUM_DRAWS)], axis=0)
        figures = [f"{share:.2f}".lstrip("0") for share in shares]
        titles = ("precision", "recall", f"first {NUM_FIRST}")
        yield {"images": name, "features": title, **dict(zip(titles, figures, strict=True))}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    table = [row for path in parser.parse_args().runs for row in table_rows(open_run(path))]
    print("\n".join(markdown(pd.DataFrame(table))))


if __name__ == "__main__":
    main()
