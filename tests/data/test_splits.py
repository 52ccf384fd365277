import hashlib
import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cvpipe.data.splits import assign_splits, first_half, merge_groups, nested_subset

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}

# A busy machine must not fail a test.
unhurried = settings(deadline=None)
few = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def names(count: int) -> list[str]:
    return [f"image {number:04d}" for number in range(count)]


def split_of(targets, groups=None, fractions=FRACTIONS, seed=0):
    groups = names(len(targets)) if groups is None else groups
    return assign_splits(np.asarray(targets), list(groups), fractions, f"{seed} split")


@st.composite
def grouped_rows(draw):
    """Targets and groups of up to 60 rows; a group may hold several classes."""
    num_groups = draw(st.integers(1, 20))
    row = st.tuples(st.integers(0, 3), st.integers(0, num_groups - 1))
    rows = draw(st.lists(row, min_size=1, max_size=60))
    return [target for target, _ in rows], [f"g{group}" for _, group in rows]


@st.composite
def pure_rows(draw, largest=12):
    """Targets and groups; a group holds one class."""
    sizes = st.lists(st.integers(1, largest), min_size=1, max_size=12)
    classes = draw(st.lists(sizes, min_size=1, max_size=3))
    rows = [
        (target, f"{target}-{group}")
        for target, sizes in enumerate(classes)
        for group, size in enumerate(sizes)
        for _ in range(size)
    ]
    return [target for target, _ in rows], [group for _, group in rows]


fractions_of_three = st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)).map(
    lambda pair: {"train": 1 - sum(pair), "val": pair[0], "test": pair[1]}
)
folds = st.integers(2, 10).map(lambda count: {str(fold): 1 / count for fold in range(count)})


def misses(targets, groups, split, fractions):
    """How far each class is from its share in each split, and its largest group."""
    targets, groups = np.asarray(targets), np.asarray(groups)
    for target in set(targets.tolist()):
        of_class = targets == target
        largest = max(Counter(groups[of_class].tolist()).values())
        for name, fraction in fractions.items():
            count = int((split[of_class] == name).sum())
            yield abs(count - fraction * of_class.sum()), largest


@unhurried
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.just(FRACTIONS) | folds, seeds)
def test_single_images_come_within_one_of_their_goal(targets, fractions, seed):
    split = split_of(targets, fractions=fractions, seed=seed)
    for miss, _ in misses(targets, names(len(targets)), split, fractions):
        assert miss <= 1 + 1e-6


@unhurried
@given(pure_rows(), st.just(FRACTIONS) | folds, seeds)
def test_a_split_misses_its_share_of_a_class_by_its_largest_group_at_most(rows, fractions, seed):
    split = split_of(*rows, fractions=fractions, seed=seed)
    for miss, largest in misses(*rows, split, fractions):
        assert miss <= largest + 1e-6


@unhurried
@given(pure_rows(largest=40), fractions_of_three | folds, seeds)
def test_a_class_of_enough_groups_is_everywhere(rows, fractions, seed):
    targets, groups = map(np.array, rows)
    split = split_of(*rows, fractions=fractions, seed=seed)
    for target in set(targets.tolist()):
        if len(set(groups[targets == target])) >= len(fractions):
            assert set(split[targets == target]) == set(fractions)


def test_groups_of_several_classes_are_balanced_nearly_always():
    """A third of the images have another label than their group: both promises are best effort."""
    broken, all_misses = 0, []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        targets, groups = random_rows(rng, int(rng.integers(60, 301)), 4, mixed_fraction=0.3)
        split = split_of(targets, groups, seed=seed)
        missed = list(misses(targets, groups, split, FRACTIONS))
        assert all(miss <= 2 * largest for miss, largest in missed)
        broken += any(miss > largest + 1e-6 for miss, largest in missed)
        all_misses += [miss for miss, _ in missed]
    assert broken <= 2
    # 0.9 images; 1.5 if a line would not make up for what came with the groups of others.
    assert np.mean(all_misses) < 1.2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sizes", [(10, 1, 1, 1, 1), (1, 1, 10), (40, 5, 1, 1), (1, 1, 1)])
def test_very_unequal_groups_fill_every_split(sizes, seed):
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    split = split_of([0] * len(groups), groups, seed=seed)
    assert set(split) == set(FRACTIONS)


@pytest.mark.parametrize("seed", range(10))
def test_a_class_that_comes_only_with_others_is_everywhere(seed):
    # 40 patients with five images of class 0; three of them have one of class 1, too.
    groups = [f"patient {p}" for p in range(40) for _ in range(5)] + [f"patient {p}" for p in "012"]
    targets = np.array([0] * 200 + [1] * 3)
    split = split_of(targets, groups, seed=seed)
    assert Counter(split[targets == 1].tolist()) == {"train": 1, "val": 1, "test": 1}
    assert all(miss <= largest for miss, largest in misses(targets, groups, split, FRACTIONS))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("num_classes", [172, 1000])
def test_a_move_that_mends_very_many_classes(num_classes, seed):
    """Four groups, each of all classes: every one that moves brings hundreds of missing classes."""
    sizes = [8, 1, 1, 1]
    targets = np.concatenate([np.repeat(np.arange(num_classes), size) for size in sizes])
    groups = np.repeat(list("abcd"), np.array(sizes) * num_classes)
    split = split_of(targets, groups, seed=seed)
    assert set(split) == set(FRACTIONS)
    assert set(split[groups == "a"]) == {"train"}  # 8 of 11: elsewhere it is further off


@unhurried
@given(grouped_rows(), seeds)
def test_groups_are_never_cut(rows, seed):
    targets, groups = rows
    split = split_of(targets, groups, seed=seed)
    assert set(split) <= set(FRACTIONS)
    assert len(set(zip(groups, split, strict=True))) == len(set(groups))


@unhurried
@given(grouped_rows(), seeds)
def test_the_same_seed_gives_the_same_split(rows, seed):
    targets, groups = rows
    assert (
        split_of(targets, groups, seed=seed).tolist()
        == split_of(targets, groups, seed=seed).tolist()
    )


@unhurried
@given(grouped_rows(), seeds, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, seed, random):
    targets, groups = map(np.array, rows)
    order = np.array(random.sample(range(len(targets)), len(targets)))
    shuffled = split_of(targets[order], groups[order], seed=seed)
    assert shuffled.tolist() == split_of(targets, groups, seed=seed)[order].tolist()


@unhurried
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.permutations([0, 1, 2, 9]),
    seeds,
)
def test_the_numbers_of_the_classes_do_not_matter(targets, renumbered, seed):
    # 9 leaves gaps: numbers without an image.
    other = [renumbered[target] for target in targets]
    assert split_of(other, seed=seed).tolist() == split_of(targets, seed=seed).tolist()


def test_other_keys_give_other_splits():
    splits = {tuple(split_of([0] * 20 + [1] * 20, seed=seed)) for seed in range(20)}
    assert len(splits) == 20


def test_every_image_can_come_into_every_split():
    splits = np.array([split_of([0] * 5 + [1] * 5, seed=seed) for seed in range(300)])
    for name, fraction in FRACTIONS.items():
        # 300 draws: the standard error is below 0.03.
        np.testing.assert_allclose((splits == name).mean(axis=0), fraction, atol=0.12)


def slow_split(groups, key):
    """The rule for one class, in plain words: hash, line up, cut at .6 and .8."""
    line = sorted(
        set(groups), key=lambda name: hashlib.sha256((key + "\0" + name).encode()).hexdigest()
    )
    sizes, place, before = Counter(groups), {}, 0
    for name in line:
        middle = (before + sizes[name] / 2) / len(groups)
        place[name] = "train" if middle < 0.6 else "val" if middle < 0.8 else "test"
        before += sizes[name]
    return [place[name] for name in groups]


@pytest.mark.parametrize("seed", range(20))
def test_a_split_for_good(seed):
    """Another rule would part images that old runs kept together, so it is fixed here."""
    # Sizes whose middles lie on no cut: of 95 images they are at 57 and 76.
    groups = [f"ä{number}" for number in range(19) for _ in range(2 + 6 * (number % 2))]
    groups = groups[: 95 - 95 % 2 + 1]
    expected = slow_split(groups, f"{seed} split")
    assert split_of([3] * len(groups), groups, seed=seed).tolist() == expected


def test_other_names_of_splits():
    split = split_of([0] * 4, fractions={"a": 0.25, "b": 0.75})
    assert Counter(split.tolist()) == {"a": 1, "b": 3}


def test_a_hundred_thousand_images():
    targets = np.random.default_rng(0).integers(0, 100, 100_000)
    started = time.process_time()
    split_of(targets, [f"folder/{number:06}.jpg" for number in range(100_000)])
    assert time.process_time() - started < 10  # half a second on an idle core


# Further images.


def random_rows(rng, num_images, num_classes, mixed_fraction=0.0, prefix="g"):
    """Targets and groups of up to five images each, of classes of unequal size."""
    shares = rng.dirichlet([2] * num_classes)
    targets, groups = [], []
    for number in range(num_images):
        size = min(int(rng.integers(1, 6)), num_images - len(targets))
        label = int(rng.choice(num_classes, p=shares))
        for _ in range(size):
            other = rng.random() < mixed_fraction
            targets.append(int(rng.integers(num_classes)) if other else label)
            groups.append(f"{prefix}{number}")
    return targets, groups


def moved_fraction(seed, smallest, in_new_groups):
    """Add 10 % of images; which part of the images whose group did not change moved?"""
    rng = np.random.default_rng(seed)
    num_images, num_classes = int(rng.integers(smallest, 401)), int(rng.integers(2, 5))
    targets, groups = random_rows(rng, num_images, num_classes)
    if in_new_groups:
        more, their_groups = random_rows(rng, num_images // 10, num_classes, prefix="new")
    else:
        chosen = rng.integers(0, num_images, num_images // 10)
        more, their_groups = [targets[n] for n in chosen], [groups[n] for n in chosen]
    before = split_of(targets, groups, seed=seed)
    after = split_of(targets + more, groups + their_groups, seed=seed)[:num_images]
    kept = ~np.isin(groups, their_groups)
    return (before != after)[kept].mean()


@settings(deadline=None, derandomize=True)
@given(seeds, st.booleans())
def test_further_images_leave_most_where_they_were(seed, in_new_groups):
    assert moved_fraction(seed, 150, in_new_groups) <= 0.15


@pytest.mark.parametrize("in_new_groups", [True, False])
def test_further_images_leave_most_of_few_where_they_were(in_new_groups):
    """Of 60 images in four classes a single group of five is 8 %, so a few sets move more."""
    moved = np.array([moved_fraction(seed, 60, in_new_groups) for seed in range(300)])
    assert moved.mean() <= 0.06
    assert (moved > 0.15).mean() <= 0.02


def test_further_images_move_more_where_groups_are_mixed():
    """The figures of the docstring: a third of 200 images in 4 classes have another label."""
    moved = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        targets, groups = random_rows(rng, 200, 4, mixed_fraction=1 / 3)
        more, their_groups = random_rows(rng, 20, 4, mixed_fraction=1 / 3, prefix="new")
        before = split_of(targets, groups, seed=seed)
        after = split_of(targets + more, groups + their_groups, seed=seed)[:200]
        moved.append((before != after).mean())
    assert 0.06 < np.mean(moved) < 0.085  # measured: 0.072
    assert np.quantile(moved, 0.95) <= 0.15  # measured: 0.143


@unhurried
@given(pure_rows(largest=5), pure_rows(largest=5), seeds)
def test_further_images_never_move_more_than_the_cuts(rows, further, seed):
    """Whatever is added: a cut moves over its share of the new images, and a group at its ends."""
    (targets, groups), (more, their_groups) = rows, further
    if any(len({g for t, g in zip(*rows, strict=True) if t == c}) < 6 for c in set(targets)):
        return  # so few groups may need a group moved to fill every split
    before = split_of(targets, groups, seed=seed)
    all_groups = groups + [f"new {group}" for group in their_groups]
    after = split_of(targets + more, all_groups, seed=seed)[: len(targets)]
    for target in set(targets):
        mine = np.array(targets) == target
        added = more.count(target)
        moved = int((before != after)[mine].sum())
        assert moved <= (0.6 + 0.8) * added + 2 * 2 * 5


# Merged groups.


def components_of(groups, clusters):
    """Say which images belong together, by SciPy's graph search over images, groups, clusters."""
    count = len(groups)
    edges = []
    for labels in (groups, clusters):
        first = {}
        for position, label in enumerate(labels):
            edges.append((position, first.setdefault(label, position)))
    rows, columns = zip(*edges, strict=True)
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


@unhurried
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30))
def test_merged_groups_are_connected_components(pairs):
    groups, clusters = [f"g{g}" for g, _ in pairs], [f"c{c}" for _, c in pairs]
    components = components_of(groups, clusters)
    smallest = {}
    for group, component in zip(groups, components, strict=True):
        smallest[component] = min(group, smallest.get(component, group))
    assert merge_groups(groups, clusters) == [smallest[component] for component in components]


def test_groups_are_joined_over_several_steps():
    # d - c by cluster 1, c - b by 2, b - a by 3: all four are one.
    groups = ["d", "c", "c", "b", "b", "a", "e"]
    clusters = ["1", "1", "2", "2", "3", "3", "4"]
    assert merge_groups(groups, clusters) == ["a"] * 6 + ["e"]


def test_a_long_chain_of_groups():
    count = 20_000
    groups = [f"{number // 2:06d}" for number in range(count)]
    clusters = [f"{(number + 1) // 2:06d}" for number in range(count)]
    assert set(merge_groups(groups, clusters)) == {"000000"}


def test_groups_and_clusters_must_have_the_same_length():
    with pytest.raises(ValueError, match="shorter"):
        merge_groups(["a", "b"], ["1"])


# Halves of val.


@unhurried
@given(st.lists(st.text(max_size=8), max_size=30), st.lists(st.text(max_size=8), max_size=30))
def test_a_half_does_not_depend_on_the_other_images(groups, more):
    assert first_half(more + groups)[len(more) :].tolist() == first_half(groups).tolist()


def test_halves():
    groups = names(2000)
    half = first_half(groups)
    assert half.dtype == bool
    # Four standard errors of a fair coin.
    assert abs(half.mean() - 0.5) < 4 * 0.5 / 2000**0.5
    # Fixed for good: another rule would choose another contender for an old run.
    # Their hashes start with the bytes ca, 3e, 3f and 60; even ones are half A.
    assert first_half(["a", "b", "e", "ü", "a"]).tolist() == [True, True, False, True, True]
    assert first_half([]).shape == (0,)


# Nested parts.


@few
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=60),
    st.text(max_size=3),
)
def test_nested_parts_contain_each_other_and_cut_no_group(rows, key):
    targets = np.array([target for target, _ in rows])
    groups = [f"g{group}" for _, group in rows]
    parts = [nested_subset(targets, groups, share, key) for share in (0.125, 0.25, 0.5, 1)]
    for smaller, larger in itertools.pairwise(parts):
        assert (larger | ~smaller).all()
    assert parts[-1].all()
    for part in parts:
        taken = {group for group, is_in in zip(groups, part, strict=True) if is_in}
        assert part.tolist() == [group in taken for group in groups]


@few
@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.floats(0.01, 1))
def test_nested_parts_keep_the_share_of_each_class_to_half_a_group(sizes, share):
    groups = [f"{number}" for number, size in enumerate(sizes) for _ in range(size)]
    targets = np.array([number % 3 for number, size in enumerate(sizes) for _ in range(size)])
    part = nested_subset(targets, groups, share, "0")
    for target in set(targets.tolist()):
        of_class = targets == target
        largest = max(size for number, size in enumerate(sizes) if number % 3 == target)
        off = part[of_class].sum() - share * of_class.sum()
        assert abs(off) <= largest / 2 + 1e-9


def test_nested_parts_follow_the_hash_and_the_key():
    groups = list("abcdefgh")
    order = sorted(groups, key=lambda name: hashlib.sha256(f"0 x\0{name}".encode()).digest())
    targets = np.zeros(8, dtype=int)
    for number in range(1, 9):
        part = nested_subset(targets, groups, number / 8, "0 x")
        assert {g for g, is_in in zip(groups, part, strict=True) if is_in} == set(order[:number])
    halves = {tuple(nested_subset(targets, groups, 0.5, f"{key}")) for key in range(20)}
    assert len(halves) > 10


def test_nested_parts_put_a_mixed_group_into_the_line_of_its_first_class():
    # Line of class 0: the mixed group of three; line of class 1: ten images.
    targets = np.array([0, 1, 1] + [1] * 10)
    groups = ["mixed"] * 3 + [f"{number}" for number in range(10)]
    part = nested_subset(targets, groups, 0.5, "0")
    assert part[:3].tolist() == [False] * 3  # its middle lies at the share, not within it
    assert part[3:].sum() == 5
    assert nested_subset(targets, groups, 0.6, "0")[:3].all()
