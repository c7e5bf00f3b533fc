"""Simulated cameras: pictures that come at their own pace, late, in bursts or not at all, the same way every time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice, takewhile

import numpy as np

from edgeclf.clips import ClipAssembler, RateSampler
from edgeclf.errors import VideoError
from edgeclf.specs import ClipSpec
from edgeclf.video import Frame, RgbImage, open_video

Clock = Callable[[], float]
Wait = Callable[[float], None]
Pictures = Callable[[], Iterator[Frame | None]]  # None: no picture comes this time

MOST_PICTURES = 250  # that are kept in memory of one source
MOST_BYTES = 256 << 20  # about; a picture of 1080p is 6 MB
_POLL_SECONDS = 0.02
_NO_FEATURE = np.zeros(1, np.float32)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One picture: when it comes, and the time of the camera's clock that it carries."""

    due_seconds: float
    pts_seconds: float


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """When the pictures of a camera come. Two plans with the same seed are the same."""

    fps: float = 25.0
    jitter_seconds: float = 0.0  # a picture is late by up to this
    key_interval: int = 50  # pictures from one I-frame to the next
    key_pause_seconds: float = 0.0  # an I-frame takes so much longer; what follows it comes in a burst
    outage_every_seconds: float = 0.0  # from the start of one disconnect to that of the next; 0: there is none
    outage_seconds: float = 0.0
    phase_seconds: float = 0.0  # that it is behind the others: cameras are not in step
    seed: int = 0

    def arrivals(self) -> Iterator[Arrival]:
        """The pictures without end, each no earlier than the one before it."""
        rng = random.Random(self.seed)  # noqa: S311 - a schedule, no secret
        due, number = 0.0, 0
        while True:
            pts = number / self.fps
            late = rng.uniform(0.0, self.jitter_seconds)
            if number % self.key_interval == self.key_interval - 1:
                late += self.key_pause_seconds
            if not self._is_out(pts):
                due = max(due, self.phase_seconds + pts + late)
                yield Arrival(due, pts)
            number += 1

    def _is_out(self, seconds: float) -> bool:
        """Whether the camera is disconnected: at the end of each stretch, so that it starts connected."""
        if not self.outage_every_seconds:
            return False
        return seconds % self.outage_every_seconds >= self.outage_every_seconds - self.outage_seconds


class Show:
    """What several cameras have in common: they go live together when all are ready, and end together."""

    def __init__(self, cameras: Iterable[str], seconds: float, *, settle_seconds: float = 0.0) -> None:
        self._missing = set(cameras)
        self._settle = settle_seconds
        self._seconds = seconds
        self._start: float | None = None
        self._stopped = threading.Event()

    def join(self, camera: str, now: float) -> None:
        """What this camera led with is worked off. With the last of them the show begins."""
        self._missing.discard(camera)
        if not self._missing and self._start is None:
            self._start = now + self._settle

    @property
    def begins_at(self) -> float | None:
        """When the cameras go live; None while one is missing. What comes in the time to settle does not count."""
        return None if self._start is None else self._start - self._settle

    def is_over(self, now: float) -> bool:
        """Whether a camera has nothing more to show."""
        start = self._start
        return self._stopped.is_set() or (start is not None and now >= start + self._seconds)

    def is_measured(self, moment: float) -> bool:
        """Whether what happens at this moment counts."""
        start = self._start
        return start is not None and start <= moment < start + self._seconds

    def position(self, moment: float) -> float:
        """Where a moment that counts lies in the show, 0 to 1."""
        assert self._start is not None
        return (moment - self._start) / self._seconds

    def stop(self) -> None:
        """End the show now, for every camera."""
        self._stopped.set()

    def wait(self, seconds: float) -> None:
        """Wait for so long, or until the show is stopped."""
        self._stopped.wait(seconds)


class PacedCamera:
    """A live source that shows given pictures, over and over, when its plan says.

    First comes a lead of `lead_seconds` of video as fast as it is taken, never dropped, so that clips are full when the
    show begins; somebody has to tell the show that it was taken. A picture is decoded when it has come; while that
    takes too long, the next ones have come meanwhile, as in a socket's buffer. Every picture is decoded, also where a
    real camera's stream would let some be skipped, so that it costs no less than a real camera does.
    """

    live = True

    def __init__(
        self,
        name: str,
        pictures: Pictures,
        plan: CameraPlan,
        show: Show,
        *,
        lead_seconds: float = 0.0,
        clock: Clock = time.perf_counter,
        wait: Wait | None = None,
    ) -> None:
        self.name = name
        self.decoder = "simulated camera"
        self.dropped: dict[str, int] = {}
        self._pictures = pictures
        self._plan = plan
        self._show = show
        self._lead_pictures = _pictures_in(lead_seconds, plan)
        self._clock = clock
        self._wait = wait or show.wait
        self._closed = False

    def frames(self) -> Iterator[Frame]:
        pictures = self._pictures()
        shown = (picture for picture in pictures if picture)
        for number, led in enumerate(islice(shown, self._lead_pictures)):
            yield replace(led, pts_seconds=number / self._plan.fps, arrival=None)
        lead = self._lead_pictures / self._plan.fps
        start = self._begin()
        for arrival in self._plan.arrivals():
            if not self._has_come(start + arrival.due_seconds):
                return
            if picture := next(pictures):
                yield replace(picture, pts_seconds=lead + arrival.pts_seconds, arrival=start + arrival.due_seconds)

    def close(self) -> None:
        self._closed = True

    def _begin(self) -> float:
        """Wait until all cameras are ready; when this one goes live."""
        while (start := self._show.begins_at) is None and not self._over():
            self._wait(_POLL_SECONDS)
        return start or 0.0

    def _has_come(self, due: float) -> bool:
        """Wait until a picture comes; whether it still does."""
        while not self._over() and (left := due - self._clock()) > 0:
            self._wait(left)
        return not self._over()

    def _over(self) -> bool:
        return self._closed or self._show.is_over(self._clock())


def labels_due(plan: CameraPlan, clip: ClipSpec, lead_seconds: float, begin_seconds: float, end_seconds: float) -> int:
    """How many pictures of a camera make a full clip due, of those that come in this stretch of its time on show.

    It is what the loop gives if it drops nothing: its own sampler and clips run over the times of the pictures. So
    where an outage empties the clip, none is due until it is full again.
    """
    sampler, clips, lead = RateSampler(clip), ClipAssembler(clip), _pictures_in(lead_seconds, plan)

    def is_due(pts_seconds: float) -> bool:
        sample = sampler.sample(pts_seconds)
        due = clips.add(_NO_FEATURE, pts_seconds, sample) if sample.slots else []
        return any("partial" not in clip.flags for clip in due)

    for number in range(lead):
        is_due(number / plan.fps)
    coming = takewhile(lambda arrival: arrival.due_seconds < end_seconds, plan.arrivals())
    due = [arrival for arrival in coming if is_due(lead / plan.fps + arrival.pts_seconds)]
    return sum(arrival.due_seconds >= begin_seconds for arrival in due)


def _pictures_in(seconds: float, plan: CameraPlan) -> int:
    return round(seconds * plan.fps)


def decoded_again(source: str) -> Iterator[Frame | None]:
    """The frames of a source without end: it is decoded again and again, as a camera's video would be.

    Where it begins again its first picture falls out: a camera does not open its stream while pictures come, which
    takes longer than decoding one.
    """
    count = 0
    while True:
        begins_again, count = count > 1, 0
        with closing(open_video(source)) as video:
            for frame in video.frames():
                count += 1
                yield None if begins_again and count == 1 else frame
        if not count:
            raise VideoError(f"{source} holds no picture", hint="name a video file")


def in_memory(source: str, most: int = MOST_PICTURES, most_bytes: int = MOST_BYTES) -> Pictures:
    """The first pictures of a source, decoded once and shown without end by any number of cameras."""
    images: list[RgbImage] = []
    with closing(open_video(source)) as video:
        for frame in islice(video.frames(), most):
            images.append(frame.image)
            if sum(image.nbytes for image in images) >= most_bytes:
                break
    if not images:
        raise VideoError(f"{source} holds no picture", hint="name a video file")
    return lambda: cycle([Frame(0.0, partial(_same, image)) for image in images])


def _same(image: RgbImage) -> RgbImage:
    return image
