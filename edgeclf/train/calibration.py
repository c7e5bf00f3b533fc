"""Scores that mean what they say: a temperature for the whole model, and a threshold for each label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeclf.dataset import BACKGROUND
from edgeclf.errors import DataError
from edgeclf.metrics import Floats, Ints, winners
from edgeclf.model_directory import import_keras

TEMPERATURES = (0.05, 20.0)  # what is searched

_SMALLEST = float(np.finfo(np.float32).tiny)  # a score that float32 rounds to 0 was about this
_STEPS = 10_000  # thresholds have four decimals
_GOLDEN = (math.sqrt(5) - 1) / 2


def fit_temperature(scores: Floats, truth: Ints, weights: Floats | None = None) -> float:
    """The T in `TEMPERATURES` with the lowest negative log-likelihood of softmax(log(scores) / T).

    One number for all classes (Guo et al. 2017, arXiv 1706.04599): it changes no winner. Where every clip is right
    it is the lowest T, where scores say nothing the highest. Fit it on validation clips, on scores as the
    classifier gives them and not on averages over a video.

    scores: (N, C), rows of NaN are left out. truth: (N,) indices. weights: (N,), equal if not given.
    Raises DataError where no clip has scores.
    """
    read = ~np.isnan(scores).any(axis=1)
    weights = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    if not weights[read].sum() > 0:
        raise DataError(
            "no clip has scores to fit a temperature on", hint="check that the validation clips can be read"
        )
    logits, own, weights = _logits(scores[read]), np.asarray(truth)[read], weights[read]

    def loss(log_temperature: float) -> float:
        divided = logits / math.exp(log_temperature)
        return float((_log_sum(divided) - divided[np.arange(len(own)), own]) @ weights / weights.sum())

    low, high = (math.log(bound) for bound in TEMPERATURES)
    return math.exp(_lowest(loss, low, high))


def apply_temperature(scores: Floats, temperature: float) -> Floats:
    """softmax(log(scores) / temperature): softer scores above 1, harder ones below; rows of NaN stay. (N, C)."""
    _check(temperature)
    divided = _logits(scores) / temperature
    found: Floats = np.exp(divided - _log_sum(divided)[:, None])
    return found


def choose_thresholds(scores: Floats, truth: Ints, labels: Sequence[str]) -> dict[str, float]:
    """For each label the threshold on the winning score with the best F1 of "it wins and reaches the threshold".

    The lowest of equally good ones; 0 where a label never wins or no threshold is better than none, and for
    `background`, which says already that it is none of the others. Thresholds are scores of the clips rounded down to
    four decimals, so each lies in [0, 1) and is reached by the score it is made of.
    scores: (N, C), a row of NaN is a miss. truth: (N,) indices.
    """
    found = winners(scores)
    return {
        label: _best_threshold(
            scores[found == index, index], truth[found == index] == index, int((truth == index).sum())
        )
        if label != BACKGROUND
        else 0.0
        for index, label in enumerate(labels)
    }


def fold_temperature(classifier: Any, temperature: float) -> None:
    """Divide the logits of a Keras model by the temperature, inside the weights of its last layer.

    Raises ValueError where the model's output is not that of a Dense layer with bias and softmax.
    """
    _check(temperature)
    keras = import_keras()
    layer = classifier.layers[-1]
    if not (isinstance(layer, keras.layers.Dense) and layer.use_bias and layer.activation is keras.activations.softmax):
        raise ValueError(
            f"the last layer {layer.name!r} is no Dense layer with bias and softmax; it cannot take a temperature"
        )
    layer.set_weights([values / temperature for values in layer.get_weights()])


def _check(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"the temperature must be a positive number, not {temperature}")


def _logits(scores: Floats) -> Floats:
    found: Floats = np.log(np.maximum(np.asarray(scores, np.float64), _SMALLEST))  # NaN stays NaN
    return found


def _log_sum(logits: Floats) -> Floats:
    """log(sum(exp(row))) of each row."""
    highest = logits.max(axis=1)
    found: Floats = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return found


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum is lowest, to 1e-6, by golden sections. The ends themselves are tried too."""
    ends = (low, high)
    while high - low > 1e-6:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return min(((low + high) / 2, *ends), key=function)


def _best_threshold(scores: Floats, right: np.ndarray[Any, np.dtype[np.bool_]], there: int) -> float:
    """scores: of the clips that the label wins. right: where it does so rightly. there: clips of the label."""
    candidates = np.unique(np.append(_rounded_down(scores), 0))
    reached = scores >= (candidates / _STEPS)[:, None]  # (thresholds, wins)
    f1 = 2 * (reached & right).sum(axis=1) / np.maximum(1, reached.sum(axis=1) + there)
    return float(candidates[np.argmax(f1 > f1.max() - 1e-12)] / _STEPS)


def _rounded_down(scores: Floats) -> Ints:
    """Scores in steps of 1/10000, never above the score itself, and below 1."""
    steps = np.floor(scores * _STEPS)
    steps -= steps / _STEPS > scores  # the product may have been rounded up
    return np.clip(steps, 0, _STEPS - 1).astype(np.int64)
