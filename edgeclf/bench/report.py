"""The table that is made from the record of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from edgeclf.bench.baselines import KERAS, OVERLAP, RECOMPUTED
from edgeclf.bench.load import MUCH_FOREIGN_LOAD
from edgeclf.bench.loops import ONE_THREAD, PIPELINED
from edgeclf.bench.timing import STABLE_SPREAD, spread

NARROW, WIDE = 80, 118
_RATES = ("clips_per_second", "frames_per_second")
_UNSTABLE = 0.10  # spread of a rate that makes a row worth a warning
_TITLES = {
    "offline": "files, as fast as they go",
    "single-stream": "one live camera",
    "multi-stream": "live cameras",
    "stages": "every stage alone",
    "extractor": "the extractor alone",
}


def table(record: Mapping[str, Any], width: int = NARROW) -> str:
    """The record as text that is at most `width` columns wide where names allow; from 118 on it tells more."""
    parts = [
        _wrapped(_head(record), width),
        [*_rows(record, width)],
        _wrapped(_unavailable(record), width),
        [*_knee(record)],
        _wrapped((*_ratios(record), *_bound(record)), width),
        [*_stages(record)],
        _wrapped(warnings(record), width),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _wrapped(lines: Iterable[str], width: int) -> list[str]:
    return [part for line in lines for part in wrap(line, width, subsequent_indent="    ", break_on_hyphens=False)]


def _head(record: Mapping[str, Any]) -> Iterator[str]:
    machine = record["environment"]
    yield f"{record['bundle'].get('name', '')}, {_TITLES.get(record['scenario'], record['scenario'])}"
    yield _workload(record)
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    yield f"{machine['processor']}, {machine['cores']} cores{gpu}"
    yield f"{record['rounds']} rounds, medians and spread (quartiles apart); warm-up: {record['warm_up']}"


def _workload(record: Mapping[str, Any]) -> str:
    work = record["workload"]
    if "clips" in work:
        return (
            f"{work['files']} files: {work['clips']} clips of {work['frames']} extracted frames, of "
            f"{work['pictures']} pictures"
        )
    if "camera_fps" in work:
        rates = ", ".join(f"{rate:g}" for rate in work["camera_fps"])
        return f"cameras of {rates} fps, {work['sample_fps']:g} frames/s of each classified, {work['seconds']:g} s each"
    return f"frames of noise, {work.get('frames', '?')} in a run at the most"


def _rows(record: Mapping[str, Any], width: int) -> Iterator[str]:
    rows = [row for row in record["rows"] if row["status"] == "ok"]
    rates = [name for name in _RATES if any(name in row["metrics"] for row in rows)]
    is_wide = width >= WIDE
    shown = rates if is_wide else rates[:1]
    name_width = min(max((len(row["name"]) for row in rows), default=4), 40 if is_wide else NARROW - 50)
    heads = "".join(f"{name.replace('_per_second', '/s'):>10}" for name in shown)
    runs_on = "  runs on" if is_wide else ""
    if any("peak_rss_mb" in row["metrics"] for row in rows):
        yield "RSS: the peak of the whole process, which holds the models of every row"
    yield f"{'':<{name_width}}{heads}{'spread':>7}{'p50 ms':>8}{'p99 ms':>8}{'CPU ms/fr':>10}{'RSS MB':>7}{runs_on}"
    for row in rows:
        for line in _row(row, shown, name_width, is_wide=is_wide):
            yield line if len(line) <= width else f"{line[: width - 1]}…"


def _row(row: Mapping[str, Any], shown: Sequence[str], width: int, *, is_wide: bool) -> Iterator[str]:
    metrics = row["metrics"]
    rates = "".join(f"{_median(metrics, name, 1):>10}" for name in shown)
    apart = f"{spread(metrics[shown[0]]['samples']):.1%}" if shown and shown[0] in metrics else "-"
    p50, p99 = (_median(metrics, f"latency_{name}_ms", 1) for name in ("p50", "p99"))
    cpu = _median(metrics, "cpu_seconds_per_frame", 2, scale=1000)
    rss = _median(metrics, "peak_rss_mb", 0)
    name = row["name"]
    if len(name) > width:  # the figures stand on a line of their own
        yield name
        name = ""
    runs_on = f"  {_placement(row)}" if is_wide else ""
    yield f"{name:<{width}}{rates}{apart:>7}{p50:>8}{p99:>8}{cpu:>10}{rss:>7}{runs_on}"


def _median(metrics: Mapping[str, Any], name: str, digits: int, *, scale: float = 1.0) -> str:
    return f"{scale * metrics[name]['median']:.{digits}f}" if name in metrics else "-"


def _placement(row: Mapping[str, Any]) -> str:
    threads = f"{row['threads'] or 'default'} thread{'' if row['threads'] == 1 else 's'}"
    what = " ".join(part for part in (row["backend"], row["provider"], row["precision"]) if part)
    return f"{what}, {max(1, row['workers'])} x {threads}, batch {row['batch']}"


def _unavailable(record: Mapping[str, Any]) -> Iterator[str]:
    """What does not work, each reason once."""
    names: dict[str, list[str]] = {}
    for row in record["rows"]:
        if row["status"] != "ok":
            names.setdefault(row["reason"], []).append(row["name"])
    for reason, rows in names.items():
        yield f"not here: {'; '.join(rows)}"
        yield f"  {reason}"


def _knee(record: Mapping[str, Any]) -> Iterator[str]:
    steps = record["knee"]
    if not steps:
        return
    heads = f"{'late/early':>12}{'dropped':>9}{'fps each':>10}{'CPU s/s':>9}"
    yield f"{'cameras':>7}{'p50 ms':>9}{'p99 ms':>9}{heads}  verdict"
    for step in steps:
        p50, p99 = ("-" if step[name] is None else f"{step[name]:.1f}" for name in ("p50_ms", "p99_ms"))
        late = "-" if step["late_over_early"] is None else f"{step['late_over_early']:.2f}"
        verdict = "sustained" if step["sustained"] else "not sustained"
        cpu = step["cpu_seconds"] / step["seconds"]
        yield (
            f"{step['cameras']:>7}{p50:>9}{p99:>9}{late:>12}{step['dropped_share']:>9.2%}{step['sampled_fps']:>10.2f}"
            f"{cpu:>9.2f}  {verdict}"
        )
    work = record["workload"]
    if any(not step["sustained"] for step in steps) or len(steps) > 1:
        yield f"{record['sustained_cameras']} cameras sustained at {work['sample_fps']:g} classified frames/s each:"
        yield f"  p99 <= {work['p99_ms']:g} ms, less than 1 % dropped"


def _ratios(record: Mapping[str, Any]) -> Iterator[str]:
    for name, ratio in record["ratios"].items():
        ours, other = (ONE_THREAD, RECOMPUTED) if name == OVERLAP else (PIPELINED, name)
        yield f"{ours} is {ratio:.2f} times {other}"
    yield from _together(record)
    if KERAS in record["ratios"]:
        yield "  (most of that factor is leaving Keras' cost per call: compare the sequential rows with it)"
    elif record["ratios"]:
        yield "no Keras row: name the bundle's model directory with --keras"


def _together(record: Mapping[str, Any]) -> Iterator[str]:
    for row in record["rows"]:
        if "fairness" in row["metrics"]:
            times = _median(row["metrics"], "times_one_at_a_time", 2)
            least = _median(row["metrics"], "fairness", 2)
            yield f"{row['name']}: {times} times one at a time; the slowest got on {least} times as far as the fastest"


def _bound(record: Mapping[str, Any]) -> Iterator[str]:
    bound = record["bound"]
    if not bound:
        return
    if "reached" in bound:
        yield f"pipelined reaches {bound['reached']:.0%} of {bound['of']}, {bound['frames_per_second']:.1f} frames/s"
    if "limited_by" in bound:
        limits = ", ".join(f"{name} {limit:.1f}" for name, limit in bound["limits"].items())
        yield f"  limited by {bound['limited_by']}: {limits} frames/s"
    if side := bound.get("decode_side"):
        yield f'the decode side takes {side["share"]:.2f} of the CPU time per picture that "{side["of"]}" takes'
    if "extractor_run_ms" in bound:
        rested = f", {bound['rested_run_ms']:.1f} ms after a rest" if "rested_run_ms" in bound else ""
        times = f"p99 is {bound['p99_in_runs']:.1f} of them"
        yield f"one extractor run takes {bound['extractor_run_ms']:.1f} ms{rested}; {times}"


def _stages(record: Mapping[str, Any]) -> Iterator[str]:
    """Busy and waiting times of the first row that has some: ours."""
    row = next((row for row in record["rows"] if row["stages"]), None)
    if row is None:
        return
    took = f", {row['seconds_of_median_run']:.2f} s" if "seconds_of_median_run" in row else ""
    yield f"stages of {row['name']} (median run{took}; summed over threads)"
    for name, stage in row["stages"].items():
        yield f"  {name:<10} busy {stage['busy_seconds']:7.2f} s   waiting {stage['wait_seconds']:7.2f} s"


def warnings(record: Mapping[str, Any]) -> Iterator[str]:
    """Why the figures may not be trusted."""
    load = record["environment"].get("foreign_cores")
    if load is not None and load > MUCH_FOREIGN_LOAD:
        yield f"warning: other work kept {load:.2f} cores busy meanwhile (median); compare ratios, not figures"
    restless = [
        row["name"]
        for row in record["rows"]
        for metric in [row["metrics"].get("frames_per_second")]
        if metric and spread(metric["samples"]) > _UNSTABLE
    ]
    if restless:
        yield f"warning: rates differ by more than {_UNSTABLE:.0%} between rounds: {'; '.join(restless)}"
    ours = next((row for row in record["rows"] if row["name"] == PIPELINED and row["status"] == "ok"), None)
    if (
        ours
        and record["scenario"] == "offline"
        and spread(ours["metrics"]["frames_per_second"]["samples"]) > STABLE_SPREAD
    ):
        yield f"the pipelined rate is not stable to {STABLE_SPREAD:.0%}; --stable measures until it is"
