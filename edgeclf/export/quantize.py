"""INT8 as a graph with QuantizeLinear and DequantizeLinear nodes, calibrated on real frames.

Post-training static quantisation (Jacob et al. 2017, arXiv 1712.05877; Krishnamoorthi 2018, arXiv 1806.08342): weights
per channel, activations per tensor, by ONNX Runtime's quantiser. Convolutions and matrix products calculate in INT8.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.graph import checked_again

Calibration = Literal["minmax", "entropy", "percentile"]

_BATCH = 16
_QUANTISED = ("Conv", "MatMul", "Gemm", "Add", "Relu", "Clip", "MaxPool", "Concat")
_LAYERS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class QuantisationForm:
    """How a graph is written in eight bits.

    symmetric: int8 activations around 0, which is what TensorRT takes; otherwise uint8 ones with a zero point, which
    lose nothing on activations that are never negative, and which CPUs multiply faster. float_layers: how many of the
    first layers, and then the last one too, stay in float32; the first see the smallest differences of the pictures.
    """

    symmetric: bool = True
    calibration: Calibration = "minmax"
    float_layers: int = 0


def int8_from_onnx(model: Any, frames: NDArray[np.uint8], form: QuantisationForm) -> Any:
    """The ONNX model in INT8, float32 in and out; the model itself is left as it is.

    frames: uint8 (M, ...), what the graph takes, of the clips it was trained on; their activations set the scales.
    Raises ExportError where there are none, or nothing in the graph can be quantised.
    """
    if not len(frames):
        raise ExportError("there is no frame to calibrate INT8 on", hint="name the training clips with --data")
    with tempfile.TemporaryDirectory() as folder:
        prepared, written = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        excluded = _prepare(model, prepared, form)
        _quantise(prepared, written, frames, form, excluded)
        quantised = _loaded(written)
    if not any(node.op_type == "QuantizeLinear" for node in quantised.graph.node):
        raise ExportError("nothing in the graph can be quantised", hint="export it without --precision int8")
    return checked_again(quantised)


def layer_count(model: Any) -> int:
    """How many convolutions and matrix products there are."""
    return sum(node.op_type in _LAYERS for node in model.graph.node)


def int8_share(model: Any) -> float:
    """The share of convolutions and matrix products, 0 to 1, that take INT8 numbers and weights."""
    layers = [node for node in model.graph.node if node.op_type in _LAYERS]
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return sum(dequantised.issuperset(node.input[:2]) for node in layers) / max(1, len(layers))


class _Frames:
    """Batches of frames, as ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, frames: NDArray[np.uint8]) -> None:
        self._batches: Iterator[dict[str, NDArray[np.uint8]]] = iter(
            [{name: frames[start : start + _BATCH]} for start in range(0, len(frames), _BATCH)]
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)


def _prepare(model: Any, path: Path, form: QuantisationForm) -> list[str]:
    """Write the graph with its shapes and no constants to calculate; the names of the nodes that stay in float.

    The quantiser only sees what is written in the graph. What comes before the first layer stays as it is.
    """
    from onnx import save
    from onnxruntime.quantization.shape_inference import quant_pre_process

    original = path.with_name("original.onnx")
    save(model, original)
    quant_pre_process(str(original), str(path), skip_symbolic_shape=True)
    prepared = _loaded(path)
    nodes = prepared.graph.node
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type.lower()}_{number}"  # the quantiser knows nodes by their names
    save(prepared, path)
    layers = [number for number, node in enumerate(nodes) if node.op_type in _LAYERS] or [len(nodes)]
    begin = layers[min(form.float_layers, len(layers) - 1)]
    end = layers[-1] if form.float_layers else len(nodes)
    return [node.name for number, node in enumerate(nodes) if not begin <= number < end]


def _quantise(
    prepared: Path, written: Path, frames: NDArray[np.uint8], form: QuantisationForm, excluded: list[str]
) -> None:
    from onnxruntime import quantization

    taken = _loaded(prepared).graph.input[0].name
    quantization.quantize_static(
        str(prepared),
        str(written),
        _Frames(taken, frames),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(_QUANTISED),
        nodes_to_exclude=excluded,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8 if form.symmetric else quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=_method(quantization, form.calibration),
        extra_options={
            "ActivationSymmetric": form.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not form.symmetric,  # TensorRT refuses INT32 behind DequantizeLinear
        },
    )


def _method(quantization: Any, calibration: Calibration) -> Any:
    methods = quantization.CalibrationMethod
    return {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}[calibration]


def _loaded(path: Path) -> Any:
    import onnx

    return onnx.load(path)
