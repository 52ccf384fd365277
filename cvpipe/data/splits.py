"""Divide images into train, val and test, or into folds: stratified, groups never cut.

A group's place follows from the hash of its name, not from a draw over all groups: images that
are added later leave nearly all others where they were.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

# Counts that differ by less are equal.
ROUNDING = 1e-6


def assign_splits(
    targets: np.ndarray, groups: Sequence[str], fractions: Mapping[str, float], key: str
) -> np.ndarray:
    """Give every image a split.

    Class by class, the groups stand in a line by the hash of key and name, and the line is cut
    where the fractions end: a group goes where its middle image falls. A group of several classes
    stands in the line of the first of them, and the lines of the others make up for what it
    brings along. (Its rarest class would balance a little better, but which one that is changes
    with the images.) At last `_mend` moves a few groups.

    Of groups of one class each, every split gets its share of every class to within the class's
    largest group: a cut is off its place by at most half a group, and a split lies between two.
    A class of at least as many such groups as splits is in every split, which comes first where
    very unequal fractions and groups leave no way to have both. With groups of several classes
    both are sought: of 1,500 random sets in which a third of the images had a label other than
    their group's, 2 missed a share by more than that, by a fifth of the group at most.

    Adding 10 % of images moves about 4 % of the others (60 to 400 images in groups of up to five,
    each of one class; train, val and test); where a class has a handful of groups, a single one
    is more than that. Where a third of the images have a label other than their group's, a group
    stands in another line as soon as it gains an earlier class, and every move must be made up
    for: of 200 images in 4 classes 7 % move on average (95 % of the sets: at most 14 %), in 10
    classes 10 % (18 %), in 30 classes 15 % (27 %).

    The name decides rather than the smallest `image_id`, because a new image of a known patient
    may have a smaller `image_id` than the others. Where nothing is known of groups, the name
    is the smallest `image_id` anyway.

    Args:
        targets: `int` array of shape `(n,)`.
        groups: Group of each image.
        fractions: Share of each split, above 0; they sum to 1.
        key: Names the division; another key gives another division of the same images.

    Returns:
        Array of split names of shape `(n,)`.

    Example:
        >>> split = assign_splits(
        ...     np.array([0] * 5 + [1] * 5), list("aabcdefghi"),
        ...     {"train": 0.6, "val": 0.2, "test": 0.2}, "0 split",
        ... )
        >>> [(split == name).sum().item() for name in ("train", "val", "test")]
        [6, 2, 2]
    """
    names = sorted(set(groups), key=lambda name: _digest(key, name))
    position = {name: number for number, name in enumerate(names)}
    group_of_row = np.array([position[name] for name in groups])
    # Numbered anew, because a target without an image would have no line to cut.
    _, class_of_row, class_sizes = np.unique(targets, return_inverse=True, return_counts=True)
    num_classes = len(class_sizes)
    # One entry for each group and class that meet, by group and then by class.
    pairs, counts = np.unique(group_of_row * num_classes + class_of_row, return_counts=True)
    pair_group, pair_class = np.divmod(pairs, num_classes)
    _, first = np.unique(pair_group, return_index=True)
    line = pair_class[first][pair_group]

    goals = np.outer(list(fractions.values()), class_sizes)
    filled = np.zeros_like(goals)
    part = np.zeros(len(names), dtype=int)
    by_line = np.argsort(line, kind="stable")
    ends = np.searchsorted(line[by_line], np.arange(num_classes + 1))
    for number, (start, end) in enumerate(pairwise(ends)):
        entries = by_line[start:end]
        own = entries[pair_class[entries] == number]
        room = np.maximum(goals[:, number] - filled[:, number], 0.0)
        part[pair_group[own]] = _cut(counts[own], room)
        np.add.at(filled, (part[pair_group[entries]], pair_class[entries]), counts[entries])
    _mend(part, pair_group, pair_class, counts, goals)
    return np.array(list(fractions), dtype=object)[part[group_of_row]]


def nested_subset(targets: np.ndarray, groups: Sequence[str], share: float, key: str) -> np.ndarray:
    """Mark a part of the images that is contained in every larger one of the same key.

    As in `assign_splits` the groups stand in a line for each class by the hash of key and name;
    one of several classes stands in the line of the first. Those of each line are taken whose
    middle image lies within the share, so that a line is off its share by at most half a group.

    Args:
        targets: `int` array of shape `(n,)`.
        groups: Group of each image.
        share: How much of each line to take, in (0, 1].
        key: Names the order; another key gives other parts.

    Returns:
        `bool` array of shape `(n,)`. A class of few groups may be missing.

    Example:
        >>> targets, groups = np.array([0] * 4 + [1] * 8), list("abcdefghijkl")
        >>> half, quarter = (nested_subset(targets, groups, share, "0") for share in (0.5, 0.25))
        >>> targets[half].tolist(), targets[quarter].tolist(), (half | quarter == half).all().item()
        ([0, 0, 1, 1, 1, 1], [0, 1, 1], True)
    """
    table = pd.DataFrame({"group": list(groups), "target": targets})
    lines = table.groupby("group").agg(line=("target", "min"), size=("target", "size"))
    lines = lines.loc[sorted(lines.index, key=lambda name: _digest(key, name))]
    sizes = lines.groupby("line")["size"]
    middle = sizes.cumsum() - lines["size"] / 2
    taken = middle < share * sizes.transform("sum")
    return taken.loc[table["group"]].to_numpy()


def _digest(key: str, group: str) -> bytes:
    return hashlib.sha256(f"{key}\0{group}".encode()).digest()


def _cut(sizes: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Cut a line of groups into parts in proportion to their room.

    Returns:
        The part in which the middle of each group lies.
    """
    if not len(sizes):
        return np.zeros(0, dtype=int)
    ends = np.cumsum(room) / room.sum() * sizes.sum()
    return np.searchsorted(ends[:-1], np.cumsum(sizes) - sizes / 2, side="right")


def _mend(
    part: np.ndarray,
    pair_group: np.ndarray,
    pair_class: np.ndarray,
    counts: np.ndarray,
    goals: np.ndarray,
) -> None:
    """Move groups, in place, for classes that miss a part or are far from their goal in one.

    One group at a time: the move that mends most, among equals the one of the fewest images.
    Missing classes come first, then images too many or too few; a sum in which one of them had
    a large weight would drown the other in rounding where a move mends many classes.

    Args:
        part: Part of each group.
        pair_group: The group of each entry.
        pair_class: The class of each entry.
        counts: How many images of the class are in the group.
        goals: `(num_parts, num_classes)`.
    """
    num_parts, num_classes = goals.shape
    filled = np.zeros_like(goals)
    np.add.at(filled, (part[pair_group], pair_class), counts)
    slack = np.zeros(num_classes)
    np.maximum.at(slack, pair_class, counts)
    can_fill = np.bincount(pair_class, minlength=num_classes) >= num_parts

    def costs(filled: np.ndarray, parts: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Say where a class is missing, and by how many images it is off: `(2, n, classes)`."""
        excess = np.abs(filled - goals[np.ix_(parts, classes)]) - slack[classes]
        missing = can_fill[classes] & (filled == 0)
        return np.stack([missing, np.where(excess > ROUNDING, excess, 0.0)])

    all_parts = np.arange(num_parts)

    def mend_class(number: int) -> bool:
        groups = pair_group[pair_class == number]
        of_groups = np.isin(pair_group, groups)
        classes = np.unique(pair_class[of_groups])
        content = np.zeros((len(groups), len(classes)))
        rows = np.searchsorted(groups, pair_group[of_groups])
        content[rows, np.searchsorted(classes, pair_class[of_groups])] = counts[of_groups]
        moved = False
        while True:
            now, home = filled[:, classes], part[groups]
            before = costs(now, all_parts, classes)
            left = (costs(now[home] - content, home, classes) - before[:, home]).sum(axis=2)
            changes = np.full((2, len(groups), num_parts), np.inf)
            for goal in all_parts:
                to = np.full(len(groups), goal)
                joined = (costs(now[to] + content, to, classes) - before[:, to]).sum(axis=2)
                changes[:, :, goal] = np.where(home == goal, np.inf, left + joined)
            fewest = changes[0].min()
            excess = np.where(changes[0] == fewest, changes[1], np.inf)
            best = excess.min()
            if not before[:, :, classes == number].any() or (fewest, best) > (0, -ROUNDING):
                return moved
            # Of the moves that mend as much, the smallest group; then the first in the line.
            moves = np.argwhere(excess < best + ROUNDING)
            group, goal = moves[np.argmin(content.sum(axis=1)[moves[:, 0]])]
            filled[np.ix_([home[group]], classes)] -= content[group]
            filled[np.ix_([goal], classes)] += content[group]
            part[groups[group]] = goal
            moved = True

    all_classes = np.arange(num_classes)
    wanting = True
    while wanting:  # every move lowers the sums of the costs, so there is an end
        wanting = False
        for number in np.flatnonzero(costs(filled, all_parts, all_classes).any(axis=(0, 1))):
            wanting |= mend_class(int(number))


def merge_groups(groups: Sequence[str], clusters: Sequence[str]) -> list[str]:
    """Join groups that share a cluster, directly or through others.

    Args:
        groups: Group of each image, as the data give it.
        clusters: A second partition of the same images, such as identical files.

    Returns:
        The joined group of each image: the smallest name among the groups joined.

    Example:
        >>> merge_groups(["a", "b", "c", "d"], ["1", "1", "2", "3"])
        ['a', 'a', 'c', 'd']
    """
    parent: dict[str, str] = {group: group for group in groups}

    def root_of(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first_of_cluster: dict[str, str] = {}
    for group, cluster in zip(groups, clusters, strict=True):
        one, other = sorted((root_of(group), root_of(first_of_cluster.setdefault(cluster, group))))
        parent[other] = one
    return [root_of(group) for group in groups]


def first_half(groups: Sequence[str], again: bool = False) -> np.ndarray:
    """Mark the images of half A of val: whole groups, told apart by the hash of their name.

    Unlike a random draw this does not depend on which other images there are.

    Args:
        groups: Group of each image.
        again: Divide in another way, so that a half can be halved once more.

    Returns:
        `bool` array of shape `(n,)`; about half of it is true.
    """
    digests = [hashlib.sha256(group.encode()).digest() for group in groups]
    return np.array([digest[int(again)] % 2 == 0 for digest in digests])
