import io
from itertools import combinations

import imagehash
import numpy as np
import pandas as pd
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data import duplicates
from cvpipe.data.duplicates import (
    Mixed,
    Pairs,
    Recut,
    connect,
    cut_by_complete_linkage,
    find_clusters,
    hash_both_ways,
    hash_distance,
    hash_thumbnails,
    near_pairs,
    perceptual_hash,
    spanning_forest,
    threshold_table,
)
from cvpipe.errors import InputError

PHOTOS = ("astronaut", "coffee", "chelsea", "camera", "coins", "rocket", "brick", "grass")


def photo(name):
    image = getattr(skimage.data, name)()
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def random_hashes(num_rows, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, (num_rows, 20), dtype=np.uint64)


def flipped(row, coarse, fine=0):
    """Flip the first `coarse` of 256 and the first `fine` of 1,024 bits."""
    bits = np.unpackbits(row.view(np.uint8))
    bits[:coarse] ^= 1
    bits[256 : 256 + fine] ^= 1
    return np.packbits(bits).view(np.uint64)


def families(num_families, copies, seed=0):
    """Random hashes, each with copies that differ in up to 30 coarse and 120 fine bits."""
    rng = np.random.default_rng(seed)
    rows = []
    for original in random_hashes(num_families, seed):
        rows.append(original)
        for _ in range(copies):
            bits = np.unpackbits(original.view(np.uint8))
            bits[rng.choice(256, rng.integers(0, 31), replace=False)] ^= 1
            bits[256 + rng.choice(1024, rng.integers(0, 121), replace=False)] ^= 1
            rows.append(np.packbits(bits).view(np.uint64))
    return np.stack(rows)[rng.permutation(len(rows))]


def slow_distance(one, other):
    coarse, fine = (
        sum(int(a ^ b).bit_count() for a, b in zip(one[part], other[part], strict=True))
        for part in (slice(0, 4), slice(4, 20))
    )
    return max(coarse, fine / 4)


def slow_pairs(hashes, max_distance):
    found = {
        (i, j): slow_distance(hashes[i], hashes[j]) for i, j in combinations(range(len(hashes)), 2)
    }
    return {pair: distance for pair, distance in found.items() if distance <= max_distance}


def as_dict(blocks):
    found = [
        ((int(i), int(j)), float(d)) for block in blocks for i, j, d in zip(*block, strict=True)
    ]
    assert len(found) == len(dict(found)), "a pair was found twice"
    return dict(found)


def keys(num_rows):
    return [f"{row:04d}.png" for row in range(num_rows)]


def partition(names):
    return {frozenset(np.flatnonzero(np.asarray(names) == name).tolist()) for name in set(names)}


@pytest.mark.parametrize("name", PHOTOS)
def test_hash_bits_are_those_of_the_reference(name):
    picture = Image.fromarray(photo(name))
    thumbnail = picture.convert("L").resize((64, 64), Image.Resampling.LANCZOS)
    (words,) = hash_thumbnails(np.asarray(thumbnail)[None])
    assert words.shape == (20,)
    assert words.dtype == np.uint64
    bits = np.unpackbits(words.view(np.uint8)).astype(bool)
    coarse = imagehash.phash(picture, hash_size=16, highfreq_factor=4).hash.ravel()
    fine = imagehash.phash(picture, hash_size=32, highfreq_factor=2).hash.ravel()
    assert (bits[:256] == coarse).all()
    assert (bits[256:] == fine).all()
    # The faster way to a thumbnail moves hardly a bit.
    assert hash_distance(perceptual_hash(photo(name)), words) <= 6


def test_many_thumbnails_are_hashed_as_one_by_one(monkeypatch):
    monkeypatch.setattr(duplicates, "HASHED_ROWS", 3)
    thumbnails = np.random.default_rng(0).integers(0, 256, (8, 64, 64), dtype=np.uint8)
    alone = np.stack([hash_thumbnails(t[None])[0] for t in thumbnails])
    assert np.array_equal(hash_thumbnails(thumbnails), alone)


@pytest.mark.parametrize("name", PHOTOS)
def test_mirror_images_are_hashed_without_being_made(name):
    thumbnails = np.stack([duplicates.grey_thumbnail(photo(name))] * 2)
    hashes, mirrored = hash_both_ways(thumbnails)
    assert np.array_equal(hashes, hash_thumbnails(thumbnails))
    assert np.array_equal(mirrored, hash_thumbnails(thumbnails[:, :, ::-1]))
    assert not np.array_equal(hashes, mirrored)


def test_absent_frequencies_set_no_bit():
    half = np.random.default_rng(0).integers(0, 256, (64, 32, 1), dtype=np.uint8).repeat(3, axis=2)
    words = perceptual_hash(np.concatenate([half, half[:, ::-1]], axis=1))
    bits = np.unpackbits(words.view(np.uint8))
    assert not bits[:256].reshape(16, 16)[:, 1::2].any()
    assert not bits[256:].reshape(32, 32)[:, 1::2].any()
    assert 40 < bits[:256].sum() <= 128


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(image, factor):
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((int(width * factor), int(height * factor))))


def brightened(image):
    return np.clip(image.astype(int) + 30, 0, 255).astype(np.uint8)


def test_copies_of_photos_are_found_and_different_photos_are_not():
    edits = (lambda i: i, lambda i: jpeg(i, 30), lambda i: resized(i, 0.5), brightened)
    hashes = np.stack([perceptual_hash(edit(photo(name))) for name in PHOTOS for edit in edits])
    truth = np.repeat(PHOTOS, len(edits))
    found = find_clusters(keys(len(truth)), truth.tolist(), hashes)
    assert partition(found.cluster) == partition(truth)
    assert found.mixed == ()
    assert found.recut == ()


def test_distance_is_the_larger_share_in_256ths():
    row = random_hashes(1)[0]
    others = np.stack([row, flipped(row, 7), flipped(row, 3, 41), flipped(row, 256, 1024)])
    assert hash_distance(row, others).tolist() == [0, 7, 10.25, 256]


@pytest.mark.parametrize("value", [0, 1, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1, 3), (40, 70, 3)])
def test_pictures_without_structure_are_nobodys_near_duplicate(value, shape):
    flat = perceptual_hash(np.full(shape, value, np.uint8))
    assert np.bitwise_count(flat).sum() <= 2
    found = find_clusters(["a", "b"], ["x", "y"], np.stack([flat, flat]))
    assert found.cluster == ("a", "b")
    assert found.mixed == ()
    assert found.table["clusters"].unique().tolist() == [2]


def test_stripes_have_too_few_bits_and_symmetric_drawings_enough():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::7] = 200
    y, x = np.mgrid[-31.5:32, -31.5:32]
    inside = (np.hypot(x, y) < 25) & (np.hypot(x, y) > 17)
    ring = np.repeat(inside[:, :, None], 3, axis=2) * np.uint8(255)
    for image, known in ((stripes, False), (ring, True)):
        hashes = np.stack([perceptual_hash(image)] * 2)
        assert (len(set(find_clusters(["a", "b"], ["x", "x"], hashes).cluster)) == 1) == known


@pytest.mark.parametrize("block_rows", [1, 7, 30, 31, 1000])
@pytest.mark.parametrize("max_distance", [0, 12.5, 24, 64])
def test_near_pairs_are_all_pairs(block_rows, max_distance):
    hashes = families(10, 2)
    assert as_dict(near_pairs(hashes, max_distance, block_rows)) == slow_pairs(hashes, max_distance)


@pytest.mark.parametrize(
    ("coarse", "fine", "near"), [(24, 96, True), (25, 0, False), (0, 97, False)]
)
def test_threshold_is_inclusive_in_both_hashes(coarse, fine, near):
    row = random_hashes(1)[0]
    hashes = np.stack([row, flipped(row, coarse, fine)])
    assert len(as_dict(near_pairs(hashes, 24))) == near
    assert len(set(find_clusters(["a", "b"], ["x", "x"], hashes).cluster)) == (1 if near else 2)


@pytest.mark.parametrize("held_pairs", [1, 1_000_000])
@pytest.mark.parametrize("block_rows", [5, 1000])
def test_forest_connects_what_all_pairs_connect(monkeypatch, held_pairs, block_rows):
    monkeypatch.setattr(duplicates, "HELD_PAIRS", held_pairs)
    hashes = families(6, 6)
    hashes = np.concatenate([hashes, hashes[:9], hashes[:4]])  # exact copies
    every = slow_pairs(hashes, 64)
    ends = np.array(list(every)).T
    all_pairs = Pairs(*ends, np.array(list(every.values())))
    forest = spanning_forest(hashes, 64, block_rows)
    assert len(forest.first) < len(hashes)
    assert (forest.first < forest.second).all()
    assert all(every[pair] == distance for pair, distance in as_dict([forest]).items())
    for threshold in np.arange(0, 64, 0.25):
        expected = connect(len(hashes), all_pairs, threshold)
        assert partition(connect(len(hashes), forest, threshold)) == partition(expected)


def test_threshold_table_by_hand():
    pairs = Pairs(np.array([0, 1, 3]), np.array([1, 2, 4]), np.array([4.0, 10.0, 8.0]))
    table = threshold_table(pairs, ["x", "x", "y", "y", "z"], [0, 4, 8, 12])
    assert table.to_dict("list") == {
        "threshold": [0, 4, 8, 12],
        "clusters": [5, 4, 3, 2],
        "largest": [1, 2, 2, 3],
        "mixed": [0, 0, 1, 2],
    }
    assert set(table.dtypes) == {np.dtype(int)}


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_few_images(num_images):
    hashes = random_hashes(1).repeat(num_images, axis=0)
    found = find_clusters(keys(num_images), ["x"] * num_images, hashes)
    assert found.cluster == ("0000.png",) * num_images
    assert found.table["threshold"].tolist() == list(range(0, 65, 4))
    assert (found.table["clusters"] == min(num_images, 1)).all()
    assert (found.table["largest"] == num_images).all()


def test_cluster_is_named_after_its_smallest_key_and_disagreement_after_its_nearest_pair():
    one, other = random_hashes(2)
    hashes = np.stack([flipped(one, 20), other, one, flipped(one, 8)])
    found = find_clusters(["d", "c", "b", "a"], ["cat", "cat", "dog", "dog"], hashes)
    assert found.cluster == ("a", "c", "a", "a")
    assert found.mixed == (Mixed("a", ("a", "d"), ("dog", "cat"), 12.0),)
    assert found.threshold == 24
    assert found.table["mixed"].tolist() == [0, 0, 0, *[1] * 14]


def test_nearest_disagreement_is_searched_in_all_rows():
    one = random_hashes(1)[0]
    hashes = np.stack([one, flipped(one, 12), flipped(one, 13), flipped(one, 16)])
    found = find_clusters(["a", "b", "c", "d"], ["x", "y", "y", "x"], hashes)
    assert found.mixed == (Mixed("a", ("c", "d"), ("y", "x"), 3.0),)


def chain(length, step=8):
    """Hashes where each is `step` bits from the next, and k * `step` from the k-th next."""
    row = random_hashes(1)[0]
    return np.stack([flipped(row, step * number) for number in range(length)])


@pytest.mark.parametrize(
    ("length", "others", "cut"),
    [(25, 0, False), (26, 0, True), (30, 570, False), (31, 569, True)],
)
def test_only_a_cluster_above_five_percent_and_25_images_is_cut_again(length, others, cut):
    hashes = np.concatenate([chain(length), random_hashes(others, seed=1)])
    found = find_clusters(keys(len(hashes)), ["x"] * len(hashes), hashes)
    assert found.table["largest"].max() == length
    parts = len(set(found.cluster)) - others
    assert found.recut == ((Recut("0000.png", length, parts),) if cut else ())
    assert (parts > 1) == cut


def test_cut_clusters_are_sorted():
    hashes = np.concatenate([chain(27), chain(27) ^ random_hashes(1, seed=5)])
    ids = [*keys(54)[27:], *keys(54)[:27]]
    found = find_clusters(ids, ["x"] * 54, hashes)
    assert [(r.image_id, r.num_images) for r in found.recut] == [("0000.png", 27), ("0027.png", 27)]


def test_a_label_in_another_part_of_a_cut_chain_is_no_disagreement():
    labels = ["x"] * 26
    labels[0] = "y"
    found = find_clusters(keys(26), labels, chain(26))
    assert [(m.image_ids, m.labels, m.distance) for m in found.mixed] == [
        (("0000.png", "0001.png"), ("y", "x"), 8.0)
    ]
    assert set(found.table["mixed"]) == {0, 1}


@pytest.mark.parametrize("linkage_rows", [4, 1000])
def test_no_two_images_of_a_cut_cluster_are_far_apart(monkeypatch, linkage_rows):
    monkeypatch.setattr(duplicates, "LINKAGE_ROWS", linkage_rows)
    hashes = np.concatenate([chain(29), chain(3)])
    part = cut_by_complete_linkage(hashes, 24)
    assert part[:3].tolist() == part[29:].tolist()  # equal hashes stay together
    for rows in partition(part):
        assert all(slow_distance(hashes[i], hashes[j]) <= 24 for i, j in combinations(rows, 2))
    assert len(set(part)) < 15  # neighbours stay together


def test_a_part_of_a_single_hash_is_cut_too(monkeypatch):
    monkeypatch.setattr(duplicates, "LINKAGE_ROWS", 2)
    assert len(set(cut_by_complete_linkage(chain(3, step=200)[[0, 1, 1]], 24))) == 2
    assert len(set(cut_by_complete_linkage(chain(3, step=80), 24))) == 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), copies=st.integers(0, 30))
def test_clusters_do_not_depend_on_the_order_of_rows(seed, copies):
    hashes = np.concatenate([families(3, copies, seed), chain(27)])
    rng = np.random.default_rng(seed)
    ids, labels = np.array(keys(len(hashes))), rng.choice(["x", "y"], len(hashes))
    order = rng.permutation(len(hashes))
    plain = find_clusters(ids, labels, hashes)
    mixed_up = find_clusters(ids[order], labels[order], hashes[order])
    assert dict(zip(ids, plain.cluster, strict=True)) == dict(
        zip(ids[order], mixed_up.cluster, strict=True)
    )
    assert (plain.recut, plain.mixed) == (mixed_up.recut, mixed_up.mixed)
    pd.testing.assert_frame_equal(plain.table, mixed_up.table)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.integers(0, 64), high=st.integers(0, 64))
def test_clusters_only_grow_with_the_threshold(seed, low, high):
    low, high = sorted((low, high))
    hashes = families(6, 3, seed)  # 24 images: nothing is cut again
    small, large = (
        find_clusters(keys(24), ["x"] * 24, hashes, threshold) for threshold in (low, high)
    )
    assert all(
        any(part <= whole for whole in partition(large.cluster))
        for part in partition(small.cluster)
    )
    for i, j in slow_pairs(hashes, high):
        assert large.cluster[i] == large.cluster[j]
    assert small.table["clusters"].is_monotonic_decreasing
    assert small.table["largest"].is_monotonic_increasing


def test_table_agrees_with_the_clusters():
    hashes, labels = families(6, 3), ["x", "y"] * 12
    for threshold in (0, 12, 24, 40):
        found = find_clusters(keys(24), labels, hashes, threshold)
        row = found.table.set_index("threshold").loc[threshold]
        sizes = [len(part) for part in partition(found.cluster)]
        assert (row["clusters"], row["largest"]) == (len(sizes), max(sizes))
        assert row["mixed"] == len(found.mixed)


@pytest.mark.parametrize(
    ("num_ids", "num_labels", "shape"), [(2, 2, (2, 4)), (2, 1, (2, 20)), (3, 3, (2, 20))]
)
def test_rows_must_match(num_ids, num_labels, shape):
    with pytest.raises(InputError, match=r"20 words are needed for each of .* stack the results"):
        find_clusters(keys(num_ids), ["x"] * num_labels, np.ones(shape, np.uint64))


@pytest.mark.parametrize("threshold", [-1, 65, float("nan")])
def test_threshold_has_a_range(threshold):
    with pytest.raises(InputError, match=r"is (-1|65|nan), but must be between 0 and 64; 24 suits"):
        find_clusters(["a"], ["x"], random_hashes(1), threshold)


def test_a_pair_found_twice_keeps_its_smaller_distance_and_zero_is_a_pair():
    pairs = Pairs(
        np.array([0, 0, 0, 1, 0, 3]), np.array([1, 1, 2, 2, 1, 4]), np.array([9.0, 5, 6, 7, 8, 0])
    )
    forest = duplicates._minimum_forest(pairs, 6)
    assert as_dict([forest]) == {(0, 1): 5.0, (0, 2): 6.0, (3, 4): 0.0}
    assert [len(column) for column in duplicates._minimum_forest(duplicates.NO_PAIRS, 0)] == [0] * 3


def test_pairs_are_numbered_within_their_rows():
    pairs = Pairs(np.array([2, 2, 5, 7]), np.array([7, 4, 9, 9]), np.array([1.0, 2, 3, 4]))
    assert as_dict([duplicates._within(pairs, np.array([2, 7, 9]))]) == {(0, 1): 1.0, (1, 2): 4.0}


def test_near_pairs_compare_the_first_row_with_others():
    hashes, others = random_hashes(3), random_hashes(3, seed=1)
    others[2] = flipped(hashes[0], 10)
    others[0] = hashes[1]  # the second row is compared with the first as it is: not a pair
    others[1] = hashes[1]  # nor is a symmetric image one with itself
    for block_rows in (1, 2, 3):
        assert as_dict(near_pairs(hashes, 24, block_rows, others)) == {(0, 2): 10.0}


def mirrored_hashes(images):
    thumbnails = np.stack([duplicates.grey_thumbnail(image) for image in images])
    return hash_both_ways(thumbnails)


def thrifty(image):
    return jpeg(image, 50)


def test_a_mirrored_photo_is_found_among_plain_copies():
    chosen = [photo(name) for name in PHOTOS[:4]]
    images = [
        *chosen,
        *(image[:, ::-1] for image in chosen),
        *(jpeg(image, 50) for image in chosen),
    ]
    hashes, mirrored = mirrored_hashes(images)
    assert len(spanning_forest(hashes, 24).first) == 4
    forest = spanning_forest(hashes, 24, mirrored=mirrored)
    assert len(forest.first) == 8
    assert partition(connect(12, forest, 24)) == {frozenset((i, i + 4, i + 8)) for i in range(4)}
    found = find_clusters(keys(12), ["x"] * 12, hashes, mirrored=mirrored)
    assert partition(found.cluster) == {frozenset((i, i + 4, i + 8)) for i in range(4)}


def test_only_pairs_that_agree_are_held():
    rows = random_hashes(3)
    hashes = np.concatenate([rows, [flipped(row, 4) for row in rows]])
    mirrored = random_hashes(6, seed=1)
    # One of the two comes first in the order of hashes, and is compared with the other mirrored.
    mirrored[0] = mirrored[1] = flipped(rows[0], 2)
    asked = []

    def agree(first, second, is_mirrored):
        pairs = {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
        asked.append((pairs, is_mirrored))
        return np.array([0 not in pair for pair in zip(first, second, strict=True)])

    forest = spanning_forest(hashes, 24, mirrored=mirrored, agree=agree)
    assert set(as_dict([forest])) == {(1, 4), (2, 5)}
    assert asked[0] == ({(0, 3), (1, 4), (2, 5)}, False)
    assert all(is_mirrored for _, is_mirrored in asked[1:])


def test_together_overrules_hashes_when_cut():
    hashes = random_hashes(4)
    assert len(set(cut_by_complete_linkage(hashes, 24))) == 4
    for ends in (([0], [2]), ([2], [0])):
        together = Pairs(*map(np.array, ends), np.array([24.0]))
        part = cut_by_complete_linkage(hashes, 24, together=together)
        assert partition(part) == {frozenset((0, 2)), frozenset((1,)), frozenset((3,))}


def test_together_is_kept_within_its_block(monkeypatch):
    monkeypatch.setattr(duplicates, "LINKAGE_ROWS", 2)
    hashes = random_hashes(4)
    order = np.lexsort(hashes.T[::-1])  # the order in which they are cut
    together = Pairs(order[[0, 1]], order[[2, 3]], np.array([24.0, 24.0]))
    assert len(set(cut_by_complete_linkage(hashes, 24, together=together))) == 4
    together = Pairs(order[[0, 2]], order[[1, 3]], np.array([24.0, 24.0]))
    expected = {frozenset(order[:2].tolist()), frozenset(order[2:].tolist())}
    assert partition(cut_by_complete_linkage(hashes, 24, together=together)) == expected


def test_the_smaller_distance_counts_when_mirrored_images_are_cut():
    hashes, mirrored = random_hashes(3), random_hashes(3, seed=1)
    mirrored[2] = flipped(hashes[1], 20)
    part = cut_by_complete_linkage(hashes, 24, mirrored)
    assert partition(part) == {frozenset((0,)), frozenset((1, 2))}


def test_a_chain_with_mirrored_links_is_cut_into_parts_that_hold_mirrored_images():
    upright, turned = chain(16), chain(16) ^ random_hashes(1, seed=7)
    hashes, mirrored = np.concatenate([upright, turned]), np.concatenate([turned, upright])
    found = find_clusters(keys(32), ["x"] * 32, hashes, mirrored=mirrored)
    assert found.recut == (Recut("0000.png", 32, len(set(found.cluster))),)
    assert 1 < len(set(found.cluster)) < 16
    assert all(found.cluster[row] == found.cluster[row + 16] for row in range(16))


def test_more_pairs_are_found_from_clusters_and_counted_at_the_threshold():
    one, other = random_hashes(2)
    hashes = np.stack([one, flipped(one, 8), other, random_hashes(1, seed=9)[0]])
    given = []

    def find_more(known):
        given.append(partition(known))
        # Each from the other and by two views, and far apart or not at all: one pair.
        return Pairs(np.array([1, 1, 1, 0]), np.array([2, 2, 2, 2]), np.array([99.0, 0, 3, 1]))

    found = find_clusters(keys(4), ["x", "x", "y", "x"], hashes, 12, find_more=find_more)
    assert given == [{frozenset((0, 1)), frozenset((2,)), frozenset((3,))}]
    assert found.cluster == ("0000.png", "0000.png", "0000.png", "0003.png")
    held = as_dict([found.pairs])
    assert held.pop((0, 1)) == 8
    assert list(held.values()) == [12.0]
    assert found.table.set_index("threshold")["clusters"].loc[[4, 8, 12, 64]].tolist() == [
        4,
        3,
        2,
        2,
    ]


def test_more_pairs_are_kept_together_when_a_chain_is_cut():
    hashes = np.concatenate([random_hashes(1, seed=2), chain(26), random_hashes(2, seed=3)])
    ends = np.array([[26, 27], [27, 28]])
    more = Pairs(*ends, np.zeros(2))
    found = find_clusters(keys(29), ["x"] * 29, hashes, find_more=lambda known: more)
    assert found.recut == (Recut("0001.png", 28, len(set(found.cluster)) - 1),)
    assert found.cluster[27] == found.cluster[28] == "0027.png"
