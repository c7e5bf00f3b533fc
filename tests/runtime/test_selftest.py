"""The self-test on this machine, and what it says of GPUs that are made up: good ones, wrong ones, missing ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import BundleError, MissingExtraError, SessionError
from edgeclf.runtime import selftest
from edgeclf.runtime.driver import DeviceIdentity, cuda_driver_problem
from edgeclf.runtime.selftest import Check, Report, run_selftest
from edgeclf.runtime.selftest_subjects import BATCHES, subjects_of
from edgeclf.runtime.session import Placement, Session, open_session
from edgeclf.runtime.sessions import tensorrt as native
from edgeclf.runtime.sessions.cuda import Cuda
from edgeclf.runtime.sessions.openvino import OpenVINOSession
from tests.golden.bundles.make_examples import example_of, seal
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_tensorrt import DataType, FakeTensor, FakeTensorRT, TensorIOMode

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

Answers = dict[str, NDArray[Any]]


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeclf", "selftest", "-b", "theatre", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def outcomes(report: Report, words: str) -> set[str]:
    found = {check.outcome for check in report.checks if words in check.name}
    assert found, f"no check is called {words}"
    return set(found)


def details(report: Report, words: str) -> str:
    return " / ".join(check.detail for check in report.checks if words in check.name)


# On this machine.


def test_what_the_cpu_can_do_passes() -> None:
    done = command("--format", "json")
    report = json.loads(done.stdout)
    for words in ("bundles open", "gives the same in any batch", "timing on the CPU", "openings on the CPU"):
        assert {check["outcome"] for check in report["checks"] if words in check["name"]} == {"passed"}, words
    assert {timing["batch"] for timing in report["timings"]} == set(BATCHES)
    assert all(timing["median_ms"] > 0 and timing["per_second"] > 0 for timing in report["timings"])
    assert report["environment"]["edgeclf"]
    assert done.returncode == report["failed"]


def test_missing_gpu_is_said_and_ends_with_1() -> None:
    if cuda_driver_problem() == "":
        pytest.skip("there is a GPU")
    done = command("--gpu")
    assert done.returncode == 1, done.stderr  # a crash would be below 0
    assert "failed        there is an NVIDIA GPU (no NVIDIA driver is installed" in done.stdout
    assert "not possible  theatre extractor fp32: TensorRT builds, loads and runs it (no GPU)" in done.stdout
    assert "passed        theatre extractor fp32: ONNX Runtime on the CPU" in done.stdout
    assert "there is an NVIDIA GPU" in done.stderr  # each check stands there as soon as it is done
    assert "Traceback" not in done.stderr


def test_bundle_that_is_not_there_is_wrong_usage() -> None:
    with pytest.raises(BundleError, match="there is no bundle 'nothing'"):
        run_selftest(["nothing"])


def test_subjects_are_all_graphs_of_a_bundle_with_rows_that_differ() -> None:
    extractor, classifier = subjects_of(["theatre"])
    assert (extractor.is_extractor, classifier.is_extractor) == (True, False)
    for subject in (extractor, classifier):
        for array in subject.feeds.values():
            assert len(array) == max(BATCHES)
            assert len(np.unique(array.reshape(len(array), -1), axis=0)) == len(array)
    lengths = classifier.feeds["length"]
    assert lengths.max() == classifier.feeds["features"].shape[1]
    assert lengths.min() == 1
    assert not classifier.feeds["features"][-1, 1:].any()


def test_classifier_gets_noise_where_no_onnx_runtime_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Session:
        raise MissingExtraError("ONNX Runtime is not installed", hint="install it")

    monkeypatch.setattr("edgeclf.runtime.selftest_subjects.open_session", missing)
    _, classifier = subjects_of(["theatre"])
    assert classifier.feeds["features"].dtype == np.float32
    assert classifier.feeds["features"].std() > 0


def test_surprise_in_one_check_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: Any) -> str:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(selftest, "_batches_agree", surprise)
    said: list[Check] = []
    report = run_selftest(["theatre"], say=said.append)
    assert report.failed
    assert outcomes(report, "gives the same in any batch") == {"failed"}
    assert "ZeroDivisionError: division by zero" in details(report, "gives the same in any batch")
    assert outcomes(report, "timing on the CPU") == {"passed"}
    assert said == list(report.checks)


def with_half_precision(folder: Path) -> Path:
    """A bundle that names its float32 extractor also as fp16."""
    bundle = Path(shutil.copytree(example_of(1), folder / "colors.edgeclf"))
    return seal(bundle, lambda manifest: manifest["extractor"]["precisions"].update(fp16="extractor.onnx"))


class OldProcessor:
    """An OpenVINO on a processor without half precision."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def get_property(self, device: str, name: str) -> Any:
        found = self._core.get_property(device, name)
        return [one for one in found if one != "FP16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core
    monkeypatch.setattr(openvino, "Core", lambda: OldProcessor(core()))


@pytest.mark.usefixtures("old_processor")
def test_arithmetic_that_the_processor_lacks_is_not_possible(tmp_path: Path) -> None:
    report = run_selftest([str(with_half_precision(tmp_path))])
    found = {check.name: check for check in report.checks}
    half = found["colors extractor fp16: OpenVINO agrees with ONNX Runtime"]
    assert half.outcome == "not possible"
    assert half.detail.startswith("this processor has no fp16 arithmetic (")
    assert found["colors extractor fp32: OpenVINO agrees with ONNX Runtime"].outcome == "passed"
    assert not report.failed


@pytest.mark.usefixtures("old_processor")
def test_graph_that_openvino_cannot_run_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(OldProcessor, "compile_model", refused, raising=False)
    report = run_selftest([str(with_half_precision(tmp_path))])
    found = {check.name: check for check in report.checks}
    single = found["colors extractor fp32: OpenVINO agrees with ONNX Runtime"]
    assert single.outcome == "failed"
    assert "OpenVINO cannot compile the graph: no kernel" in single.detail
    assert found["colors extractor fp16: OpenVINO agrees with ONNX Runtime"].outcome == "not possible"
    assert report.failed


def test_wrong_answers_of_openvino_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    run = OpenVINOSession.run

    def doubled(self: Any, feeds: Any) -> Answers:
        return {name: 2 * array for name, array in run(self, feeds).items()}

    monkeypatch.setattr(OpenVINOSession, "run", doubled)
    report = run_selftest([str(with_half_precision(tmp_path))])
    assert "failed" in outcomes(report, "OpenVINO agrees")
    assert "the answers differ: relative difference 1" in details(report, "OpenVINO agrees")


# On machines that are made up.


class OnGpu:
    """A session that gives ONNX Runtime's answers in the place of TensorRT, and captures sizes that come again."""

    def __init__(self, inner: Session, change: Callable[[int, Answers], Answers]) -> None:
        self._inner = inner
        self._change = change
        self._runs = 0
        self._seen: list[int] = []
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.placement = Placement("tensorrt", "TensorRT 11", "tensorrt", "fp32", 0)
        self.closed = False

    @property
    def captured_batches(self) -> tuple[int, ...]:
        return tuple(sorted({size for size in self._seen if self._seen.count(size) > 1}))

    def run(self, feeds: Any) -> Answers:
        self._runs += 1
        self._seen.append(len(next(iter(feeds.values()))))
        return self._change(self._runs, self._inner.run(feeds))

    def close(self) -> None:
        self._inner.close()


class Machine:
    """A GPU with TensorRT, and an ONNX Runtime that has no GPU providers."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.cuda = FakeCuda()
        self.change: Callable[[int, Answers], Answers] = lambda run, answers: answers
        self.opening: Callable[[], None] = lambda: None
        self.builds_always = False
        self.openings = 0

    def open(self, graph: Path, device: Any = "auto", *, backend: str | None = None, **options: Any) -> Session:
        if backend == "openvino":
            raise MissingExtraError("OpenVINO is not installed", hint="install it")
        inner = open_session(graph, "cpu", backend="onnxruntime")
        if backend != "tensorrt":
            return inner
        self.opening()
        self.openings += 1
        engine = self.cache / f"{graph.parent.name}-{graph.stem}-{self.openings if self.builds_always else 0}.engine"
        if not engine.exists():
            engine.write_bytes(b"plan")
        return OnGpu(inner, self.change)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made_up = Machine(tmp_path)
    monkeypatch.setattr(selftest, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(selftest, "open_session", made_up.open)
    monkeypatch.setattr(selftest, "engine_folder", lambda: made_up.cache)
    monkeypatch.setattr(selftest, "cuda_driver_problem", lambda: "")
    monkeypatch.setattr(selftest, "device_identity", lambda: DeviceIdentity("Orin", "8.7", "12.6"))
    monkeypatch.setattr(selftest, "import_cuda", lambda: Cuda(made_up.cuda))
    return made_up


def test_gpu_that_is_right_passes(machine: Machine) -> None:
    report = run_selftest(["theatre"], gpu=True)
    assert [check for check in report.checks if check.outcome == "failed"] == []
    assert "Orin (compute capability 8.7" in details(report, "there is an NVIDIA GPU")
    for words in ("builds, loads and runs", "TensorRT agrees", "CUDA graph", "from the cache", "timing in TensorRT"):
        assert outcomes(report, words) == {"passed"}
    assert "openings on the GPU" in str(report)
    assert {timing.runs_on for timing in report.timings} >= {"tensorrt TensorRT 11 fp32, default threads"}
    assert outcomes(report, "OpenVINO agrees") == {"not possible"}


class Computed(FakeTensorRT):
    """A TensorRT whose engine of a graph gives ONNX Runtime's answers."""

    def __init__(self, cuda: FakeCuda, graph: Path) -> None:
        self.inner = open_session(graph, "cpu", backend="onnxruntime")
        kinds = {"uint8": DataType.UINT8, "float32": DataType.FLOAT, "int32": DataType.INT32}
        super().__init__(
            cuda,
            [
                FakeTensor(spec.name, kinds[spec.dtype], tuple(size or -1 for size in spec.shape), mode, (1, 8, 8))
                for specs, mode in ((self.inner.inputs, TensorIOMode.INPUT), (self.inner.outputs, TensorIOMode.OUTPUT))
                for spec in specs
            ],
        )

    def compute(self, feeds: Answers) -> Answers:
        return self.inner.run(feeds)


def test_native_session_passes_where_tensorrt_computes_as_onnx_runtime(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of the packaged model: buffers, batches, graphs and replays of the real session."""
    opened: list[Computed] = []

    def open_it(graph: Path, device: Any = "auto", *, backend: str | None = None, **options: Any) -> Session:
        if backend != "tensorrt":
            return machine.open(graph, device, backend=backend)
        opened.append(Computed(machine.cuda, graph))
        (machine.cache / "all.engine").open("a").close()
        return open_session(graph, device, backend=backend, **options)

    monkeypatch.setattr(selftest, "open_session", open_it)
    monkeypatch.setattr(native, "cuda_driver_problem", lambda: "")
    monkeypatch.setattr(native, "import_tensorrt", lambda: opened[-1])
    monkeypatch.setattr(native, "import_cuda", lambda: Cuda(machine.cuda))
    monkeypatch.setattr(native, "cached_engine", lambda *_, **__: b"plan")
    report = run_selftest(["theatre"], gpu=True)
    assert [check for check in report.checks if check.outcome == "failed"] == []
    for words in ("builds, loads and runs", "TensorRT agrees", "CUDA graph", "from the cache", "openings on the GPU"):
        assert outcomes(report, words) == {"passed"}
    assert machine.cuda.count("cudaGraphLaunch") > 0
    assert machine.cuda.left() == []
    assert [one.alive for one in opened if one.alive] == []


def test_provider_that_onnx_runtime_lacks_is_not_possible(machine: Machine) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has GPU providers")
    report = run_selftest(["theatre"], gpu=True)
    assert outcomes(report, "ONNX Runtime agrees on CUDA") == {"not possible"}
    assert "has no CUDAExecutionProvider" in details(report, "ONNX Runtime agrees on CUDA")


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_wrong_answers_fail_with_their_size(machine: Machine, factor: float) -> None:
    machine.change = lambda run, answers: {name: array * np.float32(factor) for name, array in answers.items()}
    report = run_selftest(["theatre"], gpu=True)
    assert report.failed
    assert outcomes(report, "TensorRT agrees") == {"failed"}
    assert "the answers differ: relative difference" in details(report, "TensorRT agrees")
    assert outcomes(report, "timing in TensorRT") == {"passed"}


def test_wrong_answers_of_replays_alone_fail(machine: Machine) -> None:
    machine.change = lambda run, answers: answers if run < 3 else {name: array + 1 for name, array in answers.items()}
    report = run_selftest(["theatre"], gpu=True)
    assert outcomes(report, "TensorRT agrees") == {"failed"}
    assert outcomes(report, "a CUDA graph gives") == {"failed"}


def test_missing_rows_fail(machine: Machine) -> None:
    machine.change = lambda run, answers: {name: array[:1] for name, array in answers.items()}
    assert outcomes(run_selftest(["theatre"], gpu=True), "TensorRT agrees") == {"failed"}


def test_graphs_that_cannot_be_captured_are_not_possible(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnGpu, "captured_batches", (1,))
    report = run_selftest(["theatre"], gpu=True)
    assert not report.failed
    assert outcomes(report, "a CUDA graph gives") == {"not possible"}
    assert "batches of 1 were captured" in details(report, "a CUDA graph gives")


def test_engine_that_is_built_each_time_fails(machine: Machine) -> None:
    machine.builds_always = True
    report = run_selftest(["theatre"], gpu=True)
    assert outcomes(report, "from the cache") == {"failed"}
    assert "the second opening built an engine again" in details(report, "from the cache")


def test_lost_memory_of_the_gpu_fails(machine: Machine) -> None:
    def lose() -> None:
        machine.cuda.cudaMalloc(1 << 20)

    machine.opening = lose
    report = run_selftest(["theatre"], gpu=True)
    assert outcomes(report, "openings on the GPU") == {"failed"}
    assert "memory is lost: +20.0 MiB of the GPU, allowed 16" in details(report, "openings on the GPU")


def test_gpu_that_nothing_can_use_fails(machine: Machine) -> None:
    def missing() -> None:
        raise MissingExtraError("TensorRT is not installed", hint="install it")

    machine.opening = missing
    report = run_selftest(["theatre"], gpu=True)
    assert outcomes(report, "TensorRT builds") == {"not possible"}
    assert outcomes(report, "something ran on the GPU") == {"failed"}
    assert "there is a GPU, and nothing can use it" in str(report)


def test_engine_that_cannot_be_built_fails_and_says_why(machine: Machine) -> None:
    def refused() -> None:
        raise SessionError("node 'gru' (GRU): not supported", hint="use another backend")

    machine.opening = refused
    report = run_selftest(["theatre"], gpu=True)
    assert "node 'gru' (GRU): not supported; use another backend" in details(report, "TensorRT builds")
    assert outcomes(report, "ONNX Runtime on the CPU gives") == {"passed"}


def test_report_counts_and_goes_through_json() -> None:
    checks = (Check("a", "passed", "", 0.1), Check("b", "not possible", "no GPU", 0.0))
    report = Report({"edgeclf": "1"}, checks, ())
    assert not report.failed
    assert str(report).endswith("1 passed, 0 failed, 1 not possible")
    assert json.loads(json.dumps(report.to_dict()))["checks"][1]["detail"] == "no GPU"
