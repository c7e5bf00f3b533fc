"""The gate of lower precisions: how far a bundle in FP16 or INT8 is from the same bundle in FP32.

Both run as the runtime opens them, on the same frames of real clips, and are compared feature by feature and window by
window. FP32 itself was proven against Keras before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import ParityError
from edgeclf.export.windows import SampledClip, windows_of
from edgeclf.metrics import Interval, bootstrap_interval, cosines
from edgeclf.runtime.model import Floats, FramesAsFeatures, Model

MIN_WINDOWS = 2000  # labelled ones, for a difference of half a percentage point to mean something
_BATCH = 4  # larger ones are no faster on a CPU, and take memory


@dataclass(frozen=True, slots=True)
class Limits:
    """What a precision must reach. None: it is not asked for."""

    cosine: float | None  # of each feature with its FP32 one, at the least
    agreement: float  # share of windows whose first label is that of FP32
    accuracy_drop: float | None  # in percentage points of labelled windows, at the most


LIMITS: Mapping[str, Limits] = {
    "fp16": Limits(cosine=0.999, agreement=0.995, accuracy_drop=None),
    "int8": Limits(cosine=None, agreement=0.97, accuracy_drop=0.5),
    "u8s8": Limits(cosine=None, agreement=0.97, accuracy_drop=0.5),
}


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """One classifier in one precision beside FP32, over the windows of some clips."""

    classifier: str
    precision: str
    share: float  # of layers that calculate in this precision, 0 to 1
    clips: int
    windows: int
    min_cosine: float
    mean_cosine: float
    agreement: float
    accuracy: float | None  # of the windows, 0 to 1; None where their labels are not known
    fp32_accuracy: float | None
    interval: Interval | None  # of the difference of both in percentage points, paired, 95 %, over recordings

    @property
    def accuracy_drop(self) -> float | None:
        """Percentage points that FP32 is ahead."""
        if self.accuracy is None or self.fp32_accuracy is None:
            return None
        return 100 * (self.fp32_accuracy - self.accuracy)

    def failures(self, *, min_windows: int = MIN_WINDOWS) -> list[str]:
        """What is missed; empty where the precision passes."""
        limits = LIMITS[self.precision]
        missed = []
        if not self.share > 0:
            missed.append(f"no layer calculates in {self.precision}")
        if not np.isfinite(self.mean_cosine):
            missed.append("it gives features or scores that are no numbers")
        if limits.cosine is not None and not self.min_cosine >= limits.cosine:
            missed.append(f"cosine {self.min_cosine:.5f} is below {limits.cosine}")
        if not self.agreement >= limits.agreement:
            missed.append(f"the first label agrees in {self.agreement:.2%}, {limits.agreement:.1%} are asked for")
        if limits.accuracy_drop is not None:
            missed += self._accuracy_failures(limits.accuracy_drop, min_windows)
        return missed

    def _accuracy_failures(self, allowed: float, min_windows: int) -> list[str]:
        if self.accuracy_drop is None:
            return ["its accuracy is not known: name labelled clips with --data"]
        missed = []
        if self.windows < min_windows:
            missed.append(f"{self.windows} labelled windows cannot tell {allowed} points, {min_windows} are asked for")
        if not self.accuracy_drop <= allowed:
            missed.append(f"accuracy is {self.accuracy_drop:.2f} points below FP32, {allowed} are allowed")
        return missed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        figures: dict[str, Any] = {
            "share_of_layers": round(self.share, 4),
            "clips": self.clips,
            "windows": self.windows,
            "min_cosine": _rounded(self.min_cosine),
            "mean_cosine": _rounded(self.mean_cosine),
            "top1_agreement": round(self.agreement, 5),
        }
        if self.accuracy is not None and self.fp32_accuracy is not None:
            figures |= {"accuracy": round(self.accuracy, 5), "fp32_accuracy": round(self.fp32_accuracy, 5)}
        if self.interval is not None and self.interval.is_known:
            figures["accuracy_difference_interval_points"] = [round(self.interval.low, 3), round(self.interval.high, 3)]
        return {"classifier": self.classifier, **figures}

    def __str__(self) -> str:
        said = (
            f"{self.classifier} in {self.precision}: {self.share:.0%} of layers; cosine {self.min_cosine:.5f} at least "
            f"and {self.mean_cosine:.5f} on average; same first label in {self.agreement:.2%} of {self.windows} windows"
        )
        if self.accuracy is None or self.fp32_accuracy is None:
            return said
        said += f"; accuracy {self.accuracy:.4f}, FP32 {self.fp32_accuracy:.4f}"
        if self.interval and self.interval.is_known:
            said += f" (difference {self.interval.low:+.2f} to {self.interval.high:+.2f} points, 95 %)"
        return said


class Reference:
    """The FP32 model, which answers for each clip once, however many precisions are compared with it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._kept: dict[int, _Answers] = {}

    def answers(self, number: int, clip: SampledClip) -> _Answers:
        """What it says of a clip, which has the same number every time."""
        if number not in self._kept:
            self._kept[number] = _answers(self.model, clip.frames)
        return self._kept[number]


def judge(
    reference: Reference, lowered: Model, precision: str, share: float, clips: Iterable[SampledClip]
) -> PrecisionReport:
    """How far the same model in a lower precision is from FP32, over all windows of the clips.

    share: of its layers that calculate in that precision. A clip without a label leaves the accuracy unknown. Raises
    ParityError where there is no clip.
    """
    tally = _Tally(reference.model)
    for number, clip in enumerate(clips):
        tally.add(clip, reference.answers(number, clip), _answers(lowered, clip.frames))
    return tally.report(precision, share)


def require_precision(
    reports: Sequence[PrecisionReport], *, min_windows: int = MIN_WINDOWS, hint: str = "nothing was written"
) -> None:
    """Raise ParityError that names every precision that missed its limits."""
    failed = [
        f"{report.classifier} in {report.precision}: {missed}"
        for report in reports
        for missed in report.failures(min_windows=min_windows)
    ]
    if failed:
        raise ParityError(
            "a lower precision is too far from FP32:\n  " + "\n  ".join(failed),
            hint=hint,
        )


_Answers = tuple[NDArray[Any], Floats]


def _answers(model: Model, frames: NDArray[np.uint8]) -> _Answers:
    """What is compared row by row (features, or scores where there are none), and the scores of all windows."""
    parts = [model.extract(frames[start : start + _BATCH]) for start in range(0, len(frames), _BATCH)]
    features = np.concatenate(parts)
    scores = model.classify(*windows_of(features, model.clip))
    return (scores if isinstance(model.extractor, FramesAsFeatures) else features), scores


class _Tally:
    """Sums up the windows of clip after clip."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cosines: list[NDArray[np.float64]] = []
        self._lengths: list[NDArray[np.float64]] = []
        self._same: list[NDArray[np.bool_]] = []
        self._right: list[NDArray[np.bool_]] = []
        self._fp32_right: list[NDArray[np.bool_]] = []
        self._groups: list[str] = []
        self._labelled = True

    def add(self, clip: SampledClip, expected: _Answers, found: _Answers) -> None:
        self._cosines.append(cosines(found[0], expected[0]))
        self._lengths.append(_lengths(found[0], expected[0]))
        first, fp32_first = found[1].argmax(axis=1), expected[1].argmax(axis=1)
        self._same.append((first == fp32_first) & np.isfinite(found[1]).all(axis=1))
        self._groups += [clip.group] * len(first)
        if clip.label in self._model.labels:
            truth = self._model.labels.index(clip.label)
            self._right.append(first == truth)
            self._fp32_right.append(fp32_first == truth)
        else:
            self._labelled = False

    def report(self, precision: str, share: float) -> PrecisionReport:
        if not self._same:
            raise ParityError("there is no frame to judge the precision on", hint="name clips with --data")
        alike = _without_nothing(np.concatenate(self._cosines), np.concatenate(self._lengths))
        same = np.concatenate(self._same)
        labelled = self._labelled and bool(self._right)
        right = np.concatenate(self._right) if labelled else None
        fp32_right = np.concatenate(self._fp32_right) if labelled else None
        return PrecisionReport(
            self._model.name,
            precision,
            share,
            len(self._same),
            len(same),
            float(alike.min()),
            float(alike.mean()),
            float(same.mean()),
            None if right is None else float(right.mean()),
            None if fp32_right is None else float(fp32_right.mean()),
            self._interval(right, fp32_right),
        )

    def _interval(self, right: NDArray[np.bool_] | None, fp32_right: NDArray[np.bool_] | None) -> Interval | None:
        """Of the mean of +1, 0 and -1 over windows, whole recordings resampled."""
        if right is None or fp32_right is None:
            return None
        return bootstrap_interval(100.0 * (right.astype(float) - fp32_right.astype(float)), self._groups)


def _rounded(value: float) -> float | None:
    """None in the place of what is no number, which JSON does not have."""
    return round(value, 6) if np.isfinite(value) else None


_TINY = 1e-2  # of the usual length: rows this short are features of nothing, which have no direction


def _lengths(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """The lengths of each pair of rows, (n, 2)."""
    return np.stack([np.linalg.norm(rows, axis=1) for rows in (found, expected)], axis=1).astype(np.float64)


def _without_nothing(found: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosines, where two rows that are next to nothing beside the usual one count as equal."""
    nothing = lengths.max(axis=1) <= _TINY * np.median(lengths[:, 1])
    return np.where(nothing, 1.0, found)
