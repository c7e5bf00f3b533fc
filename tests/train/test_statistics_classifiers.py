"""Statistics of a clip, and its change from frame to frame, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.train.classifiers import change_gru_classifier, statistics_classifier
from tests.support.labelled import require_keras

pytestmark = pytest.mark.keras

LENGTH, FEATURES, CLASSES = 6, 5, 3
LENGTHS = tuple(range(LENGTH + 1))  # of the clips in a batch, the empty one first

Floats = NDArray[np.float32]

MAKE: dict[str, Callable[[int], Any]] = {
    "statistics": lambda length: statistics_classifier(length, FEATURES, CLASSES, hidden=7),
    "statistics, no hidden": lambda length: statistics_classifier(length, FEATURES, CLASSES, hidden=0),
    "statistics, from 2": lambda length: statistics_classifier(length, FEATURES, CLASSES, first=2, hidden=7),
    "change": lambda length: change_gru_classifier(length, FEATURES, CLASSES, units=4, narrow=6),
}


@pytest.fixture(scope="module", autouse=True)
def keras() -> Any:
    require_keras()
    import keras

    return keras


@pytest.fixture(scope="module", params=MAKE)
def model(request: pytest.FixtureRequest) -> Any:
    return with_random_weights(MAKE[request.param](LENGTH))


def with_random_weights(model: Any) -> Any:
    """Other biases than zeros, and another mean and spread than 0 and 1."""
    rng = np.random.default_rng(1)
    model.set_weights([np.abs(weight + rng.normal(0, 0.4, weight.shape)) + 0.1 for weight in model.get_weights()])
    model.get_layer("standardise").finalize_state()
    scores = model.get_layer("scores")
    scores.set_weights([rng.normal(0, 1, weight.shape) for weight in scores.get_weights()])
    return model


def features() -> Floats:
    return np.random.default_rng(2).gamma(1.0, 2.0, (len(LENGTHS), LENGTH, FEATURES)).astype(np.float32)


def feeds(clips: Floats, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    return {"features": clips, "mask": np.arange(clips.shape[1]) < np.array(lengths)[:, None]}


def part_of(keras: Any, model: Any, layer: str) -> Any:
    return keras.Model(model.input, model.get_layer(layer).output)


def run(model: Any, inputs: dict[str, Any]) -> Floats:
    """What the model gives, without making a graph of it first."""
    return np.array(model(inputs, training=False).numpy(), np.float32)


# -- statistics -------------------------------------------------------------------------------------------------------


def statistics_of(clip: Floats) -> Floats:
    """Roots of mean, maximum and mean change, of a millionth at the least; and the difference of the halves."""
    if not len(clip):
        return np.repeat([1e-3, 0], [3 * clip.shape[1], clip.shape[1]]).astype(np.float32)
    steps = np.abs(np.diff(clip, axis=0))
    change = steps.mean(axis=0) if len(steps) else np.zeros(clip.shape[1])
    half = len(clip) / 2
    first = sum(clip[n] for n in range(len(clip)) if n + 0.5 < half)
    second = sum(clip[n] for n in range(len(clip)) if n + 0.5 > half)
    halves = (first - second) / max(half, 0.5)
    return np.concatenate(
        [
            np.sqrt(np.maximum([clip.mean(axis=0), clip.max(axis=0), change], 1e-6)).ravel(),
            halves + np.zeros(len(change)),
        ]
    )


@pytest.mark.parametrize("first", [0, 2, FEATURES - 1])
def test_statistics_are_those_worked_out_in_numpy(keras: Any, first: int) -> None:
    model = statistics_classifier(LENGTH, FEATURES, CLASSES, first=first)
    found = run(part_of(keras, model, "statistics"), feeds(features()))
    expected = [statistics_of(clip[:length, first:]) for clip, length in zip(features(), LENGTHS, strict=True)]
    assert found.shape == (len(LENGTHS), 4 * (FEATURES - first))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_difference_of_the_halves_can_be_left_out(keras: Any) -> None:
    model = statistics_classifier(LENGTH, FEATURES, CLASSES, halves=False)
    found = run(part_of(keras, model, "statistics"), feeds(features()))
    expected = [statistics_of(clip[:length])[: 3 * FEATURES] for clip, length in zip(features(), LENGTHS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_scores_begin_even_where_no_hidden_units_stand_before_them() -> None:
    model = statistics_classifier(LENGTH, FEATURES, CLASSES, hidden=0)
    np.testing.assert_allclose(run(model, feeds(features())), 1 / CLASSES, rtol=1e-6)


def test_middle_frame_of_an_odd_clip_is_in_neither_half(keras: Any) -> None:
    clip = np.zeros((1, LENGTH, FEATURES), np.float32)
    clip[0, :3, 0] = [1, 50, 4]
    model = statistics_classifier(LENGTH, FEATURES, CLASSES)
    (found,) = run(part_of(keras, model, "statistics"), feeds(clip, (3,)))
    assert found[3 * FEATURES] == pytest.approx((1 - 4) / 1.5)


def test_features_before_the_first_play_no_part(keras: Any) -> None:
    model = with_random_weights(statistics_classifier(LENGTH, FEATURES, CLASSES, first=2, hidden=7))
    clips, other = features(), features()
    other[:, :, :2] += 100
    expected = run(model, feeds(clips))
    np.testing.assert_array_equal(run(model, feeds(other)), expected)
    other[:, :, 2:] += 1
    assert np.abs(run(model, feeds(other)) - expected)[1:].max() > 1e-3


def test_part_without_weights_ends_with_the_statistics(keras: Any) -> None:
    model = statistics_classifier(LENGTH, FEATURES, CLASSES)
    assert part_of(keras, model, "statistics").count_params() == 0


# -- change -----------------------------------------------------------------------------------------------------------


def test_change_is_that_of_the_roots_from_frame_to_frame(keras: Any) -> None:
    model = change_gru_classifier(LENGTH, FEATURES, CLASSES, units=4, narrow=6)
    found = run(part_of(keras, model, "with_change"), feeds(features()))
    roots = np.sqrt(features())
    change = np.concatenate([np.zeros_like(roots[:, :1]), np.abs(np.diff(roots, axis=1))], axis=1)
    np.testing.assert_allclose(found, np.concatenate([roots, change], axis=-1), rtol=1e-5, atol=1e-6)


def test_scores_are_of_the_mean_state_over_the_frames_that_there_are(keras: Any) -> None:
    model = with_random_weights(change_gru_classifier(LENGTH, FEATURES, CLASSES, units=4, narrow=6))
    states = run(part_of(keras, model, "gru"), feeds(features()))
    kernel, bias = model.get_layer("scores").get_weights()
    for clip, length, scores in zip(states, LENGTHS, run(model, feeds(features())), strict=True):
        mean = clip[:length].mean(axis=0) if length else np.zeros(4)
        exponents = np.exp(mean @ kernel + bias)
        np.testing.assert_allclose(scores, exponents / exponents.sum(), rtol=1e-4)


# -- both -------------------------------------------------------------------------------------------------------------


def test_scores_sum_to_1_for_every_length(model: Any) -> None:
    scores = run(model, feeds(features()))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("noise", [1.0, 1e6])
def test_what_stands_behind_a_clip_plays_no_part(model: Any, noise: float) -> None:
    clean, dirty = features(), features()
    for clip, other, length in zip(clean, dirty, LENGTHS, strict=True):
        clip[length:] = 0
        other[length:] += noise
    np.testing.assert_array_equal(run(model, feeds(dirty)), run(model, feeds(clean)))


@pytest.mark.parametrize("name", MAKE)
def test_short_clip_scores_as_in_a_model_of_its_length(name: str) -> None:
    long = with_random_weights(MAKE[name](LENGTH))
    for length in (2, 4):
        short = MAKE[name](length)
        short.set_weights(long.get_weights())
        short.get_layer("standardise").finalize_state()
        whole = run(short, feeds(features()[:, :length], (length,) * len(LENGTHS)))
        found = run(long, feeds(features(), (length,) * len(LENGTHS)))
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e4])
def test_no_length_and_no_value_gives_what_is_no_number(model: Any, value: float) -> None:
    clips = np.full((len(LENGTHS), LENGTH, FEATURES), value, np.float32)
    assert np.isfinite(run(model, feeds(clips))).all()


@pytest.mark.parametrize("name", ["statistics", "change"])
def test_still_clip_can_be_fitted(name: str) -> None:
    """The root has no slope at 0, which is where clips without change and masked rows are."""
    model = MAKE[name](LENGTH)
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    clips = np.zeros((len(LENGTHS), LENGTH, FEATURES), np.float32)
    for _ in range(2):
        loss = model.train_on_batch(feeds(clips), np.arange(len(LENGTHS)) % CLASSES)
    assert np.isfinite(loss)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.parametrize("name", ["statistics", "change"])
def test_extractor_can_be_tuned_where_features_are_0(name: str) -> None:
    """What is learned of features goes on to the layers that they come from."""
    import tensorflow as tf

    model, mask = MAKE[name](LENGTH), tf.sequence_mask(LENGTHS, LENGTH)
    clips = tf.constant(features() * (np.arange(FEATURES) % 2))
    with tf.GradientTape() as tape:
        tape.watch(clips)
        loss = tf.reduce_sum(model({"features": clips, "mask": mask})[:, 0])
    assert np.isfinite(tape.gradient(loss, clips)).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_saved_model_loads_in_safe_mode_with_mean_and_spread(keras: Any, model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "classifier.keras")
    loaded = keras.models.load_model(tmp_path / "classifier.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(run(loaded, feeds(features())), run(model, feeds(features())))
