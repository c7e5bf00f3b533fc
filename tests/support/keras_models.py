"""Tiny model directories: untrained; the first is scaled so that every label wins somewhere and small faults show.

Keras is imported when a model is built.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.model_directory import ModelDescription, import_keras, write_model
from edgeclf.preprocess import preprocess_frame
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.theatre import ACTIONS, single_action
from edgeclf.train.classifiers import gru_classifier, lstm_classifier, statistics_classifier, vote_classifier

LABELS = ("one", "two", "three", "four")
SIZE = (32, 40)
FEATURES = 10
CLIP = ClipSpec.by_rate(length=6, rate=10.0)
PREPROCESS = PreprocessSpec(SIZE, crop="center_square", interpolation="linear")

Frames = NDArray[np.uint8]  # (n, H, W, 3) RGB


def require(*packages: str) -> None:
    """Skip the test that asks, and say which package it misses."""
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is missing: pip install 'edgeclf[dev]'")


@cache
def description() -> ModelDescription:
    return ModelDescription(
        name="tiny",
        recipe="test",
        labels=LABELS,
        preprocess=PREPROCESS,
        clip=CLIP,
        aggregate="mean",
        keras_version=str(import_keras().__version__),
        provenance={"summary": "Random weights.", "data": {"scenes": "rendered", "seed": 0}},
        evaluation={"accuracy": 0.25},
    )


@cache
def clips() -> list[Frames]:
    """Preprocessed clips: full ones, short ones, and noise."""
    lengths = (6, 6, 4, 6, 1, 6)
    scenes = [single_action(action, seed=n, fps=CLIP.rate) for n, action in enumerate(ACTIONS[: len(lengths)])]
    rendered = [
        np.stack([preprocess_frame(scene.render(3 * index), PREPROCESS) for index in range(length)])
        for scene, length in zip(scenes, lengths, strict=True)
    ]
    noise = np.random.default_rng(5).integers(0, 256, (CLIP.length, *SIZE, 3), dtype=np.uint8)
    return [*rendered, noise]


@cache
def extractor() -> Any:
    """Frames to features of mean 0 and deviation 1 over the clips; colour channels are far from alike."""
    keras = import_keras()
    rng = np.random.default_rng(1)
    frames = keras.Input((*SIZE, 3), dtype="uint8", name="frames")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="normalise")(frames)
    x = keras.layers.Conv2D(FEATURES, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="depthwise_bn")(x)
    model = keras.Model(frames, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="tiny_extractor")
    channels = np.array([1.0, 0.4, -0.7])[:, np.newaxis]
    model.get_layer("stem").set_weights([rng.normal(channels, 0.5, (3, 3, 3, FEATURES))])
    model.get_layer("depthwise").set_weights([rng.normal(0, 0.5, (3, 3, FEATURES, 1))])
    _fit_statistics(model, "stem_bn", model.get_layer("stem").output, rng)
    _fit_statistics(model, "depthwise_bn", model.output, rng)
    return model


def classifier(seed: int = 2, handicap: tuple[float, ...] = (0, 0, 0, 0)) -> Any:
    """Features to scores, scaled so that the winner changes from clip to clip.

    handicap: is taken off the labels' logits, so that a label hardly ever wins.
    """
    keras = import_keras()
    keras.utils.set_random_seed(seed)
    model = gru_classifier(CLIP.length, FEATURES, len(LABELS), units=12)
    rng = np.random.default_rng(seed)
    kernels, gru = model.get_layer("gru").get_weights()[:2], model.get_layer("gru")
    gru.set_weights([*kernels, rng.normal(0, 0.5, (2, 36))])  # Keras starts with biases of zero, which hide faults
    states = np.asarray(keras.Model(model.input, gru.output)(_classifier_feeds()))
    kernel = rng.normal(size=(12, len(LABELS)))
    logits = states @ kernel
    scale = 2 / logits.std(axis=0)
    model.get_layer("scores").set_weights([kernel * scale, -logits.mean(axis=0) * scale - np.array(handicap)])
    return model


@cache
def tiny_classifier() -> Any:
    return classifier()


def write_tiny_model(path: Path) -> Path:
    """The model directory in the new folder `path`."""
    write_model(path, description(), extractor(), tiny_classifier(), clips())
    return path


def write_retrained_model(path: Path) -> Path:
    """The same extractor, with a classifier from another training in which the last two labels never win."""
    other = replace(description(), evaluation={"accuracy": 0.5})
    write_model(path, other, extractor(), classifier(seed=8, handicap=(0, 0, 5, 7)), clips())
    return path


def _fit_statistics(model: Any, layer: str, tensor: Any, rng: np.random.Generator) -> None:
    """Give a fresh normalisation the mean and variance that `tensor` has on the clips, and a scale and an offset."""
    values = np.asarray(import_keras().Model(model.input, tensor)(np.concatenate(clips())))
    axes = tuple(range(values.ndim - 1))
    ones = np.ones(values.shape[-1])
    gamma, beta = (ones, 0 * ones) if values.ndim == 2 else (rng.uniform(0.5, 1.5, FEATURES), rng.normal(size=FEATURES))
    model.get_layer(layer).set_weights([gamma, beta, values.mean(axes), values.var(axes)])


def _classifier_feeds() -> dict[str, NDArray[Any]]:
    full = np.stack([clip for clip in clips() if len(clip) == CLIP.length])
    features = np.asarray(extractor()(full.reshape(-1, *SIZE, 3))).reshape(len(full), CLIP.length, FEATURES)
    return {"features": features, "mask": np.ones(features.shape[:2], bool)}


# -- other kinds of models, with random weights ------------------------------------------------------------------------

MOTION = replace(PREPROCESS, stack=2, stack_seconds=0.2)
FIRST = replace(CLIP, sampling="first", padding="repeat_last")
UNIFORM = replace(CLIP, sampling="uniform", padding="repeat_last")
VOTE = replace(CLIP, length=1, padding="repeat_last")


def randomised(model: Any, seed: int = 4) -> Any:
    """The model with random weights, biases and statistics too, of sizes that leave its scores apart."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        layer.set_weights([_random_like(weight, rng) for weight in layer.weights])
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()  # Normalization works with copies of its weights
    return model


def _random_like(weight: Any, rng: np.random.Generator) -> NDArray[Any]:
    if not weight.shape:
        return np.asarray(weight)
    values: NDArray[Any] = rng.normal(
        0, 1.5 / np.sqrt(np.prod(weight.shape[:-1])) if len(weight.shape) > 1 else 0.5, weight.shape
    )
    return 0.5 + np.abs(values) if weight.path.endswith("variance") else values


@cache
def motion_extractor() -> Any:
    """Pairs of pictures to features, none negative, of the second and of the change, by the same weights."""
    keras = import_keras()
    layers, ops = keras.layers, keras.ops
    frames = keras.Input((2, *SIZE, 3), dtype="uint8", name="frames")
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(frames)
    current = layers.Cropping3D(((1, 0), (0, 0), (0, 0)))(x)
    change = layers.Subtract()([current, layers.Cropping3D(((0, 1), (0, 0), (0, 0)))(x)])
    pairs = layers.Concatenate(axis=1)([current, layers.Activation("hard_tanh")(change)])
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(ops.reshape(pairs, (-1, *SIZE, 3)))
    x = ops.reshape(layers.GlobalAveragePooling2D()(x), (-1, 8))
    return randomised(keras.Model(frames, layers.Identity(name="features")(x)))


@cache
def clip_network() -> Any:
    """Frames of a clip to scores at once."""
    keras = import_keras()
    layers = keras.layers
    frames = keras.Input((CLIP.length, *SIZE, 3), dtype="uint8", name="frames")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(frames)
    x = layers.Conv3D(4, 3, (1, 2, 2), padding="same", activation="relu")(x)
    x = layers.Conv3D(6, 3, padding="same", activation="relu")(layers.MaxPooling3D((2, 2, 2), padding="same")(x))
    x = layers.GlobalAveragePooling3D()(x)
    return randomised(keras.Model(frames, layers.Dense(len(LABELS), activation="softmax", name="scores")(x)))


def write_motion_model(path: Path) -> Path:
    """Stacked pictures, and statistics of their features over a clip."""
    pairs = [np.stack([clip[[max(0, n - 2), n]] for n in range(len(clip))]) for clip in clips()]
    classifier = randomised(statistics_classifier(CLIP.length, 8, len(LABELS), hidden=6))
    write_model(path, replace(description(), name="motion", preprocess=MOTION), motion_extractor(), classifier, pairs)
    return path


def write_network_model(path: Path) -> Path:
    """A network of whole clips, without an extractor."""
    about = replace(description(), name="network", clip=FIRST, aggregate="first", has_extractor=False)
    write_model(path, about, None, clip_network(), clips())
    return path


def write_uniform_model(path: Path) -> Path:
    """An LSTM on frames that are spread over a file, with thresholds."""
    thresholds = {"one": 0.4, "three": 0.25}
    about = replace(description(), name="uniform", clip=UNIFORM, aggregate="first", thresholds=thresholds)
    classifier = randomised(lstm_classifier(CLIP.length, FEATURES, len(LABELS), mask=False, units=5))
    write_model(path, about, extractor(), classifier, clips())
    return path


def write_vote_model(path: Path) -> Path:
    """Single frames, whose labels vote; other labels than the tiny model has, on the same extractor."""
    about = replace(description(), name="vote", clip=VOTE, aggregate="vote", labels=LABELS[:3])
    write_model(path, about, extractor(), randomised(vote_classifier(1, FEATURES, 3)), [clip[:1] for clip in clips()])
    return path
