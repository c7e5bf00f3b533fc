"""Scenarios `single-stream` and `multi-stream`: what happens to pictures that come at a camera's pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np

from edgeclf.bench.asked import Asked, LiveSettings
from edgeclf.bench.cameras import CameraPlan, PacedCamera, Pictures, Show, decoded_again, in_memory, labels_due
from edgeclf.bench.devices import Choice, open_asked, open_one
from edgeclf.bench.load import MUCH_FOREIGN_LOAD, Usage, measured, rss_mb
from edgeclf.bench.rows import Group, RowName, Samples, bundle_of, record_of, row, sources_of, trace_of
from edgeclf.bench.timing import Distribution, interleaved
from edgeclf.bundle import ModelBundle
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.meter import StageTime, clock
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopMeters, LoopOptions, run_loop
from edgeclf.runtime.records import Prediction, SourceEnd
from edgeclf.video import SourceCounts

ALLOWED_DROPS = 0.01
_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly, however many there are
_SETTLE_SECONDS = 1.0  # what waits from the lead is worked off in it
_ENOUGH_FRAMES = 0.97  # of those that should be classified
_RSS_EVERY = 0.2  # seconds
_RUNS_ALONE = 20
_LONGEST_REST = 0.5  # seconds
_WARM_UP = "a lead of one clip per camera, as fast as it is taken, and one second of settling"


@dataclass(frozen=True, slots=True)
class Label:
    """One prediction of a live frame: where in the show its last picture came, 0 to 1, and how long after it."""

    position: float
    latency_seconds: float


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What a number of cameras gave."""

    cameras: int
    seconds: float  # that were measured
    labels: tuple[Label, ...]
    due: int  # labels that there are if nothing is dropped
    counts: tuple[SourceCounts, ...]
    usage: Usage  # of all of it, lead included
    rss: tuple[tuple[float, float], ...]  # position, MB
    stages: dict[str, StageTime] = field(default_factory=dict)

    @property
    def latencies(self) -> list[float]:
        """Seconds from the arrival of a clip's last picture to its label."""
        return [label.latency_seconds for label in self.labels]

    @property
    def sampled_fps(self) -> float:
        """Frames a second of one camera that were classified."""
        return len(self.labels) / self.seconds / self.cameras

    @property
    def frames(self) -> int:
        """Frames that went through the extractor, those of the lead included."""
        return sum(count.processed for count in self.counts)

    @property
    def dropped(self) -> dict[str, int]:
        """Pictures that were dropped, by cause; those of the time to settle are among them."""
        causes = sorted({cause for count in self.counts for cause in count.dropped})
        return {cause: sum(count.dropped.get(cause, 0) for count in self.counts) for cause in causes}

    @property
    def dropped_share(self) -> float:
        """Of the frames that should have been classified while it was measured, the share that was dropped.

        A frame that gave no label was dropped, as far as so many were: those of the time to settle owe none, and what
        had just come when the show ended was not.
        """
        missing = max(0, self.due - len(self.labels))
        return min(missing, sum(self.dropped.values())) / max(1, self.due)

    def late_over_early(self) -> float | None:
        """The median latency of the last third over that of the first: above 1, a queue grows."""
        early, late = (self._third(first) for first in (True, False))
        return float(np.median(late) / np.median(early)) if early and late else None

    def _third(self, first: bool) -> list[float]:
        return [
            label.latency_seconds
            for label in self.labels
            if (label.position < 1 / 3 if first else label.position >= 2 / 3)
        ]


def single_stream(asked: Asked) -> dict[str, Any]:
    """The record of the latency of one camera, with the loop's own settings and with those for latency."""
    bundle, live = _every_frame(asked.bundle, asked.live), asked.live
    with ExitStack() as stack:
        models, failed = open_asked(stack, bundle, asked.choices, name=_settings_name("default"), group="ours")
        quick = {each: open_one(stack, bundle, replace(each, threads=available_cores())) for each in models}
        ways: dict[str, tuple[RowName, Callable[[], LiveRun]]] = {}
        for each, model in models.items():
            for kind, chosen, options in (
                ("default", model, asked.options_for(model)),
                ("latency", quick[each], LoopOptions(workers=1, batch_size=1)),
            ):
                name = _row_name(kind, each, asked, chosen, options)
                ways[name.name] = (name, partial(play, chosen, options, asked.sources[:1], 1, live))
        asked.said(f"1 camera, {len(ways)} settings, {asked.rounds} rounds of {live.seconds:.0f} s each")
        runs = interleaved({name: way for name, (_, way) in ways.items()}, asked.rounds, progress=lambda: None)
        first = next(iter(models.values()))
        record = record_of(
            "single-stream",
            asked.command,
            [*(_row(ways[name][0], each) for name, each in runs.items()), *failed],
            bundle=bundle_of(asked.bundle),
            workload=_workload(asked, bundle),
            warm_up=_WARM_UP,
            rounds=asked.rounds,
            foreign_cores=[run.usage.foreign_cores for each in runs.values() for run in each],
            bound=_one_run(first, next(iter(runs.values()))),
        )
        if asked.traced:
            record["trace"] = _traced(first, asked, 1)
    return record


def multi_stream(asked: Asked) -> dict[str, Any]:
    """The record of how many cameras can be sustained, and of every number that was tried."""
    bundle = _every_frame(asked.bundle, asked.live)
    with ExitStack() as stack:
        models, failed = open_asked(stack, bundle, asked.choices, name="cameras", group="ours")
        rows, knees, sustained_cameras = [], [], list[int]()
        for choice, model in models.items():
            options = asked.options_for(model)
            steps, good = _steps(asked, model, options)
            name = "cameras" if asked.one_choice else f"cameras, {choice}"
            knee = [_step(runs, asked.live) for _, runs in sorted(steps.items())]
            rows.append(_sustained_row(RowName(name, "ours", *_how(model, options)), steps, good))
            knees.append(knee)
            sustained_cameras.append(good)
        first = next(iter(models.values()))
        return record_of(
            "multi-stream",
            asked.command,
            [*rows, *failed],
            bundle=bundle_of(asked.bundle),
            workload=_workload(asked, bundle),
            warm_up=_WARM_UP,
            rounds=asked.rounds,
            foreign_cores=[step["foreign_cores"] for knee in knees for step in knee],
            knee=knees[0],
            sustained_cameras=sustained_cameras[0],
            trace=_traced(first, asked, asked.live.cameras or 2) if asked.traced else None,
        )


def find_knee(is_sustained: Callable[[int], bool], most: int) -> int:
    """The largest number of cameras, up to `most`, that is sustained: by doubling, then by halving what is between."""
    good, tried = 0, 1
    while tried <= most and is_sustained(tried):
        good, tried = tried, min(2 * tried, most) if tried < most else most + 1
    while tried - good > 1:
        middle = (good + tried) // 2
        good, tried = (middle, tried) if is_sustained(middle) else (good, middle)
    return good


def play(
    model: Model,
    options: LoopOptions,
    sources: Sequence[str],
    count: int,
    live: LiveSettings,
    meters: LoopMeters | None = None,
) -> LiveRun:
    """Show the sources on so many simulated cameras, and collect what comes out."""
    names = [f"camera {n}" for n in range(count)]
    show = Show(names, live.seconds, settle_seconds=_SETTLE_SECONDS)
    lead = model.clip.seconds + 1 / model.clip.rate
    plans = _plans(count, live, model.clip.rate)
    cameras = _cameras(show, plans, sources, live, lead)
    meters = meters or LoopMeters()
    watch = _Watch(show)
    gpu = model.extractor.placement.device != "cpu"
    _, usage = measured(partial(_watch_all, watch, show, cameras, model, options, meters), gpu=gpu)
    begin, end = _SETTLE_SECONDS, _SETTLE_SECONDS + live.seconds
    due = sum(labels_due(plan, model.clip, lead, begin, end) for plan in plans)
    labels, counts = tuple(watch.labels), tuple(watch.counts)
    return LiveRun(count, live.seconds, labels, due, counts, usage, tuple(watch.rss), meters.read())


class _Watch:
    """Collects what counts of the records that come, and tells the show who is ready."""

    def __init__(self, show: Show) -> None:
        self.labels: list[Label] = []
        self.counts: list[SourceCounts] = []
        self.rss: list[tuple[float, float]] = []
        self._show = show
        self._looked = 0.0
        self._last: dict[str, dict[str, float]] = {}

    def see(self, record: Any) -> None:
        """One record of the loop. Raises the error of a camera."""
        if isinstance(record, SourceEnd):
            if record.error:
                raise record.error
            self.counts.append(record.counts)
        elif isinstance(record, Prediction):
            self._see_label(record, clock())

    def _see_label(self, label: Prediction, now: float) -> None:
        if "decode" not in label.latency_seconds:  # no live frame
            self._show.join(label.source, now)
            return
        if "partial" in label.flags:  # it is due for what does not come, not for a picture
            return
        again = self._last.get(label.source) == label.latency_seconds  # a frame that fills several slots
        self._last[label.source] = label.latency_seconds
        latency = sum(label.latency_seconds.values())
        arrived = now - latency  # a late label counts too, also after the end
        if again or not self._show.is_measured(arrived):
            return
        self.labels.append(Label(self._show.position(arrived), latency))
        if now - self._looked > _RSS_EVERY:
            self._looked = now
            self.rss.append((self._show.position(arrived), rss_mb()))


def _watch_all(
    watch: _Watch, show: Show, cameras: Sequence[PacedCamera], model: Model, options: LoopOptions, meters: LoopMeters
) -> None:
    options = replace(options, sources_at_once=len(cameras))
    with closing(run_loop(cameras, model, options, meters=meters)) as records:
        try:
            for record in records:
                watch.see(record)
        finally:
            show.stop()  # or the threads that are joined now would wait for what comes next


def _cameras(
    show: Show, plans: Sequence[CameraPlan], sources: Sequence[str], live: LiveSettings, lead_seconds: float
) -> list[PacedCamera]:
    shown: list[Pictures] = [
        in_memory(source) if live.from_memory else partial(decoded_again, source) for source in sources[: len(plans)]
    ]
    return [
        PacedCamera(f"camera {number}", pictures, plan, show, lead_seconds=lead_seconds)
        for number, (pictures, plan) in enumerate(zip(cycle(shown), plans, strict=False))
    ]


def _plans(count: int, live: LiveSettings, rate: float) -> list[CameraPlan]:
    """A plan for each camera; their samples, `rate` a second of each, are spread over the time between two of one."""
    every, length = live.outages
    return [
        CameraPlan(
            fps,
            jitter_seconds=live.jitter_ms / 1000,
            key_pause_seconds=live.key_pause_ms / 1000,
            outage_every_seconds=every,
            outage_seconds=length,
            phase_seconds=number * _GOLDEN % 1 / rate,
            seed=number,
        )
        for number, fps in enumerate(islice(cycle(live.fps), count))
    ]


def _every_frame(bundle: ModelBundle, live: LiveSettings) -> ModelBundle:
    """The bundle with a clip that is due with every sampled frame, so that every one of them has a latency."""
    clip = bundle.classifier.clip.of_stream()
    rate = live.sample_fps or clip.rate
    return replace(bundle, classifier=replace(bundle.classifier, clip=replace(clip, rate=rate, hop_seconds=1 / rate)))


def _settings_name(kind: str) -> str:
    return f"1 camera, {kind} settings"


def _row_name(kind: str, choice: Choice, asked: Asked, model: Model, options: LoopOptions) -> RowName:
    name = _settings_name(kind) if asked.one_choice else f"{_settings_name(kind)}, {choice}"
    group: Group = "ours" if choice == asked.choices[0] else "device"
    return RowName(name, group, *_how(model, options))


def _how(model: Model, options: LoopOptions) -> tuple[Any, int, int]:
    return model.extractor.placement, options.workers, options.batch_size


def _steps(asked: Asked, model: Model, options: LoopOptions) -> tuple[dict[int, list[LiveRun]], int]:
    """What every number of cameras gave that was tried, and the largest one that is sustained."""
    found: dict[int, list[LiveRun]] = {}

    def played(count: int) -> None:
        run = play(model, options, asked.sources, count, asked.live)
        if (run.usage.foreign_cores or 0) > MUCH_FOREIGN_LOAD:
            asked.said(f"{_counted(count)}: again, since other work kept {run.usage.foreign_cores:.2f} cores busy")
            run = play(model, options, asked.sources, count, asked.live)
        found.setdefault(count, []).append(run)
        asked.said(_told(_step([run], asked.live)))

    def is_once(count: int) -> bool:
        played(count)
        return sustained(found[count][0], asked.live)

    def is_mostly(count: int) -> bool:
        while not is_decided([sustained(run, asked.live) for run in found.get(count, [])], asked.rounds):
            played(count)
        return sustained_mostly(found[count], asked.live)

    live = asked.live
    if live.cameras:
        return found, live.cameras if is_mostly(live.cameras) else 0
    knee = confirmed(find_knee(is_once, live.most_cameras), live.most_cameras, is_mostly)
    if knee and 2 * knee <= live.most_cameras and 2 * knee not in found:
        played(2 * knee)  # how it takes too much
    return found, knee


def confirmed(knee: int, most: int, is_mostly: Callable[[int], bool]) -> int:
    """The largest number that is mostly sustained while the next one is not, at the number that was found or near it.

    is_mostly: asked at least once of the number found, and of the one above; it remembers what it has measured.
    """
    if knee and not is_mostly(knee):
        return next((count for count in range(knee - 1, 0, -1) if is_mostly(count)), 0)
    while knee < most and is_mostly(knee + 1):
        knee += 1
    return knee


def is_decided(verdicts: Sequence[bool], rounds: int) -> bool:
    """Whether no further round of so many could change what most of them say."""
    return max(verdicts.count(True), verdicts.count(False)) > rounds / 2 or len(verdicts) >= rounds


def sustained_mostly(runs: Sequence[LiveRun], live: LiveSettings) -> bool:
    """Whether a number of cameras was sustained in more than half of its runs."""
    return 2 * sum(sustained(run, live) for run in runs) > len(runs)


def sustained(run: LiveRun, live: LiveSettings) -> bool:
    """Whether labels came in time and nearly none was missing, of those that the cameras' pictures allow."""
    if not run.labels:
        return False
    in_time = 1000 * Distribution.of(run.latencies).p99 <= live.p99_ms
    return in_time and run.dropped_share < ALLOWED_DROPS and len(run.labels) >= _ENOUGH_FRAMES * run.due


def _step(runs: Sequence[LiveRun], live: LiveSettings) -> dict[str, Any]:
    """What a number of cameras gave: the verdict of most of its runs, and the figures of the middle one of them."""
    verdict = sustained_mostly(runs, live)
    of_most = sorted((run for run in runs if sustained(run, live) == verdict), key=_p99)
    run = of_most[len(of_most) // 2]
    latency = Distribution.of([1000 * seconds for seconds in run.latencies]).to_dict() if run.labels else {}
    ratio = run.late_over_early()
    return {
        "cameras": run.cameras,
        "sustained": verdict,
        "rounds": len(runs),
        "p50_ms": latency.get("median"),
        "p90_ms": latency.get("p90"),
        "p99_ms": latency.get("p99"),
        "labels": len(run.labels),
        "labels_due": run.due,
        "dropped_share": round(run.dropped_share, 5),
        "dropped": run.dropped,
        "sampled_fps": round(run.sampled_fps, 3),
        "late_over_early": None if ratio is None else round(ratio, 3),
        "cpu_seconds": round(run.usage.cpu_seconds, 3),
        "seconds": round(run.usage.seconds, 3),
        "peak_rss_mb": run.usage.peak_rss_mb,
        "rss_first_third_mb": _median([mb for position, mb in run.rss if position < 1 / 3]),
        "rss_last_third_mb": _median([mb for position, mb in run.rss if position >= 2 / 3]),
        "foreign_cores": run.usage.foreign_cores,
    }


def _p99(run: LiveRun) -> float:
    return Distribution.of(run.latencies).p99 if run.labels else float("inf")


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 2) if values else None


def _told(step: dict[str, Any]) -> str:
    p99 = "no label" if step["p99_ms"] is None else f"p50 {step['p50_ms']:.1f} ms, p99 {step['p99_ms']:.1f} ms"
    verdict = "sustained" if step["sustained"] else "not sustained"
    return (
        f"{_counted(step['cameras'])}: {p99}, {step['dropped_share']:.1%} dropped, "
        f"{step['sampled_fps']:.2f} frames/s each: {verdict}"
    )


def _counted(cameras: int) -> str:
    return "1 camera" if cameras == 1 else f"{cameras} cameras"


def _row(name: RowName, runs: Sequence[LiveRun]) -> dict[str, Any]:
    samples = Samples()
    for run in runs:
        samples.add_usage(run.usage, run.frames)
        if run.labels:
            found = Distribution.of([1000 * seconds for seconds in run.latencies])
            samples.add(latency_p50_ms=found.median, latency_p90_ms=found.p90, latency_p99_ms=found.p99)
    samples.values["frames_per_second"] = [len(run.labels) / run.seconds for run in runs]
    latencies = [latency for run in runs for latency in run.latencies]
    return row(name, samples, latencies=latencies, stages=runs[len(runs) // 2].stages)


def _sustained_row(name: RowName, steps: dict[int, list[LiveRun]], good: int) -> dict[str, Any]:
    """The row of the largest number that was sustained; where none was, of the smallest that was tried."""
    shown = good or min(steps)
    made = _row(name, steps[shown])
    samples = Samples({"sustained_cameras": [float(good)]})
    return {**made, "cameras": shown, "metrics": {**samples.to_dict(), **made["metrics"]}}


def _workload(asked: Asked, bundle: ModelBundle) -> dict[str, Any]:
    live, clip = asked.live, bundle.classifier.clip
    return {
        **sources_of(asked.sources),
        "camera_fps": list(live.fps),
        "sample_fps": clip.rate,
        "label_every_seconds": clip.hop_seconds,
        "jitter_ms": live.jitter_ms,
        "key_pause_ms": live.key_pause_ms,
        "outages": list(live.outages),
        "seconds": live.seconds,
        "p99_ms": live.p99_ms,
        "decoded": "beforehand" if live.from_memory else "as it comes",
    }


def _one_run(model: Model, runs: Sequence[LiveRun]) -> dict[str, Any] | None:
    """How long the extractor takes for one frame on the idle machine, and how many of that the median p99 is.

    One run after another, and a run after as much rest as lies between two frames of the camera, half a second at the
    most: caches are cold then.
    """
    p99s = [1000 * Distribution.of(run.latencies).p99 for run in runs if run.latencies]
    if not p99s:
        return None
    frame = np.zeros((1, *model.preprocess.input_shape), np.uint8)

    def one_run(rest: float) -> float:
        time.sleep(rest)
        return 1000 * measured(partial(model.extract, frame))[1].seconds

    alone = Distribution.of([one_run(0.0) for _ in range(_RUNS_ALONE)]).median
    rested = Distribution.of([one_run(min(1 / model.clip.rate, _LONGEST_REST)) for _ in range(_RUNS_ALONE)]).median
    reached = Distribution.of(p99s).median / alone
    return {
        "of": "one run of the extractor",
        "extractor_run_ms": round(alone, 3),
        "rested_run_ms": round(rested, 3),
        "p99_in_runs": round(reached, 2),
    }


def _traced(model: Model, asked: Asked, count: int) -> list[dict[str, Any]]:
    meters = LoopMeters.traced()
    options = asked.options_for(model)
    play(model, options, asked.sources, count, replace(asked.live, seconds=min(2.0, asked.live.seconds)), meters)
    return trace_of(meters.by_stage())
