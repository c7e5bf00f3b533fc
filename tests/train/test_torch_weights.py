"""The reader of legacy PyTorch files, on files built here opcode by opcode."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import BundleError
from edgeclf.train import torch_weights
from edgeclf.train.torch_weights import MAGIC_NUMBER, PROTOCOL_VERSION, read_state_dict

PROTO, STOP = b"\x80\x02", b"."
EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def ops(value: Any) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


@dataclass(frozen=True)
class Storage:
    """What a file says about a storage in its pickle (`kind`, `key`, `count`) and behind it (`data`)."""

    data: NDArray[Any]
    kind: str = "FloatStorage"
    key: str = "1"
    count: int | None = None

    @property
    def reference(self) -> bytes:
        count = self.data.size if self.count is None else self.count
        kind = b"ctorch\n" + self.kind.encode() + b"\n"
        return b"(" + ops("storage") + kind + ops(self.key) + ops("cpu") + ops(count) + b"NtQ"

    @property
    def block(self) -> bytes:
        return struct.pack("<q", self.data.size) + self.data.tobytes()


def tensor(storage: Storage, size: Any, stride: Any, offset: Any = 0) -> bytes:
    fields = storage.reference + ops(offset) + ops(size) + ops(stride) + b"\x89" + EMPTY_ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + fields + b"tR"


def state_dict(*named: tuple[Any, bytes]) -> bytes:
    items = b"".join(ops(name) + value for name, value in named)
    return PROTO + EMPTY_ORDERED_DICT + b"(" + items + b"u" + STOP


def header(magic: Any = MAGIC_NUMBER, protocol: Any = PROTOCOL_VERSION, *, little_endian: Any = True) -> bytes:
    return b"".join(pickle.dumps(v, protocol=2) for v in (magic, protocol, {"little_endian": little_endian}))


def legacy_file(pickled: bytes, *storages: Storage, keys: Any = None) -> bytes:
    listed = [storage.key for storage in storages] if keys is None else keys
    return header() + pickled + pickle.dumps(listed, protocol=2) + b"".join(s.block for s in storages)


ELEMENTS = Storage(np.arange(24, dtype="<f4"))
ONE_TENSOR = legacy_file(state_dict(("weight", tensor(ELEMENTS, (2, 3, 4), (12, 4, 1)))), ELEMENTS)


def read(data: bytes, folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / "weights.pth"
    path.write_bytes(data)
    return read_state_dict(path)


def refusal(data: bytes, folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read(data, folder)
    assert "weights.pth" in caught.value.message
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", "<f8"),
        ("FloatStorage", "<f4"),
        ("HalfStorage", "<f2"),
        ("LongStorage", "<i8"),
        ("IntStorage", "<i4"),
        ("ShortStorage", "<i2"),
        ("CharStorage", "i1"),
        ("ByteStorage", "u1"),
    ],
)
def test_every_storage_type_keeps_its_dtype_and_values(kind: str, dtype: str, tmp_path: Path) -> None:
    storage = Storage(np.arange(6).astype(dtype), kind)
    arrays = read(legacy_file(state_dict(("w", tensor(storage, (2, 3), (3, 1)))), storage), tmp_path)
    assert arrays["w"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(arrays["w"], np.arange(6).reshape(2, 3))


def test_channels_last_strides_give_the_logical_order(tmp_path: Path) -> None:
    kernel = np.arange(2 * 3 * 4 * 5, dtype="<f4").reshape(2, 3, 4, 5)
    storage = Storage(kernel.transpose(0, 2, 3, 1).ravel())
    pickled = state_dict(("conv.weight", tensor(storage, (2, 3, 4, 5), (60, 1, 15, 3))))
    np.testing.assert_array_equal(read(legacy_file(pickled, storage), tmp_path)["conv.weight"], kernel)


def test_tensors_may_share_a_storage_and_storages_come_in_the_order_of_the_keys(tmp_path: Path) -> None:
    counter = Storage(np.array([7], dtype="<i8"), "LongStorage", key="2")
    shared = [("head", tensor(ELEMENTS, (4,), (1,))), ("tail", tensor(ELEMENTS, (2, 2), (2, 1), 20))]
    arrays = read(legacy_file(state_dict(*shared, ("count", tensor(counter, (), ()))), counter, ELEMENTS), tmp_path)
    assert list(arrays) == ["head", "tail", "count"]
    np.testing.assert_array_equal(arrays["head"], [0, 1, 2, 3])
    np.testing.assert_array_equal(arrays["tail"], [[20, 21], [22, 23]])
    assert arrays["count"] == 7


def test_strides_of_axes_of_one_do_not_matter(tmp_path: Path) -> None:
    pickled = state_dict(("w", tensor(ELEMENTS, (1, 24), (2**70, 1))))
    assert read(legacy_file(pickled, ELEMENTS), tmp_path)["w"].shape == (1, 24)


def test_arrays_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        read(ONE_TENSOR, tmp_path)["weight"][0] = 1


def test_metadata_of_the_state_dict_is_let_go(tmp_path: Path) -> None:
    with_metadata = state_dict(("w", tensor(ELEMENTS, (24,), (1,))))[:-1] + ops({"_metadata": {"": {}}}) + b"b."
    assert list(read(legacy_file(with_metadata, ELEMENTS), tmp_path)) == ["w"]


@pytest.mark.parametrize(
    "name",
    ["os system", "posix system", "builtins eval", "torch._utils _rebuild_parameter", "torch BFloat16Storage"],
)
def test_any_other_name_is_refused_and_not_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os, "system", calls.append)
    module, attribute = name.encode().split()
    call = b"c" + module + b"\n" + attribute + b"\n" + ops("echo owned") + b"\x85R"
    assert name.replace(" ", ".") in refusal(legacy_file(PROTO + call + STOP), tmp_path)
    assert name.replace(" ", ".") in refusal(PROTO + call + STOP, tmp_path)
    assert calls == []


@pytest.mark.parametrize(
    ("opcode", "code"),
    [
        ("INST", b"(" + ops("echo") + b"ios\nsystem\n"),
        ("STACK_GLOBAL", ops("os") + ops("system") + b"\x93"),
        ("NEWOBJ", EMPTY_ORDERED_DICT + b")\x81"),
        ("EXT1", b"\x82\x01"),
        ("DUP", b")2"),
        ("BINFLOAT", ops(4.0)),
    ],
)
def test_other_opcodes_are_refused(opcode: str, code: bytes, tmp_path: Path) -> None:
    assert opcode in refusal(legacy_file(PROTO + code + STOP), tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (ops((1, 2)) + ops((3,)) + b"R", "no function"),
        (b"ccollections\nOrderedDict\n" + ops(("a",)) + b"R", "collections.OrderedDict in an unknown way"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n" + ops((1, 2)) + b"R", "_rebuild_tensor_v2 in an unknown way"),
        (ops(("storage", "torch FloatStorage", "1", "cpu", 24, None)) + b"Q", "without type, key or count"),
        (ops(("module", 1)) + b"Q", "other than a whole storage"),
        (ops([]) + ops("a") + ops("b") + b"s", "sets items of something else"),
        (ops({}) + ops("a") + b"a", "appends to something else"),
        (b"}" + ops(1) + ops(2) + b"s", "a key that is not a string"),
        (ops([1]), "no state dict"),
        (b"0", "POP"),
        (b"Q", "cut off or damaged"),
        (b"t", "cut off or damaged"),
        (b"h\x09", "cut off or damaged"),
        (b"\xff", "cut off or damaged"),
    ],
)
def test_code_that_makes_no_sense_is_refused(code: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(legacy_file(PROTO + code + STOP), tmp_path)


def test_key_of_a_million_nested_tuples_does_not_overflow_the_stack(tmp_path: Path) -> None:
    nested = b"})" + b"\x85" * 1_000_000 + b"Ns"
    assert "a key that is not a string" in refusal(legacy_file(PROTO + nested + STOP), tmp_path)


def test_huge_memo_index_takes_no_memory(tmp_path: Path) -> None:
    pickled = state_dict(("w", tensor(ELEMENTS, (24,), (1,)) + b"r\xff\xff\xff\xff"))
    assert list(read(legacy_file(pickled, ELEMENTS), tmp_path)) == ["w"]


def test_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    for length in range(len(ONE_TENSOR)):
        refusal(ONE_TENSOR[:length], tmp_path)


def test_flipped_bits_give_tensors_or_a_refusal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for position in range(len(ONE_TENSOR)):
        data = bytearray(ONE_TENSOR)
        data[position] ^= int(rng.integers(1, 256))
        try:
            arrays = read(bytes(data), tmp_path)
        except BundleError:
            continue
        assert all(isinstance(array.sum(), np.generic) for array in arrays.values())


@pytest.mark.parametrize("count", [-1, 0, 23, 25, 2**40, 2**62])
def test_absurd_count_in_the_file_is_refused_before_anything_is_allocated(count: int, tmp_path: Path) -> None:
    block = ELEMENTS.block
    data = ONE_TENSOR.replace(block, struct.pack("<q", count) + block[8:])
    assert f"{count} elements in storage '1'" in refusal(data, tmp_path)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (-1, "without type, key or count"),
        (True, "without type, key or count"),
        ("24", "without type, key or count"),
        (2**62, f"its tensors say {2**62}"),
        (10**30, f"its tensors say {10**30}"),
    ],
)
def test_absurd_count_in_the_pickle_is_refused(count: Any, message: str, tmp_path: Path) -> None:
    pickled = state_dict(("w", tensor(replace(ELEMENTS, count=count), (24,), (1,))))
    assert message in refusal(legacy_file(pickled, ELEMENTS), tmp_path)


def test_count_that_both_places_agree_on_must_be_there(tmp_path: Path) -> None:
    pickled = state_dict(("w", tensor(replace(ELEMENTS, count=2**40), (24,), (1,))))
    data = legacy_file(pickled, keys=["1"]) + struct.pack("<q", 2**40) + b"few"
    assert "bytes before the end of storage '1'" in refusal(data, tmp_path)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((25,), (1,), 0),
        ((24,), (1,), 1),
        ((1,), (1,), 24),
        ((), (), 24),
        ((2, 3, 4), (12, 4, 2), 0),
        ((2, 2), (2**62, 1), 0),
        ((2, 2), (2**63, 2**63), 0),
        ((1 << 40,), (0,), 0),
        ((5, 5), (1, 1), 0),
    ],
)
def test_tensor_that_reaches_outside_its_storage_is_refused(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    data = legacy_file(state_dict(("w", tensor(ELEMENTS, size, stride, offset))), ELEMENTS)
    assert "lets tensor 'w' reach outside its storage of 24 elements" in refusal(data, tmp_path)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((4,), (-1,), 3),
        ((-4,), (1,), 0),
        ((4,), (1,), -1),
        ((4,), (1, 1), 0),
        ((0, 10**30), (1, 1), 0),
        ((1,) * 33, (1,) * 33, 0),
        ([4], [1], 0),
        ((True,), (1,), 0),
        ((4,), (1,), None),
    ],
)
def test_shape_that_cannot_be_is_refused(size: Any, stride: Any, offset: Any, tmp_path: Path) -> None:
    data = legacy_file(state_dict(("w", tensor(ELEMENTS, size, stride, offset))), ELEMENTS)
    assert "impossible size, stride or offset" in refusal(data, tmp_path)


def test_name_held_twice_is_refused(tmp_path: Path) -> None:
    whole = tensor(ELEMENTS, (24,), (1,))
    assert "holds 'w' twice" in refusal(legacy_file(state_dict(("w", whole), ("w", whole)), ELEMENTS), tmp_path)


def test_storage_described_in_two_ways_is_refused(tmp_path: Path) -> None:
    other = replace(ELEMENTS, kind="IntStorage")
    pickled = state_dict(("a", tensor(ELEMENTS, (24,), (1,))), ("b", tensor(other, (24,), (1,))))
    assert "storage '1' in two ways" in refusal(legacy_file(pickled, ELEMENTS), tmp_path)


@pytest.mark.parametrize("keys", [[], ["1", "1"], ["1", "2"], ["2"], [1], "1", None, {"1": 1}])
def test_keys_that_do_not_match_the_storages_are_refused(keys: Any, tmp_path: Path) -> None:
    pickled = state_dict(("w", tensor(ELEMENTS, (24,), (1,))))
    data = header() + pickled + pickle.dumps(keys, protocol=2) + ELEMENTS.block
    assert "lists other storages" in refusal(data, tmp_path)


@pytest.mark.parametrize("value", [1, "text", (1, 2), {"nested": 1}, None])
def test_value_that_is_not_a_tensor_is_refused(value: Any, tmp_path: Path) -> None:
    assert "'epoch', which is not a tensor" in refusal(legacy_file(state_dict(("epoch", ops(value)))), tmp_path)


def test_bytes_behind_the_last_storage_are_refused(tmp_path: Path) -> None:
    assert "3 bytes behind its last storage" in refusal(ONE_TENSOR + b"abc", tmp_path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (header(magic=1), "magic number"),
        (header(magic="text"), "magic number"),
        (header(protocol=1002), "protocol"),
        (header(little_endian=False), "little-endian"),
        (header(little_endian=1), "little-endian"),
    ],
)
def test_other_header_is_refused(start: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(start + ONE_TENSOR[len(header()) :], tmp_path)


def test_zip_format_is_named_as_such(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "zip format" in refusal(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"text", b"\x89HDF\r\n\x1a\n"])
def test_file_of_another_kind_is_refused(data: bytes, tmp_path: Path) -> None:
    refusal(data, tmp_path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot read the weights"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(BundleError, match="cannot read the weights"):
        read_state_dict(tmp_path)


def test_file_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_weights, "MAX_FILE_BYTES", 100)
    with pytest.raises(BundleError, match="more than the 100"):
        read(ONE_TENSOR, tmp_path)
