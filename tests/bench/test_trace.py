"""What a trace viewer needs of a timeline is there, and nothing in it contradicts itself."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeclf.bench.record_file import RecordError
from edgeclf.bench.trace import lanes, trace_events, write_trace
from tests.bench.hand_made import pass_of, record, row, span

EVERY = {"ph", "name", "pid", "tid"}
KEYS = {"M": EVERY | {"args"}, "X": EVERY | {"cat", "ts", "dur", "args"}, "C": EVERY | {"ts", "args"}}


def events_of(spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = trace_events(record([row()], trace=list(spans)))["traceEvents"]
    check(found)
    return found


def check(events: Sequence[dict[str, Any]]) -> None:
    """What the Trace Event Format asks of these events."""
    named = {event["tid"] for event in events if event["name"] == "thread_name"}
    threads = defaultdict(list)
    for event in events:
        assert set(event) == KEYS[event["ph"]]
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert event["tid"] in named
            threads[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        if event["ph"] == "C":
            assert all(value >= 0 for value in event["args"].values())
    for stretches in threads.values():
        assert_nested(stretches)


def assert_nested(stretches: Sequence[tuple[float, float]]) -> None:
    """Within a thread, a stretch lies in another or apart from it, and starts do not go back."""
    assert [start for start, _ in stretches] == sorted(start for start, _ in stretches)
    around: list[float] = []
    for start, end in stretches:
        while around and around[-1] <= start + 1e-6:  # a thousandth of a nanosecond, lost in microseconds
            around.pop()
        assert not around or end <= around[-1] + 1e-6, "two stretches of one thread lie half over each other"
        around.append(end)


def stretches_of(events: Sequence[dict[str, Any]]) -> dict[str, list[tuple[str, float, float]]]:
    """The stretches of each thread by its name: what, from when and how long, in microseconds."""
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            found[names[event["tid"]]].append((event["name"], event["ts"], event["dur"]))
    return found


def test_every_span_is_a_stretch_in_the_row_of_its_thread_in_microseconds() -> None:
    spans = [span("decode", "decode 0", 0.0, 0.004, 1), span("extract", "extract 0", 0.0045, 0.0205, 2)]
    events = events_of(spans)
    assert stretches_of(events) == {
        "decode 0": [("decode", 0.0, 4000.0)],
        "extract 0": [("extract", 4500.0, 20500.0)],
    }
    assert [event["args"] for event in events if event["ph"] == "X"] == [{"items": 1}, {"items": 2}]


def test_pass_of_many_stretches_keeps_all_of_them() -> None:
    spans = pass_of(1.0)
    events = events_of(spans)
    found = stretches_of(events)
    assert set(found) == {"decode 0", "decode 1", "extract 0", "extract 1", "MainThread"}
    assert sum(map(len, found.values())) == len(spans)
    busy = sum(length for stretches in found.values() for _, _, length in stretches)
    assert busy == pytest.approx(1e6 * sum(each["seconds"] for each in spans))


def test_process_and_threads_are_named_and_sorted_as_they_began() -> None:
    events = events_of([span("extract", "b", 0.2, 0.1), span("decode", "a", 0.1, 0.1), span("decode", "b", 0.4, 0.1)])
    (process,) = (event for event in events if event["name"] == "process_name")
    assert process["args"] == {"name": "edgeclf bench theatre, offline"}
    names = [(event["tid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"]
    order = [(event["tid"], event["args"]["sort_index"]) for event in events if event["name"] == "thread_sort_index"]
    assert names == [(1, "a"), (2, "b")]
    assert order == [(1, 1), (2, 2)]


def test_stretch_within_another_stays_in_its_thread() -> None:
    spans = [
        span("classify", "main", 0.0, 0.1),
        span("extract", "main", 0.02, 0.03),
        span("extract", "main", 0.06, 0.04),
    ]
    assert list(stretches_of(events_of(spans))) == ["main"]


def test_threads_of_one_name_at_the_same_time_get_rows_of_their_own() -> None:
    spans = [span("decode", "decode", 0.01 * start, 0.025) for start in range(5)]
    found = stretches_of(events_of(spans))
    assert {name: [start for _, start, _ in stretches] for name, stretches in found.items()} == {
        "decode": [0.0, 30000.0],
        "decode (2)": [10000.0, 40000.0],
        "decode (3)": [20000.0],
    }


@pytest.mark.parametrize(
    "spans",
    [
        [span("a", "t", 0.0, 0.01002), span("b", "t", 0.01, 0.01)],
        [span("a", "t", 0.0, 0.01), span("b", "t", 0.005, 0.00505)],
        [span("a", "t", 0.0, 0.01005), span("b", "t", 0.01, 0.02), span("c", "t", 0.01002, 0.01)],
        [span("a", "t", 0.0, 0.01005), span("b", "t", 0.01, 0.02), span("c", "t", 0.01002, 0.00002)],
    ],
    ids=["one behind another", "one within another", "within one that was cut", "all but gone"],
)
def test_overlap_as_small_as_clocks_make_it_is_cut_and_stays_in_its_thread(spans: list[dict[str, Any]]) -> None:
    found = stretches_of(events_of(spans))
    assert list(found) == ["t"]
    for (_, _, length), given in zip(sorted(found["t"]), sorted(spans, key=lambda one: str(one["stage"])), strict=True):
        assert length == pytest.approx(1e6 * given["seconds"], abs=100)


def test_any_jumble_of_spans_gives_rows_without_contradiction() -> None:
    import numpy as np

    rng = np.random.default_rng(3)
    for spread in (1.0, 0.01, 0.0005):
        numbers = rng.uniform(0, spread, (300, 2)).tolist()
        events = events_of([span("s", f"t{n % 3}", start, seconds / 9) for n, (start, seconds) in enumerate(numbers)])
        assert sum(event["ph"] == "X" for event in events) == 300


def test_counter_tells_how_many_threads_each_stage_keeps_busy() -> None:
    spans = [span("decode", "a", 0.0, 0.02), span("decode", "b", 0.01, 0.02), span("extract", "c", 0.015, 0.001)]
    counts = [(event["ts"], event["args"]) for event in events_of(spans) if event["ph"] == "C"]
    assert counts[0] == (0.0, {"decode": 1, "extract": 0})
    assert (15000.0, {"decode": 2, "extract": 1}) in counts
    assert counts[-1] == (30000.0, {"decode": 0, "extract": 0})


def test_lanes_begin_in_the_order_of_their_first_stretch() -> None:
    assert [lane.name for lane in lanes([span("x", "late", 2.0, 1.0), span("x", "early", 1.0, 5.0)])] == [
        "early",
        "late",
    ]


def test_file_is_json_that_says_what_was_measured(tmp_path: Path) -> None:
    made = record([row()], trace=pass_of(0.5))
    write_trace(tmp_path / "new" / "trace.json", made)
    found = json.loads((tmp_path / "new" / "trace.json").read_text(encoding="utf-8"))
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert found["otherData"] == {"environment": made["environment"], "command": made["command"]}
    check(found["traceEvents"])


@pytest.mark.parametrize("trace", [None, []], ids=str)
def test_record_without_a_timeline_is_an_error_and_leaves_no_file(trace: Any, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no timeline; measure with --trace"):
        write_trace(tmp_path / "trace.json", record([row()], trace=trace))
    assert not (tmp_path / "trace.json").exists()
