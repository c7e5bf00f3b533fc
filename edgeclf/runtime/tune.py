"""The fastest way to run a bundle on this machine, found by trying: backend, precision, batch, workers and threads.

What is timed is what the loop does: runs of one session, several at a time, each on frames of its own. Candidates take
turns, so that whatever else the machine does falls on all alike, and those that are clearly behind drop out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import ModelBundle
from edgeclf.errors import EdgeclfError, MissingExtraError, SessionError
from edgeclf.runtime.cores import MAX_WORKERS, available_cores
from edgeclf.runtime.driver import cuda_driver_problem
from edgeclf.runtime.golden import GOLDEN_NAME, noise, read_golden
from edgeclf.runtime.meter import clock
from edgeclf.runtime.model import BF16, Model, open_model
from edgeclf.runtime.prefetch import parallel_map
from edgeclf.runtime.session import BACKENDS, CPU_PRECISIONS, MAX_BATCH, Session, open_session
from edgeclf.runtime.tuned import Objective, Tuned
from edgeclf.runtime.verify import compared
from edgeclf.specs import Device, TensorSpec

_DEVICES: Mapping[str, tuple[Device, ...]] = {  # where a backend runs; others are asked for what was asked of us
    "onnxruntime": ("cuda", "tensorrt", "cpu"),
    "openvino": ("cpu",),
    "tensorrt": ("tensorrt",),
}
_BATCHES = (1, 2, 4, 8, 16, MAX_BATCH)
_MAX_CPU_BATCH = 8
_GPU_WORKERS = (1, 2)  # one is fed while the other runs
_TIE = 0.97  # of the best; closer ones are alike
_FINALIST = 0.9  # of the best; those above it have a final
_BEHIND, _FAR_BEHIND = 0.8, 0.3  # of the best; what lies below is not tried again
_FEW_TURNS = 3  # other work on the machine can make two or three times the difference
_LEADERS = 4  # whose workers and threads are tried
_ROUNDS = 9
_MIN_TURN, _MAX_TURN = 0.02, 0.5  # seconds
_MAX_RUN_SHARE = 0.02  # of all seconds; a batch whose run would take longer is not tried
_BF16_COSINE = 0.99  # the least that is asked for, since no gate of the export has seen what bf16 costs
_CLIP_RUNS = 30
_SCORE_LIMIT = 1e-4  # that two backends may differ in a score


@dataclass(frozen=True, slots=True)
class Way:
    """What runs the graph."""

    backend: str
    device: Device
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.device} {self.precision}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way, and how it is used."""

    way: Way
    batch_size: int = 1
    workers: int = 1
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.way}, batch {self.batch_size}, {self.workers} x {self.threads}"


Measure = Callable[[Candidate, float], float]  # frames a second, in a turn of about so many seconds
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def silently(task: str, count: int) -> AbstractContextManager[Callable[[], None]]:  # noqa: ARG001
    """Progress that nobody sees."""
    return nullcontext(lambda: None)


def tune(
    bundle: ModelBundle,
    device: Device = "auto",
    *,
    objective: Objective = "throughput",
    precision: str = "all",
    seconds: float = 12.0,
    progress: Progress = silently,
) -> dict[str, Any]:
    """The record of all that was tried, JSON-ready; `Tuned(**record["tuned"])` is the winner.

    seconds: about how long to measure; opening sessions comes on top. Raises SessionError where nothing works, and
    BundleError where the bundle does not hold the precision.
    """
    date = datetime.now(timezone.utc).date().isoformat()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    cores = available_cores()
    with closing(Bench(bundle, cores)) as bench:
        ways, unavailable = working_ways(bundle, device, precision, bench, progress)
        if not ways:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items()) or "no backend has it"
            raise SessionError(f"nothing runs {bundle.path.name} on {device} in {precision} ({reasons})")
        search = Search(bench.measure, bench.keep_only, cores, seconds, bundle.extractor.has_graph, progress)
        winner = search.best(ways, objective)
        alone = replace(winner, batch_size=1, workers=1)
        one = [*search.figures.get(alone, ()), *(bench.measure(alone, 0.1) for _ in range(_FEW_TURNS))]
    rates = {each: median(turns) for each, turns in search.figures.items() if each not in search.problems}
    tuned = Tuned(
        objective,
        **_use(winner),
        frames_per_second=_short(rates[winner]),
        latency_seconds=_short(bench.frames_a_row / median(one)),
        date=date,
    )
    return {
        "bundle": bundle.manifest.name,
        "classifier": bundle.classifier.name,
        "load_average": load,
        "tuned": asdict(tuned),
        "tried": [_row(each, search.figures[each]) for each in sorted(rates, key=lambda each: -rates[each])],
        "unavailable": {**unavailable, **{str(each): problem for each, problem in search.problems.items()}},
        "sequence_model": sequence_sessions(bundle) if bundle.extractor.has_graph else {},
    }


# -- what works -------------------------------------------------------------------------------------------------------


def working_ways(
    bundle: ModelBundle, device: Device, precision: str, bench: Bench, progress: Progress
) -> tuple[list[Way], dict[str, str]]:
    """The ways that open here and give the bundle's own answers, and for each other one the reason."""
    precisions, unavailable = usable_precisions(bundle, precision)
    asked, reasons = ways_on(device, precisions)
    unavailable |= reasons
    working: list[Way] = []
    with progress("open", len(asked)) as step:
        for way in asked:
            if way.backend not in unavailable:
                try:
                    _check_answers(bundle, bench.model(way, threads=1), way.precision)
                    working.append(way)
                except MissingExtraError as error:
                    unavailable[way.backend] = str(error)  # said once, not for each precision
                except EdgeclfError as error:
                    unavailable[str(way)] = str(error)
            step()
    return working, unavailable


def usable_precisions(bundle: ModelBundle, wanted: str) -> tuple[list[str], dict[str, str]]:
    """The precisions that the export's gate has passed, and bf16; for each other one in the bundle why it is not taken.

    Raises BundleError where one is wanted that the bundle does not hold.
    """
    entry = bundle.extractor if bundle.extractor.has_graph else bundle.classifier
    if wanted not in ("all", BF16):
        bundle.graph(entry, wanted)
    names = [name for name in (*entry.precisions, BF16) if wanted in ("all", name)]
    problems = {name: problem for name in names if (problem := _gate_problem(bundle, name))}
    return [name for name in names if name not in problems], problems


def ways_on(device: Device, precisions: Iterable[str]) -> tuple[list[Way], dict[str, str]]:
    """Every way that may be tried on a device, and what is left out from the start."""
    reasons: dict[str, str] = {}
    if device == "auto" and (problem := cuda_driver_problem()):
        device, reasons["cuda, tensorrt"] = "cpu", problem
    ways = []
    for backend in BACKENDS:
        places = _DEVICES.get(backend, (device,))
        ways += [
            Way(backend, place, precision)
            for place in places
            for precision in precisions
            if device in ("auto", place) and _may_run(backend, place, precision)
        ]
    return ways, reasons


def _may_run(backend: str, place: Device, precision: str) -> bool:
    if precision == BF16:
        return backend == "openvino"
    return not (place == "tensorrt" and precision in CPU_PRECISIONS)


def _gate_problem(bundle: ModelBundle, precision: str) -> str:
    """Why the export's gate speaks against a precision; empty if it does not."""
    if precision in ("fp32", BF16):
        return ""
    parity, name = bundle.manifest.parity, bundle.classifier.name
    try:
        if left_out := parity.get("left_out", {}).get(precision):
            return f"the export's gate refused it: {'; '.join(left_out)}"
        known = any(row.get("classifier") == name for row in parity.get(precision, ()))
    except (AttributeError, TypeError):  # nobody checked this part of the manifest
        known = False
    return "" if known else f"the bundle does not say what it costs {name}"


def _check_answers(bundle: ModelBundle, model: Model, precision: str) -> None:
    """Raise SessionError unless the model gives the bundle's golden answers.

    Without golden inputs what the export's gate has passed is taken, which bf16 never was.
    """
    if GOLDEN_NAME not in bundle.manifest.files:
        if precision == BF16:
            raise SessionError("the bundle has no golden inputs to prove bf16 with", hint="export it again")
        return
    verdict = compared(model, read_golden(bundle), precision)
    faults = list(verdict.faults)
    if precision == BF16 and not verdict.cosine_min >= _BF16_COSINE:
        faults.append(f"cosine {verdict.cosine_min:.4f}, {_BF16_COSINE} is asked for")
    if faults:
        raise SessionError(f"other answers than the bundle's own: {', '.join(faults)}", hint="see edgeclf verify")


# -- timing -----------------------------------------------------------------------------------------------------------


class Bench:
    """The opened models of a bundle, and how many frames a second each gets through."""

    def __init__(self, bundle: ModelBundle, cores: int) -> None:
        self._bundle = bundle
        self._models: dict[tuple[Way, int], Model] = {}
        self._seconds: dict[Candidate, float] = {}  # that one run took the last time
        self._rows, self.frames_a_row = _rows(bundle, min(cores, MAX_WORKERS) + 1)

    def close(self) -> None:
        """Close every session."""
        self.keep_only(())

    def keep_only(self, ways: Collection[Way]) -> None:
        """Close the sessions of all other ways, which hold much memory; they are opened again if they are asked for."""
        for way, threads in list(self._models):
            if way not in ways:
                self._models.pop((way, threads)).close()
        self._seconds = {candidate: took for candidate, took in self._seconds.items() if candidate.way in ways}

    def model(self, way: Way, threads: int) -> Model:
        """The bundle opened in that way, once."""
        key = way, threads
        if key not in self._models:
            self._models[key] = open_model(
                self._bundle, way.device, precision=way.precision, backend=way.backend, threads=threads
            )
        return self._models[key]

    def measure(self, candidate: Candidate, seconds: float) -> float:
        """Frames a second of a turn that lasts about so long, but one run of each worker at least.

        The first time there are two runs before it: some sessions compile a batch size when it first comes.
        """
        run = partial(_run, self.model(candidate.way, candidate.threads), self._bundle.extractor.has_graph)
        size, workers = candidate.batch_size, candidate.workers
        batches = [self._rows[start : start + size] for start in range(0, len(self._rows) - size + 1, size)]
        if candidate not in self._seconds:
            run(batches[0])
            self._seconds[candidate] = timed(run, batches, runs=1, workers=0)
        runs = workers * max(1, int(seconds / self._seconds[candidate]))
        took = timed(run, batches, runs=runs, workers=workers)
        self._seconds[candidate] = took * workers / runs
        return runs * size * self.frames_a_row / took


def timed(run: Callable[[Any], object], batches: Sequence[Any], *, runs: int, workers: int) -> float:
    """Seconds for so many runs, `workers` at a time as in the loop, on one batch after the other."""
    start = clock()
    with parallel_map(run, islice(cycle(batches), runs), workers=workers, name="tune") as done:
        for _ in done:
            pass
    return clock() - start


def _rows(bundle: ModelBundle, workers: int) -> tuple[NDArray[np.uint8], int]:
    """What is fed in, a batch of the largest size for each worker, and how many frames one row of it is.

    Where a classifier takes frames, a row is a clip, and they run one by one.
    """
    if bundle.extractor.has_graph:
        return noise(bundle.extractor.inputs[0], max(workers * _MAX_CPU_BATCH, 2 * MAX_BATCH)), 1
    clips = bundle.classifier.inputs[0]
    length = bundle.classifier.clip.length
    frames = noise(TensorSpec(clips.name, clips.dtype, (None, *clips.shape[2:])), 2 * length)
    return frames.reshape(2, length, *frames.shape[1:]), length


def _run(model: Model, has_extractor: bool, rows: NDArray[np.uint8]) -> None:
    if has_extractor:
        model.extract(rows)
    else:
        model.classify(rows, np.full(len(rows), model.clip.length, np.int32))


# -- searching --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Search:
    """Tries candidates in stages, and keeps every figure."""

    measure: Measure
    keep_only: Callable[[Collection[Way]], None]
    cores: int
    seconds: float
    batches: bool  # whether anything but one row at a time makes sense
    progress: Progress = silently
    figures: dict[Candidate, list[float]] = field(default_factory=dict)  # frames a second of every turn
    problems: dict[Candidate, str] = field(default_factory=dict)  # of those that failed; their figures are 0

    def best(self, ways: Sequence[Way], objective: Objective) -> Candidate:
        """The winner: of all that are as good as the fastest, the one that asks for least."""
        throughput = objective == "throughput" and self.batches
        self._climb(ways, _BATCHES if throughput else (1,))
        single = self._repeat(list(self.figures), "one run at a time", self._promise, share=0.25)
        leaders = sorted(single, key=self._promise, reverse=True)[:_LEADERS]
        self.keep_only({leader.way for leader in leaders})
        shapes = [shape for leader in leaders for shape in self._shapes(leader, throughput)]
        if set(shapes) - set(self.figures):
            self._repeat(shapes, "workers and threads", self._rate, share=0.35)
        return self._final()

    def _final(self) -> Candidate:
        """The winner of some last turns for the best, which is not decided by how busy the machine once was."""
        best = max(map(self._rate, self.figures))
        if not best:
            raise SessionError(f"every run failed: {next(iter(self.problems.values()))}", hint="see edgeclf doctor")
        finalists = [candidate for candidate in self.figures if self._rate(candidate) >= _FINALIST * best]
        if len(finalists) > 1:
            finalists = self._repeat(finalists, "final", self._rate, share=0.2)
        return choose({candidate: self.figures[candidate][-_ROUNDS:] for candidate in finalists})

    def _climb(self, ways: Sequence[Way], sizes: Sequence[int]) -> None:
        """Try larger and larger batches of each way."""
        turn, climbing = self._turn(0.15, len(ways) * len(sizes)), list(ways)
        with self.progress("batches", len(sizes)) as step:
            for size in sizes:
                climbing = [way for way in climbing if self._may_climb(way, size)]
                for way in climbing:
                    self._try(Candidate(way, size), turn)
                step()

    def _may_climb(self, way: Way, size: int) -> bool:
        """Whether a batch is worth trying: none that is too large or takes too long, or of what failed or is behind."""
        if size == 1 or any(each.way == way for each in self.problems):
            return size == 1
        alike = [each for each in self.figures if each.way.device == way.device]
        best = max((each for each in alike if each.way == way), key=self._rate)
        behind = self._rate(best) < _FAR_BEHIND * max(map(self._rate, alike))
        takes_long = size / self._rate(best) > self.seconds * _MAX_RUN_SHARE
        return not behind and not takes_long and (way.device != "cpu" or size <= _MAX_CPU_BATCH)

    def _repeat(
        self, candidates: Sequence[Candidate], task: str, score: Callable[[Candidate], float], *, share: float
    ) -> list[Candidate]:
        """Turns for each candidate, one after the other in every round; those that are still in it at the end."""
        turn, begun = self._turn(share, len(candidates) * _ROUNDS), clock()
        running = list(candidates)
        with self.progress(task, _ROUNDS) as step:
            for number in range(_ROUNDS):
                if number >= _FEW_TURNS and clock() - begun > 2 * share * self.seconds:  # runs are longer than turns
                    break
                if all(each in self.figures for each in running):
                    running = self._hopeful(running, score)
                start = number % len(running)
                for candidate in (*running[start:], *running[:start]):
                    self._try(candidate, turn)
                step()
        return self._hopeful(running, score)

    def _shapes(self, candidate: Candidate, throughput: bool) -> Iterator[Candidate]:
        """The same with other workers and threads; for latency there is one run at a time."""
        if candidate.way.device != "cpu":
            yield from (replace(candidate, workers=workers) for workers in (_GPU_WORKERS if throughput else (1,)))
            return
        for threads in sorted({*(1 << n for n in range(self.cores.bit_length())), self.cores}):
            workers = min(MAX_WORKERS, self.cores // threads) if throughput else 1
            if not throughput or 2 * workers * threads > self.cores:
                yield replace(candidate, workers=workers, threads=threads)

    def _hopeful(self, candidates: Sequence[Candidate], score: Callable[[Candidate], float]) -> list[Candidate]:
        """Without those that are behind the best; of few turns, far behind the second, since one turn may be luck."""
        second, best = sorted([0.0, *map(score, candidates)])[-2:]
        few = {each for each in candidates if len(self.figures[each]) < _FEW_TURNS}
        return [each for each in candidates if score(each) >= (_FAR_BEHIND * second if each in few else _BEHIND * best)]

    def _rate(self, candidate: Candidate) -> float:
        return median(self.figures[candidate])

    def _promise(self, candidate: Candidate) -> float:
        """What one run on one thread could come to on all cores; a GPU has no more to give."""
        return self._rate(candidate) * (self.cores if candidate.way.device == "cpu" else 1)

    def _try(self, candidate: Candidate, turn: float) -> None:
        """One more figure; one that fails once is out for good: memory for one batch is not enough for another."""
        if candidate not in self.problems:
            try:
                self.figures.setdefault(candidate, []).append(self.measure(candidate, turn))
            except SessionError as error:
                self.problems[candidate], self.figures[candidate] = str(error), [0.0]

    def _turn(self, share: float, turns: int) -> float:
        return min(_MAX_TURN, max(_MIN_TURN, self.seconds * share / turns))


def choose(turns: Mapping[Candidate, Sequence[float]]) -> Candidate:
    """Of those that are as good as the best: the smallest batch, then fp32, ONNX Runtime, fewest threads in a run.

    As good is within 3 %, or within what lies between the best one's own turns, which are far apart on a busy machine.
    """
    rates = {candidate: median(figures) for candidate, figures in turns.items()}
    best = max(rates, key=lambda each: rates[each])
    limit = min(_TIE * rates[best], sorted(turns[best])[len(turns[best]) // 4])
    return min(
        (candidate for candidate in turns if rates[candidate] >= limit),
        key=lambda each: (
            each.batch_size,
            each.way.precision != "fp32",
            each.way.backend != "onnxruntime",
            each.threads,
            -each.workers,  # what is alike on a busy machine is not on a quiet one
            -rates[each],
        ),
    )


# -- the sequence model -----------------------------------------------------------------------------------------------


def sequence_sessions(bundle: ModelBundle) -> dict[str, Any]:
    """Seconds for one clip of features in each backend that runs the classifier on the CPU, or why it does not.

    For the record: the loop runs it on ONNX Runtime, which takes microseconds. OpenVINO gets masked recurrent layers
    wrong; its session refuses them, and answers other than ONNX Runtime's are no answers here.
    """
    graph = bundle.graph(bundle.classifier)
    feeds = [_clip_feeds(bundle.classifier.inputs, length) for length in (bundle.classifier.clip.length, 1)]
    with closing(open_session(graph, "cpu")) as reference:
        expected = [_scores(reference, each) for each in feeds]
    found: dict[str, Any] = {}
    for backend in BACKENDS:
        if "cpu" in _DEVICES.get(backend, ("cpu",)):
            try:
                with closing(open_session(graph, "cpu", backend=backend)) as session:
                    found[backend] = _clip_seconds(session, feeds, expected)
            except EdgeclfError as error:
                found[backend] = {"problem": str(error)}
    return found


def _clip_feeds(inputs: Sequence[TensorSpec], length: int) -> dict[str, NDArray[Any]]:
    """One clip of chance features, zeros behind its length."""
    shape = (1, *(size or 1 for size in inputs[0].shape[1:]))
    features = np.abs(np.random.default_rng(length).standard_normal(shape)).astype(np.float32)
    features[:, length:] = 0
    lengths = np.array([length], np.int32)
    return {spec.name: array for spec, array in zip(inputs, (features, lengths), strict=False)}


def _clip_seconds(
    session: Session, feeds: Sequence[dict[str, NDArray[Any]]], expected: Sequence[NDArray[Any]]
) -> dict[str, Any]:
    off = max(
        float(np.abs(_scores(session, clip) - scores).max()) for clip, scores in zip(feeds, expected, strict=True)
    )
    if not off <= _SCORE_LIMIT:
        return {"problem": f"scores are off by {off:.1e}"}
    seconds = median(timed(partial(_scores, session), feeds[:1], runs=1, workers=0) for _ in range(_CLIP_RUNS))
    return {"seconds_per_clip": _short(seconds)}


def _scores(session: Session, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return session.run(feeds)[session.outputs[0].name]


def _use(candidate: Candidate) -> dict[str, Any]:
    """What a record says of a candidate, by the names of `Tuned`."""
    numbers = {"batch_size": candidate.batch_size, "workers": candidate.workers, "threads": candidate.threads}
    return {**asdict(candidate.way), **numbers}


def _row(candidate: Candidate, rates: Sequence[float]) -> dict[str, Any]:
    figures = {"median": median(rates), "smallest": min(rates), "largest": max(rates)}
    short = {name: _short(figure) for name, figure in figures.items()}
    return {**_use(candidate), "frames_per_second": {**short, "count": len(rates)}}


def _short(figure: float) -> float:
    return float(f"{figure:.6g}")
