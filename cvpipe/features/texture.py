"""Texture energy: how much of each width and direction there is, and where."""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.fft

from cvpipe.errors import InputError
from cvpipe.features.base import ImageSize, ImageTransformer, check_choice
from cvpipe.features.grid import cell_borders, check_grid
from cvpipe.opencv import import_cv2

FINEST_WAVELENGTH = 4  # pixels; the filter reaches up to twice its frequency, the finest there is
HALF_RESPONSE = 1 / 3  # of its frequency away from its middle: one octave from half to half
REACH = 0.999  # of its frequency away from its middle: just not as far as the mean of the image
FULL_CONTRAST = 4  # a wave from 0 to 1 has amplitude 1/2, of which one side of the plane has half
SAMPLES_PER_CELL = 4  # per side, at least, if it has as many pixels
LOCAL_CYCLES = 4  # per shorter side, as in GIST: what is wider counts as light
CONTRAST_FLOOR = 0.2  # as in GIST: so that the noise of even areas is not blown up


class TextureEnergy(ImageTransformer):
    """Describe an image by the strength of stripes of each width and direction, cell by cell.

    The grey image is filtered with Gabor filters, each a patch of stripes that fade out. The
    magnitude of a filter's complex response is the local amplitude of such stripes, whatever
    their phase; its mean over the cells of a grid makes the row, as in the GIST descriptor.

    Good for whole scenes and for surfaces: open or closed, rough or smooth, built or grown. Small
    shifts, and which side of an edge is brighter, matter little. It cannot see colour, stripes
    much finer than 4 pixels or much wider than the widest, nor how the parts of a cell fit
    together. Twice the contrast is twice the energy; with `local_contrast`, neither the contrast
    nor the light matter much.

    In the plane of frequencies, a filter is a round Gaussian that falls to half its height one
    third of its frequency away from its middle (one octave in all), and ends where it would touch
    frequency zero; an even image therefore has no energy. It lets through so few frequencies that
    samples half a wavelength apart say all about its response. No more are computed (but in a
    small cell at least 4x4, or all pixels), and the mean over a cell is that over the samples in
    it. Beyond its borders the image goes on as its mirror image, for one and a half times the
    longest wavelength or more, and then meets itself from the other side.

    Departures from GIST as published: filters are equally wide in all directions, instead of
    the wider along the circle the fewer they are; means are over samples, not pixels; the margin
    is not 32 pixels at any scale; and what GIST does before it filters is `local_contrast`, which
    is off unless set.

    Args:
        num_scales: Wavelengths of the stripes, 4, 8, 16, ... pixels; up to 8 of them. The longest,
            `2 ** (num_scales + 1)` pixels, must fit into the image.
        num_orientations: Directions in which the stripes follow one another, evenly over 180
            degrees, up to 24. The first is from left to right (upright stripes), and the others
            follow clockwise.
        grid: Cells per side of a grid over the image, see `cvpipe.features.grid.cell_borders`.
        local_contrast: Whether to take away light and shade and to even out the contrast first,
            see `normalise_contrast`.

    References:
        Oliva and Torralba, "Modeling the Shape of the Scene: A Holistic Representation of the
        Spatial Envelope", International Journal of Computer Vision 42, 2001 (GIST). Manjunath
        and Ma, "Texture Features for Browsing and Retrieval of Image Data", IEEE Transactions on
        Pattern Analysis and Machine Intelligence 18, 1996 (mean magnitudes of Gabor filters).
    """

    title: ClassVar[str] = "the texture energy"

    def __init__(
        self,
        num_scales: int = 4,
        num_orientations: int = 6,
        grid: int = 4,
        local_contrast: bool = False,
    ) -> None:
        self.num_scales = num_scales
        self.num_orientations = num_orientations
        self.grid = grid
        self.local_contrast = local_contrast

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, and that the longest wavelength fits into the image.

        Raises:
            InputError: A setting is not possible, or not with such images.
        """
        check_choice(self.title, "num_scales", self.num_scales, range(1, 9))
        check_choice(self.title, "num_orientations", self.num_orientations, range(1, 25))
        check_grid(self.title, self.grid, image_size)
        longest = longest_wavelength(self.num_scales)
        if longest > min(image_size):
            raise InputError(
                f"{self.title} at {self.num_scales} scales has a wavelength of {longest} pixels, "
                f"but the images are {image_size}; choose fewer scales or a larger image size."
            )

    def _describe(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Cell by cell, row by row from the top; in a cell from the finest scale to the widest, and
        at a scale by orientation. 1 is the energy of a wave from black to white that has the
        filter's own frequency and direction; little in an image has more. One image is in work at
        a time, which takes a few megabytes besides the rows.
        """
        cv2 = import_cv2()
        size = (images.shape[1], images.shape[2])
        bank = gabor_bank(size, self.num_scales, self.num_orientations, self.grid)
        shape = (len(images), self.grid, self.grid, self.num_scales, self.num_orientations)
        rows = np.empty(shape, dtype=np.float32)
        for row, image in zip(rows, images, strict=True):
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            levels = normalise_contrast(grey) if self.local_contrast else grey / np.float32(255)
            spectrum = mirrored_spectrum(levels, self.num_scales)
            for scale, filters in enumerate(bank):
                row[:, :, scale] = filters.energy(spectrum)
        return rows.reshape(len(images), -1)


def normalise_contrast(grey: np.ndarray) -> np.ndarray:
    """Take away light and shade, and even out the contrast, as GIST does before it filters.

    Of the logarithm of the levels, the mean around each pixel is subtracted, and the result is
    divided by its own root mean square around the pixel, plus a little. Around means: weighted
    by a Gaussian that halves waves of `LOCAL_CYCLES` per shorter side of the image.

    Args:
        grey: `uint8` array of shape `(height, width)`.

    Returns:
        `float32` array of the same shape, mostly in [-2, 2].
    """
    cv2 = import_cv2()
    sigma = min(grey.shape) / LOCAL_CYCLES * math.sqrt(2 * math.log(2)) / (2 * math.pi)
    levels = np.log1p(grey, dtype=np.float32)
    fine = levels - cv2.GaussianBlur(levels, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    variance = cv2.GaussianBlur(fine**2, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return fine / (CONTRAST_FLOOR + np.sqrt(variance))


def longest_wavelength(num_scales: int) -> int:
    """Say how far apart the widest stripes are, in pixels."""
    return FINEST_WAVELENGTH * 2 ** (num_scales - 1)


def margin_pixels(num_scales: int) -> int:
    """Say how far an image goes on at least: so far that its other side is hardly seen."""
    return 3 * longest_wavelength(num_scales) // 2


def padded_side(num_pixels: int, num_scales: int) -> int:
    """Say how long a side is with its margins: a whole number of samples at each scale."""
    step = longest_wavelength(num_scales) // 2
    return -(-(num_pixels + 2 * margin_pixels(num_scales)) // step) * step


def mirrored_spectrum(grey: np.ndarray, num_scales: int) -> np.ndarray:
    """Transform an image that goes on as its mirror image on all sides.

    Args:
        grey: `float32` array of shape `(height, width)`, values in [0, 1] or normalised.
        num_scales: Number of wavelengths; the image begins after the margin, `margin_pixels`.

    Returns:
        `complex64` array of two longer sides, see `padded_side`: the discrete Fourier transform.
    """
    cv2 = import_cv2()
    margin = margin_pixels(num_scales)
    after = [padded_side(side, num_scales) - margin - side for side in grey.shape]
    mirrored = cv2.copyMakeBorder(grey, margin, after[0], margin, after[1], cv2.BORDER_REFLECT)
    return transform(mirrored)


def transform(values: np.ndarray) -> np.ndarray:
    """Transform an image, `float32`, into its spectrum, `complex64`.

    By SciPy: the whole feature takes 1.4 times as long with NumPy, which does one row at a time.
    """
    return scipy.fft.fft2(values, workers=1)


def invert(spectra: np.ndarray, axis: int) -> np.ndarray:
    """Transform spectra, `complex64`, back along one axis; they may be overwritten."""
    return scipy.fft.ifft(spectra, axis=axis, overwrite_x=True, workers=1)


@dataclass(frozen=True)
class GaborFilters:
    """The filters of one scale, as they are applied to the spectrum of an image.

    A filter is zero but for a window of the spectrum. The inverse transform of the window alone
    gives the response at samples, which are as far apart as the window is smaller than the whole.

    Attributes:
        places: The windows as places in the flat spectrum: `int64` array of shape
            `(num_orientations, height, width)`.
        weights: `complex64` array of the same shape: the filters, scaled, and with the phase that
            moves the first sample into the image.
        first_rows: Of the rows of samples, the first in each row of cells, and the number inside
            the image; see `first_samples`.
        first_columns: The same for columns.
    """

    places: np.ndarray
    weights: np.ndarray
    first_rows: np.ndarray
    first_columns: np.ndarray

    def energy(self, spectrum: np.ndarray) -> np.ndarray:
        """Filter an image.

        Args:
            spectrum: See `mirrored_spectrum`.

        Returns:
            `float32` array of shape `(grid, grid, num_orientations)`: mean magnitudes.
        """
        rows, columns = self.first_rows, self.first_columns
        windows = np.take(spectrum, self.places)
        windows *= self.weights
        # Axis by axis, so that rows of samples outside the image are dropped halfway.
        inside = invert(windows, axis=1)[:, : rows[-1]]
        responses = invert(inside, axis=2)
        energy = np.abs(responses[:, :, : columns[-1]])
        sums = np.add.reduceat(np.add.reduceat(energy, rows[:-1], axis=1), columns[:-1], axis=2)
        return np.moveaxis(sums / np.outer(np.diff(rows), np.diff(columns)), 0, 2)


@functools.lru_cache(maxsize=4)
def gabor_bank(
    size: ImageSize, num_scales: int, num_orientations: int, grid: int
) -> list[GaborFilters]:
    """Make the filters for images of one size; see `TextureEnergy`.

    Args:
        size: `(height, width)` of the images, in pixels.
        num_scales: Number of wavelengths.
        num_orientations: Directions at each.
        grid: Cells per side.

    Returns:
        The filters by scale, from the finest.
    """
    height, width = (padded_side(side, num_scales) for side in size)
    angles = np.pi * np.arange(num_orientations) / num_orientations
    widest_step = 2 ** int(math.log2(max(min(size) // grid // SAMPLES_PER_CELL, 1)))
    bank = []
    for scale in range(num_scales):
        wavelength = FINEST_WAVELENGTH * 2**scale
        # The filters need two samples a wavelength, and the mean over a cell a few, too.
        step = min(wavelength // 2, widest_step)
        rows, y, y_away = _window(np.sin(angles) / wavelength, height, step)
        columns, x, x_away = _window(np.cos(angles) / wavelength, width, step)
        squares = (wavelength * y_away[:, :, None]) ** 2 + (wavelength * x_away[:, None, :]) ** 2
        filters = np.exp2(-squares / HALF_RESPONSE**2) * (squares < REACH**2)
        # The first sample lies in the middle of the first step x step pixels of the image.
        first = margin_pixels(num_scales) + (step - 1) / 2
        phases = np.exp(2j * np.pi * first * (y[:, :, None] + x[:, None, :]))
        bank.append(
            GaborFilters(
                places=rows[:, :, None] * width + columns[:, None, :],
                weights=(FULL_CONTRAST / step**2 * filters * phases).astype(np.complex64),
                first_rows=first_samples(cell_borders(size[0], grid), step),
                first_columns=first_samples(cell_borders(size[1], grid), step),
            )
        )
    return bank


def _window(centres: np.ndarray, side: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the frequencies of one axis around the middle of each filter.

    Args:
        centres: Frequencies of the filters along the axis, in cycles per pixel.
        side: Length of the axis, in pixels.
        step: Distance of samples, in pixels; divides the length.

    Returns:
        Arrays of shape `(num_filters, side // step)`: places along the axis of the spectrum,
        their frequencies, and how far these are from the middle.
    """
    size = side // step
    numbers = np.floor(centres * side - size / 2).astype(np.int64)[:, None] + 1 + np.arange(size)
    frequencies = numbers / side
    return numbers % side, frequencies, frequencies - centres[:, None]


def first_samples(borders: np.ndarray, step: int) -> np.ndarray:
    """Find the first sample of each cell.

    Args:
        borders: See `cell_borders`. Pixel i reaches from i - 0.5 to i + 0.5.
        step: Distance of samples, in pixels; sample 0 lies in the middle of the first pixels.

    Returns:
        `int64` array of the same shape; the last is the number of samples inside the image.

    Example:
        >>> first_samples(np.array([0, 4, 7, 10]), step=2)  # at 0.5, 2.5, 4.5, 6.5, 8.5
        array([0, 2, 3, 5])
    """
    return -((step - 2 * borders) // (2 * step))
