"""Local binary patterns."""

import functools
import math
from typing import ClassVar

import numpy as np

from cvpipe.errors import InputError
from cvpipe.features.base import ImageSize, ImageTransformer, check_choice
from cvpipe.features.grid import check_grid, grid_cells
from cvpipe.opencv import import_cv2

MAPPINGS = ("all", "uniform", "rotation_invariant_uniform")
MAX_POINTS_OF_ALL = 8  # 256 patterns
WEIGHT_UNITS = 2**16  # with 8 bits of a grey level, as many as float32 holds exactly


class LocalBinaryPatterns(ImageTransformer):
    """Describe an image by how often each pattern of brighter and darker neighbours occurs in it.

    Points on a circle around a pixel are compared with it: 1 where the image is at least as bright
    as at the pixel, 0 where it is darker. The ones and zeros are the pattern of the pixel. Cell by
    cell, patterns are counted.

    Good for fine textures, such as of skin, cloth, tissue or surfaces, in whatever light: more
    brightness or contrast changes nothing, and little does any other curve that keeps the order
    of grey levels. For the same reason it cannot see how strong an edge is, and noise in an even
    area counts as much as the texture beside it. Colour, and structures much wider than the
    circle, are not seen either.

    The image is grey, and is interpolated between pixels (bilinearly). Weights are rounded to
    whole multiples of `2 ** -16`, so all sums are exact: neighbours that are equal to the pixel
    count as such, an even area has the pattern of ones only, and a right angle turns patterns and
    changes nothing else (if points are a multiple of 4). Pixels whose circle is not inside the
    image (closer than `radius` to its border) are not counted; the grid divides what is left.

    Args:
        num_points: Points on the circle, from 4 to 24.
        radius: Radius of the circle, in whole pixels, from 1 to 8.
        mapping: How patterns are counted.

            - `"all"`: each in a bin of its own, `2 ** num_points` bins; up to 8 points.
            - `"uniform"`: patterns of one run of ones around the circle (an edge, a line's end, a
              corner) each in a bin of its own, by length, and then by the point where the run
              begins; before them the pattern without ones, after them that of ones only, and in
              the last bin all others: `num_points * (num_points - 1) + 3` bins.
            - `"rotation_invariant_uniform"`: runs by length only, whatever their direction, and in
              the last bin all others: `num_points + 2` bins. An image turned by a right angle
              has the same histogram; other angles differ by the interpolation.
        grid: Cells per side of a grid over the image, with a histogram for each cell.
        square_root: Whether to take the square root of the shares; see `ColourHistogram`.

    References:
        Ojala, Pietikainen and Maenpaa, "Multiresolution Gray-Scale and Rotation Invariant Texture
        Classification with Local Binary Patterns", IEEE Transactions on Pattern Analysis and
        Machine Intelligence 24, 2002, section 2. The grid is that of Ahonen, Hadid and
        Pietikainen, "Face Description with Local Binary Patterns", in volume 28, 2006.
    """

    title: ClassVar[str] = "the feature of local binary patterns"

    def __init__(
        self,
        num_points: int = 8,
        radius: int = 1,
        mapping: str = "uniform",
        grid: int = 4,
        square_root: bool = False,
    ) -> None:
        self.num_points = num_points
        self.radius = radius
        self.mapping = mapping
        self.grid = grid
        self.square_root = square_root

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, and that a pixel in each cell has its circle inside the image.

        Raises:
            InputError: A setting is not possible, or not with such images.
        """
        check_choice(self.title, "num_points", self.num_points, range(4, 25))
        check_choice(self.title, "radius", self.radius, range(1, 9))
        check_choice(self.title, "mapping", self.mapping, MAPPINGS)
        if self.mapping == "all" and self.num_points > MAX_POINTS_OF_ALL:
            raise InputError(
                f"{self.title} cannot give each pattern of {self.num_points} points a bin; choose "
                f"the mapping 'uniform', or at most {MAX_POINTS_OF_ALL} points."
            )
        inner_size = (image_size[0] - 2 * self.radius, image_size[1] - 2 * self.radius)
        if min(inner_size) < self.grid:
            raise InputError(
                f"{self.title} needs images of at least {2 * self.radius + self.grid} pixels per "
                f"side for radius {self.radius} and grid {self.grid}, but they are {image_size}; "
                "choose a larger image size, a smaller radius or fewer cells."
            )
        check_grid(self.title, self.grid, inner_size)

    def _describe(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Cell by cell, row by row from the top: values in [0, 1] that sum to 1 in each cell, or
        whose squares do.
        """
        cv2 = import_cv2()
        inner_size = (images.shape[1] - 2 * self.radius, images.shape[2] - 2 * self.radius)
        cells = grid_cells(inner_size, self.grid)
        size = num_bins(self.num_points, self.mapping)
        counts = np.empty((len(images), len(cells), size), dtype=np.float32)
        for counts_of_image, image in zip(counts, images, strict=True):
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            codes = pattern_codes(grey, self.num_points, self.radius)
            bins = pattern_bins(codes, self.num_points, self.mapping)
            for counts_of_cell, cell in zip(counts_of_image, cells, strict=True):
                counts_of_cell[:] = cv2.calcHist([bins[cell]], [0], None, [size], [0, size])[:, 0]
        counts /= counts.sum(axis=2, keepdims=True)
        if self.square_root:
            np.sqrt(counts, out=counts)
        return counts.reshape(len(images), -1)


def num_bins(num_points: int, mapping: str) -> int:
    """Count the bins of a mapping; see `LocalBinaryPatterns`."""
    if mapping == "all":
        return 2**num_points
    if mapping == "uniform":
        return num_points * (num_points - 1) + 3
    return num_points + 2


def pattern_codes(grey: np.ndarray, num_points: int, radius: int) -> np.ndarray:
    """Compare the points around each pixel with it.

    Args:
        grey: `uint8` array of shape `(height, width)`.
        num_points: Points on the circle; the first is on the right, the others follow
            anti-clockwise. At most 32.
        radius: Radius of the circle, in pixels.

    Returns:
        `uint8`, `uint16` or `uint32` array, the smallest that has a bit for each point, of shape
        `(height - 2 * radius, width - 2 * radius)`: the pixels whose circle is inside the image.
        Bit `i` is 1 where the image at point `i` is at least as bright as at the pixel.
    """
    cv2 = import_cv2()
    levels = grey.astype(np.float32)
    height, width = grey.shape
    centre = levels[radius : height - radius, radius : width - radius]
    codes = np.zeros(centre.shape, dtype=np.min_scalar_type(2**num_points - 1))
    for point in range(num_points):
        row, column, weights = circle_point(point, num_points, radius)
        # Float sums of filter2D are exact here, so their order does not matter.
        is_pixel = weights[0, 0] == 1
        levels_there = levels if is_pixel else cv2.filter2D(levels, -1, weights, anchor=(0, 0))
        top, left = radius + row, radius + column
        at_point = levels_there[top : top + centre.shape[0], left : left + centre.shape[1]]
        is_one = cv2.compare(at_point, centre, cv2.CMP_GE) & np.uint8(1)
        codes |= np.multiply(is_one, 2**point, dtype=codes.dtype)
    return codes


@functools.lru_cache(maxsize=64)
def circle_point(point: int, num_points: int, radius: int) -> tuple[int, int, np.ndarray]:
    """Say how the image is interpolated at a point of the circle.

    Args:
        point: Number of the point; 0 is on the right, the others follow anti-clockwise.
        num_points: Points on the circle.
        radius: Radius of the circle, in pixels.

    Returns:
        Row and column, relative to the pixel in the centre, of the top left one of the four
        pixels around the point; and the weights of the four, `float32` of shape `(2, 2)`: whole
        multiples of `1 / WEIGHT_UNITS` that sum to 1.
    """
    angle = 2 * math.pi * point / num_points
    # Rounded, as the sine of 180 degrees is not quite zero.
    y, x = round(-radius * math.sin(angle), 9), round(radius * math.cos(angle), 9)
    row, column = math.floor(y), math.floor(x)
    weights = np.outer([1 - (y - row), y - row], [1 - (x - column), x - column])
    units = np.rint(WEIGHT_UNITS * weights)
    units.flat[units.argmax()] += WEIGHT_UNITS - units.sum()
    return row, column, (units / WEIGHT_UNITS).astype(np.float32)


def pattern_bins(codes: np.ndarray, num_points: int, mapping: str) -> np.ndarray:
    """Find the bin of each pattern.

    Args:
        codes: See `pattern_codes`.
        num_points: Points on the circle.
        mapping: See `LocalBinaryPatterns`.

    Returns:
        `uint8` or `uint16` array of the same shape, values below `num_bins`.
    """
    if mapping == "all":
        return codes
    if codes.dtype == np.uint8:
        return import_cv2().LUT(codes, _bin_table(num_points, mapping))
    return _uniform_bins(codes, num_points, mapping)


@functools.lru_cache(maxsize=8)
def _bin_table(num_points: int, mapping: str) -> np.ndarray:
    """Find the bins of all patterns of up to 8 points; looking one up is far faster."""
    patterns = np.arange(2**num_points, dtype=np.uint8)
    table = np.zeros(256, dtype=np.uint8)
    table[: len(patterns)] = _uniform_bins(patterns, num_points, mapping)
    return table


def _uniform_bins(codes: np.ndarray, num_points: int, mapping: str) -> np.ndarray:
    """Find the bins of patterns by counting ones, and changes between neighbouring points."""
    to_type = codes.dtype.type
    turned = (codes << to_type(1)) | (codes >> to_type(num_points - 1))
    turned &= to_type(2**num_points - 1)
    ones = np.bitwise_count(codes).astype(np.uint16)
    is_uniform = np.bitwise_count(codes ^ turned) <= 2  # two changes are one run
    if mapping == "rotation_invariant_uniform":
        return np.where(is_uniform, ones, num_points + 1).astype(np.uint16)
    # The one bit that follows a zero begins the run; the ones below it tell its number.
    start = np.bitwise_count((codes & ~turned) - to_type(1))
    bins = np.where(ones == num_points, 0, start) + num_points * (ones - 1) + 1
    bins[ones == 0] = 0
    bins[~is_uniform] = num_points * (num_points - 1) + 2
    return bins.astype(np.uint16)
