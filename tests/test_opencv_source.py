from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.errors import VideoError
from edgeclf.live_source import LiveSource, Patience
from edgeclf.opencv_source import SAME_RUN, OpenCvSource
from edgeclf.video import Frame
from tests.support.cameras import FakeCapture, fake_cv2, picture
from tests.support.videos import BLUE, RED, plain, write_video

ROOT = Path(__file__).parents[1]


def read(source: OpenCvSource) -> tuple[list[Frame], str]:
    """All frames, and the error behind them."""
    frames: list[Frame] = []
    try:
        frames.extend(source.frames())
    except VideoError as error:
        return frames, str(error)
    return frames, ""


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Put a stand-in in the place of cv2."""

    def use(*captures: FakeCapture, version: str = "5.0.0") -> Any:
        cv2 = fake_cv2(*captures, version=version)
        monkeypatch.setattr("edgeclf.opencv_source._import_cv2", lambda: cv2)
        return cv2

    return use


def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclf.opencv_source._optional_av", lambda: None)


# --- files, with the real OpenCV


def same_as_pyav(path: Path) -> int:
    """How many frames are equal to PyAV's in time and to the bit."""
    from edgeclf.av_source import AvSource

    ours, theirs = OpenCvSource(str(path), str(path)).frames(), AvSource(str(path)).frames()
    count = 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.pts_seconds == pytest.approx(other.pts_seconds, abs=1e-3)
        assert np.array_equal(one.image, other.image), f"frame {count} of {path.name}"
        count += 1
    return count


def test_pixels_and_times_are_those_of_pyav(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.9, 1.0, 2.5]
    assert same_as_pyav(write_video(tmp_path / "a.mp4", plain(RED, 1), codec="libx264")) == 25
    assert same_as_pyav(write_video(tmp_path / "a.mkv", plain(BLUE, 0.6, fps=10), times=times)) == 6


@pytest.mark.parametrize(
    "name",
    [
        "ucf101_avi/PushUps/v_PushUps_g01_c01.avi",
        "streams/General/tree.avi",  # declares 444 pictures and holds 68
        "streams/Codec/bt709_full_range.mp4",
        "odd/Metadata/no_duration.webm",
        *(f"odd/Rotated/video_{turn}.mov" for turn in (0, 90, 180, 270)),
    ],
)
def test_pixels_of_recordings_are_those_of_pyav(shared_data: Path, name: str) -> None:
    assert same_as_pyav(shared_data / name) > 0


@pytest.mark.parametrize("name", ["truncated_40pct.avi", "zeroed_block.avi"])
def test_early_end_is_damage(shared_data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(shared_data / "odd/Derived" / name)
    frames, message = read(OpenCvSource(path, path))
    assert frames
    assert "is damaged or cut off: OpenCV stopped after" in message


def test_flipped_bits_are_told(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 4), codec="libx264")
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 300] = bytes(300)
    path.write_bytes(data)
    frames, message = read(OpenCvSource(str(path), str(path)))
    assert len(frames) < 100
    assert "is damaged or cut off" in message


def test_interlaced_video_is_refused_rather_than_shown_black(tmp_path: Path) -> None:
    import cv2

    options = {"x264-params": "interlaced=1:tff=1"}
    path = write_video(tmp_path / "a.mp4", plain(RED, 1), codec="libx264", options=options)
    frames, message = read(OpenCvSource(str(path), str(path)))
    if tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 13):
        assert np.mean([frame.image.mean() for frame in frames]) > 60
    else:
        assert (len(frames), message.partition(" is interlaced")[0]) == (0, str(path))
        assert "use the decoder pyav" in message


@pytest.mark.parametrize("content", [None, b"", b"this is text\n" * 50])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    _, message = read(OpenCvSource(str(path), str(path)))
    assert "does not exist" in message if content is None else "cannot be opened by OpenCV" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_refused_at_once_instead_of_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    path = str(tmp_path / "pipe.mp4")
    assert "not a regular file" in read(OpenCvSource(path, path))[1]


def test_image_of_a_frame_outlives_later_frames(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", plain(RED, 0.4) + plain(BLUE, 0.4)))
    frames, _ = read(OpenCvSource(path, path))
    assert frames[0].image[..., 0].mean() > 150
    assert frames[-1].image[..., 2].mean() > 150


# --- known faults, with a stand-in


def test_equal_pictures_from_the_start_are_refused_without_pyav(
    use: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_pyav(monkeypatch)
    (tmp_path / "a.mp4").touch()
    path = str(tmp_path / "a.mp4")
    use(FakeCapture([picture(0)] * 80))
    frames, message = read(OpenCvSource(path, path))
    assert len(frames) == SAME_RUN - 1
    assert f"shows nothing but {SAME_RUN} equal pictures" in message
    use(FakeCapture([picture(0)] * 80), version="4.6.0")  # has not the fault
    assert len(read(OpenCvSource(path, path))[0]) == 80
    use(FakeCapture([picture(0)] * 10 + [picture(1)] + [picture(0)] * 80))
    assert len(read(OpenCvSource(path, path))[0]) == 91


@pytest.mark.parametrize(
    ("times", "rate", "wanted"),
    [
        ([0.0] * 4, 1e9, [0.0, 0.04, 0.08, 0.12]),  # an absurd rate makes OpenCV tell no times
        ([0.0] * 4, 10.0, [0.0, 0.1, 0.2, 0.3]),
        ([5.0, 5.1, 5.2, 5.3], 10.0, [0.0, 0.1, 0.2, 0.3]),
        ([0.0, 0.1, 0.05, 0.3], 10.0, [0.0, 0.1, 0.101, 0.3]),
        ([0.0, 9.0, 0.0, 0.1], 10.0, [0.0, 9.0, 9.1, 9.2]),  # another recording was appended
    ],
)
def test_times_only_grow(use: Callable[..., Any], times: list[float], rate: float, wanted: list[float]) -> None:
    use(FakeCapture([picture(n) for n in range(4)], times=times, rate=rate))
    frames, _ = read(OpenCvSource("gst", "filesrc ! appsink", api="gstreamer"))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(wanted)


@pytest.mark.parametrize(("count", "damaged"), [(100, True), (26, False), (-9.2e18, False), (1e12, False), (0, False)])
def test_absurd_counts_are_no_damage(
    use: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: float, *, damaged: bool
) -> None:
    without_pyav(monkeypatch)
    (tmp_path / "a.mp4").touch()
    use(FakeCapture([picture(n) for n in range(25)], count=count))
    frames, message = read(OpenCvSource("a.mp4", str(tmp_path / "a.mp4")))
    assert len(frames) == 25
    assert ("is damaged or cut off" in message) == damaged


def test_picture_beyond_the_limit_is_refused_before_it_is_decoded(use: Callable[..., Any]) -> None:
    capture = FakeCapture([picture(1)], size=(16000, 16000))
    use(capture)
    _, message = read(OpenCvSource("cam", 0, live=True))
    assert "exceed 64 million pixels" in message
    assert (capture.retrieved, capture.released) == ([], 1)


def test_picture_that_cannot_be_had_is_counted(use: Callable[..., Any]) -> None:
    use(FakeCapture([picture(1), None, picture(3)]))
    source = OpenCvSource("cam", 0, live=True)
    assert [frame.image.max() for frame in read(source)[0]] == [1, 3]
    assert (source.received, source.dropped) == (3, {"corrupt": 1})


# --- skipping


class EveryThird:
    """Wants every third picture; says so `late` pictures later."""

    def __init__(self, late: int = 0) -> None:
        self._late = late
        self._seen = self._told = 0

    def add(self, pts_seconds: float) -> list[bool]:
        self._seen += 1
        return self._tell(self._seen - self._late)

    def finish(self) -> list[bool]:
        return self._tell(self._seen)

    def _tell(self, upto: int) -> list[bool]:
        verdicts = [n % 3 == 0 for n in range(self._told, upto)]
        self._told = max(self._told, upto)
        return verdicts


@pytest.mark.parametrize("late", [0, 2])
def test_frames_that_nobody_wants_are_not_converted(use: Callable[..., Any], late: int) -> None:
    capture = FakeCapture([picture(n) for n in range(8)])
    use(capture)
    source = OpenCvSource("cam", 0, live=True)
    source.skip_with(EveryThird(late))
    frames, _ = read(source)
    assert [frame.decoded for frame in frames] == [n % 3 == 0 for n in range(8)]
    assert [frame.image.max() for frame in frames if frame.decoded] == [0, 3, 6]
    if not late:
        assert capture.retrieved == [0, 3, 6]


def test_skipping_changes_no_time_and_no_pixel(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", plain(RED, 1), codec="libx264"))
    skipping = OpenCvSource(path, path)
    skipping.skip_with(EveryThird())
    for frame, whole in zip(skipping.frames(), OpenCvSource(path, path).frames(), strict=True):
        assert frame.pts_seconds == whole.pts_seconds
        assert not frame.decoded or np.array_equal(frame.image, whole.image)


# --- cameras


def test_camera_is_opened_read_and_released_by_one_thread(use: Callable[..., Any]) -> None:
    capture = FakeCapture([picture(n) for n in range(3)])
    cv2 = use(capture)
    source = OpenCvSource("camera:2", 2, live=True)
    frames = source.frames()
    next(frames)
    closer = threading.Thread(target=source.close, name="closer")
    closer.start()
    closer.join()
    assert capture.released == 0
    assert list(frames) == []
    assert capture.released == 1
    assert capture.threads == {threading.current_thread().name}
    assert cv2.opened == [(2, "V4L2", [])]
    assert source.decoder == "OpenCV 5.0.0 FAKE"


def test_times_of_a_camera_are_those_of_arrival(use: Callable[..., Any]) -> None:
    use(FakeCapture([picture(n) for n in range(3)], times=[0.0, 0.0, 0.0]))
    frames, message = read(OpenCvSource("camera:0", 0, live=True))
    assert message == ""
    first = frames[0].arrival
    assert first is not None
    for frame in frames:
        assert frame.arrival is not None
        assert frame.pts_seconds == pytest.approx(frame.arrival - first, abs=0.01)


def test_camera_that_was_unplugged_is_opened_again(use: Callable[..., Any]) -> None:
    use(FakeCapture([picture(1)] * 3), FakeCapture([], opened=False), FakeCapture([picture(2)] * 3))
    patience = Patience(first_wait=1e-3, longest_wait=1e-3, retries=2)
    source = LiveSource(
        "camera:0", patience=patience, connect=lambda: OpenCvSource("camera:0", 0, live=True), burst=False
    )
    frames = source.frames()
    assert [int(next(frames).image.max()) for _ in range(6)] == [1, 1, 1, 2, 2, 2]
    source.close()
    assert list(frames) == []
    assert (source.reconnects, source.dropped) == (1, {})


def test_network_waits_have_limits_and_one_codec_thread(use: Callable[..., Any]) -> None:
    limits = ["OPEN_TIMEOUT_MSEC", 5000, "READ_TIMEOUT_MSEC", 2000]
    cv2 = use(FakeCapture([picture(1)]), FakeCapture([picture(1)]), version="4.10.0")
    read(OpenCvSource("rtsp://me:secret@cam", "rtsp://me:secret@cam", live=True))
    read(OpenCvSource("gst", "videotestsrc ! appsink", api="gstreamer", live=True))
    assert cv2.opened[0] == ("rtsp://me:secret@cam", "FFMPEG", [*limits, "N_THREADS", 1])
    assert cv2.opened[1] == ("videotestsrc ! appsink", "GSTREAMER", limits)
    cv2 = use(FakeCapture([picture(1)]), version="4.6.0")
    read(OpenCvSource("gst", "videotestsrc ! appsink", api="gstreamer", live=True))
    assert cv2.opened[0][2] == []  # it hangs when it is given some


def test_missing_camera_is_told() -> None:
    if Path("/dev/video0").exists():
        pytest.skip("this machine has a camera")
    _, message = read(OpenCvSource("camera:0", 0, live=True))
    assert message.startswith("camera:0 cannot be opened by OpenCV; check that the camera is plugged in")


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_pictures_of_pipelines_become_rgb(use: Callable[..., Any], shape: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.uint8)
    image[..., 0] = 200  # blue, where there are colours
    use(FakeCapture([image]))
    frames, _ = read(OpenCvSource("gst", "videotestsrc ! appsink", api="gstreamer", live=True))
    assert frames[0].image.shape == (4, 6, 3)
    assert frames[0].image[1, 1].tolist() == ([0, 0, 200] if shape[-1] in (3, 4) else [frames[0].image[1, 1, 0]] * 3)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((4, 6, 2), np.uint8), ((6, 6), np.uint8), ((6, 6, 1), np.uint8), ((4, 6), np.uint16), ((4, 6, 5), np.uint8)],
    ids=["YUY2", "I420", "NV12", "GRAY16", "five channels"],
)
def test_pictures_of_unknown_formats_are_refused_behind_the_good_ones(
    use: Callable[..., Any], shape: tuple[int, ...], kind: type
) -> None:
    use(FakeCapture([picture(1), np.zeros(shape, kind), picture(2)]))
    source = OpenCvSource("gst: x", "videotestsrc ! appsink", api="gstreamer", live=True)
    frames, message = read(source)
    assert [frame.image.max() for frame in frames] == [1]
    assert message.startswith("gst: x gives pictures of an unknown format")
    assert "videoconvert ! video/x-raw,format=BGR" in message
    assert (source.received, source.dropped) == (2, {"corrupt": 1})


def test_frames_that_wait_for_their_verdict_come_before_a_refusal(use: Callable[..., Any]) -> None:
    use(FakeCapture([*(picture(n) for n in range(4)), np.zeros((4, 6, 2), np.uint8)]))
    source = OpenCvSource("gst: x", "videotestsrc ! appsink", api="gstreamer", live=True)
    source.skip_with(EveryThird(late=3))
    frames, message = read(source)
    assert [frame.decoded for frame in frames] == [True, False, False, True]
    assert "unknown format" in message
    assert source.received == len(frames) + sum(source.dropped.values()) == 5


# --- GStreamer, with an OpenCV of the system that has it

READ_PIPELINE = """
import json, sys
from edgeclf.decoders import SOFTWARE, pipeline_for
from edgeclf.live_source import StreamFacts
from edgeclf.opencv_source import OpenCvSource
path = sys.argv[1]
pipeline = pipeline_for(path, StreamFacts("mov,mp4,m4a", "h264", 96, 128, 1.0), short_side=48, elements=SOFTWARE)
frames = list(OpenCvSource(path, pipeline, api="gstreamer").frames())
means = [frame.image.mean(axis=(0, 1)).tolist() for frame in frames]
print(json.dumps({"times": [f.pts_seconds for f in frames], "shape": frames[0].image.shape, "means": means}))
"""


def python_with_gstreamer() -> str:
    """An interpreter whose OpenCV has GStreamer; skips the test where there is none."""
    ask = "import cv2, re, sys; sys.exit(not re.search(r'GStreamer:\\s+YES', cv2.getBuildInformation()))"
    for python in (sys.executable, "/usr/bin/python3"):
        if (
            Path(python).exists()
            and not subprocess.run([python, "-c", ask], capture_output=True, check=False).returncode
        ):
            return python
    pytest.skip("no OpenCV with GStreamer is installed (Debian: python3-opencv)")


def test_pipeline_scales_a_file_before_the_cpu_sees_it(tmp_path: Path) -> None:
    python = python_with_gstreamer()
    path = write_video(tmp_path / 'a "b".mp4', plain(RED, 1, size=(96, 128)), codec="libx264")
    done = subprocess.run(
        [python, "-c", READ_PIPELINE, str(path)], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    if "no element" in done.stderr:
        pytest.skip(f"GStreamer lacks elements: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["shape"] == [48, 64, 3]
    assert len(seen["times"]) == 25
    assert seen["times"] == sorted(set(seen["times"]))
    assert seen["times"] == pytest.approx(
        [n / 25 for n in range(25)], abs=0.2401
    )  # GStreamer tells the position of the pipeline, whose queues hold some pictures
    assert seen["means"][12] == pytest.approx(RED, abs=15)
