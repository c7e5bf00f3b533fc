"""Keras extractors as ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.extractor import onnx_from_keras_extractor
from edgeclf.runtime.session import Session, open_session
from edgeclf.specs import TensorSpec
from tests.support.keras_models import FEATURES, SIZE, extractor

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

SMALL = (8, 12, 3)


def session_of(model: Any, folder: Path) -> Session:
    path = folder / "extractor.onnx"
    path.write_bytes(onnx_from_keras_extractor(model).SerializeToString())
    return open_session(path, "cpu")


def noise(count: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def small_inputs() -> tuple[Any, Any]:
    """The input of a small extractor, and the same rescaled."""
    import keras

    frames = keras.Input(SMALL, dtype="uint8", name="pictures")
    return frames, keras.layers.Rescaling(1 / 255)(frames)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_graph_equals_keras(converters: None, tmp_path: Path, count: int) -> None:
    frames = noise(count, *SIZE, 3)
    found = session_of(extractor(), tmp_path).run({"frames": frames})["features"]
    np.testing.assert_allclose(found, np.asarray(extractor()(frames)), rtol=1e-4, atol=1e-4)


def test_tensors_are_frames_and_features_with_a_dynamic_batch() -> None:
    graph = onnx_from_keras_extractor(extractor()).graph
    dims = {
        tensor.name: [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        for tensor in [*graph.input, *graph.output]
    }
    assert dims == {"frames": ["N", *SIZE, 3], "features": ["N", FEATURES]}


def test_tensors_are_renamed_whatever_keras_calls_them(tmp_path: Path) -> None:
    import keras

    frames, x = small_inputs()
    session = session_of(keras.Model(frames, keras.layers.GlobalMaxPooling2D(name="other")(x)), tmp_path)
    assert session.inputs == (TensorSpec("frames", "uint8", (None, *SMALL)),)
    assert session.outputs == (TensorSpec("features", "float32", (None, 3)),)


def test_graph_says_nothing_of_layers_and_converter() -> None:
    model = onnx_from_keras_extractor(extractor())
    assert model.producer_name == "edgeclf"
    assert b"tf2onnx" not in model.SerializeToString()
    assert b"stem" not in model.SerializeToString()


def test_second_conversion_gives_the_same_bytes() -> None:
    first, second = (onnx_from_keras_extractor(extractor()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_node_with_several_outputs_keeps_them_apart(tmp_path: Path) -> None:
    import keras

    frames, x = small_inputs()
    red, green, _ = keras.ops.split(x, 3, axis=-1)
    model = keras.Model(frames, keras.layers.GlobalAveragePooling2D()(keras.ops.concatenate([green, red], -1)))
    pictures = noise(3, *SMALL)
    found = session_of(model, tmp_path).run({"frames": pictures})["features"]
    np.testing.assert_allclose(found, pictures.mean(axis=(1, 2))[:, 1::-1] / 255, rtol=1e-5)


def test_input_beside_the_frames_is_refused() -> None:
    import keras

    frames, x = small_inputs()
    extra = keras.Input((3,), name="extra")
    model = keras.Model([frames, extra], keras.layers.GlobalAveragePooling2D()(x) + extra)
    with pytest.raises(ExportError, match="extra"):
        onnx_from_keras_extractor(model)


def test_output_beside_the_features_is_refused() -> None:
    import keras

    frames, x = small_inputs()
    x = keras.layers.GlobalAveragePooling2D()(x)
    with pytest.raises(ExportError, match="give features"):
        onnx_from_keras_extractor(keras.Model(frames, [x, x * 2.0]))


def test_control_flow_is_refused() -> None:
    import keras

    frames, x = small_inputs()
    x = keras.layers.GRU(3)(keras.layers.Reshape((SMALL[0], -1))(x), mask=keras.ops.any(frames > 0, axis=(2, 3)))
    with pytest.raises(ExportError, match="holds Loop"):
        onnx_from_keras_extractor(keras.Model(frames, x))
