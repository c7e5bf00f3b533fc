"""Everything that this machine can do with the packaged bundles, tried one thing after the other: a report to paste."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from edgeclf import __version__
from edgeclf.bundle import open_classifiers
from edgeclf.errors import EdgeclfError, MissingExtraError, SessionError, import_extra
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.driver import cuda_driver_problem, device_identity
from edgeclf.runtime.engine_cache import engine_folder
from edgeclf.runtime.machine import first_line, package_version, processor
from edgeclf.runtime.selftest_subjects import BATCHES, Arrays, Subject, subjects_of
from edgeclf.runtime.session import CPU_PRECISIONS, Session, open_session
from edgeclf.runtime.sessions.cuda import import_cuda
from edgeclf.runtime.sessions.openvino import missing_arithmetic
from edgeclf.runtime.sessions.providers import PROVIDERS
from edgeclf.runtime.tensorrt_engine import EnginePrecision, import_tensorrt
from edgeclf.specs import Device

Outcome = Literal["passed", "failed", "not possible"]
# Of the answers' norm, against ONNX Runtime on the CPU with the same file; FP32 without TF32.
ALLOWED = {"fp32": 0.001, "fp16": 0.02, "int8": 0.1}
_ROUNDING = 1e-4  # of one batch size and another, in one library
_OPENINGS = 20
_LEAK_HOST_BYTES = 64 << 20
_LEAK_GPU_BYTES = 16 << 20
_MIN_RUNS, _MAX_RUNS, _MIN_SECONDS, _WARM_UP = 5, 200, 0.3, 3
_PACKAGES = ("tensorrt", "cuda-python", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "opencv-python-headless")
_JETPACK = Path("/etc/nv_tegra_release")


class NotPossible(Exception):  # noqa: N818  it is an answer, not an error
    """This machine lacks what the check is about."""


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one thing that was tried."""

    name: str
    outcome: Outcome
    detail: str  # figures, or the reason
    seconds: float

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.outcome:<12}  {self.name}{detail}"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a graph took here: the median of runs behind a warm-up, copies to and from the device included."""

    graph: str
    runs_on: str
    batch: int
    median_ms: float
    per_second: float  # frames of an extractor, clips of a classifier
    runs: int


@dataclass(frozen=True, slots=True)
class Report:
    """The machine, and what it can do."""

    environment: Mapping[str, str]
    checks: tuple[Check, ...]
    timings: tuple[Timing, ...]

    @property
    def failed(self) -> bool:
        """Whether anything failed; what is not possible here has not."""
        return any(check.outcome == "failed" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "failed": self.failed,
            "environment": dict(self.environment),
            "checks": [asdict(check) for check in self.checks],
            "timings": [asdict(timing) for timing in self.timings],
        }

    def __str__(self) -> str:
        width = max(map(len, self.environment), default=0)
        lines = ["edgeclf selftest", ""]
        lines += [f"{name:<{width}}  {value}" for name, value in self.environment.items()]
        lines += ["", *map(str, self.checks), "", *_timing_lines(self.timings)]
        counts = {outcome: sum(check.outcome == outcome for check in self.checks) for outcome in get_args(Outcome)}
        return "\n".join([*lines, ", ".join(f"{count} {outcome}" for outcome, count in counts.items())])


@dataclass
class _Tests:
    """What was tried so far."""

    say: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    def attempt(self, name: str, work: Callable[[], str]) -> None:
        """Try one thing; whatever it raises is its result, and the next is tried."""
        started = time.monotonic()
        outcome: Outcome = "passed"
        try:
            detail = work()
        except (NotPossible, MissingExtraError) as reason:
            outcome, detail = "not possible", str(reason)
        except EdgeclfError as error:
            outcome, detail = "failed", str(error)
        except Exception as error:  # noqa: BLE001  a report that ends at the first surprise helps nobody
            outcome, detail = "failed", f"{type(error).__name__}: {error}"
        self.checks.append(Check(name, outcome, " ".join(detail.split()), round(time.monotonic() - started, 3)))
        self.say(self.checks[-1])

    def time(self, subject: Subject, session: Session) -> str:
        """Time all batch sizes of an opened session."""
        for batch in BATCHES:
            self.timings.append(_timed(subject, session, batch))
        return f"{self.timings[-1].per_second:.0f} a second in batches of {BATCHES[-1]}"


def run_selftest(
    bundles: Sequence[str] = (), *, gpu: bool = False, say: Callable[[Check], None] = lambda _: None
) -> Report:
    """Try everything on the CPU and, if asked, on the GPU; without a GPU that is a failure with its reason.

    bundles: names or paths, all packaged ones if none is given; BundleError where one cannot be opened. say: told of
    each check when it is done.
    """
    for bundle in bundles:
        open_classifiers(bundle)
    tests = _Tests(say)
    subjects: list[Subject] = []

    def open_bundles() -> str:
        subjects.extend(subjects_of(bundles))
        return f"{len(subjects)} graphs; they are given rendered pictures"

    tests.attempt("the bundles open", open_bundles)
    for subject in subjects:
        _try_on_cpu(tests, subject)
    smallest = sorted(subjects, key=lambda subject: subject.graph.stat().st_size)[:1]
    for subject in smallest:
        tests.attempt(f"{_OPENINGS} openings on the CPU leave nothing", partial(_host_leak, subject, "cpu"))
    if gpu:
        _try_on_gpu(tests, subjects, smallest)
    return Report(environment(), tuple(tests.checks), tuple(tests.timings))


def _try_on_cpu(tests: _Tests, subject: Subject) -> None:
    name = f"{subject.name} {subject.precision}"
    tests.attempt(f"{name}: ONNX Runtime on the CPU gives the same in any batch", lambda: _batches_agree(subject))
    if subject.is_extractor:  # OpenVINO's session takes no recurrent layers
        tests.attempt(f"{name}: OpenVINO agrees with ONNX Runtime", lambda: _agrees(subject, "cpu", "openvino"))
    tests.attempt(f"{name}: timing on the CPU", lambda: _time(tests, subject, "cpu", "onnxruntime"))


def _try_on_gpu(tests: _Tests, subjects: Sequence[Subject], smallest: Sequence[Subject]) -> None:
    problem = cuda_driver_problem()

    def on_gpu(name: str, work: Callable[[], str]) -> None:
        def gated() -> str:
            if problem:
                raise NotPossible("no GPU")
            return work()

        tests.attempt(name, gated)

    tests.attempt("there is an NVIDIA GPU", lambda: _gpu(problem))
    before = len(tests.checks)
    for subject in subjects:
        for name, work in _gpu_checks(tests, subject):
            on_gpu(f"{subject.name} {subject.precision}: {name}", work)
    for subject in smallest:
        on_gpu(f"{_OPENINGS} openings on the GPU leave nothing", partial(_gpu_leak, subject))
    ran = any(check.outcome == "passed" for check in tests.checks[before:])
    if not problem and not ran:
        tests.attempt("something ran on the GPU", _nothing_ran)


def _gpu_checks(tests: _Tests, subject: Subject) -> Iterator[tuple[str, Callable[[], str]]]:
    if subject.precision in CPU_PRECISIONS:
        return
    yield "TensorRT builds, loads and runs it", lambda: _opens_tensorrt(subject)
    yield "TensorRT agrees with ONNX Runtime on the CPU", lambda: _agrees(subject, "tensorrt", "tensorrt")
    yield "a CUDA graph gives what a plain run gives", lambda: _graph_agrees(subject)
    yield "the second opening takes the engine from the cache", lambda: _engine_is_cached(subject)
    yield "timing in TensorRT", lambda: _time(tests, subject, "tensorrt", "tensorrt")
    if subject.is_extractor and subject.precision == "fp32":
        yield "ONNX Runtime agrees on CUDA", lambda: _provider_agrees(subject, "cuda")
        yield "ONNX Runtime agrees on its TensorRT provider", lambda: _provider_agrees(subject, "tensorrt")


def _gpu(problem: str) -> str:
    if problem:
        raise SessionError(problem, hint="edgeclf doctor says more")
    return str(device_identity())


def _nothing_ran() -> str:
    raise SessionError(
        "there is a GPU, and nothing can use it", hint='pip install "edgeclf[gpu]" or "edgeclf[tensorrt]"'
    )


# What is tried.


def _open(subject: Subject, device: Device, backend: str) -> Session:
    if backend == "tensorrt" and subject.precision not in get_args(EnginePrecision):
        raise NotPossible(f"TensorRT runs {', '.join(get_args(EnginePrecision))}")
    if backend == "openvino" and (reason := missing_arithmetic(subject.precision)):
        raise NotPossible(reason)
    return open_session(subject.graph, device, precision=subject.precision, backend=backend, max_batch=BATCHES[-1])


def _opens_tensorrt(subject: Subject) -> str:
    started = time.monotonic()
    with closing(_open(subject, "tensorrt", "tensorrt")) as session:
        opened = time.monotonic() - started
        session.run(subject.first(1))
        return f"{session.placement}; opened in {opened:.1f} s"


def _batches_agree(subject: Subject) -> str:
    return _agrees(subject, "cpu", "onnxruntime", allowed=_ROUNDING if subject.precision == "fp32" else None)


def _agrees(subject: Subject, device: Device, backend: str, *, allowed: float | None = None) -> str:
    """Compare every batch size with the reference, three times each: a backend may do another thing each time."""
    with closing(_open(subject, device, backend)) as session:
        worst = max(
            _difference(session.run(subject.first(batch)), subject.reference(), batch)
            for batch in BATCHES
            for _ in range(3)
        )
    limit = ALLOWED.get(subject.precision, max(ALLOWED.values())) if allowed is None else allowed
    found = f"relative difference {worst:.2g}, allowed {limit:g}, batches of {', '.join(map(str, BATCHES))}"
    if not worst <= limit:  # a NaN is no agreement
        raise SessionError(f"the answers differ: {found}", hint="do not use this backend here")
    return found


def _graph_agrees(subject: Subject) -> str:
    """The first run of a batch size is plain, those from the third on replay a graph if there is one."""
    with closing(_open(subject, "tensorrt", "tensorrt")) as session:
        worst = 0.0
        for batch in BATCHES:
            answers = [session.run(subject.first(batch)) for _ in range(4)]
            worst = max(worst, *(_difference(answer, answers[0], batch) for answer in answers[1:]))
        captured = getattr(session, "captured_batches", ())
    if not worst <= _ROUNDING:
        raise SessionError(f"replayed answers differ from plain ones by {worst:.2g}", hint="report it with this text")
    if captured != BATCHES:
        raise NotPossible(f"batches of {', '.join(map(str, captured)) or 'no size'} were captured; --verbose says why")
    return f"relative difference {worst:.2g}"


def _engine_is_cached(subject: Subject) -> str:
    """The first opening builds the engine if there is none; the second must change no file of the cache."""
    _open(subject, "tensorrt", "tensorrt").close()
    before, started = _engine_files(), time.monotonic()
    _open(subject, "tensorrt", "tensorrt").close()
    seconds = time.monotonic() - started
    if not before:
        raise SessionError(f"no engine was kept in {engine_folder()}", hint="set EDGECLF_CACHE_DIR to another folder")
    if before != _engine_files():
        raise SessionError("the second opening built an engine again", hint="report it with this text")
    return f"opened in {seconds:.2f} s"


def _engine_files() -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in engine_folder().glob("*.engine")}


def _provider_agrees(subject: Subject, device: Device) -> str:
    name = PROVIDERS[device]
    if name not in import_extra("onnxruntime", "ONNX Runtime", "gpu").get_available_providers():
        raise NotPossible(f"the installed ONNX Runtime has no {name}")
    return _agrees(subject, device, "onnxruntime")


def _difference(answer: Arrays, reference: Arrays, rows: int) -> float:
    """The largest over all outputs of the difference's norm by that of the reference."""
    if set(answer) != set(reference) or any(len(array) != rows for array in answer.values()):
        return float("inf")
    return max(
        float(np.linalg.norm(answer[name] - array[:rows]) / max(float(np.linalg.norm(array[:rows])), 1e-12))
        for name, array in reference.items()
    )


def _time(tests: _Tests, subject: Subject, device: Device, backend: str) -> str:
    with closing(_open(subject, device, backend)) as session:
        return tests.time(subject, session)


def _timed(subject: Subject, session: Session, batch: int) -> Timing:
    feeds = subject.first(batch)
    for _ in range(_WARM_UP):
        session.run(feeds)
    seconds: list[float] = []
    while len(seconds) < _MIN_RUNS or (sum(seconds) < _MIN_SECONDS and len(seconds) < _MAX_RUNS):
        started = time.perf_counter()
        session.run(feeds)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    name = f"{subject.name} {subject.precision}"
    return Timing(name, str(session.placement), batch, round(median * 1e3, 4), round(batch / median, 1), len(seconds))


def _host_leak(subject: Subject, device: Device) -> str:
    backend = "tensorrt" if device == "tensorrt" else "onnxruntime"
    grown = _grown(subject, device, backend, _resident_bytes)
    return _within(grown, _LEAK_HOST_BYTES, "of the host's memory")


def _gpu_leak(subject: Subject) -> str:
    cuda = import_cuda()
    grown = _grown(subject, "tensorrt", "tensorrt", lambda: -cuda.free_memory())
    return f"{_within(grown, _LEAK_GPU_BYTES, 'of the GPU')}; {_host_leak(subject, 'tensorrt')}"


def _grown(subject: Subject, device: Device, backend: str, used_bytes: Callable[[], int]) -> int:
    """How many bytes more are in use after many openings than after the first two, which load libraries."""
    before = 0
    for opening in range(_OPENINGS + 2):
        if opening == 2:
            before = used_bytes()
        with closing(_open(subject, device, backend)) as session:
            for _ in range(3):  # so that a CUDA graph is among what is given back
                session.run(subject.first(1))
    return used_bytes() - before


def _within(grown: int, allowed: int, where: str) -> str:
    found = f"{grown / 2**20:+.1f} MiB {where}, allowed {allowed >> 20}"
    if grown > allowed:
        raise SessionError(f"memory is lost: {found}", hint="report it with this text")
    return found


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError as error:
        raise NotPossible(f"the system does not tell: {error}") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


# What it is tried on.


def environment() -> dict[str, str]:
    """The machine and the versions that a report needs, as far as they can be found out."""
    known = {
        "date": time.strftime("%Y-%m-%d"),
        "edgeclf": __version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{processor()}, {available_cores()} cores, load {_load()}",
        "JetPack": first_line(_JETPACK),
        "board": first_line(Path("/proc/device-tree/model")).rstrip("\0"),
        "GPU": _found(lambda: str(device_identity())),
        "TensorRT": _found(lambda: str(import_tensorrt().__version__)),
        "CUDA runtime": _found(lambda: import_cuda().version()),
        **{name: package_version(name) for name in _PACKAGES},
    }
    return {name: value for name, value in known.items() if value}


def _found(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception as error:  # noqa: BLE001  the report says what is wrong, and goes on
        return f"none: {error.message if isinstance(error, EdgeclfError) else error}"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _timing_lines(timings: Sequence[Timing]) -> Iterator[str]:
    if not timings:
        return
    graph, place = (max(len(getattr(timing, name)) for timing in timings) for name in ("graph", "runs_on"))
    head = f"{'timed here':<{graph}}  {'runs on':<{place}}"
    yield f"{head}  {'batch':>5}  {'median ms':>10}  {'per second':>10}  {'runs':>4}"
    for one in timings:
        yield (
            f"{one.graph:<{graph}}  {one.runs_on:<{place}}  {one.batch:>5}  {one.median_ms:>10.3f}"
            f"  {one.per_second:>10.1f}  {one.runs:>4}"
        )
    yield ""
