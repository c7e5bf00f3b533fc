"""Keras networks that take pictures as ONNX graphs, through tf2onnx."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from edgeclf.errors import ExportError, import_extra
from edgeclf.export.graph import OPSET, checked_model

FRAMES, FEATURES, SCORES = "frames", "features", "scores"

_CONTROL_FLOW = frozenset({"Loop", "Scan", "If"})


def onnx_from_keras_extractor(model: Any) -> Any:
    """The ONNX model of a Keras extractor, frames uint8 (N, H, W, 3) to features float32 (N, F).

    Frames may be stacked, uint8 (N, K, H, W, 3). The same weights give the same bytes: names are made canonical, since
    tf2onnx numbers them per process. Raises ExportError where the graph needs control flow, or other tensors than
    frames and features.
    """
    return _onnx_from_keras(model, "extractor", FEATURES)


def onnx_from_keras_network(model: Any) -> Any:
    """The ONNX model of a Keras classifier of whole clips, frames uint8 (N, T, H, W, 3) to scores float32 (N, C).

    As `onnx_from_keras_extractor` in all else.
    """
    return _onnx_from_keras(model, "classifier", SCORES)


def _onnx_from_keras(model: Any, role: str, output: str) -> Any:
    tf2onnx = import_extra("tf2onnx", "tf2onnx", "export")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tf2onnx and NumPy about each other
        converted, _ = tf2onnx.convert.from_keras(model, opset=OPSET)
    graph = converted.graph
    if [node.name for node in graph.input] != [model.inputs[0].name] or len(graph.output) != 1:
        tensors = ", ".join(node.name for node in [*graph.input, *graph.output])
        raise ExportError(f"the {role} takes and gives {tensors}", hint=f"it must take frames and give {output}")
    if control := sorted({node.op_type for node in graph.node} & _CONTROL_FLOW):
        raise ExportError(f"the {role}'s graph holds {', '.join(control)}", hint="use layers without control flow")
    return _canonical(converted, role, output)


def _canonical(model: Any, role: str, output: str) -> Any:
    """The same graph with its own names for everything, a dynamic batch N, and nothing said about its maker."""
    graph = model.graph
    names = {"": "", graph.input[0].name: FRAMES, graph.output[0].name: output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        for place, made in enumerate(node.output):
            names.setdefault(made, f"{node.op_type.lower()}_{number}" + (f"_{place}" if place else ""))
        for name in node.input:
            if name in constants:
                names.setdefault(name, f"constant_{len(names)}")
    nodes = [_renamed(node, names, f"{node.op_type.lower()}_{number}") for number, node in enumerate(graph.node)]
    initializers = [_renamed_constant(constants[old], new) for old, new in names.items() if old in constants]
    inputs = [_with_batch(graph.input[0], FRAMES)]
    return checked_model(role, nodes, inputs, _with_batch(graph.output[0], output), initializers)


def _renamed(node: Any, names: dict[str, str], name: str) -> Any:
    from onnx import NodeProto

    renamed = NodeProto()
    renamed.CopyFrom(node)
    renamed.name = name
    renamed.ClearField("doc_string")
    del renamed.input[:], renamed.output[:]
    renamed.input.extend(names[old] for old in node.input)
    renamed.output.extend(names[old] for old in node.output)
    return renamed


def _renamed_constant(tensor: Any, name: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor), name)


def _with_batch(value: Any, name: str) -> Any:
    from onnx import helper

    kind = value.type.tensor_type
    sizes = [dim.dim_value for dim in kind.shape.dim][1:]
    return helper.make_tensor_value_info(name, kind.elem_type, ["N", *sizes])
