"""TensorRT engines out of ONNX graphs, in one way for TensorRT 10.3 (JetPack 6) to 11.

An engine is a cache: it fits one TensorRT version and one kind of GPU, and can always be built again. Nothing here runs
an engine, and building asks nothing of CUDA by itself: the tests build with NVIDIA's TensorRT-RTX on a CPU. Whoever
builds with TensorRT asks `cuda_driver_problem` first.

Precision is a property of the graph. TensorRT 11 knows strongly typed networks only, and 10.12 is the first version
where NVIDIA calls them complete; before it a network is weakly typed, and the builder's flags say which precisions its
kernels may have. A graph that does not hold what was asked for is an error: an engine must not quietly be FP32.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from edgeclf.errors import MissingExtraError, SessionError
from edgeclf.runtime.session import MAX_BATCH

_log = logging.getLogger(__name__)

EnginePrecision = Literal["fp32", "fp16", "int8"]
Say = Callable[[str], None]

OLDEST = (10, 3)
STRONGLY_TYPED_FROM = (10, 12)
_LINES_KEPT = 200
_LINES_TOLD = 3
_PARSER_LINE = "ModelImporter.cpp"
_SAY_EVERY_SECONDS = 5.0
_INSTALL = (
    'on a PC: pip install "edgeclf[tensorrt]" --extra-index-url https://pypi.nvidia.com (PyPI holds stubs only); '
    "on Jetson TensorRT belongs to JetPack: use a venv made with --system-site-packages"
)
_OTHER_BACKEND = "use --backend onnxruntime, or export the bundle again"


@dataclass(frozen=True, slots=True)
class Profile:
    """The batches that an engine takes, and the one that its kernels are chosen for."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise SessionError(
                f"batches of {self.minimum}, best {self.optimum}, to {self.maximum} are no profile",
                hint="they must be at least 1 and in this order",
            )


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Everything that an engine depends on besides its graph, TensorRT and the GPU."""

    precision: str = "fp32"  # what the graph holds: one of EnginePrecision
    max_batch: int = MAX_BATCH
    best_batch: int | None = None  # the largest, unless said
    workspace_bytes: int = 1 << 30
    optimization_level: int | None = None  # 0 to 5; TensorRT's own choice is 3
    version_compatible: bool = False  # runs on later versions too, slower and larger
    strongly_typed: bool | None = None  # None: from TensorRT 10.12 on
    tf32: bool = False  # FP32 products with 10 bits of mantissa; quicker, but not what parity was proven with

    def __post_init__(self) -> None:
        if self.precision not in get_args(EnginePrecision):
            known = ", ".join(get_args(EnginePrecision))
            raise SessionError(f"TensorRT cannot run precision {self.precision!r}", hint=f"choose one of {known}")
        _ = self.profile

    @property
    def profile(self) -> Profile:
        """One for all inputs."""
        return Profile(1, self.max_batch if self.best_batch is None else self.best_batch, self.max_batch)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A plan with what is known of how it came about."""

    plan: bytes = field(repr=False)
    layers: int  # of the network as parsed; TensorRT fuses many of them
    half_share: float  # of the layers that give floating point numbers, constants apart: how many give FP16
    seconds: float
    log: tuple[str, ...] = ()  # the last warnings of TensorRT


def import_tensorrt() -> Any:
    """The package `tensorrt`. Raises MissingExtraError where it is not installed or does not load."""
    try:
        trt = import_module("tensorrt")
    except (ImportError, OSError) as error:  # OSError: its libraries are loaded by ctypes
        missing = isinstance(error, ModuleNotFoundError) and error.name == "tensorrt"
        problem = "TensorRT is not installed" if missing else f"TensorRT cannot be loaded: {error}"
        raise MissingExtraError(problem, hint=_INSTALL) from error
    if tensorrt_version(trt) < OLDEST:
        raise MissingExtraError(
            f"TensorRT {trt.__version__} is too old", hint="10.3 is the oldest that works: JetPack 6.1 or later"
        )
    return trt


def tensorrt_version(trt: Any) -> tuple[int, int]:
    """Major and minor."""
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def tensorrt_log(trt: Any) -> Any:
    """The log for every TensorRT object of this process.

    TensorRT knows one log at a time: while any of its objects lives, another log that is given to a new one is ignored.
    `lines` holds the last warnings and errors; `written` counts all that there were.
    """
    for known, log in _LOGS:
        if known is trt:
            return log
    _LOGS.append((trt, _new_log(trt)))
    return _LOGS[-1][1]


_LOGS: list[tuple[Any, Any]] = []


def engine_from_onnx(
    trt: Any,
    graph: Path,
    settings: BuildSettings,
    *,
    timing_cache: Path | None = None,
    say: Say = lambda _: None,
) -> BuiltEngine:
    """The engine of an ONNX file; takes seconds to minutes.

    Only the first axis of an input may be dynamic, and follows the profile. timing_cache: a file that spares the next
    build what this one measured. say: told of the start, the progress every few seconds, and the end; what it raises
    ends the build. Raises SessionError with node, operator, reason and the end of TensorRT's log.
    """
    started = time.monotonic()
    log = tensorrt_log(trt)
    job = _Job(trt, graph, settings, log, log.written)
    profile = settings.profile
    say(f"building the engine of {graph.name}: {settings.precision}, batches of {profile.minimum} to {profile.maximum}")
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what pybind11 makes of a null pointer
        raise job.failure("TensorRT does not start", hint="edgeclf doctor says more") from error
    network = builder.create_network(_network_flags(job))
    parser = trt.OnnxParser(network, log)
    _parse(job, parser, network)
    half_share = _check_precision(job, network)
    config = _config(job, builder)
    _set_profile(job, builder, config, network)
    if timing_cache:
        _read_timing_cache(config, timing_cache)
    plan = _build(job, builder, config, network, _Progress(graph.name, say))
    if timing_cache:
        _write_timing_cache(config, timing_cache, say)
    seconds = time.monotonic() - started
    say(f"built the engine of {graph.name} in {seconds:.1f} s: {network.num_layers} layers, {len(plan) / 1e6:.1f} MB")
    return BuiltEngine(plan, network.num_layers, half_share, seconds, tuple(job.log_tail()))


def write_whole(path: Path, *parts: bytes) -> None:
    """Put a file in place at once: a reader sees the old one or the new one, never a part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class _Job:
    """One build, and how its errors are worded."""

    trt: Any
    graph: Path
    settings: BuildSettings
    log: Any
    log_start: int

    def log_tail(self) -> list[str]:
        """The warnings and errors of this build that are still kept."""
        count = self.log.written - self.log_start
        return list(self.log.lines)[-count:] if count else []

    def failure(self, reason: str, *, hint: str = _OTHER_BACKEND) -> SessionError:
        """The error to raise: the reason, and the end of the log without what the parser repeats there."""
        told = [line for line in self.log_tail() if not line.startswith(_PARSER_LINE)][-_LINES_TOLD:]
        tail = f"; TensorRT's log ends with: {' | '.join(told)}" if told else ""
        return SessionError(
            f"{self.graph.name} cannot become an engine of TensorRT {self.trt.__version__}: {reason}{tail}", hint=hint
        )


def _new_log(trt: Any) -> Any:
    worth_keeping = int(trt.ILogger.Severity.WARNING)

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
            self.written = 0

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= worth_keeping:
                self.lines.append(" ".join(msg.split()))
                self.written += 1
            _log.debug("%s", msg)

    return Log()


def _is_strongly_typed(job: _Job) -> bool:
    trt, wanted = job.trt, job.settings.strongly_typed
    has_flags = hasattr(trt.BuilderFlag, "FP16")
    if wanted is False and not has_flags:
        raise job.failure("it builds strongly typed networks only", hint="leave strongly_typed to its version")
    if wanted is None:
        return not has_flags or tensorrt_version(trt) >= STRONGLY_TYPED_FROM
    return wanted


def _network_flags(job: _Job) -> int:
    flags = job.trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if _is_strongly_typed(job) else 0


def _parse(job: _Job, parser: Any, network: Any) -> None:
    if not parser.parse_from_file(str(job.graph)):
        problems = [_problem(parser.get_error(index)) for index in range(parser.num_errors)]
        raise job.failure(" / ".join(problems) or "it cannot be read")
    if not network.num_layers or not network.num_outputs:
        raise job.failure("it holds no graph")


def _problem(parser_error: Any) -> str:
    """The node, its operator, and why."""
    code = str(parser_error.code()).rpartition(".")[2]
    reason = " ".join(parser_error.desc().split())
    if reason in ("", "false"):  # the condition that failed, of an operator that the parser knows but does not take
        reason = "the parser does not support it"
    if parser_error.node() < 0:
        return f"{reason} [{code}]"
    name = parser_error.node_name()
    node = f"node {name!r}" if name else f"node number {parser_error.node()}"
    return f"{node} ({parser_error.node_operator()}): {reason} [{code}]"


def _check_precision(job: _Job, network: Any) -> float:
    """The share of half precision; raises SessionError where the graph does not hold what its precision says.

    A weakly typed network does not say before it is built what its layers will be, but there the flags do.
    """
    trt, precision = job.trt, job.settings.precision
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = [kind for layer in layers if layer.type != trt.LayerType.CONSTANT for kind in _kinds(layer)]
    floats = [kind for kind in kinds if kind in (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16)]
    half_share = floats.count(trt.DataType.HALF) / max(1, len(floats))
    if not _is_strongly_typed(job):
        return half_share
    if precision == "fp16" and not half_share:
        raise job.failure("fp16 was asked for, and no layer of the graph is in half precision")
    if precision == "fp32" and half_share:
        raise job.failure(f"fp32 was asked for, and {half_share:.0%} of its layers are in half precision")
    if precision == "int8" and not any(layer.type == trt.LayerType.DEQUANTIZE for layer in layers):
        raise job.failure("int8 was asked for, and the graph holds no DequantizeLinear")
    return half_share


def _kinds(layer: Any) -> Iterator[Any]:
    for index in range(layer.num_outputs):
        tensor = layer.get_output(index)
        if tensor is not None:  # the parts of a loop have none
            yield tensor.dtype


def _config(job: _Job, builder: Any) -> Any:
    trt, settings = job.trt, job.settings
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that an inspector can tell precisions
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if not _is_strongly_typed(job):
        for flag in _weak_flags(trt, settings.precision):
            config.set_flag(flag)
    return config


def _weak_flags(trt: Any, precision: str) -> list[Any]:
    """Which precisions the kernels of a weakly typed network may have; TensorRT 11 lacks these names."""
    half, quantised = trt.BuilderFlag.FP16, trt.BuilderFlag.INT8
    return {"fp32": [], "fp16": [half], "int8": [half, quantised]}[precision]


def _set_profile(job: _Job, builder: Any, config: Any, network: Any) -> None:
    profile = builder.create_optimization_profile()
    batches = job.settings.profile
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if not any(-1 in tuple(tensor.shape) for tensor in inputs):
        return
    for tensor in inputs:
        batch, *rest = tuple(tensor.shape) or (1,)
        if -1 in rest:
            raise job.failure(f"input {tensor.name!r} has a dynamic axis besides the first: {(batch, *rest)}")
        if batch == -1:
            shapes = [(count, *rest) for count in (batches.minimum, batches.optimum, batches.maximum)]
            try:
                profile.set_shape(tensor.name, *shapes)
            except (RuntimeError, ValueError, TypeError) as error:
                raise job.failure(f"input {tensor.name!r} cannot have the shapes {shapes}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise job.failure(f"the profile of batches {batches} was refused")


def _build(job: _Job, builder: Any, config: Any, network: Any, progress: _Progress) -> bytes:
    config.progress_monitor = monitor = _monitor(job.trt, progress)
    with _interrupt_kept(progress):
        plan = builder.build_serialized_network(network, config)
    del monitor  # it had to live until here
    if progress.stopped_by is not None:
        raise progress.stopped_by
    if plan is None:
        raise job.failure("the build failed", hint=f"{_OTHER_BACKEND}; a smaller --batch needs less memory")
    return bytes(memoryview(plan))


@contextmanager
def _interrupt_kept(progress: _Progress) -> Iterator[None]:
    """Ctrl-C stops the build at its next step, unless the program handles it in its own way.

    Python would raise KeyboardInterrupt in whatever function of the monitor is called next, and TensorRT's bindings
    print what is raised there and go on (seen with TensorRT-RTX 1.7).
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not in_main or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda _number, _frame: progress.stop(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Progress:
    """Says every few seconds what TensorRT is at."""

    def __init__(self, name: str, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._say = say
        self._clock = clock
        self._started = self._said = clock()
        self._steps: dict[str, int] = {}
        self.stopped_by: BaseException | None = None

    def begin(self, phase: str, steps: int) -> None:
        """A phase begins, with so many steps."""
        self._steps[phase] = steps

    def stop(self, error: BaseException) -> None:
        """Keep the error for after the build, which ends at its next step: no error can pass through the builder."""
        self.stopped_by = error

    def step(self, phase: str, done: int) -> bool:
        """Whether to go on after this step of the phase, which counts from 0."""
        try:
            self._tell(phase, done)
        except BaseException as error:  # noqa: BLE001
            self.stop(error)
        return self.stopped_by is None

    def _tell(self, phase: str, done: int) -> None:
        now = self._clock()
        if now - self._said < _SAY_EVERY_SECONDS:
            return
        self._said = now
        steps = self._steps.get(phase, 0)
        self._say(f"{self._name}: {phase}, step {done + 1} of {steps}, {now - self._started:.0f} s")


def _monitor(trt: Any, progress: _Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            progress.begin(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _read_timing_cache(config: Any, path: Path) -> None:
    """Begin with what earlier builds measured; a file that does not fit is as good as none."""
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):  # noqa: FBT003
        config.set_timing_cache(config.create_timing_cache(b""), False)  # noqa: FBT003


def _write_timing_cache(config: Any, path: Path, say: Say) -> None:
    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if data is None:
        return
    try:
        write_whole(path, bytes(memoryview(data)))
    except OSError as error:
        say(f"the timing cache cannot be kept: {error}")
