"""Figures out of scores: confusion, precision and recall, calibration, how sure they are, how far two answers differ.

Classes are indices 0 to C - 1. A clip that could not be read has a row of NaN for scores and is found as -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

UNREAD = -1  # what is found in a clip that could not be read
RELIABILITY_BINS = 15  # as in Guo et al.
RESAMPLES = 10_000

_SMALLEST = float(np.finfo(np.float64).eps)  # a score of 0 for the truth would cost infinitely much
_DRAWS_AT_ONCE = 2_000_000


# -- what was found ---------------------------------------------------------------------------------------------------


def winners(scores: Floats) -> Ints:
    """(N,) the class of the highest score of each row, the lower index where two are equal; UNREAD for NaN."""
    if not scores.shape[1]:
        raise ValueError("there is no class to choose from")
    highest = np.nan_to_num(scores).argmax(axis=1)
    return np.where(np.isnan(scores).any(axis=1), UNREAD, highest).astype(np.int64)


def confusion_matrix(truth: Ints, found: Ints, classes: int) -> Ints:
    """(C, C + 1) counts; row: what is there, column: what was found, the last column for clips without scores."""
    columns = np.where(found == UNREAD, classes, found)
    counts = np.bincount(truth * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1).astype(np.int64)


def top_accuracy(scores: Floats, truth: Ints, count: int) -> float:
    """The share of clips whose truth is among the `count` highest scores; a clip without scores is wrong."""
    own = scores[np.arange(len(truth)), truth][:, None]
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < truth[:, None]))
    hit = ~np.isnan(scores).any(axis=1) & (ahead.sum(axis=1) < count)
    return float(hit.mean()) if len(truth) else 0.0


@dataclass(frozen=True, slots=True)
class Averages:
    """Precision, recall and F1 over all classes."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Precision, recall and F1 of each class; 0 where a class is never found or never there."""

    precision: Floats  # (C,)
    recall: Floats  # (C,)
    f1: Floats  # (C,)
    clips: Ints  # (C,) how many are there

    def macro(self) -> Averages:
        """Every class that has a clip counts the same. Of a class without clips recall means nothing."""
        return self._averages((self.clips > 0).astype(np.float64))

    def weighted(self) -> Averages:
        """Every clip counts the same."""
        return self._averages(self.clips.astype(np.float64))

    def _averages(self, weights: Floats) -> Averages:
        shares = weights / max(1.0, weights.sum())
        return Averages(*(float(values @ shares) for values in (self.precision, self.recall, self.f1)))


def class_figures(confusion: Ints) -> ClassFigures:
    """The figures behind a confusion matrix with or without its last column for clips without scores."""
    classes = len(confusion)
    right = np.diagonal(confusion).astype(np.float64)
    there, claimed = confusion.sum(axis=1), confusion[:, :classes].sum(axis=0)
    f1 = 2 * right / np.maximum(1, there + claimed)
    return ClassFigures(right / np.maximum(1, claimed), right / np.maximum(1, there), f1, there.astype(np.int64))


# -- two answers to the same ------------------------------------------------------------------------------------------


def cosines(found: NDArray[Any], expected: NDArray[Any]) -> Floats:
    """(N,) the cosine of the angle between each pair of rows (N, F); two rows of zeros are alike."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(lengths == 0, 1.0, lengths))


def margins(scores: NDArray[Any]) -> NDArray[Any]:
    """(N,) how far the highest score of each row (N, C) is ahead of the second."""
    ranked = np.sort(scores, axis=1)
    ahead: NDArray[Any] = ranked[:, -1] - ranked[:, -2]
    return ahead


def changed_winners(found: NDArray[Any], expected: NDArray[Any], clear: float) -> int:
    """How many rows whose expected winner is ahead by more than `clear` have another one in `found`."""
    changed = found.argmax(axis=1) != expected.argmax(axis=1)
    return int((changed & (margins(expected) > clear)).sum())


# -- precision and recall over all thresholds -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall of one class for every threshold on its score, the highest threshold first."""

    precision: Floats  # (P,)
    recall: Floats  # (P,) rising; NaN where the class has no clip
    thresholds: Floats  # (P,) falling; a score counts from its threshold on

    @property
    def average_precision(self) -> float:
        """The sum of precision times gain in recall, without interpolation; NaN where the class has no clip."""
        if not len(self.recall):
            return 0.0
        return float(np.diff(self.recall, prepend=0.0) @ self.precision)

    def corners(self) -> Curve:
        """The points at which recall rises: all that average precision depends on."""
        rises = np.diff(self.recall, prepend=0.0) > 0
        return Curve(self.precision[rises], self.recall[rises], self.thresholds[rises])

    def precision_at(self, recall: Floats) -> Floats:
        """The highest precision that can be had with at least this recall; 0 where there is none."""
        best = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        found: Floats = best[np.searchsorted(self.recall, recall - 1e-12)]
        return found


def precision_recall_curve(scores: Floats, positive: Flags) -> Curve:
    """The curve of one class. A clip without score (NaN) is never found, so the curve may end below a recall of 1.

    scores: (N,) for this class. positive: (N,) true where the class is there.
    """
    read = ~np.isnan(scores)
    order = np.argsort(-scores[read], kind="stable")
    ranked, hits = scores[read][order], positive[read][order]
    last = np.flatnonzero(np.diff(ranked, append=-np.inf))  # equal scores are found together
    right = np.cumsum(hits)[last]
    total = int(positive.sum())
    recall = right / total if total else np.full(len(last), np.nan)
    return Curve(right / (last + 1), recall, ranked[last])


# -- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often the winner is right, by its score, in bins of equal width: bin i holds scores in (i/B, (i+1)/B]."""

    counts: Ints  # (B,)
    confidence: Floats  # (B,) mean score of the winner; NaN where a bin is empty
    accuracy: Floats  # (B,) share of right winners; NaN where a bin is empty

    @property
    def expected_calibration_error(self) -> float:
        """The mean distance of score and accuracy over all clips (Guo et al. 2017, arXiv 1706.04599); NaN for none."""
        if not self.counts.sum():
            return math.nan
        full = self.counts > 0
        distance = np.abs(self.accuracy[full] - self.confidence[full])
        return float(distance @ self.counts[full] / self.counts.sum())


def reliability(confidence: Floats, correct: Flags, bins: int = RELIABILITY_BINS) -> Reliability:
    """The bins behind a reliability diagram. confidence: (N,) the winner's score, without NaN."""
    places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    sums = [np.bincount(places, values, bins) for values in (confidence, correct.astype(np.float64))]
    means = [np.where(counts > 0, total / np.maximum(1, counts), np.nan) for total in sums]
    return Reliability(counts.astype(np.int64), means[0], means[1])


def log_loss(scores: Floats, truth: Ints) -> float:
    """The mean of -log of the score of what is there; NaN for no clip. scores: (N, C) without NaN."""
    own = scores[np.arange(len(truth)), truth]
    return float(-np.log(np.clip(own, _SMALLEST, 1.0)).mean()) if len(truth) else math.nan


def brier_score(scores: Floats, truth: Ints) -> float:
    """The mean squared distance of scores and truth, summed over classes (Brier 1950): 0 to 2; NaN for no clip."""
    distance = scores - np.eye(scores.shape[1])[truth]
    return float((distance**2).sum(axis=1).mean()) if len(truth) else math.nan


# -- how sure a share is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a share lies; NaN where the data cannot tell."""

    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether the data could tell."""
        return not math.isnan(self.low)


def independent_units(groups: Sequence[str]) -> Ints:
    """(N,) a number from 0 for the group of each clip; a clip whose group is empty is a group of its own."""
    numbers: dict[str | int, int] = {}
    keys = (group or index for index, group in enumerate(groups))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def bootstrap_interval(
    correct: Sequence[bool] | Flags,
    groups: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of the share of true values, from resamples of whole groups with replacement.

    Clips of one recording are right or wrong together; drawing them one by one would make the interval too narrow.
    Percentile method on the cluster bootstrap (Davison & Hinkley 1997, section 3.8; Field & Welsh 2007). One group
    cannot tell: NaN. Where every group has the same share, the interval has no width, however few the groups are.
    """
    units = independent_units(groups)
    right = np.bincount(units, np.asarray(correct, np.float64))
    sizes = np.bincount(units)
    if len(sizes) < 2:
        return Interval(math.nan, math.nan)
    rng = np.random.default_rng(seed)
    shares: list[Floats] = []
    at_once = max(1, _DRAWS_AT_ONCE // len(sizes))
    for start in range(0, resamples, at_once):
        drawn = rng.integers(len(sizes), size=(min(at_once, resamples - start), len(sizes)))
        shares.append(right[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(shares), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
