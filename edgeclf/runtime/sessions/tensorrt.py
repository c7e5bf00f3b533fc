"""TensorRT itself: an engine built for this GPU, with pinned memory and CUDA graphs.

Every name that is used here exists in TensorRT 10.3, 10.16 and 11.4 alike.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import SessionError
from edgeclf.runtime.driver import cuda_driver_problem
from edgeclf.runtime.engine_cache import cached_engine, forget_engine
from edgeclf.runtime.session import Arrays, Placement
from edgeclf.runtime.sessions.cuda import Arena, Cuda, import_cuda
from edgeclf.runtime.tensorrt_engine import BuildSettings, import_tensorrt, tensorrt_log
from edgeclf.specs import Device, TensorSpec

_log = logging.getLogger(__name__)

MAX_GRAPHS = 8  # batch sizes with a CUDA graph; each holds an execution context of some MB
_REPEATED = 2  # a batch size that came once, as at the end of a file, is not worth a graph
_LINES_TOLD = 3
_FORMATS = {"fp16": r"\bFP16|Half", "int8": r"Int8|INT8"}  # as the inspector spells them
_ANY_FORMAT = "|".join((r"FP32|Float|BF16|Int32|INT32", *_FORMATS.values()))
_NO_DEVICE_HINT = "use --device cpu or auto; edgeclf doctor says more"


def open_tensorrt(graph: Path, *, device: Device, precision: str, threads: int, max_batch: int) -> TensorRTSession:
    """A session on the first NVIDIA GPU; the engine comes from the cache or is built, which takes minutes.

    Raises SessionError where there is no driver or no GPU, before TensorRT is touched: without a driver it ends the
    process.
    """
    del threads  # the GPU has its own
    if device not in ("tensorrt", "auto"):
        raise SessionError(
            f"backend tensorrt cannot run on device {device}", hint="use --device tensorrt, or --backend onnxruntime"
        )
    if problem := cuda_driver_problem():
        raise SessionError(f"device tensorrt cannot be used: {problem}", hint=_NO_DEVICE_HINT)
    trt, cuda = import_tensorrt(), import_cuda()
    settings = BuildSettings(precision=precision, max_batch=max_batch)
    engine = Engine(trt, graph.name)
    try:
        _load(engine, trt, graph, settings)
        return TensorRTSession(cuda, engine, precision)
    except BaseException:
        engine.close()
        raise


def _load(engine: Engine, trt: Any, graph: Path, settings: BuildSettings) -> None:
    """Deserialise the engine of `graph`; one that does not load is built once more."""
    if engine.load(cached_engine(trt, graph, settings, say=_log.info)):
        return
    _log.warning("the engine of %s does not load and is built again: %s", graph.name, engine.messages())
    forget_engine(trt, graph, settings)
    if engine.load(cached_engine(trt, graph, settings, say=_log.info)):
        return
    forget_engine(trt, graph, settings)
    raise SessionError(
        f"TensorRT {trt.__version__} does not load the engine it built of {graph.name}: {engine.messages()}",
        hint="check that driver and TensorRT belong together; edgeclf selftest --gpu says more",
    )


class Engine:
    """A deserialised engine with the runtime it depends on; `close` gives them back in order.

    No other object keeps a reference to TensorRT's objects, and no local variable does: an exception on its way
    up keeps those alive, beyond the memory they work in.
    """

    def __init__(self, trt: Any, name: str) -> None:
        self.trt = trt
        self.name = name
        self._log = tensorrt_log(trt)
        self._log_start = self._log.written
        self._engine: Any = None
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError as error:  # how the bindings say that the library gave none
            raise SessionError(
                f"TensorRT {trt.__version__} does not start: {self.messages()}",
                hint="check that the NVIDIA driver is new enough; edgeclf doctor says more",
            ) from error

    def load(self, plan: bytes) -> bool:
        """Whether the plan is one for this TensorRT and this GPU."""
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        return self._engine is not None

    def messages(self) -> str:
        """The last that TensorRT said since this engine was opened, warnings and worse."""
        count = min(self._log.written - self._log_start, _LINES_TOLD)
        return " | ".join(list(self._log.lines)[-count:] if count else []) or "TensorRT gave no reason"

    def tensors(self) -> Iterator[EngineTensor]:
        """Inputs and outputs in the engine's order; raises SessionError for a kind that cannot be used."""
        for index in range(self._engine.num_io_tensors):
            yield self._tensor(self._engine.get_tensor_name(index))

    def new_context(self) -> Any:
        """A context whose working memory is given to it, or None."""
        return self._engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    @property
    def working_bytes(self) -> int:
        """What a context needs to work in."""
        return int(self._engine.device_memory_size_v2)

    def layer_share(self, formats: str) -> float | None:
        """The share of layers with an output of those number formats (a regular expression); None if it is unknown."""
        with suppress(ValueError, TypeError, KeyError, RuntimeError):  # an engine that was built without details
            inspector = self._engine.create_engine_inspector()
            layers = json.loads(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))["Layers"]
            kinds = [" ".join(output["Format/Datatype"] for output in layer["Outputs"]) for layer in layers]
            known = [kind for kind in kinds if re.search(_ANY_FORMAT, kind)]
            return sum(bool(re.search(formats, kind)) for kind in known) / len(known) if known else None
        return None

    def close(self) -> None:
        """Give the engine back, then the runtime; twice is safe."""
        self._engine = None
        self._runtime = None

    def _tensor(self, name: str) -> EngineTensor:
        trt = self.trt
        kind, shape = self._engine.get_tensor_dtype(name), tuple(self._engine.get_tensor_shape(name))
        dtypes = {trt.DataType.UINT8: "uint8", trt.DataType.FLOAT: "float32", trt.DataType.INT32: "int32"}
        on_gpu = self._engine.get_tensor_location(name) == trt.TensorLocation.DEVICE
        if kind not in dtypes or not on_gpu or not shape or min(shape[1:], default=1) < 1:
            where = "" if on_gpu else " on the host"
            raise SessionError(
                f"{self.name}: {name!r} is {kind}{list(shape)}{where}, which is not supported", hint="export it again"
            )
        is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        rows = (shape[0], shape[0])
        if is_input and shape[0] < 0:
            least, _, most = self._engine.get_tensor_profile_shape(name, 0)
            rows = (least[0], most[0])
        size = None if shape[0] < 0 else shape[0]
        return EngineTensor(TensorSpec(name, dtypes[kind], (size, *shape[1:])), is_input, rows)


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """An input or output of an engine; `rows` are the least and the most that the profile of an input allows."""

    spec: TensorSpec
    is_input: bool
    rows: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A tensor's memory for the largest batch, on both sides; neither ever moves."""

    spec: TensorSpec
    host: NDArray[Any]
    device: int

    def bytes_of(self, rows: int) -> int:
        return self.host[:rows].nbytes


class _Lane:
    """An execution context, and the graph captured of it.

    A graph depends on the state of its context, which must not change any more (TensorRT's guide, "CUDA graphs"): so
    each graph has a context of its own, and all share one working memory.
    """

    def __init__(self, cuda: Cuda, context: Any) -> None:
        self.context = context
        self.rows = 0
        self.graph: Any = None
        self._cuda = cuda

    def drop_graph(self) -> None:
        if self.graph is not None:
            self._cuda.free_graph(self.graph)
            self.graph = None

    def close(self) -> None:
        self.drop_graph()
        self.context = None


class TensorRTSession:
    """One engine; `run` may be called from several threads, which take turns.

    A batch size that comes a second time is captured as a CUDA graph and replayed from then on. Where that fails, it
    goes on without, and says so once in the log.
    """

    def __init__(self, cuda: Cuda, engine: Engine, precision: str) -> None:
        self._cuda = cuda
        self._engine = engine
        self._lock = threading.Lock()
        self._seen: Counter[int] = Counter()
        self._graphs: dict[int, _Lane | None] = {}  # None: there can be none for this size
        with ExitStack() as closing:
            self._stream = cuda.open_stream()
            closing.callback(cuda.close_stream, self._stream)
            arena = Arena(cuda)
            closing.callback(arena.close)
            closing.callback(engine.close)
            tensors = list(engine.tensors())
            self._least, self._most = _rows_of(engine.name, tensors)
            self._inputs = [self._buffer(arena, tensor) for tensor in tensors if tensor.is_input]
            self._outputs = [self._buffer(arena, tensor) for tensor in tensors if not tensor.is_input]
            self._working_bytes = engine.working_bytes
            self._working_memory = arena.device(max(1, self._working_bytes))
            self._lanes: list[_Lane] = []  # the first is without a graph, for all sizes that have none
            closing.callback(self._close_lanes)
            self._prepare(self._new_lane(), self._most)
            self.inputs = tuple(buffer.spec for buffer in self._inputs)
            self.outputs = tuple(buffer.spec for buffer in self._outputs)
            provider = f"TensorRT {engine.trt.__version__}"
            self.placement = Placement("tensorrt", provider, "tensorrt", _with_share(engine, precision), 0)
            self._closing: ExitStack | None = closing.pop_all()

    @property
    def captured_batches(self) -> tuple[int, ...]:
        """Batch sizes that run as a CUDA graph by now."""
        return tuple(sorted(rows for rows, lane in list(self._graphs.items()) if lane))

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        rows = self._rows_in(feeds)
        with self._lock:
            if self._closing is None:
                raise SessionError("the session is closed", hint="open the bundle again")
            parts = [self._run_part(feeds, slice(at, min(at + self._most, rows))) for at in range(0, rows, self._most)]
        if len(parts) == 1:
            return parts[0]
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    def close(self) -> None:
        with self._lock:
            if self._closing is not None:
                closing, self._closing = self._closing, None
                closing.close()

    def _rows_in(self, feeds: Arrays) -> int:
        """How many rows every input has; raises SessionError unless all are what the engine takes."""
        if set(feeds) != {spec.name for spec in self.inputs}:
            raise SessionError(
                f"the inputs are {', '.join(feeds) or 'none'}", hint=f"give {', '.join(map(str, self.inputs))}"
            )
        for spec in self.inputs:
            array = feeds[spec.name]
            if str(array.dtype) != spec.dtype or array.shape[1:] != spec.shape[1:] or array.ndim < 1:
                raise SessionError(f"{spec.name} is {array.dtype}{list(array.shape)}", hint=f"give {spec}")
        counts = {len(feeds[spec.name]) for spec in self.inputs}
        rows, rest = max(counts), max(counts) % self._most
        if len(counts) > 1 or rows < self._least or 0 < rest < self._least:
            sizes = ", ".join(map(str, sorted(counts)))
            raise SessionError(
                f"a batch of {sizes} is outside of the engine's profile", hint=f"give {self._least} to {self._most}"
            )
        return rows

    def _run_part(self, feeds: Arrays, part: slice) -> dict[str, NDArray[Any]]:
        rows = part.stop - part.start
        for buffer in self._inputs:
            buffer.host[:rows] = feeds[buffer.spec.name][part]
        self._execute(self._graphs.get(rows) or self._lanes[0], rows)
        answer = {buffer.spec.name: buffer.host[:rows].copy() for buffer in self._outputs}
        self._consider_graph(rows)
        return answer

    def _execute(self, lane: _Lane, rows: int) -> None:
        try:
            if lane.graph is not None:
                self._cuda.launch(lane.graph, self._stream)
            else:
                self._set_rows(lane, rows)
                self._queue(lane, rows)
        finally:  # what was queued before a failure still works in the buffers and the context
            self._cuda.wait(self._stream)

    def _queue(self, lane: _Lane, rows: int) -> None:
        for buffer in self._inputs:
            self._cuda.copy_to_device(buffer.device, buffer.host.ctypes.data, buffer.bytes_of(rows), self._stream)
        if not lane.context.execute_async_v3(int(self._stream)):
            raise SessionError(
                f"{self._engine.name}: TensorRT did not start a run of {rows}: {self._engine.messages()}",
                hint="use another --backend; edgeclf selftest --gpu says more",
            )
        for buffer in self._outputs:
            self._cuda.copy_to_host(buffer.host.ctypes.data, buffer.device, buffer.bytes_of(rows), self._stream)

    def _consider_graph(self, rows: int) -> None:
        self._seen[rows] += 1
        if self._seen[rows] != _REPEATED or len(self._graphs) >= MAX_GRAPHS:
            return
        try:
            self._graphs[rows] = self._captured(rows)
        except SessionError as error:
            self._graphs[rows] = None
            _log.warning("%s: batches of %d run without a CUDA graph: %s", self._engine.name, rows, error)

    def _captured(self, rows: int) -> _Lane:
        """A lane whose graph gives `rows` answers."""
        lane = self._new_lane()
        try:
            self._prepare(lane, rows)
            self._execute(lane, rows)  # once without capture: the first run after a change of shape does more
            lane.graph = self._capture(lane, rows)
        except SessionError:
            self._lanes.remove(lane)
            lane.close()
            raise
        return lane

    def _capture(self, lane: _Lane, rows: int) -> Any:
        self._cuda.begin_capture(self._stream)
        try:
            self._queue(lane, rows)
        except BaseException:
            self._cuda.abandon_capture(self._stream)
            raise
        return self._cuda.end_capture(self._stream)

    def _new_lane(self) -> _Lane:
        lane = _Lane(self._cuda, self._engine.new_context())
        if lane.context is None:
            raise SessionError(
                f"{self._engine.name}: TensorRT made no execution context: {self._engine.messages()}",
                hint="free memory on the GPU, or use a smaller --batch",
            )
        self._lanes.append(lane)
        return lane

    def _prepare(self, lane: _Lane, rows: int) -> None:
        """Give a lane its memory, which it keeps, and its first batch size."""
        lane.context.set_device_memory(self._working_memory, self._working_bytes)
        fits = lane.context.set_optimization_profile_async(0, int(self._stream))
        self._cuda.wait(self._stream)
        for buffer in (*self._inputs, *self._outputs):
            fits = fits and lane.context.set_tensor_address(buffer.spec.name, buffer.device)
        if not fits:
            raise SessionError(
                f"{self._engine.name}: TensorRT refused its buffers: {self._engine.messages()}", hint="export it again"
            )
        self._set_rows(lane, rows)

    def _set_rows(self, lane: _Lane, rows: int) -> None:
        """Set the batch size, and check that all outputs follow it."""
        if lane.rows == rows:
            return
        lane.rows = 0
        fits = all(lane.context.set_input_shape(b.spec.name, (rows, *b.spec.shape[1:])) for b in self._inputs)
        if not fits or lane.context.infer_shapes():
            raise SessionError(
                f"{self._engine.name}: a batch of {rows} is outside of the engine's profile",
                hint=f"give {self._least} to {self._most}",
            )
        for buffer in self._outputs:
            shape = tuple(lane.context.get_tensor_shape(buffer.spec.name))
            if shape != (rows, *buffer.spec.shape[1:]):
                raise SessionError(
                    f"{self._engine.name}: {buffer.spec.name!r} is {shape} for a batch of {rows}",
                    hint="export it again; only the first axis may follow the batch",
                )
        lane.rows = rows

    def _close_lanes(self) -> None:
        """All graphs first, then their contexts."""
        self._graphs.clear()
        for lane in self._lanes:
            lane.drop_graph()
        while self._lanes:
            self._lanes.pop().close()

    def _buffer(self, arena: Arena, tensor: EngineTensor) -> _Buffer:
        shape = (self._most, *(size or 1 for size in tensor.spec.shape[1:]))
        host = arena.pinned(shape, tensor.spec.dtype)
        return _Buffer(tensor.spec, host, arena.device(host.nbytes))


def _rows_of(name: str, tensors: list[EngineTensor]) -> tuple[int, int]:
    """The least and the most rows that all inputs take."""
    rows = [tensor.rows for tensor in tensors if tensor.is_input]
    if not rows:
        raise SessionError(f"{name} has no input", hint="export it again")
    return max(least for least, _ in rows), min(most for _, most in rows)


def _with_share(engine: Engine, precision: str) -> str:
    """The precision, with the share of layers that really give such numbers where that can be known."""
    formats = _FORMATS.get(precision)
    share = engine.layer_share(formats) if formats else None
    return precision if share is None else f"{precision} ({share:.0%} of layers)"
