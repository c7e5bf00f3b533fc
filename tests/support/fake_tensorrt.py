"""TensorRT's run-time half on host memory: engines that give twice their input, or what they are told to.

What they compute is work on a stream of `FakeCuda`.

It stands in for the module `tensorrt`; a test compares every name with the real one. What TensorRT calls undefined
is an AssertionError here: a graph whose context was changed or given back, memory that is too small or gone.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.fake_cuda import FakeCuda

BROKEN_PLAN = b"broken"
WORKING_BYTES = 512


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class LayerInformationFormat(Enum):
    JSON = 1


class ILogger:
    Severity = Severity

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


NUMPY = {DataType.FLOAT: np.float32, DataType.INT32: np.int32, DataType.UINT8: np.uint8, DataType.HALF: np.float16}


@dataclass
class FakeTensor:
    name: str
    dtype: DataType
    shape: tuple[int, ...]  # -1 is the batch
    mode: TensorIOMode
    profile: tuple[int, int, int] = (1, 2, 4)  # rows: least, best, most
    location: TensorLocation = TensorLocation.DEVICE


def doubling() -> list[FakeTensor]:
    """Frames uint8 (N, 2, 3) in, features float32 (N, 2, 3) out: twice the frames."""
    return [
        FakeTensor("frames", DataType.UINT8, (-1, 2, 3), TensorIOMode.INPUT),
        FakeTensor("features", DataType.FLOAT, (-1, 2, 3), TensorIOMode.OUTPUT),
    ]


def masked() -> list[FakeTensor]:
    """Features float32 (N, 5) and lengths int32 (N) in, scores float32 (N, 5) out: twice the features."""
    return [
        FakeTensor("features", DataType.FLOAT, (-1, 5), TensorIOMode.INPUT),
        FakeTensor("length", DataType.INT32, (-1,), TensorIOMode.INPUT),
        FakeTensor("scores", DataType.FLOAT, (-1, 5), TensorIOMode.OUTPUT),
    ]


class FakeTensorRT:
    __version__ = "11.4.0"
    DataType = DataType
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    LayerInformationFormat = LayerInformationFormat
    ILogger = ILogger

    def __init__(self, cuda: FakeCuda, tensors: list[FakeTensor] | None = None) -> None:
        self.cuda = cuda
        self.tensors = doubling() if tensors is None else tensors
        self.layers: Any = {"Layers": []}
        self.alive: list[str] = []
        self.addresses: list[tuple[str, int]] = []  # of every call of set_tensor_address
        self.plans: list[bytes] = []
        self.refuse_runs = False
        self.refuse_runs_in_capture = False
        self.refused_addresses: set[str] = set()
        self.refused_shapes: set[str] = set()
        self.contexts_left = 100
        self.starts = True
        self.on_execute: Callable[[bool], None] = lambda capturing: None

    def compute(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What an engine gives, by name; every output is twice the first input."""
        first = next(iter(feeds.values()))
        return {t.name: 2 * first.astype(NUMPY[t.dtype]) for t in self.tensors if t.mode is TensorIOMode.OUTPUT}

    def Runtime(self, logger: Any) -> Runtime:
        if not self.starts:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.cuda.calls.append("Runtime")
        return Runtime(self, logger)


class _Counted:
    """Something whose end stands in the list of calls, as its beginning does."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        trt.alive.append(type(self).__name__)

    def __del__(self) -> None:
        self._trt.alive.remove(type(self).__name__)
        self._trt.cuda.calls.append(f"~{type(self).__name__}")


class Runtime(_Counted):
    def __init__(self, trt: FakeTensorRT, logger: ILogger) -> None:
        super().__init__(trt)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._trt.plans.append(serialized_engine)
        if serialized_engine == BROKEN_PLAN:
            self._logger.log(Severity.ERROR, "The engine plan file is not compatible with this version of TensorRT")
            return None
        return ICudaEngine(self._trt, self)


class EngineInspector:
    def __init__(self, layers: Any) -> None:
        self._layers = layers

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002
        assert format is LayerInformationFormat.JSON
        return json.dumps(self._layers)


class ICudaEngine(_Counted):
    def __init__(self, trt: FakeTensorRT, runtime: Runtime) -> None:
        super().__init__(trt)
        self._runtime = runtime  # as the real one does, it keeps what it depends on
        self.num_io_tensors = len(trt.tensors)
        self.device_memory_size_v2 = WORKING_BYTES

    def get_tensor_name(self, index: int) -> str:
        return self._trt.tensors[index].name

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensor(name).dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensor(name).mode

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self._tensor(name).location

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        tensor = self._tensor(name)
        assert tensor.mode is TensorIOMode.INPUT, "outputs have no profile"
        return [(rows, *tensor.shape[1:]) for rows in tensor.profile]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._trt.layers)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._trt.contexts_left -= 1
        if self._trt.contexts_left < 0:
            self._runtime._logger.log(Severity.ERROR, "out of memory")
            return None
        self._trt.cuda.calls.append("create_execution_context")
        return IExecutionContext(self._trt, self)

    def _tensor(self, name: str) -> FakeTensor:
        return next(tensor for tensor in self._trt.tensors if tensor.name == name)


@dataclass
class _State:
    """What a captured graph of a context depends on."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)
    version: int = 0
    fresh: bool = True  # no run since the last change of shape


class IExecutionContext(_Counted):
    def __init__(self, trt: FakeTensorRT, engine: ICudaEngine) -> None:
        super().__init__(trt)
        self._engine = engine
        self._state = _State()
        self._has_profile = False

    def set_device_memory(self, memory: int, size: int) -> None:
        self._state.memory = (memory, size)
        self._state.version += 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert profile_index == 0
        assert stream_handle in self._trt.cuda.streams
        self._has_profile = True
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._engine._tensor(name)
        self._trt.addresses.append((name, memory))
        self._state.addresses[name] = memory
        self._state.version += 1
        return name not in self._trt.refused_addresses

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        tensor = self._engine._tensor(name)
        assert self._has_profile
        assert tensor.mode is TensorIOMode.INPUT
        least, _, most = tensor.profile if tensor.shape[0] < 0 else (tensor.shape[0],) * 3
        if not least <= shape[0] <= most or shape[1:] != tensor.shape[1:] or name in self._trt.refused_shapes:
            return False
        self._state.shapes[name] = shape
        self._state.version += 1
        self._state.fresh = True
        return True

    def infer_shapes(self) -> list[str]:
        return [t.name for t in self._inputs() if t.name not in self._state.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tensor = self._engine._tensor(name)
        if tensor.mode is TensorIOMode.INPUT or tensor.shape[0] >= 0:
            return self._state.shapes.get(name, tensor.shape)
        rows = min(self._state.shapes[t.name][0] for t in self._inputs())
        return (rows, *tensor.shape[1:])

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._trt.cuda.calls.append("execute_async_v3")
        capturing = self._trt.cuda.is_capturing(stream_handle)
        self._trt.on_execute(capturing)
        if self._trt.refuse_runs or (capturing and self._trt.refuse_runs_in_capture):
            self._engine._runtime._logger.log(Severity.ERROR, "Cuda Runtime (an illegal memory access)")
            return False
        if capturing and self._state.fresh:  # TensorRT would now do what cannot be captured
            self._trt.cuda.invalidate_capture(stream_handle)
        self._state.fresh = False
        me, version = weakref.ref(self), self._state.version

        def compute() -> None:
            context = me()
            assert context is not None, "the context was given back before its work was done"
            assert context._state.version == version, "the context was changed after this was queued"
            context._compute()

        self._trt.cuda.submit(stream_handle, compute)
        return True

    def _inputs(self) -> list[FakeTensor]:
        return [tensor for tensor in self._trt.tensors if tensor.mode is TensorIOMode.INPUT]

    def _compute(self) -> None:
        address, size = self._state.memory
        assert size >= WORKING_BYTES
        self._trt.cuda.bytes_at(address, size, "device")
        answers = self._trt.compute({tensor.name: self._array(tensor.name).copy() for tensor in self._inputs()})
        for tensor in self._trt.tensors:
            if tensor.mode is TensorIOMode.OUTPUT:
                self._array(tensor.name)[:] = answers[tensor.name]

    def _array(self, name: str) -> NDArray[Any]:
        tensor, shape = self._engine._tensor(name), self.get_tensor_shape(name)
        size = int(np.prod(shape)) * np.dtype(NUMPY[tensor.dtype]).itemsize
        raw = self._trt.cuda.bytes_at(self._state.addresses[name], size, "device")
        return np.frombuffer(raw, NUMPY[tensor.dtype]).reshape(shape)


CLASSES: Mapping[str, type] = {
    "Runtime": Runtime,
    "ICudaEngine": ICudaEngine,
    "IExecutionContext": IExecutionContext,
    "EngineInspector": EngineInspector,
    "ILogger": ILogger,
}
ENUMS: Mapping[str, type[Enum]] = {
    "DataType": DataType,
    "TensorIOMode": TensorIOMode,
    "TensorLocation": TensorLocation,
    "ExecutionContextAllocationStrategy": ExecutionContextAllocationStrategy,
    "LayerInformationFormat": LayerInformationFormat,
}
