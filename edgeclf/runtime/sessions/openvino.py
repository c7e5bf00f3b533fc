"""OpenVINO on the processor, for extractors: FP32, bfloat16 and INT8 near the arithmetic peak.

Recurrent graphs are refused. With a dynamic batch OpenVINO gives wrong answers for masked ones, without an error;
tf2onnx's loops it does not convert at all.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import sha256_of
from edgeclf.errors import SessionError, import_extra
from edgeclf.runtime.cache import cache_folder, short_hash
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.session import MAX_BATCH, Arrays, Placement
from edgeclf.specs import Device, TensorSpec

_ELSEWHERE = "use --backend onnxruntime"
_RECURRENT = frozenset(
    {"GRUSequence", "LSTMSequence", "RNNSequence", "GRUCell", "LSTMCell", "RNNCell", "Loop", "TensorIterator"}
)
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "u8s8": "f32"}  # of what is not quantised
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16", "int8": "INT8", "u8s8": "INT8"}
_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_HEAVY_LAYERS = ("Convolution", "FullyConnected", "MatMul")
# Larger batches run in parts of these sizes. A part costs no more per frame than one large batch (12.9 ms for 4,
# 14.1 ms for 16, EfficientNet-Lite0 on stacks of 2, one thread), and padding 7 frames to 8 costs 13 % more than 4+2+1.
_PARTS = (8, 4, 2, 1)

# The first arrays that go through OpenVINO's binding from two threads at once can stop both for ever (2026.4: one holds
# the guard of a static variable and waits for the interpreter's lock, the other the reverse). One at a time is safe.
_first_use = threading.Lock()


def open_openvino(
    graph: Path, *, device: Device, precision: str, threads: int, max_batch: int = MAX_BATCH
) -> OpenVINOSession:
    """A session on the processor, for a graph whose only dynamic axis is the batch.

    precision: "fp32" and "bf16" run an FP32 file, in just that precision; "int8" and "u8s8" run a file with
    QuantizeLinear nodes, "fp16" a converted file. threads: inside one run; as many runs as cores allow go on at a time.
    """
    del max_batch  # any batch runs, in parts
    openvino = import_extra("openvino", "OpenVINO", "openvino")
    with _first_use:
        core = openvino.Core()
        _check_device(core, device)
        _check_precision(core, precision)
        session = OpenVINOSession(openvino, core, graph, precision, threads)
        session.warm_up()
    return session


def missing_arithmetic(precision: str) -> str:
    """The reason why OpenVINO has no `precision` on this processor, empty if it has.

    OpenVINO lists what the processor has, which half precision often is not. Asked for it all the same, OpenVINO
    calculates in another precision without a word. Raises MissingExtraError without OpenVINO.
    """
    return _missing_arithmetic(import_extra("openvino", "OpenVINO", "openvino").Core(), precision)


class OpenVINOSession:
    """One graph in OpenVINO, compiled for a few batch sizes when they first come; `run` is thread-safe."""

    def __init__(self, openvino: Any, core: Any, graph: Path, precision: str, threads: int) -> None:
        self._core = core
        self._model = _read(openvino, graph)
        self.inputs = _specs(graph, self._model.inputs)
        self.outputs = _specs(graph, self._model.outputs)
        _check_batch(graph, (*self.inputs, *self.outputs))
        self._settings = _settings(precision, threads)
        self._settings |= _cache(core, graph, self._settings)
        self._compiling = threading.Lock()
        self._parts: dict[int, _Part] = {}
        self._closed = False
        self.placement = self._placement(openvino)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if self._closed:
            raise SessionError("the session is closed", hint="open the bundle again")
        arrays = [self._checked(spec, feeds) for spec in self.inputs]
        results, start = [], 0
        for size in _part_sizes(len(arrays[0])):
            results.append(self._part(size).run([array[start : start + size] for array in arrays]))
            start += size
        return {
            spec.name: results[0][n] if len(results) == 1 else np.concatenate([result[n] for result in results])
            for n, spec in enumerate(self.outputs)
        }

    def warm_up(self) -> None:
        """Run one input of zeros, so that a graph that cannot run is found now."""
        self.run(
            {spec.name: np.zeros((1, *(size or 1 for size in spec.shape[1:])), spec.dtype) for spec in self.inputs}
        )

    def close(self) -> None:
        with self._compiling:
            self._closed = True
            self._parts = {}
            self._model = None

    def _part(self, size: int) -> _Part:
        """The graph for batches of `size`, compiled on first use."""
        with self._compiling:
            if self._closed:
                raise SessionError("the session is closed", hint="open the bundle again")
            if size not in self._parts:
                self._parts[size] = _Part(self._compiled(size))
            return self._parts[size]

    def _compiled(self, size: int) -> Any:
        """A static batch is 2 to 14 % faster than a dynamic one."""
        model = self._model.clone()
        try:
            model.reshape({spec.name: [size, *spec.shape[1:]] for spec in self.inputs})
            return self._core.compile_model(model, "CPU", self._settings)
        except Exception as error:
            raise SessionError(f"OpenVINO cannot compile the graph: {_reason(error)}", hint=_ELSEWHERE) from error

    def _placement(self, openvino: Any) -> Placement:
        compiled = self._part(1).compiled
        threads = compiled.get_property("INFERENCE_NUM_THREADS") // max(1, compiled.get_property("NUM_STREAMS"))
        provider = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        return Placement("openvino", provider, "cpu", _precision_of(compiled), threads)

    @staticmethod
    def _checked(spec: TensorSpec, feeds: Arrays) -> NDArray[Any]:
        """The array for an input; OpenVINO itself converts other dtypes without a word."""
        array = feeds[spec.name]
        if array.dtype != spec.dtype or array.shape[1:] != spec.shape[1:] or not len(array):
            raise SessionError(f"the graph takes {spec}, it was given {array.dtype}{list(array.shape)}")
        return array


class _Part:
    """The graph for one batch size, and its requests that nobody uses now."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._free: deque[Any] = deque()

    def run(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        with self._request() as request:
            try:
                results = request.infer(dict(enumerate(arrays)), share_inputs=True)
            except RuntimeError as error:
                raise SessionError(f"OpenVINO failed to run the graph: {_reason(error)}", hint=_ELSEWHERE) from error
            return [results[n] for n in range(len(self.compiled.outputs))]

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """A request of one's own; a thread waits for no other, and one that failed is not used again."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        yield request
        self._free.append(request)


def _part_sizes(count: int) -> Iterator[int]:
    """The sizes that make up a batch: 7 is 4, 2 and 1."""
    for size in _PARTS:
        while count >= size:
            yield size
            count -= size


def _settings(precision: str, threads: int) -> dict[str, Any]:
    """Precision and threads; OpenVINO's own precision is bfloat16 where the processor has it."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[precision]}
    if threads:
        # Runs at a time are streams: with one stream, callers on several threads wait for each other.
        streams = max(1, available_cores() // threads)
        settings |= {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * threads}
        settings["ENABLE_CPU_PINNING"] = False  # the cores are shared with the threads that decode
    return settings


def _cache(core: Any, graph: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Where OpenVINO keeps the compiled graph, which halves the time to open it; nothing where it cannot be kept.

    The folder has a key of ours: OpenVINO's own (2026.4) leaves out the precision, so that a graph that once ran in
    bfloat16 runs in it again when FP32 is asked for.
    """
    try:
        processor = core.get_property("CPU", "FULL_DEVICE_NAME")
        key = short_hash(f"{sha256_of(graph)} {processor} {sorted(settings.items())}")
        folder = cache_folder("openvino") / f"{graph.stem}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return {}
    return {"CACHE_DIR": str(folder)}


def _read(openvino: Any, graph: Path) -> Any:
    """The graph, read as ONNX and nothing else: OpenVINO would try all formats that it knows."""
    try:
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(graph)))
    except Exception as error:
        raise SessionError(f"{graph.name} does not load in OpenVINO: {_reason(error)}", hint=_ELSEWHERE) from error
    if found := sorted({operation.get_type_name() for operation in model.get_ops()} & _RECURRENT):
        raise SessionError(
            f"{graph.name} is recurrent ({', '.join(found)}), which OpenVINO gets wrong; "
            "the sequence model runs on onnxruntime",
            hint=_ELSEWHERE,
        )
    return model


def _check_device(core: Any, device: str) -> None:
    if device not in ("cpu", "auto"):
        raise SessionError(
            f"backend openvino runs on the CPU, not on {device}; OpenVINO sees {', '.join(core.available_devices)}",
            hint="use --device cpu",
        )


def _check_precision(core: Any, precision: str) -> None:
    if precision not in _HINTS:
        raise SessionError(f"backend openvino has no precision {precision!r}", hint=f"it has {', '.join(_HINTS)}")
    if problem := _missing_arithmetic(core, precision):
        raise SessionError(problem, hint="use --precision fp32, or int8 where the bundle holds it")


def _missing_arithmetic(core: Any, precision: str) -> str:
    wanted = _CAPABILITIES.get(precision)
    if wanted is None or wanted in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return ""
    return f"this processor has no {precision} arithmetic ({core.get_property('CPU', 'FULL_DEVICE_NAME')})"


def _check_batch(graph: Path, specs: tuple[TensorSpec, ...]) -> None:
    for spec in specs:
        if spec.shape[:1] != (None,) or None in spec.shape[1:]:
            raise SessionError(f"{graph.name}: {spec} must be dynamic in its batch alone", hint="export it again")


def _specs(graph: Path, ports: list[Any]) -> tuple[TensorSpec, ...]:
    try:
        return tuple(_spec(port) for port in ports)
    except (ValueError, RuntimeError) as error:
        raise SessionError(f"{graph.name}: {_reason(error)}", hint=_ELSEWHERE) from error


def _spec(port: Any) -> TensorSpec:
    sizes = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()).name, sizes)


def _precision_of(compiled: Any) -> str:
    """What most of the convolutions and products run in, as the compiled graph says; the lower one of two."""
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    used = Counter(
        _named(fact["runtimePrecision"].astype(str)) for fact in facts if fact["layerType"].astype(str) in _HEAVY_LAYERS
    )
    if not used:
        return _named(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    return max(used, key=lambda name: (used[name], name == "int8"))


def _named(precision: str) -> str:
    return _PRECISIONS.get(precision, precision)


def _reason(error: Exception) -> str:
    """What an error of OpenVINO says, without the lines that say where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("Exception from", "FrontEnd API failed", "Check '"))]
    return re.sub(r"\s+", " ", "; ".join(useful or lines))[:300]
