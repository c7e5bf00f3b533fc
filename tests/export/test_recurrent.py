"""Sequence models as native ONNX nodes, against Keras."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.recurrent import onnx_from_keras_classifier
from edgeclf.model_directory import classifier_session
from edgeclf.runtime.session import Session, open_session
from edgeclf.specs import ClipSpec

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


def sessions(model: Any, folder: Path) -> tuple[Session, Session]:
    path = folder / "classifier.onnx"
    path.write_bytes(onnx_from_keras_classifier(model, CLIP).SerializeToString())
    return open_session(path, "cpu"), classifier_session(model, CLIP)


def random_features(count: int) -> NDArray[np.float32]:
    """Rows behind a clip's length are as random as the others."""
    return np.random.default_rng(count).normal(size=(count, LENGTH, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(
    "build",
    [
        gru_then({"units": 4, "activation": "softmax"}),
        gru_then({"units": 4, "activation": "linear"}),
        gru_then({"units": 4, "activation": "relu"}),
        gru_then({"units": 8, "activation": "relu"}, {"units": 3, "activation": "softmax"}),
        gru_then(),
    ],
    ids=["softmax", "linear", "relu", "two dense", "state"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_graph_equals_keras_at_every_length(build: Build, count: int, tmp_path: Path) -> None:
    converted, original = sessions(model_of(build), tmp_path)
    features = random_features(count)
    for first in range(LENGTH + 1):
        length = ((first + np.arange(count)) % (LENGTH + 1)).astype(np.int32)
        feeds = {"features": features, "length": length}
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


def test_recurrence_is_one_node() -> None:
    graph = onnx_from_keras_classifier(model_of(gru_then({"units": 4, "activation": "softmax"})), CLIP).graph
    assert [node.op_type for node in graph.node] == ["Transpose", "GRU", "Squeeze", "Gemm", "Softmax"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"reset_after": False}, "reset_after=True"),
        ({"return_sequences": True}, "return_sequences=False"),
        ({"go_backwards": True}, "go_backwards=False"),
        ({"use_bias": False}, "use_bias=True"),
        ({"activation": "relu"}, "activation='tanh'"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='sigmoid'"),
    ],
    ids=str,
)
def test_option_of_gru_that_cannot_be_converted_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ExportError, match=rf"'sequence' \(GRU\) must have {named}"):
        onnx_from_keras_classifier(model_of(gru_with(**options)), CLIP)


def test_stateful_gru_is_refused() -> None:
    import keras

    features = keras.Input((LENGTH, FEATURES), batch_size=1, name="features")
    model = keras.Model(features, keras.layers.GRU(6, stateful=True)(features))
    with pytest.raises(ExportError, match="stateful=False"):
        onnx_from_keras_classifier(model, CLIP)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"activation": "gelu"}, "'linear', 'relu' or 'softmax'"), ({"use_bias": False}, "use_bias=True")],
    ids=str,
)
def test_option_of_dense_that_cannot_be_converted_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ExportError, match=rf"'head' \(Dense\) must have .*{named}"):
        onnx_from_keras_classifier(model_of(gru_then({"units": 4, "name": "head", **options})), CLIP)


def lstm(layers: Any, features: Any, mask: Any) -> Any:
    return layers.LSTM(6, name="memory")(features, mask=mask)


def doubled(layers: Any, features: Any, mask: Any) -> Any:
    return layers.GRU(6)(features, mask=mask) * 2.0


def joined(layers: Any, features: Any, mask: Any) -> Any:
    state = layers.GRU(6)(features, mask=mask)
    return layers.Add()([layers.Dense(6)(state), state])


def shared(layers: Any, features: Any, mask: Any) -> Any:
    dense = layers.Dense(6, name="twice")
    return dense(dense(layers.GRU(6)(features, mask=mask)))


def dense_first(layers: Any, features: Any, mask: Any) -> Any:
    return layers.GRU(6)(layers.Dense(4)(features), mask=mask)


def two_outputs(layers: Any, features: Any, mask: Any) -> Any:
    state = layers.GRU(6)(features, mask=mask)
    return [layers.Dense(2)(state), layers.Dense(3)(state)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lstm, "'memory' is a LSTM; the exporter knows GRU, Dense, Dropout, SpatialDropout1D"),
        (doubled, "is a Multiply"),
        (joined, "is a Add"),
        (shared, "'twice' is used more than once"),
        (dense_first, "first layer is no GRU"),
        (two_outputs, "2 outputs"),
    ],
)
def test_model_that_is_no_plain_stack_is_refused(build: Build, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        onnx_from_keras_classifier(model_of(build), CLIP)
