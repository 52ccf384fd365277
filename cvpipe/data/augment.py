"""Draw how an image is changed for training, and apply what was drawn.

Drawing and applying are separate. `draw_view` turns settings and a key into a `View`: plain
numbers that can be stored, shown and used as a cache key. `apply_view` turns an image and a view
into pixels and draws nothing. A key names the seed, the epoch and the image, so what is drawn
does not depend on the order of the images, the batches or the number of threads.

What is drawn are the bits of a hash of the key, not numbers of a generator: a view is the same
with every version of NumPy, and every setting has numbers of its own, so switching one off leaves
the draws of all others as they were.
"""

import functools
import hashlib
import math
import os
import struct
from statistics import NormalDist
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from cvpipe.data.images import Fit, resize_image
from cvpipe.opencv import import_cv2
from cvpipe.sections import AugmentSection

# Shares of the image's area that are erased, and the aspect ratios (Zhong et al., section 3.1,
# with the upper bound halved: small findings fill small areas).
ERASED_AREA = (0.02, 0.2)
ERASED_RATIO = (0.3, 1 / 0.3)
# The weights of red, green and blue in a grey value (ITU-R 601-2).
GREY_WEIGHTS = (0.299, 0.587, 0.114)
VIEW_RULE = "views-1"  # raised whenever the same settings and key give other pixels
NUM_DRAWS = 32
_DRAWS = struct.Struct(f"<{NUM_DRAWS}Q")


class View(NamedTuple):
    """What happens to one image, in the order in which it happens.

    From `degrees` to `shear_degrees` it is one interpolation, in which the slant comes first.

    Attributes:
        box: Top, left, height and width of the part that is shown, in pixels of the upright
            image. Empty: the whole image, brought to size as for evaluation.
        moved: Down and to the right, in whole pixels of the final size.
        mirrored: Left and right exchanged.
        flipped: Top and bottom exchanged.
        quarter_turns: Turned by this many times 90 degrees counter-clockwise.
        degrees: Turned counter-clockwise.
        shifts: Down and to the right, as shares of the height and width.
        scale: Enlarged by this factor.
        shear_degrees: Slanted by this angle.
        brightness: Factor.
        contrast: Factor.
        saturation: Factor.
        light: Added to red, green and blue, in grey levels.
        hue: Turn of the colour circle, in turns; a multiple of 1/180.
        blur: Standard deviation in pixels.
        noise: Standard deviation in grey levels.
        noise_seed: Where the noise starts.
        erased: Top, left, height and width of the covered part, as shares; empty: nothing.
    """

    box: tuple[int, ...] = ()
    moved: tuple[int, int] = (0, 0)
    mirrored: bool = False
    flipped: bool = False
    quarter_turns: int = 0
    degrees: float = 0.0
    shifts: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    shear_degrees: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    light: tuple[float, ...] = ()
    hue: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0
    erased: tuple[float, ...] = ()


UNCHANGED = View()


def view_key(seed: int, epoch: int, image_id: str) -> str:
    """Name a view: what is drawn for it depends on this text and the settings alone.

    Args:
        seed: Start of every random draw.
        epoch: Counted from 0.
        image_id: Key of the image.
    """
    return f"{seed}/{epoch}/{image_id}"


def uniform_draws(key: str) -> list[float]:
    """Make numbers in [0, 1) from a text, the same on every machine.

    Example:
        >>> first, second = uniform_draws("0/0/a.jpg"), uniform_draws("0/0/b.jpg")
        >>> len(first), first[:2] == second[:2]
        (32, False)
    """
    digest = hashlib.shake_128(key.encode("utf-8", "surrogateescape")).digest(_DRAWS.size)
    # 53 bits, so that the largest number stays below 1 as a float.
    return [(bits >> 11) * 2.0**-53 for bits in _DRAWS.unpack(digest)]


def draw_view(
    settings: AugmentSection,
    key: str,
    size: tuple[int, int],
    image_size: tuple[int, int],
    fit: Fit,
    colour_axes: np.ndarray | None = None,
) -> View:
    """Draw a view of an image.

    Args:
        settings: How much may be changed.
        key: See `view_key`.
        size: `(height, width)` of the upright image in pixels.
        image_size: `(height, width)` of what is shown.
        fit: How evaluation brings the image to that size; a crop keeps the aspect ratio of it.
        colour_axes: For `colour_pca`: the principal axes of the training images' colours as
            columns, each as long as its standard deviation in grey levels; `(3, 3)`.

    References:
        Crop: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6. Departure:
        the aspect ratio is drawn from what fits into the image instead of drawing again, which
        would make large crops rare. Colour jitter along axes: Krizhevsky, Sutskever and Hinton,
        "ImageNet classification with deep convolutional neural networks", 2012, section 4.1.
        Erasing: Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """
    u = uniform_draws(key)
    box: tuple[int, ...] = ()
    moved = (0, 0)
    if settings.crop == "resized":
        box = _draw_box(settings, u, size, image_size, fit)
    elif settings.crop == "padded":
        down, right = (int(settings.padding * side) for side in image_size)
        moved = int(u[2] * (2 * down + 1)) - down, int(u[3] * (2 * right + 1)) - right
    erased: tuple[float, ...] = ()
    if u[25] < settings.erasing:
        erased = _draw_erased(u[26:30])
    light: tuple[float, ...] = ()
    if settings.colour_pca and colour_axes is not None:
        strengths = [settings.colour_pca * _normal(value) for value in u[11:14]]
        light = tuple((colour_axes @ strengths).tolist())
    return View(
        box=box,
        moved=moved,
        mirrored=u[4] < settings.horizontal_flip,
        flipped=u[5] < settings.vertical_flip,
        quarter_turns=int(4 * u[6]) if settings.quarter_turns else 0,
        degrees=_spread(u[14], settings.rotation_degrees),
        shifts=(_spread(u[15], settings.shift), _spread(u[16], settings.shift)),
        # As often half as large as twice.
        scale=(1 + settings.zoom) ** _spread(u[17], 1.0),
        shear_degrees=_spread(u[18], settings.shear_degrees),
        brightness=1 + _spread(u[7], settings.brightness),
        contrast=1 + _spread(u[8], settings.contrast),
        saturation=1 + _spread(u[9], settings.saturation),
        light=light,
        hue=round(180 * _spread(u[10], settings.hue)) / 180,
        blur=u[22] * settings.blur_pixels,
        noise=u[23] * settings.noise_levels,
        noise_seed=int(u[24] * 2**32) if settings.noise_levels or erased else 0,
        erased=erased,
    )


def _spread(value: float, limit: float) -> float:
    """Bring a number from [0, 1) to [-limit, limit)."""
    return (2 * value - 1) * limit if limit else 0.0


def _normal(value: float) -> float:
    return NormalDist().inv_cdf(max(value, 2.0**-53))


def _draw_box(
    settings: AugmentSection,
    u: list[float],
    size: tuple[int, int],
    image_size: tuple[int, int],
    fit: Fit,
) -> tuple[int, int, int, int]:
    height, width = size
    # Width over height of a crop that changes no shape which evaluation shows.
    shown = width / height if fit == "stretch" else image_size[1] / image_size[0]
    narrowest, widest = shown / settings.max_stretch, shown * settings.max_stretch
    least = settings.min_area * height * width
    # The allowed shape that is closest to the image's own has the largest crop.
    closest = min(max(width / height, narrowest), widest)
    most = max(least, min(height**2 * closest, width**2 / closest))
    area = least + (most - least) * u[0]
    low, high = max(narrowest, area / height**2), min(widest, width**2 / area)
    if low > high:  # the smallest crop fits in no allowed shape: the nearest one in which it does
        low = high = min(max(shown, area / height**2), width**2 / area)
    ratio = low * (high / low) ** u[1]
    box_height = min(height, max(1, round(math.sqrt(area / ratio))))
    box_width = min(width, max(1, round(math.sqrt(area * ratio))))
    top = int(u[2] * (height - box_height + 1))
    left = int(u[3] * (width - box_width + 1))
    return top, left, box_height, box_width


def _draw_erased(u: list[float]) -> tuple[float, float, float, float]:
    area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * u[0]
    ratio = ERASED_RATIO[0] * (ERASED_RATIO[1] / ERASED_RATIO[0]) ** u[1]
    height, width = min(1.0, math.sqrt(area / ratio)), min(1.0, math.sqrt(area * ratio))
    return u[2] * (1 - height), u[3] * (1 - width), height, width


def stored_size(settings: AugmentSection, image_size: tuple[int, int]) -> tuple[int, int]:
    """Choose the size at which decoded images are kept for views of a size.

    Example:
        >>> stored_size(AugmentSection(crop="resized"), (224, 224))
        (256, 256)
        >>> stored_size(AugmentSection(), (224, 224))
        (224, 224)
    """
    if settings.crop != "resized":
        return image_size
    height, width = image_size  # 256 for 224, the pair of sizes that the lectures use
    return math.ceil(height * 8 / 7), math.ceil(width * 8 / 7)


def apply_view(
    image: np.ndarray,
    view: View,
    image_size: tuple[int, int],
    fit: Fit,
    fused: bool = True,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Make the pixels of a view.

    Args:
        image: `uint8` array of shape `(height, width, 3)`, upright.
        view: What happens to it; its box in pixels of this image.
        image_size: Wanted `(height, width)`.
        fit: How an image without a box is brought to the size.
        fused: See `cvpipe.sections.AugmentSection`.
        out: Array to write into; a new one where it is left out.

    Returns:
        `uint8` array of shape `(*image_size, 3)`.
    """
    height, width = image_size
    # A turn by 90 degrees comes after the crop, so the crop is made lying.
    lying = (width, height) if view.quarter_turns % 2 else image_size
    picture = _crop(image, view, lying, fit)
    picture = _turn(picture, view)
    picture = _warp(picture, view)
    result = np.empty((height, width, 3), dtype=np.uint8) if out is None else out
    picture = _recolour(picture, view, fused, result)
    picture = _degrade(picture, view)
    if picture is not result:
        np.copyto(result, picture)
    return result


def _crop(image: np.ndarray, view: View, size: tuple[int, int], fit: Fit) -> np.ndarray:
    if view.box:
        top, left, height, width = view.box
        return resize_crop(image[top : top + height, left : left + width], size)
    picture = image if image.shape[:2] == size else resize_image(image, size, fit)
    down, right = view.moved
    if not (down or right):
        return picture
    pad = ((max(0, down), max(0, -down)), (max(0, right), max(0, -right)), (0, 0))
    padded = np.pad(picture, pad, mode="reflect")
    top, left = max(0, -down), max(0, -right)
    return padded[top : top + size[0], left : left + size[1]]


def resize_crop(crop: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Bring a part of an image to a size, quickly and with little aliasing.

    Halved by averages of 2x2 pixels as long as both sides stay large enough, then interpolated
    bilinearly. An exact average over areas would take seven times as long; only what is to shrink
    in one direction alone, to a third or less, is worth it.

    Args:
        crop: `uint8` array of shape `(height, width, 3)`, which may be a view.
        image_size: Wanted `(height, width)`.
    """
    cv2 = import_cv2()
    height, width = image_size
    while crop.shape[0] >= 2 * height and crop.shape[1] >= 2 * width:
        half = (crop.shape[1] // 2, crop.shape[0] // 2)
        even = crop[: 2 * half[1], : 2 * half[0]]  # only of even sides are averages exact
        crop = cv2.resize(even, half, interpolation=cv2.INTER_AREA)
    if max(crop.shape[0] / height, crop.shape[1] / width) >= 3:
        # Only sides that shrink: where one grows, OpenCV does not average.
        smaller = (min(width, crop.shape[1]), min(height, crop.shape[0]))
        crop = cv2.resize(crop, smaller, interpolation=cv2.INTER_AREA)
    return cv2.resize(crop, (width, height), interpolation=cv2.INTER_LINEAR)


def _turn(picture: np.ndarray, view: View) -> np.ndarray:
    cv2 = import_cv2()
    if view.mirrored or view.flipped:
        direction = -1 if view.mirrored and view.flipped else int(view.mirrored)
        picture = cv2.flip(picture, direction)
    return np.rot90(picture, view.quarter_turns) if view.quarter_turns else picture


def _warp(picture: np.ndarray, view: View) -> np.ndarray:
    if (view.degrees, view.shifts, view.scale, view.shear_degrees) == (0.0, (0.0, 0.0), 1.0, 0.0):
        return picture
    cv2 = import_cv2()
    height, width = picture.shape[:2]
    matrix = affine_matrix(view, height, width)
    return _albumentations().warp_affine(
        np.ascontiguousarray(picture), matrix, cv2.INTER_LINEAR, 0, cv2.BORDER_REFLECT_101,
        (height, width),
    )  # fmt: skip


def affine_matrix(view: View, height: int, width: int) -> np.ndarray:
    """Turn, slant, scale and shift about the centre: where a pixel (x, y, 1) goes, `(3, 3)`."""
    angle = math.radians(view.degrees)
    slant = math.tan(math.radians(view.shear_degrees))
    cos, sin = view.scale * math.cos(angle), view.scale * math.sin(angle)
    # Counter-clockwise for a person, whose y axis points up: the image's points down.
    turn = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1.0, slant], [0.0, 1.0]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre - turn @ centre + [view.shifts[1] * width, view.shifts[0] * height]
    return np.vstack([np.column_stack([turn, offset]), [0.0, 0.0, 1.0]])


def _recolour(picture: np.ndarray, view: View, fused: bool, out: np.ndarray) -> np.ndarray:
    if (view.brightness, view.contrast, view.saturation) != (1.0, 1.0, 1.0) or view.light:
        picture = np.ascontiguousarray(picture)
        picture = colour_by_matrix(picture, view, out) if fused else colour_by_steps(picture, view)
    if view.hue:
        # It cuts 180 times the turn down to a whole number, which rounding must not lower.
        picture = _albumentations().adjust_hue(np.ascontiguousarray(picture), view.hue + 1e-6)
    return picture


def colour_by_matrix(picture: np.ndarray, view: View, out: np.ndarray | None = None) -> np.ndarray:
    """Change brightness, contrast, saturation and light at once, rounding and clipping once.

    With the factors b, c, s and the grey value g, the three steps x b, x c + (1 - c) b mean(g)
    and x s + (1 - s) g are linear in the colours, so their product is one matrix.

    Args:
        picture: `uint8` array of shape `(height, width, 3)`.
        view: What to change.
        out: Array to write into; a new one where it is left out.
    """
    cv2 = import_cv2()
    factor = view.brightness * view.contrast
    offset = 0.0
    if view.contrast != 1.0:
        sums = cv2.reduce(picture, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).sum(axis=(0, 1)).tolist()
        grey = sum(weight * total for weight, total in zip(GREY_WEIGHTS, sums, strict=True))
        mean = grey / (picture.shape[0] * picture.shape[1])
        offset = (1 - view.contrast) * view.brightness * mean
    own, mixed = factor * view.saturation, factor * (1 - view.saturation)
    light = view.light or (0.0, 0.0, 0.0)
    red, green, blue = (mixed * weight for weight in GREY_WEIGHTS)
    # Plain numbers: calls of NumPy on arrays this small would take as long as the change itself.
    rows = (
        (own + red, green, blue, offset + light[0]),
        (red, own + green, blue, offset + light[1]),
        (red, green, own + blue, offset + light[2]),
    )
    return cv2.transform(picture, np.array(rows, dtype=np.float32), dst=out)


def colour_by_steps(picture: np.ndarray, view: View) -> np.ndarray:
    """Change brightness, contrast and saturation one after the other, as albumentations does."""
    steps = _albumentations()
    picture = steps.adjust_brightness(picture, view.brightness)
    picture = steps.adjust_contrast(picture, view.contrast)
    picture = steps.adjust_saturation(picture, view.saturation)
    if view.light:
        changed = picture.astype(np.float32) + np.array(view.light, dtype=np.float32)
        picture = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return picture


def _degrade(picture: np.ndarray, view: View) -> np.ndarray:
    if view.blur:
        cv2 = import_cv2()
        picture = cv2.GaussianBlur(np.ascontiguousarray(picture), (0, 0), view.blur)
    if view.noise:
        noise = np.random.default_rng(view.noise_seed).standard_normal(picture.shape, np.float32)
        changed = np.rint(picture + view.noise * noise)
        picture = np.clip(changed, 0, 255).astype(np.uint8)
    if view.erased:
        height, width = picture.shape[:2]
        top, left, rows, columns = view.erased
        covered = (
            slice(int(top * height), math.ceil((top + rows) * height)),
            slice(int(left * width), math.ceil((left + columns) * width)),
        )
        picture = picture.copy()
        rng = np.random.default_rng([view.noise_seed, 1])  # not the bits of the noise above
        # Noise rather than one grey value, which could itself become a mark to learn.
        shape = (*picture[covered].shape[:2], 1)
        picture[covered] = rng.integers(0, 256, shape, dtype=np.uint8)
    return picture


@functools.cache
def _albumentations() -> SimpleNamespace:
    """The pixel functions of albumentations; imported late, because that takes half a second."""
    # It would ask the network for a newer version, which has another licence.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from albumentations.augmentations.geometric import functional as geometry
    from albumentations.augmentations.pixel import functional as pixel

    import_cv2().setNumThreads(0)  # its import turns them on again
    return SimpleNamespace(
        warp_affine=geometry.warp_affine,
        adjust_brightness=pixel.adjust_brightness_torchvision,
        adjust_contrast=pixel.adjust_contrast_torchvision,
        adjust_saturation=pixel.adjust_saturation_torchvision,
        adjust_hue=pixel.adjust_hue_torchvision,
    )
