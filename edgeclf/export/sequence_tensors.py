"""What stands in an ONNX graph for each of Keras' tensors while a sequence model is converted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeclf.export.graph import Graph
from edgeclf.export.recurrent import States

LENGTH = "length"


class Mask:
    """The model's mask, (N, T): true for the frames of a clip, which stand first."""


MASK = Mask()

Value = str | States | Mask  # a string names a tensor that has Keras' axes


@dataclass
class Tensors:
    """The graph so far, and what has been made of Keras' tensors.

    States and the mask become tensors only where an operation besides the recurrent layers asks for them.
    """

    length: int  # T
    graph: Graph = field(default_factory=Graph)
    values: dict[int, Value] = field(default_factory=dict)  # by the identity of a Keras tensor
    _made: dict[Value, str] = field(default_factory=dict)  # tensors of states and of the mask

    def name(self, tensor: Any) -> str:
        """The name of a Keras tensor with its axes, or of a constant."""
        if not is_symbolic(tensor):
            return self.graph.constant(np.asarray(tensor, np.float32))
        value = self.values[id(tensor)]
        return value if isinstance(value, str) else self._made_of(value)

    def numbers(self, tensor: Any) -> str:
        """The same in float32; the mask is 1 where it is true."""
        from onnx import TensorProto

        name = self.name(tensor)
        return self.graph.node("Cast", [name], to=TensorProto.FLOAT) if self.is_mask(tensor) else name

    def frames_first(self, tensor: Any, *, masked: bool) -> str:
        """The name of (T, N, F). masked: nobody looks at what stands behind the end of a clip."""
        value = self.values[id(tensor)]
        if isinstance(value, States) and (masked or not value.masked):
            return value.frames
        return self.graph.node("Transpose", [self.name(tensor)], perm=[1, 0, 2])

    def is_mask(self, tensor: Any) -> bool:
        """Whether this is the model's mask."""
        return is_symbolic(tensor) and self.values[id(tensor)] is MASK

    def mask_of_rows(self) -> str:
        """The mask as (N, T, 1)."""
        return self.graph.node("Unsqueeze", [self._made_of(MASK), self.graph.integers(2)])

    def _made_of(self, value: States | Mask) -> str:
        if value not in self._made:
            self._made[value] = self._rows(value) if isinstance(value, States) else self._mask()
        return self._made[value]

    def _mask(self) -> str:
        """Whether the place of a frame is below the length of its clip."""
        places = self.graph.constant(np.arange(self.length, dtype=np.int32))
        return self.graph.node("Less", [places, self.graph.node("Unsqueeze", [LENGTH, self.graph.integers(1)])])

    def _rows(self, states: States) -> str:
        """(N, T, units), behind the end of a clip its last state again, as in Keras."""
        rows = self.graph.node("Transpose", [states.frames], perm=[1, 0, 2])
        if not states.masked:
            return rows
        last = self.graph.node("Transpose", [states.last], perm=[1, 0, 2])
        return self.graph.node("Where", [self.mask_of_rows(), rows, last])


def is_symbolic(value: Any) -> bool:
    """Whether this is a tensor of the Keras model rather than a constant."""
    return hasattr(value, "_keras_history")
