"""A real RTSP server on this machine that can be killed, stalled and started again, and servers that are none."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeclf.errors import VideoError
from edgeclf.video import Frame, VideoSource
from tests.support.videos import RED, plain, write_video

STREAM = "live.mp4"


def server_program() -> str:
    """The server of aio-rtsp-toolkit; skips the test where it is not installed."""
    beside = Path(sys.executable).with_name("rtsp-server")
    found = str(beside) if beside.exists() else shutil.which("rtsp-server")
    if not found:
        pytest.skip("aio-rtsp-toolkit[server] is not installed")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspServer:
    """Serves one H.264 clip of 25 pictures a second, over and over, to every client from its start."""

    def __init__(self, folder: Path) -> None:
        self._program = server_program()
        self._folder = folder
        self._port, self._control_port = free_port(), free_port()
        self._process: subprocess.Popen[str] | None = None
        self._log: threading.Thread
        low_delay = {"tune": "zerolatency", "g": "25", "preset": "ultrafast"}
        write_video(folder / STREAM, plain(RED, 8, size=(48, 64)), codec="libx264", options=low_delay)

    @property
    def url(self) -> str:
        return f"rtsp://viewer:secret@127.0.0.1:{self._port}/{STREAM}"

    def start(self) -> None:
        """Return when it takes connections."""
        ports = ["--port", str(self._port), "--control-port", str(self._control_port)]
        self._process = subprocess.Popen(
            [self._program, "--dir", str(self._folder), "--host", "127.0.0.1", *ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output = self._process.stdout
        assert output
        assert any("listening" in line for line in output), "the server did not start"
        self._log = threading.Thread(target=output.read, name="rtsp log", daemon=True)  # a full pipe would stall it
        self._log.start()

    def kill(self) -> None:
        if process := self._process:
            self._process = None
            process.kill()
            process.wait()
            self._log.join()
            assert process.stdout
            process.stdout.close()

    def stall(self) -> None:
        """Send nothing more, and keep the connections."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)


@contextmanager
def mute_server() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


class Viewer:
    """Reads a source on a thread of its own, and waits for what it has seen."""

    def __init__(self, source: VideoSource) -> None:
        self.source = source
        self.frames: list[Frame] = []
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="viewer", daemon=True)

    def __enter__(self) -> Viewer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the source did not end"

    def wait_for(self, seen: Callable[[Viewer], bool], *, seconds: float = 20.0) -> None:
        """Return when `seen` is true of this viewer; fail where that takes too long."""
        with self._changed:
            assert self._changed.wait_for(lambda: seen(self) or self._ended, seconds), "nothing came in time"
        assert seen(self), f"the source ended before: {self.error}"

    def wait_for_end(self, seconds: float) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, seconds), "the source did not end in time"

    def _read(self) -> None:
        try:
            for frame in self.source.frames():
                with self._changed:
                    self.frames.append(frame)
                    self._changed.notify_all()
        except VideoError as error:
            self.error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()
