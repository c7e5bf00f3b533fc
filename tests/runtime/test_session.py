from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeclf.errors import MissingExtraError, SessionError
from edgeclf.runtime.session import Session, open_session
from edgeclf.runtime.sessions import onnxruntime as backend
from edgeclf.specs import TensorSpec

BACKEND_NAMES = ["onnxruntime", "openvino"]  # those that run on the CPU


@pytest.fixture(params=BACKEND_NAMES)
def session(request: pytest.FixtureRequest, colors: Path) -> Session:
    """The colour extractor in each backend: what holds for one holds for all."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return open_session(colors / "extractor.onnx", "cpu", backend=request.param)


def test_session_says_what_it_takes_and_gives(session: Session) -> None:
    assert session.inputs == (TensorSpec("frames", "uint8", (None, 16, 16, 3)),)
    assert session.outputs == (TensorSpec("features", "float32", (None, 3)),)
    assert session.placement.device == "cpu"


@pytest.mark.parametrize("count", [1, 2, 7])
def test_run_takes_any_batch(session: Session, count: int) -> None:
    frames = np.full((count, 16, 16, 3), (255, 51, 0), np.uint8)
    features = session.run({"frames": frames})["features"]
    assert features.shape == (count, 3)
    assert features[0] == pytest.approx((1.0, 0.2, 0.0))


def test_rows_of_a_batch_are_those_of_single_runs(session: Session) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), dtype=np.uint8)
    together = session.run({"frames": frames})["features"]
    alone = [session.run({"frames": frames[n : n + 1]})["features"] for n in range(len(frames))]
    assert np.allclose(together, np.concatenate(alone), rtol=1e-6)


def test_answer_is_not_overwritten_by_the_next_run(session: Session) -> None:
    first = session.run({"frames": np.full((2, 16, 16, 3), 255, np.uint8)})["features"]
    session.run({"frames": np.zeros((2, 16, 16, 3), np.uint8)})
    assert (first == 1.0).all()


def test_session_runs_on_several_threads_at_once(session: Session) -> None:
    frames = [np.full((size, 16, 16, 3), 10 * size, np.uint8) for size in range(1, 9)] * 4
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda batch: session.run({"frames": batch})["features"], frames))
    for batch, features in zip(frames, answers, strict=True):
        assert features.shape == (len(batch), 3)
        assert features == pytest.approx(np.full((len(batch), 3), len(batch) * 10 / 255), rel=1e-5)


def test_session_closes_twice_and_then_refuses_to_run(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(SessionError, match="the session is closed"):
        session.run({"frames": np.zeros((1, 16, 16, 3), np.uint8)})


def test_unknown_backend_lists_the_known(colors: Path) -> None:
    with pytest.raises(SessionError, match="unknown backend 'abacus'; known: onnxruntime"):
        open_session(colors / "extractor.onnx", backend="abacus")


def test_graph_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(SessionError, match=r"x.onnx does not load"):
        open_session(tmp_path / "x.onnx", "cpu")


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="ONNX Runtime is not installed")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_device_that_was_asked_for_and_is_missing_is_an_error(colors: Path, device: Any) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has GPU providers")
    with pytest.raises(SessionError, match=f"device {device} cannot be used: .*Provider.*; use --device cpu or auto"):
        open_session(colors / "extractor.onnx", device, backend="onnxruntime")


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def fake_onnxruntime(used: str, assigned: Mapping[str, int] | None = None) -> Any:
    """The part of ONNX Runtime that matters here; its sessions run on `used`, and say so of `assigned` nodes."""

    class Options:
        def add_session_config_entry(self, key: str, value: str) -> None:
            pass

    class FakeSession:
        def __init__(
            self, path: str, options: object, providers: list[tuple[str, dict[str, str]]], **_: object
        ) -> None:
            self.used = CPU if [name for name, _ in providers] == [CPU] else used

        def disable_fallback(self) -> None:
            pass

        def get_providers(self) -> list[str]:
            return [self.used, CPU]

        def get_inputs(self) -> list[Any]:
            return []

        get_outputs = get_inputs

        def get_provider_graph_assignment_info(self) -> list[Any]:
            if assigned is None:
                raise RuntimeError("not recorded")
            return [SimpleNamespace(ep_name=n, get_nodes=lambda c=c: list(range(c))) for n, c in assigned.items()]

    return SimpleNamespace(
        SessionOptions=Options, InferenceSession=FakeSession, get_available_providers=lambda: [CUDA, CPU]
    )


@pytest.fixture
def with_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cuda_driver_problem", lambda: "")


def open_with(ort: Any, graph: Path, device: Any, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(backend, "import_onnxruntime", lambda: ort)
    return open_session(graph, device, backend="onnxruntime")


@pytest.mark.usefixtures("with_driver")
def test_silent_fallback_to_the_cpu_is_an_error(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SessionError, match="CUDAExecutionProvider failed to start, ONNX Runtime fell back to CPU"):
        open_with(fake_onnxruntime(CPU), colors / "extractor.onnx", "cuda", monkeypatch)


@pytest.mark.usefixtures("with_driver")
def test_auto_takes_the_cpu_where_cuda_does_not_start_and_says_why(
    colors: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_with(fake_onnxruntime(CPU), colors / "extractor.onnx", "auto", monkeypatch)
    assert session.placement.device == "cpu"
    assert "CUDAExecutionProvider failed to start" in caplog.text


@pytest.mark.usefixtures("with_driver")
def test_auto_takes_cuda_where_it_starts(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_with(fake_onnxruntime(CUDA), colors / "extractor.onnx", "auto", monkeypatch)
    assert session.placement.device == "cuda"


@pytest.mark.usefixtures("with_driver")
def test_placement_tells_the_share_of_a_split_graph(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_with(fake_onnxruntime(CUDA, {CPU: 4, CUDA: 96}), colors / "extractor.onnx", "cuda", monkeypatch)
    assert session.placement.provider == "CUDA 96 %, CPU 4 %"


@pytest.mark.usefixtures("with_driver")
def test_device_that_runs_no_part_of_the_graph_is_an_error(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SessionError, match=r"device cuda cannot be used: all of extractor.onnx runs on CPU"):
        open_with(fake_onnxruntime(CUDA, {CPU: 100}), colors / "extractor.onnx", "cuda", monkeypatch)


def test_onnxruntime_itself_says_who_runs_each_node(colors: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip(f"ONNX Runtime {ort.__version__} does not tell who runs a node")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(colors / "extractor.onnx"), options, providers=[CPU])
    assert sum(len(part.get_nodes()) for part in session.get_provider_graph_assignment_info()) == 3
    assert backend.shares_of(session) == {CPU: 1.0}


def test_onnxruntime_that_does_not_say_is_taken_by_its_first_provider() -> None:
    assert backend.shares_of(SimpleNamespace(get_providers=lambda: [CUDA, CPU])) == {CUDA: 1.0}


def test_missing_driver_is_found_before_the_provider_is_touched(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cuda_driver_problem", lambda: "no NVIDIA driver is installed")
    monkeypatch.setattr(backend, "preload_libraries", lambda ort, device: pytest.fail("libraries were loaded"))
    with pytest.raises(SessionError, match="device cuda cannot be used: no NVIDIA driver is installed"):
        open_with(fake_onnxruntime(CUDA), colors / "extractor.onnx", "cuda", monkeypatch)


def test_bf16_is_refused_rather_than_run_in_fp32(colors: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    with pytest.raises(SessionError, match="does not run bf16; use --backend openvino"):
        open_session(colors / "extractor.onnx", "cpu", precision="bf16")


def test_missing_onnxruntime_says_which_extras_bring_one(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(backend, "package_version", lambda package: "")
    with pytest.raises(MissingExtraError, match=r"install one of: .*edgeclf\[cpu\].*edgeclf\[gpu\].*Jetson"):
        open_session(colors / "extractor.onnx")


def test_two_onnx_runtimes_in_one_environment_are_refused(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "package_version", lambda package: "1.0")
    with pytest.raises(SessionError, match="both installed and overwrite each other; pip uninstall"):
        open_session(colors / "extractor.onnx", "cpu")
