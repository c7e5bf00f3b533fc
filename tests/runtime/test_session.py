from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.errors import SessionError
from edgeclf.runtime.session import BACKENDS, Session, open_session
from edgeclf.runtime.sessions import onnxruntime as backend
from edgeclf.specs import TensorSpec

BACKEND_NAMES = ["onnxruntime", "openvino"]  # those that run on the CPU


@pytest.fixture(params=BACKEND_NAMES)
def session(request: pytest.FixtureRequest, colors: Path) -> Session:
    """The colour extractor in each backend: what holds for one holds for all."""
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


def test_session_closes_twice(session: Session) -> None:
    session.close()
    session.close()


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
        open_session(colors / "extractor.onnx", device)


class FallingBack:
    """The part of ONNX Runtime that matters when a provider is listed but does not start."""

    class SessionOptions:
        def add_session_config_entry(self, key: str, value: str) -> None:
            pass

    class InferenceSession:
        def __init__(self, path: str, options: object, providers: list[str]) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_silent_fallback_to_the_cpu_is_an_error(colors: Path) -> None:
    with pytest.raises(SessionError, match="CUDAExecutionProvider failed to start, ONNX Runtime fell back to CPU"):
        backend.OnnxRuntimeSession(FallingBack, colors / "extractor.onnx", "cuda", "fp32", 1)


def test_missing_driver_is_found_before_the_provider_is_touched(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(backend, "_import_onnxruntime", lambda: FallingBack)
    monkeypatch.setattr("ctypes.CDLL", no_library)
    with pytest.raises(SessionError, match=r"no NVIDIA driver is installed"):
        open_session(colors / "extractor.onnx", "cuda")


def test_two_onnx_runtimes_in_one_environment_are_refused(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "version", lambda package: "1.0")
    with pytest.raises(SessionError, match="both installed and overwrite each other; pip uninstall"):
        open_session(colors / "extractor.onnx", "cpu")
