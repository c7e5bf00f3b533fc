"""The same ONNX graph with fewer nodes: what a converter left undone, and what TensorRT and OpenVINO run badly.

Each pass looks for one pattern and puts another in its place that computes the same. Constants are folded in float64
and rounded once, so that answers differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.export.net import Net, Node

_ELEMENTWISE = frozenset(
    {"Abs", "Cast", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Neg", "Reciprocal"}
    | {"Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Tanh"}
)
_OF_TWO = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})
_IDLE = frozenset({"Identity", "Reshape", "Transpose"})
_MOVING = frozenset({"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
_UINT8, _FLOAT = 2, 1  # as ONNX numbers element types


def simplified(model: Any) -> Any:
    """The same ONNX model after all passes; metadata and the names of inputs and outputs stay.

    Raises ExportError where nodes hold graphs (Loop, Scan, If).
    """
    net = Net(model)
    for step in PASSES:
        step(net)
        net.drop_unused()
    return net.model()


# -- pictures ---------------------------------------------------------------------------------------------------------


def cast_first(net: Net) -> None:
    """Cut or turn uint8 pictures and then cast them: cast them first; TensorRT takes uint8 into Cast alone."""
    for name in [name for name, kind in net.inputs.items() if kind == _UINT8]:
        users, casts = net.users(name), _casts_behind(net, name)
        if casts and any(user.op != "Cast" for user in users) and {cast.value("to") for cast in casts} == {_FLOAT}:
            first = net.node("Cast", [name], shape=net.shapes[name], to=_FLOAT)
            for user in users:
                user.inputs[:] = [first.output if each == name else each for each in user.inputs]
            for cast in casts:
                net.bypass(cast)


def _casts_behind(net: Net, name: str) -> list[Node] | None:
    """The Casts that all values of a tensor come to, each by nothing but cutting and turning; None if some do not."""
    found: list[Node] = []
    for user in net.users(name):
        if user.op == "Cast" and user.output not in net.results:
            found.append(user)
            continue
        below = [_casts_behind(net, made) for made in user.outputs] if user.op in _MOVING else [None]
        if None in below or user.inputs[0] != name:
            return None
        found += [cast for casts in below for cast in casts or []]
    return None if name in net.results else found


# -- shapes -----------------------------------------------------------------------------------------------------------


def fix_reshapes(net: Net) -> None:
    """Reshape to a computed shape of which all sizes but the batch are known: to a constant one."""
    for node in net.of("Reshape"):
        shape = net.shapes.get(node.output)
        if node.inputs[1] not in net.constants and shape is not None and shape.count(None) <= 1:
            node.inputs[1] = net.constant(np.array([-1 if size is None else size for size in shape], np.int64))
            net.changed()


def drop_idle(net: Net) -> None:
    """Identity, Reshape to the shape that is there, Transpose that moves nothing: nothing."""
    for node in net.of(*_IDLE):
        if node.op == "Identity" or _keeps_shape(net, node) or _moves_nothing(node):
            net.bypass(node)


def _keeps_shape(net: Net, node: Node) -> bool:
    shape = net.shapes.get(node.output)
    return (
        node.op == "Reshape"
        and shape == net.shapes.get(node.inputs[0])
        and shape is not None
        and shape.count(None) <= 1
    )


def _moves_nothing(node: Node) -> bool:
    return node.op == "Transpose" and (perm := node.value("perm")) is not None and perm == sorted(perm)


def merge_reshapes(net: Net) -> None:
    """Reshape or Squeeze, and then Reshape to constant sizes: the second Reshape alone."""
    for node in net.of("Reshape"):
        shape = net.constants.get(node.inputs[1])
        before = net.made_by(node.inputs[0], "Squeeze") or net.made_by(node.inputs[0], "Reshape")
        if shape is not None and before is not None and (shape != 0).all():  # 0 stands for the size that comes in
            node.inputs[0] = before.inputs[0]
            net.changed()


def plain_matmul(net: Net) -> None:
    """Reshape to a matrix, MatMul with a constant, Reshape back: MatMul; Keras' Dense on feature maps."""
    for product in net.of("MatMul"):
        into, back = net.made_by(product.inputs[0], "Reshape"), net.only_user(product)
        if into is None or back is None or back.op != "Reshape" or len(net.shapes.get(into.output, ())) != 2:
            continue
        weights, shape = net.constants.get(product.inputs[1]), net.shapes.get(into.inputs[0], ())
        if weights is None or weights.ndim != 2 or shape.count(None) > 1:
            continue
        name, (rows, columns) = into.inputs[0], weights.shape
        if len(shape) > 2 and shape[1] == rows and set(shape[2:]) == {1}:  # a picture of one pixel
            shape = (shape[0], *shape[2:], rows)
            name = net.node("Transpose", [name], shape=shape, perm=_to_last(len(shape))).output
        if shape[-1] == rows and net.shapes.get(back.output) == (*shape[:-1], columns):
            product.inputs[0] = name
            net.absorb(product, back)


# -- layout -----------------------------------------------------------------------------------------------------------


def sink_transposes(net: Net) -> None:
    """Transposes to channels last: moved down until they meet one back, where both go.

    tf2onnx gives up on all of them where it meets a scalar constant in an Add behind a convolution without bias
    (`_add_handler` of its transpose optimizer), as in MobileNetV3, and never moves one past a MatMul.
    """
    before, kept = _transposes(net), (list(net.nodes), {node: _copy(node) for node in net.nodes})
    while any(_sink(net, node) for node in net.of("Transpose")):
        pass
    drop_idle(net)
    net.drop_unused()
    if _transposes(net) >= before:
        nodes, copies = kept
        for node in nodes:
            node.op, node.inputs, node.outputs, node.attributes = copies[node]
        net.nodes = nodes
        net.changed()


def _copy(node: Node) -> tuple[str, list[str], list[str], dict[str, Any]]:
    return node.op, list(node.inputs), list(node.outputs), dict(node.attributes)


def _transposes(net: Net) -> int:
    return sum(node.op == "Transpose" for node in net.nodes)


def _to_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _sink(net: Net, transpose: Node) -> bool:
    """True once the Transpose has moved behind at least one of the nodes that use it."""
    perm = transpose.value("perm", [])
    if len(perm) < 3 or perm != _to_last(len(perm)):
        return False
    users = net.users(transpose.output)
    return sum(_MOVES[user.op](net, transpose, user) for user in users if user.op in _MOVES) > 0


def _move(net: Net, user: Node, perm: Sequence[int]) -> bool:
    """Let `user`, whose inputs have lost their Transposes, give its output to a new Transpose."""
    name, shape = user.output, net.shapes.get(user.output)
    back = None if shape is None else tuple(shape[place] for place in np.argsort(perm))
    user.outputs[0] = net.new_name()
    if back is not None:
        net.shapes[user.output] = back
    net.node("Transpose", [user.output], name, perm=list(perm))
    return True


def _past_elementwise(net: Net, transpose: Node, user: Node) -> bool:
    user.inputs[0] = transpose.inputs[0]
    return _move(net, user, transpose.value("perm"))


def _past_two(net: Net, transpose: Node, user: Node) -> bool:
    """Past an operation whose other side is a constant or has gone through an equal Transpose."""
    perm = transpose.value("perm")
    inputs = [_before(net, name, perm) for name in user.inputs]
    if any(name is None for name in inputs):
        return False
    user.inputs[:] = [name for name in inputs if name is not None]
    return _move(net, user, perm)


def _before(net: Net, name: str, perm: Sequence[int]) -> str | None:
    """The tensor that an equal Transpose makes `name` of, if there is one."""
    array = net.constants.get(name)
    if array is None:
        maker = net.made_by(name, "Transpose")
        return maker.inputs[0] if maker is not None and maker.value("perm") == list(perm) else None
    if array.ndim > len(perm):
        return None
    if array.size == 1:
        return name
    return net.constant(array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(np.argsort(perm)))


def _past_transpose(net: Net, transpose: Node, user: Node) -> bool:
    first = transpose.value("perm")
    user.inputs[0] = transpose.inputs[0]
    user.set(perm=[first[place] for place in user.value("perm")])
    net.changed()
    return True


def _past_mean(net: Net, transpose: Node, user: Node) -> bool:
    perm = transpose.value("perm")
    axes = user.value("axes")
    if axes is None:
        return False
    axes = sorted(axis % len(perm) for axis in axes)
    left = [perm[axis] for axis in range(len(perm)) if axis not in axes]
    keeps = user.value("keepdims", 1)
    if not keeps and left != sorted(left):
        return False
    user.inputs[0] = transpose.inputs[0]
    user.set(axes=sorted(perm[axis] for axis in axes))
    net.changed()
    return _move(net, user, perm) if keeps else True


def _past_slice(net: Net, transpose: Node, user: Node) -> bool:
    perm = transpose.value("perm")
    axes = net.constants.get(user.inputs[3]) if len(user.inputs) > 3 else None
    if axes is None:
        return False
    user.inputs[0] = transpose.inputs[0]
    user.inputs[3] = net.constant(np.array([perm[axis] for axis in axes], np.int64))
    return _move(net, user, perm)


def _past_pad(net: Net, transpose: Node, user: Node) -> bool:
    perm, pads = transpose.value("perm"), net.constants.get(user.inputs[1])
    if pads is None or len(user.inputs) > 3:
        return False
    order = np.argsort(perm)
    user.inputs[:2] = [transpose.inputs[0], net.constant(pads.reshape(2, -1)[:, order].reshape(-1))]
    return _move(net, user, perm)


def _past_concat(net: Net, transpose: Node, user: Node) -> bool:
    perm = transpose.value("perm")
    axis = perm[user.value("axis") % len(perm)]
    if any(name in net.constants for name in user.inputs) or not _past_two(net, transpose, user):
        return False
    user.set(axis=axis)
    return True


def _past_matmul(net: Net, transpose: Node, user: Node) -> bool:
    """MatMul with a constant on the channels: a convolution of single pixels."""
    weights = net.constants.get(user.inputs[1])
    if weights is None or weights.ndim != 2 or user.inputs[0] != transpose.output:
        return False
    perm = transpose.value("perm")
    user.op = "Conv"
    kernel = weights.T.reshape(*weights.T.shape, *(1 for _ in perm[2:]))
    user.inputs[:] = [transpose.inputs[0], net.constant(kernel)]
    return _move(net, user, perm)


_MOVES: dict[str, Callable[[Net, Node, Node], bool]] = {
    **dict.fromkeys(_ELEMENTWISE, _past_elementwise),
    **dict.fromkeys(_OF_TWO, _past_two),
    "Transpose": _past_transpose,
    "ReduceMean": _past_mean,
    "Pad": _past_pad,
    "Slice": _past_slice,
    "Concat": _past_concat,
    "MatMul": _past_matmul,
}


# -- convolutions -----------------------------------------------------------------------------------------------------


def fuse_hard_sigmoid(net: Net) -> None:
    """Clip of x + b to 0 and h, times 1/h, as `relu6(x + 3) / 6`: one HardSigmoid."""
    for clip in net.of("Clip"):
        low, high = (net.number(name) for name in [*clip.inputs, "", ""][1:3])
        scale = net.only_user(clip)
        factor = None if scale is None else _factor(net, scale, clip.output)
        if scale is None or factor is None or low != 0 or not high or abs(high * factor - 1) > 1e-6:
            continue
        source, shift = _shifted(net, clip.inputs[0])
        fused = net.node("HardSigmoid", [source], alpha=factor, beta=shift * factor)
        net.absorb(fused, scale, clip)


def _factor(net: Net, node: Node, name: str) -> float | None:
    """By what a Mul or a Div multiplies the tensor `name`."""
    number = net.number(node.other(name)) if len(node.inputs) == 2 else None
    if number is None or node.op == "Mul":
        return number
    return 1 / number if node.op == "Div" and node.inputs[0] == name and number else None


def _shifted(net: Net, name: str) -> tuple[str, float]:
    """The tensor and the number that `name` is the sum of."""
    node = net.made_by(name, "Add")
    for one, other in ((0, 1), (1, 0)):
        if node is not None and (shift := net.number(node.inputs[one])) is not None:
            return node.inputs[other], shift
    return name, 0.0


def fold_into_convolutions(net: Net) -> None:
    """Mul, Div, Add and Sub of a number per channel after Conv: into its weights; batch normalisation is of these."""
    for conv in net.of("Conv"):
        while (user := net.only_user(conv)) is not None and _fold(net, conv, user):
            net.absorb(conv, user)


def _fold(net: Net, conv: Node, user: Node) -> bool:
    """True once the weights of `conv` do what `user` did."""
    weights = net.constants.get(conv.inputs[1])
    bias = net.constants.get(conv.inputs[2]) if len(conv.inputs) > 2 else None
    numbers = None if weights is None else _per_channel(net, conv, user, weights.ndim, len(weights))
    if weights is None or numbers is None or (len(conv.inputs) > 2 and bias is None):
        return False
    scale, shift = _affine(user, numbers, first=user.inputs[0] == conv.output)
    zero = np.zeros(len(weights), weights.dtype)
    kernel = weights * scale.reshape(-1, *(1 for _ in weights.shape[1:]))
    summed = (zero if bias is None else bias) * scale + shift
    conv.inputs[1:] = [net.constant(array.astype(weights.dtype)) for array in (kernel, summed)]
    return True


def _per_channel(net: Net, conv: Node, user: Node, rank: int, channels: int) -> NDArray[np.float64] | None:
    """The constant that `user` combines with the output of `conv`, as one number for each channel."""
    if user.op not in {"Mul", "Div", "Add", "Sub"} or (user.op == "Div" and user.inputs[0] != conv.output):
        return None
    array = net.constants.get(user.other(conv.output))
    if array is None or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[1] not in {1, channels} or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), channels)


def _affine(
    user: Node, numbers: NDArray[np.float64], *, first: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By what `user` multiplies and what it adds; first: the convolution is its first input."""
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    if user.op == "Add":
        return ones, numbers
    if user.op == "Sub":
        return (ones, -numbers) if first else (-ones, numbers)
    return (numbers if user.op == "Mul" else ones / numbers), zeros


# -- padding ----------------------------------------------------------------------------------------------------------


def sink_pads(net: Net) -> None:
    """Pad and then Transpose: the other way round, so that Pad meets the convolution."""
    for transpose in net.of("Transpose"):
        pad, perm = net.made_by(transpose.inputs[0], "Pad"), transpose.value("perm")
        pads = None if pad is None else net.constants.get(pad.inputs[1])
        if pad is None or pads is None or len(pad.inputs) > 3 or net.only_user(pad) is not transpose:
            continue
        result, turned, shape = transpose.output, net.new_name(), net.shapes.get(pad.inputs[0])
        transpose.inputs[0], transpose.outputs[0] = pad.inputs[0], turned
        pad.inputs[:2] = [turned, net.constant(pads.reshape(2, -1)[:, perm].reshape(-1))]
        pad.outputs[0] = result
        if shape is not None:
            net.shapes[turned] = tuple(shape[place] for place in perm)
        net.changed()


def fold_pads(net: Net) -> None:
    """Pad with zeros before Conv: into its own pads; before MaxPool too, with the zeros put back where they count."""
    for pad in net.of("Pad"):
        extra = _zero_pads(net, pad)
        for user in list(net.users(pad.output)):
            if extra is not None and user.inputs[0] == pad.output and user.value("auto_pad", b"NOTSET") == b"NOTSET":
                _fold_pad(net, pad, user, extra)
                net.changed()


def _fold_pad(net: Net, pad: Node, user: Node, extra: NDArray[np.int64]) -> None:
    if user.op == "Conv":
        user.set(pads=(extra + user.value("pads", [0] * extra.size)).tolist())
        user.inputs[0] = pad.inputs[0]
    if user.op == "MaxPool":
        _pad_pooling(net, pad, user, extra)


def _zero_pads(net: Net, pad: Node) -> NDArray[np.int64] | None:
    """The pads of height and width, begins and then ends, of a Pad that adds zeros there alone."""
    pads = net.constants.get(pad.inputs[1])
    value = net.number(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] else 0.0
    if pads is None or value != 0 or pad.value("mode", b"constant") != b"constant" or len(pad.inputs) > 3:
        return None
    pads = pads.reshape(2, -1)
    return None if pads[:, :2].any() or (pads < 0).any() else pads[:, 2:].reshape(-1)


def _pad_pooling(net: Net, pad: Node, pool: Node, extra: NDArray[np.int64]) -> None:
    """MaxPool pads with less than any value: where a window holds zeros of the Pad, nothing may come out below zero.

    It has to go even so: ONNX Runtime 1.31 folds such a Pad into MaxPool, which then gives other values at the border
    (its PadFusion, microsoft/onnxruntime#18136).
    """
    size, kernel = net.shapes.get(pad.inputs[0], ())[2:], pool.value("kernel_shape")
    if not size or None in size or not _is_plain(pool) or (extra >= [*kernel, *kernel]).any():
        return
    pool.set(pads=extra.tolist())
    pool.inputs[0] = pad.inputs[0]
    if not _is_never_negative(net, pad.inputs[0]):
        strides = pool.value("strides", [1] * len(kernel))
        border = _border([int(each or 0) for each in size], extra, kernel, strides)
        result, pool.outputs[0] = pool.output, net.new_name()
        floored = net.node("Relu", [pool.output])
        net.node("Where", [net.constant(border), floored.output, pool.output], result)


def _is_plain(pool: Node) -> bool:
    """True for a MaxPool that does not pad by itself, with nothing that is seldom used."""
    dilations, rounds_up = pool.value("dilations", [1]), pool.value("ceil_mode", 0)
    return len(pool.outputs) == 1 and not any(pool.value("pads", [])) and not rounds_up and set(dilations) == {1}


def _is_never_negative(net: Net, name: str) -> bool:
    maker = net.maker(name)
    if maker is None or maker.op != "Clip":
        return maker is not None and maker.op in {"HardSigmoid", "Relu", "Sigmoid"}
    lowest = net.number(maker.inputs[1]) if len(maker.inputs) > 1 else None
    return lowest is not None and lowest >= 0


def _border(
    size: Sequence[int], pads: NDArray[np.int64], kernel: Sequence[int], strides: Sequence[int]
) -> NDArray[np.bool_]:
    """Which windows of a padded picture reach beyond the picture, (1, 1, ...)."""
    beyond = np.zeros((1, 1, *(1 for _ in size)), bool)
    for axis, (length, begin, end) in enumerate(zip(size, pads, pads[len(size) :], strict=False)):
        starts = np.arange(0, length + begin + end - kernel[axis] + 1, strides[axis])
        reaches = (starts < begin) | (starts + kernel[axis] > begin + length)
        beyond = beyond | reaches.reshape(-1, *(1 for _ in size[axis + 1 :]))
    return beyond


Pass = Callable[[Net], None]

PASSES: tuple[Pass, ...] = (
    cast_first,
    fix_reshapes,
    merge_reshapes,
    drop_idle,
    plain_matmul,
    sink_transposes,
    fuse_hard_sigmoid,
    fold_into_convolutions,
    sink_pads,
    fold_pads,
)
