"""Predictions of overlapping clips as a timeline: one segment for each stretch of one label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgeclf.runtime.records import Prediction


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one label; `score` is the mean over its clips."""

    label: str
    start_seconds: float
    end_seconds: float
    score: float


class Timeline:
    """Builds the segments of one source as its predictions come.

    A clip speaks for the time around its middle: where the label changes, the border is half way between the
    middles of the two clips. At a gap, segments end and begin with their clips.
    """

    def __init__(self) -> None:
        self._last: Prediction | None = None
        self._start = self._sum = 0.0
        self._count = 0

    def add(self, prediction: Prediction) -> Segment | None:
        """The segment that this prediction closes, if any."""
        last = self._last
        gap = last is not None and prediction.start_seconds > last.end_seconds
        if last is not None and prediction.label == last.label and not gap:
            self._last, self._sum, self._count = prediction, self._sum + prediction.score, self._count + 1
            return None
        closed, start = None, prediction.start_seconds
        if last is not None:
            border = (_middle(last) + _middle(prediction)) / 2
            closed = self._closed(last, last.end_seconds if gap else border)
            start = start if gap else border
        self._last, self._start, self._sum, self._count = prediction, start, prediction.score, 1
        return closed

    def finish(self) -> Segment | None:
        """The last segment, if there is one."""
        last, self._last = self._last, None
        return self._closed(last, last.end_seconds) if last else None

    def _closed(self, last: Prediction, end: float) -> Segment:
        return Segment(last.label, self._start, end, self._sum / self._count)


def segments_of(predictions: Iterable[Prediction]) -> Iterator[Segment]:
    """All segments of one source's predictions, in order."""
    timeline = Timeline()
    for prediction in predictions:
        if segment := timeline.add(prediction):
            yield segment
    if segment := timeline.finish():
        yield segment


def _middle(prediction: Prediction) -> float:
    return (prediction.start_seconds + prediction.end_seconds) / 2
