"""Stand-ins for cameras and for OpenCV, which do what a test tells them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.video import Frame, FrameChooser, RgbImage


def picture(value: int, *, size: tuple[int, int] = (4, 6)) -> NDArray[np.uint8]:
    return np.full((*size, 3), value, np.uint8)


class FakeCapture:
    """An open `cv2.VideoCapture` of given pictures; None in the place of one cannot be retrieved."""

    def __init__(
        self,
        pictures: Sequence[NDArray[np.uint8] | None],
        *,
        times: Sequence[float] | None = None,
        rate: float = 25.0,
        count: float = 0.0,
        opened: bool = True,
        size: tuple[int, int] = (4, 6),
    ) -> None:
        self._pictures = pictures
        self._times = times or [n / 25 for n in range(len(pictures))]
        self._numbers = {
            "FPS": rate,
            "FRAME_COUNT": count,
            "FRAME_HEIGHT": float(size[0]),
            "FRAME_WIDTH": float(size[1]),
        }
        self._opened = opened
        self._at = -1
        self.retrieved: list[int] = []
        self.threads: set[str] = set()
        self.released = 0

    def isOpened(self) -> bool:
        return self._opened

    def getBackendName(self) -> str:
        return "FAKE"

    def get(self, name: str) -> float:
        if name == "POS_MSEC":
            return self._times[max(self._at, 0)] * 1000
        return self._numbers[name]

    def grab(self) -> bool:
        self._note()
        self._at += 1
        return self._at < len(self._pictures)

    def retrieve(self) -> tuple[bool, NDArray[np.uint8] | None]:
        self._note()
        self.retrieved.append(self._at)
        found = self._pictures[self._at]
        return found is not None, found

    def release(self) -> None:
        self._note()
        self.released += 1

    def _note(self) -> None:
        self.threads.add(threading.current_thread().name)


def fake_cv2(*captures: FakeCapture, version: str = "5.0.0") -> Any:
    """A module like cv2 that opens these captures one after another, and remembers with what."""
    waiting = list(captures)
    opened: list[tuple[Any, ...]] = []

    def video_capture(*arguments: Any) -> FakeCapture:
        opened.append(arguments)
        return waiting.pop(0)

    names = ("FPS", "FRAME_COUNT", "FRAME_HEIGHT", "FRAME_WIDTH", "POS_MSEC", "N_THREADS")
    properties = {f"CAP_PROP_{name}": name for name in (*names, "OPEN_TIMEOUT_MSEC", "READ_TIMEOUT_MSEC")}
    apis = {f"CAP_{name}": name for name in ("FFMPEG", "V4L2", "GSTREAMER")}
    return SimpleNamespace(__version__=version, VideoCapture=video_capture, opened=opened, **properties, **apis)


class ScriptedConnection:
    """One connection of a live source: pictures at given times with given arrivals, then an error or the end."""

    def __init__(
        self,
        moments: Sequence[tuple[float, float]],
        *,
        error: BaseException | None = None,
        dropped: dict[str, int] | None = None,
    ) -> None:
        self.name = "scripted"
        self.decoder = "script"
        self.dropped = dropped or {}
        self.closed = False
        self.verdicts: list[int] = []  # how many came with each picture
        self._moments = moments
        self._error = error
        self._chooser: FrameChooser | None = None

    def skip_with(self, chooser: FrameChooser) -> None:
        self._chooser = chooser

    def frames(self) -> Iterator[Frame]:
        for pts, arrival in self._moments:
            if self._chooser:
                self.verdicts.append(len(self._chooser.add(pts)))
            yield Frame(pts, partial(_black, self.name), arrival)
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed = True


def _black(_name: str) -> RgbImage:
    return np.zeros((4, 6, 3), np.uint8)
