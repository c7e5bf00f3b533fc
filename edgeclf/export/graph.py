"""An ONNX graph while it is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 17
IR_VERSION = 8


@dataclass
class Graph:
    """Nodes and constants in the order in which they were added, which also names them."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    _integers: dict[tuple[int, ...], str] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], *, outputs: Sequence[str | None] = ("",), **attributes: Any) -> str:
        """Add a node; its name, to which each of its outputs adds its own ending. None leaves an output out."""
        from onnx import helper

        name = f"{op.lower()}_{len(self.nodes)}"
        made = ["" if ending is None else name + ending for ending in outputs]
        self.nodes.append(helper.make_node(op, inputs, made, name=name, **attributes))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        """The name of an int64 constant, such as axes and shapes; the same values stand in the graph once."""
        if values not in self._integers:
            self._integers[values] = self.constant(np.array(values, np.int64))
        return self._integers[values]

    def model(self, name: str, inputs: Sequence[Any], result: str, output: Any) -> Any:
        """The checked ONNX model whose tensor `result` becomes the output that is described."""
        for node in self.nodes:
            for tensors in (node.input, node.output):
                tensors[:] = [output.name if tensor == result else tensor for tensor in tensors]
        return checked_model(name, self.nodes, inputs, output, self.constants)


def checked_model(name: str, nodes: Sequence[Any], inputs: Sequence[Any], output: Any, constants: Sequence[Any]) -> Any:
    """The ONNX model of one graph, in our versions; nothing in it depends on when and where it was made."""
    from onnx import checker, helper

    made = helper.make_model(
        helper.make_graph(nodes, name, inputs, [output], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgeclf",
    )
    checker.check_model(made, full_check=True)
    return made


def checked_again(model: Any) -> Any:
    """A model that a tool has rewritten: checked, in our version, without its maker and domains that are not used."""
    from onnx import checker

    used = {"", *(node.domain for node in model.graph.node)}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "edgeclf", ""
    checker.check_model(model, full_check=True)
    return model
