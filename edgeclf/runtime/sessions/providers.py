"""What ONNX Runtime's GPU providers are told, and which libraries they want.

The option names are those that the wheels of ONNX Runtime 1.23 to 1.31 hold; a test compares them with a committed
list. Nothing here has run on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import io
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeclf.bundle import sha256_of
from edgeclf.runtime.cache import cache_folder, short_hash
from edgeclf.runtime.machine import package_version
from edgeclf.specs import TensorSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
Provider = tuple[str, dict[str, str]]

_TENSORRT_LIBRARY = "libonnxruntime_providers_tensorrt.so"
_TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-libs", "tensorrt-cu12-libs")
_TENSORRT_PARTS = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")  # each needs the one before
_WORKSPACE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class GraphUse:
    """A graph and how it will be run: what the providers' options depend on."""

    graph: Path
    inputs: tuple[TensorSpec, ...]
    precision: str
    max_batch: int
    gpu_mem_limit: int | None = None  # bytes that the CUDA provider may take; None is all there is


def providers_for(device: str, use: GraphUse, *, library: str = "") -> list[Provider]:
    """The providers to ask for, the wanted one first, with their options.

    What TensorRT refuses runs on CUDA, what CUDA refuses on the CPU; `OnnxRuntimeSession` says how much that is.
    library: versions of ONNX Runtime and TensorRT, which an engine on disk must not outlive.
    """
    chain: list[Provider] = [(PROVIDERS["cpu"], {})]
    if device != "cpu":
        chain.insert(0, (PROVIDERS["cuda"], cuda_options(use)))
    if device == "tensorrt":
        chain.insert(0, (PROVIDERS["tensorrt"], tensorrt_options(use, library=library)))
    return chain


def cuda_options(use: GraphUse) -> dict[str, str]:
    """Options of the CUDA provider."""
    options = {
        "device_id": "0",
        # The default, EXHAUSTIVE, measures every algorithm again for each batch size that comes.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles the arena each time it is too small.
        "arena_extend_strategy": "kSameAsRequested",
        # TF32 rounds the factors of FP32 products to 10 bits, so that parity with the CPU is lost.
        "use_tf32": "0",
        "do_copy_in_default_stream": "1",  # another stream needs a synchronisation that the library leaves to us
    }
    if use.gpu_mem_limit is not None:
        options["gpu_mem_limit"] = str(use.gpu_mem_limit)
    return options


def tensorrt_options(use: GraphUse, *, library: str) -> dict[str, str]:
    """Options of the TensorRT provider; engines and measured kernels are kept beside the user's cache directory."""
    folder = cache_folder("onnxruntime-tensorrt")
    options = {
        "device_id": "0",
        # A half-precision graph asks for FP16 kernels, which TensorRT 10 uses only where the flag is set.
        "trt_fp16_enable": str(int(use.precision == "fp16")),
        "trt_int8_enable": str(int(use.precision == "int8")),  # takes the scales from the graph's QuantizeLinear nodes
        "trt_max_workspace_size": str(_WORKSPACE_BYTES),
        "trt_cuda_graph_enable": "0",  # needs one fixed shape and bound buffers
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder / _engine_key(use, library)),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder / f"timing-{short_hash(library)}"),
    }
    return options | _profiles(use)


def _engine_key(use: GraphUse, library: str) -> str:
    what = f"{sha256_of(use.graph)} {use.precision} {use.max_batch} {library}"
    return f"{use.graph.stem}-{short_hash(what)}"


def _profiles(use: GraphUse) -> dict[str, str]:
    """Batches of 1 to `max_batch`, tuned for the largest; without this each new largest batch builds an engine."""
    dynamic = [spec for spec in use.inputs if None in spec.shape]
    if not dynamic:
        return {}
    batches = {"min": 1, "opt": use.max_batch, "max": use.max_batch}
    return {
        f"trt_profile_{name}_shapes": ",".join(f"{spec.name}:{_shape(spec, batch)}" for spec in dynamic)
        for name, batch in batches.items()
    }


def _shape(spec: TensorSpec, batch: int) -> str:
    return "x".join(str(size or batch) for size in spec.shape)


def preload_libraries(ort: Any, device: str) -> str:
    """Load what `device` needs of CUDA, cuDNN and TensorRT and came as Python packages; names what did not load.

    Without this a provider finds only what the system's loader finds.
    """
    said = io.StringIO()
    if device != "cpu" and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(said):  # it prints failures there, where results belong
            ort.preload_dlls(msvc=False)
    if device == "tensorrt":
        _preload_tensorrt(tensorrt_fit(ort).wanted)
    missing = dict.fromkeys(re.findall(r"Failed to load (lib[\w.+-]+)", said.getvalue()))
    return f"not found: {', '.join(missing)}" if missing else ""


def _preload_tensorrt(major: int | None) -> None:
    package = find_spec("tensorrt_libs")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for name in _TENSORRT_PARTS:
            with contextlib.suppress(OSError):  # the system may have it; the session says what is missing
                ctypes.CDLL(str(Path(folder) / f"{name}.so.{major}"), mode=ctypes.RTLD_GLOBAL)


@dataclass(frozen=True, slots=True)
class TensorrtFit:
    """The TensorRT that an ONNX Runtime was linked with, and the one that is installed."""

    wanted: int | None  # major version; None where it cannot be told
    cuda: int | None
    installed: str  # version; empty where none is found

    @property
    def problem(self) -> str:
        """Why the TensorRT provider cannot load, empty if nothing speaks against it."""
        if self.wanted is None or self.installed.partition(".")[0] == str(self.wanted):
            return ""
        built = f"this ONNX Runtime is linked with TensorRT {self.wanted} (libnvinfer.so.{self.wanted})"
        built += f" and CUDA {self.cuda}" if self.cuda else ""
        return f"{built}, " + (f"TensorRT {self.installed} is installed" if self.installed else "none is installed")

    @property
    def cure(self) -> str:
        """What to do about the problem."""
        suffix = f"-cu{self.cuda}" if self.cuda else ""
        newest = f"tensorrt{suffix}>={self.wanted},<{(self.wanted or 0) + 1}"
        return f'pip install "{newest}", or take --backend tensorrt, which runs with TensorRT 10 and 11'


def tensorrt_fit(ort: Any) -> TensorrtFit:
    """Whether the installed TensorRT is the one that the TensorRT provider of `ort` is linked with.

    pip's newest TensorRT is 11; the wheels of ONNX Runtime up to 1.31 want 10, and say so in a log line alone.
    """
    try:
        library = (Path(ort.__file__).parent / "capi" / _TENSORRT_LIBRARY).read_bytes()
    except (OSError, AttributeError, TypeError):
        library = b""
    return TensorrtFit(
        _major(rb"libnvinfer\.so\.", library), _major(rb"libcudart\.so\.", library), installed_tensorrt()
    )


def installed_tensorrt() -> str:
    """The version of the installed TensorRT, of its Python package or of the system's library; empty if none."""
    for package in _TENSORRT_PACKAGES:
        if found := package_version(package):
            return found
    return (ctypes.util.find_library("nvinfer") or "").rpartition(".so.")[2]


def _major(prefix: bytes, library: bytes) -> int | None:
    found = re.search(prefix + rb"(\d+)", library)
    return int(found[1]) if found else None
