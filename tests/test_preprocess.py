from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeclf.preprocess import preprocess_frame
from edgeclf.specs import PreprocessSpec
from edgeclf.video import RgbImage


def ramp(height: int, width: int) -> RgbImage:
    """A picture in which every pixel and channel differs from its neighbours."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    pixels: RgbImage = ((x * 5 + y * 3 + c * 60) % 256).astype(np.uint8)
    return pixels


def test_center_square_is_the_tutorials_crop_and_resize() -> None:
    image = ramp(48, 64)
    expected = cv2.resize(image[:, 8:56], (20, 20), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(preprocess_frame(image, PreprocessSpec((20, 20))), expected)


def test_golden_pixels_pin_colour_order_crop_and_resize() -> None:
    # A resize by hand: with half the size, INTER_LINEAR takes the mean of 2x2 pixels.
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 1:3] = (200, 100, 0)
    image[:2, 3:5] = (0, 40, 80)
    assert preprocess_frame(image, PreprocessSpec((2, 2))).tolist() == [
        [[200, 100, 0], [0, 40, 80]],
        [[200, 100, 0], [0, 0, 0]],
    ]


def test_no_crop_squeezes_the_whole_picture() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 100
    pixels = preprocess_frame(image, PreprocessSpec((2, 2), crop="none"))
    assert pixels[:, :, 0].tolist() == [[0, 100], [0, 100]]


def test_letterbox_keeps_the_shape_and_adds_black() -> None:
    pixels = preprocess_frame(np.full((4, 8, 3), 50, np.uint8), PreprocessSpec((8, 8), crop="letterbox"))
    assert pixels[:, 0, 0].tolist() == [0, 0, 50, 50, 50, 50, 0, 0]


def test_gray3_gives_three_equal_channels() -> None:
    pixels = preprocess_frame(ramp(9, 9), PreprocessSpec((9, 9), color="gray3"))
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], cv2.cvtColor(ramp(9, 9), cv2.COLOR_RGB2GRAY))


def test_area_averages_where_linear_skips() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::4] = 255
    area = preprocess_frame(stripes, PreprocessSpec((8, 8), interpolation="area"))
    assert np.unique(area).tolist() == [64]


@pytest.mark.parametrize("size", [(1, 1), (2, 4000), (33, 77), (1080, 1920)])
@pytest.mark.parametrize("crop", ["center_square", "none", "letterbox"])
def test_any_size_gives_the_declared_one(size: tuple[int, int], crop: str) -> None:
    pixels = preprocess_frame(ramp(*size), PreprocessSpec((24, 32), crop=crop))  # type: ignore[arg-type]
    assert pixels.shape == (24, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
