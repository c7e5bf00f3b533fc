"""Pictures as a source: colours, order in time, orientation, and what becomes of files that are no pictures."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.errors import VideoError
from edgeclf.image_source import IMAGE_RATE, ImageSource
from edgeclf.video import Frame
from tests.support.videos import BLUE, GREEN, RED


def write_picture(path: Path, color: tuple[int, ...], size: tuple[int, int] = (24, 32), *, exif: bytes = b"") -> Path:
    """A picture of one RGB, RGBA or grey value, in the format that the name says."""
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[len(color)]
    pixels = np.full((*size, len(color)), [color[place] for place in order], np.uint8)
    encoded: Any = cv2.imencode(path.suffix, pixels)[1]
    data = encoded.tobytes()
    path.write_bytes(data[:2] + exif + data[2:])
    return path


def orientation(value: int) -> bytes:
    """The EXIF segment of a JPEG that says nothing but how it is turned."""
    tiff = b"II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\x00\x00" + tiff


def read_all(source: ImageSource) -> tuple[list[Frame], str]:
    """The frames that come, and the error behind them."""
    frames: list[Frame] = []
    try:
        frames.extend(source.frames())
    except VideoError as error:
        return frames, str(error)
    return frames, ""


def test_frames_are_rgb_at_the_nominal_rate(tmp_path: Path) -> None:
    paths = [write_picture(tmp_path / f"{n}.jpg", color) for n, color in enumerate((RED, GREEN, BLUE))]
    source = ImageSource("clip", paths)
    frames, error = read_all(source)
    assert error == ""
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0, 1 / IMAGE_RATE, 2 / IMAGE_RATE])
    for frame, color in zip(frames, (RED, GREEN, BLUE), strict=True):
        assert frame.image.shape == (24, 32, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.mean((0, 1)) == pytest.approx(color, abs=3)
    assert source.decoder == f"OpenCV {cv2.__version__}"
    assert source.dropped == {}


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".bmp", ".webp"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    frames, error = read_all(ImageSource("clip", [write_picture(tmp_path / f"a{suffix}", RED)], rate=2))
    assert error == ""
    assert frames[0].image.mean((0, 1)) == pytest.approx(RED, abs=4)


@pytest.mark.parametrize(("color", "rgb"), [((90,), (90, 90, 90)), ((200, 30, 60, 128), (200, 30, 60))])
def test_grey_and_transparent_pictures_become_rgb(
    tmp_path: Path, color: tuple[int, ...], rgb: tuple[int, int, int]
) -> None:
    (frame,), _ = read_all(ImageSource("clip", [write_picture(tmp_path / "a.png", color)]))
    assert frame.image.shape == (24, 32, 3)
    assert tuple(frame.image[0, 0]) == rgb


def test_picture_is_upright_as_exif_says(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.jpg", RED, exif=orientation(6))
    (frame,), error = read_all(ImageSource("clip", [path]))
    assert error == ""
    assert frame.image.shape == (32, 24, 3)


def test_names_need_not_be_ascii(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", RED)
    frames, _ = read_all(ImageSource("clip", [path.rename(tmp_path / "lächeln 笑顔.png")]))
    assert len(frames) == 1


def damaged(folder: Path, kind: str) -> Path:
    """A file that cannot be read as a picture."""
    path = folder / f"{kind}.jpg"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("cut"):
        whole = write_picture(folder / f"whole{Path(kind).suffix}", RED, (200, 300)).read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 4])
    return path


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "missing", "cut.jpg", "cut.png", "cut.webp"])
def test_bad_picture_is_dropped_and_named_after_the_good_ones(tmp_path: Path, kind: str) -> None:
    good = [write_picture(tmp_path / f"{n}.png", RED) for n in range(3)]
    bad = damaged(tmp_path, kind)
    source = ImageSource("smile", [*good[:2], bad, good[2]], rate=10)
    frames, error = read_all(source)
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0, 0.1, 0.3])
    assert source.dropped == {"corrupt": 1}
    assert f"smile is damaged: 1 of 4 pictures cannot be read: {bad}" in error


def test_cut_jpeg_with_a_whole_thumbnail_is_bad(tmp_path: Path) -> None:
    thumbnail = write_picture(tmp_path / "small.jpg", RED).read_bytes()
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = write_picture(tmp_path / "a.jpg", RED, (200, 300), exif=segment)
    assert read_all(ImageSource("clip", [whole]))[1] == ""
    whole.write_bytes(whole.read_bytes()[:-100])
    assert "can be read" in read_all(ImageSource("clip", [whole]))[1]


def test_time_begins_with_the_first_good_picture(tmp_path: Path) -> None:
    paths = [damaged(tmp_path, "text"), *(write_picture(tmp_path / f"{n}.png", RED) for n in range(2))]
    frames, _ = read_all(ImageSource("clip", paths, rate=10))
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0, 0.1])


def test_source_without_a_good_picture_is_refused(tmp_path: Path) -> None:
    bad = [damaged(tmp_path, kind) for kind in ("text", "empty")]
    assert read_all(ImageSource("clip", bad)) == ([], f"clip: none of its 2 pictures can be read; look at {bad[0]}")
    assert "clip holds no picture" in read_all(ImageSource("clip", []))[1]


def test_many_bad_pictures_are_not_all_listed(tmp_path: Path) -> None:
    paths = [write_picture(tmp_path / "a.png", RED), *(tmp_path / f"none{n}.png" for n in range(9))]
    assert "none2.png and 6 more" in read_all(ImageSource("clip", paths))[1]


def test_closing_ends_the_frames_without_an_error(tmp_path: Path) -> None:
    source = ImageSource("clip", [write_picture(tmp_path / "a.png", RED), tmp_path / "none.png", tmp_path / "a.png"])
    frames = source.frames()
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_rate_has_to_be_above_zero(rate: float) -> None:
    with pytest.raises(VideoError, match="it is above 0"):
        ImageSource("clip", [], rate=rate)
