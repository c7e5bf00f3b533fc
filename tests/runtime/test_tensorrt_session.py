"""The native TensorRT session, over a TensorRT and a CUDA that are made of host memory.

What these tests can show: which calls are made, in which order, with which memory, and what becomes of failures.
They say nothing about a GPU's answers or speed: that is what `edgeclf selftest --gpu` is for.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import MissingExtraError, SessionError
from edgeclf.runtime.driver import cuda_driver_problem
from edgeclf.runtime.session import open_session
from edgeclf.runtime.sessions import tensorrt as backend
from edgeclf.runtime.sessions.cuda import Cuda, import_cuda
from edgeclf.runtime.sessions.tensorrt import TensorRTSession
from edgeclf.specs import TensorSpec
from tests.support import fake_cuda, fake_tensorrt
from tests.support.fake_cuda import Error, FakeCuda
from tests.support.fake_tensorrt import (
    BROKEN_PLAN,
    DataType,
    FakeTensor,
    FakeTensorRT,
    TensorIOMode,
    TensorLocation,
    doubling,
    masked,
)

GRAPH = Path("doubling.onnx")
LISTINGS = Path(__file__).parent.parent / "golden" / "tensorrt"
PLAIN_RUN = ["cudaMemcpyAsync", "execute_async_v3", "cudaMemcpyAsync", "cudaStreamSynchronize"]
REPLAY = ["cudaGraphLaunch", "cudaStreamSynchronize"]


@dataclass
class Gpu:
    """A machine with a GPU, and what its engine cache holds."""

    cuda: FakeCuda
    trt: FakeTensorRT
    plans: list[bytes] = field(default_factory=lambda: [b"plan"])
    forgotten: list[Path] = field(default_factory=list)
    problem: str = ""

    def open(self, *, precision: str = "fp32", max_batch: int = 4) -> TensorRTSession:
        session = open_session(GRAPH, "tensorrt", precision=precision, max_batch=max_batch)
        assert isinstance(session, TensorRTSession)
        return session

    def calls_of(self, work: Callable[[], object]) -> list[str]:
        before = len(self.cuda.calls)
        work()
        return self.cuda.calls[before:]

    @property
    def left(self) -> list[str]:
        return self.cuda.left() + self.trt.alive


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    cuda = FakeCuda()
    machine = Gpu(cuda, FakeTensorRT(cuda))

    def cached_engine(trt: Any, graph: Path, settings: Any, *, say: Callable[[str], None]) -> bytes:
        assert (trt, graph) == (machine.trt, GRAPH)
        assert settings.max_batch == 4
        return machine.plans[0] if len(machine.plans) == 1 else machine.plans.pop(0)

    monkeypatch.setattr(backend, "cuda_driver_problem", lambda: machine.problem)
    monkeypatch.setattr(backend, "import_tensorrt", lambda: machine.trt)
    monkeypatch.setattr(backend, "import_cuda", lambda: Cuda(cuda))
    monkeypatch.setattr(backend, "cached_engine", cached_engine)
    monkeypatch.setattr(backend, "forget_engine", lambda trt, graph, settings: machine.forgotten.append(graph))
    yield machine
    assert machine.left == []


@pytest.fixture
def session(gpu: Gpu) -> Iterator[TensorRTSession]:
    opened = gpu.open()
    yield opened
    opened.close()


def frames(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 3), np.uint8)


def assert_doubled(session: TensorRTSession, count: int, seed: int = 0) -> None:
    given = frames(count, seed)
    features = session.run({"frames": given})["features"]
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, 2.0 * given)


# What it says and gives.


def test_session_says_what_it_takes_gives_and_runs_on(session: TensorRTSession) -> None:
    assert session.inputs == (TensorSpec("frames", "uint8", (None, 2, 3)),)
    assert session.outputs == (TensorSpec("features", "float32", (None, 2, 3)),)
    assert str(session.placement) == "tensorrt TensorRT 11.4.0 fp32, default threads"
    assert session.placement.device == "tensorrt"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_every_run_of_a_batch_gives_the_same(session: TensorRTSession, count: int) -> None:
    for seed in range(5):
        assert_doubled(session, count, seed)


def test_answers_stay_as_they_are_when_the_next_batch_runs(session: TensorRTSession) -> None:
    first = session.run({"frames": frames(2, 1)})["features"]
    session.run({"frames": frames(2, 2)})
    np.testing.assert_array_equal(first, 2.0 * frames(2, 1))


def test_several_inputs_run_together(gpu: Gpu) -> None:
    gpu.trt.tensors = masked()
    opened = gpu.open()
    features = np.arange(30, dtype=np.float32).reshape(6, 5)
    scores = opened.run({"length": np.arange(6, dtype=np.int32), "features": features})["scores"]
    np.testing.assert_array_equal(scores, 2 * features)
    opened.close()


def test_share_of_half_precision_stands_in_the_placement(gpu: Gpu) -> None:
    kinds = ("Half", "Row major linear FP16 format", "Float", "Row major linear FP32", "N/A due to dynamic shapes")
    gpu.trt.layers = {"Layers": [{"Outputs": [{"Format/Datatype": kind}]} for kind in kinds]}
    opened = gpu.open(precision="fp16")
    assert opened.placement.precision == "fp16 (50% of layers)"
    opened.close()


@pytest.mark.parametrize("layers", [{"Layers": ["conv1", "conv2"]}, {"Layers": []}, {}, []])
def test_engine_without_details_gives_no_share(gpu: Gpu, layers: Any) -> None:
    gpu.trt.layers = layers
    opened = gpu.open(precision="fp16")
    assert opened.placement.precision == "fp16"
    opened.close()


def test_inspector_that_fails_does_not_keep_the_engine_from_running(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        raise RuntimeError("the inspector has no answer")

    monkeypatch.setattr(fake_tensorrt.EngineInspector, "get_engine_information", fails)
    opened = gpu.open(precision="fp16")
    assert opened.placement.precision == "fp16"
    assert_doubled(opened, 2)
    opened.close()


# Batches.


def test_larger_batch_than_the_profile_is_split(gpu: Gpu, session: TensorRTSession) -> None:
    before = gpu.cuda.count("execute_async_v3")
    assert_doubled(session, 7)
    assert gpu.cuda.count("execute_async_v3") == before + 2  # of 4 and of 3
    assert_doubled(session, 23)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_batch_that_the_profile_cannot_make_up_is_an_error(gpu: Gpu, count: int) -> None:
    gpu.trt.tensors[0].profile = (2, 2, 4)
    opened = gpu.open()
    with pytest.raises(SessionError, match=f"a batch of {count} is outside of the engine's profile; give 2 to 4"):
        opened.run({"frames": frames(count)})
    assert_doubled(opened, 6)
    opened.close()


def test_shape_that_tensorrt_refuses_is_an_error_and_the_next_runs(gpu: Gpu, session: TensorRTSession) -> None:
    gpu.trt.refused_shapes = {"frames"}
    with pytest.raises(SessionError, match="a batch of 2 is outside of the engine's profile"):
        session.run({"frames": frames(2)})
    gpu.trt.refused_shapes = set()
    assert_doubled(session, 2)


def test_shape_that_was_set_in_part_is_set_again(gpu: Gpu) -> None:
    gpu.trt.tensors = masked()
    opened = gpu.open()
    features = np.arange(20, dtype=np.float32).reshape(4, 5)
    gpu.trt.refused_shapes = {"length"}
    with pytest.raises(SessionError, match="a batch of 2 is outside"):
        opened.run({"features": features[:2], "length": np.zeros(2, np.int32)})
    gpu.trt.refused_shapes = set()
    scores = opened.run({"features": features, "length": np.zeros(4, np.int32)})["scores"]
    np.testing.assert_array_equal(scores, 2 * features)
    opened.close()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "the inputs are none; give frames uint8"),
        ({"pictures": frames(1)}, "the inputs are pictures; give frames uint8"),
        ({"frames": frames(1).astype(np.float32)}, r"frames is float32\[1, 2, 3\]; give frames uint8\[N,2,3\]"),
        ({"frames": frames(1)[:, :1]}, r"frames is uint8\[1, 1, 3\]; give"),
        ({"frames": np.uint8(3)}, r"frames is uint8\[\]; give"),
    ],
)
def test_inputs_that_do_not_fit_are_named(session: TensorRTSession, feeds: Any, message: str) -> None:
    with pytest.raises(SessionError, match=message):
        session.run(feeds)


def test_inputs_of_different_batches_are_an_error(gpu: Gpu) -> None:
    gpu.trt.tensors = masked()
    opened = gpu.open()
    with pytest.raises(SessionError, match="a batch of 2, 3 is outside"):
        opened.run({"features": np.zeros((2, 5), np.float32), "length": np.zeros(3, np.int32)})
    opened.close()


# CUDA graphs.


def test_first_run_of_a_size_is_plain(gpu: Gpu, session: TensorRTSession) -> None:
    assert gpu.calls_of(lambda: assert_doubled(session, 2)) == PLAIN_RUN
    assert session.captured_batches == ()


def test_second_run_captures_and_all_others_replay(gpu: Gpu, session: TensorRTSession) -> None:
    assert_doubled(session, 2)
    second = gpu.calls_of(lambda: assert_doubled(session, 2))
    assert (
        second
        == [
            *PLAIN_RUN,
            "create_execution_context",
            "cudaStreamSynchronize",
            *PLAIN_RUN,  # TensorRT's deferred work after a change of shape must not be captured
            "cudaStreamBeginCapture",
            *PLAIN_RUN[:-1],
            "cudaStreamEndCapture",
            "cudaGraphInstantiate",
            "cudaGraphDestroy",
        ]
    )
    for seed in range(3):
        assert gpu.calls_of(lambda seed=seed: assert_doubled(session, 2, seed)) == REPLAY  # type: ignore[misc]
    assert session.captured_batches == (2,)


def test_sizes_in_turn_keep_their_graphs(gpu: Gpu, session: TensorRTSession) -> None:
    for seed in range(6):
        for count in (1, 4, 3):
            assert_doubled(session, count, seed)
    assert session.captured_batches == (1, 3, 4)
    assert gpu.cuda.count("cudaStreamBeginCapture") == 3
    assert gpu.trt.alive.count("IExecutionContext") == 1 + 3  # a graph needs a context that does not change


def test_tensors_never_move(gpu: Gpu, session: TensorRTSession) -> None:
    taken = gpu.cuda.count("cudaMalloc") + gpu.cuda.count("cudaHostAlloc")
    for _ in range(3):
        for count in (1, 2, 3, 4, 9):
            assert_doubled(session, count)
    assert len(set(gpu.trt.addresses)) == 2
    assert gpu.cuda.count("cudaMalloc") + gpu.cuda.count("cudaHostAlloc") == taken


def test_number_of_graphs_is_limited(gpu: Gpu, session: TensorRTSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MAX_GRAPHS", 2)
    for seed in range(3):
        for count in (4, 3, 2, 1):
            assert_doubled(session, count, seed)
    assert session.captured_batches == (3, 4)


FAILING_CALLS = {
    "cudaStreamBeginCapture": Error.cudaErrorInvalidValue,
    "cudaStreamEndCapture": Error.cudaErrorStreamCaptureInvalidated,
    "cudaGraphInstantiate": Error.cudaErrorMemoryAllocation,
}


@pytest.mark.parametrize("name", [*FAILING_CALLS, "enqueue", "context"])
def test_size_that_cannot_be_captured_runs_on_without(
    gpu: Gpu, session: TensorRTSession, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if name == "enqueue":
        gpu.trt.refuse_runs_in_capture = True
    elif name == "context":
        gpu.trt.contexts_left = 0
    else:
        gpu.cuda.fail(name, FAILING_CALLS[name])
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            assert_doubled(session, 2, seed)
    assert session.captured_batches == ()
    (record,) = caplog.records
    assert record.getMessage().startswith("doubling.onnx: batches of 2 run without a CUDA graph: ")
    assert gpu.calls_of(lambda: assert_doubled(session, 2)) == PLAIN_RUN
    assert gpu.trt.alive.count("IExecutionContext") == 1
    assert gpu.cuda.graphs == gpu.cuda.executables == []


def test_failed_capture_of_one_size_leaves_the_others(gpu: Gpu, session: TensorRTSession) -> None:
    gpu.cuda.fail("cudaStreamEndCapture", Error.cudaErrorStreamCaptureInvalidated)
    for seed in range(3):
        assert_doubled(session, 2, seed)
        assert_doubled(session, 3, seed)
    assert session.captured_batches == (3,)


def test_interrupt_while_capturing_ends_the_capture(gpu: Gpu, session: TensorRTSession) -> None:
    def interrupt(capturing: bool) -> None:
        if capturing:
            raise KeyboardInterrupt

    gpu.trt.on_execute = interrupt
    assert_doubled(session, 2)
    with pytest.raises(KeyboardInterrupt):
        session.run({"frames": frames(2)})
    gpu.trt.on_execute = lambda capturing: None
    assert_doubled(session, 2)


# What goes wrong in a run.


def test_run_that_tensorrt_does_not_start_is_an_error_with_its_log(gpu: Gpu, session: TensorRTSession) -> None:
    gpu.trt.refuse_runs = True
    with pytest.raises(SessionError, match=r"TensorRT did not start a run of 2: Cuda Runtime \(an illegal memory"):
        session.run({"frames": frames(2)})
    assert gpu.cuda.calls[-1] == "cudaStreamSynchronize"  # the copies that were queued before are done
    gpu.trt.refuse_runs = False
    assert_doubled(session, 2)


@pytest.mark.parametrize("name", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_error_of_the_gpu_reaches_the_caller(gpu: Gpu, session: TensorRTSession, name: str) -> None:
    gpu.cuda.fail(name, Error.cudaErrorIllegalAddress)
    with pytest.raises(SessionError, match=r"text of cudaErrorIllegalAddress \(error 700\); run edgeclf selftest"):
        session.run({"frames": frames(2)})


def test_error_in_a_replay_reaches_the_caller(gpu: Gpu, session: TensorRTSession) -> None:
    for _ in range(2):
        assert_doubled(session, 2)
    gpu.cuda.fail("cudaGraphLaunch", Error.cudaErrorIllegalAddress)
    with pytest.raises(SessionError, match="cannot launch a graph: text of cudaErrorIllegalAddress"):
        session.run({"frames": frames(2)})


# Opening.


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_other_devices_are_refused(gpu: Gpu, device: Any) -> None:
    with pytest.raises(SessionError, match=f"cannot run on device {device}; use --device tensorrt"):
        open_session(GRAPH, device, backend="tensorrt")


def test_auto_is_accepted(gpu: Gpu) -> None:
    opened = open_session(GRAPH, "auto", backend="tensorrt", max_batch=4)
    assert opened.placement.device == "tensorrt"
    opened.close()


def test_missing_driver_is_an_error_before_tensorrt_is_touched(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched() -> None:
        raise AssertionError("TensorRT was imported without a driver")

    monkeypatch.setattr(backend, "import_tensorrt", touched)
    gpu.problem = "no NVIDIA driver is installed (libcuda.so.1 is missing)"
    with pytest.raises(SessionError, match=r"device tensorrt cannot be used: no NVIDIA driver .*; use --device cpu"):
        gpu.open()


def test_engine_that_does_not_load_is_built_again(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    gpu.plans = [BROKEN_PLAN, b"plan"]
    opened = gpu.open()
    assert gpu.trt.plans == [BROKEN_PLAN, b"plan"]
    assert gpu.forgotten == [GRAPH]
    assert "is built again: The engine plan file is not compatible" in caplog.text
    assert_doubled(opened, 2)
    opened.close()


def test_engine_that_never_loads_is_an_error_after_one_attempt_more(gpu: Gpu) -> None:
    gpu.plans = [BROKEN_PLAN]
    with pytest.raises(
        SessionError, match=r"does not load the engine it built of doubling.onnx: .*not compatible"
    ) as caught:
        gpu.open()
    assert len(gpu.trt.plans) == len(gpu.forgotten) == 2
    assert gpu.left == [], f"kept by {caught.traceback}"


def test_runtime_that_does_not_start_is_an_error(gpu: Gpu) -> None:
    gpu.trt.starts = False
    with pytest.raises(SessionError, match="does not start: CUDA initialization failure with error: 35"):
        gpu.open()


def test_driver_too_old_for_cuda_is_an_error(gpu: Gpu) -> None:
    gpu.cuda.fail("cudaStreamCreateWithFlags", Error.cudaErrorInsufficientDriver)
    with pytest.raises(
        SessionError, match=r"driver is missing or too old .*\(error 35\); install a newer driver"
    ) as caught:
        gpu.open()
    assert gpu.left == [], f"kept by {caught.traceback}"


@pytest.mark.parametrize(("name", "calls"), [("cudaMalloc", 3), ("cudaHostAlloc", 2)])
def test_too_little_memory_is_an_error_and_nothing_is_kept(gpu: Gpu, name: str, calls: int) -> None:
    for call in range(1, calls + 1):
        gpu.cuda.fail(name, Error.cudaErrorMemoryAllocation, call=call)
        gpu.cuda.calls.clear()
        with pytest.raises(SessionError, match="there is not enough memory to") as caught:
            gpu.open()
        assert gpu.left == [], f"kept after call {call} by {caught.traceback}"
        assert_in_order(gpu.cuda.calls)
    gpu.open().close()  # there was no further call that could have failed


@pytest.mark.parametrize("refused", ["refused_addresses", "refused_shapes"])
def test_context_that_refuses_its_tensors_is_an_error(gpu: Gpu, refused: str) -> None:
    setattr(gpu.trt, refused, {"frames"})
    with pytest.raises(SessionError, match=r"TensorRT refused its buffers|outside of the engine's profile"):
        gpu.open()
    assert gpu.left == []


def test_engine_without_context_is_an_error(gpu: Gpu) -> None:
    gpu.trt.contexts_left = 0
    with pytest.raises(SessionError, match="made no execution context: out of memory"):
        gpu.open()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (FakeTensor("x", DataType.HALF, (-1, 2), TensorIOMode.OUTPUT), r"'x' is DataType.HALF\[-1, 2\], which"),
        (FakeTensor("x", DataType.FLOAT, (-1, -1), TensorIOMode.OUTPUT), r"'x' is DataType.FLOAT\[-1, -1\], which"),
        (FakeTensor("x", DataType.FLOAT, (), TensorIOMode.OUTPUT), r"'x' is DataType.FLOAT\[\], which"),
        (FakeTensor("x", DataType.INT32, (-1,), TensorIOMode.INPUT, location=TensorLocation.HOST), "on the host"),
        (FakeTensor("x", DataType.FLOAT, (1, 2), TensorIOMode.OUTPUT), r"'x' is \(1, 2\) for a batch of 4"),
    ],
)
def test_engine_with_a_tensor_of_another_kind_is_an_error(gpu: Gpu, tensor: FakeTensor, message: str) -> None:
    gpu.trt.tensors = [*doubling(), tensor]
    with pytest.raises(SessionError, match=message):
        gpu.open()


def test_engine_without_inputs_is_an_error(gpu: Gpu) -> None:
    gpu.trt.tensors = doubling()[1:]
    with pytest.raises(SessionError, match="has no input"):
        gpu.open()


# Closing.


def assert_in_order(calls: list[str]) -> None:
    """Graphs, contexts, engine, runtime, memory, stream: nothing goes before what depends on it."""
    order = (
        "cudaGraphExecDestroy",
        "~IExecutionContext",
        "~ICudaEngine",
        "~Runtime",
        "cudaFree",
        "cudaFreeHost",
        "cudaStreamDestroy",
    )
    places = [order.index(name) for name in calls if name in order]
    assert places == sorted(places)
    assert order.index("~Runtime") in places


def test_close_gives_back_in_order(gpu: Gpu, session: TensorRTSession) -> None:
    for _ in range(2):
        assert_doubled(session, 2)
        assert_doubled(session, 3)
    calls = gpu.calls_of(session.close)
    assert_in_order(calls)
    assert calls.count("cudaGraphExecDestroy") == 2
    assert calls.count("~IExecutionContext") == 3
    assert gpu.left == []


def test_session_closes_twice_and_runs_no_more(gpu: Gpu, session: TensorRTSession) -> None:
    session.close()
    assert gpu.calls_of(session.close) == []
    with pytest.raises(SessionError, match="the session is closed"):
        session.run({"frames": frames(1)})


def test_failure_to_give_something_back_leaves_nothing_else(
    gpu: Gpu, session: TensorRTSession, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.cuda.fail("cudaFree", Error.cudaErrorIllegalAddress)
    session.close()
    assert gpu.left == []
    assert "memory on the GPU could not be given back: text of cudaErrorIllegalAddress" in caplog.text


def test_close_waits_for_the_run_that_is_under_way(gpu: Gpu, session: TensorRTSession) -> None:
    closing = threading.Thread(target=session.close)

    def close_elsewhere() -> None:
        gpu.cuda.on_wait = lambda: None
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()

    gpu.cuda.on_wait = close_elsewhere
    assert_doubled(session, 2)
    closing.join()
    assert gpu.left == []


def test_close_after_a_failed_run_gives_everything_back(gpu: Gpu, session: TensorRTSession) -> None:
    gpu.cuda.fail("cudaStreamSynchronize", Error.cudaErrorIllegalAddress)
    with pytest.raises(SessionError, match="700"):
        session.run({"frames": frames(2)})
    session.close()
    assert gpu.left == []


def test_threads_take_turns(gpu: Gpu, session: TensorRTSession) -> None:
    """The fake refuses work of two threads on one stream, and a context that changes under its work."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(assert_doubled, session, 1 + seed % 4, seed) for seed in range(200)]
        for one in done:
            one.result()
    finally:
        sys.setswitchinterval(interval)


# What stands in for a GPU has the names of the real thing.


def fake_functions() -> dict[str, list[str]]:
    names = [name for name in dir(FakeCuda) if name.startswith("cuda") and inspect.isfunction(getattr(FakeCuda, name))]
    return {name: list(inspect.signature(getattr(FakeCuda, name)).parameters)[1:] for name in names}


CUDA_ENUMS = {"cudaError_t": fake_cuda.Error, "cudaMemcpyKind": fake_cuda.CopyKind} | {
    "cudaStreamCaptureMode": fake_cuda.CaptureMode
}


def test_fake_cuda_has_the_names_of_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name, parameters in fake_functions().items():
        signature = re.match(r"\w+\((.*?)\)", getattr(runtime, name).__doc__)
        assert signature, name
        given = [part.partition(":")[0].split()[-1] for part in signature[1].split(",") if part.strip()]
        assert given == parameters, name
    for name, kinds in CUDA_ENUMS.items():
        for kind in kinds:
            assert int(getattr(getattr(runtime, name), kind.name)) == kind.value
    assert runtime.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    assert runtime.cudaHostAllocDefault == FakeCuda.cudaHostAllocDefault


def cuda_listings() -> list[Path]:
    return sorted(LISTINGS.glob("cuda_*.json"))


@pytest.mark.parametrize("listing", cuda_listings(), ids=lambda path: path.stem)
def test_fake_cuda_has_the_names_of_every_listed_version(listing: Path) -> None:
    known = json.loads(listing.read_text())
    for name, parameters in fake_functions().items():
        assert known["runtime_functions"][name] == ", ".join(parameters), name
    for name, kinds in CUDA_ENUMS.items():
        assert {kind.name for kind in kinds} <= set(known["runtime_enums"][name]), name


def fake_methods() -> Iterator[tuple[str, str, list[str]]]:
    for kind, cls in fake_tensorrt.CLASSES.items():
        for name, method in inspect.getmembers(cls, inspect.isfunction):
            if not name.startswith("_"):
                yield kind, name, list(inspect.signature(method).parameters)[1:]


FAKE_ATTRIBUTES = {"ICudaEngine": ("num_io_tensors", "device_memory_size_v2"), "ILogger": ("Severity",)}


def test_fake_tensorrt_has_the_names_of_nvidias_bindings() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    for kind, name, parameters in fake_methods():
        overloads = re.findall(rf"{name}\((self: .*)\) ->", getattr(getattr(trt, kind), name).__doc__ or "")
        known = [re.findall(r"(?:^|, )(\w+):", overload)[1:] for overload in overloads]
        assert parameters in known or kind == "ILogger", f"{kind}.{name}{known}"
    for kind, names in FAKE_ATTRIBUTES.items():
        for name in names:
            assert hasattr(getattr(trt, kind), name), name
    for kind, values in fake_tensorrt.ENUMS.items():
        for value in values:
            assert int(getattr(trt, kind).__members__[value.name]) == value.value
    for severity in fake_tensorrt.Severity:
        assert int(getattr(trt.ILogger.Severity, severity.name)) == severity


def tensorrt_listings() -> list[Path]:
    return sorted(LISTINGS.glob("tensorrt_*.json"))


@pytest.mark.parametrize("listing", tensorrt_listings(), ids=lambda path: path.stem)
def test_fake_tensorrt_has_the_names_of_every_listed_version(listing: Path) -> None:
    known = json.loads(listing.read_text())
    for kind, name, parameters in fake_methods():
        overloads = [overload.partition("->")[0] for overload in known["classes"][kind][name]]
        arguments = [[part.strip().partition("=")[0] for part in text.split(",") if part.strip()] for text in overloads]
        assert parameters in arguments, f"{kind}.{name}{arguments}"
    for kind, names in FAKE_ATTRIBUTES.items():
        assert set(names) <= {*known["classes"][kind], "Severity"}
    for kind, values in fake_tensorrt.ENUMS.items():
        assert {value.name for value in values} <= set(known["enums"][kind])


def test_listings_are_there() -> None:
    assert len(cuda_listings()) >= 2
    assert len(tensorrt_listings()) >= 3


# cuda-python itself, where no GPU is.


def test_call_without_a_driver_is_our_error() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    if cuda_driver_problem() == "":
        pytest.skip("there is a GPU")
    with pytest.raises(SessionError, match=r"driver is missing or too old .*\(error 35\)"):
        import_cuda().open_stream()


def test_missing_cuda_python_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r'cuda-python 12.6 .*; pip install "edgeclf\[tensorrt\]"'):
        import_cuda()


def test_version_of_cuda_is_readable() -> None:
    assert Cuda(FakeCuda()).version() == "13.4"
