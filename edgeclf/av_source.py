"""Video files through PyAV, the Python binding of FFmpeg's libraries.

PyAV rather than OpenCV: it tells corruption from the end of a file, gives exact time stamps, and decodes
interlaced H.264, which OpenCV 4.13 to 5.0 hands out as black pictures that count as read.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgeclf.errors import VideoError, import_extra
from edgeclf.video import Frame, RgbImage

if TYPE_CHECKING:
    import av
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

MAX_PIXELS = 64 << 20  # a 16000x16000 MJPEG of 1.5 MB took 1.2 GB to decode
MAX_BAD_PACKETS = 100  # in a row; then nothing more is to be expected of the file
_MIN_STEP = 1e-3  # seconds between frames whose time stamps stand still or go back a little
_MAX_STEP_BACK = 1.0  # seconds; time stamps that go back further start anew
_RATES = (0.1, 1000.0)  # declared frame rates outside are not believed


class AvSource:
    """A video file. Frames that the decoder flags as damaged are dropped and counted, not handed out."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.decoder = ""
        self.dropped: dict[str, int] = {}
        self._closed = False
        self._packets_read = 0

    def frames(self) -> Iterator[Frame]:
        av = _import_av()
        try:
            container = av.open(_regular_file(self.name), metadata_errors="ignore")
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.name} cannot be read as a video: {_reason(error)}", hint=_OPEN_HINT) from error
        with container:
            if container.format.name in _PLAYLISTS:
                raise VideoError(f"{self.name} is a list of other files ({container.format.name})", hint=_LIST_HINT)
            clock = _Clock()
            reformatter = av.video.reformatter.VideoReformatter()
            stream = _video_stream(container, self.name)
            self.decoder = f"PyAV {av.__version__} {stream.codec_context.name}"
            for picture in self._pictures(container, stream):
                yield Frame(clock.seconds(picture), partial(_upright_rgb, reformatter, picture))
            self._account(clock.frames)
            self._raise_if_damaged(clock.frames)

    def close(self) -> None:
        self._closed = True

    def _pictures(self, container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        stream.codec_context.thread_count = 1  # the extractor has the other cores, see docs/pipeline.md
        bad_in_a_row = 0
        for packet in self._packets(container, stream):
            decoded = self._decode(packet)
            bad_in_a_row = bad_in_a_row + 1 if decoded is None else 0
            if self._closed or bad_in_a_row >= MAX_BAD_PACKETS:
                return
            for picture in decoded or []:
                if picture.is_corrupt:
                    self._drop("corrupt")
                else:
                    yield picture

    def _packets(self, container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.Packet[Any]]:
        errors = _import_av().error
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except errors.FFmpegError:
                self._drop("corrupt")
                return
            self._packets_read += packet.size > 0  # the last one is empty and flushes the decoder
            if packet.size and stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                self._drop("too_large")
                continue
            yield packet

    def _decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame] | None:
        try:
            return list(packet.decode())
        except _import_av().error.FFmpegError:
            self._drop("corrupt")
            return None

    def _drop(self, cause: str) -> None:
        self.dropped[cause] = self.dropped.get(cause, 0) + 1

    def _account(self, good: int) -> None:
        """Count the packets that gave neither a picture nor an error, such as VP8's hidden reference frames."""
        silent = self._packets_read - good - sum(self.dropped.values())
        if silent > 0 and not self._closed:
            self.dropped["no_picture"] = silent

    def _raise_if_damaged(self, good: int) -> None:
        if self._closed:
            return
        if lost := self.dropped.get("too_large"):
            raise VideoError(f"{self.name}: {lost} pictures exceed {MAX_PIXELS >> 20} million pixels", hint=_SCALE_HINT)
        lost = self.dropped.get("corrupt", 0)
        if not good:
            found = f"none of its {lost} pictures can be decoded" if lost else "it holds no picture"
            raise VideoError(f"{self.name}: {found}", hint=_OPEN_HINT)
        if lost:
            raise VideoError(f"{self.name} is damaged: {lost} of {lost + good} pictures are lost", hint=_COPY_HINT)


_PLAYLISTS = frozenset({"concat", "hls", "dash", "imf", "sdp"})  # what is read must be what was named
_LIST_HINT = "name the videos themselves"
_OPEN_HINT = "check that the file is complete and is a video"
_COPY_HINT = "what could be decoded was used; copy or record the file again"
_SCALE_HINT = "scale the video down first"


class _Clock:
    """Presentation times that start at 0 and only grow, whatever the container says."""

    def __init__(self) -> None:
        self.frames = 0
        self._origin = 0.0
        self._last = 0.0

    def seconds(self, picture: av.VideoFrame) -> float:
        stamp = picture.time
        if self.frames == 0:
            self._origin = stamp or 0.0
            now = 0.0
        elif stamp is None:
            now = self._last + _frame_seconds(picture)
        else:
            now = stamp - self._origin
            if now < self._last - _MAX_STEP_BACK:  # another recording was appended: it goes on from here
                now = self._last + _frame_seconds(picture)
                self._origin = stamp - now
            now = max(now, self._last + _MIN_STEP)
        self.frames += 1
        self._last = now
        return now


def _frame_seconds(picture: av.VideoFrame) -> float:
    base = picture.time_base
    step = float(picture.duration * base) if picture.duration and base else 0.0
    return step if 1 / _RATES[1] <= step <= 1 / _RATES[0] else 1 / 25


def _upright_rgb(reformatter: VideoReformatter, picture: av.VideoFrame) -> RgbImage:
    """The picture as upright RGB.

    BICUBIC makes odd-sized and 10-bit video equal to OpenCV's conversion bit for bit. One reformatter per
    source halves the cost (0.11 instead of 0.22 ms at 320x240): `to_ndarray` alone sets up a new one each time.
    """
    image = np.asarray(reformatter.reformat(picture, format="rgb24", interpolation="BICUBIC").to_ndarray(), np.uint8)
    turns = picture.rotation // 90 if abs(picture.rotation) <= 360 else 0
    return np.ascontiguousarray(np.rot90(image, turns)) if turns % 4 else image


def _import_av() -> Any:
    av = import_extra("av", "PyAV", "cpu")
    av.logging.set_level(None)  # one damaged file can print hundreds of lines; damage is counted instead
    return av


def _regular_file(name: str) -> str:
    """FFmpeg's name for the file. Pipes and devices, which block for ever, are refused."""
    path = Path(name.removeprefix("file://"))
    mode = path.stat().st_mode if path.exists() else 0
    if not mode:
        raise VideoError(f"{name} does not exist", hint="check the path")
    if not stat.S_ISREG(mode):
        raise VideoError(f"{name} is not a regular file", hint="name a video file")
    return f"file:{path}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _video_stream(container: av.container.InputContainer, name: str) -> VideoStream:
    """The first stream of moving pictures; the cover picture of a sound file is none."""
    attached = _import_av().stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & attached:
            return cast("VideoStream", stream)
    raise VideoError(f"{name} holds no video stream", hint="name a file with pictures")
