"""Streams from the network: connected again when they are lost, and never waited for without a limit.

FFmpeg's own defaults block for ever where a camera stops sending, and take a server that was killed for the end of
a file. Here every wait has a limit, and the end of a live stream is a loss.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from edgeclf.av_reader import import_av, regular_file
from edgeclf.av_source import AvSource
from edgeclf.errors import EdgeclfError, VideoError
from edgeclf.video import Frame, FrameChooser, SkippingSource, VideoSource, redacted

log = logging.getLogger(__name__)

_BURST_SECONDS = 5.0  # of pictures at most: a server that sends faster than real time would be stale for ever
_MIN_STEP = 1e-3  # seconds between the last picture of a connection and the first of the next
_clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a live source waits, and how often it tries."""

    open_seconds: float = 5.0
    read_seconds: float = 2.0  # a stall shows after twice that: FFmpeg hands out one more picture first
    first_wait: float = 0.25  # before the second attempt; doubles from there ...
    longest_wait: float = 4.0  # ... up to this, each 20 % longer or shorter by chance
    connect_attempts: int = 3  # of a source that was never there
    retries: int | None = None  # attempts after a loss; None: for ever

    def __post_init__(self) -> None:
        if min(self.open_seconds, self.read_seconds, self.first_wait, self.longest_wait) <= 0:
            raise VideoError("times of a live source are above 0 seconds", hint="check its time-outs")
        if self.connect_attempts < 1 or (self.retries is not None and self.retries < 0):
            raise VideoError("a live source is tried at least once", hint="check its number of attempts")

    def waits(self) -> Iterator[float]:
        """Seconds before each further attempt. Chance keeps many cameras from calling at the same moment."""
        wait = self.first_wait
        while True:
            yield wait * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            wait = min(2 * wait, self.longest_wait)


class LiveSource:
    """A stream that is connected again whenever it is lost, until it is closed.

    Times are the stream's own within a connection, and go on by the clock from one to the next, so that what was
    lost is a gap. The pictures that a server had in store when it was connected to are dropped as `stale`.
    `close` may be called from any thread: `frames` ends within the time-out. Each connection comes from `connect`,
    by default from PyAV; its pictures need not hold a burst (a camera's do not).
    """

    def __init__(
        self,
        url: str,
        *,
        patience: Patience | None = None,
        connect: Callable[[], VideoSource] | None = None,
        burst: bool = True,
    ) -> None:
        self.name = redacted(url)
        self.live = True
        self.decoder = ""
        self.reconnects = 0
        self._patience = patience or Patience()
        self._connect = connect or (lambda: connection_to(url, self._patience))
        self._burst = burst
        self._chooser: _LiveChooser | None = None
        self._closed = threading.Event()
        self._connection: VideoSource | None = None
        self._dropped: Counter[str] = Counter()
        self._received = 0  # over the connections that have ended
        self._heard = 0.0  # when the connection was begun, or its last picture came
        self._timeline = _Timeline()
        self._outage = _Outage(self._patience)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Counts by cause over all connections."""
        current = self._connection
        return dict(self._dropped + Counter(dict(current.dropped)) if current else self._dropped)

    @property
    def received(self) -> int:
        """Pictures that came over all connections, as far as these know."""
        current = self._connection
        return self._received + (_received(current) if current else 0)

    @property
    def lost_seconds(self) -> float:
        """How long there was no picture because of losses, the one that lasts included."""
        return self._outage.lost_seconds

    def skip_with(self, chooser: FrameChooser) -> None:
        self._chooser = _LiveChooser(chooser)

    def close(self) -> None:
        self._closed.set()
        if connection := self._connection:
            connection.close()  # sets a flag; closing FFmpeg under a thread that reads would crash

    def frames(self) -> Iterator[Frame]:
        try:
            while not self._closed.is_set():
                self._heard = _clock()
                failure: EdgeclfError | None = None
                try:
                    yield from self._fresh_frames()
                except VideoError as error:
                    failure = error
                if self._closed.is_set():
                    return
                reason = _Reason.of(failure, _clock() - self._heard, self._patience)
                self._closed.wait(self._outage.failed(self.name, reason))
        finally:
            self._outage.end()

    def _fresh_frames(self) -> Iterator[Frame]:
        """The pictures of one connection behind its stale ones."""
        connection = self._connect()
        admission = _Admission(self._timeline, burst=self._burst)
        if self._chooser and isinstance(connection, SkippingSource):
            self._chooser.connected(admission)
            connection.skip_with(self._chooser)
        self._connection = connection
        try:
            with closing(connection):
                if not self._closed.is_set():
                    yield from self._admitted(connection, admission)
        finally:
            self._connection = None
            self._dropped.update(connection.dropped)
            self._received += _received(connection)

    def _admitted(self, connection: VideoSource, admission: _Admission) -> Iterator[Frame]:
        for frame in connection.frames():
            self.decoder = connection.decoder
            arrival = self._heard = _clock() if frame.arrival is None else frame.arrival
            seconds = admission.of(frame.pts_seconds, arrival)
            if seconds is None:
                self._dropped["stale"] += 1
                continue
            if self._outage.over(self.name, arrival):
                self.reconnects += 1
            yield replace(frame, pts_seconds=seconds, arrival=arrival)


def _received(source: VideoSource) -> int:
    """Pictures that came, of a source that counts them."""
    return int(getattr(source, "received", 0))


class _Timeline:
    """The times of all connections as one, which only grow."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._last: float | None = None

    def offset(self, pts_seconds: float, arrival: float) -> float:
        """What to add to the times of a connection whose first picture is at `pts_seconds`."""
        if self._start is None:
            self._start = arrival
        return arrival - self._start - pts_seconds

    def at(self, seconds: float) -> float:
        """The time `seconds`, or a little later where it would not be behind the last one."""
        self._last = seconds if self._last is None else max(seconds, self._last + _MIN_STEP)
        return self._last


class _Admission:
    """Decides, once for each picture of a connection, at which time of the source it stands or that it is stale.

    A server, and FFmpeg while it looks at the stream, keep pictures in store, which come in one burst. The
    first picture that had to be waited for is the first fresh one.
    """

    def __init__(self, timeline: _Timeline, *, burst: bool) -> None:
        self._timeline = timeline
        self._in_burst = burst
        self._first_pts: float | None = None
        self._previous: tuple[float, float] | None = None
        self._offset: float | None = None
        self._told: deque[tuple[float, float | None]] = deque()  # to the chooser, and not asked for yet

    def tell(self, pts_seconds: float) -> float | None:
        """The decision on a picture that just came, kept for the frame that it becomes."""
        decision = self._decide(pts_seconds, _clock())
        self._told.append((pts_seconds, decision))
        return decision

    def of(self, pts_seconds: float, arrival: float) -> float | None:
        """The decision on a frame. What was told of pictures before it became no frame."""
        while self._told and self._told[0][0] < pts_seconds:
            self._told.popleft()
        if self._told and self._told[0][0] == pts_seconds:
            return self._told.popleft()[1]
        return self._decide(pts_seconds, arrival)

    def _decide(self, pts_seconds: float, arrival: float) -> float | None:
        if self._in_burst and self._is_stale(pts_seconds, arrival):
            return None
        self._in_burst = False
        if self._offset is None:
            self._offset = self._timeline.offset(pts_seconds, arrival)
        return self._timeline.at(pts_seconds + self._offset)

    def _is_stale(self, pts_seconds: float, arrival: float) -> bool:
        previous, self._previous = self._previous, (pts_seconds, arrival)
        if previous is None or self._first_pts is None:
            self._first_pts = pts_seconds
            return True
        waited, step = arrival - previous[1], pts_seconds - previous[0]
        return waited < step / 2 and pts_seconds - self._first_pts < _BURST_SECONDS


class _LiveChooser:
    """Asks the source's chooser about the fresh pictures of all connections; nobody wants the stale ones.

    A verdict that comes too late for a picture of a connection that was lost is not told to the next one.
    """

    def __init__(self, chooser: FrameChooser) -> None:
        self._chooser = chooser
        self._admission: _Admission | None = None
        self._open = 0  # verdicts that the chooser owes
        self._of_lost = 0  # as many of them are about pictures of lost connections

    def connected(self, admission: _Admission) -> None:
        """Another connection begins."""
        self._admission, self._of_lost = admission, self._open

    def add(self, pts_seconds: float) -> list[bool]:
        assert self._admission is not None
        seconds = self._admission.tell(pts_seconds)
        if seconds is None:
            return [False]
        self._open += 1
        return self._told(self._chooser.add(seconds))

    def finish(self) -> list[bool]:
        return self._told(self._chooser.finish())

    def _told(self, verdicts: list[bool]) -> list[bool]:
        self._open -= len(verdicts)
        late = min(self._of_lost, len(verdicts))
        self._of_lost -= late
        return verdicts[late:]


class _Outage:
    """Counts failed attempts, and says in the log once that a source is lost and once that it is back."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._waits = patience.waits()
        self._failures = 0
        self._last_arrival: float | None = None
        self._since: float | None = None  # of the outage that lasts
        self._lost_seconds = 0.0

    @property
    def lost_seconds(self) -> float:
        since = self._since
        return self._lost_seconds + (_clock() - since if since is not None else 0.0)

    def over(self, name: str, arrival: float) -> bool:
        """Note a picture; whether it ended an outage."""
        since, self._since, self._last_arrival = self._since, None, arrival
        if self._failures or since is not None:
            self._failures, self._waits = 0, self._patience.waits()
        if since is None:
            return False
        self._lost_seconds += arrival - since
        log.warning("%s is back after %.1f s", name, arrival - since)
        return True

    def failed(self, name: str, reason: _Reason) -> float:
        """Seconds to wait before the next attempt. Raises VideoError where there is none."""
        if self._last_arrival is None:
            self._failures += 1
            if self._failures >= self._patience.connect_attempts:
                told = reason.text.startswith(name)
                message = reason.text if told else f"{name} cannot be opened: {reason.text}"
                raise VideoError(message, hint=reason.hint) from reason.error
        elif self._since is None:
            self._since = self._last_arrival
            log.warning("%s is lost: %s", name, reason.text)
        else:
            self._failures += 1
        self._raise_if_given_up(name, reason)
        return next(self._waits)

    def _raise_if_given_up(self, name: str, reason: _Reason) -> None:
        retries = self._patience.retries
        if self._last_arrival is not None and retries is not None and self._failures >= retries:
            attempts = f" and {retries} attempts to reach it again failed" if retries else ""
            raise VideoError(f"{name} was lost{attempts}: {reason.text}", hint=reason.hint) from reason.error

    def end(self) -> None:
        """No picture follows: the outage that lasts is counted up to now."""
        self._lost_seconds, self._since = self.lost_seconds, None


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why a connection failed or ended, and what to do about it."""

    text: str
    hint: str
    error: EdgeclfError | None

    @classmethod
    def of(cls, failure: EdgeclfError | None, silent: float, patience: Patience) -> _Reason:
        """The reason behind an error, or behind an end without one, after `silent` seconds."""
        if failure is None:
            return cls("the connection ended", "check that the server goes on sending", None)
        cause = failure.__cause__
        hint = _HINTS.get(type(cause).__name__)
        if hint is None and (type(cause).__name__ in _TIMEOUTS or silent >= 0.9 * patience.open_seconds):
            return cls(f"nothing came for {silent:.1f} s", _NETWORK_HINT, failure)
        if cause is None:
            return cls(redacted(failure.message), failure.hint, failure)
        text = getattr(cause, "strerror", None) or failure.message
        return cls(redacted(str(text)), hint or _NETWORK_HINT, failure)


_TIMEOUTS = frozenset({"ExitError", "TimeoutError"})  # PyAV's time-out makes FFmpeg exit at once
_NETWORK_HINT = "check the address, the network, and that the camera is on"
_HINTS = {
    "ConnectionRefusedError": "check address and port, and that the server runs",
    "HTTPUnauthorizedError": "check user name and password in the URL",
    "HTTPForbiddenError": "check user name and password in the URL",
    "HTTPNotFoundError": "check the path in the URL",
    "ProtocolNotFoundError": "this build of FFmpeg cannot open such URLs",
}


class LateSource:
    """A source that is chosen when its frames are asked for, because that needs a look at what is there.

    live: whether it may turn out to be.
    """

    def __init__(self, name: str, choose: Callable[[], VideoSource], *, live: bool = False) -> None:
        self.name = redacted(name)
        self.live = live
        self._choose = choose
        self._source: VideoSource | None = None
        self._chooser: FrameChooser | None = None
        self._closed = False

    @property
    def decoder(self) -> str:
        """What made the pictures, with its version."""
        return self._source.decoder if self._source else ""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Counts by cause."""
        return self._source.dropped if self._source else {}

    @property
    def received(self) -> int:
        """Pictures that came, as far as the source knows."""
        return _received(self._source) if self._source else 0

    def skip_with(self, chooser: FrameChooser) -> None:
        self._chooser = chooser

    def frames(self) -> Iterator[Frame]:
        source = self._choose()
        if self._chooser and isinstance(source, SkippingSource):
            source.skip_with(self._chooser)
        self._source = source
        with closing(source):
            if not self._closed:
                yield from source.frames()

    def close(self) -> None:
        self._closed = True
        if source := self._source:
            source.close()


Hardware = Callable[[str], Any]  # what AvSource takes as `hardware`, chosen for a path or a URL


def open_live(url: str, *, hardware: Hardware | None = None, patience: Patience | None = None) -> VideoSource:
    """The source behind a URL through PyAV: a live stream, or a recording on a web server."""
    waits = patience or Patience()
    live = LiveSource(url, patience=waits, connect=lambda: connection_to(url, waits, hardware=hardware))
    return live_or_recording(url, live, lambda: _recording(url, waits, hardware), patience=waits)


def live_or_recording(
    url: str, live: VideoSource, recording: Callable[[], VideoSource], *, patience: Patience | None = None
) -> VideoSource:
    """`live`, or, of a web server, what is behind the URL: a recording ends where it ends.

    What http(s) gives is a recording if its container tells a duration, as an MP4 file or a finished HLS
    playlist does and a camera does not.
    """
    if not url.lower().startswith(("http:", "https:")):
        return live
    return LateSource(url, lambda: recording() if _has_duration(url, patience) else live, live=True)


def connection_to(url: str, patience: Patience, *, hardware: Hardware | None = None) -> AvSource:
    """One connection to a live stream through PyAV; its end is just the end."""
    chosen = hardware(url) if hardware else None
    return AvSource(
        redacted(url), url=url, options=_options(url), timeout=_timeout(patience), live=True, hardware=chosen
    )


def _recording(url: str, patience: Patience, hardware: Hardware | None) -> AvSource:
    chosen = hardware(url) if hardware else None
    options = {"reconnect": "1", "reconnect_on_network_error": "1", "reconnect_delay_max": "4"}
    return AvSource(redacted(url), url=url, options=options, timeout=_timeout(patience), hardware=chosen)


def _has_duration(url: str, patience: Patience | None) -> bool:
    try:
        return peek(url, patience=patience).duration_seconds is not None
    except VideoError as error:
        log.debug("%s: %s", redacted(url), error)
        return False  # the live source tries again and says what is wrong


def _options(url: str) -> dict[str, str]:
    """FFmpeg's options for a live URL. RTSP comes over TCP, unless the URL asks for `?udp`: lost packets are smears."""
    if not url.lower().startswith(("rtsp:", "rtsps:")):
        return {}
    options = {"analyzeduration": "200000"}  # microseconds; the default of 5 s starts with 29 stale pictures, not 7
    if url.partition("?")[2] not in ("udp", "multicast", "udp_multicast", "http"):
        options["rtsp_transport"] = "tcp"
    return options


def _timeout(patience: Patience) -> tuple[float, float]:
    return patience.open_seconds, patience.read_seconds


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What a container says of its first video stream before anything of it is decoded."""

    container: str  # FFmpeg's name
    codec: str
    height: int
    width: int
    duration_seconds: float | None  # None: it does not say, as a camera does not


def peek(name: str, *, patience: Patience | None = None) -> StreamFacts:
    """A look at the first video stream of a file or URL. Raises VideoError where there is none."""
    av = import_av()
    waits = _timeout(patience or Patience())
    try:
        with av.open(_for_ffmpeg(name), options=_options(name), timeout=waits, metadata_errors="ignore") as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                what = f"{redacted(name)} holds no video stream that FFmpeg can decode"
                raise VideoError(what, hint="name something with pictures")
            context = container.streams.video[0].codec_context
            seconds = container.duration / av.time_base if container.duration else None
            codec = context.codec.canonical_name
            return StreamFacts(container.format.name, codec, context.height, context.width, seconds)
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise VideoError(f"{redacted(name)} cannot be opened: {reason}", hint=_NETWORK_HINT) from error


def _for_ffmpeg(name: str) -> str:
    """The URL, or the regular file, as FFmpeg takes it. Pipes would block for ever."""
    if "://" in name and not name.startswith("file://"):
        return name
    return regular_file(name)
