import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_limits

from cvpipe.errors import InputError
from cvpipe.features.grid import cell_borders
from cvpipe.features.texture import (
    TextureEnergy,
    first_samples,
    gabor_bank,
    normalise_contrast,
    padded_side,
)

ALL_SETTINGS = [
    {},
    {"num_scales": 3, "num_orientations": 5, "grid": 3},
    {"num_scales": 1, "num_orientations": 1, "grid": 1},
    {"num_scales": 2, "grid": 16},
    {"local_contrast": True},
]


def photo(height=64, width=64) -> np.ndarray:
    """A grey photo."""
    return skimage.data.camera()[80 : 80 + 2 * height : 2, 180 : 180 + 2 * width : 2].copy()


def grating(size, wavelength, angle, amplitude=127.5, phase=0.0) -> np.ndarray:
    """Stripes that follow one another in a direction, in radians clockwise from the right."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    along = rows * np.sin(angle) + columns * np.cos(angle)
    wave = amplitude * np.cos(2 * np.pi * along / wavelength + phase)
    return np.rint(127.5 + wave).astype(np.uint8)


def in_colour(*grey) -> np.ndarray:
    """Make a batch of grey images: red, green and blue are equal."""
    return np.stack(grey)[..., None].repeat(3, axis=3)


def describe(*grey, num_scales=4, num_orientations=6, grid=4, **kwargs) -> np.ndarray:
    """Describe grey images: `(n, grid, grid, num_scales, num_orientations)`."""
    texture = TextureEnergy(num_scales, num_orientations, grid, **kwargs)
    rows = texture.fit_transform(in_colour(*grey))
    assert rows.dtype == np.float32
    return rows.reshape(len(grey), grid, grid, num_scales, num_orientations)


def mirrored(grey: np.ndarray, before: int, sides: list[int]) -> np.ndarray:
    """Continue an image by its mirror images."""
    rows, columns = (
        [place if place < side else 2 * side - 1 - place for place in around.tolist()]
        for side, around in (
            (side, np.arange(-before, padded - before) % (2 * side))
            for side, padded in zip(grey.shape, sides, strict=True)
        )
    )
    return grey[np.ix_(rows, columns)] / 255


def slow_filter(sides: list[int], wavelength: int, angle: float):
    """The filter in the plane of frequencies, as the docstring says: rows, columns, heights."""
    rows, columns = (np.arange(-(side // 2), side - side // 2) / side for side in sides)
    frequency = 1 / wavelength
    away = np.hypot(rows[:, None] - frequency * np.sin(angle), columns - frequency * np.cos(angle))
    heights = np.where(away < 0.999 * frequency, 0.5 ** ((away / (frequency / 3)) ** 2), 0)
    return rows, columns, heights


def slow_describe(grey, num_scales, num_orientations, grid) -> np.ndarray:
    """Convolve directly in the image, sample by sample."""
    longest = 2 ** (num_scales + 1)
    margin, unit = 3 * longest // 2, longest // 2
    sides = [-(-(side + 2 * margin) // unit) * unit for side in grey.shape]
    around = mirrored(grey, margin, sides)
    places = [np.arange(side) - margin for side in sides]
    expected = np.zeros((grid, grid, num_scales, num_orientations))
    row_borders, column_borders = (cell_borders(side, grid) - 0.5 for side in grey.shape)
    for scale, orientation in np.ndindex(num_scales, num_orientations):
        step = 2 ** (scale + 1)
        while step > 1 and 4 * step > min(grey.shape) // grid:
            step //= 2
        rows, columns, heights = slow_filter(
            sides, 4 * 2**scale, np.pi * orientation / num_orientations
        )
        energies = np.zeros((grid, grid, 2))
        for y in np.arange((step - 1) / 2, grey.shape[0] - 0.5, step):
            for x in np.arange((step - 1) / 2, grey.shape[1] - 0.5, step):
                kernel = (
                    np.exp(2j * np.pi * np.outer(y - places[0], rows))
                    @ heights
                    @ np.exp(2j * np.pi * np.outer(columns, x - places[1]))
                ) / heights.size
                cell = (row_borders <= y).sum() - 1, (column_borders <= x).sum() - 1
                energies[cell] += 4 * np.abs((around * kernel).sum()), 1
        expected[:, :, scale, orientation] = energies[..., 0] / energies[..., 1]
    return expected


@pytest.mark.parametrize(
    ("size", "num_scales", "num_orientations", "grid"),
    [
        ((16, 16), 1, 2, 2),
        ((13, 18), 2, 3, 3),
        ((21, 17), 2, 4, 1),
        ((9, 8), 2, 3, 8),
        ((24, 9), 2, 2, 2),
        ((5, 4), 1, 6, 2),
        ((20, 17), 3, 2, 1),
    ],
)
def test_equal_to_a_slow_convolution(size, num_scales, num_orientations, grid):
    grey = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    counts = {"num_scales": num_scales, "num_orientations": num_orientations, "grid": grid}
    with threadpool_limits(1):  # far faster for so small matrices
        expected = slow_describe(grey, **counts)
    np.testing.assert_allclose(describe(grey, **counts)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("orientation", [0, 1, 4])
def test_close_to_gabor_filters_in_the_image(orientation):
    """A Gabor filter that is not cut, and the mean over every pixel of a cell."""
    grey = photo()
    row = describe(grey, num_scales=3)[0, :, :, :, orientation]
    angle = np.pi * orientation / 6
    for scale in range(3):
        frequency = 1 / (4 * 2**scale)
        sigma = np.sqrt(2 * np.log(2)) / (2 * np.pi * frequency / 3)
        reach = int(4 * sigma)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        bell = np.exp(-(x**2 + y**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
        wave = np.exp(2j * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)))
        kernel = bell * (wave - (bell * wave).sum() / bell.sum())  # of mean zero
        padded = np.pad(grey / 255, reach, mode="symmetric")
        response = scipy.signal.fftconvolve(padded, kernel, mode="valid")
        energy = 4 * np.abs(response).reshape(4, 16, 4, 16).mean(axis=(1, 3))
        np.testing.assert_allclose(row[:, :, scale], energy, rtol=0.04, atol=2e-3)
        assert row[:, :, scale].mean() == pytest.approx(energy.mean(), rel=0.01)


@pytest.mark.parametrize("scale", range(4))
@pytest.mark.parametrize("orientation", range(6))
def test_a_grating_wins_its_own_filter(scale, orientation):
    stripes = grating((128, 128), 4 * 2**scale, np.pi * orientation / 6)
    cells = describe(stripes)[0]
    assert (cells.reshape(16, 24).argmax(axis=1) == 6 * scale + orientation).all()
    # In the middle, far from mirror images, its energy is 1 by definition.
    middle = cells[1:3, 1:3, scale, orientation]
    np.testing.assert_allclose(middle, 1, atol=0.02)


def test_first_orientation_is_upright_stripes():
    upright = np.zeros((32, 32), np.uint8)
    upright[:, ::4] = upright[:, 1::4] = 255
    assert describe(upright)[0].mean(axis=(0, 1))[0].argmax() == 0
    assert describe(upright.T)[0].mean(axis=(0, 1))[0].argmax() == 3
    # Clockwise: at a third of 90 degrees more, bright lines rise to the right.
    rising = grating((64, 64), 8, np.pi / 6)
    assert describe(rising)[0].mean(axis=(0, 1))[1].argmax() == 1
    assert describe(rising[::-1])[0].mean(axis=(0, 1))[1].argmax() == 5


@pytest.mark.parametrize("wavelength", [4, 8, 16])
def test_half_an_octave_and_half_a_direction_away(wavelength):
    """One third of the frequency away, the Gaussian has half its height."""
    row = describe(
        *[grating((96, 96), wavelength / factor, 0) for factor in (2 / 3, 1, 4 / 3)], num_scales=3
    )
    scale = int(np.log2(wavelength)) - 2
    for one, expected in zip(row[:, 1:3, 1:3, scale, 0], (0.5, 1, 0.5), strict=True):
        np.testing.assert_allclose(one, expected, atol=0.02)


@given(st.integers(0, 255), st.sampled_from([(32, 32), (33, 45), (40, 36)]))
@settings(max_examples=20, deadline=None)
def test_an_even_image_has_no_energy(level, size):
    even = np.full(size, level, np.uint8)
    np.testing.assert_allclose(describe(even), 0, atol=1e-6)
    np.testing.assert_allclose(describe(even, local_contrast=True), 0, atol=1e-5)


def test_energy_is_linear_in_contrast_and_blind_to_brightness():
    pattern = np.random.default_rng(0).integers(0, 64, (40, 52), dtype=np.uint8)
    once, twice, brighter = describe(pattern, 2 * pattern, pattern + np.uint8(190))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4)
    np.testing.assert_allclose(brighter, once, rtol=1e-3, atol=1e-6)
    negative = describe(63 - pattern)[0]
    np.testing.assert_allclose(negative, once, rtol=1e-3, atol=1e-6)
    assert once.min() > 0


def test_the_phase_does_not_matter():
    waves = [grating((96, 96), 8, np.pi / 6, phase=phase) for phase in np.arange(0, 6, 0.7)]
    energies = describe(*waves)[:, 1:3, 1:3, 1, 1]
    np.testing.assert_allclose(energies, 1, atol=0.02)


@pytest.mark.parametrize("num_orientations", [2, 6, 8])
def test_a_right_angle_turns_cells_and_directions(num_orientations):
    grey = photo()
    cells = describe(grey, num_orientations=num_orientations)[0]
    turned = describe(np.rot90(grey), num_orientations=num_orientations)[0]
    expected = np.roll(np.rot90(cells), num_orientations // 2, axis=3)
    np.testing.assert_allclose(turned, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(turned - np.rot90(cells)).max() > 0.05


@pytest.mark.parametrize("num_orientations", [3, 6])
def test_a_mirror_turns_directions_the_other_way(num_orientations):
    grey = photo(64, 32)
    cells = describe(grey, num_orientations=num_orientations)[0]
    other_way = -np.arange(num_orientations) % num_orientations
    for flipped, expected in [(grey[::-1], cells[::-1]), (grey[:, ::-1], cells[:, ::-1])]:
        found = describe(flipped, num_orientations=num_orientations)[0]
        np.testing.assert_allclose(found, expected[..., other_way], rtol=1e-3, atol=1e-5)


def test_values_are_near_zero_to_one():
    noise = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * np.uint8(255)
    rows = describe(photo(), noise)
    assert rows.min() >= 0
    assert 0.2 < rows.max() < 1.2


def test_colours_are_made_grey():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    grey = cv2.cvtColor(image[0], cv2.COLOR_RGB2GRAY)
    row = TextureEnergy().fit_transform(image)
    np.testing.assert_array_equal(row, describe(grey).reshape(1, -1))
    assert np.abs(row - TextureEnergy().fit_transform(image[..., ::-1])).max() > 1e-3


@pytest.mark.parametrize("size", [(64, 64), (40, 90)])
def test_local_contrast_is_as_documented(size):
    grey = photo(*size)
    # A Gaussian of this width halves waves of four per shorter side.
    wavelength = min(size) / 4
    sigma = wavelength * np.sqrt(2 * np.log(2)) / (2 * np.pi)
    wave = np.cos(2 * np.pi * np.arange(400) / wavelength)
    halved = scipy.ndimage.gaussian_filter1d(wave, sigma, truncate=6)
    assert np.abs(halved[100:300]).max() == pytest.approx(0.5, abs=1e-3)

    def mean_around(values):
        return scipy.ndimage.gaussian_filter(values, sigma, truncate=6)

    levels = np.log(grey.astype(float) + 1)
    fine = levels - mean_around(levels)
    expected = fine / (0.2 + np.sqrt(mean_around(fine**2)))
    np.testing.assert_allclose(normalise_contrast(grey), expected, atol=0.01)
    assert np.abs(expected).max() > 1


def test_local_contrast_evens_out_light():
    grey = photo() // 2 + 60
    shade = np.linspace(0.4, 1, 64)
    dimmed = np.rint(grey * shade).astype(np.uint8)
    without, with_it = (
        describe(grey, dimmed, local_contrast=local_contrast) for local_contrast in (False, True)
    )
    # The left half is dimmed most.
    lost = [1 - rows[1, :, :2].mean() / rows[0, :, :2].mean() for rows in (without, with_it)]
    assert lost[0] > 0.4
    assert abs(lost[1]) < 0.05


@given(st.integers(1, 12), st.integers(0, 5), st.data())
def test_every_cell_has_samples_inside(grid, power, data):
    step = 2**power
    side = data.draw(st.integers(grid * step, grid * step + 100))
    borders = cell_borders(side, grid)
    samples = first_samples(borders, step)
    assert np.diff(samples).min() >= 1
    # Sample n lies at (n + 0.5) steps from the left edge of the first pixel.
    for border, sample in zip(borders.tolist(), samples.tolist(), strict=True):
        assert (sample - 0.5) * step < border <= (sample + 0.5) * step


@pytest.mark.parametrize(
    ("num_pixels", "num_scales", "expected"),
    [(128, 4, 224), (64, 4, 160), (224, 4, 320), (32, 1, 44), (33, 1, 46), (33, 2, 60)],
)
def test_padded_sides_by_hand(num_pixels, num_scales, expected):
    assert padded_side(num_pixels, num_scales) == expected


def test_windows_are_no_larger_than_the_filters():
    """Half a wavelength between samples, which is what makes it fast."""
    bank = gabor_bank((128, 96), 4, 6, 3)
    assert [filters.weights.shape for filters in bank] == [
        (6, 224 // step, 192 // step) for step in (2, 4, 8, 8)
    ]
    # All of each filter is in its window.
    for scale, filters in enumerate(bank):
        for orientation in range(6):
            heights = slow_filter([224, 192], 4 * 2**scale, np.pi * orientation / 6)[2]
            inside = np.count_nonzero(filters.weights[orientation])
            assert inside == np.count_nonzero(heights)
        assert len(np.unique(filters.places[0])) == filters.places[0].size


@pytest.mark.parametrize("kwargs", ALL_SETTINGS)
@pytest.mark.parametrize("size", [(32, 32), (47, 33)])
def test_rows_do_not_depend_on_their_neighbours(kwargs, size):
    images = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    texture = TextureEnergy(**kwargs).fit(images)
    together = texture.transform(images)
    assert together.shape == (5, texture.n_features_out_)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(texture.transform(image[None])[0], row)
    assert len(np.unique(together, axis=0)) == 5
    for view in (images[:, ::-1], images[:, :, ::-1], images[..., ::-1], images[::-1]):
        np.testing.assert_array_equal(texture.transform(view), texture.transform(view.copy()))


def test_no_images():
    texture = TextureEnergy().fit(in_colour(photo()))
    rows = texture.transform(np.zeros((0, 64, 64, 3), np.uint8))
    assert rows.shape == (0, 384)
    assert rows.dtype == np.float32


def test_scikit_learn_conventions():
    texture = TextureEnergy(num_scales=2)
    defaults = {"num_scales": 4, "num_orientations": 6, "grid": 4, "local_contrast": False}
    assert TextureEnergy().get_params() == defaults
    assert texture.get_params() == defaults | {"num_scales": 2}
    assert texture.fit(in_colour(photo()), [1]) is texture
    assert texture.n_features_out_ == 16 * 2 * 6
    assert not texture.learns
    with pytest.raises(NotFittedError):
        clone(texture).transform(in_colour(photo()))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"num_scales": 0},
            r"^num_scales of the texture energy is 0; choose one of \[1, 2, .* 7, 8\]\.$",
        ),
        (
            {"num_scales": 1.5},
            r"^num_scales of the texture energy is 1\.5; choose one of \[1, 2, .* 7, 8\]\.$",
        ),
        (
            {"num_orientations": 25},
            r"^num_orientations of the texture energy is 25; choose one of \[1, 2, .* 23, 24\]\.$",
        ),
        ({"grid": 17}, r"^grid of the texture energy is 17; choose one of \[1, 2, .* 15, 16\]\.$"),
        (
            {"num_scales": 4},
            r"^the texture energy at 4 scales has a wavelength of 32 pixels, but the images are "
            r"\(16, 40\); choose fewer scales or a larger image size\.$",
        ),
    ],
)
def test_impossible_settings(kwargs, message):
    with pytest.raises(InputError, match=message):
        TextureEnergy(**kwargs).fit(in_colour(photo(16, 40)))


def test_the_longest_wavelength_may_fill_the_image():
    assert describe(photo(32, 40)).shape == (1, 4, 4, 4, 6)
