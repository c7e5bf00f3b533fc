"""Writes small ONNX files with nothing but the protocol buffer wire format.

The runtime's own environment has no `onnx` package, and its tests must not need one.
Field numbers are those of onnx.proto3 (github.com/onnx/onnx).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7}


@dataclass(frozen=True)
class Node:
    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int | Sequence[int]] | None = None


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: Sequence[int | str]


def onnx_bytes(
    nodes: Sequence[Node], inputs: Sequence[Tensor], outputs: Sequence[Tensor], constants: Mapping[str, NDArray[Any]]
) -> bytes:
    graph = b"".join(
        [
            *(_message(1, _node(node)) for node in nodes),
            _text(2, "test"),
            *(_message(5, _constant(name, array)) for name, array in constants.items()),
            *(_message(11, _value(tensor)) for tensor in inputs),
            *(_message(12, _value(tensor)) for tensor in outputs),
        ]
    )
    opset = _text(1, "") + _integer(2, 17)
    return _integer(1, 8) + _text(2, "edgeclf tests") + _message(7, graph) + _message(8, opset)


def _node(node: Node) -> bytes:
    attributes = (_message(5, _attribute(name, value)) for name, value in (node.attributes or {}).items())
    inputs = (_text(1, name) for name in node.inputs)
    outputs = (_text(2, name) for name in node.outputs)
    return b"".join([*inputs, *outputs, _text(4, node.op), *attributes])


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _integer(3, value) + _integer(20, 2)
    return _text(1, name) + b"".join(_integer(8, number) for number in value) + _integer(20, 7)


def _constant(name: str, array: NDArray[Any]) -> bytes:
    dims = b"".join(_integer(1, size) for size in array.shape)
    return dims + _integer(2, ELEMENT_TYPES[str(array.dtype)]) + _text(8, name) + _message(9, array.tobytes())


def _value(tensor: Tensor) -> bytes:
    dims = b"".join(
        _message(1, _text(2, size) if isinstance(size, str) else _integer(1, size)) for size in tensor.shape
    )
    kind = _integer(1, ELEMENT_TYPES[tensor.dtype]) + _message(2, dims)
    return _text(1, tensor.name) + _message(2, _message(1, kind))


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (2**64 - 1))


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
