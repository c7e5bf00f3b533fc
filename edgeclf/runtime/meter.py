"""Busy and waiting time of a stage, added up over its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds that the threads of one stage were at work, and that they waited for input or for room."""

    busy_seconds: float
    wait_seconds: float
    items: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {"busy_seconds": self.busy_seconds, "wait_seconds": self.wait_seconds, "items": self.items}


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of work of one thread."""

    thread: str
    start: float  # clock
    seconds: float
    items: int


class Meter:
    """Adds up what the threads of one stage report; with `spans` it also keeps each stretch of work."""

    def __init__(self, *, spans: bool = False) -> None:
        self.spans: list[Span] | None = [] if spans else None
        self._lock = threading.Lock()
        self._busy = self._wait = 0.0
        self._items = 0

    def add(self, *, busy: float = 0.0, wait: float = 0.0, items: int = 0) -> None:
        """Report seconds of work that end now, seconds of waiting before them, and finished items."""
        with self._lock:
            self._busy += busy
            self._wait += wait
            self._items += items
            if self.spans is not None and busy:
                self.spans.append(Span(threading.current_thread().name, clock() - busy, busy, items))

    def read(self) -> StageTime:
        """The sums so far."""
        with self._lock:
            return StageTime(self._busy, self._wait, self._items)

    def working(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time that making each takes counts as work."""
        for seconds, item in _timed(items):
            self.add(busy=seconds, items=1)
            yield item

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time until each comes counts as waiting."""
        for seconds, item in _timed(items):
            self.add(wait=seconds)
            yield item


def _timed(items: Iterable[T]) -> Iterator[tuple[float, T]]:
    iterator = iter(items)
    while True:
        start = clock()
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield clock() - start, item
