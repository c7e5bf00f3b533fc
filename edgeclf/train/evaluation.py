"""How well a model does on labelled clips: accuracy, precision, recall, F1, calibration and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf import metrics
from edgeclf.dataset import BACKGROUND, LabelledClip
from edgeclf.errors import DataError
from edgeclf.metrics import Averages, ClassFigures, Curve, Flags, Floats, Interval, Ints, Reliability
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopOptions, run_loop
from edgeclf.runtime.records import Result, SourceEnd
from edgeclf.video import VideoSource, redacted

FAILED = "(failed)"  # what is found in a clip that cannot be read; always wrong
LEVEL = 0.95  # of the interval of the accuracy

_MANY_CLASSES = 10  # from here on it is worth saying whether the truth is among the first five


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
    """What is there in each clip beside the scores that the model gave; all in one order.

    Names, groups and problems may be left out. Raises ValueError where lengths or labels do not fit together.
    """

    labels: tuple[str, ...]
    truth: tuple[str, ...]
    scores: Floats  # (N, C), each 0 to 1; a row of NaN for a clip that could not be read
    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()  # clips of one group are not independent; an empty one is the clip's own
    problems: tuple[str, ...] = ()  # what was wrong in reading a clip; empty where it was wholly read

    def __post_init__(self) -> None:
        count = len(self.truth)
        scores = np.asarray(self.scores, np.float64)
        object.__setattr__(self, "scores", scores if count else scores.reshape(0, len(self.labels)))
        object.__setattr__(self, "names", self.names or tuple(f"#{n}" for n in range(1, count + 1)))
        object.__setattr__(self, "groups", self.groups or ("",) * count)
        object.__setattr__(self, "problems", self.problems or ("",) * count)
        if {len(self.scores), len(self.names), len(self.groups), len(self.problems)} != {count}:
            raise ValueError("truth, scores, names, groups and problems must have one entry for each clip")
        if self.scores.shape[1:] != (len(self.labels),):
            raise ValueError(f"scores are {self.scores.shape}, there are {len(self.labels)} labels")
        if unknown := sorted(set(self.truth) - set(self.labels)):
            raise ValueError(f"no such label: {', '.join(unknown)}")

    # -- clip by clip

    @property
    def truth_indices(self) -> Ints:
        """(N,) the place of what is there in `labels`."""
        places = {label: index for index, label in enumerate(self.labels)}
        return np.array([places[label] for label in self.truth], np.int64)

    @property
    def found_indices(self) -> Ints:
        """(N,) the place of the highest score, the lower one of equals; -1 where the clip could not be read."""
        return metrics.winners(self.scores)

    @property
    def found(self) -> tuple[str, ...]:
        """The label of the highest score of each clip, or FAILED."""
        return tuple(FAILED if index < 0 else self.labels[index] for index in self.found_indices)

    @property
    def correct(self) -> Flags:
        """(N,) whether a clip is labelled rightly; one that could not be read is not."""
        right: Flags = self.truth_indices == self.found_indices
        return right

    @property
    def confidence(self) -> Floats:
        """(N,) the highest score of each clip; NaN where it could not be read."""
        highest: Floats = self.scores.max(axis=1)
        return highest

    @property
    def errors(self) -> tuple[str, ...]:
        """What was wrong with the clips that could not be read, or not wholly."""
        return tuple(filter(None, self.problems))

    # -- figures

    @property
    def accuracy(self) -> float:
        """The share of clips that are labelled rightly; a clip that cannot be read counts as wrong."""
        return float(self.correct.mean()) if self.truth else 0.0

    @property
    def independent_groups(self) -> int:
        """How many groups of clips there are, a clip without group being one."""
        return len(np.unique(metrics.independent_units(self.groups)))

    def accuracy_interval(self) -> Interval:
        """Where the accuracy lies with a probability of 95 %, by resampling groups; NaN for a single group."""
        return metrics.bootstrap_interval(self.correct, self.groups, level=LEVEL)

    @property
    def macro(self) -> Averages:
        """Precision, recall and F1 in which every class that has a clip counts the same."""
        return self._class_figures().macro()

    @property
    def weighted(self) -> Averages:
        """Precision, recall and F1 in which every clip counts the same."""
        return self._class_figures().weighted()

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have a clip."""
        return self.macro.f1

    @property
    def top_5_accuracy(self) -> float:
        """The share of clips whose truth is among the five highest scores."""
        return metrics.top_accuracy(self.scores, self.truth_indices, 5)

    def class_scores(self) -> list[ClassScore]:
        """One row for each class."""
        figures = self._class_figures()
        columns = (figures.precision, figures.recall, figures.f1, figures.clips)
        return [ClassScore(*row) for row in zip(self.labels, *(column.tolist() for column in columns), strict=True)]

    def confusion(self) -> list[list[int]]:
        """Counts; row: what is there, column: what was found, the last column for clips that failed."""
        rows: list[list[int]] = self._confusion().tolist()
        return rows

    def curves(self) -> dict[str, Curve]:
        """The precision-recall curve of each class that has a clip."""
        truth = self.truth_indices
        return {
            label: metrics.precision_recall_curve(self.scores[:, index], truth == index)
            for index, label in enumerate(self.labels)
            if (truth == index).any()
        }

    def average_precision(self) -> dict[str, float]:
        """The average precision of each class that has a clip."""
        return {label: curve.average_precision for label, curve in self.curves().items()}

    def reliability(self) -> Reliability:
        """How often the winner is right, by its score; over the clips that could be read."""
        read = self.found_indices >= 0
        return metrics.reliability(self.confidence[read], self.correct[read])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; None where a figure cannot be told."""
        averages = self.average_precision()
        return {
            "clips": len(self.truth),
            "accuracy": _rounded(self.accuracy),
            "accuracy_interval": self._interval_to_dict(),
            **({"top_5_accuracy": _rounded(self.top_5_accuracy)} if len(self.labels) >= _MANY_CLASSES else {}),
            "macro": _averages_to_dict(self.macro),
            "weighted": _averages_to_dict(self.weighted),
            "classes": {
                row.label: {
                    "precision": _rounded(row.precision),
                    "recall": _rounded(row.recall),
                    "f1": _rounded(row.f1),
                    "clips": row.clips,
                }
                for row in self.class_scores()
            },
            "average_precision": {
                "mean": _rounded(float(np.mean(list(averages.values())))) if averages else None,
                "classes": {label: _rounded(averages.get(label, math.nan)) for label in self.labels},
            },
            "calibration": self._calibration(),
            "confusion": self.confusion(),
            "failed": self.found.count(FAILED),
        }

    def _confusion(self) -> Ints:
        return metrics.confusion_matrix(self.truth_indices, self.found_indices, len(self.labels))

    def _class_figures(self) -> ClassFigures:
        return metrics.class_figures(self._confusion())

    def _interval_to_dict(self) -> dict[str, Any]:
        interval = self.accuracy_interval()
        return {
            "low": _rounded(interval.low),
            "high": _rounded(interval.high),
            "level": LEVEL,
            "groups": self.independent_groups,
            "method": f"percentile bootstrap of groups, {metrics.RESAMPLES} resamples",
        }

    def _calibration(self) -> dict[str, float | None]:
        read = self.found_indices >= 0
        scores, truth = self.scores[read], self.truth_indices[read]
        return {
            "expected_calibration_error": _rounded(self.reliability().expected_calibration_error),
            "log_loss": _rounded(metrics.log_loss(scores, truth)),
            "brier": _rounded(metrics.brier_score(scores, truth)),
        }


def evaluation_of(
    labels: Sequence[str],
    clips: Sequence[LabelledClip],
    rows: Sequence[Sequence[float] | None],
    problems: Sequence[str] = (),
) -> Evaluation:
    """The evaluation of clips whose scores are known: a row for each clip, None for one that could not be read.

    problems: as in Evaluation. Raises DataError where there is no clip, or a class that is not among the labels.
    """
    _check(labels, clips)
    unread = (math.nan,) * len(labels)
    return Evaluation(
        tuple(labels),
        tuple(clip.label for clip in clips),
        np.array([unread if row is None else row for row in rows], np.float64),
        tuple(clip.name for clip in clips),
        tuple(clip.group for clip in clips),
        tuple(problems),
    )


def evaluate(
    model: Model, clips: Sequence[LabelledClip], *, options: LoopOptions, progress: Callable[[], None] = lambda: None
) -> Evaluation:
    """Run the model over labelled clips, through the same loop as `edgeclf infer`, each file as its recipe takes files.

    Raises DataError where there is no clip, a class that the model does not know, or one name for two sources.
    """
    _check(model.labels, clips)
    sources = [clip.source for clip in clips]
    names = [_name_in_records(source) for source in sources]
    _refuse_namesakes(names, clips)
    scores: dict[str, tuple[float, ...]] = {}
    problems: dict[str, str] = {}
    for record in run_loop(sources, model, options, form="file"):
        if isinstance(record, Result):
            scores[record.source] = record.scores
        if isinstance(record, SourceEnd):
            progress()
            if record.error:
                problems[record.source] = f"{record.error.kind}: {record.error}"
    return evaluation_of(
        model.labels, clips, [scores.get(name) for name in names], [problems.get(name, "") for name in names]
    )


def _name_in_records(source: Path | VideoSource) -> str:
    return redacted(str(source)) if isinstance(source, Path) else source.name


def _refuse_namesakes(names: Sequence[str], clips: Sequence[LabelledClip]) -> None:
    """A file that is listed twice gives the same scores twice; two sources of one name would be mixed up."""
    owners: dict[str, str] = {}
    for name, clip in zip(names, clips, strict=True):
        if owners.setdefault(name, clip.name) != clip.name:
            raise DataError(f"{owners[name]} and {clip.name} are both called {name}", hint="give them different names")


def _check(labels: Sequence[str], clips: Sequence[LabelledClip]) -> None:
    if not clips:
        raise DataError("there is no clip to evaluate on", hint="choose another --split")
    if unknown := sorted({clip.label for clip in clips} - set(labels)):
        option = "name those of its background with --background" if BACKGROUND in labels else "choose with --classes"
        raise DataError(f"the model does not know {', '.join(unknown)}", hint=f"it knows {', '.join(labels)}: {option}")


def _averages_to_dict(averages: Averages) -> Mapping[str, float | None]:
    return {name: _rounded(getattr(averages, name)) for name in ("precision", "recall", "f1")}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
