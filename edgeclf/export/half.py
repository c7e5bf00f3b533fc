"""FP16 as a converted graph: TensorRT 11 takes the precision from the graph alone."""

from __future__ import annotations

import logging
from typing import Any

from edgeclf.export.graph import checked_again

# A layer is what calculates: nodes that only say where numbers stand have no precision worth counting.
_NO_LAYERS = frozenset({"Cast", "Constant", "Shape", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Concat"})


def half_from_onnx(model: Any) -> Any:
    """The same ONNX model calculating in FP16, float32 in and out; the model itself is left as it is.

    Weights beyond FP16's range are cut off at it, those below its smallest number at that. By ONNX Runtime's
    converter, which is a part of its wheel.
    """
    from onnx import ModelProto
    from onnxruntime.transformers.float16 import convert_float_to_float16

    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)  # of every number it cuts off
    copy = ModelProto()
    copy.CopyFrom(model)
    return checked_again(convert_float_to_float16(copy, keep_io_types=True, op_block_list=[]))


def half_share(model: Any) -> float:
    """The share of layers, 0 to 1, that give FP16, among those that give FP16 or float32."""
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    given = [types.get(node.output[0]) for node in graph.node if node.op_type not in _NO_LAYERS]
    half, single = given.count(TensorProto.FLOAT16), given.count(TensorProto.FLOAT)
    return half / max(1, half + single)
