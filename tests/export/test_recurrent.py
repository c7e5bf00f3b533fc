"""GRU and LSTM as native ONNX nodes, against Keras."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.sequence_graph import onnx_from_keras_classifier
from edgeclf.model_directory import classifier_session
from edgeclf.runtime.session import Session, open_session
from edgeclf.specs import ClipSpec
from edgeclf.train.classifiers import gru_classifier

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

LENGTH, FEATURES = 5, 7
CLIP = ClipSpec.by_rate(LENGTH, 10.0)

Build = Callable[[Any, Any, Any], Any]  # keras.layers, features and mask to scores


def model_of(build: Build) -> Any:
    """A model with random weights, biases too."""
    import keras

    keras.utils.set_random_seed(3)
    features = keras.Input((LENGTH, FEATURES), name="features")
    mask = keras.Input((LENGTH,), dtype="bool", name="mask")
    model = keras.Model({"features": features, "mask": mask}, build(keras.layers, features, mask))
    rng = np.random.default_rng(4)
    model.set_weights([rng.normal(0, 0.7, weight.shape) for weight in model.get_weights()])
    return model


def gru_then(*dense: dict[str, Any]) -> Build:
    def build(layers: Any, features: Any, mask: Any) -> Any:
        x = layers.GRU(6)(layers.SpatialDropout1D(0.5)(features), mask=mask)
        for options in dense:
            x = layers.Dropout(0.5)(layers.Dense(**options)(x))
        return x

    return build


def gru_with(**options: Any) -> Build:
    def build(layers: Any, features: Any, mask: Any) -> Any:
        return layers.GRU(6, name="sequence", **options)(features, mask=mask)

    return build


def lstm_with(**options: Any) -> Build:
    def build(layers: Any, features: Any, mask: Any) -> Any:
        return layers.LSTM(6, name="memory", dropout=0.3, **options)(features, mask=mask)

    return build


def stacked(layers: Any, features: Any, mask: Any) -> Any:
    states = layers.LSTM(5, return_sequences=True)(features, mask=mask)
    return layers.GRU(4)(layers.SpatialDropout1D(0.5)(states), mask=mask)


def stacked_without_naming_the_mask(layers: Any, features: Any, mask: Any) -> Any:
    return layers.LSTM(4)(layers.GRU(5, return_sequences=True)(features, mask=mask))


def second_on_all_frames(layers: Any, features: Any, mask: Any) -> Any:
    """An operation drops Keras' mask, so that the second GRU runs over the states that Keras repeats behind the end."""
    from keras import ops

    states = layers.GRU(6, return_sequences=True)(features, mask=mask)
    return layers.GRU(4)(ops.abs(states))


def mean_of_all_states(layers: Any, features: Any, mask: Any) -> Any:
    from keras import ops

    states = layers.GRU(6, return_sequences=True)(features, mask=mask)
    return ops.mean(layers.Dense(3, activation="relu")(states), axis=1)


def without_mask(layers: Any, features: Any, mask: Any) -> Any:
    states = layers.GRU(6, return_sequences=True)(features)
    memory = layers.LSTM(5, return_sequences=True)(states)
    return layers.Concatenate()([layers.GlobalMaxPooling1D()(memory), layers.GRU(3)(features, mask=mask)])


def states_for_two(layers: Any, features: Any, mask: Any) -> Any:
    from keras import ops

    states = layers.LSTM(6, return_sequences=True)(features, mask=mask)
    return ops.concatenate([layers.GRU(4)(states, mask=mask), ops.max(states, axis=1)], axis=-1)


def sessions(model: Any, folder: Path) -> tuple[Session, Session]:
    path = folder / "classifier.onnx"
    path.write_bytes(onnx_from_keras_classifier(model, CLIP).SerializeToString())
    return open_session(path, "cpu"), classifier_session(model, CLIP)


def random_features(count: int) -> NDArray[np.float32]:
    """Rows behind a clip's length are as random as the others."""
    return np.random.default_rng(count).normal(size=(count, LENGTH, FEATURES)).astype(np.float32)


HARD = {"recurrent_activation": "hard_sigmoid"}
BUILDS: dict[str, Build] = {
    "softmax": gru_then({"units": 4, "activation": "softmax"}),
    "linear": gru_then({"units": 4, "activation": "linear"}),
    "relu": gru_then({"units": 4, "activation": "relu"}),
    "two dense": gru_then({"units": 8, "activation": "relu"}, {"units": 3, "activation": "softmax"}),
    "state": gru_then(),
    "GRU with hard gates": gru_with(**HARD),
    "GRU of other functions": gru_with(activation="hard_sigmoid", recurrent_activation="tanh"),
    "LSTM": lstm_with(),
    "LSTM with hard gates": lstm_with(**HARD),
    "LSTM of other functions": lstm_with(activation="sigmoid", recurrent_activation="hard_sigmoid"),
    "stacked": stacked,
    "stacked without naming the mask": stacked_without_naming_the_mask,
    "second on all frames": second_on_all_frames,
    "mean of all states": mean_of_all_states,
    "without mask": without_mask,
    "states for two": states_for_two,
}


@pytest.mark.parametrize("name", BUILDS)
def test_graph_equals_keras_at_every_length(name: str, tmp_path: Path) -> None:
    converted, original = sessions(model_of(BUILDS[name]), tmp_path)
    for lengths in ([0], [1], [5, 2, 0], [3, 4, 5]):
        feeds = {"features": random_features(len(lengths)), "length": np.array(lengths, np.int32)}
        expected, found = original.run(feeds)["scores"], converted.run(feeds)["scores"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_length_0_ignores_all_features(tmp_path: Path) -> None:
    converted, _ = sessions(model_of(gru_then({"units": 4})), tmp_path)
    scores = converted.run({"features": random_features(3), "length": np.zeros(3, np.int32)})["scores"]
    np.testing.assert_array_equal(scores[1:], scores[:1].repeat(2, axis=0))


def test_same_model_gives_the_same_bytes() -> None:
    first, second = (model_of(gru_then({"units": 4})) for _ in range(2))
    a, b = (onnx_from_keras_classifier(model, CLIP).SerializeToString(deterministic=True) for model in (first, second))
    assert a == b


def test_bytes_of_a_gru_classifier_stay_what_they_were() -> None:
    model = gru_classifier(6, 10, 4, units=12)
    rng = np.random.default_rng(4)
    model.set_weights([rng.normal(0, 0.7, weight.shape) for weight in model.get_weights()])
    graph = onnx_from_keras_classifier(model, ClipSpec.by_rate(6, 10.0))
    digest = hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()
    assert digest == "d8fc80d309812d8a073c18aa715d1d3df3c8a71b4b223dfd0127d46d624f8bf1"


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("softmax", ["Transpose", "GRU", "Squeeze", "Gemm", "Softmax"]),
        ("LSTM", ["Transpose", "LSTM", "Squeeze"]),
        ("stacked", ["Transpose", "LSTM", "Squeeze", "GRU", "Squeeze"]),
        ("stacked without naming the mask", ["Transpose", "GRU", "Squeeze", "LSTM", "Squeeze"]),
    ],
)
def test_recurrence_is_one_node(name: str, operators: list[str]) -> None:
    graph = onnx_from_keras_classifier(model_of(BUILDS[name]), CLIP).graph
    assert [node.op_type for node in graph.node] == operators


def test_slope_of_the_hard_sigmoid_is_written_out() -> None:
    (node,) = (
        n for n in onnx_from_keras_classifier(model_of(lstm_with(**HARD)), CLIP).graph.node if n.op_type == "LSTM"
    )
    written = {attribute.name: attribute for attribute in node.attribute}
    assert list(written["activations"].strings) == [b"HardSigmoid", b"Tanh", b"Tanh"]
    assert list(written["activation_alpha"].floats) == [np.float32(1 / 6)]
    assert list(written["activation_beta"].floats) == [0.5]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"reset_after": False}, "reset_after=True"),
        ({"go_backwards": True}, "go_backwards=False"),
        ({"use_bias": False}, "use_bias=True"),
        ({"activation": "relu"}, "activation tanh, sigmoid, hard_sigmoid"),
        ({"recurrent_activation": "linear"}, "recurrent_activation tanh, sigmoid, hard_sigmoid"),
        ({"return_sequences": True, "zero_output_for_mask": True}, "zero_output_for_mask=False"),
    ],
    ids=str,
)
def test_option_that_cannot_be_converted_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ExportError, match=rf"'sequence' \(GRU\) must have {named}"):
        onnx_from_keras_classifier(model_of(gru_with(**options)), CLIP)


def test_stateful_gru_is_refused() -> None:
    import keras

    features = keras.Input((LENGTH, FEATURES), batch_size=1, name="features")
    model = keras.Model(features, keras.layers.GRU(6, stateful=True)(features))
    with pytest.raises(ExportError, match="stateful=False"):
        onnx_from_keras_classifier(model, replace(CLIP, padding="repeat_last"))


def test_state_to_begin_with_is_refused() -> None:
    def build(layers: Any, features: Any, mask: Any) -> Any:
        begin = layers.GRU(6)(features, mask=mask)
        return layers.GRU(6, name="second")(features, mask=mask, initial_state=begin)

    with pytest.raises(ExportError, match="'second' \\(GRU\\) takes initial_state"):
        onnx_from_keras_classifier(model_of(build), CLIP)


def test_mask_that_is_not_the_models_is_refused() -> None:
    def build(layers: Any, features: Any, mask: Any) -> Any:
        from keras import ops

        return layers.GRU(6, name="second")(features, mask=ops.logical_not(mask))

    with pytest.raises(ExportError, match="is a LogicalNot"):
        onnx_from_keras_classifier(model_of(build), CLIP)
