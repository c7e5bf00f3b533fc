from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import ExportError

onnx = pytest.importorskip("onnx", reason="onnx is missing: pip install 'edgeclf[dev]'")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is missing: pip install 'edgeclf[cpu]'")

from edgeclf.export.graph import Graph  # noqa: E402
from edgeclf.export.half import half_from_onnx, half_share  # noqa: E402
from edgeclf.export.quantize import (  # noqa: E402
    Calibration,
    QuantisationForm,
    int8_from_onnx,
    int8_share,
    layer_count,
)


def network(layers: int = 4) -> Any:
    """Frames to features: convolutions with ReLU6, as in the Lite networks; weights are drawn."""
    rng = np.random.default_rng(0)
    graph = Graph()
    x = graph.node("Cast", ["frames"], to=onnx.TensorProto.FLOAT)
    x = graph.node("Mul", [x, graph.constant(np.float32(1 / 255))])
    x = graph.node("Transpose", [x], perm=[0, 3, 1, 2])
    channels = 3
    for _ in range(layers):
        weights = graph.constant(rng.normal(0, 1 / np.sqrt(9 * channels), (8, channels, 3, 3)).astype(np.float32) * 2)
        bias = graph.constant(rng.normal(0.3, 0.2, 8).astype(np.float32))
        x = graph.node("Conv", [x, weights, bias], pads=[1, 1, 1, 1])
        x = graph.node("Clip", [x, graph.constant(np.float32(0)), graph.constant(np.float32(6))])
        channels = 8
    x = graph.node("GlobalAveragePool", [x])
    x = graph.node("Reshape", [x, graph.integers(-1, channels)])
    tensor = onnx.helper.make_tensor_value_info
    inputs = [tensor("frames", onnx.TensorProto.UINT8, ["N", 16, 16, 3])]
    return graph.model("extractor", inputs, x, tensor("features", onnx.TensorProto.FLOAT, ["N", channels]))


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth pictures of all brightnesses."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def features(model: Any, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["features"], {"frames": frames})
    return np.asarray(found, np.float32)


def least_cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / lengths).min())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("calibration", ["minmax", "percentile"])
def test_int8_gives_nearly_the_same_features(symmetric: bool, calibration: Calibration) -> None:
    model, frames = network(), pictures(40, seed=1)
    quantised = int8_from_onnx(model, pictures(64), QuantisationForm(symmetric, calibration))
    assert least_cosine(features(quantised, frames), features(model, frames)) > 0.99
    assert int8_share(quantised) == 1.0
    assert [opset.domain for opset in quantised.opset_import] == [""]


def test_int8_needs_frames_like_those_it_will_see() -> None:
    model, frames = network(), pictures(40, seed=1)
    quantised = int8_from_onnx(model, np.zeros((8, 16, 16, 3), np.uint8), QuantisationForm())
    assert least_cosine(features(quantised, frames), features(model, frames)) < 0.97


@pytest.mark.parametrize("symmetric", [True, False])
def test_first_layers_and_the_last_one_stay_in_float(symmetric: bool) -> None:
    model = network(layers=6)
    kept = int8_from_onnx(model, pictures(16), QuantisationForm(symmetric, float_layers=2))
    assert (layer_count(model), int8_share(kept)) == (6, 0.5)
    dequantised = {node.output[0] for node in kept.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in kept.graph.node if node.op_type == "Conv"]
    assert [node.input[1] in dequantised for node in convolutions] == [False, False, True, True, True, False]


def test_convolution_and_its_relu6_are_quantised_as_one() -> None:
    quantised = int8_from_onnx(network(layers=2), pictures(16), QuantisationForm(symmetric=False))
    after = {node.input[0]: node.op_type for node in quantised.graph.node}
    convolutions = [node for node in quantised.graph.node if node.op_type == "Conv"]
    assert {after[node.output[0]] for node in convolutions} <= {"Clip", "QuantizeLinear"}
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    made = [node for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    assert max(float(scales[node.input[1]].max()) for node in made) <= 6.01 / 255


def test_nothing_to_calibrate_on_is_an_error() -> None:
    with pytest.raises(ExportError, match="no frame to calibrate"):
        int8_from_onnx(network(), np.zeros(0, np.uint8), QuantisationForm())


def test_graph_without_a_layer_is_an_error() -> None:
    with pytest.raises(ExportError, match="nothing in the graph can be quantised"):
        int8_from_onnx(network(layers=0), pictures(4), QuantisationForm())


def test_half_gives_nearly_the_same_features_in_half_the_size() -> None:
    model, frames = network(), pictures(40, seed=1)
    before = model.SerializeToString()
    half = half_from_onnx(model)
    assert model.SerializeToString() == before
    assert least_cosine(features(half, frames), features(model, frames)) > 0.9999
    assert not np.array_equal(features(half, frames), features(model, frames))
    assert (half_share(model), half_share(half)) == (0.0, 1.0)
    types = [value.type.tensor_type.elem_type for value in [*half.graph.input, *half.graph.output]]
    assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]


def test_half_cuts_off_what_it_cannot_hold() -> None:
    model = network(layers=1)
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0, 0, 0, 0] = 1e6
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    assert np.isfinite(features(half_from_onnx(model), pictures(2))).all()
