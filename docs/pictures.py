"""Make the pictures of `docs/features/` anew, with the features that they explain.

    python docs/pictures.py [name.png ...]

Without names all are made. What is shown is computed by cvpipe from photos that scikit-image
brings along; they are free of copyright, and the pages name their authors. Nothing is random but
what seeds decide, so equal versions of the packages make equal pictures.
"""

import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from PIL import Image, ImageOps

from cvpipe.data.images import resize_image
from cvpipe.features.bag_of_words import BagOfWords, example_patches, normalise_patches
from cvpipe.features.codebook import assign_words
from cvpipe.features.colour_histogram import ColourHistogram
from cvpipe.features.deep import DeepFeatures
from cvpipe.features.dense_descriptors import dense_descriptors
from cvpipe.features.file_facts import FILE_FACTS_COLUMNS, describe_files
from cvpipe.features.fisher_vectors import FisherVectors
from cvpipe.features.hog import HistogramOfOrientedGradients, find_slopes, split_channels
from cvpipe.features.kmeans_features import KMeansFeatures, squared_distances
from cvpipe.features.local_binary_patterns import LocalBinaryPatterns, pattern_bins, pattern_codes
from cvpipe.features.raw_pixels import RawPixels
from cvpipe.features.spatial_pyramid import pyramid_cells
from cvpipe.features.table import FEATURES
from cvpipe.features.texture import TextureEnergy, gabor_bank, padded_side
from cvpipe.models.backbones import build_backbone
from cvpipe.models.features import build_embed
from cvpipe.plots.charts import CHOSEN, INK, LINE, MISTAKE, MUTED, OTHER
from cvpipe.plots.distance import equal_distance_versions
from cvpipe.plots.features import hog_glyphs, tile_sheet
from cvpipe.plots.neighbours import neighbour_strip

FOLDER = Path(__file__).parent / "features" / "pictures"
DOTS_PER_INCH = 100
MARGIN = 8  # pixels around a sheet of pictures
GAP_PIXELS = 14  # between pictures
TITLE_PIXELS = 136  # for titles on the left
LINE_PIXELS = 15  # height of a line below a picture

# Who made a photo, and why everybody may use it, by its name in `skimage.data`.
CREDITS = {
    "astronaut": "astronaut Eileen Collins: NASA, public domain",
    "brick": "bricks: CC0 Textures, CC0",
    "camera": "man with a camera: Lav Varshney, CC0",
    "chelsea": "cat Chelsea: Stefan van der Walt, CC0",
    "coffee": "coffee: Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
    "grass": "grass: linolafett, CC0",
    "gravel": "gravel: CC0 Textures, CC0",
    "retina": "retina: Mikael Häggström, CC0",
    "rocket": "rocket: SpaceX, public domain",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the documentation.

    Attributes:
        draw: Makes the figure.
        photos: Names of the photos that it shows; see `CREDITS`.
        learned: Whether it shows what k-means, a mixture or a network found; another processor
            may find something else.
        num_colours: Of the file. All of them would take three times the bytes and look the same.
    """

    draw: Callable[[], Figure]
    photos: tuple[str, ...] = ()
    learned: bool = False
    num_colours: int = 256


@functools.cache
def whole_photo(name: str) -> Image.Image:
    """Load a photo of scikit-image in colour."""
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def photo(name: str, side: int, centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Cut the largest square out of a photo and shrink it: `uint8 (side, side, 3)`."""
    square = ImageOps.fit(whole_photo(name), (side, side), Image.Resampling.LANCZOS, 0, centre)
    return np.asarray(square)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Bring a square image to another size, as a pipeline does."""
    return resize_image(image, (side, side), "stretch")


def grey_of(image: np.ndarray) -> np.ndarray:
    """Make an image grey: `uint8 (height, width)`."""
    return np.asarray(Image.fromarray(image).convert("L"))


def darken(image: np.ndarray, share: float = 0.45, least: int = 10) -> np.ndarray:
    """Take an image as if there were less light, and less contrast."""
    return np.rint(least + share * image.astype(float)).astype(np.uint8)


def panels(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple:
    """Make a figure of so many inches with a grid of axes."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def show(axes: Axes, picture: np.ndarray, words: str = "", **options: Any) -> None:
    """Show a picture with words below it."""
    interpolation = "nearest" if len(picture) <= 64 else "antialiased"
    usual = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": interpolation}
    axes.imshow(picture, **{**usual, **options})
    bare(axes)
    axes.set_xlabel(words, fontsize=8.5, color=INK, labelpad=4)


def bare(axes: Axes) -> None:
    """Leave out what belongs to axes of numbers."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def blank(width: int, height: int) -> Figure:
    """Make a figure of so many pixels, for `place`."""
    return Figure(figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH)


def place(figure: Figure, picture: np.ndarray, left: int, top: int, words: str = "") -> Axes:
    """Show a picture pixel by pixel, its upper left corner so far from that of the figure."""
    width, height = figure.get_size_inches() * DOTS_PER_INCH
    down, across = picture.shape[:2]
    rectangle = (left / width, 1 - (top + down) / height, across / width, down / height)
    axes = figure.add_axes(rectangle)
    show(axes, picture, words, interpolation="nearest")
    return axes


def sheet(rows: Sequence[Sequence[tuple[np.ndarray, str]]]) -> Figure:
    """Lay out pictures in rows, pixel by pixel, each with words below it.

    Args:
        rows: Pictures, `uint8`, with their words, which may have several lines.
    """
    heights = [
        max(len(p) + LINE_PIXELS * (words.count("\n") + 1) for p, words in row) + GAP_PIXELS // 2
        for row in rows
    ]
    widths = [sum(p.shape[1] + GAP_PIXELS for p, _ in row) - GAP_PIXELS for row in rows]
    figure = blank(2 * MARGIN + max(widths), 2 * MARGIN + sum(heights))
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = MARGIN
        for picture, words in row:
            place(figure, picture, left, top, words)
            left += picture.shape[1] + GAP_PIXELS
        top += height
    return figure


def enlarge(picture: np.ndarray, times: int) -> np.ndarray:
    """Repeat the pixels of a picture."""
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def enlarge_all(tiles: np.ndarray, times: int) -> np.ndarray:
    """Repeat the pixels of each of many pictures."""
    return tiles.repeat(times, axis=1).repeat(times, axis=2)


def bars(axes: Axes, values: np.ndarray, colours: object, words: str, highest: float) -> None:
    """Draw a histogram with words below it."""
    axes.bar(np.arange(len(values)), values, width=1.0, color=colours)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(0, highest)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LINE)
    axes.set_xlabel(words, fontsize=8.5, color=INK, labelpad=4)


# Raw pixels


def equal_distances() -> Figure:
    """Show unlike versions of a photo, all at one L2 distance from it."""
    image = photo("chelsea", 64, (0.42, 0.4))
    versions = equal_distance_versions(image)
    named = [(v.picture, f"{v.name}\ndistance {v.distance:,.0f}") for v in versions]
    return sheet([[(enlarge(p, 2), words) for p, words in [(image, "the photo"), *named]]])


def tiny_images() -> Figure:
    """Show what raw pixels keep of a photo in two lights."""
    light = photo("astronaut", 128)
    rows = []
    for words, image in (("a photo", light), ("the same, darker", darken(light))):
        small = shrink(image, 32)
        grey = RawPixels(colour="grey").fit_transform(small[None])
        unit = RawPixels(colour="grey", normalise="unit").fit_transform(small[None])
        shown = (255 * grey, 127.5 + 127.5 * unit / np.abs(unit).max())
        levels = [np.rint(row).astype(np.uint8).reshape(32, 32) for row in shown]
        told = ("at 32x32 pixels", 'colour = "grey"', 'and normalise = "unit"')
        named = zip((small, *levels), told, strict=True)
        rows.append([(image, words), *((enlarge(p, 4), text) for p, text in named)])
    return sheet(rows)


# Colours


def colour_histograms() -> Figure:
    """Show the three histograms of a photo and of its pieces in another order."""
    image = photo("rocket", 128, (0.35, 0.5))
    shuffled = shuffle_tiles(image, 16)
    rows = ColourHistogram().fit_transform(np.stack([image, shuffled])).reshape(2, 3, -1)
    num_bins = rows.shape[2]
    steps = (np.arange(num_bins) + 0.5) / num_bins
    ones = np.ones(num_bins)
    hues = hsv_to_rgb(np.stack([steps, ones, 0.9 * ones], axis=1))
    saturations = hsv_to_rgb(np.stack([0.07 * ones, steps, 0.85 * ones], axis=1))
    greys = np.repeat(0.93 * steps[:, None], 3, axis=1)
    figure, axes = panels(8.2, 3.6, 2, 4, width_ratios=(1, 1.35, 1.35, 1.35))
    for number, (row, picture) in enumerate(zip(axes, (image, shuffled), strict=True)):
        show(row[0], picture, ("a photo", "its pieces in another order")[number])
        for ax, histogram, colours, words in zip(
            row[1:],
            rows[number],
            (hues, saturations, greys),
            ("hue, by saturation", "saturation", "value (brightness)"),
            strict=True,
        ):
            bars(ax, histogram, colours, words, 1.08 * histogram.max())
    return figure


def shuffle_tiles(image: np.ndarray, side: int) -> np.ndarray:
    """Put the square pieces of an image into another order."""
    down, across = image.shape[0] // side, image.shape[1] // side
    tiles = image.reshape(down, side, across, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    tiles = tiles[np.random.default_rng(0).permutation(len(tiles))]
    return tiles.reshape(down, across, side, side, 3).swapaxes(1, 2).reshape(image.shape)


# Local binary patterns


NUM_POINTS = 8
# Neighbours of a pixel, as 3x3 grey levels.
NEIGHBOURHOODS = {
    "even": [[90, 90, 90], [90, 90, 90], [90, 90, 90]],
    "edge": [[210, 190, 200], [195, 180, 205], [60, 70, 50]],
    "corner": [[80, 70, 60], [75, 160, 190], [90, 180, 200]],
    "bright spot": [[60, 90, 70], [80, 220, 50], [100, 70, 90]],
    "saddle": [[190, 60, 200], [180, 150, 195], [210, 70, 205]],
}
# By the number of ones: no neighbour as bright, then ever more of them, all, and no single run.
RUN_COLOURS = np.array(
    [
        *((122, 3, 64), (178, 24, 43), (224, 105, 78), (246, 170, 130), (250, 220, 190)),
        *((190, 215, 232), (120, 178, 212), (55, 128, 184), (20, 72, 128), (198, 198, 198)),
    ],
    dtype=np.uint8,
)


def binary_patterns() -> Figure:
    """Show how the neighbours of a pixel become a pattern."""
    figure, axes = panels(8.2, 3.2, 2, len(NEIGHBOURHOODS), gridspec_kw={"hspace": 0.1})
    for (name, levels), above, below in zip(NEIGHBOURHOODS.items(), *axes, strict=True):
        grey = np.array(levels, dtype=np.uint8)
        show(above, grey, "")
        for (down, across), level in np.ndenumerate(grey):
            colour = "white" if level < 128 else INK
            above.text(across, down, str(level), ha="center", va="center", color=colour, size=8)
        code = pattern_codes(grey, NUM_POINTS, 1)
        ones = [int(code[0, 0]) >> point & 1 for point in range(NUM_POINTS)]
        draw_ring(below, ones)
        number = int(pattern_bins(code, NUM_POINTS, "rotation_invariant_uniform")[0, 0])
        run = f"one run of {number}" if 0 < number < NUM_POINTS else "ones only"
        run = {0: "no one", NUM_POINTS + 1: "no single run"}.get(number, run)
        below.set_xlabel(f"{name}: {run}", fontsize=8.5, color=INK, labelpad=4)
    return figure


def draw_ring(axes: Axes, ones: Sequence[int]) -> None:
    """Draw the points around a pixel, filled where the image is at least as bright as there."""
    angles = 2 * np.pi * np.arange(len(ones)) / len(ones)
    across, up = np.cos(angles), np.sin(angles)
    axes.scatter(
        across, up, s=90, c=[CHOSEN if one else "white" for one in ones], edgecolors=INK, zorder=2
    )
    axes.scatter(0, 0, s=16, color=MUTED)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.3, 1.3), aspect="equal")
    bare(axes)


def textures() -> Figure:
    """Show surfaces, the pattern of each of their pixels, and how often each occurs."""
    images = {name: photo(name, 512)[:64, :64] for name in ("brick", "grass", "gravel")}
    images["the same, darker"] = darken(images["gravel"])
    figure, axes = panels(7.2, 5.0, 3, len(images), height_ratios=(1, 1, 0.55))
    mapping = "rotation_invariant_uniform"
    feature = LocalBinaryPatterns(mapping=mapping, grid=1)
    for (name, image), column in zip(images.items(), axes.T, strict=True):
        codes = pattern_codes(np.ascontiguousarray(image[:, :, 0]), NUM_POINTS, 1)
        show(column[0], image, name)
        show(column[1], RUN_COLOURS[pattern_bins(codes, NUM_POINTS, mapping)], "its patterns")
        (row,) = feature.fit_transform(image[None])
        bars(column[2], row, RUN_COLOURS / 255, "0 to 8 ones in a run, others", 0.4)
    return figure


# Texture energy


def texture_energies() -> Figure:
    """Show the strength of stripes of each width and direction in a photo, below such stripes."""
    grid, side = 16, 128
    feature = TextureEnergy(grid=grid)
    image = photo("astronaut", side)
    (row,) = feature.fit_transform(image[None])
    energies = row.reshape(grid, grid, feature.num_scales, feature.num_orientations)
    waves = gabor_waves(side, feature)
    figure, axes = panels(7.6, 5.6, feature.num_scales + 1, feature.num_orientations + 1)
    show(axes[0, 0], grey_of(image))
    for direction, ax in enumerate(axes[0, 1:]):
        show_wave(ax, waves[1, direction])
    for scale, line in enumerate(axes[1:]):
        show_wave(line[0], waves[scale, 0])
        line[0].set_ylabel(f"{4 * 2**scale} pixels", fontsize=8.5, color=INK)
        largest = energies[:, :, scale].max()
        for direction, ax in enumerate(line[1:]):
            show(ax, energies[:, :, scale, direction], vmax=largest, cmap="magma")
    return figure


def gabor_waves(side: int, feature: TextureEnergy) -> np.ndarray:
    """Compute what the filters look like: `(scales, orientations, padded, padded)`, centred."""
    padded = padded_side(side, feature.num_scales)
    waves = np.zeros((feature.num_scales, feature.num_orientations, padded, padded))
    bank = gabor_bank((side, side), feature.num_scales, feature.num_orientations, feature.grid)
    for scale, filters in enumerate(bank):
        for direction, (places, weights) in enumerate(
            zip(filters.places, filters.weights, strict=True)
        ):
            spectrum = np.zeros(padded**2, dtype=complex)
            # Without the phases, which only say where the first sample lies.
            spectrum[places.ravel()] = np.abs(weights).ravel()
            wave = np.fft.ifft2(spectrum.reshape(padded, padded)).real
            waves[scale, direction] = np.fft.fftshift(wave)
    return waves


def show_wave(axes: Axes, wave: np.ndarray) -> None:
    """Show the middle of a filter: mid-grey is zero."""
    start, largest = len(wave) // 2 - 32, wave.max()
    show(axes, wave[start : start + 64, start : start + 64], vmin=-largest, vmax=largest)


# Histogram of oriented gradients


def hog_glyphs_of_photo() -> Figure:
    """Show the edges that HOG keeps of a photo, at two sizes of cells."""
    large = photo("coffee", 208)
    image = shrink(large, 128)
    shown = [(large, "a photo")]
    for cell_pixels, drawn in ((8, 13), (16, 26)):
        hog = HistogramOfOrientedGradients(cell_pixels=cell_pixels)
        (strengths,) = hog.cell_strengths(hog.fit_transform(image[None]))
        words = f"{len(strengths)}x{len(strengths)} cells of {cell_pixels} pixels"
        glyphs = hog_glyphs(strengths, drawn) // 32 * 32  # fewer levels, half the bytes
        shown.append((glyphs, words))
    return sheet([shown])


def hog_cell() -> Figure:
    """Show how the gradients of one cell become a histogram, and the histogram a star."""
    side, row, column = 8, 3, 9
    image = photo("coffee", 128)
    inside = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
    (greys,) = split_channels(image[None], "grey")
    (down,), (right,) = find_slopes(greys.astype(np.int32))
    hog = HistogramOfOrientedGradients(cell_pixels=side, block_cells=1, colour="grey")
    strengths = hog.cell_strengths(hog.fit_transform(image[None]))[0, row, column]
    figure, axes = panels(8.2, 1.95, 1, 5, width_ratios=(1, 1, 1, 1.2, 1))
    show(axes[0, 0], image, "one cell of a photo")
    corner = (column * side - 0.5, row * side - 0.5)
    axes[0, 0].add_patch(Rectangle(corner, side, side, fill=False, color="white", linewidth=1.5))
    pixels = greys[0][inside]
    full = {"vmin": pixels.min(), "vmax": pixels.max()}
    show(axes[0, 1], pixels, "its 8x8 pixels", **full)
    show(axes[0, 2], pixels, "gradients, dark to bright", alpha=0.4, **full)
    places = np.arange(side)
    axes[0, 2].quiver(
        places, places, right[inside], down[inside], angles="xy", color=INK, width=0.012,
        pivot="mid",
    )  # fmt: skip
    bars(axes[0, 3], strengths, CHOSEN, "strength by direction", 1.08 * strengths.max())
    axes[0, 3].set_xticks([0, 4, 8], ["10°", "90°", "170°"], fontsize=7, color=MUTED)
    axes[0, 3].tick_params(length=0, pad=2)
    show(axes[0, 4], hog_glyphs(strengths[None, None], 96), "edges run across")
    return figure


# Bag of words


@functools.cache
def crops(side: int, names: tuple[str, ...], per_photo: int = 24) -> np.ndarray:
    """Cut squares out of photos at random: `uint8 (n, side, side, 3)`."""
    rng = np.random.default_rng(0)
    cut = []
    for name in names:
        scale = 3.2 * side / min(whole_photo(name).size)
        size = [round(scale * length) for length in whole_photo(name).size]
        small = np.asarray(whole_photo(name).resize(size, Image.Resampling.LANCZOS))
        for _ in range(per_photo):
            top, left = rng.integers(0, np.array(small.shape[:2]) - side + 1)
            cut.append(small[top : top + side, left : left + side])
    return np.stack(cut)


LEARNED_FROM = ("astronaut", "brick", "chelsea", "coffee", "retina", "rocket")


def words_of_patches() -> Figure:
    """Show the words of random patches, and examples of words of gradient histograms."""
    images = crops(64, LEARNED_FROM)
    bag = BagOfWords(descriptor="patches", num_words=120, num_samples=20_000).fit(images)
    tiles = tile_sheet(bag.word_tiles(), 10)
    sifts = BagOfWords(num_words=64, cell_pixels=(4,), num_samples=20_000).fit(images)
    examples = example_patches(sifts, images, 6)
    contrasts = examples.std(axis=(2, 3)).mean(axis=(1, 2))
    examples = examples[np.argsort(-contrasts)[:16]]
    lines = np.stack([tile_sheet(patches, 6) for patches in examples])
    words = tile_sheet(enlarge_all(lines, 2), 2, 8)
    told = ("120 words of patches of 8x8 pixels", "16 words of SIFT, six patches of each")
    return sheet([list(zip((enlarge(tiles, 3), words), told, strict=True))])


@functools.cache
def few_words() -> BagOfWords:
    """Learn so few words of patches that each can be followed by eye."""
    bag = BagOfWords("patches", 12, 8, levels=3, weighting="none", norm="l1", num_samples=20_000)
    return bag.fit(crops(128, LEARNED_FROM))


def word_map() -> Figure:
    """Show two photos, their patches replaced by words, and how often each word occurs."""
    bag, side = few_words(), 128
    tiles = bag.word_tiles()
    colours = tiles.mean(axis=(1, 2)) / 255
    figure, axes = panels(7.4, 4.2, 2, 3, width_ratios=(1, 1, 1.5))
    for row, name in zip(axes, ("chelsea", "coffee"), strict=True):
        image = photo(name, side, (0.42, 0.4))
        (descriptors,) = bag.descriptors(image[None])
        words = assign_words(descriptors, bag.words_)
        written = np.zeros_like(image)
        for (top, left, _), word in zip(bag.patches((side, side)), words, strict=True):
            written[top : top + 8, left : left + 8] = tiles[word]
        show(row[0], image, "a photo in patches of 8x8 pixels")
        show(row[1], written, "each replaced by its word", interpolation="nearest")
        shares = np.bincount(words, minlength=len(tiles)) / len(words)
        bars(row[2], shares, colours, "how often each word occurs", 1.05 * shares.max())
        label_with_tiles(row[2], tiles)
    return figure


def label_with_tiles(axes: Axes, tiles: np.ndarray) -> None:
    """Put the picture of a word below each bar."""
    for number, tile in enumerate(tiles):
        inset = axes.inset_axes(((number + 0.05) / len(tiles), -0.12, 0.9 / len(tiles), 0.11))
        inset.imshow(tile, aspect="auto")
        bare(inset)
    axes.xaxis.labelpad = 22


def spatial_pyramid() -> Figure:
    """Show the cells of a pyramid on a photo, and the words counted in each."""
    bag, side = few_words(), 128
    image = photo("coffee", side)
    (row,) = bag.transform(image[None])
    colours = bag.word_tiles().mean(axis=(1, 2)) / 255
    cells = pyramid_cells(bag.levels)
    figure, axes = panels(5.6, 3.9, 2, bag.levels)
    for level, (above, below) in enumerate(axes.T):
        per_side = 2**level
        show(above, image, f"level {level}: {per_side**2} cell{'s' * (level > 0)}")
        for line in np.arange(1, per_side) * side / per_side - 0.5:
            above.axhline(line, color="white", linewidth=1.2)
            above.axvline(line, color="white", linewidth=1.2)
        below.set_aspect("equal")
        bare(below)
        below.set_xlabel("the words in each", fontsize=8.5, color=INK, labelpad=4)
        counts = row.reshape(len(cells), -1)[cells[:, 0] == level]
        for (_, down, across), shares in zip(cells[cells[:, 0] == level], counts, strict=True):
            size = 1 / per_side
            lower_left = (across * size, 1 - (down + 1) * size)
            inset = below.inset_axes((*lower_left, 0.94 * size, 0.94 * size))
            bars(inset, shares, colours, "", 1.05 * counts.max())
    return figure


# K-means features


def words_of_kmeans() -> Figure:
    """Show k-means words of grey and of coloured patches."""
    images = crops(64, LEARNED_FROM)
    shown = []
    for colour in ("grey", "colour"):
        feature = KMeansFeatures(num_words=140, colour=colour, num_samples=40_000).fit(images)
        tiles = tile_sheet(enlarge_all(feature.word_tiles(), 4), 14, 3)
        shown.append((tiles, f'140 words, colour = "{colour}"'))
    return sheet([shown])


def triangle() -> Figure:
    """Show how far a patch is from each of a few words, and what it says of them."""
    feature = KMeansFeatures(num_words=16, num_samples=20_000).fit(crops(64, LEARNED_FROM))
    side = feature.patch_pixels
    patch = grey_of(photo("coffee", 64))[6 : 6 + side, 23 : 23 + side]
    whitened = (normalise_patches(patch[None]) - feature.mean_) @ feature.whitening_
    (distances,) = np.sqrt(squared_distances(whitened, feature.words_))
    activations = np.maximum(distances.mean() - distances, 0)
    figure, axes = panels(8.2, 2.0, 1, 3, width_ratios=(0.65, 2, 2))
    show(axes[0, 0], patch, "a 6x6 patch", vmin=patch.min(), vmax=patch.max())
    bars(axes[0, 1], distances, OTHER, "its distance from each word; line: the mean", 9)
    axes[0, 1].axhline(distances.mean(), color=INK, linewidth=1.2)
    bars(axes[0, 2], activations, CHOSEN, "what it says of each: how much nearer than the mean", 5)
    for ax in axes[0, 1:]:
        label_with_tiles(ax, feature.word_tiles())
    return figure


# Fisher vectors


def fisher_vector() -> Figure:
    """Show a mixture in two dimensions, and how the descriptors of two photos would move it."""
    images = crops(128, LEARNED_FROM)
    feature = FisherVectors(
        num_gaussians=4, num_dimensions=2, places=False, step_pixels=8, num_samples=20_000
    ).fit(images)
    shape = (2, *feature.means_.shape)
    figure, axes = panels(8.2, 2.3, 1, 5, width_ratios=(1.5, 1, 1.5, 1, 1.5))
    draw_mixture(axes[0, 0], feature, images[::3], "all patches and Gaussians")
    for number, name in enumerate(("coffee", "brick")):
        image = photo(name, 128, (0.42, 0.4))
        left, right = axes[0, 1 + 2 * number : 3 + 2 * number]
        show(left, image, "a photo")
        draw_mixture(right, feature, image[None], "where its patches pull them")
        (row,) = feature.transform(image[None]).astype(np.float64)
        # The signed square root is undone, and the scale is that of the figure.
        by_mean = (np.sign(row) * row**2).reshape(shape)[0]
        arrows = by_mean / np.abs(by_mean).max() * 0.35
        right.quiver(
            *feature.means_.T, *arrows.T, angles="xy", scale_units="xy", scale=1, color=MISTAKE,
            width=0.02, zorder=3,
        )  # fmt: skip
    return figure


def draw_mixture(axes: Axes, feature: FisherVectors, images: np.ndarray, words: str) -> None:
    """Draw the descriptors of images as dots, and the Gaussians as ellipses."""
    descriptors = dense_descriptors(images, feature.step_pixels, feature.cell_pixels)
    descriptors = descriptors.reshape(-1, descriptors.shape[2])
    descriptors = descriptors[descriptors.any(axis=1)]
    points = (descriptors - feature.centre_) @ feature.axes_
    size = 7 if len(images) == 1 else 1.5
    axes.scatter(*points.T, s=size, color=OTHER, alpha=0.5, linewidths=0, rasterized=True)
    for mean, variance in zip(feature.means_, feature.variances_, strict=True):
        width, height = 4 * np.sqrt(variance)  # two standard deviations to each side
        ellipse = Ellipse(mean, width, height, fill=False, color=CHOSEN, linewidth=1.4)
        axes.add_patch(ellipse)
    axes.set(xlim=(-0.62, 0.62), ylim=(-0.62, 0.62), aspect="equal")
    bare(axes)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(LINE)
    axes.set_xlabel(words, fontsize=8.5, color=INK, labelpad=4)


# What is alike


PIECES_PER_SIDE = 3
NUM_NEIGHBOURS = 4
COMPARED = (
    *("raw_pixels", "colour_histogram", "hog", "local_binary_patterns", "texture_energy"),
    *("bag_of_words", "kmeans_features"),
)


def pieces(side: int) -> np.ndarray:
    """Cut every photo into 3x3 square pieces: `uint8 (n, side, side, 3)`."""
    cut = [photo(name, PIECES_PER_SIDE * side) for name in CREDITS]
    shape = (len(cut), PIECES_PER_SIDE, side, PIECES_PER_SIDE, side, 3)
    return np.stack(cut).reshape(shape).swapaxes(2, 3).reshape(-1, side, side, 3)


def nearest_pieces(rows: np.ndarray, piece: int) -> np.ndarray:
    """Find the pieces whose rows are nearest to that of a piece, by L2."""
    distances = np.linalg.norm(rows.astype(np.float64) - rows[piece], axis=1)
    order = np.argsort(distances, kind="stable")
    return order[order != piece][:NUM_NEIGHBOURS]


def described_pieces(name: str) -> np.ndarray:
    """Describe the pieces by a feature that has a name, learned from them where it learns."""
    feature = FEATURES[name]
    images = pieces(feature.image_size[0])
    return feature.build().fit(images).transform(images)


def embedded_pieces() -> np.ndarray:
    """Describe the pieces by the frozen features of a backbone."""
    embed = build_embed(build_backbone("efficientnet_lite0"))
    return DeepFeatures(embed).fit_transform(pieces(224))


def neighbours(rows_by_title: dict[str, np.ndarray], queries: Sequence[int], side: int) -> Figure:
    """Show the nearest pieces of some pieces, below them, in one space after the other."""
    shown, per_photo = pieces(side), PIECES_PER_SIDE**2
    strips = []
    for rows in rows_by_title.values():
        near = [nearest_pieces(rows, query) for query in queries]
        right = [n // per_photo == q // per_photo for n, q in zip(near, queries, strict=True)]
        strips.append([neighbour_strip(shown[n], r) for n, r in zip(near, right, strict=True)])
    titles = ["nearest to", *rows_by_title]
    lines = [[shown[query] for query in queries], *strips]
    height, width = strips[0][0].shape[:2]
    figure = blank(
        MARGIN + TITLE_PIXELS + len(queries) * (width + GAP_PIXELS),
        MARGIN + len(lines) * (height + GAP_PIXELS),
    )
    for number, (title, line) in enumerate(zip(titles, lines, strict=True)):
        top = MARGIN + number * (height + GAP_PIXELS)
        for column, picture in enumerate(line):
            left = MARGIN + TITLE_PIXELS + column * (width + GAP_PIXELS)
            axes = place(figure, picture, left, top)
            if not column:
                axes.set_ylabel(title, fontsize=8.5, color=INK, rotation=0, ha="right", va="center")
    return figure


def what_is_alike() -> Figure:
    """Show what several features take for alike."""
    rows = {name: described_pieces(name) for name in COMPARED}
    return neighbours(rows, (58, 36), 40)


def deep_neighbours() -> Figure:
    """Show the nearest pieces by pixels, by HOG and by deep features."""
    rows = {"pixels": described_pieces("raw_pixels"), "HOG": described_pieces("hog")}
    return neighbours(rows | {"deep features": embedded_pieces()}, (0, 40), 48)


# Facts of files


def same_photo_three_files() -> Figure:
    """Show what three files of one photo say about themselves."""
    large = whole_photo("chelsea")
    small = large.resize((300, 200), Image.Resampling.LANCZOS)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("cat.png", "cat.jpg", "small.jpg")]
        for path, image in zip(paths, (large, large, small), strict=True):
            image.save(path)
        rows = describe_files(paths).astype(int)
    shown = []
    thumbnail = np.asarray(large.resize((180, 120), Image.Resampling.LANCZOS))
    for path, row in zip(paths, rows, strict=True):
        facts = dict(zip(FILE_FACTS_COLUMNS, row.tolist(), strict=True))
        lines = [f"{name} {value:,}" for name, value in facts.items() if value]
        shown.append((thumbnail, "\n".join([path.name, *lines])))
    return sheet([shown])


# Writing


PICTURES = {
    "what_is_alike.png": Picture(what_is_alike, tuple(CREDITS), learned=True, num_colours=64),
    "equal_distances.png": Picture(equal_distances, ("chelsea",)),
    "tiny_images.png": Picture(tiny_images, ("astronaut",)),
    "colour_histograms.png": Picture(colour_histograms, ("rocket",)),
    "hog_glyphs.png": Picture(hog_glyphs_of_photo, ("coffee",)),
    "hog_cell.png": Picture(hog_cell, ("coffee",)),
    "binary_patterns.png": Picture(binary_patterns),
    "textures.png": Picture(textures, ("brick", "grass", "gravel")),
    "texture_energies.png": Picture(texture_energies, ("astronaut",)),
    "word_map.png": Picture(word_map, LEARNED_FROM, learned=True),
    "words_of_patches.png": Picture(words_of_patches, LEARNED_FROM, learned=True),
    "spatial_pyramid.png": Picture(spatial_pyramid, LEARNED_FROM, learned=True),
    "words_of_kmeans.png": Picture(words_of_kmeans, LEARNED_FROM, learned=True),
    "triangle.png": Picture(triangle, LEARNED_FROM, learned=True),
    "fisher_vector.png": Picture(fisher_vector, LEARNED_FROM, learned=True),
    "deep_neighbours.png": Picture(deep_neighbours, tuple(CREDITS), learned=True),
    "same_photo_three_files.png": Picture(same_photo_three_files, ("chelsea",)),
}


def write(name: str, folder: Path) -> Path:
    """Draw a picture and write it into a folder."""
    figure = PICTURES[name].draw()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture = picture.quantize(
        PICTURES[name].num_colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    path = folder / name
    picture.save(path, optimize=True)
    return path


def main(names: Sequence[str]) -> None:
    """Write the pictures of these names, or all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or PICTURES:
        write(name, FOLDER)


if __name__ == "__main__":
    main(sys.argv[1:])
