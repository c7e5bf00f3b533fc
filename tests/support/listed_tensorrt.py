"""The listings of NVIDIA's bindings in tests/golden/tensorrt, and a TensorRT made of nothing but their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

LISTINGS = Path(__file__).parents[1] / "golden" / "tensorrt"
TENSORRT_VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
CUDA_VERSIONS = ("12.8.0", "13.4.4")
STANDARD = {"bool": True, "int": 0, "str": "", "float": 0.0}


@cache
def tensorrt_listing(version: str) -> dict[str, Any]:
    listing: dict[str, Any] = json.loads((LISTINGS / f"tensorrt_{version}.json").read_text())
    return listing


@cache
def cuda_listing(version: str) -> dict[str, Any]:
    listing: dict[str, Any] = json.loads((LISTINGS / f"cuda_{version}.json").read_text())
    return listing


def split_overload(overload: str) -> tuple[list[str], str]:
    """Argument names, with "=" behind those that have a default, and what comes back."""
    takes, _, returns = overload.rpartition("-> ")
    return [name for name in takes.strip().split(", ") if name], returns


def fits(overload: str, positional: int, keywords: set[str]) -> bool:
    """Whether a call of that many positional arguments and those keywords is possible."""
    names, _ = split_overload(overload)
    rest = names[positional:]
    required = {name for name in rest if not name.endswith("=")}
    return positional <= len(names) and required <= keywords <= {name.rstrip("=") for name in rest}


class ListedTensorRT:
    """The module `tensorrt` of a version: its names exist, all others raise AttributeError.

    Calls are checked against the listed argument names and kept in `calls`; an object comes back where one would.
    `answers` maps "Class.name" to what that property or method gives instead.
    """

    def __init__(self, version: str, answers: Mapping[str, Any] | None = None) -> None:
        self._listing = tensorrt_listing(version)
        self._answers = answers or {}
        self.__name__ = "tensorrt"
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if name in self._listing["enums"]:
            value: Any = _enum(name, self._listing["enums"][name])
        elif name in self._listing["classes"]:
            value = self._class(name)
        else:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        setattr(self, name, value)
        return value

    def called(self, name: str) -> list[list[Any]]:
        """The arguments of each call of "Class.name"; the value of each assignment to "Class.name="."""
        return [arguments for what, *arguments in self.calls if what == name]

    def _class(self, name: str) -> type:
        listed, trt = self._listing["classes"][name], self

        def make(self: Any, *arguments: Any) -> None:
            assert any(fits(way, len(arguments), set()) for way in listed["__init__"]), f"{name}{arguments}"

        def read(self: Any, key: str) -> Any:
            if key not in listed:
                raise AttributeError(f"{name} of TensorRT {trt.__version__} has no {key}")
            if isinstance(listed[key], str):
                return trt._answer(f"{name}.{key}", listed[key])
            return lambda *arguments, **keywords: trt._call(name, key, arguments, keywords)

        def write(self: Any, key: str, value: Any) -> None:
            if listed.get(key) is None and type(self).__name__ == name:
                raise AttributeError(f"{name} of TensorRT {trt.__version__} has no {key}")
            trt.calls.append((f"{name}.{key}=", value))
            object.__setattr__(self, key, value)

        inner = {key: trt._inner_enum(name, key) for key in listed if f"{name}.{key}" in self._listing["enums"]}
        return type(name, (), {"__init__": make, "__getattr__": read, "__setattr__": write, **inner})

    def _inner_enum(self, name: str, key: str) -> Any:
        return _enum(key, self._listing["enums"][f"{name}.{key}"])

    def _call(self, name: str, key: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        ways = self._listing["classes"][name][key]
        fitting = [way for way in ways if fits(way, len(arguments), set(keywords))]
        assert fitting, f"{name}.{key} takes {ways}, not {arguments} {keywords}"
        self.calls.append((f"{name}.{key}", *arguments, *keywords.values()))
        return self._answer(f"{name}.{key}", split_overload(fitting[0])[1])

    def _answer(self, what: str, kind: str) -> Any:
        if what in self._answers:
            return self._answers[what]
        if kind == "IHostMemory":  # lends its bytes to a memoryview
            return b"plan"
        if kind in self._listing["classes"]:
            return object.__new__(getattr(self, kind))
        return STANDARD.get(kind)


def _enum(name: str, members: list[str]) -> type:
    """A class with a member for each name, numbered as they are listed."""
    enum = type(name, (int,), {})
    for number, member in enumerate(members):
        setattr(enum, member, enum(number))
    return enum
