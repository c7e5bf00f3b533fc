"""Which pictures of a source clips are made of, told from the times of the pictures alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from edgeclf.clips import TIME_ROUNDING, Sampler
from edgeclf.specs import PreprocessSpec


@dataclass(slots=True, eq=False)
class _Picture:
    seconds: float
    wanted: bool = False
    certain: bool = False


class ClipChooser:
    """Wants the pictures that any of the samplers fills a slot with, and those that these are stacked with.

    samplers: fresh ones, which nobody else uses. Without a stack each verdict comes at once; with one, it comes when
    no later picture can be stacked with this one.
    """

    def __init__(self, samplers: Sequence[Sampler], preprocess: PreprocessSpec) -> None:
        self._samplers = tuple(samplers)
        self._preprocess = preprocess
        self._open: deque[_Picture] = deque()  # in order of time, verdict not handed out
        self._stack: deque[_Picture] = deque()  # what later pictures may be stacked with, and the last one

    def add(self, pts_seconds: float) -> list[bool]:
        """Tell the time of the next picture in order; the verdicts that are now certain, the oldest first."""
        samples = [sampler.sample(pts_seconds) for sampler in self._samplers]
        sampled = any(sample.slots for sample in samples)
        if self._preprocess.stack == 1:
            return [sampled]
        if any(sample.restart for sample in samples):
            self._let_go(len(self._stack))
        picture = _Picture(pts_seconds)
        self._stack.append(picture)
        self._open.append(picture)
        self._let_go_of_old()
        if sampled:
            for member in self._members():
                member.wanted = member.certain = True
        return self._verdicts()

    def finish(self) -> list[bool]:
        """No picture follows; the verdicts that were still open."""
        self._let_go(len(self._stack))
        return self._verdicts()

    def _let_go_of_old(self) -> None:
        """The same rule as that of the stage that keeps the pictures."""
        reach = (self._preprocess.stack - 1) * self._preprocess.stack_seconds
        oldest = self._stack[-1].seconds - reach + TIME_ROUNDING
        while len(self._stack) > 1 and self._stack[1].seconds <= oldest:
            self._let_go(1)

    def _let_go(self, count: int) -> None:
        for _ in range(count):
            self._stack.popleft().certain = True

    def _members(self) -> list[_Picture]:
        """The last picture and those that it is stacked with."""
        last = self._stack[-1]
        steps = range(1, self._preprocess.stack)
        return [last, *(self._at(last.seconds - step * self._preprocess.stack_seconds) for step in steps)]

    def _at(self, seconds: float) -> _Picture:
        wanted = seconds + TIME_ROUNDING
        return next((picture for picture in reversed(self._stack) if picture.seconds <= wanted), self._stack[0])

    def _verdicts(self) -> list[bool]:
        verdicts = []
        while self._open and self._open[0].certain:
            verdicts.append(self._open.popleft().wanted)
        return verdicts
