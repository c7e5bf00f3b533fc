"""A converter for each layer and operation of Keras that sequence models are made of.

Dropout is left out: nothing is trained here. An operation and the layer of the same name, such as `Concatenate`, are
converted alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from edgeclf.errors import ExportError
from edgeclf.export.recurrent import activation_name, recurrent_node, require_option
from edgeclf.export.sequence_tensors import LENGTH, Tensors, Value


@dataclass(frozen=True, slots=True)
class Call:
    """A layer or operation with the Keras tensors that it takes and gives."""

    operation: Any
    args: tuple[Any, ...]
    mask: Any  # None where nothing is masked
    result: Any

    @property
    def inputs(self) -> Sequence[Any]:
        """The tensors and constants it takes, whether they were given one by one or as a list."""
        return list(self.args[0]) if isinstance(self.args[0], (list, tuple)) else self.args


def _recurrent(call: Call, tensors: Tensors) -> Value:
    _require_mask_of_model(call, tensors)
    masked = call.mask is not None
    frames = tensors.frames_first(call.args[0], masked=masked)
    return recurrent_node(call.operation, tensors.graph, frames, LENGTH if masked else "")


def _dense(call: Call, tensors: Tensors) -> Value:
    layer, graph = call.operation, tensors.graph
    require_option(layer, layer.use_bias, "use_bias=True")
    kernel, bias = (np.asarray(weight, np.float32) for weight in layer.get_weights())
    x = tensors.name(call.args[0])
    if len(call.result.shape) == 2:
        product = graph.node("Gemm", [x, graph.constant(kernel), graph.constant(bias)])
    else:
        product = graph.node("Add", [graph.node("MatMul", [x, graph.constant(kernel)]), graph.constant(bias)])
    activation = activation_name(layer.activation)
    if activation == "linear":
        return product
    if activation == "softmax":
        return graph.node("Softmax", [product], axis=-1)
    require_option(layer, activation == "relu", "activation 'linear', 'relu' or 'softmax'")
    return graph.node("Relu", [product])


def _normalization(call: Call, tensors: Tensors) -> Value:
    """Keras takes care of a variance of 0."""
    from keras import backend

    layer = call.operation
    require_option(layer, not layer.invert, "invert=False")
    mean, variance = (np.asarray(array, np.float32) for array in (layer.mean, layer.variance))
    spread = np.maximum(np.sqrt(variance), np.float32(backend.epsilon()))
    centred = tensors.graph.node("Sub", [tensors.name(call.args[0]), tensors.graph.constant(mean)])
    return tensors.graph.node("Div", [centred, tensors.graph.constant(spread)])


def _rescaling(call: Call, tensors: Tensors) -> Value:
    layer, graph = call.operation, tensors.graph
    scale, offset = (graph.constant(np.asarray(number, np.float32)) for number in (layer.scale, layer.offset))
    return graph.node("Add", [graph.node("Mul", [tensors.numbers(call.args[0]), scale]), offset])


def _mean_over_time(call: Call, tensors: Tensors) -> Value:
    """GlobalAveragePooling1D; of a clip of no frames it is no number, as in Keras."""
    _require_mask_of_model(call, tensors)
    _require_plain_pooling(call.operation)
    graph, x = tensors.graph, tensors.name(call.args[0])
    if call.mask is None:
        return graph.node("ReduceMean", [x], axes=[1], keepdims=0)
    kept = graph.node("Where", [tensors.mask_of_rows(), x, graph.constant(np.float32(0))])
    total = graph.node("ReduceSum", [kept, graph.integers(1)], keepdims=0)
    count = graph.node("ReduceSum", [tensors.numbers(call.mask), graph.integers(1)], keepdims=1)
    return graph.node("Div", [total, count])


def _maximum_over_time(call: Call, tensors: Tensors) -> Value:
    _require_plain_pooling(call.operation)
    return tensors.graph.node("ReduceMax", [tensors.name(call.args[0])], axes=[1], keepdims=0)


def _zero_padding(call: Call, tensors: Tensors) -> Value:
    layer = call.operation
    require_option(layer, layer.data_format == "channels_last", "data_format='channels_last'")
    before, behind = layer.padding
    return tensors.graph.node("Pad", [tensors.name(call.args[0]), tensors.graph.integers(0, before, 0, 0, behind, 0)])


def _reshape(call: Call, tensors: Tensors) -> Value:
    shape = tensors.graph.integers(-1, *call.result.shape[1:])
    return tensors.graph.node("Reshape", [tensors.numbers(call.args[0]), shape])


def _concatenate(call: Call, tensors: Tensors) -> Value:
    return tensors.graph.node("Concat", [tensors.numbers(x) for x in call.inputs], axis=int(call.operation.axis))


def _cast(call: Call, tensors: Tensors) -> Value:
    return tensors.numbers(call.args[0])


def _expand_dims(call: Call, tensors: Tensors) -> Value:
    axes = tensors.graph.integers(*_axes(call.operation.axis))
    return tensors.graph.node("Unsqueeze", [tensors.numbers(call.args[0]), axes])


def _get_item(call: Call, tensors: Tensors) -> Value:
    """Slices with a step of 1; an ellipsis stands for as many whole axes as there are."""
    x, key = call.args
    slices = list(key) if isinstance(key, (list, tuple)) else [key]
    if Ellipsis in slices:
        place = slices.index(Ellipsis)
        slices[place : place + 1] = [slice(None)] * (len(x.shape) - len(slices) + 1)
    cuts = {axis: cut for axis, cut in enumerate(slices) if cut != slice(None)}
    if not all(isinstance(cut, slice) and cut.step in (None, 1) for cut in cuts.values()):
        raise ExportError(f"layer {call.operation.name!r} (GetItem) takes {key}", hint="take slices with a step of 1")
    starts = tensors.graph.integers(*(cut.start or 0 for cut in cuts.values()))
    ends = tensors.graph.integers(*(_END if cut.stop is None else cut.stop for cut in cuts.values()))
    return tensors.graph.node("Slice", [tensors.name(x), starts, ends, tensors.graph.integers(*cuts)])


_END = 2**31 - 1  # ONNX cuts it off at the size of the axis


def _same(call: Call, tensors: Tensors) -> Value:
    return tensors.values[id(call.args[0])]


def _unary(call: Call, tensors: Tensors, *, op: str) -> Value:
    return tensors.graph.node(op, [tensors.name(call.args[0])])


def _elementwise(call: Call, tensors: Tensors, *, op: str) -> Value:
    return reduce(lambda a, b: tensors.graph.node(op, [a, b]), [tensors.numbers(x) for x in call.inputs])


def _reduction(call: Call, tensors: Tensors, *, op: str) -> Value:
    """In our version of the operators only ReduceSum takes its axes as an input."""
    operation, graph, x = call.operation, tensors.graph, tensors.numbers(call.args[0])
    require_option(operation, operation.axis is not None, "an axis")
    require_option(operation, getattr(operation, "initial", None) is None, "no initial value")
    axes, keepdims = _axes(operation.axis), int(operation.keepdims)
    if op == "ReduceSum":
        return graph.node(op, [x, graph.integers(*axes)], keepdims=keepdims)
    return graph.node(op, [x], axes=axes, keepdims=keepdims)


def _axes(axis: Any) -> list[int]:
    return [int(number) for number in axis] if isinstance(axis, (list, tuple)) else [int(axis)]


def _require_mask_of_model(call: Call, tensors: Tensors) -> None:
    if call.mask is not None and not tensors.is_mask(call.mask):
        raise ExportError(f"layer {call.operation.name!r} has a mask of its own", hint="mask with the model's input")


def _require_plain_pooling(layer: Any) -> None:
    require_option(layer, layer.data_format == "channels_last", "data_format='channels_last'")
    require_option(layer, not layer.keepdims, "keepdims=False")


MASKABLE = ("GRU", "LSTM", "GlobalAveragePooling1D")

CONVERTERS: dict[str, Callable[[Call, Tensors], Value]] = {
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Dense": _dense,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "GlobalAveragePooling1D": _mean_over_time,
    "GlobalMaxPooling1D": _maximum_over_time,
    "ZeroPadding1D": _zero_padding,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Concatenate": _concatenate,
    "Cast": _cast,
    "ExpandDims": _expand_dims,
    "GetItem": _get_item,
    **dict.fromkeys(("Dropout", "SpatialDropout1D", "Identity"), _same),
    **{name: partial(_unary, op=op) for name, op in (("Absolute", "Abs"), ("Sign", "Sign"), ("Sqrt", "Sqrt"))},
    **{
        name: partial(_elementwise, op=op)
        for name, op in (
            ("Add", "Add"),
            ("Subtract", "Sub"),
            ("Multiply", "Mul"),
            ("Divide", "Div"),
            ("TrueDivide", "Div"),
            ("Maximum", "Max"),
            ("Minimum", "Min"),
        )
    },
    **{name: partial(_reduction, op=f"Reduce{name}") for name in ("Sum", "Mean", "Max")},
}
