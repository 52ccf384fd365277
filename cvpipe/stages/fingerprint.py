"""What a set of images is like, in the few numbers that decide how to work with it.

In: the audited rows and the facts of each file. Out: a `Fingerprint`, from which
`cvpipe.stages.init` writes a pipeline file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cvpipe.data.manifest import LABEL_GIVEN
from cvpipe.evaluation.planning import effective_number, expect_of, in_words
from cvpipe.models.backbones import BACKBONES, build_backbone
from cvpipe.models.features import build_embed
from cvpipe.models.framework import set_threads

BACKBONE = "efficientnet_lite0"
IMAGE_SIZE = BACKBONES[BACKBONE].image_size
SAMPLE_IMAGES = 128
TEST_FRACTION = 0.2

# Median entropy of the ImageNet head on real material, as a share of the largest possible:
# photos 0.36, crops of photos of 250 pixels or more 0.34 (made grey 0.33), of 80 to 160 pixels
# 0.55; pages of text 0.54, bricks 0.63; stained tissue 0.67, MRI slices 0.67, retinas 0.68, digits
# 0.68, noise 0.71, solar cells 0.74, cells 0.82. The largest probability puts them in nearly the
# same order, but parts retinas (0.23) from close crops of photos (0.25) by a hair only.
SIMILAR_BELOW = 0.45
DIFFERENT_FROM = 0.62
# A mean difference of the channels, in grey values, that JPEG leaves in pictures without colour.
GREY_SPREAD = 2.0

KNOWN_COLUMNS = frozenset({"image_id", "label", LABEL_GIVEN, "group", "split", "sha256"})
MAX_COLUMN_VALUES = 20
MAX_CLASSES_SHOWN = 6


@dataclass(frozen=True)
class Spread:
    """Where most of the values of a number lie.

    Attributes:
        low: 5 % of the values are below.
        median: Half of them are below.
        high: 95 % of them are below.
    """

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Similarity:
    """How much images look like ImageNet's, told by how sure its classifier is.

    It is a hint, not a measurement of what can be learned: one texture in all images can make
    the network sure as well.

    Attributes:
        verdict: `"similar"`, `"in between"` or `"different"`.
        entropy: Median over the images of the entropy of the 1000 probabilities, as a share of
            its largest value, in [0, 1]: 0 when the network is sure of one class.
        largest_probability: Median over the images of the largest probability.
        num_images: Images looked at.
    """

    verdict: str
    entropy: float
    largest_probability: float
    num_images: int


@dataclass(frozen=True)
class Fingerprint:
    """A set of images in numbers; plain values that can be written as JSON.

    Attributes:
        num_images: Images that can be decoded; all else is about these.
        class_images: Number of images of each class.
        class_groups: Number of groups of each class, near-duplicates counted as one.
        imbalance: Images of the largest class over those of the smallest.
        width: Width in pixels.
        height: Height in pixels.
        elongation: Longer side over shorter side.
        small_fraction: Share of images with a side shorter than the network's 224 pixels.
        grey_fraction: Share of images without colour, whatever their file says, in a sample.
        formats: Number of images of each file format.
        largest_value: Largest value of the 16-bit images; 0 when there are none.
        num_groups: Number of groups.
        groups_given: Whether the data say what belongs together (a column, DICOM patients).
        num_patients: Number of DICOM patients; 0 without DICOM.
        grouped_fraction: Share of images that share their group with another one.
        largest_group: Images of the largest group.
        given_split: Number of images of each part of the split that the images come with.
        columns: Further columns of the table of images with 2 to 20 values: how many.
        test_images: Images in test: of the given split, otherwise a fifth of all.
        test_groups: Groups in test, likewise.
        test_effective: Independent images that test is worth if the images of a group are all
            alike, see `cvpipe.evaluation.planning.effective_number`.
        similarity: To ImageNet; `None` when it was not measured.
    """

    num_images: int
    class_images: dict[str, int]
    class_groups: dict[str, int]
    imbalance: float
    width: Spread
    height: Spread
    elongation: Spread
    small_fraction: float
    grey_fraction: float
    formats: dict[str, int]
    largest_value: int
    num_groups: int
    groups_given: bool
    num_patients: int
    grouped_fraction: float
    largest_group: int
    given_split: dict[str, int]
    columns: dict[str, int]
    test_images: int
    test_groups: int
    test_effective: int
    similarity: Similarity | None


def take_fingerprint(
    rows: pd.DataFrame,
    facts: pd.DataFrame,
    groups_given: bool,
    grey_fraction: float,
    similarity: Similarity | None,
) -> Fingerprint:
    """Reduce a set of images to its fingerprint.

    Args:
        rows: Audited rows with `image_id`, `label`, `group`, perhaps `split` and others.
        facts: One row per image that could be decoded, as in `cvpipe.data.audit.Audit`; at
            least one of them is among the rows.
        groups_given: Whether the table of images has groups.
        grey_fraction: See `share_of_grey`.
        similarity: See `measure_similarity`.
    """
    images = rows[rows["image_id"].isin(facts["image_id"])]
    files = facts.set_index("image_id").loc[images["image_id"]]
    sides = files[["width", "height"]].astype(int)
    sizes = images["group"].value_counts()
    class_images = images["label"].value_counts().sort_index()
    patients = set(files["patient"]) - {""}
    given = images["split"].value_counts().to_dict() if "split" in images else {}
    known = "test" in given
    test_sizes = images.loc[images["split"] == "test", "group"].value_counts() if known else sizes
    numbers = (test_sizes.sum(), len(test_sizes), effective_number(test_sizes.tolist()))
    share = 1.0 if known else TEST_FRACTION
    test_images, test_groups, test_effective = (max(1, round(share * n)) for n in numbers)
    return Fingerprint(
        num_images=len(images),
        class_images=class_images.to_dict(),
        class_groups=images.groupby("label")["group"].nunique().to_dict(),
        imbalance=float(class_images.max() / class_images.min()),
        width=spread_of(sides["width"]),
        height=spread_of(sides["height"]),
        elongation=spread_of(sides.max(axis=1) / sides.min(axis=1)),
        small_fraction=float((sides.min(axis=1) < min(IMAGE_SIZE)).mean()),
        grey_fraction=grey_fraction,
        formats=files["format"].value_counts().to_dict(),
        largest_value=int(files["largest_value"].max()),
        num_groups=len(sizes),
        groups_given=groups_given or len(patients) > 1,
        num_patients=len(patients),
        grouped_fraction=float(images["group"].duplicated(keep=False).mean()),
        largest_group=int(sizes.max()),
        given_split=given,
        columns=columns_of_few_values(rows),
        test_images=test_images,
        test_groups=test_groups,
        test_effective=test_effective,
        similarity=similarity,
    )


def spread_of(values: Sequence[float] | pd.Series) -> Spread:
    """Take the 5 %, 50 % and 95 % quantiles of at least one value.

    Example:
        >>> spread_of(range(101))
        Spread(low=5.0, median=50.0, high=95.0)
    """
    return Spread(*(float(q) for q in np.quantile(np.asarray(values), [0.05, 0.5, 0.95])))


def columns_of_few_values(rows: pd.DataFrame) -> dict[str, int]:
    """Count the values of each further column that has between 2 and 20 of them."""
    counts = {name: rows[name].nunique() for name in rows if name not in KNOWN_COLUMNS}
    return {name: n for name, n in counts.items() if 2 <= n <= MAX_COLUMN_VALUES}


def sample_ids(rows: pd.DataFrame, num_images: int = SAMPLE_IMAGES) -> list[str]:
    """Draw images evenly from all classes, by the hash of their `image_id`.

    Unlike a random draw it hardly changes when images are added.

    Args:
        rows: With `image_id` and `label`.
        num_images: At most so many are drawn; all when there are fewer.

    Example:
        >>> rows = pd.DataFrame({"image_id": list("abcdef"), "label": list("xxxxxy")})
        >>> len(sample_ids(rows, 3)), "f" in sample_ids(rows, 2)
        (3, True)
    """
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in rows["image_id"]]
    shuffled = rows[["image_id", "label"]].assign(digest=digests).sort_values("digest")
    turn = shuffled.groupby("label").cumcount()  # the first of every class, then the second
    drawn = shuffled.assign(turn=turn).sort_values(["turn", "digest"]).head(num_images)
    return drawn["image_id"].tolist()


def share_of_grey(images: np.ndarray) -> float:
    """Tell which share of images has no colour, although their file may have three channels.

    Args:
        images: `uint8` array of shape `(n, height, width, 3)`, at least one image.
    """
    spread = images.max(axis=3).astype(np.int16) - images.min(axis=3)
    return float((spread.mean(axis=(1, 2)) < GREY_SPREAD).mean())


def similarity_of(probabilities: np.ndarray) -> Similarity:
    """Judge how much images look like ImageNet's.

    Args:
        probabilities: Array of shape `(n, 1000)` or any other number of classes; rows sum to 1.

    References:
        The bounds were set on the material listed beside them.
    """
    p = probabilities.astype(np.float64)
    logs = np.log(p, where=p > 0, out=np.zeros_like(p))  # 0 log 0 is 0
    entropy = float(np.median(-(p * logs).sum(axis=1) / np.log(p.shape[1])))
    if entropy < SIMILAR_BELOW:
        verdict = "similar"
    else:
        verdict = "different" if entropy >= DIFFERENT_FROM else "in between"
    # Rounded, because the last digits depend on the machine and mean nothing.
    largest = float(np.median(p.max(axis=1)))
    return Similarity(verdict, round(entropy, 3), round(largest, 3), len(p))


def measure_similarity(images: np.ndarray, threads: int) -> Similarity:
    """Let the backbone with its own ImageNet head look at images.

    Args:
        images: `uint8` array of shape `(n, *IMAGE_SIZE, 3)`.
        threads: Threads that compute.

    Raises:
        InputError: The weights are missing or damaged, or TensorFlow already computes with
            another number of threads.
        ImportError: TensorFlow cannot be imported.
    """
    set_threads(threads)
    return similarity_of(build_embed(build_backbone(BACKBONE, include_head=True))(images))


def describe_fingerprint(fingerprint: Fingerprint) -> list[str]:
    """Write a fingerprint for a person, one fact per line."""
    f = fingerprint
    lines = [
        f"images: {f.num_images:,} in {len(f.class_images)} classes: {counted(f.class_images)}; "
        f"largest to smallest {f.imbalance:.1f} to 1",
        f"groups: {groups_in_words(f)}",
        f"sizes: width {_in_words(f.width)}, height {_in_words(f.height)}; "
        f"{f.small_fraction:.0%} have a side below {min(IMAGE_SIZE)} pixels",
        f"shape: longer side over shorter {f.elongation.median:.2f} (95% below "
        f"{f.elongation.high:.2f})",
        f"content: {f.grey_fraction:.0%} without colour; {counted(f.formats)}"
        + (f"; 16-bit values up to {f.largest_value:,}" if f.largest_value else ""),
        f"split: {counted(f.given_split) if f.given_split else 'none given'}; {answer_in_words(f)}",
    ]
    if f.columns:
        values = ", ".join(f"{name!r} ({n} values)" for name, n in f.columns.items())
        lines.append(f"columns: {values}")
    return [*lines, f"ImageNet: {similarity_in_words(f.similarity)}"]


def counted(counts: dict[str, int]) -> str:
    """Write numbers behind their names; a long list is cut."""
    parts = [f"{name!r} {n:,}" for name, n in list(counts.items())[:MAX_CLASSES_SHOWN]]
    more = len(counts) - MAX_CLASSES_SHOWN
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def groups_in_words(fingerprint: Fingerprint) -> str:
    """Say what belongs together, and who says so."""
    f = fingerprint
    if f.num_patients > 1:
        source = f"{f.num_patients:,} DICOM patients"
    else:
        source = "given with the images" if f.groups_given else "none given"
    if not f.grouped_fraction:
        return f"{source}; every image stands alone"
    kind = "share a group with another" if f.groups_given else "have a near-duplicate"
    return (
        f"{source}; {f.grouped_fraction:.0%} of the images {kind}; {f.num_groups:,} groups, the "
        f"largest of {f.largest_group:,}"
    )


def answer_in_words(fingerprint: Fingerprint) -> str:
    """Say how exact the answer of the test images can be, as a run will say it."""
    f = fingerprint
    return in_words("test", expect_of(f.test_images, f.test_groups, f.test_effective))


def similarity_in_words(similarity: Similarity | None) -> str:
    """Say how much images look like ImageNet's, and by which figure."""
    if similarity is None:
        return "not compared"
    return (
        f"{similarity.verdict} (entropy of its own classes {similarity.entropy:.2f}: below "
        f"{SIMILAR_BELOW} is similar, from {DIFFERENT_FROM} different; "
        f"{similarity.num_images} images)"
    )


def _in_words(spread: Spread) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.0f}"
    return f"{spread.low:.0f} to {spread.high:.0f} (median {spread.median:.0f})"
