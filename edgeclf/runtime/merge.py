"""Many sources into one stream of batches: a thread and a small queue for each that is open."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, TypeVar

from edgeclf.runtime.meter import Meter, clock
from edgeclf.runtime.prefetch import Crew, Outcome, attempt

T = TypeVar("T")

# What stands for the oldest item and its successor when a third one comes; None where all must stay.
Overtake = Callable[[T, T, T], "T | None"]


@contextmanager
def merge(
    sources: Iterable[Generator[T, None, None]],
    *,
    batch_size: int,
    max_wait: float = 0.0,
    depth: int = 8,
    live_depth: int = 2,
    at_once: int = 1,
    overtake: Overtake[T] | None = None,
    waited: Callable[[T], float] = lambda _: 0.0,
    meter: Meter | None = None,
) -> Iterator[Iterator[list[T]]]:
    """Batches of at most `batch_size` items from up to `at_once` sources at a time, taken round-robin.

    The items of one source stay in order. A batch that is not full is handed out when nothing more is there
    and its first item has waited `max_wait` seconds (0: take what is there). Each open source is iterated by one
    thread, which stays up to `depth` items ahead and waits then. Where `live_depth` items wait already, `overtake` is
    asked, on the source's thread, whether the oldest gives way to its successor. `waited` tells for how many seconds
    that thread waited for an item, rather than worked. depth=0 iterates the sources one after another on the caller's
    thread.
    """
    meter = meter or Meter()
    if depth == 0:
        yield _batched(meter.working(chain.from_iterable(sources)), batch_size)
        return
    merged = _Merged(
        sources,
        meter,
        batch_size=batch_size,
        max_wait=max_wait,
        depth=depth,
        live_depth=live_depth,
        at_once=at_once,
        overtake=overtake,
        waited=waited,
    )
    with merged.crew:
        yield merged


def _batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch


@dataclass(frozen=True, slots=True)
class _Ready(Generic[T]):
    since: float  # meter.clock
    outcome: Outcome[T]


_Lane = deque[_Ready[T]]  # what one thread has read and nobody has taken yet


class _Merged(Generic[T]):
    def __init__(
        self,
        sources: Iterable[Generator[T, None, None]],
        meter: Meter,
        *,
        batch_size: int,
        max_wait: float,
        depth: int,
        live_depth: int,
        at_once: int,
        overtake: Overtake[T] | None,
        waited: Callable[[T], float],
    ) -> None:
        self._sources = iter(sources)
        self._next_source = threading.Lock()
        self._meter = meter
        self._batch_size = batch_size
        self._max_wait = max_wait
        self._depth = depth
        self._live_depth = live_depth
        self._overtake = overtake
        self._waited = waited
        self._lanes: deque[_Lane[T]] = deque()  # the lane whose turn it is stands first
        self.crew = Crew("decode", self._read, threads=at_once)

    def __iter__(self) -> _Merged[T]:
        return self

    def __next__(self) -> list[T]:
        crew = self.crew
        with crew.changed:
            crew.changed.wait_for(lambda: self._waiting() or self._over())
            self._fill_up()
            batch = self._take()
            crew.changed.notify_all()
        if not batch:
            crew.check()
            raise StopIteration
        return [ready.outcome.unwrap() for ready in batch]

    def cancel(self) -> None:
        """End the iteration, also for a thread that waits in it now."""
        self.crew.stop()

    def _over(self) -> bool:
        return self.crew.stopping or not self.crew.running

    def _waiting(self) -> int:
        return sum(len(lane) for lane in self._lanes)

    def _fill_up(self) -> None:
        """Wait for a full batch until the oldest item has waited long enough."""
        since = [lane[0].since for lane in self._lanes if lane]
        if since and self._max_wait > 0:
            left = max(0.0, min(since) + self._max_wait - clock())
            self.crew.changed.wait_for(lambda: self._waiting() >= self._batch_size or self._over(), timeout=left)

    def _take(self) -> list[_Ready[T]]:
        """Up to a batch of items, one of each lane in turn. An error waits until it is the first."""
        batch: list[_Ready[T]] = []
        empty = 0
        while self._lanes and len(batch) < self._batch_size and empty < len(self._lanes):
            lane = self._lanes[0]
            if lane and lane[0].outcome.error:
                return batch or [lane.popleft()]
            self._lanes.rotate(-1)
            empty = 0 if lane else empty + 1
            if lane:
                batch.append(lane.popleft())
        return batch

    def _read(self) -> None:
        """Read source after source into a lane of this thread's own, until none is left."""
        lane: _Lane[T] = deque()
        with self.crew.changed:
            self._lanes.append(lane)
        while (source := self._open_next()) is not None:
            with closing(source):
                if not self._read_one(source, lane):
                    return

    def _read_one(self, source: Generator[T, None, None], lane: _Lane[T]) -> bool:
        """Read a source to its end; False where it failed or nobody wants more."""
        while True:
            start = clock()
            outcome = attempt(next, source)
            ready = clock()
            if isinstance(outcome.error, StopIteration):
                return True
            waited = 0.0 if outcome.error else self._waited(outcome.unwrap())
            self._meter.add(busy=max(0.0, ready - start - waited), wait=waited, items=1)
            if not self._put(lane, _Ready(ready, outcome)) or outcome.error:
                return False
            self._meter.add(wait=clock() - ready)

    def _open_next(self) -> Generator[T, None, None] | None:
        with self._next_source:
            return next(self._sources, None)

    def _put(self, lane: _Lane[T], item: _Ready[T]) -> bool:
        crew = self.crew
        with crew.changed:
            item = self._make_room(lane, item)
            crew.changed.wait_for(lambda: crew.stopping or len(lane) < self._depth)
            if crew.stopping:
                return False
            lane.append(item)
            crew.changed.notify_all()
            return True

    def _make_room(self, lane: _Lane[T], item: _Ready[T]) -> _Ready[T]:
        """The item as it has to be put; the oldest of a live source has given way where enough are waiting."""
        if self._overtake is None or item.outcome.error or len(lane) < self._live_depth:
            return item
        newer = lane[1] if len(lane) > 1 else item
        kept = self._overtake(lane[0].outcome.unwrap(), newer.outcome.unwrap(), item.outcome.unwrap())
        if kept is None:
            return item
        lane.popleft()
        ready = _Ready(newer.since, Outcome(kept))
        if not lane:
            return ready
        lane[0] = ready
        return item
