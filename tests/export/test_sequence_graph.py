"""Every sequence model of training as an ONNX graph, against Keras; and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.errors import ExportError
from edgeclf.export.sequence_graph import onnx_from_keras_classifier
from edgeclf.model_directory import classifier_session, load_network
from edgeclf.runtime.session import open_session
from edgeclf.specs import ClipSpec
from edgeclf.train import classifiers
from tests.support.keras_models import randomised

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

LENGTH, FEATURES, CLASSES = 5, 6, 3
CLIP = ClipSpec.by_rate(LENGTH, 10.0)
SIZES = (LENGTH, FEATURES, CLASSES)

BUILDERS: dict[str, Callable[[], Any]] = {
    "gru": partial(classifiers.gru_classifier, *SIZES, units=6, feature_dropout=0.3),
    "change_gru": partial(classifiers.change_gru_classifier, *SIZES, units=6, narrow=5),
    "published_gru": partial(classifiers.published_gru, *SIZES),
    "published_lstm": partial(classifiers.published_lstm, *SIZES),
    "lstm": partial(classifiers.lstm_classifier, *SIZES, mask=True, units=6, dropout=0.5),
    "lstm of roots": partial(classifiers.lstm_classifier, *SIZES, mask=True, units=6, roots=True),
    "lstm without mask": partial(classifiers.lstm_classifier, *SIZES, mask=False, units=6),
    "vote": partial(classifiers.vote_classifier, 1, FEATURES, CLASSES),
    "statistics": partial(classifiers.statistics_classifier, *SIZES, hidden=7),
    "statistics of some": partial(classifiers.statistics_classifier, *SIZES, first=2, hidden=0),
}

# What TensorRT and every other runtime have; above all no Loop, Scan or If.
OPERATORS = {"GRU", "LSTM", "Gemm", "MatMul", "Relu", "Softmax"}
OPERATORS |= {"Abs", "Add", "Cast", "Div", "Less", "Max", "Min", "Mul", "Sign", "Sqrt", "Sub", "Where"}
OPERATORS |= {"Concat", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
OPERATORS |= {"ReduceMax", "ReduceMean", "ReduceSum"}


def clip_of(model: Any) -> ClipSpec:
    clip = replace(CLIP, length=model.inputs[0].shape[1])
    return clip if len(model.inputs) == 2 else replace(clip, padding="repeat_last")


def bytes_of(model: Any) -> bytes:
    written: bytes = onnx_from_keras_classifier(model, clip_of(model)).SerializeToString(deterministic=True)
    return written


def largest_difference(model: Any, folder: Path) -> float:
    """Between Keras and the graph, at every length; rows behind a clip's length are as random as the others."""
    clip = clip_of(model)
    (folder / "classifier.onnx").write_bytes(bytes_of(model))
    converted, original = open_session(folder / "classifier.onnx", "cpu"), classifier_session(model, clip)
    lengths = np.arange(clip.length + 1, dtype=np.int32)
    features = np.random.default_rng(2).gamma(1.0, size=(len(lengths), clip.length, FEATURES)).astype(np.float32)
    feeds = {"features": features, "length": lengths}
    feeds = {spec.name: feeds[spec.name] for spec in converted.inputs}
    found, expected = converted.run(feeds)["scores"], original.run(feeds)["scores"]
    assert found.shape == (len(lengths), CLASSES)
    assert expected.max() < 0.999  # scores that are all 0 and 1 show nothing
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("name", BUILDERS)
def test_graph_equals_keras_at_every_length(name: str, tmp_path: Path) -> None:
    built = randomised(BUILDERS[name]())
    built.save(tmp_path / "classifier.keras")
    model = load_network(tmp_path / "classifier.keras")
    assert bytes_of(model) == bytes_of(built)
    assert largest_difference(model, tmp_path) <= 1e-5


@pytest.mark.parametrize("name", BUILDERS)
def test_graph_holds_operators_that_every_runtime_has(name: str) -> None:
    model = BUILDERS[name]()
    graph = onnx_from_keras_classifier(model, clip_of(model)).graph
    assert {node.op_type for node in graph.node} <= OPERATORS


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gru", {"GRU": 1, "Transpose": 1, "Where": 0, "Less": 0}),
        ("published_gru", {"GRU": 2, "Transpose": 1, "Where": 0, "Less": 0}),
        ("published_lstm", {"LSTM": 2, "Transpose": 1, "Where": 0}),
        ("lstm", {"LSTM": 1, "Transpose": 1, "Less": 0}),
        ("change_gru", {"GRU": 1, "Where": 1, "Less": 1}),
        ("statistics", {"Less": 1, "Where": 0}),
    ],
)
def test_recurrence_is_native_and_the_mask_made_where_it_is_needed(name: str, counts: dict[str, int]) -> None:
    model = BUILDERS[name]()
    found = Counter(node.op_type for node in onnx_from_keras_classifier(model, clip_of(model)).graph.node)
    assert {op: found[op] for op in counts} == counts


@pytest.mark.parametrize(("name", "inputs"), [("lstm", ["features", "length"]), ("lstm without mask", ["features"])])
def test_length_is_an_input_where_there_is_a_mask(name: str, inputs: list[str]) -> None:
    model = BUILDERS[name]()
    graph = onnx_from_keras_classifier(model, clip_of(model)).graph
    assert [tensor.name for tensor in graph.input] == inputs
    assert [tensor.name for tensor in graph.output] == ["scores"]


# -- what is refused --------------------------------------------------------------------------------------------------

Build = Callable[[Any, Any, Any], Any]  # keras, features and mask to scores


def model_of(build: Build) -> Any:
    import keras

    features = keras.Input((LENGTH, FEATURES), name="features")
    mask = keras.Input((LENGTH,), dtype="bool", name="mask")
    return keras.Model({"features": features, "mask": mask}, build(keras, features, mask))


def state(keras: Any, features: Any, mask: Any) -> Any:
    return keras.layers.GRU(6)(features, mask=mask)


def unknown_layer(keras: Any, features: Any, mask: Any) -> Any:
    return keras.layers.LayerNormalization(name="even")(state(keras, features, mask))


def unknown_operation(keras: Any, features: Any, mask: Any) -> Any:
    return keras.ops.cumsum(state(keras, features, mask), axis=-1)


def shared(keras: Any, features: Any, mask: Any) -> Any:
    dense = keras.layers.Dense(6, name="twice")
    return dense(dense(state(keras, features, mask)))


def two_outputs(keras: Any, features: Any, mask: Any) -> Any:
    x = state(keras, features, mask)
    return [keras.layers.Dense(2)(x), keras.layers.Dense(3)(x)]


def gelu(keras: Any, features: Any, mask: Any) -> Any:
    return keras.layers.Dense(2, activation="gelu", name="head")(state(keras, features, mask))


def no_bias(keras: Any, features: Any, mask: Any) -> Any:
    return keras.layers.Dense(2, use_bias=False, name="head")(state(keras, features, mask))


def half_precision(keras: Any, features: Any, mask: Any) -> Any:
    return keras.layers.Dense(2, dtype="float16", name="head")(state(keras, features, mask))


def every_second_frame(keras: Any, features: Any, mask: Any) -> Any:
    return keras.layers.Dense(2)(state(keras, features, mask)) + features[:, ::2][:, 0, :2]


def one_number(keras: Any, features: Any, mask: Any) -> Any:
    return keras.layers.Dense(2)(state(keras, features, mask)) + keras.ops.sum(features)


def inverse(keras: Any, features: Any, mask: Any) -> Any:
    layer = keras.layers.Normalization(invert=True, mean=0.0, variance=2.0, name="back")
    return layer(state(keras, features, mask))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (unknown_layer, "layer 'even' is a LayerNormalization; the exporter knows GRU, LSTM, Dense, "),
        (unknown_operation, "is a Cumsum"),
        (shared, "'twice' is used more than once"),
        (two_outputs, "2 outputs"),
        (gelu, r"'head' \(Dense\) must have activation 'linear', 'relu' or 'softmax'"),
        (no_bias, r"'head' \(Dense\) must have use_bias=True"),
        (half_precision, r"'head' \(Dense\) gives float16"),
        (every_second_frame, r"\(GetItem\) takes .*; take slices with a step of 1"),
        (one_number, r"\(Sum\) must have an axis"),
        (inverse, r"'back' \(Normalization\) must have invert=False"),
    ],
)
def test_what_cannot_be_converted_is_named(build: Build, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        onnx_from_keras_classifier(model_of(build), CLIP)


def test_mask_must_fit_the_padding() -> None:
    masked, full = BUILDERS["lstm"](), BUILDERS["lstm without mask"]()
    with pytest.raises(ExportError, match="takes features, mask, with padding 'repeat_last' it must take features"):
        onnx_from_keras_classifier(masked, replace(CLIP, padding="repeat_last"))
    with pytest.raises(ExportError, match="takes features, with padding 'mask' it must take features, mask"):
        onnx_from_keras_classifier(full, CLIP)


def test_clip_of_another_length_is_refused() -> None:
    with pytest.raises(ExportError, match="takes 5 frames, a clip has 9"):
        onnx_from_keras_classifier(BUILDERS["lstm"](), replace(CLIP, length=9))
