"""Temperatures and thresholds against models whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgeclf import metrics
from edgeclf.errors import DataError
from edgeclf.metrics import Floats, Ints
from edgeclf.model_directory import import_keras
from edgeclf.train.calibration import (
    TEMPERATURES,
    apply_temperature,
    choose_thresholds,
    fit_temperature,
    fold_temperature,
)
from tests.support.labelled import require_keras

NAN = math.nan


def softmax(logits: Floats) -> Floats:
    found: Floats = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return found


def honest_clips(count: int = 4000, classes: int = 4) -> tuple[Floats, Ints]:
    """Logits whose softmax is the probability of the truth, and the truth drawn from it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (count, classes))
    drawn = softmax(logits).cumsum(axis=1) < rng.random((count, 1))
    return logits, np.minimum(drawn.sum(axis=1), classes - 1)


# -- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_that_was_put_in_is_found(temperature: float) -> None:
    logits, truth = honest_clips()
    assert fit_temperature(softmax(logits * temperature), truth) == pytest.approx(temperature, rel=0.06)


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, truth = honest_clips(300)
    scores = softmax(logits * 3)
    best = fit_temperature(scores, truth)
    least = metrics.log_loss(apply_temperature(scores, best), truth)
    for other in np.geomspace(*TEMPERATURES, 200):
        assert metrics.log_loss(apply_temperature(scores, float(other)), truth) >= least - 1e-9


def test_fitted_temperature_lowers_the_calibration_error() -> None:
    logits, truth = honest_clips()
    before = softmax(logits * 3)
    after = apply_temperature(before, fit_temperature(before, truth))
    errors = [
        metrics.reliability(scores.max(axis=1), scores.argmax(axis=1) == truth).expected_calibration_error
        for scores in (before, after)
    ]
    assert errors[0] > 0.15
    assert errors[1] < 0.03


def test_temperature_of_clips_that_are_all_right_or_all_wrong_is_at_its_bound() -> None:
    scores = softmax(np.array([[2.0, 0.0], [0.0, 2.0]]))
    assert fit_temperature(scores, np.array([0, 1])) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature(scores, np.array([1, 0])) == pytest.approx(TEMPERATURES[1])


def test_weighted_clips_count_as_if_they_were_repeated() -> None:
    logits, truth = honest_clips(60)
    scores, times = softmax(logits * 2), np.arange(60) % 3
    repeated = fit_temperature(np.repeat(scores, times, axis=0), np.repeat(truth, times))
    assert fit_temperature(scores, truth, times.astype(np.float64)) == pytest.approx(repeated, rel=1e-4)


def test_unread_clips_are_left_out_and_stay_unread() -> None:
    logits, truth = honest_clips(60)
    scores = softmax(logits * 2)
    alone = fit_temperature(scores[1:], truth[1:])
    scores[0] = NAN
    assert fit_temperature(scores, truth) == pytest.approx(alone)
    assert np.isnan(apply_temperature(scores, 2.0)[0]).all()
    assert not np.isnan(apply_temperature(scores, 2.0)[1:]).any()


def test_no_clip_with_scores_is_refused() -> None:
    with pytest.raises(DataError, match="no clip has scores"):
        fit_temperature(np.full((2, 3), NAN), np.array([0, 1]))


def test_scores_of_zero_and_one_stay_finite() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    truth = np.array([0, 1, 1])
    assert np.isfinite(apply_temperature(scores, fit_temperature(scores, truth))).all()


def test_temperature_keeps_sums_and_winners() -> None:
    scores = softmax(honest_clips(50)[0])
    assert apply_temperature(scores, 1.0) == pytest.approx(scores)
    for temperature in TEMPERATURES:
        changed = apply_temperature(scores, temperature)
        assert changed.sum(axis=1) == pytest.approx(1)
        assert (changed.argmax(axis=1) == scores.argmax(axis=1)).all()
    assert apply_temperature(apply_temperature(scores, 3.0), 1 / 3) == pytest.approx(scores)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, math.inf])
def test_temperature_that_is_no_positive_number_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        apply_temperature(np.array([[0.5, 0.5]]), temperature)


# -- thresholds -------------------------------------------------------------------------------------------------------


def f1_at(scores: Floats, truth: Ints, index: int, threshold: float) -> float:
    claimed = (metrics.winners(scores) == index) & (scores[:, index] >= threshold)
    return float(2 * (claimed & (truth == index)).sum() / max(1, claimed.sum() + (truth == index).sum()))


def test_threshold_is_the_lowest_score_that_it_pays_to_accept() -> None:
    wins = np.array([0.6, 0.7, 0.8, 0.9])
    scores = np.stack([wins, 1 - wins], axis=1)
    assert choose_thresholds(scores, np.array([1, 0, 0, 0]), ("a", "b"))["a"] == 0.7
    assert choose_thresholds(scores, np.array([0, 1, 0, 0]), ("a", "b"))["a"] == 0  # 6/7, and 4/5 from 0.8 on


def test_label_that_never_wins_or_cannot_be_improved_has_no_threshold() -> None:
    scores = np.array([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0]])
    assert choose_thresholds(scores, np.array([0, 1]), ("a", "b", "c")) == {"a": 0, "b": 0, "c": 0}
    assert choose_thresholds(scores, np.array([2, 2]), ("a", "b", "c")) == {"a": 0, "b": 0, "c": 0}
    assert choose_thresholds(np.empty((0, 1)), np.array([], np.int64), ("a",)) == {"a": 0}


def test_background_has_no_threshold() -> None:
    wins = np.array([0.6, 0.7, 0.8, 0.9])
    scores = np.stack([1 - wins, wins], axis=1)
    assert choose_thresholds(scores, np.array([0, 1, 1, 1]), ("a", "b")) == {"a": 0, "b": 0.7}
    assert choose_thresholds(scores, np.array([0, 1, 1, 1]), ("a", "background")) == {"a": 0, "background": 0}


def test_accepted_score_stays_accepted_after_rounding() -> None:
    accepted = [0.57, 0.70005, 0.99999, 1.0, np.nextafter(0.6, 0), float(np.float32(0.8))]
    for score in accepted:
        scores = np.array([[0.51, 0.49], [score, 1 - score]])
        threshold = choose_thresholds(scores, np.array([1, 0]), ("a", "b"))["a"]
        assert 0.51 < threshold <= score
        assert threshold < 1
        assert threshold == round(threshold, 4)
        assert score - threshold < 1.1e-4


def test_no_score_of_a_clip_is_a_better_threshold() -> None:
    logits, truth = honest_clips(300)
    scores = softmax(logits * 2)
    for index, threshold in enumerate(choose_thresholds(scores, truth, "abcd").values()):
        best = f1_at(scores, truth, index, threshold)
        rounded = np.floor(scores[:, index] * 1e4) / 1e4
        assert max(f1_at(scores, truth, index, float(other)) for other in (0.0, *rounded)) == pytest.approx(best)


def test_unread_clip_is_a_miss_that_no_threshold_brings_back() -> None:
    scores = np.array([[0.6, 0.4], [0.9, 0.1], [NAN, NAN]])
    assert choose_thresholds(scores, np.array([1, 0, 0]), ("a", "b")) == {"a": 0.9, "b": 0.0}


# -- a Keras model ----------------------------------------------------------------------------------------------------


def small_model(**last: Any) -> Any:
    keras = import_keras()
    features = keras.Input((5,), name="features")
    state = keras.layers.Dense(6, activation="tanh")(features)
    scores = keras.layers.Dense(3, name="scores", **{"bias_initializer": "normal", "activation": "softmax", **last})(
        state
    )
    return keras.Model(features, scores)


@pytest.mark.keras
def test_folded_temperature_gives_the_scores_of_the_applied_one() -> None:
    require_keras()
    model, features = small_model(), np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    before, layers = np.asarray(model(features), np.float64), len(model.layers)
    fold_temperature(model, 2.5)
    assert np.asarray(model(features)) == pytest.approx(apply_temperature(before, 2.5), abs=1e-6)
    assert len(model.layers) == layers


@pytest.mark.keras
@pytest.mark.parametrize("last", [{"activation": "sigmoid"}, {"use_bias": False}, {"activation": None}])
def test_model_that_does_not_end_in_softmax_with_bias_is_refused(last: dict[str, Any]) -> None:
    require_keras()
    model = small_model(**last)
    before = [values.copy() for values in model.get_weights()]
    with pytest.raises(ValueError, match="'scores' is no Dense layer with bias and softmax"):
        fold_temperature(model, 2.0)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.keras
def test_model_that_ends_in_another_layer_is_refused() -> None:
    require_keras()
    keras = import_keras()
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), keras.layers.Softmax(name="last")])
    with pytest.raises(ValueError, match="'last' is no Dense layer"):
        fold_temperature(model, 2.0)
