"""An ONNX model opened for change: nodes that can be taken out, replaced and added in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import ExportError

Shape = tuple["int | None", ...]  # None where a size is not known, as that of the batch


@dataclass(eq=False, slots=True)
class Node:
    """One node, with ONNX's own attributes by name."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""

    @property
    def output(self) -> str:
        """The only or first output."""
        return self.outputs[0]

    def value(self, name: str, default: Any = None) -> Any:
        """What an attribute says."""
        from onnx import helper

        return helper.get_attribute_value(self.attributes[name]) if name in self.attributes else default

    def set(self, **values: Any) -> None:
        """Give attributes other values."""
        from onnx import helper

        self.attributes.update({name: helper.make_attribute(name, value) for name, value in values.items()})

    def other(self, name: str) -> str:
        """Of two inputs that which is not called `name`."""
        return self.inputs[1] if self.inputs[0] == name else self.inputs[0]


class Net:
    """An ONNX model opened for change: nodes in any order, constants as arrays, and the shapes that are known.

    A name always stands for one and the same tensor: a node that takes over another's work takes over the name of its
    output. Raises ExportError for a model whose nodes hold graphs (Loop, Scan, If).
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper, shape_inference

        if control := sorted({node.op_type for node in model.graph.node if any(_has_graph(a) for a in node.attribute)}):
            raise ExportError(f"the graph holds {', '.join(control)}", hint="use layers without control flow")
        self._model = model
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        self.nodes = [_node(proto) for proto in graph.node if proto.op_type != "Constant"]
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        for proto in graph.node:
            if proto.op_type == "Constant":
                self.constants[proto.output[0]] = _constant(proto)
        values = [*graph.value_info, *graph.input, *graph.output]
        self.shapes = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
        self.shapes.update({name: array.shape for name, array in self.constants.items()})
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.results = {value.name for value in graph.output}
        self._makers: dict[str, Node] = {}
        self._users: dict[str, list[Node]] = {}
        self._added: dict[tuple[str, Shape, str], str] = {}
        self._taken = {name for node in self.nodes for name in [*node.inputs, *node.outputs]}

    # -- questions ----------------------------------------------------------------------------------------------------

    def maker(self, name: str) -> Node | None:
        """The node that gives a tensor; None for inputs and constants."""
        self._index()
        return self._makers.get(name)

    def made_by(self, name: str, op: str) -> Node | None:
        """The node that gives a tensor, if it is an `op`."""
        node = self.maker(name)
        return node if node is not None and node.op == op else None

    def users(self, name: str) -> list[Node]:
        """The nodes that take a tensor; one that takes it twice stands there once."""
        self._index()
        return self._users.get(name, [])

    def only_user(self, node: Node) -> Node | None:
        """The node that takes all that `node` gives; None where there are several or it is a result of the graph."""
        users = self.users(node.output)
        return users[0] if len(users) == 1 and node.output not in self.results else None

    def number(self, name: str) -> float | None:
        """The value of a constant that is a single number."""
        array = self.constants.get(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def of(self, *ops: str) -> Iterator[Node]:
        """The nodes of these kinds that are still there when their turn comes."""
        for node in list(self.nodes):
            if node.op in ops and self.maker(node.output) is node:
                yield node

    # -- changes ------------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """To be called once nodes have changed."""
        self._makers.clear()

    def constant(self, array: NDArray[Any]) -> str:
        """The name of a new constant, or of an equal one that was added before, so that shared weights stay shared."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        if key not in self._added:
            name = self._added[key] = self.new_name()
            self.constants[name] = array
            self.shapes[name] = array.shape
        return self._added[key]

    def node(self, op: str, inputs: Sequence[str], output: str = "", shape: Shape | None = None, **values: Any) -> Node:
        """Add a node; it gives the tensor `output`, or a new one of a shape."""
        made = Node(op, list(inputs), [output or self.new_name()])
        made.set(**values)
        if shape is not None:
            self.shapes[made.output] = shape
        self.nodes.append(made)
        self.changed()
        return made

    def remove(self, *nodes: Node) -> None:
        """Take nodes out."""
        self.nodes = [node for node in self.nodes if node not in nodes]
        self.changed()

    def new_name(self) -> str:
        """A name that no tensor has."""
        name = f"made_{len(self._taken)}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def bypass(self, node: Node) -> None:
        """Let those that use `node` use its first input, where it is no result of the graph."""
        if node.output in self.results:
            return
        for user in self.users(node.output):
            user.inputs[:] = [node.inputs[0] if name == node.output else name for name in user.inputs]
        self.remove(node)

    def absorb(self, node: Node, last: Node, *between: Node) -> None:
        """Let `node`, which now does all of it, give what `last` gave."""
        node.outputs[:] = last.outputs
        self.remove(last, *between)

    def drop_unused(self) -> None:
        """Take out the nodes that nothing depends on."""
        wanted, waiting = set(), [self.maker(name) for name in self.results]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in wanted:
                wanted.add(node)
                waiting += [self.maker(name) for name in node.inputs]
        self.nodes = [node for node in self.nodes if node in wanted]
        self.changed()

    def model(self) -> Any:
        """The ONNX model, its nodes in an order in which they can run."""
        from onnx import ModelProto, numpy_helper

        model = ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        nodes = self._in_order()
        graph.node.extend(_proto(node) for node in nodes)
        taken = {name for node in nodes for name in node.inputs} | self.results
        graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in taken
        )
        return model

    def _in_order(self) -> list[Node]:
        makers = {node: [self.maker(name) for name in node.inputs] for node in self.nodes}
        order = TopologicalSorter({node: [one for one in made if one] for node, made in makers.items()})
        return list(order.static_order())

    def _index(self) -> None:
        if self._makers or not self.nodes:
            return
        self._users = {}
        for node in self.nodes:
            self._makers.update(dict.fromkeys(node.outputs, node))
            for name in dict.fromkeys(node.inputs):
                self._users.setdefault(name, []).append(node)


def _has_graph(attribute: Any) -> bool:
    return bool(attribute.HasField("g") or attribute.graphs)


def _node(proto: Any) -> Node:
    attributes = {each.name: each for each in proto.attribute}
    return Node(proto.op_type, list(proto.input), list(proto.output), attributes, proto.domain)


def _proto(node: Node) -> Any:
    from onnx import helper

    made = helper.make_node(node.op, node.inputs, node.outputs, domain=node.domain)
    made.attribute.extend(node.attributes.values())
    return made


def _constant(proto: Any) -> NDArray[Any]:
    from onnx import helper, numpy_helper

    (attribute,) = proto.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, np.int64 if attribute.name.startswith("value_int") else np.float32)


def _shape(value: Any) -> Shape:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)
