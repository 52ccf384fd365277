"""Choose every key of a pipeline file from the fingerprint of the images.

Each choice follows by a rule that stands here in one place; the bounds are constants below.
nnU-Net (Isensee et al., Nature Methods 18, 2021) configures itself from a fingerprint in the
same way.
"""

from collections.abc import Iterator

import numpy as np

from cvpipe.classifiers.table import CLASSIFIERS, MAX_PAIR_BYTES, count_search_fits
from cvpipe.config import STANDARD_CONTENDERS
from cvpipe.data.audit import MAX_IMBALANCE
from cvpipe.sections import FOLDERS, ExportSection, SplitSection
from cvpipe.stages.fingerprint import (
    TEST_FRACTION,
    Fingerprint,
    answer_in_words,
    counted,
    groups_in_words,
    similarity_in_words,
)
from cvpipe.stages.pipeline_file import Block, Choice

VAL_FRACTION = 0.2
NUM_FOLDS = 5
# Fewer in test and the interval of an accuracy is wider than about 4 points to either side.
FEW_TEST_IMAGES = 200
FEW_TEST_GROUPS = 100
# Beyond it, "stretch" squeezes some images to half their width.
LONG_ELONGATION = 2.0
# The lecture's table of set size against similarity has no number. Ours: the median class has
# fewer groups than this, near-duplicates counted once.
FEW_GROUPS_PER_CLASS = 500
# A coarse search takes half the fits: no values between decades, and 3 folds instead of 5.
COARSE_FROM_IMAGES = 10_000
SIXTEEN_BIT_WHITE = 65_535


def choose(
    fingerprint: Fingerprint, root: str, labels: str, split: SplitSection, threads: int
) -> list[Block]:
    """Choose every key of a pipeline file.

    Args:
        fingerprint: Of the images.
        root: Their folder, relative to the pipeline file.
        labels: As in `cvpipe.sections.DataSection`.
        split: Whether the split that the images come with is used.
        threads: Threads to compute with.
    """
    return [
        Block(
            "",
            [
                Choice("seed", 0, "Start of every random draw; another one divides anew."),
                Choice(
                    "threads",
                    threads,
                    "The cores of this machine. Written down, because the last digits of a sum "
                    "depend on it.",
                ),
            ],
        ),
        Block("data", data_choices(fingerprint, root, labels)),
        Block("split", split_choices(fingerprint, split)),
        Block("images", image_choices(fingerprint)),
        *contender_blocks(fingerprint),
        Block("evaluate", evaluate_choices(fingerprint)),
        Block(
            "export",
            [
                Choice(
                    "formats",
                    list(ExportSection().formats),
                    "A network becomes a Keras file, hand-crafted features with a classifier "
                    "arrays.",
                )
            ],
        ),
    ]


def data_choices(fingerprint: Fingerprint, root: str, labels: str) -> list[Choice]:
    """Say where images and labels are."""
    f = fingerprint
    kind = (
        "The name of the class folder is the label"
        if labels == FOLDERS
        else "Labels stand in a table in data.root"
    )
    classes = f"{kind}: {counted(f.class_images)}."
    choices = [
        Choice("root", root, f"{f.num_images:,} images; the path starts at this file."),
        Choice("labels", labels, classes),
    ]
    if f.num_patients > 1:
        reason = f"Images of one of the {f.num_patients:,} DICOM patients are never parted."
        choices.append(Choice("patient_groups", True, reason))
    return choices


def split_choices(fingerprint: Fingerprint, split: SplitSection) -> list[Choice]:
    """Choose how images are kept away from training."""
    f = fingerprint
    if split.protocol == "given":
        return given_split_choices(f)
    groups = f"Groups: {groups_in_words(f)}."
    answer = answer_in_words(f)
    unused = "The images come with a split, but without train or test. " if f.given_split else ""
    choices = []
    if f.test_images < FEW_TEST_IMAGES or f.test_groups < FEW_TEST_GROUPS:
        reason = (
            f"{unused}A holdout's {answer}. That is little, so the images are also divided into "
            "folds, and every image is scored once."
        )
        more = "Each contender is fitted once more per fold, with all other folds to learn from."
        choices += [Choice("protocol", "kfold", reason), Choice("num_folds", NUM_FOLDS, more)]
    else:
        reason = f"{unused}A holdout's {answer}. Folds would take longer."
        choices.append(Choice("protocol", "holdout", reason))
    return [
        *choices,
        Choice("val_fraction", VAL_FRACTION, "Chooses among the contenders; never learned from."),
        Choice("test_fraction", TEST_FRACTION, f"Opened once, at the end. {groups}{_by_hint(f)}"),
        careless_choice(f),
    ]


def given_split_choices(fingerprint: Fingerprint) -> list[Choice]:
    """Keep the split that the images come with."""
    f = fingerprint
    reason = f"The images come with a split: {counted(f.given_split)}. Its {answer_in_words(f)}."
    choices = [Choice("protocol", "given", reason)]
    if "val" not in f.given_split:
        why = "The given split has no val, so this share of its train becomes val."
        choices.append(Choice("val_fraction", VAL_FRACTION, why))
    why = (
        "Also fit on a random split of the same sizes: a large difference says that the given "
        "split is not a random one, or that look-alikes flatter the random one."
    )
    return [*choices, Choice("careless", True, why)]


def careless_choice(fingerprint: Fingerprint) -> Choice:
    """Choose whether a plain random split is shown beside the careful one."""
    if not fingerprint.grouped_fraction:
        reason = "No image has a look-alike or a group, so a careless split would claim the same."
        return Choice("careless", False, reason)
    reason = (
        f"{fingerprint.grouped_fraction:.0%} of the images belong together with others. This "
        "shows what a plain random split, which parts them, would have claimed."
    )
    return Choice("careless", True, reason)


def _by_hint(fingerprint: Fingerprint) -> str:
    if not fingerprint.columns:
        return ""
    names = ", ".join(map(repr, fingerprint.columns))
    return (
        f" If new values of a column are to be expected in use (another site, another device), "
        f"name it in by = [...]: {names}."
    )


def image_choices(fingerprint: Fingerprint) -> list[Choice]:
    """Choose how images are brought to the size that contenders see."""
    f = fingerprint
    shape = (
        f"the longer side is {f.elongation.median:.2f} times the shorter one (median; "
        f"{f.elongation.high:.2f} at 95% of the images)"
    )
    if f.elongation.high > LONG_ELONGATION:
        reason = f"Long images: {shape}. Stretched to a square they would be squeezed too much."
        choices = [Choice("fit", "pad", reason)]
    else:
        choices = [Choice("fit", "stretch", f"Nothing is cut away, and little distorted: {shape}.")]
    white = white_level(f.largest_value)
    if white < SIXTEEN_BIT_WHITE:
        reason = (
            f"16-bit images whose values end at {f.largest_value:,}: by the usual rule, division "
            f"by 257, the brightest would be grey value {f.largest_value / 257:.0f} of 255, so the "
            "end of the bits in use becomes white."
        )
        choices.append(Choice("white_level", white, reason))
    return choices


def white_level(largest_value: int) -> int:
    """Choose which value of 16-bit images becomes white.

    Args:
        largest_value: The largest value of all of them; 0 when there are none.

    Returns:
        The largest value of a camera whose bits just hold it; 65,535, the usual rule, when
        there is nothing to mend.

    Example:
        >>> white_level(3700), white_level(4096), white_level(7), white_level(0)
        (4095, 8191, 255, 65535)
    """
    if not largest_value:
        return SIXTEEN_BIT_WHITE
    return max(255, 2 ** largest_value.bit_length() - 1)


def contender_blocks(fingerprint: Fingerprint) -> Iterator[Block]:
    """Choose the contenders: those of the standard table that can be afforded."""
    f = fingerprint
    notes = contender_notes(f)
    train_images = (1 - VAL_FRACTION - TEST_FRACTION) * f.num_images
    too_many = 8 * train_images**2 > MAX_PAIR_BYTES
    for contender in STANDARD_CONTENDERS:
        classifier = CLASSIFIERS[contender.get("classifier", "softmax")]
        if too_many and (classifier.holds_pairs or classifier.counts_rows):
            continue  # memory or time grows with the square of the number of images
        choices = [Choice(key, value) for key, value in contender.items()]
        if f.num_images >= COARSE_FROM_IMAGES and classifier.parameters:
            fine, coarse = (count_search_fits(classifier, name) for name in ("fine", "coarse"))
            reason = (
                f"{f.num_images:,} images make the fine search, {fine} fits instead of {coarse}, "
                "slow."
            )
            choices.append(Choice("search", "coarse", reason))
        yield Block("contender", choices, notes[contender["name"]])


def contender_notes(fingerprint: Fingerprint) -> dict[str, str]:
    """Say of each standard contender what it is there for on these images."""
    f = fingerprint
    most = max(f.class_images.values()) / f.num_images
    sizes_differ = f.width.low < f.width.high or f.height.low < f.height.high
    grey = f.grey_fraction > 0.9
    return {
        "majority": f"Class frequencies alone; the most frequent class has {most:.0%} of the "
        "images. Whoever is not better has learned nothing.",
        "shortcut": "Sees no pixel: width, height, channels, format and size of the file. "
        + (
            "Sizes or formats differ here; if it does well, they give the label away."
            if sizes_differ or len(f.formats) > 1
            else "All files have one size and format, so only their bytes can tell something."
        ),
        "pixels_knn": "Looks up the most similar training images by raw pixels: what memory does.",
        "colour_softmax": (
            f"{f.grey_fraction:.0%} of the images have no colour, so this sees brightness alone."
            if grey
            else "Colours alone, wherever they are in the image."
        ),
        "hog_svm": f"Hand-crafted edges, linear. {hand_crafted_note(f)}",
        "hog_rbf": "The same edges with a Gaussian kernel, which bends the boundary.",
        "lite0_rbf": "Frozen ImageNet features with the same kernel: features against features.",
        "linear_probe": recipe_note(f),
    }


def is_small(fingerprint: Fingerprint) -> bool:
    """Tell whether a set is small in the sense of the lecture's table."""
    return bool(np.median(list(fingerprint.class_groups.values())) < FEW_GROUPS_PER_CLASS)


def hand_crafted_note(fingerprint: Fingerprint) -> str:
    """Say what may be hoped of hand-crafted features."""
    similarity = fingerprint.similarity
    if similarity is not None and similarity.verdict == "different":
        return "Worth a try on images that are unlike ImageNet's."
    return "A yardstick for the network's features."


def recipe_note(fingerprint: Fingerprint) -> str:
    """Say what the table of set size against similarity to ImageNet advises.

    References:
        The lecture on transfer learning: similar and small, a linear classifier on the
        features; similar and more, fine-tune; different and small, trouble: try earlier
        layers; different and large, fine-tune larger parts.
    """
    f = fingerprint
    few = int(np.median(list(f.class_groups.values())))
    size = f"{few:,} independent images per class (median)"
    looks = f"ImageNet: {similarity_in_words(f.similarity)}."
    verdict = f.similarity.verdict if f.similarity else "unknown"
    if not is_small(f):
        extent = "larger parts of the network" if verdict == "different" else "the network"
        advice = (
            f"With {size} fine-tuning {extent} would be justified; linear_probe is the recipe "
            "that exists, and the yardstick for it."
        )
    elif verdict == "different":
        advice = (
            f"{size}, few, and unlike ImageNet's: the hard corner. A linear classifier on the "
            "last features may find little; expect less, and more from more images."
        )
    else:
        advice = f"{size} are few, so the network stays frozen and one linear layer is fitted."
    return f"{advice} {looks}"


def evaluate_choices(fingerprint: Fingerprint) -> list[Choice]:
    """Choose how contenders are judged."""
    f = fingerprint
    ratio = f"largest to smallest class {f.imbalance:.1f} to 1"
    if f.imbalance >= MAX_IMBALANCE:
        reason = f"Imbalanced, {ratio}: every class counts the same, however rare."
        choices = [Choice("select_by", "balanced_accuracy", reason)]
    else:
        reason = f"Rewards honest probabilities, not only right answers; {ratio}."
        choices = [Choice("select_by", "log_loss", reason)]
    if f.columns:
        reason = "Columns of the table with few values: accuracy is told for each value."
        choices.append(Choice("subgroups", list(f.columns), reason))
    return choices
