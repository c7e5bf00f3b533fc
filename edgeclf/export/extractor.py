"""Keras extractors as ONNX graphs, through tf2onnx."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from edgeclf.errors import ExportError, import_extra

OPSET = 17
IR_VERSION = 8
FRAMES, FEATURES = "frames", "features"

_CONTROL_FLOW = frozenset({"Loop", "Scan", "If"})


def onnx_from_keras_extractor(model: Any) -> Any:
    """The ONNX model of a Keras extractor, frames uint8 (N, H, W, 3) to features float32 (N, F).

    The same weights give the same bytes: names are made canonical, since tf2onnx numbers them per process.
    Raises ExportError where the graph needs control flow, or other tensors than frames and features.
    """
    tf2onnx = _import_tf2onnx()
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tf2onnx and NumPy about each other
        converted, _ = tf2onnx.convert.from_keras(model, opset=OPSET)
    graph = converted.graph
    if [node.name for node in graph.input] != [model.inputs[0].name] or len(graph.output) != 1:
        tensors = ", ".join(node.name for node in [*graph.input, *graph.output])
        raise ExportError(f"the extractor takes and gives {tensors}", hint="it must take frames and give features")
    if control := sorted({node.op_type for node in graph.node} & _CONTROL_FLOW):
        raise ExportError(f"the extractor's graph holds {', '.join(control)}", hint="use layers without control flow")
    return _canonical(converted)


def _canonical(model: Any) -> Any:
    """The same graph with its own names for everything, a dynamic batch N, and nothing said about its maker."""
    from onnx import checker, helper

    graph = model.graph
    names = {"": "", graph.input[0].name: FRAMES, graph.output[0].name: FEATURES}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        for place, output in enumerate(node.output):
            names.setdefault(output, f"{node.op_type.lower()}_{number}" + (f"_{place}" if place else ""))
        for name in node.input:
            if name in constants:
                names.setdefault(name, f"constant_{len(names)}")
    nodes = [_renamed(node, names, f"{node.op_type.lower()}_{number}") for number, node in enumerate(graph.node)]
    initializers = [_renamed_constant(constants[old], new) for old, new in names.items() if old in constants]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "extractor",
            [_with_batch(graph.input[0], FRAMES)],
            [_with_batch(graph.output[0], FEATURES)],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgeclf",
    )
    checker.check_model(made, full_check=True)
    return made


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


def _import_tf2onnx() -> Any:
    return import_extra("tf2onnx", "tf2onnx", "export")
