from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator

import pytest

from edgeclf.runtime.meter import Meter
from edgeclf.runtime.prefetch import parallel_map, prefetch


def numbers(count: int, *, fail_at: int | None = None) -> Iterator[int]:
    for number in range(count):
        if number == fail_at:
            raise KeyError(number)
        yield number


def square(number: int) -> int:
    return number * number


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("ahead", [None, 1, 20])
def test_results_come_in_order_with_any_number_of_workers(workers: int, ahead: int | None) -> None:
    with parallel_map(square, numbers(200), workers=workers, ahead=ahead) as squares:
        assert list(squares) == [n * n for n in range(200)]


def test_workers_really_run_at_the_same_time() -> None:
    both_inside = threading.Barrier(2, timeout=10)
    with parallel_map(lambda _: both_inside.wait(), range(4), workers=2) as results:
        assert len(list(results)) == 4


def test_slow_first_item_does_not_let_later_ones_overtake() -> None:
    second_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_done.wait(10)
        if number == 1:
            second_done.set()
        return number

    with parallel_map(work, range(4), workers=2) as results:
        assert list(results) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_error_in_function_reaches_caller_behind_all_earlier_results(workers: int) -> None:
    def invert(number: int) -> float:
        return 1 / (7 - number)

    with parallel_map(invert, numbers(50), workers=workers) as results:
        given = [next(results) for _ in range(7)]
        with pytest.raises(ZeroDivisionError) as caught:
            next(results)
    assert given == [1 / (7 - n) for n in range(7)]
    assert "invert" in "".join(traceback.format_tb(caught.value.__traceback__))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_error_in_items_reaches_caller_in_its_place(workers: int) -> None:
    with parallel_map(square, numbers(9, fail_at=3), workers=workers) as squares:
        assert [next(squares) for _ in range(3)] == [0, 1, 4]
        with pytest.raises(KeyError):
            next(squares)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_caller_that_leaves_early_leaves_no_thread(taken: int) -> None:
    with parallel_map(square, numbers(10**9), workers=3) as squares:
        for _ in range(taken):
            next(squares)
    # the autouse fixture looks for threads


def test_no_more_is_begun_than_may_be_ahead() -> None:
    begun: list[int] = []
    five = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if len(begun) == 5:
            five.set()
        return number

    with parallel_map(work, numbers(100), workers=2, ahead=5) as results:
        assert five.wait(10)
        assert sorted(begun) == [0, 1, 2, 3, 4]
        next(results)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_prefetch_changes_nothing_but_the_time(depth: int) -> None:
    with prefetch(numbers(30), depth=depth) as ahead:
        assert list(ahead) == list(range(30))


def test_meter_counts_every_item() -> None:
    meter = Meter()
    with parallel_map(square, numbers(25), workers=2, meter=meter) as squares:
        list(squares)
    assert meter.read().items == 25


@pytest.mark.stress
def test_many_early_stops_leave_no_thread() -> None:
    for round_ in range(500):
        with parallel_map(square, numbers(1000), workers=4) as squares:
            for _ in range(round_ % 10):
                next(squares)
