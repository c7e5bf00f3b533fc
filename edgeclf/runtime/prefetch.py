"""Threads between stages: one ahead (`prefetch`), or several with results in order (`parallel_map`).

Together with `merge` these helpers own every thread, queue and stop flag of the runtime. Leaving their `with`
block stops and joins the threads. An exception of a stage is raised where the caller iterates, as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from edgeclf.runtime.meter import Meter, clock

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[B]):
    """What a call in a thread came to, to be handed to the thread that iterates."""

    value: B | None = None
    error: BaseException | None = None

    def unwrap(self) -> B:
        """The value; raises the error, with its traceback, where there is one."""
        if self.error is not None:
            raise self.error
        return cast(B, self.value)


def attempt(function: Callable[[A], B], argument: A) -> Outcome[B]:
    """The outcome of `function(argument)`, whatever it is."""
    try:
        return Outcome(function(argument))
    except BaseException as error:  # noqa: BLE001 - handed on: the thread that iterates raises it
        return Outcome(error=error)


class Crew:
    """Threads that each run one function to its end, a condition to wait on, and a flag that asks them to stop."""

    def __init__(self, name: str, work: Callable[[], None], *, threads: int) -> None:
        self.changed = threading.Condition()
        self.stopping = False
        self.running = threads
        self._work = work
        self._bug: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True) for n in range(threads)]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Ask every thread to end and wake up those that wait."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def check(self) -> None:
        """Raise what a thread died of: its end must not be taken for the end of the items."""
        if self._bug is not None:
            raise self._bug

    def _run(self) -> None:
        outcome = attempt(lambda _: self._work(), None)
        with self.changed:
            self._bug = self._bug or outcome.error
            self.running -= 1
            self.changed.notify_all()


@contextmanager
def prefetch(items: Iterable[A], *, depth: int = 2, name: str = "prefetch") -> Iterator[Iterator[A]]:
    """The same items, made by one thread that stays up to `depth` items ahead; 0 is no thread at all."""
    with parallel_map(_same, items, workers=min(depth, 1), ahead=depth, name=name) as ahead:
        yield ahead


@contextmanager
def parallel_map(
    function: Callable[[A], B],
    items: Iterable[A],
    *,
    workers: int,
    ahead: int | None = None,
    meter: Meter | None = None,
    name: str = "worker",
) -> Iterator[Iterator[B]]:
    """`map(function, items)` with `workers` threads and results in order; 0 workers is the caller's thread.

    At most `ahead` results (by default twice the workers) are begun or waiting to be taken. One worker at a time
    asks `items` for more, so `items` needs no lock.
    """
    meter = meter or Meter()
    if workers == 0:
        yield _mapped(function, items, meter)
        return
    pool = _OrderedPool(function, iter(items), meter, ahead or 2 * workers)
    pool.crew = Crew(name, pool.work, threads=workers)
    with pool.crew:
        try:
            yield pool.results()
        finally:
            _cancel(items)


def _mapped(function: Callable[[A], B], items: Iterable[A], meter: Meter) -> Iterator[B]:
    for item in items:
        start = clock()
        result = function(item)
        meter.add(busy=clock() - start, items=1)
        yield result


def _same(item: A) -> A:
    return item


def _cancel(items: object) -> None:
    """Wake up a worker that waits in another helper for its next item."""
    cancel = getattr(items, "cancel", None)
    if cancel is not None:
        cancel()


class _OrderedPool(Generic[A, B]):
    crew: Crew

    def __init__(self, function: Callable[[A], B], items: Iterator[A], meter: Meter, ahead: int) -> None:
        self._function = function
        self._items = items
        self._meter = meter
        self._ahead = ahead
        self._pull = threading.Lock()
        self._taken = self._given = 0
        self._done: dict[int, Outcome[B]] = {}

    def work(self) -> None:
        while True:
            start = clock()
            with self._pull:
                if not self._wait_for_room():
                    return
                item = attempt(next, self._items)
                if isinstance(item.error, StopIteration):
                    return
                number = self._taken
                self._taken += 1
            taken = clock()
            outcome = Outcome(error=item.error) if item.error else attempt(self._function, item.unwrap())
            self._meter.add(wait=taken - start, busy=clock() - taken, items=1)
            with self.crew.changed:
                self._done[number] = outcome
                self.crew.changed.notify_all()
            if item.error:
                return

    def _wait_for_room(self) -> bool:
        crew = self.crew
        with crew.changed:
            crew.changed.wait_for(lambda: crew.stopping or self._taken - self._given < self._ahead)
            return not crew.stopping

    def results(self) -> Iterator[B]:
        """Every outcome in the order of its item; the first error is raised in its place."""
        crew = self.crew
        while True:
            with crew.changed:
                crew.changed.wait_for(lambda: self._given in self._done or not crew.running)
                if self._given not in self._done:
                    crew.check()
                    return
                outcome = self._done.pop(self._given)
                self._given += 1
                crew.changed.notify_all()
            yield outcome.unwrap()
