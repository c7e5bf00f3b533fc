"""Video files, and single connections to live streams, through PyAV, the Python binding of FFmpeg's libraries.

PyAV rather than OpenCV: it tells corruption from the end of a file, gives exact time stamps, and decodes
interlaced H.264, which OpenCV 4.13 to 5.0 hands out as black pictures that count as read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from edgeclf.av_pictures import Pictures
from edgeclf.av_reader import Opening, Reader
from edgeclf.av_skipping import UnplannedError, planned_frames, prompt_frames, skipping_of
from edgeclf.errors import VideoError
from edgeclf.video import Frame, FrameChooser

log = logging.getLogger(__name__)

_MAX_LATE = 64  # pictures of a live stream that are being decoded


class AvSource:
    """A video file. Frames that the decoder flags as damaged are dropped and counted, not handed out.

    What a chooser does not want is left undecoded where nothing depends on it: H.264, HEVC, MPEG-4 and MPEG-2 pictures
    that are no reference, and any picture of a format in which all stand alone. It is not looked at for damage.

    name: stands in records. url: what FFmpeg opens if that is no regular file. options: FFmpeg's. timeout: seconds to
    open it and for each read. live: frames get an `arrival`, the end is no error, a connection that breaks is one.
    hardware: an `av.codec.hwaccel.HWAccel`, or the name of a decoder such as `h264_v4l2m2m`. threads: of the decoder.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        options: Mapping[str, str] | None = None,
        timeout: tuple[float, float] | None = None,
        live: bool = False,
        hardware: Any = None,
        threads: int = 1,
    ) -> None:
        self.name = name
        self.live = live
        self.decoder = ""
        self._opening = Opening(url, options, timeout, live, hardware, threads)
        self._chooser: FrameChooser | None = None
        self._reader: Reader | None = None
        self._closed = False

    @property
    def dropped(self) -> Mapping[str, int]:
        """Pictures that became no frame, by cause."""
        return self._reader.dropped if self._reader else {}

    @property
    def received(self) -> int:
        """Pictures in the packets that were read: once `frames` has ended by itself, its frames and `dropped`."""
        return self._reader.packets_read if self._reader else 0

    def skip_with(self, chooser: FrameChooser) -> None:
        """Leave undecoded what the chooser does not want. A chooser is for one reading."""
        self._chooser = chooser

    def frames(self) -> Iterator[Frame]:
        given = 0
        try:
            for frame in self._live_frames() if self.live else self._file_frames():
                given += 1
                yield frame
        except VideoError:
            self._account(given)  # not where the caller leaves: what was read ahead is not lost
            raise
        self._account(given)
        if self._reader and not self._closed and not self.live:
            self._reader.raise_if_damaged(given)

    def close(self) -> None:
        self._closed = True
        if reader := self._reader:
            reader.close()

    def _account(self, given: int) -> None:
        if self._reader and not self._closed:
            self._reader.account(given)

    def _opened(self) -> Reader:
        self._reader = reader = Reader(self.name, self._opening)
        self.decoder = reader.decoder
        if self._closed:
            reader.close()
        return reader

    def _file_frames(self) -> Iterator[Frame]:
        given, last = 0, -1.0
        with self._opened() as reader:
            skipping = skipping_of(reader) if self._chooser else None
            if self._chooser is None or skipping is None:
                yield from _all_frames(reader)
                return
            try:
                for frame in planned_frames(reader, reader.clock(), Pictures(self.name), self._chooser, skipping):
                    given, last = given + 1, frame.pts_seconds
                    yield frame
                return
            except UnplannedError as reason:
                log.debug("%s is decoded again from its start, all of it: %s", self.name, reason)
        with self._opened() as reader:
            yield from _frames_after(reader, given, last)

    def _live_frames(self) -> Iterator[Frame]:
        with self._opened() as reader:
            skipping = skipping_of(reader) if self._chooser else None
            if self._chooser is None or skipping is None:
                yield from _arriving_frames(reader)
            else:
                yield from prompt_frames(reader, reader.clock(), Pictures(self.name), self._chooser, skipping)


def _all_frames(reader: Reader) -> Iterator[Frame]:
    clock, pictures = reader.clock(), Pictures(reader.name)
    for packet in reader.packets():
        for picture in reader.good(packet):
            yield pictures.frame(picture, clock.seconds(picture))


def _frames_after(reader: Reader, given: int, last: float) -> Iterator[Frame]:
    """The frames behind the first `given`, whose last one was at `last`.

    Among those that were given undecoded there may be damaged ones; they are not counted a second time.
    """
    missed = given  # of those, not met again
    for frame in _all_frames(reader):
        if frame.pts_seconds <= last:
            missed -= 1
            continue
        reader.count_once(missed)
        missed = 0
        yield frame
    if not reader.closed:
        reader.count_once(missed)


def _arriving_frames(reader: Reader) -> Iterator[Frame]:
    clock, pictures = reader.clock(), Pictures(reader.name)
    arrivals: dict[int | None, float] = {}
    for packet in reader.packets():
        now = arrivals[packet.pts] = time.perf_counter()
        for picture in reader.good(packet):
            yield pictures.frame(picture, clock.seconds(picture), arrivals.pop(picture.pts, now))
        while len(arrivals) > _MAX_LATE:
            del arrivals[next(iter(arrivals))]
