"""The program that lies in a bundle, gathered from the package's own source."""

import functools
import importlib.util
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cvpipe.data.images import DECODE_RULE, bundle_rule, read_image, resize_image
from cvpipe.export.runtime import DICOM_REFUSED, build_runtime, network_runtimes
from cvpipe.opencv import PACKAGE
from cvpipe.stages.native import TRANSFORMERS, native_runtimes

NETWORK_PACKAGES = "numpy pillow ai-edge-litert    (or onnxruntime)"
NATIVE_PACKAGES = f"'numpy>=2' pillow {PACKAGE}"
# Texts in the place of what needs a library that the program does without.
FOR_ALL = {"cvpipe.data.images._decode_dicom": DICOM_REFUSED}
FOR_NATIVE = {
    "cvpipe.features.base.ImageTransformer": '''
class ImageTransformer:
    """Base of the features, without what scikit-learn asks of a transformer."""

    def check_settings(self, image_size: tuple[int, int]) -> None:
        """Check nothing; what has settings does."""

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Describe `uint8` images of shape `(n, height, width, 3)`: `float32` rows."""
        return self._describe(images)
''',
    "cvpipe.opencv.import_cv2": '''
@functools.cache
def import_cv2() -> ModuleType:
    """Import OpenCV with its own threads switched off."""
    import cv2

    if not cv2.__version__.startswith("4."):
        raise ImportError(f"OpenCV 4 is needed, and {cv2.__version__} is installed")
    cv2.setNumThreads(0)
    return cv2
''',
    "cvpipe.numerics.one_thread": '''
@contextmanager
def one_thread() -> Iterator[None]:
    """Leave the number of threads alone, which changes the last digits of a sum at most."""
    yield
''',
}
FOR_TEXTURE = {
    "cvpipe.features.texture.transform": '''
def transform(values: np.ndarray) -> np.ndarray:
    """Transform an image, `float32`, into its spectrum, `complex64`."""
    return np.fft.fft2(values)
''',
    "cvpipe.features.texture.invert": '''
def invert(spectra: np.ndarray, axis: int) -> np.ndarray:
    """Transform spectra, `complex64`, back along one axis."""
    return np.fft.ifft(spectra, axis=axis)
''',
}


def kinds_in(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """List the kinds of hand-crafted features that the content of a `bundle.json` names."""
    return tuple(sorted({feature["kind"] for feature in facts.get("features", {}).values()}))


@functools.cache
def runtime_text(kinds: tuple[str, ...] = ()) -> str:
    """Gather the program that predicts with a bundle where there is no cvpipe.

    Args:
        kinds: Kinds of features that the bundle's native file needs; none where it holds networks.
    """
    functions = (read_image, resize_image, bundle_rule)
    if not kinds:
        return build_runtime(*functions, network_runtimes, DECODE_RULE, NETWORK_PACKAGES, FOR_ALL)
    chosen = "".join(f"    {kind!r}: {TRANSFORMERS[kind].__name__},\n" for kind in kinds)
    without = {**FOR_ALL, **FOR_NATIVE, **(FOR_TEXTURE if "texture_energy" in kinds else {})}
    without["cvpipe.stages.native.TRANSFORMERS"] = f"TRANSFORMERS = {{\n{chosen}}}\n"
    return build_runtime(*functions, native_runtimes, DECODE_RULE, NATIVE_PACKAGES, without)


def import_program(kinds: tuple[str, ...] = ()) -> ModuleType:
    """Import that program, of the package's own text, to see what it computes.

    Args:
        kinds: See `runtime_text`.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "predict.py"
        path.write_text(runtime_text(kinds), "utf-8")
        spec = importlib.util.spec_from_file_location("cvpipe_program", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot import {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where data classes look their module up
        spec.loader.exec_module(module)
    return module
