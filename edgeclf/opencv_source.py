"""Cameras, GStreamer pipelines and files through OpenCV, with a look at the faults that it keeps quiet about.

OpenCV 4.13 to 5.0 hand out interlaced H.264 and MPEG-2 as pictures that count as read and hold whatever was in the
memory, which is mostly black. All versions stop at the first packet that cannot be decoded as if the file ended
there, and tell times of 0 for files that declare an absurd rate.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclf.av_reader import MAX_PIXELS, RATES, SCALE_HINT, USUAL_RATE, GrowingTime, import_av, regular_file, too_large
from edgeclf.errors import EdgeclfError, VideoError, import_extra
from edgeclf.video import Frame, FrameChooser, RgbImage, converting, redacted

Api = Literal["ffmpeg", "v4l2", "gstreamer"]
SAME_RUN = 50  # without PyAV, which knows better, so many equal pictures from the start are taken for the fault
_INTERLACED_FAULT = (4, 13)  # the first version that has it
_GSTREAMER_LIMITS = (4, 7)  # the first version whose pipelines take time-outs; 4.6 hangs when it is given some
_clock = time.perf_counter

_Picture = NDArray[np.uint8]  # (H, W, 3) BGR, (H, W, 4) BGRx or (H, W) grey


class OpenCvSource:
    """A camera, a GStreamer pipeline, or a file, as OpenCV reads it.

    `target` is what OpenCV opens: the index of a camera, a pipeline, a path or a URL. Live pictures carry their
    arrival, which is also the time of a camera's, and their end is just the end; that of a file is compared with
    what it declares. It is opened, read and released by the thread that iterates `frames`: a release from
    another thread, which OpenCV allows, crashes the process. `close` only sets a flag and may be called from any.
    """

    def __init__(
        self,
        name: str,
        target: int | str,
        *,
        api: Api | None = None,
        live: bool = False,
        timeout: tuple[float, float] = (5.0, 2.0),
    ) -> None:
        self.name = redacted(name)
        self.decoder = ""
        self.dropped: dict[str, int] = {}
        self.received = 0  # pictures that were grabbed: once `frames` has ended by itself, its frames and `dropped`
        self._target = target
        self._api: Api = api or ("v4l2" if isinstance(target, int) else "ffmpeg")
        self.live = live
        self._timeout = timeout
        self._chooser: FrameChooser | None = None
        self._closed = False
        self._refusal: VideoError | None = None  # of a picture; raised behind the frames before it

    def skip_with(self, chooser: FrameChooser) -> None:
        self._chooser = chooser

    def close(self) -> None:
        self._closed = True

    def frames(self) -> Iterator[Frame]:
        cv2 = _import_cv2()
        capture = self._open(cv2)
        try:
            reader = _Reader(cv2, capture, live=self.live, by_arrival=self.live and self._api != "ffmpeg")
            self._refuse_large(reader)
            self.decoder = f"OpenCV {cv2.__version__} {capture.getBackendName()}"
            check = self._fault_check(_version(cv2))
            yield from self._judged(reader, check) if self._chooser else self._all(reader, check)
            if self._refusal:
                raise self._refusal
            if not self._closed:
                check.end(reader)
        finally:
            capture.release()

    def _open(self, cv2: Any) -> Any:
        target = self._target
        if self._api == "ffmpeg" and isinstance(target, str) and "://" not in target:
            regular_file(target)
        capture = cv2.VideoCapture(target, getattr(cv2, _APIS[self._api]), self._limits(cv2))
        if not capture.isOpened():
            capture.release()
            raise VideoError(f"{self.name} cannot be opened by OpenCV", hint=_OPEN_HINTS[self._api])
        return capture

    def _fault_check(self, version: tuple[int, ...]) -> _FaultCheck:
        target = str(self._target)
        path = target if self._api == "ffmpeg" and "://" not in target else None
        return _FaultCheck(self.name, path, live=self.live, wary=self._api == "ffmpeg" and version >= _INTERLACED_FAULT)

    def _limits(self, cv2: Any) -> list[int]:
        """Limits on every wait. A second codec thread would need one more time-out to notice a stall."""
        if self._api == "v4l2" or (self._api == "gstreamer" and _version(cv2) < _GSTREAMER_LIMITS):
            return []  # OpenCV waits for a camera for 10 s at most; an old GStreamer relies on its pipeline's elements
        opening, reading = (round(1000 * seconds) for seconds in self._timeout)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, opening, cv2.CAP_PROP_READ_TIMEOUT_MSEC, reading]
        threads = getattr(cv2, "CAP_PROP_N_THREADS", None)  # old versions have one thread for each core
        return limits + ([threads, 1] if threads is not None and self._api == "ffmpeg" else [])

    def _refuse_large(self, reader: _Reader) -> None:
        if reader.pixels > MAX_PIXELS:
            raise VideoError(f"{self.name}: its {too_large()}", hint=SCALE_HINT)

    def _all(self, reader: _Reader, check: _FaultCheck) -> Iterator[Frame]:
        for moment in self._moments(reader):
            frame = self._frame(reader, check, moment)
            if frame:
                yield frame

    def _judged(self, reader: _Reader, check: _FaultCheck) -> Iterator[Frame]:
        """All frames, of which only those that the chooser wants are converted."""
        chooser = self._chooser
        assert chooser is not None
        waiting: deque[Frame | None] = deque()  # for their verdicts; None: a picture that is no frame
        for moment in self._moments(reader):
            verdicts = chooser.add(moment.pts_seconds)
            skip = len(verdicts) > len(waiting) and not verdicts[-1]
            waiting.append(_undecoded(moment) if skip else self._frame(reader, check, moment))
            yield from _released(waiting, verdicts)
        if not self._closed:
            yield from _released(waiting, chooser.finish())

    def _moments(self, reader: _Reader) -> Iterator[_Moment]:
        while not (self._closed or self._refusal) and (moment := reader.grab()):
            self.received += 1
            yield moment

    def _frame(self, reader: _Reader, check: _FaultCheck, moment: _Moment) -> Frame | None:
        picture = reader.retrieve()
        if picture is None or not self._accepts(picture, reader, check):
            self.dropped["corrupt"] = self.dropped.get("corrupt", 0) + 1
            return None
        return Frame(moment.pts_seconds, partial(_rgb, picture, self.name), moment.arrival, source=self.name)

    def _accepts(self, picture: _Picture, reader: _Reader, check: _FaultCheck) -> bool:
        """Whether the picture is one; if not, the source ends with the reason."""
        try:
            _refuse_strange(self.name, picture, reader.declared_size)
            check.picture(picture)
        except VideoError as refusal:
            self._refusal = refusal
        return self._refusal is None


_APIS = {"ffmpeg": "CAP_FFMPEG", "v4l2": "CAP_V4L2", "gstreamer": "CAP_GSTREAMER"}
_USE_PYAV = "use the decoder pyav, which is the default"
_OPEN_HINTS = {
    "ffmpeg": f"check that it is a video, or {_USE_PYAV} and says more",
    "v4l2": "check that the camera is plugged in, that nothing else uses it, and that you may read it (group video)",
    "gstreamer": "try it with gst-launch-1.0, which says what is wrong; it has to end with appsink",
}


def _undecoded(moment: _Moment) -> Frame:
    return Frame(moment.pts_seconds, _no_image, moment.arrival, decoded=False)


def _no_image() -> RgbImage:
    raise VideoError("a picture was asked for that was skipped", hint="report this as a bug")


def _released(waiting: deque[Frame | None], verdicts: list[bool]) -> Iterator[Frame]:
    """The oldest waiting frames, as many as there are verdicts."""
    for wanted in verdicts:
        frame = waiting.popleft()
        if frame:
            yield frame if wanted or not frame.decoded else _undecoded(_Moment(frame.pts_seconds, frame.arrival))


@dataclass(frozen=True, slots=True)
class _Moment:
    """When a grabbed picture is."""

    pts_seconds: float
    arrival: float | None


class _Reader:
    """An open capture that tells times which start at 0 and only grow."""

    def __init__(self, cv2: Any, capture: Any, *, live: bool, by_arrival: bool) -> None:
        self._cv2 = cv2
        self._capture = capture
        self._live = live
        self._by_arrival = by_arrival
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if RATES[0] <= rate <= RATES[1] else None
        height, width = self.declared_size()
        self.pixels = height * width
        self.count = 0
        self.last_seconds = 0.0
        self._time = GrowingTime()
        self._last_stamp: float | None = None

    def declared_size(self) -> tuple[int, int]:
        """(height, width) as the capture says now."""
        cv2, capture = self._cv2, self._capture
        return int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))

    @property
    def declared_seconds(self) -> float | None:
        """How long the file says it is; None where it does not, or says nonsense."""
        frames = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        return frames / self.rate if self.rate and 0 < frames < 1e9 else None

    def grab(self) -> _Moment | None:
        """The next picture's moment, without converting it; None at the end, and wherever OpenCV gives up."""
        if not self._capture.grab():
            return None
        arrival = _clock() if self._live else None
        stamp = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000  # only after grab is it this picture's
        self.last_seconds = self._seconds(arrival if arrival is not None and self._by_arrival else stamp)
        self.count += 1
        return _Moment(self.last_seconds, arrival)

    def _seconds(self, stamp: float) -> float:
        tells_no_time = stamp == self._last_stamp
        self._last_stamp = stamp
        return self._time.at(None if tells_no_time else stamp, 1 / (self.rate or USUAL_RATE))

    def retrieve(self) -> _Picture | None:
        """The picture grabbed last; None where it cannot be had."""
        done, picture = self._capture.retrieve()
        return picture if done else None


class _FaultCheck:
    """Raises VideoError where OpenCV gives what is not in the video, or less than that.

    path: of a file, which PyAV can look at, if it is there. wary: this OpenCV cannot convert interlaced pictures.
    """

    def __init__(self, name: str, path: str | None, *, live: bool, wary: bool) -> None:
        self._name = name
        self._path = path
        self._live = live
        self._wary = wary
        self._first: _Picture | None = None
        self._same = 0

    def picture(self, picture: _Picture) -> None:
        """Look at one more picture. An interlaced one is not converted: it holds what the last one held."""
        if not self._wary:
            return
        if self._first is None:
            self._first = picture
            interlaced = _is_interlaced(self._path) if self._path else None
            self._wary = interlaced is not False
            if interlaced:
                raise self._fault("is interlaced, which this OpenCV does not show")
        self._same += 1
        if not np.array_equal(picture, self._first):
            self._wary = False
        elif self._same >= SAME_RUN:
            raise self._fault(f"shows nothing but {SAME_RUN} equal pictures, as this OpenCV makes of interlaced video")

    def _fault(self, what: str) -> VideoError:
        return VideoError(f"{self._name} {what}", hint=_USE_PYAV)

    def end(self, reader: _Reader) -> None:
        """Compare the end with what the file declares: OpenCV's end may be the first damage."""
        if self._live:
            return
        if not reader.count:
            raise self._fault("gives OpenCV no picture")
        if self._path is None or reader.declared_seconds is None or reader.rate is None:
            return
        missing = reader.declared_seconds - reader.last_seconds - 1 / reader.rate
        if missing > 1.5 / reader.rate and _is_cut_off(self._path, reader, missing):
            where = f"after {reader.count} pictures, {reader.last_seconds:.1f} s into {reader.declared_seconds:.1f} s"
            hint = "copy or record it again; the decoder pyav, the default, passes over damage"
            raise VideoError(f"{self._name} is damaged or cut off: OpenCV stopped {where}", hint=hint)


def _is_cut_off(path: str, reader: _Reader, missing: float) -> bool:
    """Whether pictures are missing, rather than that sound goes on or a frame rate was rounded."""
    assert reader.declared_seconds is not None
    assert reader.rate is not None
    content = _content(path)
    if content is None:
        return missing > max(1.0, 0.1 * reader.declared_seconds)
    packets, seconds = content
    step = 1 / reader.rate
    return packets > reader.count or (seconds or 0.0) - reader.last_seconds - step > max(3 * step, 0.2)


def _is_interlaced(path: str) -> bool | None:
    """Whether the first pictures are, as PyAV sees them; None without PyAV."""
    av = _optional_av()
    if av is None:
        return None
    try:
        with av.open(path, metadata_errors="ignore") as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                return None
            return any(picture.interlaced_frame for picture in islice(container.decode(video=0), 3))
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        return None


def _content(path: str) -> tuple[float, float | None] | None:
    """How many pictures are in the file, decodable or not, and how long they should last; None without PyAV."""
    av = _optional_av()
    if av is None:
        return None
    try:
        with av.open(path, metadata_errors="ignore") as container:
            if not container.streams.video:
                return None
            stream = container.streams.video[0]
            rate = stream.average_rate
            seconds = float(stream.frames / rate) if stream.frames and rate else None
            return sum(packet.size > 0 for packet in container.demux(stream)), seconds
    except (av.error.FFmpegError, OSError, IndexError):
        return float("inf"), None  # it cannot even be read to its end


def _optional_av() -> Any:
    try:
        return import_av()
    except (EdgeclfError, ImportError):
        return None


def _refuse_strange(name: str, picture: _Picture, declared_size: Callable[[], tuple[int, int]]) -> None:
    """Raise VideoError where a picture is not 8-bit BGR, BGRx or grey.

    YUY2 has two channels. I420 and NV12 look like a grey picture that is half as high again as the capture says.
    """
    channels = picture.shape[2] if picture.ndim == 3 else 1
    known = picture.dtype == np.uint8 and picture.ndim in (2, 3) and channels in (1, 3, 4)
    if not known or (channels == 1 and picture.shape[:2] != declared_size()):
        found = f"{'x'.join(map(str, picture.shape))} of {picture.dtype}"
        hint = "add `videoconvert ! video/x-raw,format=BGR` before the appsink, or have the camera give BGR"
        raise VideoError(f"{name} gives pictures of an unknown format ({found})", hint=hint)


def _rgb(picture: _Picture, name: str) -> RgbImage:
    """uint8 (H, W, 3) RGB of what OpenCV or a pipeline gave."""
    cv2 = import_extra("cv2", "OpenCV", "cpu")
    codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    with converting(name, cv2.error):
        channels = picture.shape[2] if picture.ndim == 3 else 1
        return np.asarray(cv2.cvtColor(picture, codes[channels]), np.uint8)


def _version(cv2: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", cv2.__version__)[:2])


def _import_cv2() -> Any:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once; a damaged file can print hundreds of lines
    cv2 = import_extra("cv2", "OpenCV", "cpu")
    with suppress(AttributeError):  # old versions have no such setting
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our errors say what matters of it
    return cv2
