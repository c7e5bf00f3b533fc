"""Records as text: a table for people; JSON lines, CSV and WebVTT for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from edgeclf.errors import EdgeclfError
from edgeclf.registry import Registry
from edgeclf.runtime.records import Prediction, Record, Result, Scored, SourceEnd
from edgeclf.runtime.timeline import Segment, Timeline


class Writer(Protocol):
    """Writes each record as it comes; what was written is out, whatever happens next."""

    def write(self, record: Record) -> None:
        """Write one record."""


WRITERS: Registry[Callable[..., Writer]] = Registry(
    "format",
    {
        "table": "edgeclf.runtime.writers:TableWriter",
        "jsonl": "edgeclf.runtime.writers:JsonLinesWriter",
        "csv": "edgeclf.runtime.writers:CsvWriter",
        "vtt": "edgeclf.runtime.writers:VttWriter",
    },
    error=EdgeclfError,
    group="edgeclf.writers",
)


class JsonLinesWriter:
    """One JSON object a line, each with `type` and `source`."""

    def __init__(self, out: TextIO, *, top_k: int | None = None, several: bool = False) -> None:  # noqa: ARG002
        self._out = out
        self._top_k = top_k

    def write(self, record: Record) -> None:
        if isinstance(record, SourceEnd) and record.error:
            self._line(record.error_to_dict())
        data = record.to_dict()
        if isinstance(record, Scored) and self._top_k:
            data["scores"] = dict(record.ranked()[: self._top_k])
        self._line(data)

    def _line(self, data: dict[str, Any]) -> None:
        self._out.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
        self._out.flush()


class CsvWriter:
    """One row for each prediction; with top_k, the best labels and scores in further columns."""

    def __init__(self, out: TextIO, *, top_k: int | None = None, several: bool = False) -> None:  # noqa: ARG002
        self._out = out
        self._rows = csv.writer(out, lineterminator="\n")
        self._top_k = top_k or 1
        self._has_header = False

    def write(self, record: Record) -> None:
        if not self._has_header:
            self._write_header(len(record.labels) if isinstance(record, Scored) else 1)
        if not isinstance(record, Prediction):
            return
        whose = [record.source, record.classifier]
        times = [f"{record.start_seconds:.3f}", f"{record.end_seconds:.3f}"]
        further = [cell for label, score in record.ranked()[1 : self._top_k] for cell in (label, f"{score:.6f}")]
        self._rows.writerow([*whose, *times, record.label, f"{record.score:.6f}", " ".join(record.flags), *further])
        self._out.flush()

    def _write_header(self, labels: int) -> None:
        self._has_header = True
        places = range(2, min(self._top_k, labels) + 1)
        further = [column for n in places for column in (f"label_{n}", f"score_{n}")]
        names = ["source", "classifier", "start_seconds", "end_seconds", "label", "score", "flags"]
        self._rows.writerow([*names, *further])


class VttWriter:
    """WebVTT subtitles of one source and one classifier, one cue for each change of label."""

    def __init__(self, out: TextIO, *, top_k: int | None = None, several: bool = False) -> None:  # noqa: ARG002
        self._out = out
        self._timeline = Timeline()
        self._out.write("WEBVTT\n")

    def write(self, record: Record) -> None:
        if isinstance(record, Prediction):
            self._cue(self._timeline.add(record))
        elif isinstance(record, SourceEnd):
            self._cue(self._timeline.finish())

    def _cue(self, segment: Segment | None) -> None:
        if segment:
            start, end = _vtt_time(segment.start_seconds), _vtt_time(segment.end_seconds)
            self._out.write(f"\n{start} --> {end}\n{_vtt_text(segment.label)} {segment.score:.2f}\n")
            self._out.flush()


class TableWriter:
    """A row for each stretch of one label, and below them one for the whole file.

    A file with one label throughout has the last row alone; a live source has rows for its stretches only.
    `several` classifiers are told apart by name.
    """

    _COLUMNS = "{:<{width}}  {:>8}  {:>8}  {:<20} {:>6}  {}"

    def __init__(self, out: TextIO, *, top_k: int | None = None, several: bool = False, width: int = 32) -> None:
        self._out = out
        self._top_k = top_k or 1
        self._several = several
        self._width = width
        self._timelines: dict[tuple[int, str], Timeline] = {}  # by source and classifier
        self._changed: set[tuple[int, str]] = set()
        self._row("source", "start", "end", "label", "score", "")

    def write(self, record: Record) -> None:
        if isinstance(record, Prediction):
            key = record.source_index, record.classifier
            segment = self._timelines.setdefault(key, Timeline()).add(record)
            if segment:
                self._changed.add(key)
                self._segment(record.source, record.classifier, segment)
        elif isinstance(record, Result):
            self._result(record)
        else:
            self._end(record)

    def _segment(self, source: str, classifier: str, segment: Segment) -> None:
        times = _seconds(segment.start_seconds), _seconds(segment.end_seconds)
        self._row(source, *times, segment.label, f"{segment.score:.2f}", classifier if self._several else "")

    def _result(self, result: Result) -> None:
        key = result.source_index, result.classifier
        segment = self._timelines.pop(key, Timeline()).finish()
        if segment and key in self._changed:
            self._segment(result.source, result.classifier, segment)
        self._changed.discard(key)
        times = _seconds(result.clips[0].start_seconds), _seconds(result.clips[-1].end_seconds)
        whose = [result.classifier] if self._several else []
        further = [f"{label} {score:.2f}" for label, score in result.ranked()[1 : self._top_k]]
        remark = ", ".join([*whose, "whole file", *further])
        self._row(result.source, *times, result.label, f"{result.score:.2f}", remark)

    def _end(self, end: SourceEnd) -> None:
        """What was still open of a live source, which has no result."""
        for key in [key for key in self._timelines if key[0] == end.source_index]:
            if segment := self._timelines.pop(key).finish():
                self._segment(end.source, key[1], segment)

    def _row(self, source: str, *cells: str) -> None:
        name = "".join(letter if letter.isprintable() else "?" for letter in source)
        short = name if len(name) <= self._width else "…" + name[1 - self._width :]
        self._out.write(self._COLUMNS.format(short, *cells, width=self._width).rstrip() + "\n")
        self._out.flush()


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _vtt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds / 1000:06.3f}"


def _vtt_text(text: str) -> str:
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
