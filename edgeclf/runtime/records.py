"""What comes out of the loop: predictions, the result of a file, the end of a source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeclf.clips import Flag
from edgeclf.errors import EdgeclfError
from edgeclf.specs import Aggregate
from edgeclf.video import SourceCounts

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Scored:
    """A label with its score and the scores of all labels, each 0 to 1."""

    source: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    thresholds: tuple[float, ...] = ()  # of each label; a winner below its own is "unknown". None: 0 for all
    classifier: str = ""  # its name, as several may look at one source
    source_index: int = 0  # where it stands among the sources: two may have one name without their passwords
    sample_fps: float | None = None  # frames a second that clips are made of, where the caller chose them

    @property
    def score(self) -> float:
        """The highest score."""
        return max(self.scores)

    @property
    def top_label(self) -> str:
        """The label of the highest score, whatever the threshold."""
        return self.labels[self.scores.index(self.score)]

    @property
    def label(self) -> str:
        """The label of the highest score, or "unknown" where that is below the label's threshold."""
        threshold = self.thresholds[self.scores.index(self.score)] if self.thresholds else 0.0
        return self.top_label if self.score >= threshold else UNKNOWN

    def ranked(self) -> list[tuple[str, float]]:
        """Labels with their scores, the highest first."""
        return sorted(zip(self.labels, self.scores, strict=True), key=lambda pair: -pair[1])

    def _to_dict(self, kind: str) -> dict[str, Any]:
        return {
            "type": kind,
            "source": self.source,
            "source_index": self.source_index,
            "classifier": self.classifier,
            "label": self.label,
            "score": self.score,
            "scores": dict(zip(self.labels, self.scores, strict=True)),
            **({} if self.sample_fps is None else {"sample_fps": self.sample_fps}),
        }


@dataclass(frozen=True, slots=True)
class Prediction(Scored):
    """The label of one clip."""

    start_seconds: float = 0.0
    end_seconds: float = 0.0
    flags: tuple[Flag, ...] = ()
    # Seconds from the clip's last frame being decoded to its feature, and from there to its scores; of a live source
    # also from the frame's arrival to its pixels.
    latency_seconds: dict[str, float] = field(default_factory=dict, compare=False)
    arrived_at: float | None = field(
        default=None, compare=False
    )  # of a live source: when the last frame came, Unix time

    def to_dict(self) -> dict[str, Any]:
        """The JSON-lines record."""
        return self._to_dict("prediction") | {
            "start_seconds": self.start_seconds,
            "end_seconds": self.end_seconds,
            "flags": list(self.flags),
            "latency_seconds": dict(self.latency_seconds),
            **({} if self.arrived_at is None else {"arrived_at": self.arrived_at}),
        }


@dataclass(frozen=True, slots=True)
class Result(Scored):
    """The label of a whole file, made of its clips as the model's `aggregate` says."""

    clips: tuple[Prediction, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON-lines record; its clips stand in records of their own."""
        return self._to_dict("result") | {"clips": len(self.clips)}


@dataclass(frozen=True, slots=True)
class SourceEnd:
    """A source has ended: what became of its pictures, and the error where it did not end well."""

    source: str
    counts: SourceCounts
    error: EdgeclfError | None = None
    decoder: str = ""  # what made the pictures; empty where none came
    source_index: int = 0  # as in `Scored`

    @property
    def label(self) -> None:
        """None: a stream can be printed without looking at the type of what comes."""

    @property
    def score(self) -> None:
        """None, as `label`."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON-lines record."""
        return {**self._start("end"), "decoder": self.decoder, **self.counts.to_dict()}

    def error_to_dict(self) -> dict[str, Any]:
        """The JSON-lines record of the error; there must be one."""
        error = self.error or EdgeclfError("none")
        return {**self._start("error"), "kind": error.kind, "message": error.message, "hint": error.hint}

    def _start(self, kind: str) -> dict[str, Any]:
        return {"type": kind, "source": self.source, "source_index": self.source_index}


Record = Prediction | Result | SourceEnd


def result_of(clips: Sequence[Prediction], aggregate: Aggregate) -> Result:
    """The result of a file's predictions, of which there must be one at least."""
    first = clips[0]
    scores = aggregate_scores([clip.scores for clip in clips], aggregate)
    return Result(
        first.source,
        first.labels,
        scores,
        first.thresholds,
        first.classifier,
        first.source_index,
        first.sample_fps,
        tuple(clips),
    )


def aggregate_scores(scores: Iterable[Sequence[float]], aggregate: Aggregate) -> tuple[float, ...]:
    """One row of scores for a file out of the rows of its clips.

    mean: the average; first: those of the first clip; vote: the share of clips that each label wins.
    The highest of them is the file's label; ties go to the label with the lower index.
    """
    rows = np.asarray(list(scores), np.float64)
    if aggregate == "first":
        return tuple(rows[0].tolist())
    if aggregate == "vote":
        rows = np.eye(rows.shape[1])[rows.argmax(axis=1)]
    return tuple(rows.mean(axis=0).tolist())
