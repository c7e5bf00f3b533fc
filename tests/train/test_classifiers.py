"""Sequence models against the lists of layers that were published, and what a mask means to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.train.classifiers import (
    gru_classifier,
    lstm_classifier,
    published_gru,
    published_lstm,
    vote_classifier,
)
from edgeclf.train.recipe import RECIPES

pytestmark = pytest.mark.keras

LENGTH, FEATURES, CLASSES = 6, 5, 3

Layers = list[tuple[str, dict[str, Any]]]

PUBLISHED_GRU: Layers = [
    ("GRU", {"units": 16, "return_sequences": True, "activation": "tanh", "recurrent_activation": "sigmoid"}),
    ("GRU", {"units": 8, "return_sequences": False, "activation": "tanh", "recurrent_activation": "sigmoid"}),
    ("Dropout", {"rate": 0.4}),
    ("Dense", {"units": 8, "activation": "relu"}),
    ("Dense", {"units": CLASSES, "activation": "softmax"}),
]
PUBLISHED_LSTM: Layers = [
    ("LSTM", {"units": 456, "return_sequences": True, "dropout": 0.5, "recurrent_activation": "hard_sigmoid"}),
    ("LSTM", {"units": 8, "return_sequences": False, "dropout": 0.0, "recurrent_activation": "sigmoid"}),
    ("Dense", {"units": 8, "activation": "relu"}),
    ("Dense", {"units": CLASSES, "activation": "softmax"}),
]
FRAME_VOTE: Layers = [
    ("Flatten", {}),
    ("Dense", {"units": 1024, "activation": "relu"}),
    ("Dropout", {"rate": 0.5}),
    ("Dense", {"units": 512, "activation": "relu"}),
    ("Dropout", {"rate": 0.5}),
    ("Dense", {"units": 256, "activation": "relu"}),
    ("Dropout", {"rate": 0.5}),
    ("Dense", {"units": 128, "activation": "relu"}),
    ("Dropout", {"rate": 0.5}),
    ("Dense", {"units": CLASSES, "activation": "softmax"}),
]

Make = Callable[[], Any]

MASKED: dict[str, Make] = {
    "gru": lambda: gru_classifier(LENGTH, FEATURES, CLASSES, feature_dropout=0.5),
    "published_gru": lambda: published_gru(LENGTH, FEATURES, CLASSES),
    "lstm": lambda: lstm_classifier(LENGTH, FEATURES, CLASSES, mask=True, dropout=0.3),
}
UNMASKED: dict[str, Make] = {
    "published_lstm": lambda: published_lstm(LENGTH, FEATURES, CLASSES),
    "lstm": lambda: lstm_classifier(LENGTH, FEATURES, CLASSES, mask=False, units=64),
}
# TensorFlow's own tensors do not know the `copy` keyword that NumPy 2 passes to __array__.
saves = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def keras() -> Any:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'edgeclf[train]'")
    return pytest.importorskip("keras", reason="needs Keras: pip install 'edgeclf[train]'")


@pytest.fixture(scope="module", params=MASKED)
def masked(keras: Any, request: pytest.FixtureRequest) -> Any:
    return _with_random_biases(MASKED[request.param]())


@pytest.fixture(scope="module", params=UNMASKED)
def unmasked(keras: Any, request: pytest.FixtureRequest) -> Any:
    return _with_random_biases(UNMASKED[request.param]())


def _with_random_biases(model: Any) -> Any:
    """`model` with biases other than Keras' zeros, which hide faults."""
    rng = np.random.default_rng(1)
    model.set_weights([weight + rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    return model


def features(count: int = 4, length: int = LENGTH) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, length, FEATURES)).astype(np.float32)


def mask(*lengths: int) -> NDArray[np.bool_]:
    return np.asarray(np.arange(LENGTH) < np.array(lengths)[:, None])


def layers_of(model: Any, expected: Layers) -> Layers:
    """The model's layers in order, each with the options that the table has for it."""
    layers = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    wanted = [options for _, options in expected] + [{}] * len(layers)
    return [
        (type(layer).__name__, {option: layer.get_config()[option] for option in options})
        for layer, options in zip(layers, wanted, strict=False)
    ]


# -- the published networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [("inceptionv3-gru", PUBLISHED_GRU), ("vgg16-lstm", PUBLISHED_LSTM), ("vgg16-vote", FRAME_VOTE)],
)
def test_layers_of_a_recipe_are_those_published(recipe: str, expected: Layers) -> None:
    assert layers_of(RECIPES.load(recipe).build_classifier(CLASSES), expected) == expected


def test_published_gru_has_as_many_weights_as_its_source_says() -> None:
    assert published_gru(20, 2048, 5).count_params() == 99_909


def test_votes_are_cast_by_frames_of_the_whole_feature_map() -> None:
    model = vote_classifier(1, 25_088, 101)
    assert model.input_shape == (None, 1, 25_088)
    # (25088 + 1) * 1024 + 1025 * 512 + 513 * 256 + 257 * 128 + 129 * 101
    assert model.count_params() == 26_393_189


@pytest.mark.parametrize(("recipe", "units"), [("resnet50-lstm", 128), ("faces-lstm", 64)])
def test_lstm_of_a_recipe_is_as_large_as_it_says(recipe: str, units: int) -> None:
    expected: Layers = [
        ("LSTM", {"units": units, "return_sequences": False, "recurrent_activation": "sigmoid"}),
        ("Dropout", {"rate": 0.5}),
        ("Dense", {"units": CLASSES, "activation": "softmax"}),
    ]
    assert layers_of(RECIPES.load(recipe).build_classifier(CLASSES), expected) == expected


def test_lstm_of_roots_is_given_roots_of_the_features() -> None:
    plain, of_roots = (lstm_classifier(LENGTH, FEATURES, CLASSES, mask=False, roots=roots) for roots in (False, True))
    of_roots.set_weights(plain.get_weights())
    clips = np.abs(features())
    found, expected = of_roots.predict_on_batch(clips), plain.predict_on_batch(np.sqrt(clips))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# -- inputs and outputs -----------------------------------------------------------------------------------------------


def test_masked_model_takes_features_and_mask(masked: Any) -> None:
    inputs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in masked.inputs}
    assert inputs == {"features": ("float32", (None, LENGTH, FEATURES)), "mask": ("bool", (None, LENGTH))}
    assert set(masked.input) == {"features", "mask"}


def test_unmasked_model_takes_features_alone(unmasked: Any) -> None:
    (tensor,) = unmasked.inputs
    assert (tensor.name, tensor.dtype, tensor.shape) == ("features", "float32", (None, LENGTH, FEATURES))


def test_scores_of_masked_clips_sum_to_1(masked: Any) -> None:
    _check_scores(masked, masked.predict_on_batch({"features": features(), "mask": mask(6, 4, 2, 1)}))


def test_scores_of_full_clips_sum_to_1(unmasked: Any) -> None:
    _check_scores(unmasked, unmasked.predict_on_batch(features()))


def test_scores_of_single_frames_sum_to_1() -> None:
    model = vote_classifier(1, FEATURES, CLASSES)
    _check_scores(model, model.predict_on_batch(features(length=1)))


def _check_scores(model: Any, scores: NDArray[np.float32]) -> None:
    assert (str(scores.dtype), scores.shape) == ("float32", (4, CLASSES))
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    last = model.layers[-1]
    assert (type(last).__name__, last.name, last.activation.__name__) == ("Dense", "scores", "softmax")


# -- the mask ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(1, LENGTH + 1))
def test_what_stands_behind_a_clip_plays_no_part(masked: Any, length: int) -> None:
    clean, dirty = features(), features()
    clean[:, length:] = 0
    dirty[:, length:] += 1000
    valid = mask(*[length] * 4)
    expected = masked.predict_on_batch({"features": clean, "mask": valid})
    np.testing.assert_array_equal(masked.predict_on_batch({"features": dirty, "mask": valid}), expected)


@pytest.mark.parametrize("name", ["published_gru", "lstm"])
@pytest.mark.parametrize("length", range(1, LENGTH + 1))
def test_short_clip_scores_as_in_a_model_of_its_length(name: str, length: int) -> None:
    make: dict[str, Callable[[int], Any]] = {
        "published_gru": lambda n: published_gru(n, FEATURES, CLASSES),
        "lstm": lambda n: lstm_classifier(n, FEATURES, CLASSES, mask=True),
    }
    long, short = _with_random_biases(make[name](LENGTH)), make[name](length)
    short.set_weights(long.get_weights())
    found = long.predict_on_batch({"features": features(), "mask": mask(*[length] * 4)})
    whole = {"features": features()[:, :length], "mask": np.ones((4, length), bool)}
    np.testing.assert_allclose(found, short.predict_on_batch(whole), rtol=1e-5, atol=1e-6)


# -- training and saving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["published_gru"])
def test_masked_model_can_be_fitted(name: str) -> None:
    model = MASKED[name]()
    model.compile("adam", "sparse_categorical_crossentropy")
    feeds = {"features": features(), "mask": mask(6, 4, 2, 1)}
    assert np.isfinite(model.train_on_batch(feeds, np.array([0, 1, 2, 0])))


@saves
def test_saved_masked_model_loads_in_safe_mode(keras: Any, masked: Any, tmp_path: Path) -> None:
    feeds = {"features": features(), "mask": mask(6, 4, 2, 1)}
    _check_saved(keras, masked, feeds, tmp_path)


@saves
def test_saved_unmasked_model_loads_in_safe_mode(keras: Any, unmasked: Any, tmp_path: Path) -> None:
    _check_saved(keras, unmasked, features(), tmp_path)


@saves
def test_saved_vote_loads_in_safe_mode(keras: Any, tmp_path: Path) -> None:
    _check_saved(keras, vote_classifier(1, FEATURES, CLASSES), features(length=1), tmp_path)


def _check_saved(keras: Any, model: Any, feeds: Any, folder: Path) -> None:
    model.save(folder / "classifier.keras")
    loaded = keras.models.load_model(folder / "classifier.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict_on_batch(feeds), model.predict_on_batch(feeds))
