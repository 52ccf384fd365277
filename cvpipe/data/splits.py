"""Divide images into train, val and test: stratified by class, groups never cut."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def assign_splits(
    targets: np.ndarray,
    groups: Sequence[str],
    fractions: Mapping[str, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Give every image a split.

    Whole groups are dealt out, the largest first and in random order among equals; each
    goes where it brings the class counts nearest to their goals. With groups of one
    image this is an ordinary stratified random split: every class count is within one
    image of its goal.

    Args:
        targets: `int` array of shape `(n,)`.
        groups: Group of each image.
        fractions: Share of each split, above 0; they sum to 1.
        rng: Source of the random order.

    Returns:
        Array of split names of shape `(n,)`.

    Example:
        >>> split = assign_splits(
        ...     np.array([0] * 5 + [1] * 5), list("aabcdefghi"),
        ...     {"train": 0.6, "val": 0.2, "test": 0.2}, np.random.default_rng(0),
        ... )
        >>> [(split == name).sum().item() for name in ("train", "val", "test")]
        [6, 2, 2]
    """
    names = list(fractions)
    _, group_of_row = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    # Numbered anew, because a target without an image would have a goal of zero.
    _, class_of_row = np.unique(targets, return_inverse=True)
    num_groups, num_classes = group_of_row.max() + 1, class_of_row.max() + 1
    counts = np.zeros((num_groups, num_classes))
    np.add.at(counts, (group_of_row, class_of_row), 1)
    goals = np.outer([fractions[name] for name in names], counts.sum(axis=0))

    shuffled = rng.permutation(num_groups)
    largest_first = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    filled = np.zeros_like(goals)
    chosen = np.empty(num_groups, dtype=int)
    for group in largest_first:
        # How much (filled - goal)^2 / goal would grow in each split. It is relative to the goal,
        # so that a rare class counts as much as a frequent one; multiplied out, so that classes
        # without an image in the group add exactly zero and ties stay ties.
        growth = counts[group] * (2 * (filled - goals) + counts[group]) / goals
        chosen[group] = int(np.argmin(growth.sum(axis=1)))
        filled[chosen[group]] += counts[group]
    return np.array(names, dtype=object)[chosen[group_of_row]]


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


def first_half(groups: Sequence[str]) -> np.ndarray:
    """Mark the images of half A of val: whole groups, told apart by the hash of their name.

    Unlike a random draw this does not depend on which other images there are.

    Args:
        groups: Group of each image.

    Returns:
        `bool` array of shape `(n,)`; about half of it is true.
    """
    return np.array([hashlib.sha256(group.encode()).digest()[0] % 2 == 0 for group in groups])
