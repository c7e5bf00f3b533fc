"""Keras sequence models as ONNX graphs with native GRU nodes.

Converters turn a masked GRU into a Loop of a hundred nodes, which is twelve times slower on the CPU and which
TensorRT does not take. Written by hand it is one node. What has to be minded (ONNX operator specification, GRU;
Keras source, `GRUCell` with `reset_after`):

- Keras' kernels are (inputs, 3 units), ONNX wants them transposed; the gates stand in the order z, r, h in both;
- `reset_after=True` is `linear_before_reset=1`, with separate input and recurrent biases;
- the mask becomes `sequence_lens`: frames stand first, padding behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.extractor import IR_VERSION, OPSET
from edgeclf.specs import ClipSpec

FEATURES, LENGTH, SCORES = "features", "length", "scores"


def onnx_from_keras_classifier(model: Any, clip: ClipSpec) -> Any:
    """The ONNX model of a Keras classifier: features float32 (N, T, F) and length int32 (N) to scores (N, C).

    The layers must follow one another. Raises ExportError that names a layer or an option it cannot convert.
    """
    from onnx import TensorProto, checker, helper

    layers = _layers_in_order(model)
    classes = int(model.output_shape[-1])
    feature_size = int(model.get_layer(FEATURES).output.shape[-1])
    graph = _Graph()
    tensor = graph.node("Transpose", [FEATURES], perm=[1, 0, 2])  # GRU wants time first
    for layer in layers:
        tensor = _convert(layer, graph, tensor)
    graph.nodes[-1].output[0] = SCORES
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "classifier",
            [
                helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", clip.length, feature_size]),
                helper.make_tensor_value_info(LENGTH, TensorProto.INT32, ["N"]),
            ],
            [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["N", classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgeclf",
    )
    checker.check_model(made, full_check=True)
    return made


@dataclass
class _Graph:
    """Nodes and constants in the order in which they were added, which also names them."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def node(self, op: str, inputs: list[str], *, output: int = 0, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; the name of its output number `output`. Outputs before it are left out."""
        from onnx import helper

        name = f"{op.lower()}_{len(self.nodes)}"
        made = ["" if n != output else name for n in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, name=name, **attributes))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def _layers_in_order(model: Any) -> list[Any]:
    """The layers between inputs and scores, a GRU first; each must take what the one before it gives."""
    if len(model.outputs) != 1:
        raise ExportError(f"the classifier has {len(model.outputs)} outputs", hint="it must give scores alone")
    # `operations` also names what keras.ops does, which `layers` leaves out.
    layers = [layer for layer in model.operations if type(layer).__name__ not in ("InputLayer", *_IDLE)]
    for layer in layers:
        if type(layer).__name__ not in _CONVERTERS:
            known = ", ".join([*_CONVERTERS, *_IDLE])
            raise ExportError(f"layer {layer.name!r} is a {type(layer).__name__}", hint=f"the exporter knows {known}")
        if len(layer._inbound_nodes) != 1:
            raise ExportError(f"layer {layer.name!r} is used more than once", hint="use a plain stack of layers")
    if not layers or type(layers[0]).__name__ != "GRU":
        raise ExportError("the classifier's first layer is no GRU", hint="use a plain stack of layers")
    return layers


def _convert(layer: Any, graph: _Graph, tensor: str) -> str:
    return _CONVERTERS[type(layer).__name__](layer, graph, tensor)


def _gru(layer: Any, graph: _Graph, tensor: str) -> str:
    """One GRU node; the state after each clip's last frame, (N, units)."""
    _require(layer, layer.reset_after, "reset_after=True")
    _require(layer, not layer.return_sequences, "return_sequences=False")
    _require(layer, not layer.go_backwards, "go_backwards=False")
    _require(layer, not layer.stateful, "stateful=False")
    _require(layer, layer.use_bias, "use_bias=True")
    _require(layer, _activation(layer.activation) == "tanh", "activation='tanh'")
    _require(layer, _activation(layer.recurrent_activation) == "sigmoid", "recurrent_activation='sigmoid'")
    kernel, recurrent, bias = (np.asarray(weight, np.float32) for weight in layer.get_weights())
    state = graph.node(
        "GRU",
        [
            tensor,
            graph.constant(kernel.T[None]),
            graph.constant(recurrent.T[None]),
            graph.constant(bias.reshape(1, -1)),
            LENGTH,
        ],
        output=1,
        outputs=2,
        hidden_size=int(layer.units),
        linear_before_reset=1,
    )
    return graph.node("Squeeze", [state, graph.constant(np.array([0], np.int64))])


def _dense(layer: Any, graph: _Graph, tensor: str) -> str:
    _require(layer, layer.use_bias, "use_bias=True")
    kernel, bias = (np.asarray(weight, np.float32) for weight in layer.get_weights())
    product = graph.node("Gemm", [tensor, graph.constant(kernel), graph.constant(bias)])
    activation = _activation(layer.activation)
    if activation == "linear":
        return product
    if activation == "softmax":
        return graph.node("Softmax", [product], axis=-1)
    _require(layer, activation == "relu", "activation 'linear', 'relu' or 'softmax'")
    return graph.node("Relu", [product])


_IDLE = ("Dropout", "SpatialDropout1D")  # layers that do nothing but in training
_CONVERTERS: dict[str, Callable[[Any, _Graph, str], str]] = {"GRU": _gru, "Dense": _dense}


def _activation(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _require(layer: Any, holds: bool, option: str) -> None:
    if not holds:
        raise ExportError(f"layer {layer.name!r} ({type(layer).__name__}) must have {option}", hint="change the recipe")
