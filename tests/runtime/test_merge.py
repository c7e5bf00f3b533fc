from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from edgeclf.runtime.merge import merge
from edgeclf.runtime.meter import Meter, clock
from edgeclf.runtime.prefetch import parallel_map

Item = tuple[str, int]


def source(name: str, count: int, *, fail_at: int | None = None) -> Generator[Item, None, None]:
    for number in range(count):
        if number == fail_at:
            raise OSError(name)
        yield name, number


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("at_once", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_item_comes_once_and_in_order_for_its_source(depth: int, at_once: int, batch_size: int) -> None:
    sizes = {"a": 17, "b": 0, "c": 5, "d": 40}
    with merge(
        (source(name, size) for name, size in sizes.items()), batch_size=batch_size, depth=depth, at_once=at_once
    ) as batches:
        taken = list(batches)
    assert all(1 <= len(batch) <= batch_size for batch in taken)
    items = [item for batch in taken for item in batch]
    for name, size in sizes.items():
        assert [number for owner, number in items if owner == name] == list(range(size))


def test_sources_share_a_batch_in_turn() -> None:
    everything_ready = threading.Barrier(4, timeout=10)  # three sources and this test

    def waiting(name: str) -> Generator[Item, None, None]:
        yield name, 0
        yield name, 1
        everything_ready.wait()

    with merge(map(waiting, "abc"), batch_size=3, depth=2, at_once=3) as batches:
        everything_ready.wait()
        first, second = next(batches), next(batches)
    assert sorted(first) == [("a", 0), ("b", 0), ("c", 0)]
    assert sorted(second) == [("a", 1), ("b", 1), ("c", 1)]


def test_greedy_batch_takes_what_is_there() -> None:
    go_on = threading.Event()

    def slow() -> Generator[int, None, None]:
        yield 0
        go_on.wait(10)
        yield 1

    with merge([slow()], batch_size=8) as batches:
        assert next(batches) == [0]
        go_on.set()
        assert next(batches) == [1]


def test_batch_that_may_wait_is_filled() -> None:
    with merge([source("a", 6)], batch_size=3, max_wait=30.0) as batches:
        assert [len(batch) for batch in batches] == [3, 3]


def test_wait_for_a_full_batch_ends_at_the_deadline() -> None:
    go_on = threading.Event()

    def stalled() -> Generator[int, None, None]:
        yield 0
        go_on.wait(10)

    with merge([stalled()], batch_size=3, max_wait=0.01) as batches:
        assert next(batches) == [0]
        go_on.set()
        assert list(batches) == []


@pytest.mark.parametrize("depth", [0, 2])
def test_error_of_a_source_reaches_caller_behind_its_items(depth: int) -> None:
    with merge([source("a", 9, fail_at=2)], batch_size=1, depth=depth) as batches:
        assert [next(batches), next(batches)] == [[("a", 0)], [("a", 1)]]
        with pytest.raises(OSError, match="a"):
            next(batches)


def test_source_is_closed_when_the_caller_leaves_early() -> None:
    closed = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with merge([endless()], batch_size=1) as batches:
        next(batches)
    assert closed.is_set()


def test_no_source_is_read_further_ahead_than_its_depth() -> None:
    read: list[int] = []
    blocked = threading.Event()

    def counting() -> Generator[int, None, None]:
        for number in range(100):
            read.append(number)
            if number == 4:
                blocked.set()
            yield number

    with merge([counting()], batch_size=1, depth=4) as batches:
        assert blocked.wait(10)
        assert read == [0, 1, 2, 3, 4]  # four are queued, the fifth waits for room
        next(batches)


def test_leaving_ends_workers_that_wait_for_a_batch() -> None:
    never = threading.Event()

    def silent() -> Generator[int, None, None]:
        yield 0
        never.wait(0.3)  # a read time-out

    with (
        merge([silent()], batch_size=1) as batches,
        parallel_map(len, batches, workers=3) as lengths,
    ):
        assert next(lengths) == 1
    # the autouse fixture looks for threads


def test_oldest_item_gives_way_where_enough_are_waiting() -> None:
    read = threading.Event()

    def live() -> Generator[int, None, None]:
        yield from range(6)
        read.set()

    def newer(_: int, successor: int, __: int) -> int:
        return successor

    with merge([live()], batch_size=1, depth=8, live_depth=2, overtake=newer) as batches:
        assert read.wait(10)
        assert [item for batch in batches for item in batch] == [4, 5]


def test_item_that_stands_for_two_keeps_its_place() -> None:
    read = threading.Event()

    def live() -> Generator[tuple[int, ...], None, None]:
        yield from ((number,) for number in range(5))
        read.set()

    def joined(older: tuple[int, ...], newer: tuple[int, ...], _: tuple[int, ...]) -> tuple[int, ...]:
        return older + newer

    with merge([live()], batch_size=4, depth=8, live_depth=1, overtake=joined) as batches:
        assert read.wait(10)
        assert list(batches) == [[(0, 1, 2, 3, 4)]]


def test_item_that_must_stay_is_waited_for() -> None:
    with merge([source("a", 20)], batch_size=1, depth=3, live_depth=1, overtake=lambda *_: None) as batches:
        assert [item for batch in batches for item in batch] == [("a", number) for number in range(20)]


def test_waiting_for_a_live_item_is_no_work() -> None:
    meter = Meter()

    def live() -> Generator[float, None, None]:
        start = clock()
        while (waited := clock() - start) < 0.02:
            pass
        yield waited

    with merge([live()], batch_size=1, waited=float, meter=meter) as batches:
        list(batches)
    assert meter.read().wait_seconds >= 0.02
    assert meter.read().busy_seconds < 0.02
