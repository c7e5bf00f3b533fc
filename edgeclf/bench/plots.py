"""The plots of a benchmark's page, as SVG elements that take the page's colours and hold nothing from outside.

Lengths are in the units of the drawing, WIDTH of which fill a column of text. Colours are the page's variables
`--p0` to `--p5`, which can be told apart with any colour vision; lines also differ in their marks. Whatever is drawn
says its figures when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from edgeclf.bench.compare import figure
from edgeclf.bench.trace import Lane, Stretch, lanes

WIDTH = 520.0
WIDE = 900.0
COLORS = 6
MOST_HISTOGRAMS = 6

_STAGES = {"decode": 0, "extract": 1, "classify": 2, "preprocess": 4}  # one colour each, in every plot
_LEFT, _RIGHT = 46.0, 14.0  # room for the labels of an axis
_BINS = 48
_LANES = 24  # threads in the timeline
_STRETCHES = 2000  # in the timeline
_MARKS = ("circle", "square", "diamond", "triangle")


# -- axes and parts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` on the way from `start` to `end`, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis, about as many as asked for."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 1000 else (1,)
            found = [step * 10.0**decade for decade in decades for step in steps]
        else:
            step = _round_step((self.high - self.low) / count)
            found = [step * number for number in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [value for value in found if self.low - slack <= value <= self.high + slack]


def _round_step(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted)) if wanted > 0 else 1.0
    return power * next(step for step in (1, 2, 5, 10) if step * power >= wanted * 0.999)


def shown(value: float) -> str:
    """A figure with three digits that count."""
    return figure(value, 3)


def _tick(value: float) -> str:
    return f"{value:g}"


def color(number: int) -> str:
    """The colour of a series."""
    return f"var(--p{number % COLORS})"


def stage_color(stage: str) -> str:
    """The colour of a stage, the same in every plot."""
    others = [number for number in range(COLORS) if number not in _STAGES.values()]
    return color(_STAGES.get(stage, others[sum(stage.encode()) % len(others)]))


def _drawing(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>"
    )


def _text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "soft", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turn}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, style: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}" style="{style}"/>'


def _box(x: float, y: float, width: float, height: float, style: str, words: str = "") -> str:
    title = f"<title>{escape(words)}</title>" if words else ""
    size = f'width="{max(width, 0.4):.2f}" height="{height:.1f}"'
    return f'<rect x="{x:.2f}" y="{y:.1f}" {size} style="{style}">{title}</rect>'


def _mark(x: float, y: float, number: int, words: str = "", *, is_full: bool = True) -> str:
    """A mark whose shape and colour tell the series."""
    size, tint = 4.5, color(number)
    style = f"fill:{tint if is_full else 'var(--paper)'};stroke:{tint};stroke-width:1.8"
    shape = _MARKS[number % len(_MARKS)]
    title = f"<title>{escape(words)}</title>" if words else ""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" style="{style}">{title}</circle>'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.2), (1.2, 1), (-1.2, 1)),
    }[shape]
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" style="{style}">{title}</polygon>'


def legend_mark(number: int) -> str:
    """The mark of a series, to stand in a legend."""
    return f'<svg viewBox="-7 -7 14 14" aria-hidden="true">{_mark(0, 0, number)}</svg>'


def _across(axis: Axis, top: float, bottom: float, label: str, count: int = 5) -> Iterator[str]:
    """The grid and labels of an axis that runs from left to right, below a plot."""
    for value in axis.ticks(count):
        x = axis.place(value)
        yield _line(x, top, x, bottom, "grid")
        yield _text(x, bottom + 16, _tick(value), anchor="middle")
    yield _text((axis.start + axis.end) / 2, bottom + 34, label, anchor="middle")


def _upright(axis: Axis, left: float, right: float, label: str, count: int = 4) -> Iterator[str]:
    """The grid and labels of an axis that runs upwards, left of a plot."""
    for value in axis.ticks(count):
        y = axis.place(value)
        yield _line(left, y, right, y, "grid")
        yield _text(left - 6, y + 4, _tick(value), anchor="end")
    yield _text(12, (axis.start + axis.end) / 2, label, anchor="middle", turned=True)


# -- throughput -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of the throughput plot: its name, its colour and one figure for each round."""

    name: str
    series: int
    samples: tuple[float, ...]


def throughput_plot(bars: Sequence[Bar], label: str) -> str:
    """For each row a mark at the median, a whisker from the smallest to the largest round, and a dot for each."""
    height = 40.0 * len(bars)
    axis = Axis(0.0, 1.06 * max(max(bar.samples) for bar in bars) or 1.0, 6.0, WIDTH - 60)
    parts = list(_across(axis, 4, height, label))
    for number, bar in enumerate(bars):
        y, low, high = 40.0 * number + 28, min(bar.samples), max(bar.samples)
        median = float(np.median(bar.samples))
        words = f"{bar.name}: median {shown(median)}, {shown(low)} to {shown(high)} in {len(bar.samples)} rounds"
        line = f"stroke:{color(bar.series)};stroke-width:2.2"
        parts.append(_text(axis.start, y - 11, bar.name, kind="name"))
        parts.append(_line(axis.place(low), y, axis.place(high), y, "whisker", line))
        parts += [_line(axis.place(x), y - 5, axis.place(x), y + 5, "whisker", line) for x in {low, high}]
        parts += [
            f'<circle cx="{axis.place(x):.1f}" cy="{y:.1f}" r="2" style="fill:{color(bar.series)};fill-opacity:.45"/>'
            for x in bar.samples
        ]
        parts.append(_mark(axis.place(median), y, bar.series, words))
        parts.append(_text(axis.place(high) + 10, y + 4, shown(median), kind="name"))
    return _drawing(WIDTH, height + 42, f"Throughput by row, {label}", parts)


@dataclass(frozen=True, slots=True)
class Point:
    """Throughput at one batch: median, smallest and largest."""

    batch: int
    median: float
    smallest: float
    largest: float


def batch_plot(series: Mapping[str, Sequence[Point]], label: str) -> str:
    """Throughput over the batch, by its logarithm; a line and a mark of its own for each backend and precision."""
    points = [point for line in series.values() for point in line]
    batches = sorted({point.batch for point in points})
    across = Axis(batches[0], batches[-1], _LEFT + 12, WIDTH - _RIGHT - 12, is_log=True)
    upwards = Axis(0.0, 1.06 * max(point.largest for point in points), 230.0, 10.0)
    parts = list(_upright(upwards, _LEFT, WIDTH - _RIGHT, label))
    parts += [_text(across.place(batch), 246, str(batch), anchor="middle") for batch in batches]
    parts.append(_text((across.start + across.end) / 2, 264, "batch, frames", anchor="middle"))
    for number, (name, line) in enumerate(series.items()):
        ordered = sorted(line, key=lambda point: point.batch)
        path = " ".join(f"{across.place(point.batch):.1f},{upwards.place(point.median):.1f}" for point in ordered)
        parts.append(f'<polyline points="{path}" class="curve" style="stroke:{color(number)}"/>')
        for point in ordered:
            x, y = across.place(point.batch), upwards.place(point.median)
            stroke = f"stroke:{color(number)}"
            parts.append(_line(x, upwards.place(point.smallest), x, upwards.place(point.largest), "whisker", stroke))
            parts.append(_mark(x, y, number, f"{name}, batch {point.batch}: {shown(point.median)}"))
    return _drawing(WIDTH, 270, f"Throughput by batch, {label}", parts)


# -- latency ----------------------------------------------------------------------------------------------------------


def latency_plot(rows: Mapping[str, Sequence[float]]) -> str:
    """A histogram of latencies in ms for each of up to six rows, one under another, with p50, p90 and p99."""
    rows = dict(list(rows.items())[:MOST_HISTOGRAMS])
    values = np.concatenate([np.asarray(samples, np.float64) for samples in rows.values()])
    low, high = float(values.min()), float(values.max())
    is_log = low > 0 and high > 8 * float(np.median(values))
    axis = Axis(low / 1.1 if is_log else 0.0, 1.04 * high or 1.0, 8.0, WIDTH - _RIGHT, is_log=is_log)
    pace = 130.0
    bottom = pace * len(rows)
    parts = list(_across(axis, 16, bottom, "latency, ms" + (" (logarithmic)" if is_log else "")))
    for number, (name, samples) in enumerate(rows.items()):
        parts += _histogram(axis, name, np.asarray(samples, np.float64), pace * number + 14, pace * (number + 1))
    return _drawing(WIDTH, bottom + 42, "Histogram of latencies with their percentiles", parts)


def _histogram(axis: Axis, name: str, samples: Any, top: float, bottom: float) -> Iterator[str]:
    yield _text(axis.start, top, name, kind="name")
    edges = np.geomspace(axis.low, axis.high, _BINS + 1) if axis.is_log else np.linspace(axis.low, axis.high, _BINS + 1)
    counts, _ = np.histogram(samples, edges)
    room = bottom - top - 50
    for left, right, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        if count:
            x, height = axis.place(left), room * count / counts.max()
            words = f"{count} of {len(samples)} from {shown(left)} to {shown(right)} ms"
            style = "fill:var(--p0);fill-opacity:.75"
            yield _box(x, bottom - height, axis.place(right) - x - 0.6, height, style, words)
    yield _line(axis.start, bottom, axis.end, bottom, "base")
    for level, percentile in enumerate((50, 90, 99)):
        value = float(np.percentile(samples, percentile))
        x, y = axis.place(value), top + 15 + 13 * level
        yield _line(x, y - 8, x, bottom, "mark")
        is_right = x > axis.end - 90
        words = f"p{percentile} {shown(value)} ms"
        yield _text(x - 4 if is_right else x + 4, y, words, anchor="end" if is_right else "start", kind="halo")


# -- stages -----------------------------------------------------------------------------------------------------------


def stages_plot(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """For each row and stage a bar: seconds busy, filled, then seconds of waiting, hollow; summed over threads."""
    most = max(_seconds(time) for stages in rows.values() for time in stages.values())
    left = 92.0
    axis = Axis(0.0, 1.02 * most or 1.0, left, WIDTH - 66)
    parts, y = [], 2.0
    for name, stages in rows.items():
        parts.append(_text(0, y + 14, name, kind="name"))
        y += 20
        for stage, time in stages.items():
            parts += _stage_bar(axis, y, stage, time)
            y += 21
        y += 8
    return _drawing(WIDTH, y + 38, "Busy and waiting time of the stages", [*_across(axis, 22, y, "seconds"), *parts])


def _stage_bar(axis: Axis, y: float, stage: str, time: Mapping[str, float]) -> Iterator[str]:
    busy, wait, tint = time["busy_seconds"], time["wait_seconds"], stage_color(stage)
    middle, end = axis.place(busy), axis.place(busy + wait)
    yield _text(axis.start - 6, y + 12, stage, anchor="end")
    hollow = f"fill:{tint};fill-opacity:.16;stroke:{tint};stroke-opacity:.55"
    yield _box(middle, y + 2.5, end - middle, 11, hollow, f"{stage} waited {shown(wait)} s")
    yield _box(axis.start, y + 2, middle - axis.start, 12, f"fill:{tint}", f"{stage} was busy {shown(busy)} s")
    share = busy / (busy + wait) if busy + wait else 0.0
    yield _text(end + 6, y + 12, f"{100 * share:.0f} % busy")


def _seconds(time: Mapping[str, float]) -> float:
    return float(time["busy_seconds"] + time["wait_seconds"])


# -- timeline ---------------------------------------------------------------------------------------------------------


def timeline_stages(spans: Iterable[Mapping[str, Any]]) -> list[str]:
    """The stages of a timeline, in the order of the loop."""
    found = {str(span.get("stage", "?")) for span in spans}
    return [*(stage for stage in _STAGES if stage in found), *sorted(found - set(_STAGES))]


def timeline_plot(spans: Sequence[Mapping[str, Any]], *, seconds: float = 0.5) -> str:
    """A few batches on their way: a lane for each thread, a box for each stretch of work, coloured by stage.

    It begins where every stage has worked once, and lasts `seconds`, longer if that would be less than a few runs of
    the slowest stage.
    """
    rows = lanes(spans)
    start, end = _window(rows, seconds)
    shown_rows = [lane for lane in rows if any(_is_in(stretch, start, end) for stretch in lane.stretches)]
    left_out, shown_rows = max(0, len(shown_rows) - _LANES), shown_rows[:_LANES]
    left, pace = 110.0, 25.0
    height = pace * len(shown_rows) + 6
    axis = Axis(start / 1e6, end / 1e6, left, WIDE - _RIGHT)
    label = "ms since the pass began" + (f"; {left_out} more threads are not shown" if left_out else "")
    parts = list(_across(axis, 4, height, label, 8))
    for number, lane in enumerate(shown_rows):
        y = pace * number + 6
        parts.append(_text(left - 8, y + 14, _cut(lane.name, 17), anchor="end"))
        parts.append(_line(left, y + pace - 3, WIDE - _RIGHT, y + pace - 3, "grid"))
        inside = [stretch for stretch in lane.stretches if _is_in(stretch, start, end)]
        parts += [_stretch_box(axis, y, stretch) for stretch in inside[: _STRETCHES // len(shown_rows)]]
    return _drawing(WIDE, height + 42, "Timeline of a few batches, a lane for each thread", parts)


def _window(rows: Sequence[Lane], seconds: float) -> tuple[int, int]:
    first: dict[str, int] = {}
    longest: dict[str, list[int]] = {}
    for lane in rows:
        for stretch in lane.stretches:
            first[stretch.stage] = min(first.get(stretch.stage, stretch.start), stretch.start)
            longest.setdefault(stretch.stage, []).append(stretch.end - stretch.start)
    last = max(stretch.end for lane in rows for stretch in lane.stretches)
    length = max(seconds * 1e9, 6 * max(float(np.median(lengths)) for lengths in longest.values()), 1000.0)
    start = max(0, min(max(first.values()), round(last - length)))
    return start, round(min(start + length, max(last, start + 1000)))


def _is_in(stretch: Stretch, start: int, end: int) -> bool:
    return stretch.start < end and stretch.end > start


def _stretch_box(axis: Axis, y: float, stretch: Stretch) -> str:
    begin, end = (min(max(axis.place(moment / 1e6), axis.start), axis.end) for moment in (stretch.start, stretch.end))
    about = "".join(f", {key} {value}" for key, value in stretch.about.items())
    words = f"{stretch.stage}: {shown((stretch.end - stretch.start) / 1e6)} ms{about}"
    return _box(begin, y + 2, max(1.2, end - begin - 0.5), 17, f"fill:{stage_color(stretch.stage)}", words)


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


# -- knee -------------------------------------------------------------------------------------------------------------


def knee_plot(steps: Sequence[Mapping[str, Any]], *, limit_ms: float | None, limit_share: float) -> str:
    """Latency and dropped frames by the number of cameras, which rises; hollow marks could not be sustained."""
    known = [step[key] for step in steps for key in ("p50_ms", "p99_ms") if step.get(key) is not None]
    across = Axis(0.0, 1.04 * steps[-1]["cameras"], _LEFT, WIDTH - _RIGHT)
    top = max([*known, limit_ms or 0.0, 1e-3])
    is_log = bool(known) and min(known) > 0 and top > 20 * min(known)
    latency = Axis(min(known) / 1.3 if is_log else 0.0, top * (1.5 if is_log else 1.08), 200.0, 10.0, is_log=is_log)
    shares = [100 * (step.get("dropped_share") or 0.0) for step in steps]
    dropped = Axis(0.0, 1.1 * max(*shares, 200 * limit_share), 330.0, 232.0)
    parts = list(_upright(latency, _LEFT, WIDTH - _RIGHT, "latency, ms"))
    parts += _upright(dropped, _LEFT, WIDTH - _RIGHT, "dropped, %", 3)
    parts += _across(across, 10, 330, "cameras", min(8, max(1, steps[-1]["cameras"])))
    if limit_ms:
        parts += _limit(latency.place(limit_ms), f"p99 at most {shown(limit_ms)} ms")
    parts += _limit(dropped.place(100 * limit_share), f"below {100 * limit_share:g} %")
    for number, (key, name) in enumerate((("p50_ms", "p50"), ("p99_ms", "p99"))):
        found = [step for step in steps if step.get(key) is not None]
        parts += _knee_curve(across, latency, found, [step[key] for step in found], number, name, "ms")
    parts += _knee_curve(across, dropped, steps, shares, 2, "dropped", "%")
    return _drawing(WIDTH, 372, "Latency and dropped frames by the number of cameras", parts)


def _limit(y: float, words: str) -> list[str]:
    halo = _text(_LEFT + 6, y - 5, words, kind="halo")
    return [_line(_LEFT, y, WIDTH - _RIGHT, y, "mark", "stroke-dasharray:5 4"), halo]


def _knee_curve(
    across: Axis, upwards: Axis, steps: Sequence[Mapping[str, Any]], values: Sequence[float], number: int, *words: str
) -> Iterator[str]:
    places = [(across.place(step["cameras"]), upwards.place(value)) for step, value in zip(steps, values, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" class="curve" style="stroke:{color(number)}"/>'
    name, unit = words
    for (x, y), step, value in zip(places, steps, values, strict=True):
        said = f"{step['cameras']} cameras: {name} {shown(value)} {unit}"
        yield _mark(x, y, number, said, is_full=bool(step.get("sustained")))
