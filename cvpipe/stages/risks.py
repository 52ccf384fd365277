"""What endangers the figures of a run, in plain words, the gravest first.

Rules on the stored tables, each with its bound here in one place. A *risk* can make the
answer mean something else than a reader thinks; a *warning* is worth knowing beside it.
"""

import pandas as pd

from cvpipe import frames
from cvpipe.config import Config
from cvpipe.data.audit import NOTEWORTHY_FRACTION
from cvpipe.files import read_json
from cvpipe.report.content import Risk
from cvpipe.runs import Run
from cvpipe.stages.evaluate import accuracies_on_test, careful_protocols
from cvpipe.stages.recipes import is_baseline, is_majority, is_shortcut
from cvpipe.stages.split import SPLIT_GIVEN

# A yardstick is far above the class frequencies when, at the lower end of the interval, it
# takes away at least this share of their mistakes.
FAR_ABOVE_FRACTION = 0.1
# Makes a 95 % interval so wide that eight of them together miss by chance in 1 of 20 runs:
# the normal quantile at 1 - 0.025 / 8 over that at 1 - 0.025.
WIDENING = 1.4


def find_risks(run: Run) -> list[Risk]:
    """Say what could make the answer of an evaluated run mean something else than it seems."""
    config, metrics, comparison = run.config(), run.metrics(), run.comparison()
    protocol = careful_protocols(config)[-1]  # folds score more images than the holdout
    accuracies = accuracies_on_test(metrics, protocol)
    comparison = comparison[comparison["protocol"] == protocol]
    given = config.split.protocol == "given"
    chosen = str(read_json(run.choice_path)["chosen"])
    return [
        *_leaks(run.manifest()),
        *_unseen_pictures(config, chosen, comparison),
        *_shortcuts(config, accuracies, comparison),
        # A given split may differ from a random one in more than look-alikes: site, year.
        *(_careless_claims(run.careless(), run.manifest()) if not given else []),
    ]


def find_warnings(run: Run) -> list[str]:
    """Say what else a reader should know."""
    findings = frames.read_text_table(run.findings_path)
    about_all = findings[(findings["image_id"] == "") & (findings["severity"] == "warning")]
    warnings = [f"{reason}." for reason in about_all["reason"]]
    if run.config().split.protocol == "given":
        warnings.append("The split is the one that the images came with.")
    if SPLIT_GIVEN in run.manifest():
        warnings.append("The images came with a split of their own, which was not used.")
    dropped = findings["reason"].str.endswith("; left out").sum()
    if dropped:
        warnings.append(
            f"{dropped} image(s) could not be read and were left out; see the findings."
        )
    for contender in run.config().contender:
        fit = read_json(run.part_path(contender.name) / "fit.json")
        warnings += [f"{contender.name}: {text}." for text in fit["warnings"]]
    return warnings


def _leaks(manifest: pd.DataFrame) -> list[Risk]:
    """Tell when a given split parts what belongs together; it was run because it was allowed."""
    parted = manifest[manifest.groupby("group")["split"].transform("nunique") > 1]
    if parted.empty:
        return []
    num_test = int((parted["split"] == "test").sum())
    return [
        Risk(
            "The given split leaks.",
            f"{len(parted):,} images, {num_test:,} of them test images, belong together with "
            "images on another side of the split (the same group, the same pixels, or a "
            "near-duplicate). Their figures show what was remembered, not what was learned. The "
            "run went on because of --allow-leak.",
        )
    ]


def _unseen_pictures(config: Config, chosen: str, comparison: pd.DataFrame) -> list[Risk]:
    """Tell when the chosen contender does not beat what looks at no pixel."""
    baselines = [c.name for c in config.contender if is_baseline(c)]
    # Not by macro F1: naming classes by a coin beats the most frequent class there.
    rows = comparison[
        (comparison["reference"] == chosen)
        & (comparison["verdict"] == "worse")
        & comparison["metric"].isin(["accuracy", "log_loss"])
    ]
    names = [name for name in baselines if name not in set(rows["contender"])]
    if chosen in baselines:
        text = f"{chosen} was chosen for want of one that does. Add a contender with features."
        return [Risk("No contender looks at the pictures.", text)]
    if not names:
        return []
    return [
        Risk(
            "The chosen contender is not shown to use the pictures.",
            f"{chosen} is not shown to be better than {' and '.join(names)}, which see no pixel. "
            "These figures are no evidence that the label can be seen in the images.",
        )
    ]


def _shortcuts(config: Config, accuracies: pd.DataFrame, comparison: pd.DataFrame) -> list[Risk]:
    """Tell when the facts of the files give the label away."""
    shortcuts = [c.name for c in config.contender if is_shortcut(c)]
    majorities = [c.name for c in config.contender if is_majority(c)]
    rows = comparison[
        (comparison["metric"] == "accuracy")
        & comparison["contender"].isin(shortcuts)
        & comparison["reference"].isin(majorities)
    ]
    risks = []
    for row in rows.itertuples():
        reached, majority = accuracies.loc[row.contender], accuracies.loc[row.reference]
        if row.low < FAR_ABOVE_FRACTION * (1 - majority["value"]):
            continue
        not_above = accuracies.index[accuracies["value"] <= reached["value"]]
        looked = [name for name in not_above if name not in (*shortcuts, *majorities)]
        risks.append(
            Risk(
                "The file gives the label away.",
                "Without seeing a single pixel, from the width, height, channels, format and size "
                f"of the file alone, {row.contender} names {reached['value']:.1%} of the images "
                f"correctly (95 % interval {reached['low']:.1%} to {reached['high']:.1%}); class "
                f"frequencies alone give {majority['value']:.1%}. "
                + (f"Not above it, although looking: {', '.join(looked)}. " if looked else "")
                + "So the classes seem to have been collected in different ways, and contenders "
                "that do look at the images may recognise where an image comes from instead of "
                "what it shows: on images from elsewhere they can fail. Find out how each class "
                "was collected, and test on images whose classes share one source.",
            )
        )
    return risks


def _careless_claims(careless: pd.DataFrame, manifest: pd.DataFrame) -> list[Risk]:
    """Tell when a plain random split would have claimed more than there is."""
    grouped = manifest["group"].duplicated(keep=False).mean()
    margin = WIDENING * (careless["difference"] - careless["low"])
    inflated = careless[careless["difference"] > margin]
    if inflated.empty or grouped < NOTEWORTHY_FRACTION:
        return []
    worst = inflated.loc[inflated["difference"].idxmax()]
    return [
        Risk(
            "A plain random split would flatter.",
            "It puts near-duplicates of test images, and images of the same group where groups "
            f"are given, into the training set: {worst['contender']} would then seem to name "
            f"{worst['careless']:.1%} correctly instead of {worst['holdout']:.1%}. Figures "
            "elsewhere that were measured on these images without keeping look-alikes together "
            "are too good in the same way.",
        )
    ]
