"""Keras sequence models as ONNX graphs: any graph of layers and operations that `sequence_layers` knows."""

from __future__ import annotations

from typing import Any

from edgeclf.errors import ExportError
from edgeclf.export.sequence_layers import CONVERTERS, MASKABLE, Call
from edgeclf.export.sequence_tensors import LENGTH, MASK, Tensors, is_symbolic
from edgeclf.specs import ClipSpec

FEATURES, SCORES = "features", "scores"
_MASK_INPUT = "mask"


def onnx_from_keras_classifier(model: Any, clip: ClipSpec) -> Any:
    """The ONNX model of a Keras classifier: features float32 (N, T, F) to scores float32 (N, C).

    Where the padding of clips is masked it takes length int32 (N) too, in place of Keras' mask. Raises ExportError that
    names a layer or an option it cannot convert.
    """
    from onnx import TensorProto, helper

    features = _features_of(model, clip)
    tensors = Tensors(clip.length)
    for operation in model.operations:
        _convert(operation, tensors)
    inputs = [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", *features.shape[1:]])]
    if clip.padding == "mask":
        inputs.append(helper.make_tensor_value_info(LENGTH, TensorProto.INT32, ["N"]))
    (scores,) = model.outputs
    output = helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["N", *scores.shape[1:]])
    return tensors.graph.model("classifier", inputs, tensors.name(scores), output)


def _features_of(model: Any, clip: ClipSpec) -> Any:
    """The Keras input of features, once inputs and outputs have proven to be what a classifier has."""
    if len(model.outputs) != 1:
        raise ExportError(f"the classifier has {len(model.outputs)} outputs", hint="it must give scores alone")
    found = {tensor.name: tensor for tensor in model.inputs}
    wanted = [FEATURES, _MASK_INPUT] if clip.padding == "mask" else [FEATURES]
    if sorted(found) != wanted:
        raise ExportError(
            f"the classifier takes {', '.join(found)}, with padding {clip.padding!r} it must take {', '.join(wanted)}",
            hint="change the recipe",
        )
    if found[FEATURES].shape[1] != clip.length:
        raise ExportError(f"the classifier takes {found[FEATURES].shape[1]} frames, a clip has {clip.length}")
    return found[FEATURES]


def _convert(operation: Any, tensors: Tensors) -> None:
    """Put what an operation gives among the tensors."""
    kind = type(operation).__name__
    if len(operation._inbound_nodes) != 1:
        raise ExportError(f"layer {operation.name!r} is used more than once", hint="use a layer for each place")
    if kind == "InputLayer":
        tensors.values[id(operation.output)] = MASK if operation.name == _MASK_INPUT else FEATURES
        return
    if kind not in CONVERTERS:
        raise ExportError(f"layer {operation.name!r} is a {kind}", hint=f"the exporter knows {', '.join(CONVERTERS)}")
    call = _only_call(operation, kind)
    tensors.values[id(call.result)] = CONVERTERS[kind](call, tensors)


def _only_call(operation: Any, kind: str) -> Call:
    """The one use of a layer or operation; raises ExportError where it takes or gives what no converter looks at."""
    node = operation._inbound_nodes[0]
    named = {name: value for name, value in node.arguments.kwargs.items() if is_symbolic(value)}
    mask = named.pop("mask", None) if kind in MASKABLE else None
    if named:
        raise ExportError(f"layer {operation.name!r} ({kind}) takes {', '.join(named)}", hint="change the recipe")
    for tensor in node.output_tensors:
        if tensor.dtype != "float32":
            raise ExportError(f"layer {operation.name!r} ({kind}) gives {tensor.dtype}", hint="use float32")
    return Call(operation, tuple(node.arguments.args), mask, operation.output)
