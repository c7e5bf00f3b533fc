from __future__ import annotations

import pytest

from edgeclf.runtime.records import Prediction
from edgeclf.runtime.timeline import Segment, segments_of

LABELS = ("red", "green")


def prediction(label: str, start: float, end: float, score: float = 0.9) -> Prediction:
    scores = (score, 1 - score) if label == "red" else (1 - score, score)
    return Prediction("s", LABELS, scores, start_seconds=start, end_seconds=end)


def test_one_label_is_one_segment_with_the_mean_score() -> None:
    clips = [prediction("red", 0, 4, 0.8), prediction("red", 1, 5, 0.6)]
    (segment,) = segments_of(clips)
    assert segment == Segment("red", 0, 5, segment.score)
    assert segment.score == pytest.approx(0.7)


def test_border_lies_between_the_middles_of_the_clips() -> None:
    clips = [prediction("red", 0, 4), prediction("red", 1, 5), prediction("green", 2, 6)]
    first, second = segments_of(clips)
    assert (first.end_seconds, second.start_seconds, second.end_seconds) == (3.5, 3.5, 6)


def test_gap_ends_a_segment_even_without_a_change() -> None:
    first, second = segments_of([prediction("red", 0, 4), prediction("red", 9, 13)])
    assert (first.end_seconds, second.start_seconds) == (4, 9)


def test_no_predictions_give_no_segments() -> None:
    assert list(segments_of([])) == []
