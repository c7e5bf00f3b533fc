"""Building on every supported TensorRT, as far as its names go, and finding the package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeclf.errors import MissingExtraError, SessionError
from edgeclf.runtime.tensorrt_engine import (
    BuildSettings,
    engine_from_onnx,
    import_tensorrt,
    tensorrt_log,
    write_whole,
)
from tests.support.listed_tensorrt import TENSORRT_VERSIONS, ListedTensorRT

PARSED = {
    "OnnxParser.parse_from_file": True,
    "OnnxParser.num_errors": 0,
    "INetworkDefinition.num_layers": 1,
    "INetworkDefinition.num_outputs": 1,
    "INetworkDefinition.num_inputs": 1,
    "ILayer.num_outputs": 1,
    "ITensor.name": "frames",
    "ITensor.shape": (-1, 8, 8, 3),
    "ITensor.dtype": None,
    "ILayer.type": None,
}


def listed(version: str, *, dtype: str = "FLOAT", layer: str = "CONVOLUTION", **answers: Any) -> ListedTensorRT:
    """A TensorRT of that version, which finds one layer of that kind in every graph."""
    trt = ListedTensorRT(version)
    kinds = {"ITensor.dtype": getattr(trt.DataType, dtype), "ILayer.type": getattr(trt.LayerType, layer)}
    trt._answers = {**PARSED, **kinds, **{name.replace("__", "."): value for name, value in answers.items()}}
    return trt


def flags_set(trt: ListedTensorRT) -> list[Any]:
    return [flag for (flag,) in trt.called("IBuilderConfig.set_flag")]


@pytest.mark.parametrize("version", TENSORRT_VERSIONS)
def test_every_version_has_what_a_build_calls(version: str, tmp_path: Path) -> None:
    trt, cache = listed(version), tmp_path / "timing.cache"
    settings = BuildSettings(
        max_batch=4, best_batch=2, workspace_bytes=5, optimization_level=2, version_compatible=True
    )
    engine = engine_from_onnx(trt, tmp_path / "x.onnx", settings, timing_cache=cache)
    assert engine.plan == cache.read_bytes() == b"plan"
    assert trt.called("OnnxParser.parse_from_file") == [[str(tmp_path / "x.onnx")]]
    assert trt.called("IOptimizationProfile.set_shape") == [["frames", (1, 8, 8, 3), (2, 8, 8, 3), (4, 8, 8, 3)]]
    assert trt.called("IBuilderConfig.set_memory_pool_limit") == [[trt.MemoryPoolType.WORKSPACE, 5]]
    assert trt.called("IBuilderConfig.builder_optimization_level=") == [[2]]
    assert flags_set(trt) == [trt.BuilderFlag.VERSION_COMPATIBLE]
    assert trt.called("IBuilderConfig.clear_flag") == [[trt.BuilderFlag.TF32]]


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_newer_versions_take_precision_from_the_graph(version: str, tmp_path: Path) -> None:
    trt = listed(version, dtype="HALF")
    assert engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings("fp16")).half_share == 1
    assert trt.called("Builder.create_network") == [[1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED]]
    assert flags_set(trt) == []


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_newer_versions_refuse_a_graph_in_full_precision(version: str, precision: str, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=f"{precision} was asked for"):
        engine_from_onnx(listed(version), tmp_path / "x.onnx", BuildSettings(precision))


@pytest.mark.parametrize(("precision", "flags"), [("fp32", []), ("fp16", ["FP16"]), ("int8", ["FP16", "INT8"])])
def test_jetpack_6_is_told_by_flags(precision: str, flags: list[str], tmp_path: Path) -> None:
    trt = listed("10.3.0")
    engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings(precision))
    assert trt.called("Builder.create_network") == [[0]]
    assert flags_set(trt) == [getattr(trt.BuilderFlag, flag) for flag in flags]


def test_strong_typing_can_be_asked_for_on_jetpack_6(tmp_path: Path) -> None:
    trt = listed("10.3.0", dtype="HALF")
    engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings("fp16", strongly_typed=True))
    assert trt.called("Builder.create_network") == [[1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED]]
    assert flags_set(trt) == []


def test_weak_typing_on_tensorrt_11_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="builds strongly typed networks only"):
        engine_from_onnx(listed("11.4.0.106"), tmp_path / "x.onnx", BuildSettings("fp16", strongly_typed=False))


def test_quantised_graph_passes_as_int8(tmp_path: Path) -> None:
    trt = listed("11.4.0.106", dtype="INT8", layer="DEQUANTIZE")
    assert engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings("int8")).half_share == 0


def test_failed_build_is_an_error_with_the_end_of_the_log(tmp_path: Path) -> None:
    trt = listed("11.4.0.106", Builder__build_serialized_network=None)
    log, severity = tensorrt_log(trt), trt.ILogger.Severity
    log.log(severity.ERROR, "of an earlier build")
    create = trt._answers
    trt._answers = {**create, "OnnxParser.parse_from_file": Logging(log, severity)}
    with pytest.raises(SessionError) as caught:
        engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings())
    assert caught.value.message == (
        "x.onnx cannot become an engine of TensorRT 11.4.0.106: the build failed; "
        "TensorRT's log ends with: no kernel | out of memory"
    )
    assert "a smaller --batch" in caught.value.hint


class Logging:
    """An answer that is true, and has TensorRT log while it is looked at."""

    def __init__(self, log: Any, severity: Any) -> None:
        self.log, self.severity = log, severity

    def __bool__(self) -> bool:
        for kind, line in (("ERROR", "no kernel"), ("INFO", "chatter"), ("WARNING", "out of memory\n")):
            self.log.log(getattr(self.severity, kind), line)
        return True


def test_timing_cache_of_another_gpu_is_not_used(tmp_path: Path) -> None:
    trt = listed("11.4.0.106", IBuilderConfig__set_timing_cache=False)
    (tmp_path / "timing.cache").write_bytes(b"of another")
    assert engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings(), timing_cache=tmp_path / "timing.cache").plan
    assert trt.called("IBuilderConfig.create_timing_cache") == [[b"of another"], [b""]]


def test_timing_cache_that_is_damaged_is_not_used(tmp_path: Path) -> None:
    trt = listed("11.4.0.106", IBuilderConfig__create_timing_cache=None)
    assert engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings(), timing_cache=tmp_path / "timing.cache").plan
    assert trt.called("IBuilderConfig.create_timing_cache") == [[b""], [b""]]


def test_builder_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    trt: Any = listed("11.4.0.106")

    def refuse(log: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = refuse
    with pytest.raises(SessionError, match="TensorRT does not start; edgeclf doctor"):
        engine_from_onnx(trt, tmp_path / "x.onnx", BuildSettings())


def test_missing_tensorrt_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        MissingExtraError, match=r"TensorRT .*edgeclf\[tensorrt\].*pypi.nvidia.com.*--system-site-packages"
    ):
        import_tensorrt()


@pytest.mark.parametrize(
    "code", ["import ctypes; ctypes.CDLL('libnvinfer_none.so')", "raise ImportError('libnvinfer')"]
)
def test_tensorrt_that_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (tmp_path / "tensorrt.py").write_text(code)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"TensorRT cannot be loaded: .*libnvinfer"):
        import_tensorrt()


def installed(monkeypatch: pytest.MonkeyPatch, version: str) -> ModuleType:
    module = ModuleType("tensorrt")
    monkeypatch.setattr(module, "__version__", version, raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.mark.parametrize("version", ["8.6.2", "10.2.0.post1"])
def test_tensorrt_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, version)
    with pytest.raises(MissingExtraError, match=f"TensorRT {version} is too old; 10.3 is the oldest"):
        import_tensorrt()


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.30", "11.4.0.106"])
def test_tensorrt_that_is_supported_is_given(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = installed(monkeypatch, version)
    assert import_tensorrt() is module


def test_file_that_is_written_whole_replaces_the_old_one_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    write_whole(target, b"a", b"b")
    with pytest.raises(TypeError):
        write_whole(target, b"c", "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"ab"
    assert list(target.parent.iterdir()) == [target]
