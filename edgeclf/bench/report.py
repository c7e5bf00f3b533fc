"""The record of a benchmark, and the table that is made from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgeclf.bench.environment import environment
from edgeclf.bench.loops import KERAS, ONE_THREAD, PIPELINED, Loop, Run, disagreement
from edgeclf.bench.timing import Distribution, interleaved
from edgeclf.bundle import ModelBundle, sha256_of
from edgeclf.errors import ParityError

SCHEMA_VERSION = 1
ALONE = "extractor alone"
SAME = 0.0  # our own loops must agree to the bit on a CPU; on a GPU the batch may choose the kernel
SAME_ON_GPU = 1e-3
SAME_AS_KERAS = 1e-4


def measure(
    bundle: ModelBundle, loops: Sequence[Loop], sources: Sequence[str], *, rounds: int, progress: Callable[[], None]
) -> dict[str, Any]:
    """The record of a benchmark, JSON-ready: every loop is warmed up by one whole pass, checked, then timed.

    Raises ParityError where a loop gives other scores than the sequential one.
    """
    own = SAME if loops[0].device == "cpu" else SAME_ON_GPU
    warm = {loop.name: _passed(loop, progress) for loop in loops}
    agreement = {name: disagreement(run.clips, warm[ONE_THREAD].clips) for name, run in warm.items()}
    for name, difference in agreement.items():
        if not difference <= (SAME_AS_KERAS if name == KERAS else own):
            raise ParityError(f"{name!r} gives other scores (by {difference:.2g}); timing it means nothing")
    alternatives = {loop.name: loop.run for loop in loops}
    if loops[0].extract_alone:
        alternatives[ALONE] = partial(loops[0].extract_alone, warm[PIPELINED].frames)
    runs = interleaved(alternatives, rounds, progress=progress)
    alone = runs.pop(ALONE, [])
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment(),
        "bundle": {"name": bundle.classifier.name, "extractor_sha256": _extractor_hash(bundle)},
        "sources": _sources(sources, warm[PIPELINED]),
        "warm_up": "one pass of every loop over all sources, not timed",
        "rounds": rounds,
        "loops": [_loop_record(loop, runs[loop.name], agreement[loop.name]) for loop in loops],
        "ratios": _ratios(runs),
        "bound": _bound(runs[PIPELINED], alone),
    }


def _passed(loop: Loop, progress: Callable[[], None]) -> Run:
    run = loop.run()
    progress()
    return run


def _sources(sources: Sequence[str], run: Run) -> dict[str, Any]:
    return {"files": len(sources), "pictures": run.pictures, "frames_extracted": run.frames, "clips": len(run.clips)}


def _extractor_hash(bundle: ModelBundle) -> str:
    """Of the graph that does the work: the classifier's where it takes frames."""
    return sha256_of(bundle.graph(bundle.extractor if bundle.extractor.has_graph else bundle.classifier))


def _loop_record(loop: Loop, runs: Sequence[Run], difference: float) -> dict[str, Any]:
    latencies = [latency for run in runs for latency in run.latencies]
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    return {
        "name": loop.name,
        "extractor": loop.placement,
        "options": loop.options,
        "largest_score_difference": float(f"{difference:.3g}"),
        "clips_per_second": Distribution.of([run.clips_per_second for run in runs]).to_dict(),
        "frames_per_second": Distribution.of([run.frames / run.seconds for run in runs]).to_dict(),
        "cpu_seconds_per_clip": Distribution.of([run.cpu_seconds / len(run.clips) for run in runs]).to_dict(),
        "latency_seconds": Distribution.of(latencies).to_dict() if latencies else None,
        "stages_of_median_run": {name: stage.to_dict() for name, stage in middle.stages.items()},
        "seconds_of_median_run": middle.seconds,
    }


def _ratios(runs: dict[str, list[Run]]) -> dict[str, float]:
    """How many times the clips per second of each baseline: the median over rounds, each compared within itself."""
    ours = runs[PIPELINED]
    return {
        name: round(
            Distribution.of(
                [a.clips_per_second / b.clips_per_second for a, b in zip(ours, others, strict=True)]
            ).median,
            2,
        )
        for name, others in runs.items()
        if name != PIPELINED
    }


def _bound(ours: Sequence[Run], alone: Sequence[Run]) -> dict[str, float] | None:
    """The machine's limit for this extractor, and what share of it the pipelined loop reaches, round by round."""
    if not alone:
        return None
    limits = [run.frames / run.seconds for run in alone]
    shares = [run.frames / run.seconds / limit for run, limit in zip(ours, limits, strict=True)]
    return {
        "extractor_alone_frames_per_second": round(Distribution.of(limits).median, 2),
        "reached": round(Distribution.of(shares).median, 3),
    }


def table(record: dict[str, Any]) -> str:
    """The record as text."""
    machine = record["environment"]
    lines = [
        f"{record['bundle']['name']} on {record['sources']['files']} files: {record['sources']['clips']} clips of "
        f"{record['sources']['frames_extracted']} extracted frames, of {record['sources']['pictures']} pictures",
        f"{machine['processor']}, {machine['cores']} cores; {record['rounds']} interleaved rounds after "
        f"{record['warm_up']}",
        "",
        f"{'loop':<32}{'clips/s':>9}{'min-max':>16}{'frames/s':>10}{'p50 ms':>8}{'p99 ms':>8}{'CPU s/clip':>12}",
    ]
    lines += [_row(loop) for loop in record["loops"]]
    lines += ["", *(f"pipelined is {ratio:.2f} times {name}" for name, ratio in record["ratios"].items())]
    if KERAS in record["ratios"]:
        lines.append("  (most of that factor is leaving Keras' cost per call: compare the sequential rows with it)")
    else:
        lines.append("no Keras row: name the bundle's model directory with --keras")
    if bound := record["bound"]:
        lines.append(
            f"pipelined reaches {bound['reached']:.0%} of the extractor alone on frames in memory, "
            f"{bound['extractor_alone_frames_per_second']:.1f} frames/s"
        )
    lines += ["", *_stage_lines(record)]
    return "\n".join(lines)


def _row(loop: dict[str, Any]) -> str:
    clips, latency = loop["clips_per_second"], loop["latency_seconds"]
    p50, p99 = (f"{1000 * latency[key]:.1f}" for key in ("median", "p99")) if latency else ("-", "-")
    spread = f"{clips['smallest']:.1f}-{clips['largest']:.1f}"
    return (
        f"{loop['name']:<32}{clips['median']:>9.1f}{spread:>16}{loop['frames_per_second']['median']:>10.1f}"
        f"{p50:>8}{p99:>8}{loop['cpu_seconds_per_clip']['median']:>12.3f}"
    )


def _stage_lines(record: dict[str, Any]) -> list[str]:
    pipelined = next(loop for loop in record["loops"] if loop["name"] == PIPELINED)
    lines = [
        f"stages of the pipelined loop (median run, {pipelined['seconds_of_median_run']:.2f} s; summed over threads)"
    ]
    for name, stage in pipelined["stages_of_median_run"].items():
        lines.append(f"  {name:<10} busy {stage['busy_seconds']:7.2f} s   waiting {stage['wait_seconds']:7.2f} s")
    return lines


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
