"""ONNX Runtime, on the CPU, CUDA or its TensorRT provider."""

from __future__ import annotations

import ctypes
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeclf.errors import SessionError, import_extra
from edgeclf.runtime.session import Arrays, Placement
from edgeclf.specs import Device, TensorSpec

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int32)": "int32"}
_LOG_FATAL = 4  # provider failures are raised below; ONNX Runtime would print them as well
_GPU_HINT = 'pip uninstall -y onnxruntime && pip install "edgeclf[gpu]"'


def open_onnxruntime(
    graph: Path, *, device: Device, precision: str, threads: int, max_batch: int
) -> OnnxRuntimeSession:
    """A session on `device`; "auto" is CUDA where a driver and a provider are there and work, else the CPU."""
    del max_batch  # any batch runs
    ort = _import_onnxruntime()
    if device == "auto":
        reason = _why_not(ort, "cuda")
        device = "cpu" if reason else "cuda"
    elif reason := _why_not(ort, device):
        raise SessionError(f"device {device} cannot be used: {reason}", hint="use --device cpu or auto")
    return OnnxRuntimeSession(ort, graph, device, precision, threads)


class OnnxRuntimeSession:
    """One graph in ONNX Runtime; `run` is thread-safe."""

    def __init__(self, ort: Any, graph: Path, device: str, precision: str, threads: int) -> None:
        provider = _PROVIDERS[device]
        try:
            self._session = ort.InferenceSession(str(graph), _options(ort, threads), providers=[provider])
        except Exception as error:
            raise SessionError(f"{graph.name} does not load: {_first_line(error)}", hint="export it again") from error
        used = self._session.get_providers()
        if used[0] != provider:
            raise SessionError(
                f"device {device} cannot be used: {provider} failed to start, ONNX Runtime fell back to {used[0]}",
                hint="check the CUDA, cuDNN and TensorRT libraries, or use --device cpu",
            )
        self.inputs = tuple(_tensor_spec(graph, node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(graph, node) for node in self._session.get_outputs())
        self.placement = Placement(
            "onnxruntime", provider.removesuffix("ExecutionProvider"), device, precision, threads
        )

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if self._session is None:
            raise SessionError("the session is closed", hint="open the bundle again")
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        self._session = None


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
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
    if _PROVIDERS[device] not in ort.get_available_providers():
        return f"the installed ONNX Runtime has no {_PROVIDERS[device]} ({_GPU_HINT})"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1 is missing)"
    return ""


def _import_onnxruntime() -> Any:
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise SessionError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, then install edgeclf[cpu] or edgeclf[gpu] again",
        )
    return import_extra("onnxruntime", "ONNX Runtime", "cpu")


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _tensor_spec(graph: Path, node: Any) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise SessionError(
            f"{graph.name}: {node.name!r} is {node.type}, which is not supported", hint="export it again"
        )
    return TensorSpec(node.name, dtype, tuple(size if isinstance(size, int) else None for size in node.shape))


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300]
