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
        self._open: list[Prediction] = []
        self._start = 0.0

    def add(self, prediction: Prediction) -> Segment | None:
        """The segment that this prediction closes, if any."""
        if not self._open:
            self._begin(prediction, prediction.start_seconds)
            return None
        last = self._open[-1]
        gap = prediction.start_seconds > last.end_seconds
        if prediction.label == last.label and not gap:
            self._open.append(prediction)
            return None
        border = (_middle(last) + _middle(prediction)) / 2
        closed = self._closed(last.end_seconds if gap else border)
        self._begin(prediction, prediction.start_seconds if gap else border)
        return closed

    def finish(self) -> Segment | None:
        """The last segment, if there is one."""
        closed = self._closed(self._open[-1].end_seconds) if self._open else None
        self._open = []
        return closed

    def _begin(self, prediction: Prediction, start: float) -> None:
        self._open = [prediction]
        self._start = start

    def _closed(self, end: float) -> Segment:
        score = sum(prediction.score for prediction in self._open) / len(self._open)
        return Segment(self._open[0].label, self._start, end, score)


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
