"""Each rule on a graph that keeps it and on graphs that break it; NVIDIA's own parser says whether they are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.errors import ExportError
from edgeclf.export.lint import RULES, Finding, lint, require_lint
from tests.support.tensorrt_rtx import builder

onnx = pytest.importorskip("onnx", reason="onnx is missing: pip install 'edgeclf[dev]'")

ZERO = np.array(0, np.int8)
FLOAT, UINT8, INT32, INT64, BOOL, HALF = 1, 2, 6, 7, 9, 10
PICTURE = ("N", 2, 4, 4)


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    """A node whose inputs are named in one string; a dot stands for one that is left out."""
    names = ["" if name == "." else name for name in inputs.split()]
    return onnx.helper.make_node(op, names, output.split(), name=f"{op}_to_{output}", **attributes)


def value(name: str, kind: int, *shape: Any) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[Any],
    constants: dict[str, Any] | None = None,
    *,
    takes: Sequence[Any] = (),
    gives: Any = None,
    opset: int = 17,
    domain: str = "",
) -> Any:
    """A model from x float32 (N, 2, 4, 4) to y of the same shape, unless something else is said."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = onnx.helper.make_graph(
        nodes, "test", takes or [value("x", FLOAT, *PICTURE)], [gives or value("y", FLOAT, *PICTURE)], tensors
    )
    opsets = [onnx.helper.make_opsetid("", opset), *([onnx.helper.make_opsetid(domain, 1)] if domain else [])]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


# -- graphs -----------------------------------------------------------------------------------------------------------


def of_uint8(*nodes: Any) -> Any:
    """Nodes from x uint8 (N, 4, 4, 2) to y float32 (N, 2, 4, 4)."""
    return model(nodes, takes=[value("x", UINT8, "N", 4, 4, 2)])


def recurrent(op: str = "GRU", *, lengths: int = INT32, directions: int = 1, **attributes: Any) -> Any:
    """The last states of a recurrent layer over x (N, 5, 3)."""
    hidden, rng = 2, np.random.default_rng(0)
    rows = hidden * {"GRU": 3, "LSTM": 4}[op]
    turns = node("Identity", "x", "t") if attributes.get("layout") else node("Transpose", "x", "t", perm=[1, 0, 2])
    layer = node(op, "t w r . l", "h", hidden_size=hidden, **attributes)
    layer.output.insert(0, "")
    constants = {
        "w": rng.normal(size=(directions, rows, 3)).astype(np.float32),
        "r": rng.normal(size=(directions, rows, hidden)).astype(np.float32),
        "s": integers(-1, hidden * directions),
    }
    back = node("Identity", "h", "b") if attributes.get("layout") else node("Transpose", "h", "b", perm=[1, 0, 2])
    takes = [value("x", FLOAT, "N", 5, 3), value("l", lengths, "N")]
    gives = value("y", FLOAT, "N", hidden * directions)
    return model([turns, layer, back, node("Reshape", "b s")], constants, takes=takes, gives=gives)


def both(**attributes: Any) -> Any:
    # With linear_before_reset=0 TensorRT-RTX 1.7.1 takes half a minute to build it.
    return recurrent(directions=2, direction="bidirectional", linear_before_reset=1, **attributes)


def loop() -> Any:
    takes = [value("i", INT64), value("c", BOOL), value("v", FLOAT, *PICTURE)]
    gives = [value("d", BOOL), value("w", FLOAT, *PICTURE)]
    body = onnx.helper.make_graph([node("Identity", "c", "d"), node("Relu", "v", "w")], "body", takes, gives)
    return model([node("Loop", "times flag x", body=body)], {"times": np.int64(3), "flag": np.array(1, bool)})


def quantised(zero: Any = ZERO, **others: Any) -> Any:
    """A convolution of quantised values, with weights in int8 per channel."""
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w ws wz", "e", axis=0),
        node("Conv", "d e c" if others else "d e"),
    ]
    if others:
        nodes.insert(3, node("DequantizeLinear", "b ws", "c", axis=0))
    weights = {"w": np.ones((2, 2, 1, 1), np.int8), "ws": np.ones(2, np.float32), "wz": np.zeros(2, np.int8)}
    return model(nodes, {"s": np.float32(0.1), "z": zero, **weights, **others})


def integer_operator(op: str, inputs: str, output: str, weights: Any) -> Any:
    nodes = [node("QuantizeLinear", "x s z", "q"), node(op, inputs, "c"), node("Cast", "c", to=FLOAT)]
    if output == "quantised":
        nodes[-1] = node("DequantizeLinear", "c s z")
    return model(nodes, {"s": np.float32(0.1), "z": np.int8(0), "w": weights})


def resize(**attributes: Any) -> Any:
    scales = {"scales": np.array([1, 1, 0.5, 0.5], np.float32)}
    gives = value("y", FLOAT, "N", 2, 2, 2)
    return model([node("Resize", "x . scales", mode="linear", **attributes)], scales, gives=gives, opset=18)


def pooled(output: str = "y", **attributes: Any) -> Any:
    return model([node("MaxPool", "x", output, kernel_shape=[2, 2], pads=[1, 1, 0, 0], **attributes)])


def largest(kind: int) -> Any:
    """Is any value above zero?"""
    nodes = [node("Greater", "x zero", "b"), node("Cast", "b", "c", to=kind), node("ReduceMax", "c axis", "m")]
    nodes.append(node("Cast", "m", to=FLOAT))
    return model(nodes, {"zero": np.float32(0), "axis": integers(3)}, gives=value("y", FLOAT, "N", 2, 4, 1), opset=20)


def padded(*nodes: Any, source: str = "x") -> Any:
    return model([*nodes, node("Pad", f"{source} p", "q"), node("MaxPool", "q", kernel_shape=[2, 2])], PADS)


def with_equal_names() -> Any:
    made = quantised()
    for each in made.graph.node:
        if each.op_type == "DequantizeLinear":
            each.name = "dequantise"
    return made


PADS = {"p": integers(0, 0, 1, 1, 0, 0, 0, 0)}
PLAIN = [node("Relu", "x")]
HALVES = [node("Cast", "x", "h", to=HALF), node("Cast", "x", "k", to=HALF)]
WITH_HEIGHT = ("N", 2, "H", 4)
SPLIT = [node("SplitToSequence", "x", "s", axis=1), node("ConcatFromSequence", "s", axis=1)]
CHANNEL_LAST = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Cast", "t", to=FLOAT)]


@dataclass(frozen=True)
class Case:
    keeps: Any
    breaks: Sequence[Any]


CASES = {
    "uint8 goes into Cast alone": Case(
        of_uint8(node("Cast", "x", "t", to=FLOAT), node("Transpose", "t", perm=[0, 3, 1, 2])),
        [of_uint8(*CHANNEL_LAST), of_uint8(node("Concat", "x x", "t", axis=1), node("Cast", "t", to=FLOAT))],
    ),
    "layout is 0": Case(recurrent(layout=0), [recurrent(layout=1), recurrent("LSTM", layout=1)]),
    "both directions have the same activations": Case(
        both(activations=["Sigmoid", "Tanh"] * 2),
        [
            both(activations=["Sigmoid", "Tanh", "HardSigmoid", "Tanh"]),
            both(activations=["HardSigmoid", "Tanh"] * 2, activation_alpha=[0.2, 0.3], activation_beta=[0.5, 0.5]),
        ],
    ),
    "gates are not coupled": Case(recurrent("LSTM", input_forget=0), [recurrent("LSTM", input_forget=1)]),
    "sequence_lens are int32": Case(recurrent(linear_before_reset=1), [recurrent(lengths=INT64)]),
    "no control flow": Case(model(PLAIN), [loop()]),
    "no operator that TensorRT lacks": Case(
        quantised(),
        [
            model([node("NonZero", "x")], gives=value("y", INT64, 4, None)),
            model([node("Unique", "x")], gives=value("y", FLOAT, None)),
            model([node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z")]),
            model(SPLIT),
            integer_operator("QLinearConv", "q s z w s z s z", "quantised", np.ones((2, 2, 1, 1), np.int8)),
            integer_operator("QLinearMatMul", "q s z w s z s z", "quantised", np.ones((4, 4), np.int8)),
            integer_operator("ConvInteger", "q w", "", np.ones((2, 2, 1, 1), np.int8)),
            integer_operator("MatMulInteger", "q w", "", np.ones((4, 4), np.int8)),
        ],
    ),
    "no antialiasing": Case(resize(antialias=0), [resize(antialias=1)]),
    "MaxPool is plain": Case(pooled(dilations=[1, 1]), [pooled("y i"), pooled(dilations=[2, 2])]),
    "floats are of one type": Case(
        model([*HALVES, node("Add", "h k", "s"), node("Cast", "s", to=FLOAT)]), [model([*HALVES, node("Add", "x h")])]
    ),
    "BOOL is not reduced": Case(largest(INT32), [largest(BOOL)]),
    "zero points are zero": Case(quantised(), [quantised(np.int8(3)), quantised(np.uint8(128))]),
    "quantised values are signed": Case(quantised(), [quantised(np.uint8(0))]),
    "biases are floats": Case(quantised(), [quantised(b=np.ones(2, np.int32))]),
    "operators are those of ONNX": Case(
        model(PLAIN), [model([node("Gelu", "x", domain="com.microsoft")], domain="com.microsoft")]
    ),
    "only the first axis is dynamic": Case(
        model(PLAIN), [model(PLAIN, takes=[value("x", FLOAT, *WITH_HEIGHT)], gives=value("y", FLOAT, *WITH_HEIGHT))]
    ),
    "names are not used twice": Case(quantised(), [with_equal_names()]),
    "opset": Case(model(PLAIN, opset=20), [model(PLAIN, opset=8), model(PLAIN, opset=21)]),
    "no zeros before MaxPool": Case(padded(node("Relu", "x", "r"), source="r"), [padded()]),
}
KINDS = {rule.name: rule.kind for rule in RULES}
BROKEN = [
    pytest.param(name, broken, id=f"{name} {i}") for name, case in CASES.items() for i, broken in enumerate(case.breaks)
]


def test_every_rule_has_its_graphs() -> None:
    assert [rule.name for rule in RULES] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_graph_that_keeps_a_rule_passes_all(name: str) -> None:
    assert lint(CASES[name].keeps) == []


@pytest.mark.parametrize(("name", "broken"), BROKEN)
def test_graph_that_breaks_a_rule_is_found(name: str, broken: Any) -> None:
    assert name in {finding.rule for finding in lint(broken)}


# -- against NVIDIA's parser ------------------------------------------------------------------------------------------


def is_refused(made: Any) -> bool:
    """Does TensorRT-RTX refuse to parse a model, or to build it for batches of 1 to 4?"""
    trt = builder()
    log = silent_log(trt)
    makes = trt.Builder(log)
    network = makes.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, log).parse(made.SerializeToString()):
        return True
    config, profile = makes.create_builder_config(), makes.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *([size if size >= 0 else n for size in tensor.shape] for n in (1, 2, 4)))
    config.add_optimization_profile(profile)
    return makes.build_serialized_network(network, config) is None


def silent_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            """Say nothing."""

    return Log()


@pytest.mark.parametrize("name", CASES)
def test_parser_takes_what_keeps_a_rule(name: str) -> None:
    assert not is_refused(CASES[name].keeps)


@pytest.mark.parametrize(("name", "broken"), BROKEN)
def test_parser_refuses_what_the_table_says(name: str, broken: Any) -> None:
    """What it takes all the same has a rule because answers are wrong, or because it is ours."""
    assert is_refused(broken) == (KINDS[name] == "refused")


# -- what is done with findings ---------------------------------------------------------------------------------------


def test_finding_names_node_and_fault() -> None:
    assert lint(recurrent(layout=1)) == [
        Finding("layout is 0", "GRU GRU_to_h", "has layout 1, which the parser ignores")
    ]


def test_node_without_a_name_goes_by_its_output() -> None:
    made = resize(antialias=1)
    made.graph.node[0].name = ""
    assert [finding.node for finding in lint(made)] == ["Resize y"]


@pytest.mark.parametrize("made", [quantised(np.uint8(128)), quantised(np.int8(3)), quantised(b=np.ones(2, np.int32))])
def test_graph_for_a_cpu_may_be_quantised_in_other_ways(made: Any) -> None:
    assert lint(made)
    assert lint(made, tensorrt=False) == []


def test_graph_for_a_cpu_has_no_loop_either() -> None:
    assert [finding.rule for finding in lint(loop(), tensorrt=False)] == ["no control flow"]


def test_findings_are_an_error_that_names_the_first_of_them() -> None:
    nodes = [node("NonZero", "x", name) for name in "abcdy"]
    made = model(nodes, gives=value("y", INT64, 4, None))
    with pytest.raises(
        ExportError, match=r"the extractor's graph holds .*: y: has an axis|NonZero NonZero_to_a: .*; and 3 more"
    ):
        require_lint(made, role="extractor")


def test_clean_graph_is_no_error() -> None:
    require_lint(model(PLAIN), role="extractor")


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("edgeclf/bundles/*.edgeclf/*.onnx")), ids=str)
def test_packaged_graphs_are_clean(file: Path) -> None:
    fits_tensorrt = "int8" not in file.name
    assert lint(onnx.load(file), tensorrt=fits_tensorrt) == []
