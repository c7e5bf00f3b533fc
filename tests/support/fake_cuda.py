"""CUDA's runtime on host memory: work is queued on streams and done when somebody waits, as on a GPU.

It stands in for the module `cuda.bindings.runtime`; a test compares every name with the real one. What a GPU would
answer with wrong numbers or a crash is an AssertionError here: memory that was given back, a copy in the wrong
direction, two threads on one stream.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

Work = Callable[[], None]


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class CaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Graph:
    work: list[Work]


@dataclass
class Stream:
    handle: int
    work: list[tuple[int, Work]] = field(default_factory=list)  # with the thread that queued it
    captured: list[Work] | None = None
    invalid: bool = False

    def __int__(self) -> int:
        return self.handle


class FakeCuda:
    cudaError_t = Error
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.streams: dict[int, Stream] = {}
        self.memory: dict[int, tuple[str, Any]] = {}  # address to its kind and its bytes
        self.on_wait: Work = lambda: None
        self.graphs: list[Graph] = []
        self.executables: list[Graph] = []
        self._failures: dict[tuple[str, int], Error] = {}
        self._counts: Counter[str] = Counter()
        self._next_handle = 0x5000

    # What tests ask and arrange.

    def fail(self, name: str, code: Error, *, call: int = 1) -> None:
        """Let a call of that name fail, the first one that is still to come unless another is said."""
        self._failures[name, self._counts[name] + call] = code

    def count(self, name: str) -> int:
        return self.calls.count(name)

    def left(self) -> list[str]:
        """Everything that was taken and not given back."""
        kinds = [kind for kind, _ in self.memory.values()]
        return [*kinds, *("stream" for _ in self.streams), *("graph" for _ in (*self.graphs, *self.executables))]

    def submit(self, stream_handle: int, work: Work) -> None:
        """What a library does on a stream: queued, or recorded while the stream captures."""
        stream = self.streams[stream_handle]
        if stream.captured is not None:
            stream.captured.append(work)
        else:
            stream.work.append((threading.get_ident(), work))

    def is_capturing(self, stream_handle: int) -> bool:
        return self.streams[stream_handle].captured is not None

    def invalidate_capture(self, stream_handle: int) -> None:
        self.streams[stream_handle].invalid = True

    def bytes_at(self, address: int, size: int, kind: str) -> Any:
        """The bytes at an address, which must be inside one living buffer of that kind."""
        for start, (found, buffer) in self.memory.items():
            if start <= address and address + size <= start + len(buffer):
                assert found == kind, f"{found} memory where {kind} memory is needed"
                return (ctypes.c_ubyte * size).from_address(address)
        raise AssertionError(f"{size} bytes at {address:#x} are in no buffer that is still held")

    # What the library has.

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        if code := self._begin("cudaStreamCreateWithFlags"):
            return code, None
        self._next_handle += 1
        stream = self.streams[self._next_handle] = Stream(self._next_handle)
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Any, ...]:
        self._begin("cudaStreamDestroy")
        del self.streams[stream.handle]
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Any, ...]:
        if code := self._begin("cudaStreamSynchronize"):
            return (code,)
        if stream.captured is not None:
            stream.invalid = True
            return (Error.cudaErrorStreamCaptureUnsupported,)
        self.on_wait()
        work, stream.work = stream.work, []
        for thread, step in work:
            assert thread == threading.get_ident(), "two threads work on one stream"
            step()
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", "device", size)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        return self._free("cudaFree", "device", devPtr)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaHostAllocDefault
        return self._allocate("cudaHostAlloc", "pinned", size)

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        return self._free("cudaFreeHost", "pinned", ptr)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: CopyKind, stream: Stream) -> tuple[Any, ...]:
        if code := self._begin("cudaMemcpyAsync"):
            return (code,)
        to_device = kind is CopyKind.cudaMemcpyHostToDevice
        kinds = ("device", "pinned") if to_device else ("pinned", "device")

        def copy() -> None:
            ctypes.memmove(self.bytes_at(dst, count, kinds[0]), self.bytes_at(src, count, kinds[1]), count)

        self.submit(stream.handle, copy)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: CaptureMode) -> tuple[Any, ...]:
        assert mode is CaptureMode.cudaStreamCaptureModeThreadLocal
        if code := self._begin("cudaStreamBeginCapture"):
            return (code,)
        assert stream.captured is None, "the stream is captured already"
        assert not stream.work, "a capture begins behind work that nobody waited for"
        stream.captured, stream.invalid = [], False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:
        code = self._begin("cudaStreamEndCapture")
        assert stream.captured is not None, "the stream is not captured"
        captured, stream.captured = stream.captured, None
        if stream.invalid:
            code = Error.cudaErrorStreamCaptureInvalidated
        if code:
            return code, None
        self.graphs.append(Graph(captured))
        return Error.cudaSuccess, self.graphs[-1]

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        if code := self._begin("cudaGraphInstantiate"):
            return code, None
        self.executables.append(Graph(list(graph.work)))
        return Error.cudaSuccess, self.executables[-1]

    def cudaGraphDestroy(self, graph: Graph) -> tuple[Any, ...]:
        self._begin("cudaGraphDestroy")
        self.graphs = [one for one in self.graphs if one is not graph]
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: Graph, stream: Stream) -> tuple[Any, ...]:
        if code := self._begin("cudaGraphLaunch"):
            return (code,)
        assert any(one is graphExec for one in self.executables), "the graph was given back"
        for work in graphExec.work:
            self.submit(stream.handle, work)
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: Graph) -> tuple[Any, ...]:
        self._begin("cudaGraphExecDestroy")
        self.executables = [one for one in self.executables if one is not graphExec]
        return (Error.cudaSuccess,)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        self._begin("cudaGetLastError")
        return (Error.cudaSuccess,)

    def cudaGetErrorString(self, error: Error) -> tuple[Any, ...]:
        return Error.cudaSuccess, f"text of {Error(error).name}".encode()

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        used = sum(len(buffer) for kind, buffer in self.memory.values() if kind == "device")
        return Error.cudaSuccess, (1 << 30) - used, 1 << 30

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, 13040

    def _begin(self, name: str) -> Error:
        self.calls.append(name)
        self._counts[name] += 1
        return self._failures.pop((name, self._counts[name]), Error.cudaSuccess)

    def _allocate(self, name: str, kind: str, size: int) -> tuple[Any, ...]:
        if code := self._begin(name):
            return code, None
        buffer = (ctypes.c_ubyte * size)()
        ctypes.memset(buffer, 0xA5, size)  # what lies in fresh memory is nothing to build on
        address = ctypes.addressof(buffer)
        self.memory[address] = (kind, buffer)
        return Error.cudaSuccess, address

    def _free(self, name: str, kind: str, address: int) -> tuple[Any, ...]:
        code = self._begin(name)
        assert self.memory[address][0] == kind
        del self.memory[address]
        return (code,)
