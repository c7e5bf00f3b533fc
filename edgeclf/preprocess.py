"""The only way in which a picture becomes the extractor's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import import_extra
from edgeclf.specs import PreprocessSpec
from edgeclf.video import Frame, Planes, RgbImage, converting

_Size = tuple[int, int]  # (height, width)


def preprocess(frame: Frame, spec: PreprocessSpec) -> RgbImage:
    """The frame's picture cropped, resized and coloured as `spec` says: a new uint8 (height, width, 3) array.

    Where the spec says `planes` and the frame has some, they are resized and become RGB behind that. Else this is
    `preprocess_frame` of the frame's image, of which no more is converted than is needed. Raises VideoError where the
    picture cannot be converted or resized.
    """
    with converting(frame.source, _import_cv2().error):
        if spec.resize == "planes" and frame.planes and (planes := frame.planes()):
            return _from_planes(planes, spec)
        if spec.crop == "center_square" and frame.square:
            return preprocess_frame(frame.square(), spec)
        return preprocess_frame(frame.image, spec)


def preprocess_frame(image: RgbImage, spec: PreprocessSpec) -> RgbImage:
    """The picture cropped, resized and coloured as `spec` says.

    image: uint8 (H, W, 3) RGB of any size. Returns a new uint8 (height, width, 3) array, C-contiguous.
    Resizing is OpenCV's `INTER_LINEAR` (four neighbours, no low-pass) or `INTER_AREA`. `letterbox` keeps the
    whole picture in the middle of a black border.
    """
    part = _center_square(image) if spec.crop == "center_square" else image
    return _shaped(part.shape, spec, lambda size: _resized(part, size, spec))


def limit_opencv_threads() -> None:
    """Make OpenCV resize on the calling thread: the runtime has threads of its own for every core."""
    _import_cv2().setNumThreads(1)


def _shaped(shape: tuple[int, ...], spec: PreprocessSpec, resized: Callable[[_Size], RgbImage]) -> RgbImage:
    """A picture of `shape` in the size and colour of the spec; `resized` gives it in another size."""
    pixels = _letterboxed(shape, spec, resized) if spec.crop == "letterbox" else resized(spec.size)
    if spec.color == "gray3":
        cv2 = _import_cv2()
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def _center_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _letterboxed(shape: tuple[int, ...], spec: PreprocessSpec, resized: Callable[[_Size], RgbImage]) -> RgbImage:
    height, width = spec.size
    scale = min(height / shape[0], width / shape[1])
    inner_height = max(1, round(shape[0] * scale))
    inner_width = max(1, round(shape[1] * scale))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + inner_height, left : left + inner_width] = resized((inner_height, inner_width))
    return pixels


def _resized(image: NDArray[np.uint8], size: _Size, spec: PreprocessSpec) -> NDArray[np.uint8]:
    cv2 = _import_cv2()
    interpolation = cv2.INTER_LINEAR if spec.interpolation == "linear" else cv2.INTER_AREA
    pixels: NDArray[np.uint8] = cv2.resize(image, size[::-1], interpolation=interpolation)
    return pixels


def _from_planes(planes: Planes, spec: PreprocessSpec) -> RgbImage:
    if spec.crop == "center_square":
        luma, blue, red = (_center_square(plane) for plane in (planes.luma, planes.blue, planes.red))
        planes = replace(planes, luma=luma, blue=blue, red=red)
    return _shaped(planes.luma.shape, spec, lambda size: _resized_planes(planes, size, spec))


def _resized_planes(planes: Planes, size: _Size, spec: PreprocessSpec) -> RgbImage:
    cv2 = _import_cv2()
    parts = [_resized(plane, size, spec) for plane in (planes.luma, planes.blue, planes.red)]
    pixels: RgbImage = cv2.transform(cv2.merge(parts), _rgb_from_yuv(planes.full_range, planes.bt709))
    return pixels


@lru_cache(maxsize=4)
def _rgb_from_yuv(full_range: bool, bt709: bool) -> NDArray[np.float32]:
    """What makes (R, G, B) of (Y, Cb, Cr, 1), as FFmpeg does: it cuts off each product, by a half in the mean."""
    red, blue = (0.2126, 0.0722) if bt709 else (0.299, 0.114)
    green = 1 - red - blue
    luma, color, black = (1.0, 2.0, 0.0) if full_range else (255 / 219, 2 * 255 / 224, 16.0)
    by_blue, by_red = color * (1 - blue), color * (1 - red)
    matrix = np.array(
        [[luma, 0, by_red], [luma, -by_blue * blue / green, -by_red * red / green], [luma, by_blue, 0]], np.float64
    )
    cut_off = ((matrix != 0) & (matrix != 1)).sum(axis=1) / 2
    offset = -matrix @ (black, 128.0, 128.0) - cut_off
    return np.hstack([matrix, offset[:, None]]).astype(np.float32)


def _import_cv2() -> Any:
    return import_extra("cv2", "OpenCV", "cpu")
