"""Small grey pictures of images: what near-duplicates are found by, and quality is measured on."""

import numpy as np
from PIL import Image

from cvpipe.opencv import import_cv2

THUMBNAIL_PIXELS = 64


def grey_thumbnail(image: np.ndarray, num_pixels: int = THUMBNAIL_PIXELS) -> np.ndarray:
    """Bring an image to grey values (ITU-R 601-2 luma) of one small square size.

    The aspect ratio is ignored. Blocks of pixels are averaged before the Lanczos filter is
    applied to what is at least twice as large as the thumbnail: three times as fast as the
    filter alone, and within one grey level of it on average.

    Args:
        image: `uint8` array of shape `(height, width, 3)`, RGB.
        num_pixels: Side of the thumbnail.

    Returns:
        `uint8` array of shape `(num_pixels, num_pixels)`.
    """
    cv2 = import_cv2()  # makes grey in a tenth of the time that Pillow takes
    grey = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    size = (num_pixels, num_pixels)
    return np.asarray(grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))
