"""The page of a benchmark: one HTML file with tables and plots that holds all it needs, made from the record alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.bench import plots
from edgeclf.bench.compare import (
    Comparison,
    described,
    figure,
    judgement,
    letters_of,
    percent,
    row_names,
)
from edgeclf.bench.load import MUCH_FOREIGN_LOAD
from edgeclf.bench.record_file import Record, machine_of
from edgeclf.report_page import PAGE, STYLE

_STYLE = """
:root { --p0: #0072b2; --p1: #d55e00; --p2: #009e73; --p3: #b65b90; --p4: #b27d00; --p5: #2f8fc4; }
@media (prefers-color-scheme: dark) { :root { --p0: #5cb5ee; --p1: #f2915a; --p2: #3cc79b; --p3: #e39ac5;
  --p4: #efbd4a; --p5: #a3d8f6; } }
.drawing { min-width: 23rem; max-width: 42rem; margin: .5rem 0; }
.drawing { break-inside: avoid; }
.drawing.wide { min-width: 44rem; max-width: none; }
.drawing svg { display: block; width: 100%; height: auto; overflow: visible; }
.drawing text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.drawing text.name, .drawing text.halo { fill: var(--ink); }
.drawing text.name, .drawing text.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.drawing .grid { stroke: var(--line); stroke-width: 1; }
.drawing .base, .drawing .mark { stroke: var(--soft); stroke-width: 1.2; }
.drawing .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.drawing .whisker { stroke-width: 1.8; }
.legend.inline { flex-wrap: wrap; gap: .25rem 1.5rem; }
.legend.inline i { width: .8rem; height: .8rem; border-radius: 2px; }
.legend.inline svg { width: .9rem; height: .9rem; align-self: center; }
.worse { color: rgb(var(--miss)); font-weight: 600; }
.better { color: var(--p2); font-weight: 600; }
td.bar { min-width: 5rem; }
td.words { text-align: left; min-width: 7rem; }
"""

_RATES = ("clips_per_second", "frames_per_second", "pictures_per_second")
_COLUMNS = (
    ("clips_per_second", "clips/s"),
    ("frames_per_second", "frames/s"),
    ("latency_p50_ms", "p50, ms"),
    ("latency_p99_ms", "p99, ms"),
    ("cpu_seconds_per_frame", "CPU s per frame"),
    ("peak_rss_mb", "memory of the process, MB"),
)
_GROUPS = {"ours": "this runtime", "baseline": "what it replaces", "stage": "a stage alone", "device": "by device"}
_GROUP_SERIES = {"ours": 0, "baseline": 1, "stage": 2, "device": 3}
_BATCHED = "frames_per_second"  # over the batch
_LOST = 0.01  # share of frames that a sustained camera may lose

Row = Mapping[str, Any]


def write_page(path: Path, records: Record | Sequence[Record], *, comparisons: Sequence[Comparison] = ()) -> None:
    """Write the page of one record, or of several beside each other; the folder is made if need be.

    comparisons: of the second and later records with the first, in that order, which then stand in front.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = bench_page([records] if isinstance(records, Mapping) else records, comparisons=comparisons)
    path.write_text(page, encoding="utf-8")


def bench_page(records: Sequence[Record], *, comparisons: Sequence[Comparison] = ()) -> str:
    """The page of one record at least, as HTML."""
    names = row_names(*(record["rows"] for record in records))
    labels, is_chaptered = _labels(records, comparisons)
    parts = [
        _Part(record, label, list(zip(rows, record["rows"], strict=True)))
        for record, label, rows in zip(records, labels, names, strict=True)
    ]
    body: list[str] = []
    if not is_chaptered:
        body += [*_overview(parts, comparisons), *_comparisons(parts, comparisons), *_beside(parts)]
    for part in parts:
        body += [*part.chapter(), *part.sections()] if len(parts) > 1 else part.sections()
    head = parts[0].head() if len(parts) == 1 else ""
    title = "Benches beside each other"
    if is_chaptered:
        title = f"{records[0]['bundle'].get('name', 'Bench')}: {', '.join(record['scenario'] for record in records)}"
    return PAGE.format(title=escape(title), style=STYLE + _STYLE, head=head, body="\n".join(body))


def _labels(records: Sequence[Record], comparisons: Sequence[Comparison]) -> tuple[list[str], bool]:
    """What the records are called, and whether they are chapters of one bench: other scenarios on one machine."""
    if len(records) == 1:
        return [""], True
    scenarios = [str(record["scenario"]) for record in records]
    one_bench = len(set(scenarios)) == len(scenarios) and len({machine_of(record) for record in records}) == 1
    if one_bench and not comparisons:
        return scenarios, True
    return letters_of(len(records)), False


@dataclass(frozen=True, slots=True)
class _Part:
    """What the page shows of one record. label: what it is called among several."""

    record: Record
    label: str
    rows: list[tuple[str, Row]]  # each with what it is called

    def head(self) -> str:
        """The facts below the title."""
        where = self.record["environment"]
        facts = [*self._headlines(), ("date", str(where.get("date", "unknown")))]
        items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
        return f"<p>{escape(machine_of(self.record))}</p><dl>{items}</dl>{self._load()}"

    def sections(self) -> Iterator[str]:
        """All that is known of the record, as sections of the page."""
        yield from self._section("Rows", self._table())
        yield from self._section("Throughput", self._throughput())
        yield from self._section("Throughput by batch and precision", self._batches())
        yield from self._section("Latency", self._latencies())
        yield from self._section("Cameras", self._knee())
        yield from self._section("Stages", self._stages())
        yield from self._section("Bound", self._bound())
        yield from self._section("A few batches on their way", self._timeline())
        yield from self._section("How it was measured", self._about())

    def _section(self, title: str, content: str) -> Iterator[str]:
        if content:
            lead = f"{self.label}: " if self.label else ""
            yield f"<section><h2>{escape(lead + title)}</h2>{content}</section>"

    def chapter(self) -> Iterator[str]:
        """What stands before the sections where there are several records."""
        yield f"<section><h2>{escape(self.label)}</h2>{self.head()}</section>"

    @property
    def working(self) -> list[tuple[str, Row]]:
        """The rows that were measured."""
        return [(name, row) for name, row in self.rows if row["status"] == "ok"]

    # -- figures

    def _headlines(self) -> Iterator[tuple[str, str]]:
        for name, row in [found for found in self.working if found[1].get("group") == "ours"][:1]:
            for key in (_rate(row), "latency_p99_ms"):
                if metric := row["metrics"].get(key):
                    lead = "p99 of " if key == "latency_p99_ms" else ""
                    yield f"{lead}{name}", f"{figure(metric['median'])} {metric.get('unit', '')}"
        for name, ratio in (self.record.get("ratios") or {}).items():
            yield f"beside {name}", f"{ratio:.2f} \u00d7" if isinstance(ratio, (int, float)) else str(ratio)
        if self.record.get("sustained_cameras") is not None:
            yield "cameras sustained", str(self.record["sustained_cameras"])
        reached = (self.record.get("bound") or {}).get("reached")
        if isinstance(reached, (int, float)):
            yield f"of {self.record['bound'].get('of', 'the bound')}", f"{100 * reached:.0f} %"

    def _load(self) -> str:
        foreign = self.record["environment"].get("foreign_cores")
        if not isinstance(foreign, (int, float)) or foreign <= MUCH_FOREIGN_LOAD:
            return ""
        return (
            f'<p class="problem">Other programs kept {foreign:.2f} cores busy meanwhile: '
            "these figures are lower than the machine's.</p>"
        )

    # -- rows

    def _table(self) -> str:
        columns = [column for column in _COLUMNS if any(column[0] in row["metrics"] for _, row in self.working)]
        best = {key: max(_median(row, key) for _, row in self.working) for key, _ in columns}
        heads = ["row", "runs on", "threads", "batch", *(title for _, title in columns), "spread", "scores off by"]
        body = [self._row(name, row, [key for key, _ in columns], best) for name, row in self.rows]
        return _table(heads, body, texts=2) + (
            "<p>Medians over rounds; the spread is the distance of the quartiles of the rate, as a share of its "
            "median. Scores in the last column were compared with those of the sequential loop before "
            "anything was timed.</p>"
        )

    def _row(self, name: str, row: Row, columns: Sequence[str], best: Mapping[str, float]) -> str:
        if row["status"] != "ok":
            reason = escape(str(row.get("reason") or "no reason given"))
            return f'{_th(name)}<td class="text problem" colspan="{len(columns) + 5}">unavailable: {reason}</td>'
        threads = f"{row.get('workers', '')} \u00d7 {row.get('threads') or 'all'}"
        placed = (
            f'<td class="words">{escape(_placement(row))}</td><td>{escape(threads)}</td>'
            f"<td>{escape(str(row.get('batch') or ''))}</td>"
        )
        cells = (_metric_cell(row["metrics"].get(key), key, best[key]) for key in columns)
        return f"{_th(name)}{placed}{''.join(cells)}<td>{_spread(row)}</td><td>{_agreement(row)}</td>"

    def _throughput(self) -> str:
        in_lines = {name for line in self._lines().values() for name in line}
        rows = [(name, row) for name, row in self.working if name not in in_lines]
        series = {name: _GROUP_SERIES.get(str(row.get("group")), 4) for name, row in rows}
        drawn = "".join(_figure(plots.throughput_plot(bars, unit)) for unit, bars in _bars(rows, series))
        groups = {str(row.get("group")): series[name] for name, row in rows if _rate(row)}
        legend = _marks((number, _GROUPS.get(group, group)) for group, number in groups.items())
        note = "<p>The mark is the median, the line runs from the smallest to the largest round, a dot is a round.</p>"
        return drawn + legend + note if drawn else ""

    def _lines(self) -> dict[str, dict[str, Row]]:
        """The rows that differ in their batch alone, by what they have in common."""
        found: dict[str, dict[str, Row]] = {}
        for name, row in self.working:
            if _BATCHED in row["metrics"] and isinstance(row.get("batch"), int) and row["batch"] > 0:
                found.setdefault(re.sub(r",? batch \d+", "", name), {})[name] = row
        return {name: rows for name, rows in found.items() if len({row["batch"] for row in rows.values()}) > 1}

    def _batches(self) -> str:
        lines = {
            name: [
                plots.Point(row["batch"], metric["median"], min(metric["samples"]), max(metric["samples"]))
                for row in rows.values()
                for metric in (row["metrics"][_BATCHED],)
            ]
            for name, rows in self._lines().items()
        }
        return _figure(plots.batch_plot(lines, "frames/s")) + _marks(enumerate(lines)) if lines else ""

    def _latencies(self) -> str:
        rows = {name: row["latency_ms"]["samples"] for name, row in self.working if row.get("latency_ms")}
        left_out = len(rows) - plots.MOST_HISTOGRAMS
        note = f"<p>Latencies of {left_out} more rows are in the record.</p>" if left_out > 0 else ""
        return _figure(plots.latency_plot(rows)) + note if rows else ""

    # -- stages

    def _stages(self) -> str:
        rows = {name: row["stages"] for name, row in self.working if row.get("stages")}
        if not rows:
            return ""
        note = "<p>Summed over the threads of a stage: filled is work, hollow is waiting for input or for room.</p>"
        return _figure(plots.stages_plot(rows)) + note

    def _bound(self) -> str:
        bound = self.record.get("bound") or {}
        rows = [f'{_th(name)}<td class="words">{escape(value)}</td>' for name, value in _leaves(bound)]
        note = "<p>What the machine allows at most, by what is known of its parts, and the share that was reached.</p>"
        return note + _table([], rows) if rows else ""

    def _timeline(self) -> str:
        spans = self.record.get("trace") or []
        if not spans:
            return ""
        stages = plots.timeline_stages(spans)
        legend = _legend((plots.stage_color(stage), stage) for stage in stages)
        note = "<p>One pass of its own, after warm-up; a row is a thread, a box a stretch of work.</p>"
        return _figure(plots.timeline_plot(spans), "wide") + legend + note

    # -- cameras

    def _knee(self) -> str:
        steps = sorted(self.record.get("knee") or [], key=lambda step: step["cameras"])
        if not steps:
            return ""
        limit = self.record["workload"].get("p99_ms")
        limit_ms = float(limit) if isinstance(limit, (int, float)) else None
        columns = [key for key in steps[0] if any(not isinstance(step.get(key), (dict, list)) for step in steps)]
        rows = ["".join(f"<td>{escape(_plain(step.get(key)))}</td>" for key in columns) for step in steps]
        legend = _marks(enumerate(("p50", "p99", "dropped")), "<li>hollow: not sustained</li>")
        return (
            _figure(plots.knee_plot(steps, limit_ms=limit_ms, limit_share=_LOST))
            + legend
            + _table([key.replace("_", " ") for key in columns], rows, texts=0)
        )

    # -- circumstances

    def _about(self) -> str:
        rounds = {"command": self.record.get("command"), "rounds": self.record.get("rounds")}
        facts = {
            **rounds,
            "warm-up": self.record.get("warm_up"),
            "workload": self.record["workload"],
            "bundle": self.record["bundle"],
            "environment": self.record["environment"],
        }
        rows = [f'{_th(name)}<td class="text">{escape(value)}</td>' for name, value in _leaves(facts)]
        return _table([], rows, texts=2)


# -- several records --------------------------------------------------------------------------------------------------


def _overview(parts: Sequence[_Part], comparisons: Sequence[Comparison]) -> Iterator[str]:
    files = [comparisons[0].before, *(comparison.after for comparison in comparisons)] if comparisons else []
    rows = [
        f'{_th(part.label)}<td class="text">{escape(file)}</td><td class="text">{escape(described(part.record))}</td>'
        for part, file in zip(parts, files or [""] * len(parts), strict=True)
    ]
    yield _table(["", "file", "what, where, when"], rows, texts=3)


def _comparisons(parts: Sequence[_Part], comparisons: Sequence[Comparison]) -> Iterator[str]:
    for part, comparison in zip(parts[1:], comparisons, strict=bool(comparisons)):
        heads = ["", parts[0].label, part.label, "change", "noise", "verdict"]
        remarks = "".join(f"<li>{escape(text)}</li>" for text in (*comparison.differs, *comparison.notes))
        said = f"<p>{escape(judgement(comparison))}</p>" + (f"<ul>{remarks}</ul>" if remarks else "")
        table = _table(heads, _change_rows(comparison))
        yield f"<section><h2>{parts[0].label} \u2192 {part.label}</h2>{said}{table}</section>"


def _change_rows(comparison: Comparison) -> Iterator[str]:
    for row in comparison.rows:
        remark = f" <small>{escape(row.remark)}</small>" if row.remark else ""
        yield f'<th scope="rowgroup" class="text" colspan="6">{escape(row.row)}{remark}</th>'
        for change in row.changes:
            moved = percent(change.difference) if change.difference is not None else ""
            noise = f"{percent(change.noise[0])} to {percent(change.noise[1])}" if change.noise else ""
            kind = {"regression": "worse", "improvement": "better"}.get(change.verdict, "")
            verdict = "" if change.verdict == "not judged" else change.verdict
            yield (
                f"{_th(_metric_title(change.metric))}<td>{figure(change.before)}</td><td>{figure(change.after)}</td>"
                f'<td>{moved}</td><td>{noise}</td><td class="{kind}">{verdict}</td>'
            )


def _beside(parts: Sequence[_Part]) -> Iterator[str]:
    """The throughput of all records in one plot, a colour for each."""
    rows = [(f"{part.label}: {name}", row, number) for number, part in enumerate(parts) for name, row in part.working]
    ordered = sorted(rows, key=lambda found: found[0].partition(": ")[2])
    drawn = list(_bars([(name, row) for name, row, _ in ordered], {name: number for name, _, number in ordered}))
    if drawn:
        figures = "".join(_figure(plots.throughput_plot(bars, unit)) for unit, bars in drawn)
        legend = _marks((number, f"{part.label}: {machine_of(part.record)}") for number, part in enumerate(parts))
        yield f"<section><h2>Beside each other</h2>{figures}{legend}</section>"


# -- parts of a page --------------------------------------------------------------------------------------------------


def _bars(rows: Iterable[tuple[str, Row]], series: Mapping[str, int]) -> Iterator[tuple[str, list[plots.Bar]]]:
    """The bars of each unit: clips, frames and pictures a second do not share an axis."""
    found: dict[str, list[plots.Bar]] = {}
    for name, row in rows:
        if rate := _rate(row):
            metric = row["metrics"][rate]
            bar = plots.Bar(name, series[name], tuple(metric["samples"]))
            found.setdefault(str(metric.get("unit") or rate), []).append(bar)
    yield from found.items()


def _rate(row: Row) -> str:
    """The name of the row's throughput, the one that counts most; empty where it has none."""
    return next((rate for rate in _RATES if rate in row["metrics"]), "")


def _median(row: Row, key: str) -> float:
    return float(row["metrics"][key]["median"]) if key in row["metrics"] else 0.0


def _spread(row: Row) -> str:
    if not (rate := _rate(row)):
        return ""
    low, median, high = np.percentile(row["metrics"][rate]["samples"], (25, 50, 75))
    return f"{100 * (high - low) / median:.1f}\u00a0%" if median else ""


def _agreement(row: Row) -> str:
    """How far a loop's scores are from the sequential one's, where they were compared."""
    found = row.get("agreement")
    difference = found.get("largest_score_difference") if isinstance(found, Mapping) else None
    if not isinstance(difference, (int, float)):
        return ""
    changed = found.get("changed_labels") if isinstance(found, Mapping) else None
    return f"{difference:.1e}" + (f", {escape(str(changed))} labels" if changed else "") if difference else "0"


def _placement(row: Row) -> str:
    words = [str(row.get(key) or "") for key in ("backend", "provider", "precision")]
    return " ".join(word for word in words if word)


def _metric_title(name: str) -> str:
    return dict(_COLUMNS).get(name, name.replace("_", " "))


def _metric_cell(metric: Mapping[str, Any] | None, key: str, best: float) -> str:
    if metric is None:
        return "<td></td>"
    is_rate = key in _RATES and best > 0
    bar = f' class="bar" style="--v:{metric["median"] / best:.3f}"' if is_rate else ""
    low_high = f"{figure(min(metric['samples']))} to {figure(max(metric['samples']))}"
    return f'<td{bar} title="{low_high}">{figure(metric["median"])}</td>'


def _table(head: Sequence[str], rows: Iterable[str], *, texts: int = 1) -> str:
    """A table of rows of cells, the first columns of which are words."""
    heads = "".join(
        f'<th scope="col"{" class=text" if place < texts else ""}>{escape(name)}</th>'
        for place, name in enumerate(head)
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    top = f"<thead><tr>{heads}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<li><i style="background:{color}"></i>{escape(name)}</li>' for color, name in entries)
    return f'<ul class="legend inline">{items}</ul>'


def _marks(entries: Iterable[tuple[int, str]], more: str = "") -> str:
    """A legend of series, which are told by colour and mark."""
    items = "".join(f"<li>{plots.legend_mark(number)}{escape(name)}</li>" for number, name in entries)
    return f'<ul class="legend inline">{items}{more}</ul>'


def _figure(svg: str, kind: str = "") -> str:
    return f'<div class="scroll"><div class="drawing {kind}">{svg}</div></div>'


def _th(text: str) -> str:
    return f'<th scope="row">{escape(text)}</th>'


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The values of a nested mapping as text, each with the keys that lead to it."""
    for key, value in values.items():
        name = f"{above} \u203a {key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        else:
            yield name.replace("_", " "), _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return "\u2013" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
