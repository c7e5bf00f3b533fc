"""Names to factories that are imported on first use, so that listing them costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from edgeclf.errors import EdgeclfError

T = TypeVar("T")


class Registry(Generic[T]):
    """Looks plugs up by name: built in ones as ``"module:attribute"``, others through an entry point group."""

    def __init__(self, noun: str, builtin: dict[str, str], *, error: type[EdgeclfError], group: str = "") -> None:
        self._noun = noun
        self._builtin = builtin
        self._error = error
        self._group = group

    def __iter__(self) -> Iterator[str]:
        yield from self._builtin
        yield from sorted({plug.name for plug in entry_points(group=self._group)} - set(self._builtin))

    def load(self, name: str) -> T:
        """The plug called `name`; an unknown name raises the registry's error and lists the known ones."""
        if target := self._builtin.get(name):
            module, _, attribute = target.partition(":")
            return cast(T, getattr(import_module(module), attribute))
        for plug in entry_points(group=self._group, name=name):
            return cast(T, plug.load())
        raise self._error(f"unknown {self._noun} {name!r}", hint=f"known: {', '.join(self)}")
