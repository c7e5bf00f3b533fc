"""Keras networks that take pictures as ONNX graphs, through tf2onnx."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgeclf.errors import ExportError, import_extra
from edgeclf.export.graph import OPSET, checked_model
from edgeclf.export.simplify import simplified

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
    from onnx import defs

    converted = _converted(model)
    graph = converted.graph
    if [node.name for node in graph.input] != [model.inputs[0].name] or len(graph.output) != 1:
        tensors = ", ".join(node.name for node in [*graph.input, *graph.output])
        raise ExportError(f"the {role} takes and gives {tensors}", hint=f"it must take frames and give {output}")
    kinds = {node.op_type for node in graph.node}
    if control := sorted(kinds & _CONTROL_FLOW):
        raise ExportError(f"the {role}'s graph holds {', '.join(control)}", hint="use layers without control flow")
    if unknown := sorted(kind for kind in kinds if not defs.has(kind)):
        raise ExportError(f"ONNX has nothing for {', '.join(unknown)} in the {role}", hint="use other layers")
    return _canonical(simplified(converted), role, output)


def _converted(model: Any) -> Any:
    """What tf2onnx makes of a Keras model."""
    tf2onnx = import_extra("tf2onnx", "tf2onnx", "export")
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it could not do is found in its graph
    with warnings.catch_warnings(), _functions_inlined():
        warnings.simplefilter("ignore")  # of tf2onnx and NumPy about each other
        converted, _ = tf2onnx.convert.from_keras(model, opset=OPSET, custom_op_handlers={"Erfc": (_erfc, [])})
    return converted


@contextmanager
def _functions_inlined() -> Iterator[None]:
    """While it lasts, a function of TensorFlow that is called in a graph becomes a part of it.

    Keras compiles convolutions in groups, as those of ConvNeXt, in a function of their own, which tf2onnx leaves as it
    is: a node that ONNX does not know.
    """
    config = import_extra("tensorflow", "TensorFlow", "export").config
    before = config.functions_run_eagerly()
    config.run_functions_eagerly(run_eagerly=True)
    try:
        yield
    finally:
        config.run_functions_eagerly(run_eagerly=before)


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """Tell tf2onnx what it does not know: erfc(x) is 1 - erf(x), of which Keras makes its exact GELU."""
    output = node.output[0]
    like = {"shapes": [context.get_shape(output)], "dtypes": [context.get_dtype(output)]}
    one = context.make_const(f"{name}_one", np.array(1, np.float32))
    erf = context.make_node("Erf", [node.input[0]], **like)
    context.remove_node(node.name)
    context.make_node("Sub", [one.output[0], erf.output[0]], outputs=[output], name=name, **like)


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
