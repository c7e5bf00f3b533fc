"""The network over the frames of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.train.clip_networks import conv3d_network

pytestmark = pytest.mark.keras

CLASSES = 4


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'edgeclf[train]'")
    return pytest.importorskip("keras", reason="needs Keras: pip install 'edgeclf[train]'")


@pytest.fixture(scope="module")
def small(keras: Any) -> Any:
    """A network for little clips with a random head and random statistics."""
    model = conv3d_network(CLASSES, length=6, size=(32, 48))
    rng = np.random.default_rng(3)
    for layer in model.layers:
        if layer.name.startswith("bn"):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


def clips() -> NDArray[np.uint8]:
    return np.random.default_rng(6).integers(0, 256, (3, 6, 32, 48, 3), dtype=np.uint8)


def test_network_takes_clips_of_uint8_frames_and_gives_scores(keras: Any) -> None:
    model = conv3d_network(CLASSES)
    (frames,), (scores,) = model.inputs, model.outputs
    assert (frames.name, frames.dtype, frames.shape) == ("frames", "uint8", (None, 10, 112, 112, 3))
    assert (scores.dtype, scores.shape) == ("float32", (None, CLASSES))


def test_layers_are_five_convolutions_a_mean_and_scores(small: Any) -> None:
    convolutions = [layer for layer in small.layers if type(layer).__name__ == "Conv3D"]
    assert [(layer.filters, layer.kernel_size) for layer in convolutions] == [
        (filters, (3, 3, 3)) for filters in (16, 32, 64, 128, 128)
    ]
    *_, pooled, dropout, scores = small.layers
    assert [type(layer).__name__ for layer in (pooled, dropout)] == ["GlobalAveragePooling3D", "Dropout"]
    assert (type(scores).__name__, scores.name, scores.activation.__name__) == ("Dense", "scores", "softmax")


def test_time_is_pooled_later_than_space(keras: Any) -> None:
    model = conv3d_network(CLASSES)
    maps = [model.get_layer(f"conv{number}").output.shape[1:4] for number in range(1, 6)]
    assert maps == [(10, 56, 56), (10, 56, 56), (10, 28, 28), (5, 14, 14), (3, 7, 7)]


def test_scores_sum_to_1(small: Any) -> None:
    scores = small.predict_on_batch(clips())
    assert scores.shape == (3, CLASSES)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_order_of_the_frames_matters(small: Any) -> None:
    assert np.abs(small.predict_on_batch(clips()) - small.predict_on_batch(clips()[:, ::-1])).max() > 1e-4


def test_pixels_are_cast_before_they_are_scaled(keras: Any, small: Any) -> None:
    normalise = keras.Model(small.inputs, small.get_layer("normalise").output)
    np.testing.assert_allclose(normalise.predict_on_batch(clips()), clips() / 127.5 - 1, atol=1e-6)


def test_a_step_of_training_lowers_the_loss(keras: Any) -> None:
    keras.utils.set_random_seed(0)
    model = conv3d_network(CLASSES, length=6, size=(32, 48), dropout=0.0)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    losses = [float(model.train_on_batch(clips(), np.array([0, 1, 2]))) for _ in range(5)]
    assert losses[-1] < losses[0]


# TensorFlow's own tensors do not know the `copy` keyword that NumPy 2 passes to __array__.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_saved_network_loads_in_safe_mode_and_answers_the_same(keras: Any, small: Any, tmp_path: Path) -> None:
    small.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict_on_batch(clips()), small.predict_on_batch(clips()))
