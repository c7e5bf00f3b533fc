"""State dicts that PyTorch wrote in its legacy format, read with NumPy alone and without trusting the file.

The format is that of `_legacy_save` in PyTorch's `torch/serialization.py`, the default before 1.6: five pickles one
after the other (a magic number, the protocol version, facts about the system, the state dict, the keys of the
storages), then for each key, in that order, an int64 count and as many raw little-endian elements.

A pickle is a program, and Python's own unpickler can be led astray even where all names are refused: a memo index of
2**32 takes all memory, tuples nested a million deep as a key overflow the C stack. So `pickle` is not used at all:
`_Pickle` knows the two dozen opcodes that a state dict needs, makes plain values of them and calls nothing.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import BundleError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_FILE_BYTES = 1 << 30

_HINT = "fetch the file again; only state dicts in PyTorch's legacy format can be read"
_MAX_AXES = 32  # as many as NumPy 1 can hold
_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
}
_GLOBALS = {_ORDERED_DICT, _REBUILD_TENSOR, *_STORAGE_DTYPES}


def read_state_dict(path: Path) -> dict[str, NDArray[Any]]:
    """Name to array for every tensor in `path`: read-only views on one copy of the file, with the strides it has.

    Raises BundleError for a file that is missing, damaged, in another format, or holds anything but tensors.
    """
    data = _file_bytes(path)
    try:
        return _state_dict(data)
    except BundleError as error:
        raise BundleError(f"{path} {error.message}", hint=error.hint) from error


def _file_bytes(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise BundleError(f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} that weights may have")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read the weights {path}: {error.strerror}") from error


def _state_dict(data: bytes) -> dict[str, NDArray[Any]]:
    if data.startswith(b"PK"):
        hint = "save it again with torch.save(..., _use_new_zipfile_serialization=False)"
        raise BundleError("is in PyTorch's zip format, which is not supported", hint=hint)
    stream = io.BytesIO(data)
    _check_header(stream)
    pickle = _Pickle()
    tensors = pickle.value(stream)
    _require(isinstance(tensors, dict), "holds no state dict")
    keys = _Pickle().value(stream)
    arrays = _storage_arrays(pickle.storages, keys, memoryview(data), stream.tell())
    return {name: _tensor(name, record, arrays) for name, record in tensors.items()}


def _check_header(stream: io.BytesIO) -> None:
    magic, protocol, system = (_Pickle().value(stream) for _ in range(3))
    _require(_is_count(magic) and magic == MAGIC_NUMBER, "is not a PyTorch file: its magic number is wrong")
    _require(_is_count(protocol) and protocol == PROTOCOL_VERSION, f"has a protocol other than {PROTOCOL_VERSION}")
    _require(isinstance(system, dict) and system.get("little_endian") is True, "is not little-endian")


# -- pickles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that the pickle refers to, one of `_GLOBALS`; it stays a name."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """A run of elements in the file, shared by the tensors that are views on it."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True, slots=True)
class _TensorRecord:
    """A tensor as the pickle describes it, counted in elements; nothing in it has been checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Pickle:
    """One pickle's value, made of None, bool, int, str, tuple, list, dict and the three records above."""

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def value(self, stream: io.BytesIO) -> Any:
        """The value of the pickle that begins where `stream` stands; afterwards the stream stands behind it."""
        try:
            for opcode, operand, _ in pickletools.genops(stream):
                self._step(opcode.name, operand)
            return self._stack.pop()
        except (ValueError, LookupError) as error:
            raise BundleError(f"is cut off or damaged: {error}", hint=_HINT) from error

    def _step(self, opcode: str, operand: Any) -> None:
        if opcode in _LITERALS:
            self._push(operand)
        elif opcode in _CONSTANTS:
            self._push(_CONSTANTS[opcode])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[operand] = self._stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self._push(self._memo[operand])
        elif opcode == "GLOBAL":
            self._push(_global(operand))
        elif step := _STEPS.get(opcode):
            step(self)
        else:
            raise BundleError(f"uses the pickle opcode {opcode}, which weights have no need of", hint=_HINT)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        return self._stack.pop()

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _make_tuple(self, length: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(length)])))

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        _require(isinstance(target, dict) and len(items) % 2 == 0, "is damaged: it sets items of something else")
        for name, value in zip(items[::2], items[1::2], strict=True):
            _require(isinstance(name, str), "has a key that is not a string")
            _require(name not in target, f"holds {name!r} twice")
            target[name] = value

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        _require(isinstance(target, list), "is damaged: it appends to something else")
        target.extend(items)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._push(_result(function, arguments))

    def _refer_to_storage(self) -> None:
        storage = _storage(self._pop())
        known = self.storages.setdefault(storage.key, storage)
        _require(known == storage, f"describes storage {storage.key!r} in two ways")
        self._push(storage)


_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"})
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_STEPS: Mapping[str, Callable[[_Pickle], Any]] = {
    "PROTO": lambda _: None,
    "STOP": lambda _: None,
    "MARK": _Pickle._mark,
    "TUPLE": lambda pickle: pickle._push(tuple(pickle._pop_marked())),
    "TUPLE1": lambda pickle: pickle._make_tuple(1),
    "TUPLE2": lambda pickle: pickle._make_tuple(2),
    "TUPLE3": lambda pickle: pickle._make_tuple(3),
    "EMPTY_DICT": lambda pickle: pickle._push({}),
    "SETITEM": lambda pickle: pickle._set_items([pickle._pop(), pickle._pop()][::-1]),
    "SETITEMS": lambda pickle: pickle._set_items(pickle._pop_marked()),
    "EMPTY_LIST": lambda pickle: pickle._push([]),
    "APPEND": lambda pickle: pickle._append([pickle._pop()]),
    "APPENDS": lambda pickle: pickle._append(pickle._pop_marked()),
    "REDUCE": _Pickle._call,
    "BUILD": _Pickle._pop,  # lets PyTorch's `_metadata` go: versions of the modules, of no use here
    "BINPERSID": _Pickle._refer_to_storage,
}


def _global(name: str) -> _Global:
    _require(name in _GLOBALS, f"asks for {name.replace(' ', '.')}, which weights have no need of")
    return _Global(name)


def _storage(reference: Any) -> _Storage:
    whole = isinstance(reference, tuple) and len(reference) == 6 and reference[5] is None
    _require(whole, "refers to something other than a whole storage")
    _, kind, key, _device, count, _view = reference
    typed = isinstance(kind, _Global) and kind.name in _STORAGE_DTYPES
    _require(typed and isinstance(key, str) and _is_count(count), "has a storage without type, key or count")
    return _Storage(key, _STORAGE_DTYPES[kind.name], count)


def _result(function: Any, arguments: Any) -> Any:
    """What the two permitted calls would give: an empty dictionary, or the record of a tensor."""
    _require(isinstance(function, _Global) and isinstance(arguments, tuple), "calls something that is no function")
    if function.name == _ORDERED_DICT and not arguments:
        return {}
    known = function.name == _REBUILD_TENSOR and len(arguments) >= 4
    _require(known, f"calls {function.name.replace(' ', '.')} in an unknown way")
    return _TensorRecord(*arguments[:4])  # what follows is about gradients


# -- arrays -----------------------------------------------------------------------------------------------------------


def _storage_arrays(
    described: Mapping[str, _Storage], keys: Any, data: memoryview, offset: int
) -> dict[str, NDArray[Any]]:
    """Key to flat array; `keys` are in file order, the count of the first storage stands at `offset`."""
    unique = isinstance(keys, list) and all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys)
    _require(unique and set(keys) == set(described), "lists other storages than its tensors use")
    arrays = {}
    for key in keys:
        storage = described[key]
        begin = offset + 8
        _require(begin <= len(data), f"ends before storage {key!r}")
        count = int.from_bytes(data[offset:begin], "little", signed=True)
        _require(count == storage.count, f"has {count} elements in storage {key!r}, its tensors say {storage.count}")
        offset = begin + count * storage.dtype.itemsize
        _require(offset <= len(data), f"ends {offset - len(data)} bytes before the end of storage {key!r}")
        arrays[key] = np.frombuffer(data[begin:offset], storage.dtype)
    _require(offset == len(data), f"has {len(data) - offset} bytes behind its last storage")
    return arrays


def _tensor(name: str, record: Any, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The view on its storage that `record` describes, once it is sure to stay inside."""
    is_tensor = isinstance(record, _TensorRecord) and isinstance(record.storage, _Storage)
    _require(is_tensor, f"holds {name!r}, which is not a tensor")
    size, stride, flat = record.size, record.stride, arrays[record.storage.key]
    paired = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= _MAX_AXES
    counted = paired and all(_is_count(n) for n in (record.offset, *size, *stride)) and 0 not in size
    _require(counted, f"gives tensor {name!r} an impossible size, stride or offset")
    steps = [step if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    last = record.offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    # The second half refuses strides of 0 that would blow a few bytes up to terabytes in the first copy.
    inside = last < flat.size and prod(size) <= flat.size
    _require(inside, f"lets tensor {name!r} reach outside its storage of {flat.size} elements")
    byte_steps = [step * flat.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(flat[record.offset :], size, byte_steps, writeable=False)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BundleError(message, hint=_HINT)
