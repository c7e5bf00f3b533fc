"""Scenario `offline`: how fast files are classified, beside the loops that ours replaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from edgeclf.bench.asked import Asked
from edgeclf.bench.baselines import (
    KERAS,
    OVERLAP,
    RECOMPUTED,
    TF_FUNCTION,
    keras_loops,
    other_loops,
    require_same_model,
)
from edgeclf.bench.devices import Choice, open_asked, open_one
from edgeclf.bench.loops import (
    DEFAULT_THREADS,
    NEARLY_SAME,
    ONE_THREAD,
    PIPELINED,
    SAME,
    TOLERANCES,
    Loop,
    Run,
    changed_labels,
    disagreement,
    pass_over,
    runtime_loop,
)
from edgeclf.bench.rows import RowName, Samples, bundle_of, record_of, row, sources_of, trace_of, unavailable
from edgeclf.bench.timing import MOST_STABLE_ROUNDS, Distribution, interleaved, is_stable
from edgeclf.bench.together import times_alone, together_loops
from edgeclf.errors import EdgeclfError, ParityError, SessionError
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopMeters, LoopOptions
from edgeclf.runtime.progress import steps
from edgeclf.runtime.session import Placement

ALONE = "extractor alone"
WARM_UP = "one pass of every loop over all sources, not timed"


@dataclass(frozen=True, slots=True)
class Opened:
    """Everything that can be timed, what cannot and why, and what a trace is made with."""

    loops: list[Loop]
    failed: list[dict[str, Any]]
    model: Model
    options: LoopOptions


def offline(asked: Asked) -> dict[str, Any]:
    """The record of throughput over files."""
    if asked.keras:
        require_same_model(asked.keras, asked.bundle)
    with ExitStack() as stack:
        opened = open_loops(asked, stack)
        asked.said(f"{asked.bundle.classifier.name}: extractor on {opened.model.extractor.placement}")
        rounds = MOST_STABLE_ROUNDS if asked.stable else asked.rounds
        with steps("passes", len(opened.loops) * (rounds + 1) + rounds) as advance:
            record = measure(asked, opened.loops, progress=advance)
        record["rows"] += opened.failed
        if asked.traced:
            meters = LoopMeters.traced()
            pass_over(opened.model, opened.options, asked.sources, meters)
            record["trace"] = trace_of(meters.by_stage())
    return record


def open_loops(asked: Asked, stack: ExitStack) -> Opened:
    """Our loops on the first choice that works, the loops of others, and the pipelined loop on every other choice."""
    models, failed = open_asked(stack, asked.bundle, asked.choices, name=PIPELINED, group="device")
    choice, model = next(iter(models.items()))
    single = model if choice.threads == 1 else open_one(stack, asked.bundle, replace(choice, threads=1))
    options = asked.options_for(model)
    own = SAME if model.extractor.placement.provider == "CPU" else TOLERANCES.get(choice.precision, NEARLY_SAME)
    sources = asked.sources
    loops = [
        runtime_loop(PIPELINED, model, options, sources, tolerance=own),
        runtime_loop(ONE_THREAD, single, options.sequential(), sources),
        *together_loops(model, options, sources, own),
    ]
    if _is_asked(asked, DEFAULT_THREADS):
        default = open_one(stack, asked.bundle, replace(choice, threads=0))
        loops.insert(2, runtime_loop(DEFAULT_THREADS, default, options.sequential(), sources, tolerance=own))
    ours = len(loops)
    for each, other in [*models.items()][1:]:
        name = f"{PIPELINED}, {each}"
        allowed = max(TOLERANCES.get(precision, NEARLY_SAME) for precision in (choice.precision, each.precision))
        loops.append(runtime_loop(name, other, asked.options_for(other), sources, group="device", tolerance=allowed))
    baselines, missing = _baselines(asked, stack, choice, single, options)
    every = [*loops[:ours], *baselines, *loops[ours:]]
    kept = [loop for loop in every if loop.name.name in (PIPELINED, ONE_THREAD) or _is_asked(asked, loop.name.name)]
    _check_rows(asked, [*(loop.name.name for loop in every), *(row["name"] for row in (*missing, *failed))])
    return Opened(kept, [*missing, *failed], model, options)


def _is_asked(asked: Asked, name: str) -> bool:
    return not asked.rows or any(part in name for part in asked.rows)


def _check_rows(asked: Asked, names: Sequence[str]) -> None:
    """Say before anything is timed that a row which was asked for is none."""
    for part in asked.rows:
        if not any(part in name for name in names):
            raise SessionError(f"no row is named {part!r}", hint="without --row all are measured, with their names")


def _baselines(
    asked: Asked, stack: ExitStack, choice: Choice, model: Model, options: LoopOptions
) -> tuple[list[Loop], list[dict[str, Any]]]:
    loops: list[Loop] = []
    failed: list[dict[str, Any]] = []
    others = other_loops(stack, asked.bundle, replace(choice, threads=1), model, asked.sources, options.batch_size)
    for name, open_loop in others.items():
        if not _is_asked(asked, name):
            continue
        try:
            loops.append(open_loop())
        except EdgeclfError as error:
            failed.append(
                unavailable(RowName(name, "baseline", Placement("", "", "cpu", choice.precision, 0)), str(error))
            )
    if asked.keras and any(_is_asked(asked, name) for name in (KERAS, TF_FUNCTION)):
        loops += keras_loops(asked.keras, asked.sources, TOLERANCES.get(choice.precision, NEARLY_SAME))
    return loops, failed


def measure(asked: Asked, loops: Sequence[Loop], *, progress: Callable[[], None]) -> dict[str, Any]:
    """The record: every loop is warmed up by one whole pass, checked, then timed with all others, round by round.

    Raises ParityError where a loop that is required gives other scores than the sequential one.
    """
    warm, failed = _warmed_up(loops, progress)
    reference = warm[ONE_THREAD]
    checked = {
        loop.name.name: _checked(loop, warm[loop.name.name], reference) for loop in loops if loop.name.name in warm
    }
    failed += [row for row in checked.values() if row["status"] != "ok"]
    timed = [loop for loop in loops if checked.get(loop.name.name, {}).get("status") == "ok"]
    alternatives: dict[str, Callable[[], Run]] = {loop.name.name: loop.run for loop in timed}
    if alone := loops[0].extract_alone:
        alternatives[ALONE] = partial(alone, reference.work.frames)
    runs = _timed(asked, alternatives, progress)
    limits = runs.pop(ALONE, [])
    every = [run for each in (*runs.values(), limits) for run in each]
    return record_of(
        "offline",
        asked.command,
        [*(_row(loop, runs, checked[loop.name.name]["agreement"]) for loop in timed), *failed],
        bundle=bundle_of(asked.bundle),
        workload={
            **sources_of(asked.sources),
            "pictures": warm[PIPELINED].work.pictures,
            "frames": reference.work.frames,
            "clips": len(reference.work.clips),
        },
        warm_up=WARM_UP,
        rounds=len(runs[PIPELINED]),
        foreign_cores=[run.usage.foreign_cores for run in every],
        ratios=_ratios(runs, [loop.name.name for loop in timed if loop.name.group != "device"]),
        bound=_bound(runs[PIPELINED], limits),
    )


def _warmed_up(loops: Sequence[Loop], progress: Callable[[], None]) -> tuple[dict[str, Run], list[dict[str, Any]]]:
    """What one pass of each loop gave, and a row with the reason for each that cannot run."""
    warm: dict[str, Run] = {}
    failed: list[dict[str, Any]] = []
    for loop in loops:
        try:
            warm[loop.name.name] = loop.run()
        except EdgeclfError as error:
            if loop.required:
                raise
            failed.append(unavailable(loop.name, str(error)))
        progress()
    return warm, failed


def _checked(loop: Loop, run: Run, reference: Run) -> dict[str, Any]:
    """The row of a loop whose scores differ by too much, or how far they are from the sequential loop's."""
    difference = disagreement(run.work.clips, reference.work.clips)
    if difference <= (float("inf") if loop.tolerance is None else loop.tolerance) and difference != float("inf"):
        changed = changed_labels(run.work.clips, reference.work.clips)
        found = {"largest_score_difference": float(f"{difference:.3g}"), "changed_labels": changed}
        return {"status": "ok", "agreement": found}
    said = "makes other clips" if difference == float("inf") else f"gives other scores (by {difference:.2g})"
    if loop.required:
        hint = "is it the model that the bundle was made of?" if loop.name.group == "baseline" else ""
        raise ParityError(f"{loop.name.name!r} {said}; timing it means nothing", hint=hint)
    return unavailable(loop.name, f"it {said}; timing it means nothing")


def _timed(
    asked: Asked, alternatives: dict[str, Callable[[], Run]], progress: Callable[[], None]
) -> dict[str, list[Run]]:
    rounds = MOST_STABLE_ROUNDS if asked.stable else asked.rounds

    def enough(runs: dict[str, list[Run]]) -> bool:
        return asked.stable and is_stable([run.frames_per_second for run in runs[PIPELINED]])

    return interleaved(alternatives, rounds, progress=progress, enough=enough)


def _row(loop: Loop, every: dict[str, list[Run]], agreement: dict[str, Any]) -> dict[str, Any]:
    samples, runs = Samples(), every[loop.name.name]
    for run in runs:
        samples.add(clips_per_second=run.clips_per_second)
        samples.add_usage(run.usage, run.work.frames)
        if run.latencies:
            found = Distribution.of(run.latencies)
            samples.add(latency_p50_ms=1000 * found.median, latency_p99_ms=1000 * found.p99)
        samples.add(fairness=run.work.fairness)
    for ratio in times_alone(every, loop.name.name):
        samples.add(times_one_at_a_time=ratio)
    middle = sorted(runs, key=lambda run: run.usage.seconds)[len(runs) // 2]
    return row(
        loop.name,
        samples,
        latencies=[latency for run in runs for latency in run.latencies],
        stages=middle.work.stages,
        agreement=agreement,
        stable=is_stable([run.frames_per_second for run in runs]),
        seconds_of_median_run=round(middle.usage.seconds, 4),
    )


def _ratios(runs: dict[str, list[Run]], names: Sequence[str]) -> dict[str, float]:
    """How many times the clips per second of each: the median over rounds, each compared within itself.

    The pipelined loop is compared with all but the loop that recomputes windows: that one has a single thread, and is
    compared with our own on one, so that the ratio is what overlap saves, without a second core.
    """
    others = [name for name in names if name not in (PIPELINED, RECOMPUTED)]
    ratios = {name: _times(runs[PIPELINED], runs[name]) for name in others}
    return ratios | ({OVERLAP: _times(runs[ONE_THREAD], runs[RECOMPUTED])} if RECOMPUTED in names else {})


def _times(ours: Sequence[Run], theirs: Sequence[Run]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return round(Distribution.of([a.clips_per_second / b.clips_per_second for a, b in pairs]).median, 2)


def _bound(ours: Sequence[Run], alone: Sequence[Run]) -> dict[str, Any] | None:
    """The machine's limit for this extractor, and what share of it the pipelined loop reaches, round by round."""
    if not alone:
        return None
    limits = [run.frames_per_second for run in alone]
    shares = [run.frames_per_second / limit for run, limit in zip(ours, limits, strict=True)]
    return {
        "of": "the extractor alone on frames in memory",
        "frames_per_second": round(Distribution.of(limits).median, 2),
        "reached": round(Distribution.of(shares).median, 3),
    }
