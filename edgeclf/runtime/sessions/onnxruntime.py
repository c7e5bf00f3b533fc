"""ONNX Runtime, on the CPU, CUDA or its TensorRT provider."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeclf.errors import MissingExtraError, SessionError, import_extra
from edgeclf.runtime.driver import cuda_driver_problem
from edgeclf.runtime.machine import package_version
from edgeclf.runtime.session import CPU_PRECISIONS, MAX_BATCH, Arrays, Placement
from edgeclf.runtime.sessions.providers import (
    PROVIDERS,
    GraphUse,
    Provider,
    installed_tensorrt,
    preload_libraries,
    providers_for,
    tensorrt_fit,
)
from edgeclf.specs import Device, TensorSpec

_log = logging.getLogger(__name__)
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int32)": "int32"}
_LOG_FATAL = 4  # provider failures are raised below; ONNX Runtime would print them as well
_GPU_HINT = 'pip uninstall -y onnxruntime && pip install "edgeclf[gpu]"'
_EXTRAS_HINT = (
    'install one of: pip install "edgeclf[cpu]"; pip install "edgeclf[gpu]" for an NVIDIA GPU; on a Jetson '
    '"edgeclf[jetson]" beside an onnxruntime-gpu that was built for its JetPack'
)
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"


def open_onnxruntime(
    graph: Path,
    *,
    device: Device,
    precision: str,
    threads: int,
    max_batch: int = MAX_BATCH,
    gpu_mem_limit: int | None = None,
) -> OnnxRuntimeSession:
    """A session on `device`; "auto" is CUDA where a driver and a provider are there and work, else the CPU.

    "tensorrt" is ONNX Runtime's own TensorRT provider, which builds an engine for batches of 1 to `max_batch`; on
    other devices any batch runs. gpu_mem_limit: bytes that the CUDA provider may take.
    """
    ort = import_onnxruntime()
    if device == "tensorrt" and precision in CPU_PRECISIONS:
        raise SessionError(f"TensorRT takes no {precision}", hint="use --precision int8, or another device")
    if precision == "bf16":
        raise SessionError("ONNX Runtime does not run bf16", hint="use --backend openvino, or --precision fp32")
    use = GraphUse(graph, (), precision, max_batch, gpu_mem_limit)
    if device == "auto":
        return _best_session(ort, use, threads)
    if reason := _why_not(ort, device):
        raise SessionError(f"device {device} cannot be used: {reason}", hint="use --device cpu or auto")
    return OnnxRuntimeSession(ort, device, _with_inputs(ort, use) if device == "tensorrt" else use, threads)


def _best_session(ort: Any, use: GraphUse, threads: int) -> OnnxRuntimeSession:
    if not _why_not(ort, "cuda"):
        try:
            return OnnxRuntimeSession(ort, "cuda", use, threads)
        except SessionError as error:
            _log.warning("there is a GPU, but %s; the CPU is taken", error)
    return OnnxRuntimeSession(ort, "cpu", use, threads)


class OnnxRuntimeSession:
    """One graph in ONNX Runtime; `run` is thread-safe."""

    def __init__(self, ort: Any, device: str, use: GraphUse, threads: int) -> None:
        said = preload_libraries(ort, device)
        providers = providers_for(device, use, library=f"{getattr(ort, '__version__', '')} {installed_tensorrt()}")
        _make_cache_folders(providers)
        try:
            self._session = _started(ort, use.graph, _options(ort, threads), providers)
        except Exception as error:
            raise _load_error(ort, device, use.graph, error) from error
        if self._session.get_providers()[0] != PROVIDERS[device]:
            raise _start_error(ort, device, self._session.get_providers()[0], said)
        self.inputs = tuple(_tensor_spec(use.graph, node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(use.graph, node) for node in self._session.get_outputs())
        shares = shares_of(self._session)
        if PROVIDERS[device] not in shares:
            raise SessionError(
                f"device {device} cannot be used: all of {use.graph.name} runs on {_listed(shares)}",
                hint="use --device cpu, or another precision of the bundle",
            )
        self.placement = Placement("onnxruntime", _listed(shares), device, use.precision, threads)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if self._session is None:
            raise SessionError("the session is closed", hint="open the bundle again")
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        self._session = None


def shares_of(session: Any) -> dict[str, float]:
    """Providers and the share of the graph's nodes that each runs, the largest first.

    Where ONNX Runtime does not tell (before 1.24), the first provider of the session stands for all.
    """
    try:
        assigned = session.get_provider_graph_assignment_info()
        nodes = Counter({part.ep_name: 0 for part in assigned})
        for part in assigned:
            nodes[part.ep_name] += len(part.get_nodes())
    except Exception:  # noqa: BLE001  no method, or an error of its own class; the answer is then a coarser one
        nodes = Counter()
    total = sum(nodes.values())
    if not total:
        return {session.get_providers()[0]: 1.0}
    return {name: count / total for name, count in nodes.most_common() if count}


def _listed(shares: dict[str, float]) -> str:
    """As in "CPU", or "CUDA 96 %, CPU 4 %" where the graph is split."""
    names = {name.removesuffix("ExecutionProvider"): share for name, share in shares.items()}
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{name} {max(1, round(100 * share))} %" for name, share in names.items())


def import_onnxruntime() -> Any:
    """ONNX Runtime; SessionError where two of its packages overwrite each other, MissingExtraError where none is."""
    if package_version("onnxruntime") and package_version("onnxruntime-gpu"):
        raise SessionError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, then install edgeclf[cpu] or edgeclf[gpu] again",
        )
    try:
        return import_extra("onnxruntime", "ONNX Runtime", "cpu")
    except MissingExtraError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise MissingExtraError(error.message, hint=_EXTRAS_HINT) from error
        raise


def _started(ort: Any, graph: Path, options: Any, providers: list[Provider]) -> Any:
    session = ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    session.disable_fallback()  # a run that fails on the GPU would be repeated on the CPU, for good
    return session


def _with_inputs(ort: Any, use: GraphUse) -> GraphUse:
    """The same with the graph's inputs, which TensorRT's profiles name; the CPU reads them without optimising."""
    options = _options(ort, 1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(use.graph), options, providers=[PROVIDERS["cpu"]])
    except Exception as error:
        raise _load_error(ort, "cpu", use.graph, error) from error
    inputs = tuple(_tensor_spec(use.graph, node) for node in session.get_inputs())
    return GraphUse(use.graph, inputs, use.precision, use.max_batch, use.gpu_mem_limit)


def _make_cache_folders(providers: list[Provider]) -> None:
    for _, options in providers:
        for key in ("trt_engine_cache_path", "trt_timing_cache_path"):
            if key in options:
                _make_folder(Path(options[key]))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SessionError(
            f"no engines can be kept in {folder}: {error.strerror}", hint="set EDGECLF_CACHE_DIR to another folder"
        ) from error


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")  # keys that a version does not know are ignored
    if threads == 0:  # ONNX Runtime as it comes: a thread for each core, which spin while they wait
        return options
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _why_not(ort: Any, device: str) -> str:
    """The reason why `device` cannot be used as far as can be told without touching it; empty if none."""
    if device == "cpu":
        return ""
    if device not in PROVIDERS:
        return f"ONNX Runtime runs on {', '.join(PROVIDERS)}"
    if PROVIDERS[device] not in ort.get_available_providers():
        return f"the installed ONNX Runtime has no {PROVIDERS[device]} ({_GPU_HINT})"
    return cuda_driver_problem()


def _load_error(ort: Any, device: str, graph: Path, error: Exception) -> SessionError:
    """Tells a provider that does not start from a graph that does not load."""
    if device == "tensorrt" and tensorrt_fit(ort).problem:
        return _start_error(ort, device, "", "")
    if device != "cpu":
        return SessionError(f"{graph.name} does not load on {device}: {_one_line(error)}", hint="use --device cpu")
    return SessionError(f"{graph.name} does not load: {_one_line(error)}", hint="export it again")


def _start_error(ort: Any, device: str, used: str, said: str) -> SessionError:
    reason, hint = _one_line(said), "edgeclf doctor says which library is missing; or use --device cpu"
    if device == "tensorrt" and (fit := tensorrt_fit(ort)).problem:
        reason, hint = fit.problem, fit.cure
    message = f"device {device} cannot be used: {PROVIDERS[device]} failed to start"
    message += f", ONNX Runtime fell back to {used}" if used else ""
    return SessionError(f"{message} ({reason})" if reason else message, hint=hint)


def _tensor_spec(graph: Path, node: Any) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise SessionError(
            f"{graph.name}: {node.name!r} is {node.type}, which is not supported", hint="export it again"
        )
    return TensorSpec(node.name, dtype, tuple(size if isinstance(size, int) else None for size in node.shape))


def _one_line(error: Exception | str) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300]
