import itertools
import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import skimage.data
import skimage.feature
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cvpipe.errors import InputError
from cvpipe.features.grid import grid_cells
from cvpipe.features.local_binary_patterns import (
    LocalBinaryPatterns,
    circle_point,
    num_bins,
    pattern_bins,
    pattern_codes,
)

CIRCLES = [(8, 1), (4, 1), (6, 2), (5, 3), (12, 2), (16, 2), (17, 3), (24, 3), (7, 8)]
ALL_SETTINGS = [
    {"num_points": num_points, "radius": radius, "mapping": mapping, "square_root": square_root}
    for num_points, radius in [(8, 1), (6, 2), (12, 2), (24, 3)]
    for mapping in ("all", "uniform", "rotation_invariant_uniform")
    for square_root in (False, True)
    if not (mapping == "all" and num_points > 8)
]


def photo(height=60, width=47) -> np.ndarray:
    """A grey photo with even areas and edges."""
    return skimage.data.camera()[90 : 90 + height, 200 : 200 + width].copy()


def noise(height=40, width=33, num_levels=256) -> np.ndarray:
    levels = np.random.default_rng(0).integers(0, num_levels, (height, width))
    return levels.astype(np.uint8)


def in_colour(*grey) -> np.ndarray:
    """Make a batch of grey images: red, green and blue are equal."""
    return np.stack(grey)[..., None].repeat(3, axis=3)


def describe(*grey, **settings) -> np.ndarray:
    return LocalBinaryPatterns(**settings).fit_transform(in_colour(*grey))


# By hand: 3x3 pixels have one whose circle is inside. The points are numbered anti-clockwise
# from the right, so the four on pixels are right 0, up 2, left 4, down 6.


@pytest.mark.parametrize(
    ("grey", "code"),
    [
        ([[5, 5, 5], [5, 5, 5], [5, 5, 5]], 0b11111111),
        ([[5, 5, 5], [5, 6, 5], [5, 5, 5]], 0),
        ([[5, 5, 5], [5, 4, 5], [5, 5, 5]], 0b11111111),
        # Only the upper half is as bright; diagonal points are between pixels:
        # up right, 0.5 * 9 + 0.207 * 9 + 0.207 * 0 + 0.086 * 5 = 6.8, is brighter than 5.
        ([[9, 9, 9], [0, 5, 0], [0, 0, 0]], 0b00001110),
        # Right only: the points up and down right get 0.207 * 9 + 0.086 * 5 = 2.3.
        ([[0, 0, 0], [0, 5, 9], [0, 0, 0]], 0b00000001),
        ([[0, 0, 0], [0, 5, 0], [0, 9, 0]], 0b01000000),
        # Up right 0.5 * 9 + 0.086 * 5 = 4.9, and with 10 it is 5.4.
        ([[0, 0, 9], [0, 5, 0], [0, 0, 0]], 0),
        ([[0, 0, 10], [0, 5, 0], [0, 0, 0]], 0b00000010),
        # The darkest and the brightest level.
        ([[0, 0, 255], [255, 255, 255], [0, 0, 0]], 0b00010001),
    ],
)
def test_codes_by_hand(grey, code):
    assert pattern_codes(np.array(grey, np.uint8), 8, 1).tolist() == [[code]]


def test_four_points_by_hand():
    grey = np.array([[0, 7, 0, 0], [6, 5, 4, 5], [0, 5, 0, 0]], np.uint8)
    # Right 4 < 5, up 7, left 6, down 5; then right 5 > 4, up 0, left 5, down 0.
    assert pattern_codes(grey, 4, 1).tolist() == [[0b1110, 0b0101]]


def slow_codes(grey: np.ndarray, num_points: int, radius: int) -> list[list[int]]:
    """Compare point by point, with exact sums of the rounded weights."""
    height, width = grey.shape
    levels = grey.tolist()
    codes = [[0] * (width - 2 * radius) for _ in range(height - 2 * radius)]
    for point in range(num_points):
        angle = 2 * math.pi * point / num_points
        y, x = round(-radius * math.sin(angle), 9), round(radius * math.cos(angle), 9)
        top, left = math.floor(y), math.floor(x)
        exact = {
            (row, column): (1 - abs(y - row)) * (1 - abs(x - column))
            for row in (top, top + 1)
            for column in (left, left + 1)
        }
        weights = {place: Fraction(round(weight * 2**16), 2**16) for place, weight in exact.items()}
        weights[max(exact, key=exact.get)] += 1 - sum(weights.values())
        for row, column in np.ndindex(height - 2 * radius, width - 2 * radius):
            there = sum(
                weight * levels[radius + row + down][radius + column + right]
                for (down, right), weight in weights.items()
                if weight
            )
            codes[row][column] |= (there >= levels[radius + row][radius + column]) << point
    return codes


@pytest.mark.parametrize(("num_points", "radius"), CIRCLES)
def test_codes_are_exact(num_points, radius):
    for grey in (photo(23, 19), noise(19, 20), noise(20, 19, num_levels=3)):
        codes = pattern_codes(grey, num_points, radius)
        assert codes.shape == (grey.shape[0] - 2 * radius, grey.shape[1] - 2 * radius)
        assert codes.tolist() == slow_codes(grey, num_points, radius)


@given(st.integers(4, 24), st.integers(1, 8), st.integers(0, 255))
def test_an_even_image_has_ones_only(num_points, radius, level):
    codes = pattern_codes(np.full((20, 18), level, np.uint8), num_points, radius)
    assert (codes == 2**num_points - 1).all()


@pytest.mark.parametrize(("num_points", "radius"), [*itertools.product(range(4, 25), range(1, 9))])
def test_weights(num_points, radius):
    for point in range(num_points):
        row, column, weights = circle_point(point, num_points, radius)
        assert weights.dtype == np.float32
        assert weights.min() >= 0
        assert weights.astype(float).sum() == 1
        np.testing.assert_array_equal(weights * 2**16, np.rint(weights * 2**16))
        # What interpolation sees of the coordinates themselves is the point.
        rows, columns = np.mgrid[row : row + 2, column : column + 2]
        angle = 2 * np.pi * point / num_points
        y, x = -radius * np.sin(angle), radius * np.cos(angle)
        assert (weights * rows).sum() == pytest.approx(y, abs=1e-4)
        assert (weights * columns).sum() == pytest.approx(x, abs=1e-4)
        if num_points % 4 == 0:
            _, _, turned = circle_point((point + num_points // 4) % num_points, num_points, radius)
            # The top left pixel has no counterpart if the point is on a row or column of pixels.
            if min(abs(y - round(y)), abs(x - round(x))) > 1e-6:
                np.testing.assert_array_equal(turned, np.rot90(weights))
        # Nothing beyond the radius is looked at, so the border is as wide as it.
        used = weights > 0
        assert max(np.abs(rows[used]).max(), np.abs(columns[used]).max()) <= radius


def bits(code: int, num_points: int) -> list[int]:
    return [code >> point & 1 for point in range(num_points)]


def slow_bin(code: int, num_points: int, mapping: str) -> int:
    """Find the bin as the docstring says."""
    pattern = bits(code, num_points)
    if mapping == "all":
        return code
    ones = sum(pattern)
    starts = [point for point in range(num_points) if pattern[point] and not pattern[point - 1]]
    if mapping == "rotation_invariant_uniform":
        return ones if len(starts) <= 1 else num_points + 1
    if len(starts) > 1:
        return num_points * (num_points - 1) + 2
    if not starts:
        return 0 if ones == 0 else num_points * (num_points - 1) + 1
    return 1 + (ones - 1) * num_points + starts[0]


@pytest.mark.parametrize("num_points", range(4, 13))
@pytest.mark.parametrize("mapping", ["uniform", "rotation_invariant_uniform"])
def test_bins_of_all_patterns(num_points, mapping):
    codes = np.arange(2**num_points, dtype=np.min_scalar_type(2**num_points - 1))[None]
    bins = pattern_bins(codes, num_points, mapping)
    expected = [slow_bin(code, num_points, mapping) for code in codes[0].tolist()]
    assert bins.tolist() == [expected]
    assert sorted(set(expected)) == [*range(num_bins(num_points, mapping))]


@pytest.mark.parametrize("num_points", [13, 16, 17, 23, 24])
@pytest.mark.parametrize("mapping", ["uniform", "rotation_invariant_uniform"])
def test_bins_of_long_patterns(num_points, mapping):
    runs = {
        sum(1 << (start + step) % num_points for step in range(length))
        for start in range(num_points)
        for length in range(num_points + 1)
    }
    others = np.random.default_rng(0).integers(0, 2**num_points, 200).tolist()
    codes = np.array([[*runs, *others]], np.min_scalar_type(2**num_points - 1))
    expected = [slow_bin(code, num_points, mapping) for code in codes[0].tolist()]
    assert pattern_bins(codes, num_points, mapping).tolist() == [expected]
    assert set(expected) == set(range(num_bins(num_points, mapping)))


@pytest.mark.parametrize(
    ("num_points", "mapping", "expected"),
    [
        (8, "all", 256),
        (8, "uniform", 59),
        (16, "uniform", 243),
        (8, "rotation_invariant_uniform", 10),
        (24, "rotation_invariant_uniform", 26),
    ],
)
def test_number_of_bins_in_the_paper(num_points, mapping, expected):
    assert num_bins(num_points, mapping) == expected


def clear_pixels(grey: np.ndarray, num_points: int, radius: int) -> np.ndarray:
    """Find the pixels that no point is nearly equal to; there, rounding decides elsewhere."""
    levels = grey.astype(float)
    height, width = grey.shape
    centre = levels[radius : height - radius, radius : width - radius]
    clear = np.ones(centre.shape, bool)
    for point in range(num_points):
        angle = 2 * np.pi * point / num_points
        y, x = -radius * np.sin(angle), radius * np.cos(angle)
        top, left = math.floor(round(y, 6)), math.floor(round(x, 6))
        there = sum(
            (1 - abs(y - row)) * (1 - abs(x - column)) * np.roll(levels, (-row, -column), (0, 1))
            for row in (top, top + 1)
            for column in (left, left + 1)
        )[radius : height - radius, radius : width - radius]
        clear &= np.abs(there - centre) > 0.01
    return clear


@pytest.mark.parametrize(("num_points", "radius"), CIRCLES)
def test_equal_to_scikit_image(num_points, radius):
    for grey in (photo(), noise()):
        inside = (slice(radius, -radius), slice(radius, -radius))
        clear = clear_pixels(grey, num_points, radius)
        assert clear.mean() > 0.1
        codes = pattern_codes(grey, num_points, radius)
        for mapping, method in [
            ("all", "default"),
            ("rotation_invariant_uniform", "uniform"),
            ("uniform", "nri_uniform"),
        ]:
            theirs = skimage.feature.local_binary_pattern(grey, num_points, radius, method)
            theirs = theirs[inside][clear].astype(int)
            ours = pattern_bins(codes, num_points, mapping)[clear].astype(int)
            if mapping != "uniform":
                np.testing.assert_array_equal(ours, theirs)
                continue
            # Here bins have another order, so each of ours must be one of theirs.
            pairs = np.unique([ours, theirs], axis=1)
            assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def slow_row(grey, num_points=8, radius=1, mapping="uniform", grid=4, square_root=False):
    codes = np.array(slow_codes(grey, num_points, radius))
    shares = []
    for cell in grid_cells(codes.shape, grid):
        counts = [0] * num_bins(num_points, mapping)
        for code in codes[cell].ravel().tolist():
            counts[slow_bin(code, num_points, mapping)] += 1
        shares += [count / codes[cell].size for count in counts]
    return np.sqrt(shares) if square_root else np.array(shares)


@pytest.mark.parametrize("settings", [{}, *ALL_SETTINGS])
@pytest.mark.parametrize("grid", [1, 3])
def test_rows_are_equal_to_a_slow_reference(settings, grid):
    grey = photo(22, 17)
    (row,) = describe(grey, grid=grid, **settings)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, slow_row(grey, grid=grid, **settings), rtol=1e-6)


def test_row_by_hand():
    # A dark column right of a bright half: its pixels have no neighbour darker than they.
    grey = np.zeros((6, 6), np.uint8)
    grey[:, :3] = 200
    (row,) = describe(grey, grid=2, mapping="all")
    left, right = row.reshape(2, 2, 256)[0]
    # The inner 4x4 pixels: column 1 is even, in column 2 the three points on the right are darker.
    assert {code: left[code] for code in left.nonzero()[0].tolist()} == {
        0b11111111: 0.5,
        0b01111100: 0.5,
    }
    assert right.nonzero()[0].tolist() == [0b11111111]
    np.testing.assert_array_equal(*row.reshape(2, 2, 256))


@pytest.mark.parametrize("level", [0, 1, 128, 255])
@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_an_even_image_is_in_one_bin(level, settings):
    (row,) = describe(np.full((19, 24), level, np.uint8), grid=2, **settings)
    cells = row.reshape(4, -1)
    of_ones = slow_bin(2 ** settings["num_points"] - 1, settings["num_points"], settings["mapping"])
    np.testing.assert_array_equal(cells, np.eye(cells.shape[1])[[of_ones] * 4])


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_cells_sum_to_one(settings):
    rows = describe(photo(), noise(60, 47), grid=3, **settings).reshape(2, 9, -1)
    sums = (rows**2 if settings["square_root"] else rows).sum(axis=2)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_more_light_and_more_contrast_change_nothing(settings):
    grey = noise(num_levels=100)
    rows = describe(grey, grey + np.uint8(100), grey * np.uint8(2), grid=2, **settings)
    np.testing.assert_array_equal(rows, rows[:1].repeat(3, axis=0))
    assert np.abs(describe(100 - grey, grid=2, **settings) - rows[0]).max() > 0.01


def test_four_points_see_the_order_of_levels_alone():
    grey = noise(num_levels=20)
    curve = np.random.default_rng(1).permutation(256)[:20]
    curve.sort()
    codes = pattern_codes(curve.astype(np.uint8)[grey], 4, 1)
    np.testing.assert_array_equal(codes, pattern_codes(grey, 4, 1))


@pytest.mark.parametrize(("num_points", "radius"), [(8, 1), (4, 2), (12, 2), (16, 2), (24, 3)])
def test_a_right_angle_turns_patterns_and_nothing_else(num_points, radius):
    for grey in (photo(), noise(num_levels=3)):
        for times in (1, 2, 3):
            turned = pattern_codes(np.rot90(grey, times), num_points, radius)
            codes = np.rot90(pattern_codes(grey, num_points, radius), times).astype(np.int64)
            shift = times * num_points // 4  # np.rot90 turns anti-clockwise, too
            rotated = (codes << shift | codes >> (num_points - shift)) & (2**num_points - 1)
            np.testing.assert_array_equal(turned, rotated)
    settings = {"num_points": num_points, "radius": radius, "grid": 1}
    invariant = describe(
        photo(40, 40), np.rot90(photo(40, 40)), mapping="rotation_invariant_uniform", **settings
    )
    np.testing.assert_array_equal(*invariant)
    assert np.abs(
        np.diff(describe(photo(40, 40), np.rot90(photo(40, 40)), **settings), axis=0)
    ).max()


def test_colours_are_made_grey():
    image = np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), dtype=np.uint8)
    row = LocalBinaryPatterns().fit_transform(image)
    grey = cv2.cvtColor(image[0], cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(row, describe(grey))
    assert np.abs(row - LocalBinaryPatterns().fit_transform(image[..., ::-1])).max() > 0


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_rows_do_not_depend_on_their_neighbours(settings):
    images = np.random.default_rng(0).integers(0, 256, (3, 31, 18, 3), dtype=np.uint8)
    patterns = LocalBinaryPatterns(**settings).fit(images)
    together = patterns.transform(images)
    assert together.shape == (3, patterns.n_features_out_)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(patterns.transform(image[None])[0], row)
    assert len(np.unique(together, axis=0)) == 3
    for view in (images[:, ::-1], images[:, :, ::-1], images[..., ::-1], images[::-1]):
        np.testing.assert_array_equal(patterns.transform(view), patterns.transform(view.copy()))


def test_smallest_image():
    assert describe(noise(6, 6)).shape == (1, 16 * 59)
    assert describe(noise(3, 9), grid=1).sum() == 1


def test_no_images():
    patterns = LocalBinaryPatterns().fit(in_colour(photo()))
    rows = patterns.transform(np.zeros((0, 60, 47, 3), np.uint8))
    assert rows.shape == (0, 944)
    assert rows.dtype == np.float32


def test_scikit_learn_conventions():
    patterns = LocalBinaryPatterns(num_points=4)
    defaults = {
        "num_points": 8,
        "radius": 1,
        "mapping": "uniform",
        "grid": 4,
        "square_root": False,
    }
    assert LocalBinaryPatterns().get_params() == defaults
    assert patterns.get_params() == defaults | {"num_points": 4}
    assert patterns.fit(in_colour(photo()), [1]) is patterns
    assert patterns.n_features_out_ == 16 * 15
    assert not patterns.learns
    with pytest.raises(NotFittedError):
        clone(patterns).transform(in_colour(photo()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_points": 3},
            r"^num_points of the feature of local binary patterns is 3; choose one of \[4, 5, .*\]",
        ),
        (
            {"num_points": 25},
            r"^num_points of the feature of local binary patterns is 25; .* 23, 24\]\.$",
        ),
        (
            {"radius": 1.5},
            r"^radius of the feature of local binary patterns is 1\.5; "
            r"choose one of \[1, 2, 3, 4, 5, 6, 7, 8\]\.$",
        ),
        (
            {"mapping": "u2"},
            r"^mapping of the feature of local binary patterns is 'u2'; "
            r"choose one of \['all', 'uniform', 'rotation_invariant_uniform'\]\.$",
        ),
        (
            {"mapping": "all", "num_points": 9},
            r"^the feature of local binary patterns cannot give each pattern of 9 points a bin; "
            r"choose the mapping 'uniform', or at most 8 points\.$",
        ),
        (
            {"radius": 4},
            r"^the feature of local binary patterns needs images of at least 12 pixels per side "
            r"for radius 4 and grid 4, but they are \(11, 30\); choose a larger image size, a "
            r"smaller radius or fewer cells\.$",
        ),
        (
            {"grid": 0},
            r"^grid of the feature of local binary patterns is 0; choose one of \[1, .* 9\]\.$",
        ),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(InputError, match=message):
        LocalBinaryPatterns(**settings).fit(in_colour(noise(11, 30)))
