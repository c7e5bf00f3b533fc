"""Packets and pictures of one video stream through PyAV, and their times; what is lost on the way is counted."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeclf.errors import VideoError, import_extra

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

MAX_PIXELS = 64 << 20  # a 16000x16000 MJPEG of 1.5 MB took 1.2 GB to decode
MAX_BAD_PACKETS = 100  # in a row; then nothing more is to be expected of the file
OPEN_HINT = "check that the file is complete and is a video"
_DEVICE_HINT = "check that this machine has that device and its driver, or name no hardware"
_LIST_HINT = "name the videos themselves"
SCALE_HINT = "scale the video down first"
RATES = (0.1, 1000.0)  # declared frame rates outside are not believed
USUAL_RATE = 25.0
_MIN_STEP = 1e-3  # seconds between frames whose time stamps stand still or go back a little
_MAX_STEP_BACK = 1.0  # seconds; time stamps that go back further start anew
_PLAYLISTS = frozenset({"concat", "hls", "dash", "imf", "sdp"})  # what is read must be what was named


@dataclass(frozen=True, slots=True)
class Opening:
    """How FFmpeg opens a video, and what decodes it."""

    url: str | None = None  # None: a regular file, by its name
    options: Mapping[str, str] | None = None
    timeout: tuple[float, float] | None = None  # seconds to open it, seconds for each read
    live: bool = False
    hardware: Any = None  # an av.codec.hwaccel.HWAccel, or the name of a decoder
    threads: int = 1


class Reader:
    """An open video, a context manager. It belongs to one thread; only `close` may be called from another."""

    def __init__(self, name: str, opening: Opening) -> None:
        self.name = name
        self.opening = opening
        self.dropped: dict[str, int] = {}
        self.packets_read = 0
        self.closed = False
        self._bad_in_a_row = 0
        self._packets: Iterator[av.Packet[Any]] = iter(())
        self._container = _opened(name, opening)
        try:
            self.stream = _video_stream(self._container, name, opening)
            self.context = _decoder(self.stream, name, opening)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def close(self) -> None:
        """Make `packets` end."""
        self.closed = True

    @property
    def decoder(self) -> str:
        """What makes the pictures, with its version."""
        device = " in hardware" if self.context.is_hwaccel else ""
        return f"PyAV {import_av().__version__} {self.context.name}{device}"

    @property
    def container_format(self) -> str:
        """FFmpeg's name of what holds the stream."""
        return str(self._container.format.name)

    def clock(self) -> Clock:
        """What tells the times of pictures.

        AVI holds no times to show pictures at. Those that FFmpeg makes up for packed B-frames, as DivX and Xvid wrote
        them, are in disorder by one picture.
        """
        return Clock(by_decoding=self.container_format == "avi")

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Packets in the order of decoding, then an empty one that flushes the decoder.

        Those of pictures that are too large are left out and counted. Raises VideoError where a live stream breaks.
        """
        self._packets = self._container.demux(self.stream)
        while not self.closed and self._bad_in_a_row < MAX_BAD_PACKETS:
            packet = self._next()
            if packet is None:
                return
            if packet.size:
                self.packets_read += 1  # the empty one is none
                if self._is_large():
                    self._refuse_large()
                    continue
            yield packet

    def decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame] | None:
        """The pictures that come out with this packet, damaged ones too; None, counted, where it cannot be decoded.

        The size is looked at again: when the packet was read, those before it may have waited to be decoded.
        """
        if packet.size and self._is_large():
            self._refuse_large()
            return None
        try:
            decoded = self.context.decode(packet)
        except import_av().error.FFmpegError:
            self.drop("corrupt")
            self._bad_in_a_row += 1
            return None
        self._bad_in_a_row = 0
        return decoded

    def good(self, packet: av.Packet[Any]) -> list[av.VideoFrame]:
        """The pictures that come out with this packet; those that are damaged are counted."""
        pictures = []
        for picture in self.decode(packet) or []:
            if picture.is_corrupt:
                self.drop("corrupt")
            else:
                pictures.append(picture)
        return pictures

    def drop(self, cause: str) -> None:
        """Count a picture that is lost."""
        self.dropped[cause] = self.dropped.get(cause, 0) + 1

    def account(self, frames: int) -> None:
        """Count the packets that gave neither a frame nor an error, such as VP8's hidden reference frames.

        A packet may also be an error and give its picture all the same, which then was counted twice.
        """
        silent = self.packets_read - frames - self.lost
        if silent > 0:
            self.dropped["no_picture"] = silent
        self.count_once(-silent)

    @property
    def lost(self) -> int:
        """Pictures that were dropped for any cause."""
        return sum(self.dropped.values())

    def count_once(self, twice: int) -> None:
        """Take damaged pictures that were counted twice, if any were, out of the count again."""
        corrupt = self.dropped.pop("corrupt", 0)
        if left := corrupt - min(max(twice, 0), corrupt):
            self.dropped["corrupt"] = left

    def raise_if_damaged(self, frames: int) -> None:
        """Raise VideoError where a file gave no frame, or lost some."""
        if lost := self.dropped.get("too_large"):
            raise VideoError(f"{self.name}: {lost} {too_large()}", hint=SCALE_HINT)
        lost = self.dropped.get("corrupt", 0)
        if not frames:
            found = f"none of its {lost} pictures can be decoded" if lost else "it holds no picture"
            raise VideoError(f"{self.name}: {found}", hint=OPEN_HINT)
        if lost:
            hint = "what could be decoded was used; copy or record the file again"
            raise VideoError(f"{self.name} is damaged: {lost} of {lost + frames} pictures are lost", hint=hint)

    def _next(self) -> av.Packet[Any] | None:
        try:
            return self._of_known_stream()
        except (import_av().error.FFmpegError, OSError) as error:
            if self.opening.live:
                raise VideoError(f"{self.name} broke off: {_reason(error)}", hint="check the connection") from error
            self.packets_read += 1  # what could not be read
            self.drop("corrupt")
            return None

    def _of_known_stream(self) -> av.Packet[Any] | None:
        """The next packet. PyAV 18 cannot go on where another stream begins in mid-file, and then has to begin anew."""
        while not self.closed:
            try:
                return next(self._packets, None)
            except IndexError:
                self._packets = self._container.demux(self.stream)
        return None

    def _is_large(self) -> bool:
        return self.context.width * self.context.height > MAX_PIXELS

    def _refuse_large(self) -> None:
        self.drop("too_large")
        if self.opening.live:
            raise VideoError(f"{self.name}: its {too_large()}", hint=SCALE_HINT)


class GrowingTime:
    """Presentation times that start at 0 and only grow, whatever the stamps say."""

    def __init__(self) -> None:
        self._origin: float | None = None
        self._last: float | None = None

    def at(self, stamp: float | None, step: float) -> float:
        """The time of the next picture: by its stamp, or `step` behind the last one where it has none."""
        if self._last is None:
            now = 0.0
        elif stamp is None or self._origin is None:
            now = self._last + step
        else:
            now = stamp - self._origin
            if now < self._last - _MAX_STEP_BACK:  # another recording was appended: it goes on from here
                now = self._last + step
                self._origin = stamp - now
            now = max(now, self._last + _MIN_STEP)
        if self._origin is None and stamp is not None:
            self._origin = stamp - now
        self._last = now
        return now


class Clock:
    """The times of what PyAV gives: those at which pictures are to be shown.

    by_decoding: those of the packet with which each one came out instead, for files that hold no others; pictures that
    the decoder held at the end have none.
    """

    def __init__(self, *, by_decoding: bool = False) -> None:
        self._time = GrowingTime()
        self._by_decoding = by_decoding

    def seconds(self, item: av.VideoFrame | av.Packet[Any]) -> float:
        """The time of the next picture in order, by its own stamp or that of its packet."""
        stamp = item.dts if self._by_decoding else item.pts
        return self._time.at(_in_seconds(stamp, item.time_base), _seconds_of(item))


def import_av() -> Any:
    """PyAV, with FFmpeg's log turned off."""
    av = import_extra("av", "PyAV", "cpu")
    av.logging.set_level(None)  # one damaged file can print hundreds of lines; damage is counted instead
    return av


def _in_seconds(stamp: int | None, base: Fraction | None) -> float | None:
    return None if stamp is None or base is None else float(stamp) * base.numerator / base.denominator


def _seconds_of(item: av.VideoFrame | av.Packet[Any]) -> float:
    base = item.time_base
    step = float(item.duration) * base.numerator / base.denominator if item.duration and base else 0.0
    return step if 1 / RATES[1] <= step <= 1 / RATES[0] else 1 / USUAL_RATE


def too_large() -> str:
    """What is wrong with pictures beyond the limit, as the end of a sentence."""
    return f"pictures exceed {MAX_PIXELS >> 20} million pixels"


def _opened(name: str, opening: Opening) -> InputContainer:
    av = import_av()
    given: dict[str, Any] = {"metadata_errors": "ignore", "timeout": opening.timeout}
    if opening.options:
        given["options"] = dict(opening.options)
    if opening.hardware is not None and not isinstance(opening.hardware, str):
        given["hwaccel"] = opening.hardware
    try:
        container = av.open(opening.url or regular_file(name), **given)
    except (av.error.FFmpegError, OSError) as error:
        hint = _DEVICE_HINT if "hwaccel" in given else OPEN_HINT
        raise VideoError(f"{name} cannot be read as a video: {_reason(error)}", hint=hint) from error
    except RuntimeError as error:  # PyAV's own for a codec that the device does not decode
        raise VideoError(f"{name} cannot be decoded on this hardware: {error}", hint=_DEVICE_HINT) from error
    if opening.url is None and container.format.name in _PLAYLISTS:
        container.close()
        raise VideoError(f"{name} is a list of other files ({container.format.name})", hint=_LIST_HINT)
    return cast("InputContainer", container)


def regular_file(name: str) -> str:
    """FFmpeg's name for a path or a `file://` URL. Pipes and devices, which block for ever, are refused."""
    path = Path(name.removeprefix("file://"))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError(f"{name} does not exist", hint="check the path") from error
    except (OSError, ValueError) as error:
        raise VideoError(f"{name} cannot be looked at: {_reason(error)}", hint="check the path") from error
    if not stat.S_ISREG(mode):
        raise VideoError(f"{name} is not a regular file", hint="name a video file")
    return f"file:{path}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _video_stream(container: InputContainer, name: str, opening: Opening) -> VideoStream:
    """The first stream of moving pictures; the cover picture of a sound file is none."""
    attached = import_av().stream.Disposition.attached_pic
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & attached:  # None: FFmpeg knows no such codec
            stream.codec_context.thread_count = opening.threads
            return stream
    raise VideoError(f"{name} holds no video stream that FFmpeg can decode", hint="name a file with pictures")


def _decoder(stream: VideoStream, name: str, opening: Opening) -> VideoCodecContext:
    """The stream's own decoder, or a new one of the name that was asked for."""
    if not isinstance(opening.hardware, str):
        return stream.codec_context
    av, own = import_av(), stream.codec_context
    try:
        context: Any = av.CodecContext.create(opening.hardware, "r")
        if context.codec.id != own.codec.id:
            raise VideoError(
                f"{opening.hardware} decodes {context.codec.canonical_name}, and {name} is {own.codec.canonical_name}",
                hint="name a decoder of that format, or none",
            )
        context.extradata, context.thread_count = own.extradata, opening.threads
        context.width, context.height = own.width, own.height
        context.open()
    except (av.error.FFmpegError, ValueError, OSError) as error:
        text = f"the decoder {opening.hardware} cannot be opened: {_reason(error)}"
        raise VideoError(text, hint=_DEVICE_HINT) from error
    return cast("VideoCodecContext", context)
