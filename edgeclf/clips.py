"""Which frames form a clip: which are sampled, and the windows that are due as sampled frames arrive.

Of a stream, time is cut into slots of 1/rate seconds, counted from the first frame. A slot takes the first frame at or
after its start, so 10, 12.5, 25 or 30 frames a second give the same clip length in seconds; a frame that comes
late fills every slot it is the first frame for. Of a file, a published recipe may count frames instead. Training,
evaluation, files and streams all use this code.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclf.specs import ClipSpec

Flag = Literal["partial", "stale"]

TIME_ROUNDING = 0.6e-3  # seconds: Matroska and FLV round time stamps to milliseconds


@dataclass(frozen=True, slots=True)
class Sample:
    """What the sampler makes of one frame: the slots it fills (0: it is skipped), and whether clips restart."""

    slots: int
    restart: bool = False


class Sampler(Protocol):
    """Says of each frame of one source, in order of time, how many slots of its clips it fills."""

    @property
    def done(self) -> bool:
        """Whether no later frame can fill a slot."""

    def sample(self, pts_seconds: float) -> Sample:
        """The slots that the frame at `pts_seconds`, later than all before it, fills."""

    def pass_over(self, pts_seconds: float) -> None:
        """A picture was there at `pts_seconds` that nobody decoded: it fills no slot, and it leaves no gap."""


def sampler_of(clip: ClipSpec, count_frames: Callable[[], int]) -> Sampler:
    """The sampler of one source. `count_frames` is called only where the number of its frames has to be known."""
    if clip.sampling == "rate":
        return RateSampler(clip)
    return IndexSampler(clip.length, clip.length if clip.sampling == "first" else count_frames())


class IndexSampler:
    """Spreads `length` slots evenly over the first `span` frames of a source; what follows is left out.

    Frame i fills the slots k with floor(k span / length) == i: every one of the first `length` frames fills
    one slot if `span` is `length`, and a frame of a shorter source fills several.
    """

    def __init__(self, length: int, span: int) -> None:
        self._slots = Counter(slot * span // length for slot in range(length))
        self._last = max(self._slots)
        self._next = 0

    @property
    def done(self) -> bool:
        return self._next > self._last

    def sample(self, pts_seconds: float) -> Sample:  # noqa: ARG002 - time does not matter
        index, self._next = self._next, self._next + 1
        return Sample(self._slots[index])

    def pass_over(self, pts_seconds: float) -> None:  # noqa: ARG002 - time does not matter
        """A frame that is not decoded is counted all the same."""
        self._next += 1


class RateSampler:
    """Fills a slot every 1 / rate seconds."""

    done = False

    def __init__(self, clip: ClipSpec) -> None:
        self._clip = clip
        self._origin = 0.0
        self._next_slot = 0
        self._last: float | None = None

    def sample(self, pts_seconds: float) -> Sample:
        """The slots that the frame at `pts_seconds` fills.

        A frame later than the last one by more than `stale_seconds` starts a new grid, and a new clip.
        """
        restart = self._last is not None and pts_seconds - self._last > self._clip.stale_seconds
        if self._last is None or restart:
            self._origin, self._next_slot = pts_seconds, 0
        self._last = pts_seconds
        reached = int((pts_seconds - self._origin + TIME_ROUNDING) * self._clip.rate)
        slots = max(0, reached + 1 - self._next_slot)
        self._next_slot += slots
        return Sample(slots, restart)

    def pass_over(self, pts_seconds: float) -> None:
        """A picture that nobody decoded shows that the stream goes on; behind a gap, sampling a frame will say so."""
        if self._last is not None and pts_seconds - self._last <= self._clip.stale_seconds:
            self._last = pts_seconds


@dataclass(frozen=True, slots=True)
class ClipWindow:
    """The slots `start .. start + length - 1` of a run of slots, to be classified as one clip."""

    start: int
    length: int
    flags: tuple[Flag, ...] = ()


class ClipSchedule:
    """Tells, slot by slot, which windows of a run of slots are due.

    Full clips start every hop. What the last full clip left over is covered by one more full clip that ends
    with the run; a run shorter than one clip gives a single `partial` window.
    """

    def __init__(self, clip: ClipSpec) -> None:
        self._clip = clip
        self._filled = 0
        self._covered = 0

    def fill(self) -> ClipWindow | None:
        """One more slot is filled; the window that is due with it, if any."""
        self._filled += 1
        start = self._filled - self._clip.length
        if start < 0 or start % self._clip.hop_slots:
            return None
        self._covered = self._filled
        return ClipWindow(start, self._clip.length)

    def finish(self, *, stale: bool = False) -> ClipWindow | None:
        """The run ends (`stale`: at a gap, not at the end of the video); the last window, if one is left.

        The next slot starts a new run.
        """
        filled, covered = self._filled, self._covered
        self._filled = self._covered = 0
        if filled == covered:
            return None
        flags: tuple[Flag, ...] = ("stale",) if stale else ()
        if filled < self._clip.length:
            return ClipWindow(0, filled, ("partial", *flags))
        return ClipWindow(filled - self._clip.length, self._clip.length, flags)


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip as the classifier takes it, with the time that it covers."""

    features: NDArray[Any]  # float32 (T, F), or uint8 frames (T, H, W, 3); rows from `length` on are padding
    length: int
    start_seconds: float
    end_seconds: float
    flags: tuple[Flag, ...] = ()


class ClipAssembler:
    """Keeps the features of one source that its clips still need, and puts the clips together."""

    def __init__(self, clip: ClipSpec) -> None:
        self._clip = clip
        self._schedule = ClipSchedule(clip)
        self._ring: deque[NDArray[Any]] = deque(maxlen=clip.length)
        self._origin = self._last = 0.0
        # Seconds from one sampled frame to the next where none was dropped.
        longest = clip.stale_seconds + 1 / clip.rate + TIME_ROUNDING
        self._longest_step = longest if clip.sampling == "rate" else float("inf")

    def add(self, feature: NDArray[Any], pts_seconds: float, sample: Sample) -> list[Clip]:
        """The clips that are due with the feature of one more sampled frame, (F,) or the frame itself.

        The clip starts again at a restart, and where so many sampled frames were dropped that there is a gap. A clip by
        time starts with one slot, whatever was dropped before it.
        """
        gap = bool(self._ring) and pts_seconds - self._last > self._longest_step
        due = self.finish(stale=True) if sample.restart or gap else []
        slots = 1 if not self._ring and self._clip.sampling == "rate" else sample.slots
        if not self._ring:
            self._origin = pts_seconds
        self._last = pts_seconds
        for _ in range(slots):
            self._ring.append(feature)
            if window := self._schedule.fill():
                due.append(self._cut(window))
        return due

    def finish(self, *, stale: bool = False) -> list[Clip]:
        """The clip that covers what is left, if any; the next feature starts anew."""
        window = self._schedule.finish(stale=stale)
        due = [self._cut(window)] if window else []
        self._ring.clear()
        return due

    def _cut(self, window: ClipWindow) -> Clip:
        rows = np.stack(list(self._ring)[-window.length :])
        start, end = self._covered_seconds(window)
        return Clip(padded(rows, self._clip), window.length, start, end, window.flags)

    def _covered_seconds(self, window: ClipWindow) -> tuple[float, float]:
        """The time that a window covers; slots that are not spaced by time cover what their frames do."""
        if self._clip.sampling != "rate":
            return self._origin, self._last
        start = self._origin + window.start / self._clip.rate
        return start, start + window.length / self._clip.rate


def padded(rows: NDArray[Any], clip: ClipSpec) -> NDArray[Any]:
    """The rows of a clip that is not full, one or more, with its padding behind them: (T, ...)."""
    missing = [(0, clip.length - len(rows)), *[(0, 0)] * (rows.ndim - 1)]
    return np.pad(rows, missing, mode="edge" if clip.padding == "repeat_last" else "constant")
