"""The timeline of a benchmark as a file that Perfetto (ui.perfetto.dev) and chrome://tracing open.

The format is Google's "Trace Event Format": metadata events (`"ph": "M"`) name the process and its threads, complete
events (`"X"`) are stretches of work with `ts` and `dur` in microseconds, counter events (`"C"`) are values over time.
Within a row of a thread complete events must lie in each other or apart, never half over each other.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeclf.bench.record_file import Record, RecordError

_PROCESS = 1
_SLACK = 100_000  # nanoseconds by which stretches of one thread may overlap: each is put down a moment after it ended
_KNOWN = ("stage", "thread", "start", "seconds")


@dataclass(frozen=True, slots=True)
class Stretch:
    """One stretch of work: what a stage did from `start` to `end`, nanoseconds."""

    stage: str
    start: int
    end: int
    about: Mapping[str, Any]  # whatever else the record says of it, such as `items`


@dataclass(frozen=True, slots=True)
class Lane:
    """The stretches of one thread, by start; each lies within another or apart from it."""

    name: str
    stretches: tuple[Stretch, ...]


def write_trace(path: Path, record: Record) -> None:
    """Write the record's timeline; the folder is made if need be. Raises RecordError where it holds none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(trace_events(record), separators=(",", ":")) + "\n", encoding="utf-8")


def trace_events(record: Record) -> dict[str, Any]:
    """The record's timeline in the Trace Event Format, JSON-ready; it begins at 0."""
    if not record.get("trace"):
        raise RecordError("the record holds no timeline", hint="measure with --trace or --html")
    rows = lanes(record["trace"])
    name = f"edgeclf bench {record['bundle'].get('name', '')}, {record['scenario']}"
    events = [_metadata("process_name", 0, name=name)]
    for number, lane in enumerate(rows, start=1):
        events += [
            _metadata("thread_name", number, name=lane.name),
            _metadata("thread_sort_index", number, sort_index=number),
        ]
    for number, lane in enumerate(rows, start=1):
        events += [_complete(stretch, number) for stretch in lane.stretches]
    events += _threads_at_work(rows)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"environment": record["environment"], "command": record.get("command", "")},
    }


def lanes(spans: Iterable[Mapping[str, Any]]) -> list[Lane]:
    """The spans of a record by thread, in the order in which the threads began.

    Threads that carry one name and worked at the same time, as those of several sources do, become lanes of their
    own: "decode", "decode (2)". Overlaps within what clock readings cost are cut.
    """
    threads: dict[str, list[Stretch]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span["start"], -span["seconds"])):
        threads[str(span.get("thread", "?"))].append(_stretch(span))
    found = [lane for name, stretches in threads.items() for lane in _lanes(name, stretches)]
    return sorted(found, key=lambda lane: lane.stretches[0].start)


def _stretch(span: Mapping[str, Any]) -> Stretch:
    start = round(1e9 * max(0.0, span["start"]))
    about = {key: value for key, value in span.items() if key not in _KNOWN}
    return Stretch(str(span.get("stage", "?")), start, start + round(1e9 * max(0.0, span["seconds"])), about)


def _lanes(name: str, stretches: Iterable[Stretch]) -> Iterator[Lane]:
    placed: list[list[Stretch]] = []
    outer: list[list[Stretch]] = []  # of each lane: the last stretch, and those around it
    for stretch in stretches:
        number, around, fitted = _place(stretch, outer)
        if number == len(placed):
            placed.append([])
            outer.append([])
        outer[number] = [*around, fitted]
        placed[number].append(fitted)
    for number, kept in enumerate(placed, start=1):
        yield Lane(name if number == 1 else f"{name} ({number})", tuple(sorted(kept, key=_outer_first)))


def _place(stretch: Stretch, outer: Sequence[Sequence[Stretch]]) -> tuple[int, Sequence[Stretch], Stretch]:
    """The number of the first lane that has room for the stretch, what it lies in there, and how it is cut for that."""
    for number, stack in enumerate(outer):
        last = len(stack)
        while last and stack[last - 1].end <= stretch.start + _SLACK and stack[last - 1].end < stretch.end:
            last -= 1
        begin = max(stretch.start, stack[last].end) if last < len(stack) else stretch.start
        if not last:
            return number, (), replace(stretch, start=begin)
        over = stretch.end - stack[last - 1].end
        if over <= _SLACK:
            begin = max(begin, stack[last - 1].start)
            end = max(begin, stretch.end - max(0, over))
            return number, stack[:last], replace(stretch, start=begin, end=end)
    return len(outer), (), stretch


def _outer_first(stretch: Stretch) -> tuple[int, int]:
    return stretch.start, -stretch.end


def _threads_at_work(rows: Sequence[Lane]) -> Iterator[dict[str, Any]]:
    """A counter: how many threads each stage keeps busy."""
    steps: dict[int, Counter[str]] = defaultdict(Counter)
    for lane in rows:
        for stretch in lane.stretches:
            steps[stretch.start][stretch.stage] += 1
            steps[stretch.end][stretch.stage] -= 1
    at_work = dict.fromkeys(sorted({stage for step in steps.values() for stage in step}), 0)
    for moment in sorted(steps):
        for stage, change in steps[moment].items():
            at_work[stage] += change
        yield _event("C", "threads at work", 0, ts=moment / 1000, args=dict(at_work))


def _complete(stretch: Stretch, thread: int) -> dict[str, Any]:
    times = {"ts": stretch.start / 1000, "dur": (stretch.end - stretch.start) / 1000}
    return _event("X", stretch.stage, thread, cat="stage", args=dict(stretch.about), **times)


def _metadata(kind: str, thread: int, **args: Any) -> dict[str, Any]:
    return _event("M", kind, thread, args=args)


def _event(phase: str, name: str, thread: int, **rest: Any) -> dict[str, Any]:
    return {"ph": phase, "name": name, "pid": _PROCESS, "tid": thread, **rest}
