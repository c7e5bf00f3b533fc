"""The only way in which a picture becomes the extractor's input."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.errors import import_extra
from edgeclf.specs import PreprocessSpec
from edgeclf.video import RgbImage


def preprocess_frame(image: RgbImage, spec: PreprocessSpec) -> RgbImage:
    """The picture cropped, resized and coloured as `spec` says.

    image: uint8 (H, W, 3) RGB of any size. Returns a new uint8 (height, width, 3) array, C-contiguous.
    Resizing is OpenCV's `INTER_LINEAR` (four neighbours, no low-pass) or `INTER_AREA`. `letterbox` keeps the
    whole picture in the middle of a black border.
    """
    cv2 = _import_cv2()
    height, width = spec.size
    if spec.crop == "letterbox":
        pixels = _letterboxed(image, spec)
    else:
        square = _center_square(image) if spec.crop == "center_square" else image
        pixels = cv2.resize(square, (width, height), interpolation=_interpolation(spec))
    if spec.color == "gray3":
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def limit_opencv_threads() -> None:
    """Make OpenCV resize on the calling thread: the runtime has threads of its own for every core."""
    _import_cv2().setNumThreads(1)


def _center_square(image: RgbImage) -> RgbImage:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _letterboxed(image: RgbImage, spec: PreprocessSpec) -> RgbImage:
    height, width = spec.size
    scale = min(height / image.shape[0], width / image.shape[1])
    inner_height = max(1, round(image.shape[0] * scale))
    inner_width = max(1, round(image.shape[1] * scale))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    pixels = np.zeros((height, width, 3), np.uint8)
    inner = _import_cv2().resize(image, (inner_width, inner_height), interpolation=_interpolation(spec))
    pixels[top : top + inner_height, left : left + inner_width] = inner
    return pixels


def _interpolation(spec: PreprocessSpec) -> int:
    cv2 = _import_cv2()
    return int(cv2.INTER_LINEAR if spec.interpolation == "linear" else cv2.INTER_AREA)


def _import_cv2() -> Any:
    return import_extra("cv2", "OpenCV", "cpu")
