from __future__ import annotations

import os
import random
import wave
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from edgeclf.av_pictures import Pictures
from edgeclf.av_reader import Clock, Opening, Reader
from edgeclf.av_source import AvSource
from edgeclf.errors import VideoError
from edgeclf.video import Frame
from tests.support.videos import BLUE, RED, moving, plain, write_video


def times_and_means(path: Path) -> tuple[list[float], list[float]]:
    frames = [(frame.pts_seconds, float(frame.image.mean())) for frame in AvSource(str(path)).frames()]
    return [seconds for seconds, _ in frames], [mean for _, mean in frames]


def test_frames_come_in_rgb_with_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 1, fps=10), fps=10)
    frames = list(AvSource(str(path)).frames())
    assert [frame.pts_seconds for frame in frames] == pytest.approx([n / 10 for n in range(10)], abs=1e-3)
    image = frames[0].image
    assert image.shape == (48, 64, 3)
    assert image.dtype == np.uint8
    assert image.mean(axis=(0, 1)) == pytest.approx(RED, abs=12)


def test_image_of_a_frame_outlives_later_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 0.4) + plain(BLUE, 0.4))
    frames = list(AvSource(str(path)).frames())
    assert frames[0].image[..., 0].mean() > 150
    assert frames[-1].image[..., 2].mean() > 150


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.9, 1.0, 2.5]
    path = write_video(tmp_path / "a.mkv", plain(RED, 0.6, fps=10), times=times)
    assert times_and_means(path)[0] == pytest.approx(times, abs=2e-3)


def test_interlaced_h264_is_not_black(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", plain(RED, 1), codec="libx264", options={"x264-params": "interlaced=1:tff=1"}
    )
    times, means = times_and_means(path)
    assert len(times) == 25
    assert min(means) > 60


def test_rotation_in_the_metadata_is_applied(shared_data: Path) -> None:
    shapes = {}
    for turn in ("0", "90", "180", "270"):
        (first, *_) = AvSource(str(shared_data / f"odd/Rotated/video_{turn}.mov")).frames()
        shapes[turn] = first.image.shape
    assert shapes["0"] == shapes["180"]
    assert shapes["90"] == shapes["270"] == (shapes["0"][1], shapes["0"][0], 3)


def test_missing_file_is_named() -> None:
    with pytest.raises(VideoError, match=r"none\.mp4 does not exist"):
        list(AvSource("none.mp4").frames())


@pytest.mark.parametrize("content", [b"", b"this is text\n" * 50, random.Random(1).randbytes(5000)])
def test_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"cannot be read as a video|can be decoded|holds no"):
        list(AvSource(str(path)).frames())


def test_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    with pytest.raises(VideoError, match="no video stream"):
        list(AvSource(str(tmp_path / "a.wav")).frames())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_refused_at_once_instead_of_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        list(AvSource(str(tmp_path / "pipe.mp4")).frames())


def read_all(path: Path) -> tuple[int, str, dict[str, int]]:
    """Frames that came, the error behind them, and what was dropped."""
    source, count, message = AvSource(str(path)), 0, ""
    try:
        for frame in source.frames():
            assert frame.image.ndim == 3
            count += 1
    except VideoError as error:
        message = str(error)
    return count, message, dict(source.dropped)


def test_bit_flips_give_the_good_frames_then_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", plain(RED, 4))
    data = bytearray(path.read_bytes())
    flips = random.Random(3)
    for _ in range(60):
        data[flips.randrange(6000, len(data) - 2000)] ^= 1 << flips.randrange(8)
    path.write_bytes(data)
    count, message, dropped = read_all(path)
    assert 0 < count < 100
    assert "is damaged" in message
    assert dropped["corrupt"] > 0


def test_truncated_file_gives_the_frames_before_the_cut_then_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 4), options={"movflags": "faststart"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    count, message, _ = read_all(path)
    assert count < 100
    assert message


def test_declared_frame_count_is_not_believed(shared_data: Path) -> None:
    count, message, _ = read_all(shared_data / "streams/General/tree.avi")  # declares 444
    assert (count, message) == (68, "")
    count, message, _ = read_all(shared_data / "odd/Metadata/no_duration.webm")  # declares a huge negative number
    assert (count, message) == (74, "")


ODD = [
    "empty.avi",
    "text_renamed.avi",
    "header_only_2k.avi",
    "truncated_40pct.avi",
    "bytes_flipped.avi",
    "zeroed_block.avi",
]


@pytest.mark.parametrize("name", ODD)
def test_derived_damage_is_reported(shared_data: Path, name: str) -> None:
    count, message, dropped = read_all(shared_data / "odd/Derived" / name)
    assert message
    assert count == 0 or dropped["corrupt"] > 0


def test_interlaced_recording_is_not_black(shared_data: Path) -> None:
    times, means = times_and_means(shared_data / "odd/Derived/interlaced.mp4")
    assert len(times) == 75
    assert min(means) > 80


def test_pixels_are_those_of_opencv(shared_data: Path) -> None:
    import cv2

    path = shared_data / "ucf101_avi/PushUps/v_PushUps_g01_c01.avi"
    capture = cv2.VideoCapture(str(path))
    for frame in list(AvSource(str(path)).frames())[:20]:
        ok, image = capture.read()
        assert ok
        assert np.array_equal(frame.image, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def test_recording_appended_to_another_goes_on_in_time(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{n}.ts", plain(color, 2), codec="mpeg4") for n, color in enumerate((RED, BLUE))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    times, _ = times_and_means(joined)
    assert len(times) >= 98
    assert times[-1] == pytest.approx(4.0, abs=0.2)
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([1000, 1040, 1080], [0.0, 0.04, 0.08]),
        ([1000, 1040, 1030, 1080], [0.0, 0.04, 0.041, 0.08]),
        ([9000, 9040, 0, 40], [0.0, 0.04, 0.08, 0.12]),
        ([1000, None, 1080], [0.0, 0.04, 0.08]),
        ([None, 5000, 5040], [0.0, 0.04, 0.08]),
        ([None, None], [0.0, 0.04]),
    ],
    ids=["even", "a little back", "far back", "one missing", "the first missing", "none"],
)
def test_times_start_at_zero_and_only_grow(stamps: list[int | None], times: list[float]) -> None:
    clock = Clock()
    pictures = [SimpleNamespace(pts=stamp, duration=40, time_base=Fraction(1, 1000)) for stamp in stamps]
    assert [clock.seconds(picture) for picture in pictures] == pytest.approx(times)


def test_times_are_those_of_decoding_where_there_are_no_others() -> None:
    clock = Clock(by_decoding=True)
    stamps = [(1, 1), (2, 2), (4, 3), (3, 4), (3, None)]
    pictures = [SimpleNamespace(pts=pts, dts=dts, duration=1, time_base=Fraction(1, 25)) for pts, dts in stamps]
    assert [clock.seconds(picture) for picture in pictures] == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])


@pytest.mark.parametrize(("codec", "pixels"), [("libx264", "yuv420p"), ("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_avi_file_has_even_times_to_its_end(tmp_path: Path, codec: str, pixels: str) -> None:
    video = write_video(tmp_path / "even.avi", moving(40), codec=codec, pixel_format=pixels, ticks=25)
    times = [frame.pts_seconds for frame in AvSource(str(video)).frames()]
    assert times == pytest.approx([n / 25 for n in range(40)])


def test_packed_b_frames_of_an_avi_file_are_evenly_spaced(shared_data: Path) -> None:
    """FFmpeg makes up times to show them at, two of three of which are swapped."""
    source = AvSource(str(shared_data / "ucf101_avi/BabyCrawling/v_BabyCrawling_g06_c03.avi"))
    times = [frame.pts_seconds for frame in source.frames()]
    assert times == pytest.approx([n / 25 for n in range(201)])


def test_size_may_change_in_mid_stream(tmp_path: Path) -> None:
    sizes = [(48, 64), (96, 80)]
    parts = [write_video(tmp_path / f"{n}.ts", moving(25, size=size), codec="mpeg4") for n, size in enumerate(sizes)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = [frame.image.shape for frame in AvSource(str(joined)).frames()]
    assert shapes[0] == (48, 64, 3)
    assert shapes[-1] == (96, 80, 3)
    squares = [frame.square().shape for frame in AvSource(str(joined)).frames() if frame.square]
    assert set(squares) == {(48, 48, 3), (80, 80, 3)}


def test_list_of_other_files_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", plain(RED, 1))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 'a.mp4'\n")
    with pytest.raises(VideoError, match=r"is a list of other files \(concat\)"):
        list(AvSource(str(tmp_path / "list.mp4")).frames())


def test_file_url_is_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 1))
    assert len(list(AvSource(f"file://{path}").frames())) == 25


def test_picture_beyond_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 1))
    monkeypatch.setattr("edgeclf.av_reader.MAX_PIXELS", 48 * 64 - 1)
    count, message, dropped = read_all(path)
    assert (count, dropped) == (0, {"too_large": 25})
    assert "25 pictures exceed" in message


@pytest.mark.shared
def test_every_packet_is_accounted_for(shared_data: Path) -> None:
    import av

    for path in sorted((shared_data / "streams").rglob("*.*")):
        if path.suffix in (".csv",):
            continue
        with av.open(str(path)) as container:
            packets = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
        count, _, dropped = read_all(path)
        assert count + sum(dropped.values()) == packets, path.name


class EveryFifth:
    """Wants every fifth picture."""

    def __init__(self) -> None:
        self._seen = -1

    def add(self, pts_seconds: float) -> list[bool]:
        self._seen += 1
        return [self._seen % 5 == 0]

    def finish(self) -> list[bool]:
        return []


def unaccounted(path: Path, *, skip: bool, live: bool = False) -> int:
    """Pictures that were received and are neither a frame nor dropped."""
    source = AvSource(str(path), url=f"file:{path}" if live else None, live=live)
    if skip:
        source.skip_with(EveryFifth())
    count = 0
    with suppress(VideoError):
        for _ in source.frames():
            count += 1
    return source.received - count - sum(source.dropped.values())


@pytest.mark.shared
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_what_was_received_is_a_frame_or_dropped(shared_data: Path, skip: bool, live: bool) -> None:
    paths = [path for name in ("odd", "streams") for path in (shared_data / name).rglob("*.*")]
    videos = sorted(path for path in paths if path.suffix not in (".csv", ".md", ".json"))
    left = {path.name: unaccounted(path, skip=skip, live=live) for path in videos}
    assert len(left) > 20
    assert {name: count for name, count in left.items() if count} == {}


def damaged(path: Path, seed: int) -> Path:
    """The file with 40 bits flipped behind its head."""
    data, flips = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(40):
        data[flips.randrange(len(data) // 4, len(data))] ^= 1 << flips.randrange(8)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_what_was_received_of_a_damaged_file_is_a_frame_or_dropped(tmp_path: Path, name: str, codec: str) -> None:
    for seed in range(6):
        path = damaged(write_video(tmp_path / name, moving(60), codec=codec), seed)
        assert [unaccounted(path, skip=skip) for skip in (False, True)] == [0, 0], f"seed {seed}"


def test_skipping_reader_that_meets_no_good_frame_again_counts_each_picture_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", moving(30), codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in packets[20:]:
        data[at + 8 : at + size] = bytes(size - 8)
    for at, size in packets[17:20]:
        data[at + 8 : at + size] = bytes(size - 8)
    path.write_bytes(data)
    assert unaccounted(path, skip=True) == unaccounted(path, skip=False) == 0
    source = AvSource(str(path))
    source.skip_with(EveryFifth())
    with suppress(VideoError):
        list(source.frames())
    assert source.received == 30


def gone() -> Iterator[Any]:
    """Packets of a connection that is no more."""
    raise OSError("gone")
    yield


def test_pictures_that_a_broken_connection_swallowed_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mkv", moving(40), codec="libx264", options={"x264-params": "bframes=2:b-adapt=0"})
    following, packets = Reader._next, count(1)

    def breaking(reader: Reader) -> Any:
        if next(packets) > 20:
            reader._packets = gone()
        return following(reader)

    monkeypatch.setattr(Reader, "_next", breaking)
    source = AvSource("cam", url=f"file:{path}", live=True)
    frames: list[Frame] = []
    with pytest.raises(VideoError, match="cam broke off"):
        frames.extend(source.frames())
    assert len(frames) < 20
    assert (source.received, source.dropped) == (20, {"no_picture": 20 - len(frames)})


def test_packet_that_waited_is_refused_if_pictures_became_too_large_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 1))
    with Reader(str(path), Opening()) as reader:
        packet = next(reader.packets())
        monkeypatch.setattr("edgeclf.av_reader.MAX_PIXELS", 48 * 64 - 1)
        assert reader.decode(packet) is None
        assert reader.dropped == {"too_large": 1}


def test_pixel_format_on_which_ffmpeg_would_end_the_process_is_refused() -> None:
    frame = Pictures("exr").frame(av.VideoFrame(64, 48, "yaf32le"), 0.0)
    with pytest.raises(VideoError, match="exr has pictures of the format yaf32le"):
        _ = frame.image


def test_picture_that_ffmpeg_cannot_convert_is_an_error_of_its_source() -> None:
    frame = Pictures("cam").frame(av.VideoFrame(64, 48, "gray32le"), 0.0)
    with pytest.raises(VideoError, match="cam holds a picture that cannot be used"):
        _ = frame.image
