"""How well a model does on labelled clips: accuracy, precision, recall, F1 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeclf.errors import DataError
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopOptions, run_loop
from edgeclf.runtime.records import Result, SourceEnd
from edgeclf.train.dataset import LabelledClip

FAILED = "(failed)"  # what is found in a clip that cannot be read; always wrong


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Precision, recall and F1 of one class, 0 to 1; 0 where a class is never found or never there."""

    label: str
    precision: float
    recall: float
    f1: float
    clips: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found in each clip beside what is there."""

    labels: tuple[str, ...]
    truth: tuple[str, ...]
    found: tuple[str, ...]
    errors: tuple[str, ...] = ()  # of clips that could not be read, or not wholly

    @property
    def accuracy(self) -> float:
        """The share of clips that are labelled rightly; a clip that cannot be read counts as wrong."""
        return sum(a == b for a, b in zip(self.truth, self.found, strict=True)) / max(1, len(self.truth))

    def class_scores(self) -> list[ClassScore]:
        """One row for each class."""
        return [self._class_score(label) for label in self.labels]

    def confusion(self) -> list[list[int]]:
        """Counts; row: what is there, column: what was found, the last column for clips that failed."""
        columns = (*self.labels, FAILED)
        matrix = np.zeros((len(self.labels), len(columns)), int)
        for truth, found in zip(self.truth, self.found, strict=True):
            matrix[self.labels.index(truth), columns.index(found)] += 1
        rows: list[list[int]] = matrix.tolist()
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "clips": len(self.truth),
            "accuracy": round(self.accuracy, 4),
            "classes": {
                row.label: {
                    "precision": round(row.precision, 4),
                    "recall": round(row.recall, 4),
                    "f1": round(row.f1, 4),
                    "clips": row.clips,
                }
                for row in self.class_scores()
            },
            "confusion": self.confusion(),
            "failed": len([found for found in self.found if found == FAILED]),
        }

    def _class_score(self, label: str) -> ClassScore:
        pairs = list(zip(self.truth, self.found, strict=True))
        right = sum(truth == found == label for truth, found in pairs)
        there, claimed = self.truth.count(label), self.found.count(label)
        precision, recall = right / max(1, claimed), right / max(1, there)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        return ClassScore(label, precision, recall, f1, there)


def evaluate(
    model: Model, clips: Sequence[LabelledClip], *, options: LoopOptions, progress: Callable[[], None] = lambda: None
) -> Evaluation:
    """Run the model over labelled clips, through the same loop as `edgeclf infer`.

    Raises DataError where there is no clip, or a class that the model does not know.
    """
    _check(model.labels, clips)
    found: dict[str, str] = {}
    errors: list[str] = []
    for record in run_loop([clip.path for clip in clips], model, options):
        if isinstance(record, Result):
            found[record.source] = record.top_label
        if isinstance(record, SourceEnd):
            progress()
            if record.error:
                errors.append(f"{record.error.kind}: {record.error}")
    return Evaluation(
        model.labels,
        tuple(clip.label for clip in clips),
        tuple(found.get(str(clip.path), FAILED) for clip in clips),
        tuple(errors),
    )


def _check(labels: Sequence[str], clips: Sequence[LabelledClip]) -> None:
    if not clips:
        raise DataError("there is no clip to evaluate on", hint="choose another --split")
    if unknown := sorted({clip.label for clip in clips} - set(labels)):
        raise DataError(f"the model does not know {', '.join(unknown)}", hint=f"it knows {', '.join(labels)}")
