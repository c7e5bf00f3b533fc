from __future__ import annotations

import http.server
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from edgeclf.errors import VideoError
from edgeclf.live_source import LiveSource, Patience, open_live, peek
from tests.support.cameras import ScriptedConnection
from tests.support.rtsp import STREAM, RtspServer, Viewer, free_port, mute_server
from tests.support.videos import RED, plain, write_video

EAGER = Patience(first_wait=1e-3, longest_wait=1e-3)
LIVELY = Patience(open_seconds=3.0, read_seconds=1.0)


def paced(count: int, *, start: float, pts: float = 0.0) -> list[tuple[float, float]]:
    """Pictures of a connection that come when they are made, 25 a second."""
    return [(pts + n / 25, start + n / 25) for n in range(count)]


def connections(*parts: ScriptedConnection | VideoError) -> Callable[[], ScriptedConnection]:
    waiting = iter(parts)

    def connect() -> ScriptedConnection:
        part = next(waiting)
        if isinstance(part, VideoError):
            raise part
        return part

    return connect


def read(source: LiveSource) -> tuple[list[float], str]:
    """The times of all frames, and the error behind them."""
    times: list[float] = []
    try:
        times.extend(frame.pts_seconds for frame in source.frames())
    except VideoError as error:
        return times, str(error)
    return times, ""


def gone() -> VideoError:
    return VideoError("cam cannot be read as a video: no route")


def test_pictures_that_a_server_had_in_store_are_stale() -> None:
    burst = [(n / 25, 100 + n / 1000) for n in range(7)]
    fresh = paced(5, start=100.05, pts=7 / 25)
    source = LiveSource(
        "rtsp://cam", patience=Patience(retries=0), connect=connections(ScriptedConnection(burst + fresh))
    )
    times, message = read(source)
    assert times == pytest.approx([n / 25 for n in range(5)])
    assert source.dropped == {"stale": 7}
    assert "was lost" in message


def test_server_that_sends_faster_than_real_time_is_not_stale_for_ever() -> None:
    rush = [(n / 25, 100 + n / 1000) for n in range(250)]
    source = LiveSource("rtsp://cam", patience=Patience(retries=0), connect=connections(ScriptedConnection(rush)))
    times, _ = read(source)
    assert source.dropped == {"stale": 125}
    assert len(times) == 125


def test_times_go_on_by_the_clock_after_a_loss() -> None:
    first, second = paced(4, start=100), paced(4, start=107.5)
    connect = connections(ScriptedConnection(first), ScriptedConnection(second), *[gone()] * 2)
    source = LiveSource("rtsp://cam", patience=Patience(first_wait=1e-3, retries=2), connect=connect)
    times, message = read(source)
    assert times == pytest.approx([0.0, 0.04, 0.08, 7.5, 7.54, 7.58])
    assert source.reconnects == 1
    assert source.lost_seconds > 7.54 - 0.12 - 1e-6
    assert source.dropped == {"stale": 2}
    assert message.startswith("rtsp://cam was lost and 2 attempts to reach it again failed: cam cannot be read")


def test_times_never_go_back_where_the_clock_does() -> None:
    connect = connections(ScriptedConnection(paced(50, start=100)), ScriptedConnection(paced(3, start=100.5)))
    source = LiveSource("rtsp://cam", patience=EAGER, connect=connect, burst=False)
    frames = source.frames()
    times = [next(frames).pts_seconds for _ in range(53)]
    assert times == sorted(set(times))


def test_loss_and_return_are_each_told_once(caplog: pytest.LogCaptureFixture) -> None:
    connect = connections(
        ScriptedConnection(paced(2, start=100)), gone(), ScriptedConnection(paced(2, start=103.04)), gone(), gone()
    )
    source = LiveSource(
        "rtsp://me:secret@cam",
        patience=Patience(first_wait=1e-3, longest_wait=1e-3, retries=2),
        connect=connect,
        burst=False,
    )
    with caplog.at_level(logging.WARNING):
        times, _ = read(source)
    assert len(times) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "rtsp://***@cam is lost: the connection ended",
        "rtsp://***@cam is back after 3.0 s",
        "rtsp://***@cam is lost: the connection ended",
    ]


def test_source_that_was_never_there_fails_after_its_attempts() -> None:
    made = []

    def connect() -> ScriptedConnection:
        made.append(1)
        raise gone()

    _, message = read(LiveSource("rtsp://me:secret@cam", patience=EAGER, connect=connect))
    assert len(made) == 3
    assert message.startswith("rtsp://***@cam cannot be opened: ")
    assert "secret" not in message


def test_what_connections_dropped_is_added_up() -> None:
    parts = [ScriptedConnection(paced(3, start=100 + n), dropped={"corrupt": n + 1}) for n in range(2)]
    source = LiveSource(
        "rtsp://cam", patience=Patience(first_wait=1e-3, retries=1), connect=connections(*parts, gone())
    )
    times, _ = read(source)
    assert len(times) == 4
    assert source.dropped == {"stale": 2, "corrupt": 3}
    assert all(part.closed for part in parts)


def test_close_ends_the_wait_for_the_next_attempt() -> None:
    failed = threading.Event()

    def connect() -> ScriptedConnection:
        failed.set()
        raise gone()

    patience = Patience(first_wait=600.0, longest_wait=600.0)
    with Viewer(LiveSource("rtsp://cam", patience=patience, connect=connect)) as viewer:
        assert failed.wait(10)
        viewer.source.close()
        viewer.wait_for_end(10)
    assert viewer.error is None


def test_waits_double_up_to_the_longest_one() -> None:
    waits = Patience().waits()
    for wanted in (0.25, 0.5, 1.0, 2.0, 4.0, 4.0):
        assert 0.8 * wanted <= next(waits) <= 1.2 * wanted


@pytest.mark.parametrize("wrong", [{"open_seconds": 0.0}, {"connect_attempts": 0}, {"retries": -1}])
def test_patience_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(VideoError):
        Patience(**wrong)  # type: ignore[arg-type]


class NotingChooser:
    """Wants everything, and says so `late` pictures later."""

    def __init__(self, late: int = 0) -> None:
        self.times: list[float] = []
        self._late = late

    def add(self, pts_seconds: float) -> list[bool]:
        self.times.append(pts_seconds)
        return [True] * (len(self.times) > self._late)

    def finish(self) -> list[bool]:
        return [True] * min(self._late, len(self.times))


def test_chooser_is_asked_with_the_times_that_frames_will_have() -> None:
    chooser = NotingChooser()
    parts = [ScriptedConnection(paced(4, start=time.perf_counter())) for _ in range(2)]
    source = LiveSource(
        "rtsp://cam", patience=Patience(first_wait=1e-3, retries=1), connect=connections(*parts, gone()), burst=False
    )
    source.skip_with(chooser)
    times, _ = read(source)
    assert len(times) == 8
    assert chooser.times == times


def test_verdicts_on_a_lost_connection_are_not_told_to_the_next() -> None:
    parts = [ScriptedConnection(paced(6, start=time.perf_counter())) for _ in range(2)]
    patience = Patience(first_wait=1e-3, retries=1)
    source = LiveSource("rtsp://cam", patience=patience, connect=connections(*parts, gone()), burst=False)
    source.skip_with(NotingChooser(late=2))
    assert len(read(source)[0]) == 12
    assert [part.verdicts for part in parts] == [[0, 0, 1, 1, 1, 1]] * 2


# --- a real server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RtspServer]:
    server = RtspServer(tmp_path)
    server.start()
    yield server
    server.kill()


def live(url: str) -> LiveSource:
    source = open_live(url, patience=LIVELY)
    assert isinstance(source, LiveSource)
    return source


def test_stream_is_read_as_it_comes(server: RtspServer) -> None:
    source = live(server.url)
    with Viewer(source) as viewer:
        viewer.wait_for(lambda seen: len(seen.frames) >= 25)
    frames = viewer.frames[:25]
    assert frames[0].pts_seconds == 0
    assert all(frame.arrival is not None for frame in frames)
    assert frames[24].pts_seconds == pytest.approx(0.96, abs=0.1)
    assert frames[0].image.mean(axis=(0, 1)) == pytest.approx(RED, abs=15)
    assert source.dropped["stale"] >= 1
    assert source.received >= len(viewer.frames) + source.dropped["stale"]
    assert source.decoder.startswith("PyAV")
    assert "secret" not in source.name


@contextmanager
def told(words: str) -> Iterator[threading.Event]:
    """An event that is set when a live source says these words in the log."""
    event = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if words in record.getMessage():
                event.set()

    log, listener = logging.getLogger("edgeclf.live_source"), Listener()
    log.addHandler(listener)
    yield event
    log.removeHandler(listener)


def test_killed_server_is_found_again_when_it_is_back(server: RtspServer) -> None:
    source = live(server.url)
    with Viewer(source) as viewer, told("is lost: the connection ended") as lost:
        viewer.wait_for(lambda seen: len(seen.frames) >= 5)
        server.kill()
        assert lost.wait(10)
        before = len(viewer.frames)
        server.start()
        viewer.wait_for(lambda seen: len(seen.frames) >= before + 5)
    assert source.reconnects == 1
    assert source.lost_seconds == pytest.approx(viewer.frames[before].arrival - viewer.frames[before - 1].arrival)  # type: ignore[operator]
    times = [frame.pts_seconds for frame in viewer.frames]
    assert times == sorted(set(times))
    assert times[before] - times[before - 1] == pytest.approx(source.lost_seconds, abs=0.5)


def test_stall_is_a_loss_and_the_stream_comes_back(server: RtspServer) -> None:
    source = live(server.url)
    with Viewer(source) as viewer, told("is lost: nothing came for") as lost:
        viewer.wait_for(lambda seen: len(seen.frames) >= 5)
        server.stall()
        assert lost.wait(10)
        before = len(viewer.frames)
        server.go_on()
        viewer.wait_for(lambda seen: len(seen.frames) >= before + 5)
    assert source.reconnects == 1


def test_close_during_a_stall_ends_within_the_time_out(server: RtspServer) -> None:
    source = live(server.url)
    with Viewer(source) as viewer:
        viewer.wait_for(lambda seen: len(seen.frames) >= 5)
        server.stall()
        source.close()
        viewer.wait_for_end(2 * LIVELY.read_seconds + 4)  # the machine may be loaded
    assert viewer.error is None


def test_missing_stream_is_named_without_its_password(server: RtspServer) -> None:
    _, message = read(live(server.url.replace(STREAM, "none.mp4")))
    assert message.startswith("rtsp://***@127.0.0.1:")
    assert message.endswith("cannot be opened: Server returned 404 Not Found; check the path in the URL")


def test_closed_port_is_told() -> None:
    _, message = read(live(f"rtsp://127.0.0.1:{free_port()}/a"))
    assert "cannot be opened: Connection refused; check address and port" in message


def test_server_that_never_answers_is_given_up() -> None:
    patience = Patience(open_seconds=0.5, connect_attempts=2, first_wait=1e-3)
    with mute_server() as port:
        source = open_live(f"rtsp://127.0.0.1:{port}/a", patience=patience)
        assert isinstance(source, LiveSource)
        _, message = read(source)
    assert "cannot be opened: nothing came for 0." in message


def test_scheme_that_ffmpeg_does_not_know_is_told() -> None:
    _, message = read(LiveSource("mms://cam/1", patience=EAGER))
    assert "this build of FFmpeg cannot open such URLs" in message


# --- web servers


class Camera(http.server.BaseHTTPRequestHandler):
    """Sends JPEG pictures, 25 a second and ten a connection, as IP cameras do."""

    def do_GET(self) -> None:
        import cv2
        import numpy as np

        done, data = cv2.imencode(".jpg", np.full((48, 64, 3), 128, np.uint8))
        assert done
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        pace = threading.Event()
        with suppress(ConnectionError):  # nobody looks any more
            for _ in range(10):
                self.wfile.write(head + data.tobytes() + b"\r\n")
                pace.wait(0.04)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def web_server(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="web")
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Files(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, folder: Path) -> None:
        super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None: ...


def test_recording_on_a_web_server_ends_where_it_ends(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", plain(RED, 1), options={"movflags": "faststart"})
    with web_server(partial(Files, folder=tmp_path)) as url:
        frames = list(open_live(f"{url}/a.mp4").frames())
    assert len(frames) == 25
    assert all(frame.arrival is None for frame in frames)  # none of them may be dropped


def test_camera_on_a_web_server_is_live() -> None:
    with web_server(Camera) as url, Viewer(open_live(f"{url}/video", patience=LIVELY)) as viewer:
        viewer.wait_for(lambda seen: len(seen.frames) >= 15)  # more than one connection gives
    assert all(frame.arrival is not None for frame in viewer.frames)


def test_look_at_a_file_tells_what_it_is(tmp_path: Path) -> None:
    facts = peek(str(write_video(tmp_path / "a.mkv", plain(RED, 1), codec="libx264")))
    assert (facts.codec, facts.height, facts.width) == ("h264", 48, 64)
    assert facts.container.startswith("matroska")
    with pytest.raises(VideoError, match="does not exist"):
        peek("none.mp4")
