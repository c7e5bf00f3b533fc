"""Frames of which only those that somebody wants are decoded, and what they depend on.

Packets say when a picture will be shown before it is decoded. So they are read ahead, as far as pictures may change
their order, until the times are known one after the other; the chooser says which are wanted; then the packets are
decoded. Left out is only what nothing depends on: any unwanted picture of a codec in which every picture stands
alone, else an unwanted picture that is no reference for another, which the decoder itself finds out. The frames that
are decoded are those of a full decode to the bit. Where something else comes than the packets promised, the reader
of a file starts again and leaves nothing out.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgeclf.av_pictures import Pictures
from edgeclf.av_reader import Clock, Reader
from edgeclf.video import Frame, FrameChooser, RgbImage

if TYPE_CHECKING:
    import av
    from av.video.codeccontext import VideoCodecContext

Skipping = Literal["packets", "references"]

_MAX_REORDER = 16  # pictures that may overtake one another: the largest buffer of H.264 and HEVC
_WITH_REFERENCES = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video"})
_WITH_TIMES = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"})  # else they are guessed
_SPS = b"\x42\x01"  # the head of a sequence parameter set of HEVC


class UnplannedError(Exception):
    """The decoder gave something else than the packets promised."""


def skipping_of(reader: Reader) -> Skipping | None:
    """What may be left undecoded: packets as they are, pictures that are no reference, or nothing."""
    context = reader.context
    if context.codec.intra_only:
        return None if context.pix_fmt == "pal8" else "packets"  # a palette may come with an earlier packet
    if not _may_skip_references(reader) or (context.name == "hevc" and not _has_one_layer(context)):
        return None
    return "references"


def _may_skip_references(reader: Reader) -> bool:
    opening, context = reader.opening, reader.context
    if opening.hardware is not None or opening.threads != 1 or context.name not in _WITH_REFERENCES:
        return False
    return not context.has_b_frames if opening.live else reader.container_format in _WITH_TIMES


def _has_one_layer(context: VideoCodecContext) -> bool:
    """Whether no picture of an HEVC stream is a reference for a higher layer of time only.

    FFmpeg counts those as no reference. Each parameter set says how many layers there are.
    """
    data = context.extradata or b""
    heads = [at for at in range(len(data) - 3) if data[at : at + 2] == _SPS]
    return bool(heads) and all(data[at + 2] >> 1 & 7 == 0 for at in heads)


def planned_frames(
    reader: Reader, clock: Clock, pictures: Pictures, chooser: FrameChooser, skipping: Skipping
) -> Iterator[Frame]:
    """All frames of a file in order of time, those nobody wants without pixels where that saves decoding them.

    Raises UnplannedError where only a full decode can tell what there is.
    """
    plan = _Plan(reader, clock, pictures, chooser, skipping)
    flush: av.Packet[Any] | None = None
    for packet in reader.packets():
        if packet.size:
            plan.add(packet)
            yield from plan.certain_frames()
        else:
            flush = packet
    if not reader.closed:
        yield from plan.last_frames(flush)


@dataclass(slots=True)
class _Promise:
    """A picture that a packet promised."""

    stamp: int
    seconds: float = 0.0
    wanted: bool | None = None  # None: not said yet


class _Plan:
    """What was read of a file and not handed out yet."""

    def __init__(
        self, reader: Reader, clock: Clock, pictures: Pictures, chooser: FrameChooser, skipping: Skipping
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._pictures = pictures
        self._chooser = chooser
        self._skipping = skipping
        self._ahead = _MAX_REORDER if skipping == "references" else 0
        self._packets: deque[tuple[av.Packet[Any], _Promise | None]] = deque()  # to be decoded
        self._unordered: list[tuple[int, int, av.Packet[Any], _Promise]] = []  # a heap; pictures whose turn is not sure
        self._count = 0
        self._last_dts: float = -math.inf
        self._last_stamp: float = -math.inf
        self._open: deque[_Promise] = deque()  # in order of time, no verdict yet
        self._due: deque[_Promise] = deque()  # in order of time, not handed out yet

    def add(self, packet: av.Packet[Any]) -> None:
        """One more packet."""
        if packet.is_discard:  # an edit list cuts it off: it is decoded for others and never shown
            self._packets.append((packet, None))
            return
        order = self._last_dts if packet.dts is None else packet.dts  # the first packets of Matroska have none
        if packet.is_corrupt or packet.pts is None or order < self._last_dts:
            raise UnplannedError("a packet is damaged, or its times make no sense")
        self._last_dts = order
        promise = _Promise(packet.pts)
        self._packets.append((packet, promise))
        self._count += 1
        heapq.heappush(self._unordered, (packet.pts, self._count, packet, promise))
        if len(self._unordered) > self._ahead:
            self._order()

    def certain_frames(self) -> Iterator[Frame]:
        """The frames of the packets about which all is said."""
        while self._packets and ((promise := self._packets[0][1]) is None or promise.wanted is not None):
            packet, _ = self._packets.popleft()
            yield from self._frames(packet, promise)

    def last_frames(self, flush: av.Packet[Any] | None) -> Iterator[Frame]:
        """The rest. `flush` is the empty packet."""
        while self._unordered:
            self._order()
        self._judge(self._chooser.finish())
        yield from self._checked(self.certain_frames())
        if flush is not None:
            yield from self._decoded(flush)
        if any(promise.wanted is not False for promise in self._due):
            raise UnplannedError("a picture is missing at the end")
        yield from map(_skipped, self._due)

    def _checked(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if self._reader.closed:
                return
            yield frame

    def _order(self) -> None:
        """The picture with the lowest stamp is the next one: tell its time, and hear what is wanted."""
        stamp, _, packet, promise = heapq.heappop(self._unordered)
        if stamp <= self._last_stamp:
            raise UnplannedError("time stamps go back or stand still")
        self._last_stamp = stamp
        promise.seconds = self._clock.seconds(packet)
        self._due.append(promise)
        self._open.append(promise)
        self._judge(self._chooser.add(promise.seconds))

    def _judge(self, verdicts: list[bool]) -> None:
        for verdict in verdicts:
            self._open.popleft().wanted = verdict

    def _frames(self, packet: av.Packet[Any], promise: _Promise | None) -> Iterator[Frame]:
        unwanted = promise is not None and not promise.wanted
        if unwanted and self._skipping == "packets":
            if self._due[0] is not promise:
                raise UnplannedError("a picture is missing")
            yield _skipped(self._due.popleft())
            return
        self._reader.context.skip_frame = "NONREF" if unwanted else "DEFAULT"
        yield from self._decoded(packet)

    def _decoded(self, packet: av.Packet[Any]) -> Iterator[Frame]:
        decoded = self._reader.decode(packet)
        if decoded is None:
            raise UnplannedError("a packet cannot be decoded")
        for picture in decoded:
            if picture.is_corrupt:
                raise UnplannedError("a picture is damaged")
            passed, promise = self._until(picture)
            yield from map(_skipped, passed)
            yield self._pictures.frame(picture, promise.seconds)

    def _until(self, picture: av.VideoFrame) -> tuple[list[_Promise], _Promise]:
        """The pictures that were left out before this one, and what was promised of it."""
        passed: list[_Promise] = []
        while self._due:
            promise = self._due.popleft()
            if promise.stamp == picture.pts:
                return passed, promise
            if promise.wanted is not False:
                break
            passed.append(promise)
        raise UnplannedError("a picture comes at another time than its packet said")


def _skipped(promise: _Promise) -> Frame:
    return Frame(promise.seconds, _no_image, decoded=False)


def _no_image() -> RgbImage:
    raise RuntimeError("this picture was not decoded")


def prompt_frames(
    reader: Reader, clock: Clock, pictures: Pictures, chooser: FrameChooser, skipping: Skipping
) -> Iterator[Frame]:
    """The frames of a live stream, each as soon as it came.

    For streams whose pictures come in the order in which they are decoded. A picture of which the chooser cannot say
    anything yet counts as wanted, and so does the one behind a picture that was wanted and did not come. From where a
    picture comes with another packet than its own, nothing is left out any more.
    """
    wishes = _Wishes(chooser)
    for packet in reader.packets():
        arrival = time.perf_counter()
        if not packet.size or wishes.given_up:
            for picture in reader.good(packet):
                yield pictures.frame(picture, clock.seconds(picture), arrival)
            continue
        seconds = clock.seconds(packet)
        wanted = wishes.want(seconds)
        reader.context.skip_frame = "DEFAULT" if wanted else "NONREF"
        lost = reader.lost
        decoded = reader.good(packet) if wanted or skipping == "references" else []
        if len(decoded) > 1 or any(picture.pts != packet.pts for picture in decoded):
            wishes.given_up, reader.context.skip_frame = True, "DEFAULT"
            for picture in decoded:
                yield pictures.frame(picture, clock.seconds(picture), arrival)
        elif decoded:
            yield pictures.frame(decoded[0], seconds, arrival)
        elif not wanted and reader.lost == lost:
            yield Frame(seconds, _no_image, arrival, decoded=False)
        wishes.owed = wanted and not decoded


class _Wishes:
    """What the chooser says of the newest picture of a live stream."""

    def __init__(self, chooser: FrameChooser) -> None:
        self.given_up = False
        self.owed = False  # a wanted picture did not come
        self._chooser = chooser
        self._open = 0

    def want(self, seconds: float) -> bool:
        verdicts = self._chooser.add(seconds)
        self._open += 1 - len(verdicts)
        return self.owed or self._open > 0 or verdicts[-1]
