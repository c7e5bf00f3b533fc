from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.av_source import AvSource
from edgeclf.errors import VideoError
from edgeclf.preprocess import preprocess, preprocess_frame
from edgeclf.specs import PreprocessSpec
from edgeclf.video import Frame, Planes, RgbImage
from tests.support.videos import BLUE, moving, plain, write_video


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


# -- frames -----------------------------------------------------------------------------------------------------------

SPECS = [
    PreprocessSpec((24, 32)),
    PreprocessSpec((24, 32), crop="none", interpolation="area"),
    PreprocessSpec((32, 32), crop="letterbox"),
    PreprocessSpec((24, 24), color="gray3"),
]


def frames_of(path: Path, size: tuple[int, int], **written: Any) -> list[Frame]:
    return list(AvSource(str(write_video(path, moving(3, size=size), **written))).frames())


def error_of(frame: Frame, spec: PreprocessSpec) -> float:
    """How far the planes of a frame lead from its image, in the mean."""
    exact = preprocess_frame(frame.image, spec)
    return float(np.abs(preprocess(frame, replace(spec, resize="planes")).astype(int) - exact).mean())


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("size", [(48, 64), (96, 80), (90, 160), (74, 112), (45, 64), (64, 64)])
def test_frame_gives_what_its_image_gives_to_the_bit(
    size: tuple[int, int], spec: PreprocessSpec, tmp_path: Path
) -> None:
    for frame in frames_of(tmp_path / "a.mkv", size, codec="ffv1"):
        assert np.array_equal(preprocess(frame, spec), preprocess_frame(frame.image, spec))


@pytest.mark.parametrize("size", [(48, 64), (96, 80), (90, 160), (74, 112), (64, 48), (258, 1024), (1080, 1920)])
def test_square_is_the_middle_of_the_image_to_the_bit(size: tuple[int, int], tmp_path: Path) -> None:
    for frame in frames_of(tmp_path / "a.mkv", size):
        side = min(size)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        assert frame.square is not None
        assert np.array_equal(frame.square(), frame.image[top : top + side, left : left + side])


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p"])
def test_planes_lead_close_to_the_image(spec: PreprocessSpec, pixel_format: str, tmp_path: Path) -> None:
    codec = "mjpeg" if pixel_format == "yuvj420p" else "mpeg4"
    for frame in frames_of(tmp_path / "a.mkv", (240, 320), codec=codec, pixel_format=pixel_format):
        assert 0 < error_of(frame, spec) < 2


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("bt709", [False, True])
def test_colour_is_that_of_ffmpeg(full_range: bool, bt709: bool, tmp_path: Path) -> None:
    options = {
        "x264-params": f"fullrange={'on' if full_range else 'off'}:colormatrix={'bt709' if bt709 else 'bt470bg'}"
    }
    path = write_video(tmp_path / "a.mp4", plain(BLUE, 0.2), codec="libx264", options=options)
    frame = next(AvSource(str(path)).frames())
    assert frame.planes is not None
    planes = frame.planes()
    assert planes is not None
    assert (planes.full_range, planes.bt709) == (full_range, bt709)
    assert error_of(frame, PreprocessSpec((8, 8))) < 1.5


def test_planes_are_those_of_the_video() -> None:
    luma = np.full((4, 4), 126, np.uint8)
    colorless = np.full((2, 2), 128, np.uint8)
    frame = Frame(0.0, lambda: np.zeros((4, 4, 3), np.uint8), planes=lambda: Planes(luma, colorless, colorless))
    grey = preprocess(frame, PreprocessSpec((2, 2), resize="planes"))
    assert np.abs(grey.astype(int) - round((126 - 16) * 255 / 219)).max() <= 1


@pytest.mark.parametrize(
    ("size", "written"),
    [
        ((45, 64), {"codec": "ffv1"}),
        ((48, 63), {"codec": "ffv1"}),
        ((48, 64), {"codec": "ffv1", "pixel_format": "yuv444p"}),
        ((48, 64), {"codec": "ffv1", "pixel_format": "yuv420p10le"}),
        ((48, 64), {"codec": "libx264", "options": {"x264-params": "interlaced=1:tff=1"}}),
    ],
    ids=["odd height", "odd width", "4:4:4", "10 bits", "interlaced"],
)
def test_picture_that_is_not_plain_is_resized_in_rgb(
    size: tuple[int, int], written: dict[str, Any], tmp_path: Path
) -> None:
    for frame in frames_of(tmp_path / "a.mkv", size, **written):
        assert error_of(frame, PreprocessSpec((24, 24))) == 0


def test_rotated_picture_is_resized_in_rgb(shared_data: Path) -> None:
    frame = next(AvSource(str(shared_data / "odd/Rotated/video_90.mov")).frames())
    assert error_of(frame, PreprocessSpec((24, 24))) == 0


@pytest.mark.parametrize(
    "name", ["streams/General/nasa_13013.mp4", "streams/Codec/bt709_full_range.mp4", "surv_fight/Fight/fi148.mp4"]
)
def test_planes_of_real_video_stay_within_the_tolerance(shared_data: Path, name: str) -> None:
    frames = list(AvSource(str(shared_data / name)).frames())[::10]
    errors = [error_of(frame, PreprocessSpec((224, 224))) for frame in frames]
    assert max(errors) > 0
    assert np.mean(errors) < 1.2


def test_picture_that_cannot_be_resized_ends_its_source_alone() -> None:
    frame = Frame(0.0, lambda: np.zeros((0, 0, 3), np.uint8), source="cam")
    with pytest.raises(VideoError, match="cam holds a picture that cannot be used"):
        preprocess(frame, PreprocessSpec((8, 8)))
