"""The calls of CUDA's runtime that a session needs, each with its return code checked."""

from __future__ import annotations

import ctypes
import logging
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import MissingExtraError, SessionError

_log = logging.getLogger(__name__)

_NOT_ENOUGH_MEMORY = 2  # cudaErrorMemoryAllocation
_DRIVER_TOO_OLD = 35  # cudaErrorInsufficientDriver, also where there is no driver at all


class CudaError(SessionError):
    """A call of CUDA's runtime failed; `code` is its cudaError_t."""

    def __init__(self, message: str, *, hint: str = "", code: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def import_cuda() -> Cuda:
    """CUDA's runtime through the package cuda-python; raises MissingExtraError without it."""
    try:
        return Cuda(import_module("cuda.bindings.runtime"))
    except ImportError as error:
        raise MissingExtraError(
            f"cuda-python 12.6 or newer is not installed, or cannot be loaded: {error}",
            hint='pip install "edgeclf[tensorrt]"',
        ) from error


class Cuda:
    """Streams, memory, copies and graphs of the first device. Pointers are integers; a failure raises CudaError.

    What gives something back never raises: it is called where another error may be under way.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def open_stream(self) -> Any:
        """A stream of its own, which does not wait for the default stream."""
        runtime = self._runtime
        return self._value("open a stream", runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))

    def close_stream(self, stream: Any) -> None:
        """Give a stream back."""
        self._give_back("stream", self._runtime.cudaStreamDestroy(stream))

    def wait(self, stream: Any) -> None:
        """Return when all work on the stream is done; an error of that work is raised here."""
        self._value("finish the work on the GPU", self._runtime.cudaStreamSynchronize(stream))

    def allocate_device(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        return int(self._value(f"allocate {_mib(size)} on the GPU", self._runtime.cudaMalloc(size)))

    def free_device(self, address: int) -> None:
        """Give memory on the GPU back."""
        self._give_back("memory on the GPU", self._runtime.cudaFree(address))

    def allocate_pinned(self, size: int) -> int:
        """The address of `size` bytes on the host that the GPU copies from and to by itself."""
        flags = self._runtime.cudaHostAllocDefault
        return int(self._value(f"pin {_mib(size)} on the host", self._runtime.cudaHostAlloc(size, flags)))

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back."""
        self._give_back("pinned memory", self._runtime.cudaFreeHost(address))

    def copy_to_device(self, device: int, host: int, size: int, stream: Any) -> None:
        """Queue a copy from pinned memory to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._value("copy to the GPU", self._runtime.cudaMemcpyAsync(device, host, size, kind, stream))

    def copy_to_host(self, host: int, device: int, size: int, stream: Any) -> None:
        """Queue a copy from the GPU to pinned memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._value("copy from the GPU", self._runtime.cudaMemcpyAsync(host, device, size, kind, stream))

    def begin_capture(self, stream: Any) -> None:
        """From here on, what this thread queues on the stream is recorded and not run."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may allocate
        self._value("begin to capture a graph", self._runtime.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: Any) -> Any:
        """What was recorded, ready to launch. The stream runs again afterwards, also where this raises."""
        graph = self._value("capture a graph", self._runtime.cudaStreamEndCapture(stream))
        try:
            return self._value("prepare a graph", self._runtime.cudaGraphInstantiate(graph, 0))
        finally:
            self._give_back("graph", self._runtime.cudaGraphDestroy(graph))

    def abandon_capture(self, stream: Any) -> None:
        """End a capture that went wrong; the stream runs again afterwards."""
        error, graph = self._runtime.cudaStreamEndCapture(stream)
        if int(error) == 0:
            self._give_back("graph", self._runtime.cudaGraphDestroy(graph))
        self.forget_error()

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue all that a graph holds."""
        self._value("launch a graph", self._runtime.cudaGraphLaunch(graph, stream))

    def free_graph(self, graph: Any) -> None:
        """Give a graph back."""
        self._give_back("graph", self._runtime.cudaGraphExecDestroy(graph))

    def forget_error(self) -> None:
        """Clear an error that was dealt with, before a library that asks for the last one takes it for its own."""
        self._runtime.cudaGetLastError()

    def free_memory(self) -> int:
        """Bytes that are free on the GPU now, whoever uses the others."""
        free, _ = self._value("ask for the free memory", self._runtime.cudaMemGetInfo())
        return int(free)

    def version(self) -> str:
        """The version of CUDA's runtime, such as "13.0"."""
        number = int(self._value("ask for CUDA's version", self._runtime.cudaRuntimeGetVersion()))
        return f"{number // 1000}.{number % 1000 // 10}"

    def _value(self, purpose: str, result: Any) -> Any:
        """What a call returned behind its error code: nothing, one value or a tuple of several."""
        error, *values = result
        if int(error):
            raise self._failure(purpose, error)
        return values[0] if len(values) == 1 else tuple(values)

    def _give_back(self, what: str, result: Any) -> None:
        if int(result[0]):
            _log.warning("%s could not be given back: %s", what, self._text(result[0]))

    def _failure(self, purpose: str, error: Any) -> CudaError:
        self.forget_error()
        code = int(error)
        if code == _NOT_ENOUGH_MEMORY:
            return CudaError(
                f"there is not enough memory to {purpose}", hint="use a smaller --batch, or free memory", code=code
            )
        if code == _DRIVER_TOO_OLD:
            return CudaError(
                f"cannot {purpose}: the NVIDIA driver is missing or too old for the installed CUDA (error 35)",
                hint="install a newer driver, or cuda-python for the CUDA that this driver knows",
                code=code,
            )
        return CudaError(
            f"cannot {purpose}: {self._text(error)}", hint="run edgeclf selftest --gpu, or use --device cpu", code=code
        )

    def _text(self, error: Any) -> str:
        known, text = self._runtime.cudaGetErrorString(error)
        return f"{text.decode() if int(known) == 0 else 'unknown error'} (error {int(error)})"


class Arena:
    """Buffers on the GPU and pinned on the host that are given back together, last first."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: list[int] = []
        self._pinned: list[int] = []

    def device(self, size: int) -> int:
        """The address of `size` bytes on the GPU; aligned to 256 bytes at least."""
        self._device.append(self._cuda.allocate_device(size))
        return self._device[-1]

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """An array in pinned memory. It must not be touched after `close`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._pinned.append(self._cuda.allocate_pinned(size))
        raw = (ctypes.c_ubyte * size).from_address(self._pinned[-1])
        return np.frombuffer(memoryview(raw).cast("B"), np.dtype(dtype)).reshape(shape)

    def close(self) -> None:
        """Give everything back; twice is safe."""
        while self._device:
            self._cuda.free_device(self._device.pop())
        while self._pinned:
            self._cuda.free_pinned(self._pinned.pop())


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
