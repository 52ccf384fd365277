"""What endangers the figures of a run, in plain words, the gravest first.

Rules on the stored tables, each with its bound here in one place. A *risk* can make the
answer mean something else than a reader thinks; a *warning* is worth knowing beside it.
"""

import pandas as pd

from cvpipe import frames
from cvpipe.config import Config
from cvpipe.data.audit import NOTEWORTHY_FRACTION
from cvpipe.evaluation.planning import Expectation, warning_of
from cvpipe.files import read_json
from cvpipe.report.content import Risk
from cvpipe.runs import Run
from cvpipe.stages.evaluate import accuracies_on_test, careful_protocols
from cvpipe.stages.imported import imported_contenders, trained_elsewhere
from cvpipe.stages.recipes import is_baseline, is_majority, is_shortcut
from cvpipe.stages.shortcuts import FAR_ABOVE_FRACTION, widening
from cvpipe.stages.split import SPLIT_GIVEN
from cvpipe.stages.suspects import describe_left_out


def find_risks(run: Run) -> list[Risk]:
    """Say what could make the answer of an evaluated run mean something else than it seems."""
    config, metrics, comparison = run.config(), run.metrics(), run.comparison()
    protocol = careful_protocols(config)[-1]  # folds score more images than the holdout
    accuracies = accuracies_on_test(metrics, protocol)
    comparison = comparison[comparison["protocol"] == protocol]
    # Another split differs from a random one in more than look-alikes: in site, in year.
    by_class_alone = config.split.protocol in ("holdout", "kfold") and not config.split.by
    chosen = str(read_json(run.choice_path)["chosen"])
    elsewhere = _trained_elsewhere(config)
    is_chosen = chosen in trained_elsewhere(config)
    return [
        *_leaks(run.manifest()),
        *(elsewhere if is_chosen else []),
        *_unseen_pictures(config, chosen, comparison),
        *_shortcuts(config, accuracies, comparison),
        *(_careless_claims(run.careless(), run.manifest()) if by_class_alone else []),
        *([] if is_chosen else elsewhere),
    ]


def find_warnings(run: Run) -> list[str]:
    """Say what else a reader should know."""
    findings = frames.read_text_table(run.findings_path)
    about_all = findings[(findings["image_id"] == "") & (findings["severity"] == "warning")]
    warnings = []
    for _, reasons in about_all.groupby("finding", sort=False)["reason"]:
        more = f" ({len(reasons) - 1} more of this kind)" if len(reasons) > 1 else ""
        warnings.append(f"{reasons.iloc[0]}{more}.")
    own_split_kept = SPLIT_GIVEN in run.manifest()
    if run.config().split.protocol == "given":
        drawn = "; it had no val, which was taken from its train" if own_split_kept else ""
        warnings.append(f"The split is the one that the images came with{drawn}.")
    elif own_split_kept:
        warnings.append("The images came with a split of their own, which was not used.")
    excluded = (findings["finding"] == "excluded").sum()
    if excluded:
        warnings.append(f"{excluded} image(s) were left out because data.exclude names them.")
    left_out = findings["reason"].str.endswith("; left out").sum()
    if left_out:
        warnings.append(
            f"{left_out} image(s) could not be read and were left out; see the findings."
        )
    warnings += [*_few_images(run), *_doubted_labels(run)]
    for contender in run.config().contender:
        fit = read_json(run.part_path(contender.name) / "fit.json")
        warnings += [f"{contender.name}: {text}." for text in fit["warnings"]]
    return warnings


def _few_images(run: Run) -> list[str]:
    """Tell when the test images are too few for an answer."""
    told = [warning_of(name, Expectation(**e)) for name, e in run.expectations().items()]
    return [f"{text[0].upper()}{text[1:]}." for text in told if text]


def _doubted_labels(run: Run) -> list[str]:
    """Tell how many labels the other images speak against, and where that was not asked."""
    if not run.suspects_path.exists():
        return []
    warnings = []
    if len(run.suspects()):
        warnings.append(
            f"{len(run.suspects())} image(s) look as if another label were right; look at them: "
            f"{run.suspects_path.name} in the run folder."
        )
    left_out = describe_left_out(run.manifest())
    if left_out:
        warnings.append(f"{left_out[0].upper()}{left_out[1:]}.")
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
            "images on another side of the split (the same group, the same pixels, a "
            "near-duplicate, or the same value of a split.by column). Their figures show what was "
            "remembered, not what was learned. The run went on because of --allow-leak.",
        )
    ]


def _trained_elsewhere(config: Config) -> list[Risk]:
    """Tell of contenders that may have been trained on the very images that they are scored on."""
    names = [contender.name for contender in imported_contenders(config)]
    if not names:
        return []
    several = len(names) > 1
    return [
        Risk(
            "What was trained elsewhere may know these images.",
            f"{' and '.join(names)} {'were' if several else 'was'} imported, and nothing of "
            f"{'them' if several else 'it'} was fitted here but the calibration. The figures, and "
            "the comparisons with other contenders, are honest only if no test image, and no "
            "near-duplicate of one, was among the images that "
            f"{'they were' if several else 'it was'} trained on; cvpipe cannot know that. Folds "
            "and the careless split show the same model on other images, not a recipe.",
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
            f"{chosen} is not shown to be better than {' and '.join(names)}, which "
            f"{'sees' if len(names) == 1 else 'see'} no pixel. "
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
    # Several contenders are looked at, so one would be above by chance more often.
    margin = widening(max(1, len(careless))) * (careless["difference"] - careless["low"])
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
