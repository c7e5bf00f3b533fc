"""What TensorRT 10.3 to 11 refuses in a graph, or takes and gets wrong, found without TensorRT.

Each rule says whether NVIDIA's parser refuses what it finds, which the tests prove against the parser itself, whether
something takes it and gives wrong answers, or whether it is our own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import ExportError

Kind = Literal["refused", "silently wrong", "ours"]
Scope = Literal["all", "tensorrt"]  # all graphs, or only those that are made for TensorRT

FIRST_OPSET, LAST_OPSET = 9, 20  # what the parser of TensorRT 10.3 takes

# NonZero is a plugin of its own, which not every TensorRT brings.
_REFUSED = frozenset(
    {"ConcatFromSequence", "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "NonZero", "QLinearConv"}
    | {"QLinearMatMul", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"}
    | {"SequenceLength", "SequenceMap", "SplitToSequence", "Unique"}
)
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_QUANTIZED = frozenset({"DequantizeLinear", "QuantizeLinear"})
_ELEMENTWISE = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"})
_NEVER_NEGATIVE = frozenset({"HardSigmoid", "Relu", "Sigmoid"})
_FLOAT, _UINT8, _INT32, _BOOL, _HALF, _DOUBLE, _BFLOAT16 = 1, 2, 6, 9, 10, 11, 16  # as ONNX numbers element types
_FLOATS = {_FLOAT: "float32", _HALF: "float16", _DOUBLE: "float64", _BFLOAT16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says about one node."""

    rule: str
    node: str
    message: str

    def __str__(self) -> str:
        return f"{self.node}: {self.message}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must not be in a graph, what becomes of it, and how it is found: pairs of a node and a message."""

    name: str
    kind: Kind
    scope: Scope
    check: Callable[[_Graph], Iterator[tuple[str, str]]]


def lint(model: Any, *, tensorrt: bool = True) -> list[Finding]:
    """What the rules find in an ONNX model.

    tensorrt: the graph is made for TensorRT; otherwise only the rules for all graphs are asked, since graphs for CPUs
    may be quantised in ways that TensorRT refuses.
    """
    graph = _Graph.of(model)
    return [
        Finding(rule.name, node, message)
        for rule in RULES
        if tensorrt or rule.scope == "all"
        for node, message in rule.check(graph)
    ]


def require_lint(model: Any, *, role: str, tensorrt: bool = True) -> None:
    """Raise ExportError that names what `lint` finds; role: what the graph is called in the message."""
    if findings := lint(model, tensorrt=tensorrt):
        found = "; ".join(str(finding) for finding in findings[:3])
        more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
        raise ExportError(
            f"the {role}'s graph holds what TensorRT refuses or gets wrong: {found}{more}",
            hint="use other layers in its place",
        )


# -- the graph as rules see it ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Graph:
    model: Any
    types: dict[str, int]  # of tensors, where they are known
    tensors: dict[str, Any]  # the initializers
    makers: dict[str, Any]

    @classmethod
    def of(cls, model: Any) -> _Graph:
        from onnx import shape_inference

        graph = shape_inference.infer_shapes(model).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
        types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
        types |= {name: tensor.data_type for name, tensor in tensors.items()}
        return cls(model, types, tensors, {name: node for node in graph.node for name in node.output})

    @property
    def nodes(self) -> Sequence[Any]:
        found: Sequence[Any] = self.model.graph.node
        return found

    def of_kind(self, *ops: str) -> Iterator[Any]:
        return (node for node in self.nodes if node.op_type in ops)

    def array(self, node: Any, place: int) -> NDArray[Any] | None:
        """The constant that a node takes in a place."""
        from onnx import numpy_helper

        name = node.input[place] if len(node.input) > place else ""
        if name in self.tensors:
            return np.asarray(numpy_helper.to_array(self.tensors[name]))
        maker = self.makers.get(name)
        value = _value(maker, "value") if maker is not None and maker.op_type == "Constant" else None
        return None if value is None else np.asarray(numpy_helper.to_array(value))


def _name(node: Any) -> str:
    """What a node is called in messages."""
    return f"{node.op_type} {node.name or node.output[0]}"


def _value(node: Any, name: str, default: Any = None) -> Any:
    """What an attribute of a node says."""
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


# -- rules ------------------------------------------------------------------------------------------------------------


def _uint8(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op_type not in {"Cast", *_QUANTIZED} and any(graph.types.get(name) == _UINT8 for name in node.input):
            yield _name(node), "takes uint8, which only Cast may take"


def _layout(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_RECURRENT):
        if _value(node, "layout", 0) != 0:
            yield _name(node), "has layout 1, which the parser ignores"


def _directions(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_RECURRENT):
        for name in ("activations", "activation_alpha", "activation_beta"):
            values = list(_value(node, name, ()))
            half = len(values) // 2
            if _value(node, "direction") == b"bidirectional" and values[:half] != values[half:]:
                yield _name(node), f"has other {name} in one direction than in the other"


def _input_forget(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind("LSTM"):
        if _value(node, "input_forget", 0):
            yield _name(node), "couples its input and forget gates"


def _lengths(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_RECURRENT):
        if len(node.input) > 4 and node.input[4] and graph.types.get(node.input[4], _INT32) != _INT32:
            yield _name(node), "has sequence_lens that are not int32"


def _control_flow(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_CONTROL_FLOW):
        yield _name(node), "is control flow, which makes hundreds of layers and may keep CUDA graphs from being used"


def _operators(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_REFUSED):
        yield _name(node), "is an operator that TensorRT does not have"


def _antialias(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind("Resize"):
        if _value(node, "antialias", 0):
            yield _name(node), "resizes with antialiasing"


def _pooling(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind("MaxPool"):
        if len(node.output) > 1 or any(size != 1 for size in _value(node, "dilations", ())):
            yield _name(node), "gives indices or has dilations"


def _mixed_floats(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_ELEMENTWISE):
        kinds = {graph.types[name] for name in node.input if graph.types.get(name) in _FLOATS}
        if len(kinds) > 1:
            yield _name(node), f"takes {' and '.join(sorted(_FLOATS[kind] for kind in kinds))}"


def _reduced_bool(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind("ReduceMax", "ReduceMin"):
        if graph.types.get(node.input[0]) == _BOOL:
            yield _name(node), "reduces BOOL; cast it to int32 first"


def _zero_points(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_QUANTIZED):
        points = graph.array(node, 2)
        if points is not None and points.astype(np.float64).any():
            yield _name(node), "has a zero point that is not zero"


def _unsigned(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind(*_QUANTIZED):
        quantized = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        if graph.types.get(quantized) == _UINT8:
            yield _name(node), "quantises to uint8, which the parser takes for int8"


def _dequantized_int32(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind("DequantizeLinear"):
        if graph.types.get(node.input[0]) == _INT32:
            yield _name(node), "dequantises int32; leave biases in floats"


def _domains(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.domain not in {"", "ai.onnx"}:
            yield _name(node), f"is of the domain {node.domain}, not of ONNX"


def _names(graph: _Graph) -> Iterator[tuple[str, str]]:
    counts = Counter(node.name for node in graph.nodes if node.name)
    for node in graph.nodes:
        if counts[node.name] > 1:
            yield _name(node), "has the name of another node"


def _axes(graph: _Graph) -> Iterator[tuple[str, str]]:
    for value in [*graph.model.graph.input, *graph.model.graph.output]:
        sizes = value.type.tensor_type.shape.dim
        if any(not size.dim_value for size in sizes[1:]):
            yield value.name, "has an axis other than the first whose size is not fixed"


def _opset(graph: _Graph) -> Iterator[tuple[str, str]]:
    for entry in graph.model.opset_import:
        if entry.domain in {"", "ai.onnx"} and not FIRST_OPSET <= entry.version <= LAST_OPSET:
            yield "the graph", f"has opset {entry.version}, not {FIRST_OPSET} to {LAST_OPSET}"


def _zeros_before_maximum(graph: _Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of_kind("MaxPool"):
        pad = graph.makers.get(node.input[0])
        if pad is None or pad.op_type != "Pad" or _value(pad, "mode", b"constant") != b"constant":
            continue
        source, value = graph.makers.get(pad.input[0]), graph.array(pad, 2)
        if (value is None or not value.any()) and (source is None or source.op_type not in _NEVER_NEGATIVE):
            yield _name(node), "follows a Pad with zeros, which ONNX Runtime takes for less than any value"


RULES = (
    Rule("uint8 goes into Cast alone", "refused", "all", _uint8),
    Rule("layout is 0", "silently wrong", "all", _layout),
    Rule("both directions have the same activations", "refused", "all", _directions),
    Rule("gates are not coupled", "refused", "all", _input_forget),
    Rule("sequence_lens are int32", "refused", "all", _lengths),
    Rule("no control flow", "ours", "all", _control_flow),
    Rule("no operator that TensorRT lacks", "refused", "all", _operators),
    Rule("no antialiasing", "refused", "all", _antialias),
    Rule("MaxPool is plain", "refused", "all", _pooling),
    Rule("floats are of one type", "refused", "all", _mixed_floats),
    Rule("BOOL is not reduced", "refused", "all", _reduced_bool),
    Rule("zero points are zero", "refused", "tensorrt", _zero_points),
    Rule("quantised values are signed", "silently wrong", "tensorrt", _unsigned),
    Rule("biases are floats", "refused", "tensorrt", _dequantized_int32),
    Rule("operators are those of ONNX", "ours", "tensorrt", _domains),
    Rule("only the first axis is dynamic", "ours", "all", _axes),
    Rule("names are not used twice", "refused", "all", _names),
    Rule("opset", "ours", "all", _opset),
    Rule("no zeros before MaxPool", "silently wrong", "all", _zeros_before_maximum),
)
