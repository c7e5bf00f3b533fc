"""Passes over ONNX graphs: what they take away, what they leave, and that answers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.simplify import simplified

onnx = pytest.importorskip("onnx", reason="onnx is missing: pip install 'edgeclf[dev]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install 'edgeclf[cpu]'")

PICTURE = ("N", 4, 7, 6)
CLIP = ("N", 4, 3, 7, 6)
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
RNG = np.random.default_rng(0)

Constants = dict[str, Any]


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    """A node whose inputs are named in one string; a dot stands for one that is left out."""
    return onnx.helper.make_node(
        op, ["" if name == "." else name for name in inputs.split()], output.split(), **attributes
    )


def numbers(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(0.2, 1, shape).astype(np.float32)


def model(nodes: Sequence[Any], constants: Constants, shape: Sequence[Any] = PICTURE, kind: int = 1) -> Any:
    """The model from x to y."""
    frames = onnx.helper.make_tensor_value_info("x", kind, shape)
    result = onnx.helper.make_tensor_value_info("y", 1, None)
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "test", [frames], [result], tensors)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def answers(made: Any, *, optimized: bool = False) -> NDArray[np.float32]:
    """What a model gives for numbers of both signs, by default from exactly the nodes that it has."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    rng = np.random.default_rng(1)
    shape = [3 if isinstance(size, str) else size for size in taken.shape]
    x = rng.integers(0, 256, shape, np.uint8) if "uint8" in taken.type else rng.normal(0, 3, shape).astype(np.float32)
    (result,) = session.run(None, {"x": x})
    return np.asarray(result)


def ops_after(nodes: Sequence[Any], constants: Constants, shape: Sequence[Any] = PICTURE, kind: int = 1) -> list[str]:
    """The operators that are left of a model, in order, once it has proven to give the same answers."""
    before = model(nodes, constants, shape, kind)
    after = simplified(before)
    onnx.checker.check_model(after, full_check=True)
    expected = answers(before)
    for optimized in (False, True):
        np.testing.assert_allclose(answers(after, optimized=optimized), expected, rtol=1e-5, atol=1e-5)
    return [one.op_type for one in after.graph.node]


# -- convolutions -----------------------------------------------------------------------------------------------------

CONV = node("Conv", "x w", "c")
WEIGHTS: Constants = {"w": numbers(5, 4, 3, 3)}
CHANNELS = numbers(5, 1, 1)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Mul", "c s", "m"), node("Add", "m t", "y")], {"s": CHANNELS, "t": numbers(1, 5, 1, 1)}),
        ([node("Mul", "s c", "y")], {"s": np.float32(3)}),
        ([node("Add", "t c", "y")], {"t": numbers(1)}),
        ([node("Sub", "c t", "y")], {"t": CHANNELS}),
        ([node("Sub", "t c", "y")], {"t": CHANNELS}),
        ([node("Div", "c s", "y")], {"s": 1 + np.abs(CHANNELS)}),
    ],
)
@pytest.mark.parametrize("conv", [CONV, node("Conv", "x w b", "c")])
def test_numbers_per_channel_go_into_the_convolution(nodes: list[Any], constants: Constants, conv: Any) -> None:
    assert ops_after([conv, *nodes], {**WEIGHTS, "b": numbers(5), **constants}) == ["Conv"]


def test_batch_normalisation_goes_into_a_depthwise_convolution() -> None:
    nodes = [node("Conv", "x w", "c", group=4, pads=[1] * 4), node("Mul", "c s", "m"), node("Add", "m t", "y")]
    constants = {"w": numbers(4, 1, 3, 3), "s": numbers(4, 1, 1), "t": numbers(4, 1, 1)}
    assert ops_after(nodes, constants) == ["Conv"]


def test_batch_normalisation_goes_into_a_convolution_of_clips() -> None:
    nodes = [node("Conv", "x w", "c"), node("Mul", "c s", "m"), node("Add", "m t", "y")]
    constants = {"w": numbers(5, 4, 2, 3, 3), "s": numbers(5, 1, 1, 1), "t": numbers(1, 5, 1, 1, 1)}
    assert ops_after(nodes, constants, CLIP) == ["Conv"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Mul", "c s", "y")], {"s": numbers(5, 4)}),  # per row and column
        ([node("Mul", "c s", "y")], {"s": numbers(2, 1, 1, 1, 1)}),  # makes an axis
        ([node("Div", "s c", "y")], {"s": CHANNELS}),
        ([node("Add", "c c", "y")], {}),
        ([node("Mul", "c s", "m"), node("Add", "m c", "y")], {"s": CHANNELS}),
        ([node("Relu", "c", "r"), node("Mul", "r s", "y")], {"s": CHANNELS}),
    ],
)
def test_other_arithmetic_stays_behind_the_convolution(nodes: list[Any], constants: Constants) -> None:
    assert ops_after([CONV, *nodes], {**WEIGHTS, **constants}) == ["Conv", *(one.op_type for one in nodes)]


def test_mean_before_zero_padding_stays() -> None:
    nodes = [node("Sub", "x m", "s"), node("Conv", "s w", "y", pads=[1] * 4)]
    assert ops_after(nodes, {**WEIGHTS, "m": numbers(4, 1, 1)}) == ["Sub", "Conv"]


def test_weights_that_two_convolutions_share_stay_shared() -> None:
    nodes = [
        *(node("Conv", f"{name} w", f"c{name}", pads=[1] * 4) for name in ("x", "r")),
        *(node("Mul", f"c{name} s", f"m{name}") for name in ("x", "r")),
        node("Relu", "mx", "r"),
        node("Add", "r mr", "y"),
    ]
    made = model(
        [nodes[0], nodes[2], nodes[4], nodes[1], nodes[3], nodes[5]], {"w": numbers(4, 4, 3, 3), "s": CHANNELS[:4]}
    )
    after = simplified(made)
    assert Counter(one.op_type for one in after.graph.node) == {"Conv": 2, "Relu": 1, "Add": 1}
    assert [list(tensor.dims) for tensor in after.graph.initializer] == [[4, 4, 3, 3], [4]]
    np.testing.assert_allclose(answers(after), answers(made), rtol=1e-5, atol=1e-5)


# -- hard sigmoid -----------------------------------------------------------------------------------------------------

THREE: Constants = {"three": np.float32(3), "low": np.float32(0), "high": np.float32(6)}
ADD, CLIPPED = node("Add", "x three", "a"), node("Clip", "a low high", "k")


@pytest.mark.parametrize(
    ("nodes", "constant"),
    [
        ([ADD, CLIPPED, node("Mul", "k s", "y")], 1 / 6),
        ([node("Add", "three x", "a"), CLIPPED, node("Mul", "s k", "y")], 1 / 6),
        ([ADD, CLIPPED, node("Div", "k s", "y")], 6),
        ([node("Clip", "x low high", "k"), node("Div", "k s", "y")], 6),
    ],
)
def test_clipped_sum_is_one_hard_sigmoid(nodes: list[Any], constant: float) -> None:
    assert ops_after(nodes, {**THREE, "s": np.float32(constant)}) == ["HardSigmoid"]


def test_hard_sigmoid_has_the_slope_of_keras() -> None:
    made = simplified(model([ADD, CLIPPED, node("Mul", "k s", "y")], {**THREE, "s": np.float32(1 / 6)}))
    values = {each.name: each.f for each in made.graph.node[0].attribute}
    assert values == {"alpha": np.float32(1 / 6), "beta": 0.5}


@pytest.mark.parametrize(
    ("nodes", "constant"),
    [
        ([ADD, CLIPPED, node("Mul", "k s", "y")], 0.2),
        ([ADD, CLIPPED, node("Div", "s k", "d"), node("Clip", "d low high", "y")], 6),
        ([ADD, CLIPPED, node("Mul", "k s", "m"), node("Add", "m k", "y")], 1 / 6),
        ([ADD, node("Clip", "a three high", "k"), node("Mul", "k s", "y")], 1 / 6),
    ],
)
def test_other_clips_stay(nodes: list[Any], constant: float) -> None:
    assert "HardSigmoid" not in ops_after(nodes, {**THREE, "s": np.float32(constant)})


def test_sum_that_others_use_stays_beside_the_hard_sigmoid() -> None:
    nodes = [ADD, CLIPPED, node("Mul", "k s", "h"), node("Mul", "a h", "y")]
    assert sorted(ops_after(nodes, {**THREE, "s": np.float32(1 / 6)})) == ["Add", "HardSigmoid", "Mul"]


# -- padding ----------------------------------------------------------------------------------------------------------


def pads(*values: int) -> Constants:
    return {"p": np.array(values, np.int64)}


AROUND = pads(0, 0, 1, 2, 0, 0, 0, 3)
PAD = node("Pad", "x p", "q")


@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 0, 2, 0]}, {"strides": [2, 2]}, {"dilations": [2, 2]}])
def test_zeros_go_into_the_pads_of_the_convolution(attributes: dict[str, Any]) -> None:
    assert ops_after([PAD, node("Conv", "q w", "y", **attributes)], {**WEIGHTS, **AROUND}) == ["Conv"]


def test_zeros_go_into_the_pads_of_two_convolutions() -> None:
    nodes = [PAD, node("Conv", "q w", "a"), node("Conv", "q v", "b"), node("Add", "a b", "y")]
    assert ops_after(nodes, {**WEIGHTS, **AROUND, "v": numbers(5, 4, 3, 3)}) == ["Conv", "Conv", "Add"]


def test_zeros_around_channels_last_go_there_too() -> None:
    nodes = [
        node("Pad", "x p", "q"),
        node("Transpose", "q", "t", perm=TO_FIRST),
        node("Conv", "t w", "y"),
    ]
    constants = {**pads(0, 1, 2, 0, 0, 0, 3, 0), "w": numbers(5, 6, 3, 3)}
    assert ops_after(nodes, constants) == ["Transpose", "Conv"]


@pytest.mark.parametrize(
    ("pad", "constants"),
    [
        (node("Pad", "x p v", "q"), {**AROUND, "v": np.float32(1)}),
        (node("Pad", "x p", "q", mode="reflect"), AROUND),
        (PAD, pads(0, 1, 1, 1, 0, 0, 1, 1)),
        (PAD, pads(0, 0, 1, 1, 0, 0, -1, 1)),
    ],
)
def test_other_pads_stay_before_the_convolution(pad: Any, constants: Constants) -> None:
    weights = numbers(5, 5 if constants["p"][1] else 4, 3, 3)
    assert ops_after([pad, node("Conv", "q w", "y")], {"w": weights, **constants}) == ["Pad", "Conv"]


def test_pad_stays_before_a_convolution_that_finds_its_own_pads() -> None:
    nodes = [PAD, node("Conv", "q w", "y", auto_pad="SAME_UPPER", strides=[2, 2])]
    assert ops_after(nodes, {**WEIGHTS, **AROUND}) == ["Pad", "Conv"]


POOL = {"kernel_shape": [3, 4], "strides": [2, 1]}


def test_zeros_before_a_maximum_of_values_below_zero_still_count() -> None:
    """ONNX Runtime takes such a Pad for one with less than any value; answers are compared as it optimises them."""
    ops = ops_after([PAD, node("MaxPool", "q", "y", **POOL)], AROUND)
    assert sorted(ops) == ["MaxPool", "Relu", "Where"]


def test_zeros_before_a_maximum_count_even_where_another_takes_them_too() -> None:
    nodes = [PAD, node("MaxPool", "q", "a", **POOL), node("Conv", "q w", "b", strides=[2, 1]), node("Add", "a b", "y")]
    assert "Pad" not in ops_after(nodes, {**AROUND, "w": numbers(4, 4, 3, 4)})


@pytest.mark.parametrize("before", [node("Relu", "x", "r"), node("Clip", "x low", "r"), node("Sigmoid", "x", "r")])
def test_zeros_before_a_maximum_of_other_values_are_its_own_pads(before: Any) -> None:
    nodes = [before, node("Pad", "r p", "q"), node("MaxPool", "q", "y", **POOL)]
    assert ops_after(nodes, {**AROUND, "low": np.float32(0)}) == [before.op_type, "MaxPool"]


def test_pad_as_wide_as_the_window_stays_before_the_maximum() -> None:
    made = model([PAD, node("MaxPool", "q", "y", kernel_shape=[2, 2])], pads(0, 0, 2, 0, 0, 0, 0, 0))
    assert [one.op_type for one in simplified(made).graph.node] == ["Pad", "MaxPool"]


# -- shapes -----------------------------------------------------------------------------------------------------------


def sizes(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("nodes", "constants", "left"),
    [
        ([node("Reshape", "x s", "r"), node("Relu", "r", "y")], {"s": sizes(-1, 4, 7, 6)}, ["Relu"]),
        ([node("Relu", "x", "r"), node("Identity", "r", "i"), node("Abs", "i", "y")], {}, ["Relu", "Abs"]),
        ([node("Reshape", "x s", "r"), node("Relu", "r", "y")], {"s": sizes(-1, 4, 6, 7)}, ["Reshape", "Relu"]),
        ([node("Relu", "x", "r"), node("Identity", "r", "y")], {}, ["Relu", "Identity"]),
        (
            [
                node("GlobalAveragePool", "x", "g"),
                node("Squeeze", "g a", "s"),
                node("Reshape", "s b", "r"),
                node("Conv", "r w", "y"),
            ],
            {"a": sizes(2, 3), "b": sizes(-1, 4, 1, 1), "w": numbers(2, 4, 1, 1)},
            ["GlobalAveragePool", "Conv"],
        ),
        (
            [node("Reshape", "x a", "r"), node("Reshape", "r b", "y")],
            {"a": sizes(-1, 28, 6), "b": sizes(-1, 2, 84)},
            ["Reshape"],
        ),
        (
            [node("Reshape", "x a", "r"), node("Reshape", "r b", "y")],
            {"a": sizes(-1, 28, 6), "b": sizes(0, 2, 84)},
            ["Reshape", "Reshape"],
        ),
    ],
)
def test_idle_nodes_go(nodes: list[Any], constants: Constants, left: list[str]) -> None:
    assert ops_after(nodes, constants) == left


def test_reshape_to_a_computed_shape_gets_a_constant_one() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "n"),
        node("Concat", "n rest", "t", axis=0),
        node("Reshape", "x t", "y"),
    ]
    assert ops_after(nodes, {"zero": sizes(0), "one": sizes(1), "rest": sizes(168)}) == ["Reshape"]


def test_constant_nodes_count_as_constants() -> None:
    value = onnx.numpy_helper.from_array(CHANNELS)
    nodes = [node("Constant", "", "s", value=value), CONV, node("Mul", "c s", "y")]
    assert ops_after(nodes, WEIGHTS) == ["Conv"]


@pytest.mark.parametrize(
    ("shape", "back"), [((-1, 6), (-1, 4, 7, 5)), ((-1, 4), (-1, 7, 6, 5))], ids=["same axis", "other axis"]
)
def test_dense_on_maps_is_a_matrix_product_of_maps(shape: tuple[int, ...], back: tuple[int, ...]) -> None:
    nodes = [node("Reshape", "x s", "r"), node("MatMul", "r w", "m"), node("Reshape", "m t", "y")]
    constants = {"s": sizes(*shape), "t": sizes(*back), "w": numbers(shape[1], 5)}
    direct = ["MatMul"] if shape[1] == 6 else ["Reshape", "MatMul", "Reshape"]
    assert ops_after(nodes, constants) == direct


# -- layout -----------------------------------------------------------------------------------------------------------


def between(*nodes: Any) -> list[Any]:
    """Nodes on channels last, from tensor l to tensor e, between convolutions."""
    return [
        CONV,
        node("Transpose", "c", "l", perm=TO_LAST),
        *nodes,
        node("Transpose", "e", "f", perm=TO_FIRST),
        node("Conv", "f v", "y"),
    ]


INNER: Constants = {**WEIGHTS, "v": numbers(2, 5, 1, 1)}
KEPT = ["Conv", "Conv"]


@pytest.mark.parametrize(
    ("nodes", "constants", "left"),
    [
        ([node("Relu", "l", "e")], {}, ["Relu"]),
        ([node("Relu", "l", "r"), node("Mul", "r l", "e")], {}, ["Relu", "Mul"]),
        ([node("Relu", "l", "r"), node("Add", "r k", "e")], {"k": numbers(5)}, ["Relu", "Add"]),
        ([node("Max", "l k", "e")], {"k": numbers(5, 4, 5)}, ["Max"]),
        ([node("Max", "l k", "e")], {"k": np.float32(0.5)}, ["Max"]),
        ([node("ReduceMean", "l", "m", axes=[1, 2]), node("Mul", "l m", "e")], {}, ["ReduceMean", "Mul"]),
        ([node("ReduceMean", "l", "m", axes=[-1]), node("Sub", "l m", "e")], {}, ["ReduceMean", "Sub"]),
        ([node("Pad", "l p k", "e")], {"p": sizes(0, 1, 0, 2, 0, 0, 3, 0), "k": np.float32(2)}, ["Pad"]),
        ([node("Concat", "l l", "d", axis=1), node("Relu", "d", "e")], {}, ["Concat", "Relu"]),
        ([node("Slice", "l from to axis", "e")], {"from": sizes(1), "to": sizes(3), "axis": sizes(-3)}, ["Slice"]),
        ([node("MatMul", "l k", "m"), node("Add", "m b", "e")], {"k": numbers(5, 5), "b": numbers(5)}, ["Conv"]),
    ],
)
def test_transposes_around_work_on_channels_last_go(nodes: list[Any], constants: Constants, left: list[str]) -> None:
    constants = {**INNER, **constants}
    if nodes[0].op_type == "Pad":
        constants["v"] = numbers(2, 7, 1, 1)
    assert sorted(ops_after(between(*nodes), constants)) == sorted([*KEPT, *left])


def test_mean_over_maps_needs_no_transpose() -> None:
    nodes = [
        CONV,
        node("Transpose", "c", "l", perm=TO_LAST),
        node("ReduceMean", "l", "y", axes=[1, 2], keepdims=0),
    ]
    assert ops_after(nodes, WEIGHTS) == ["Conv", "ReduceMean"]


def test_transpose_that_values_depend_on_stays() -> None:
    nodes = [CONV, node("Transpose", "c", "l", perm=TO_LAST), node("Relu", "l", "r"), node("Reshape", "r s", "y")]
    assert ops_after(nodes, {**WEIGHTS, "s": sizes(-1, 100)}) == ["Conv", "Transpose", "Relu", "Reshape"]


def test_where_transposes_would_become_more_all_stay() -> None:
    nodes = [
        node("Transpose", "x", "l", perm=TO_LAST),
        node("Relu", "l", "a"),
        node("Sigmoid", "l", "b"),
        node("Reshape", "a s", "c"),
        node("Reshape", "b s", "d"),
        node("Add", "c d", "y"),
    ]
    assert ops_after(nodes, {"s": sizes(-1, 168)}).count("Transpose") == 1


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_cast_before_they_are_cut() -> None:
    nodes = [
        node("Slice", "x a b c", "s"),
        node("Transpose", "s", "t", perm=TO_FIRST),
        node("Cast", "t", "f", to=1),
        node("Relu", "f", "y"),
    ]
    ops = ops_after(nodes, {"a": sizes(1), "b": sizes(4), "c": sizes(1)}, ("N", 5, 6, 3), 2)
    assert ops == ["Cast", "Slice", "Transpose", "Relu"]


def test_pictures_that_are_compared_are_not_cast() -> None:
    nodes = [node("Slice", "x a b c", "s"), node("Cast", "s", "f", to=1), node("Equal", "x k", "e")]
    nodes += [node("Cast", "e", "g", to=1), node("Slice", "g a b c", "h"), node("Add", "f h", "y")]
    constants = {"a": sizes(1), "b": sizes(4), "c": sizes(1), "k": np.uint8(7)}
    assert ops_after(nodes, constants, ("N", 5, 6, 3), 2).count("Cast") == 2


# -- whole graphs -----------------------------------------------------------------------------------------------------


def test_names_metadata_and_a_dynamic_batch_stay() -> None:
    made = model([CONV, node("Mul", "c s", "y")], {**WEIGHTS, "s": CHANNELS})
    onnx.helper.set_model_props(made, {"edgeclf.role": "extractor"})
    after = simplified(made)
    assert [value.name for value in [*after.graph.input, *after.graph.output]] == ["x", "y"]
    assert [(entry.key, entry.value) for entry in after.metadata_props] == [("edgeclf.role", "extractor")]
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_operators_of_other_domains_stay_so() -> None:
    made = model([node("Relu", "x", "r"), node("Identity", "r", "i"), node("Abs", "i", "y")], {})
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    made.graph.node[2].CopyFrom(node("Gelu", "i", "y", domain="com.microsoft"))
    assert [(one.op_type, one.domain) for one in simplified(made).graph.node][1:] == [("Gelu", "com.microsoft")]


def test_control_flow_is_refused() -> None:
    made = model([node("Relu", "x", "y")], {})
    body = onnx.helper.make_graph(
        [node("Relu", "x", "z")], "body", [], [onnx.helper.make_tensor_value_info("z", 1, None)]
    )
    loop = node("If", "flag", "w", then_branch=body, else_branch=body)
    made.graph.node.append(loop)
    with pytest.raises(ExportError, match="holds If"):
        simplified(made)


class Chain:
    """Random nodes one behind the other, with branches, as converters leave them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: Constants = {**THREE, **pads(0, 0, 1, 0, 0, 0, 0, 1), "sixth": np.float32(1 / 6)}
        self.last = "x"

    def add(self, op: str, inputs: str = "", **attributes: Any) -> None:
        """Add a node that takes what is named, where {} stands for what the last one gave."""
        source, self.last = self.last, f"t{len(self.nodes)}"
        self.nodes.append(node(op, (inputs or "{}").format(source), self.last, **attributes))

    def numbers(self, *shape: int) -> str:
        """The name of new random constants."""
        name = f"k{len(self.constants)}"
        self.constants[name] = self.rng.normal(0.3, 0.5, shape).astype(np.float32)
        return name

    def convolve(self) -> None:
        self.add("Conv", "{} " + self.numbers(4, 4, 3, 3), pads=[1] * 4)

    def calculate(self) -> None:
        op = self.rng.choice(["Add", "Mul", "Sub"])
        self.add(str(op), f"{self.numbers(4, 1, 1)} {{}}")

    def turn(self) -> None:
        self.add("Transpose", perm=TO_LAST)
        self.add("Sigmoid")
        self.add("Mul", "{} " + self.numbers(4))
        self.add("Transpose", perm=TO_FIRST)

    def hard_swish(self) -> None:
        source = self.last
        self.add("Add", "{} three")
        self.add("Clip", "{} low high")
        self.add("Mul", "{} sixth")
        self.add("Mul", source + " {}")

    def pool(self) -> None:
        self.add("Pad", "{} p")
        self.add("MaxPool", kernel_shape=[2, 2])

    def branch(self) -> None:
        source = self.last
        self.convolve()
        self.add("Add", source + " {}")

    def model(self, length: int = 12) -> Any:
        """The model of so many random steps."""
        steps = [
            self.convolve,
            self.calculate,
            self.turn,
            self.hard_swish,
            self.pool,
            self.branch,
            lambda: self.add("Relu"),
        ]
        for step in self.rng.integers(0, len(steps), length):
            steps[step]()
        self.add("Identity")
        self.nodes[-1].output[0] = "y"
        return model(self.nodes, self.constants)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_give_the_same_answers_with_no_more_nodes(seed: int) -> None:
    before = Chain(seed).model()
    after = simplified(before)
    onnx.checker.check_model(after, full_check=True)
    expected = answers(before)
    bar = 1e-6 + 1e-4 * np.abs(expected).max()
    for optimized in (False, True):
        np.testing.assert_allclose(answers(after, optimized=optimized), expected, rtol=1e-4, atol=bar)
    pooled = sum(one.op_type == "Where" for one in after.graph.node)  # one node more for each
    assert len(after.graph.node) <= len(before.graph.node) + pooled


@pytest.mark.parametrize("seed", range(5))
def test_second_run_changes_nothing(seed: int) -> None:
    once = simplified(Chain(seed).model())
    twice = simplified(once)
    assert [one.op_type for one in twice.graph.node] == [one.op_type for one in once.graph.node]
    np.testing.assert_array_equal(answers(twice), answers(once))


@pytest.mark.parametrize("name", ["theatre", "ucf101_8"])
def test_packaged_extractors_keep_their_answers(name: str) -> None:
    file = Path(__file__).parents[2] / "edgeclf" / "bundles" / f"{name}.edgeclf" / "extractor.onnx"
    before = onnx.load(file)
    after = simplified(before)
    frames = before.graph.input[0]
    shape = [dim.dim_value or 2 for dim in frames.type.tensor_type.shape.dim]
    feeds = {frames.name: np.random.default_rng(3).integers(0, 256, shape, np.uint8)}
    found, expected = (
        ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for made in (after, before)
    )
    assert len(after.graph.node) <= len(before.graph.node)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
