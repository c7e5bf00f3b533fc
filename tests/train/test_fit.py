"""Examples out of videos, and what fitting promises whatever is fitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.specs import ClipSpec
from edgeclf.train.features import VideoFeatures
from edgeclf.train.fit import Examples, FitSettings, Fitted, examples_of, fit_classifier
from tests.support.labelled import require_keras

CLIP = ClipSpec.by_rate(length=4, rate=2.0, hop_seconds=1.0)
SIZE = 3


def video(frames: int, value: float = 1.0) -> VideoFeatures:
    """A video with `frames` sampled frames; the first feature counts them."""
    rows = np.full((frames, SIZE), value, np.float32)
    rows[:, 0] = np.arange(frames)
    times = np.arange(frames) / CLIP.rate
    return VideoFeatures(rows, times, np.ones(frames, np.int32), np.zeros(frames, np.bool_))


def examples(count: int, seed: int) -> Examples:
    """Two classes that the mean of a clip mostly tells apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    features = rng.normal((labels - 0.5)[:, None, None], 1.0, (count, CLIP.length, SIZE)).astype(np.float32)
    return Examples(features, np.full(count, CLIP.length, np.int32), labels, np.ones(count, np.float32))


# -- examples ---------------------------------------------------------------------------------------------------------


def test_every_video_weighs_the_same_however_long_it_is() -> None:
    made = examples_of([video(4), video(12), video(2)], [0, 1, 2], CLIP)
    assert made.labels.tolist() == [0, 1, 1, 1, 1, 1, 2]
    np.testing.assert_allclose([made.weights[made.labels == n].sum() for n in range(3)], [1, 1, 1])


def test_video_without_frames_gives_no_example() -> None:
    made = examples_of([video(0), video(4)], [0, 1], CLIP)
    assert made.labels.tolist() == [1]
    assert made.weights.tolist() == [1.0]


def test_short_clip_is_masked_behind_its_length() -> None:
    made = examples_of([video(3), video(4)], [0, 1], CLIP)
    assert made.features.shape == (2, 4, SIZE)
    assert made.lengths.tolist() == [3, 4]
    assert made.inputs()["mask"].tolist() == [[True, True, True, False], [True] * 4]
    assert not made.features[0, 3:].any()
    assert made.features[1, :, 0].tolist() == [0, 1, 2, 3]


# -- fitting ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    require_keras()
    import keras

    return keras


def fitted(
    keras: Any, settings: FitSettings, *, validation: Examples | None = None
) -> tuple[Any, Fitted, list[dict[str, float]]]:
    """The classifier after fitting, how it went, and Keras' figures of each epoch."""
    from edgeclf.train.classifiers import gru_classifier

    keras.utils.set_random_seed(settings.seed)
    classifier = gru_classifier(CLIP.length, SIZE, 2, units=4)
    figures: list[dict[str, float]] = []
    told = fit_classifier(
        classifier,
        examples(64, seed=1),
        validation or examples(32, seed=2),
        settings,
        progress=lambda epoch, logs: figures.append({"epoch": epoch, **logs}),
    )
    return classifier, told, figures


def weights(classifier: Any) -> NDArray[np.float32]:
    return np.concatenate([weight.ravel() for weight in classifier.get_weights()])


@pytest.mark.keras
def test_fitting_ends_with_the_weights_of_the_best_epoch(keras: Any) -> None:
    random_labels = replace(examples(32, seed=2), labels=np.arange(32, dtype=np.int32) // 2 % 2)
    settings = FitSettings(epochs=40, batch=16, learning_rate=0.05, patience=3)
    classifier, told, figures = fitted(keras, settings, validation=random_labels)
    losses = [figure["val_loss"] for figure in figures]
    assert [figure["epoch"] for figure in figures] == list(range(1, told.epochs + 1))
    assert told.best_epoch == int(np.argmin(losses)) + 1 < told.epochs
    assert told.epochs == told.best_epoch + 3, "it ends when patience is over"
    assert told.validation_loss == pytest.approx(min(losses))
    assert told.validation_accuracy == pytest.approx(figures[told.best_epoch - 1]["val_accuracy"])
    loss, accuracy = classifier.evaluate(random_labels.inputs(), random_labels.labels, verbose=0)
    assert loss == pytest.approx(told.validation_loss, abs=1e-5)
    assert accuracy == pytest.approx(told.validation_accuracy)


@pytest.mark.keras
def test_best_epoch_is_kept_also_where_patience_is_not_over(keras: Any) -> None:
    random_labels = replace(examples(32, seed=2), labels=np.arange(32, dtype=np.int32) // 2 % 2)
    settings = FitSettings(epochs=6, batch=16, learning_rate=0.05, patience=100)
    classifier, told, figures = fitted(keras, settings, validation=random_labels)
    assert told.best_epoch < told.epochs == len(figures) == 6
    loss, _ = classifier.evaluate(random_labels.inputs(), random_labels.labels, verbose=0)
    assert loss == pytest.approx(told.validation_loss, abs=1e-5)


@pytest.mark.keras
def test_fitting_learns(keras: Any) -> None:
    _, told, _ = fitted(keras, FitSettings(epochs=15, batch=16, learning_rate=0.02))
    assert told.validation_accuracy > 0.8


@pytest.mark.keras
def test_weights_depend_on_the_seed_alone(keras: Any) -> None:
    settings = FitSettings(epochs=3, batch=16)
    first, told, _ = fitted(keras, settings)
    second, again, _ = fitted(keras, settings)
    other, _, _ = fitted(keras, replace(settings, seed=1))
    np.testing.assert_array_equal(weights(first), weights(second))
    assert told == again
    assert np.abs(weights(first) - weights(other)).max() > 0.01


@pytest.mark.keras
def test_clips_of_a_long_video_do_not_outvote_the_others(keras: Any) -> None:
    """The same clip under two labels: once in one video, three times in the other. Both are equally likely then."""
    from edgeclf.train.classifiers import gru_classifier

    once, thrice = video(4), video(8)
    thrice.rows[:, 0] = 0
    once.rows[:, 0] = 0
    made = examples_of([once, thrice], [0, 1], CLIP)
    assert len(made.labels) == 4
    keras.utils.set_random_seed(0)
    classifier = gru_classifier(CLIP.length, SIZE, 2, units=4, dropout=0.0)
    fit_classifier(classifier, made, made, FitSettings(epochs=25, batch=4, learning_rate=0.1), progress=lambda *_: None)
    np.testing.assert_allclose(classifier.predict_on_batch(made.inputs())[0], [0.5, 0.5], atol=0.05)
