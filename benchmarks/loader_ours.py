"""Our own loader as `benchmarks/loader.py` sees it.

Crop, size and mirror image are ours in all entries; *albumentations* means that brightness,
contrast and saturation are changed one after the other by its functions, *fused* that one matrix
does it.
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
from loader_peers import (
    AREA,
    BATCH_SIZE,
    FACTORS,
    RATIO,
    Batches,
    Contender,
    Paths,
    Size,
    through_keras,
)

from cvpipe.data.augment import stored_size
from cvpipe.data.images import DecodeRule
from cvpipe.data.loading import Loader
from cvpipe.data.pixels import DecodedImages, ImageFiles, decoded_pixels
from cvpipe.sections import AugmentSection

EPOCHS = 1_000_000  # without end


def contender(
    fused: bool, dtype: str, cached: bool = False, images: tuple[str, ...] = ("small",)
) -> Contender:
    """Make an entry of the table of contenders."""
    jitter = FACTORS[1] - 1
    augment = AugmentSection(
        crop="resized",
        min_area=AREA[0],
        max_stretch=RATIO[1],
        horizontal_flip=0.5,
        brightness=jitter,
        contrast=jitter,
        saturation=jitter,
        fused=fused,
    )

    def batches(paths: Paths, size: Size, num_threads: int) -> Batches:
        files = [Path(path) for path in paths]
        rule = DecodeRule()
        source = ImageFiles(files, rule)
        if cached:
            hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
            kept = stored_size(augment, size)
            with tempfile.TemporaryDirectory() as root:
                rows = decoded_pixels(files, hashes, kept, rule, 2, Path(root))
                source = DecodedImages(rows.to_memory())
        loader = Loader(
            source,
            [f"{number}" for number in range(len(files))],
            np.zeros(len(files), dtype=np.int32),
            size,
            augment,
            fit="crop",  # ratios around 1, as those of the others
            batch_size=BATCH_SIZE,
            threads=num_threads,
            dtype=dtype,
        )
        for batch in loader.batches(EPOCHS):
            yield batch.images

    return Contender(batches, images)


OURS = {
    **{
        f"cvpipe, {'fused' if fused else 'albumentations'}, {dtype}": contender(fused, dtype)
        for fused in (False, True)
        for dtype in ("float32", "uint8")
    },
    **{
        f"cvpipe, decoded cache, {dtype}": contender(True, dtype, cached=True)
        for dtype in ("float32", "uint8")
    },
    **{
        f"cvpipe, scaled decoding, {dtype}": contender(True, dtype, images=("large",))
        for dtype in ("float32", "uint8")
    },
    "cvpipe, albumentations, float32, through Keras": through_keras(contender(False, "float32")),
}
