from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclf.runtime.cache import cache_folder
from edgeclf.runtime.sessions import providers
from edgeclf.runtime.sessions.providers import (
    GraphUse,
    TensorrtFit,
    cuda_options,
    preload_libraries,
    providers_for,
    tensorrt_fit,
    tensorrt_options,
)
from edgeclf.specs import TensorSpec


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Read out of libonnxruntime_providers_cuda.so and _tensorrt.so of onnxruntime-gpu 1.31.1.
CUDA_NAMES = names(
    """
    arena_extend_strategy cudnn_conv1d_pad_to_nc1d cudnn_conv_algo_search cudnn_conv_use_max_workspace
    device_id do_copy_in_default_stream enable_cuda_graph enable_skip_layer_norm_strict_mode fuse_conv_bias
    gpu_external_alloc gpu_external_empty_cache gpu_external_free gpu_mem_limit has_user_compute_stream
    prefer_nhwc sdpa_kernel tunable_op_enable tunable_op_max_tuning_duration_ms tunable_op_tuning_enable
    use_ep_level_unified_stream use_tf32
    """
)
TENSORRT_NAMES = names(
    """
    device_id has_user_compute_stream trt_auxiliary_streams trt_bf16_enable trt_build_heuristics_enable
    trt_builder_optimization_level trt_context_memory_sharing_enable trt_cuda_graph_enable
    trt_detailed_build_log trt_dla_core trt_dla_enable trt_dump_ep_context_model trt_dump_subgraphs
    trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix trt_engine_decryption_enable
    trt_engine_decryption_lib_path trt_engine_hw_compatible trt_ep_context_embed_mode trt_ep_context_file_path
    trt_extra_plugin_lib_paths trt_force_sequential_engine_build trt_force_timing_cache trt_fp16_enable
    trt_int8_calibration_table_name trt_int8_enable trt_int8_use_native_calibration_table
    trt_layer_norm_fp32_fallback trt_max_partition_iterations trt_max_workspace_size trt_min_subgraph_size
    trt_op_types_to_exclude trt_preview_features trt_profile_max_shapes trt_profile_min_shapes
    trt_profile_opt_shapes trt_sparsity_enable trt_tactic_sources trt_timing_cache_enable
    trt_timing_cache_path trt_weight_stripped_engine_enable
    """
)
FRAMES = TensorSpec("frames", "uint8", (None, 2, 224, 224, 3))
LENGTH = TensorSpec("length", "int32", (None,))


def use_of(tmp_path: Path, precision: str = "fp32", max_batch: int = 16, content: bytes = b"graph") -> GraphUse:
    graph = tmp_path / "extractor.onnx"
    graph.write_bytes(content)
    return GraphUse(graph, (FRAMES, LENGTH), precision, max_batch)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_option_is_one_that_onnxruntime_has(tmp_path: Path, precision: str) -> None:
    use = replace(use_of(tmp_path, precision), gpu_mem_limit=1 << 30)
    for name, options in providers_for("tensorrt", use):
        known = {"TensorrtExecutionProvider": TENSORRT_NAMES, "CUDAExecutionProvider": CUDA_NAMES}.get(
            name, frozenset()
        )
        assert set(options) <= known
        assert all(isinstance(value, str) for value in options.values())


def test_listed_names_stand_in_the_providers_themselves() -> None:
    package = find_spec("onnxruntime")
    folder = Path(package.origin or "").parent / "capi" if package else Path()
    libraries = {
        folder / "libonnxruntime_providers_cuda.so": CUDA_NAMES,
        folder / "libonnxruntime_providers_tensorrt.so": TENSORRT_NAMES,
    }
    if not all(library.exists() for library in libraries):
        pytest.skip("onnxruntime-gpu is not installed")
    for library, names in libraries.items():
        content = library.read_bytes()
        assert [name for name in sorted(names) if name.encode() + b"\0" not in content] == []


def test_wanted_provider_comes_first_and_the_cpu_last(tmp_path: Path) -> None:
    use = use_of(tmp_path)
    assert [name for name, _ in providers_for("cpu", use)] == ["CPUExecutionProvider"]
    assert [name for name, _ in providers_for("cuda", use)] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert [name for name, _ in providers_for("tensorrt", use)] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]


def test_tensorrt_is_given_profiles_of_every_dynamic_input(tmp_path: Path) -> None:
    options = tensorrt_options(use_of(tmp_path, max_batch=12), library="1.31.1 10.3")
    assert options["trt_profile_min_shapes"] == "frames:1x2x224x224x3,length:1"
    assert options["trt_profile_opt_shapes"] == "frames:12x2x224x224x3,length:12"
    assert options["trt_profile_max_shapes"] == "frames:12x2x224x224x3,length:12"


def test_low_precision_is_enabled_only_where_the_graph_has_it(tmp_path: Path) -> None:
    flags = {
        precision: (options["trt_fp16_enable"], options["trt_int8_enable"])
        for precision in ("fp32", "fp16", "int8")
        for options in [tensorrt_options(use_of(tmp_path, precision), library="")]
    }
    assert flags == {"fp32": ("0", "0"), "fp16": ("1", "0"), "int8": ("0", "1")}


def test_engines_of_different_graphs_precisions_batches_and_libraries_lie_apart(tmp_path: Path) -> None:
    folders = [
        tensorrt_options(use, library=library)["trt_engine_cache_path"]
        for use, library in (
            (use_of(tmp_path), "1"),
            (use_of(tmp_path, "fp16"), "1"),
            (use_of(tmp_path, max_batch=8), "1"),
            (use_of(tmp_path), "2"),
        )
    ]
    other_graph = tensorrt_options(use_of(tmp_path, content=b"other"), library="1")["trt_engine_cache_path"]
    assert len({*folders, other_graph}) == 5
    assert all(Path(folder).is_relative_to(tmp_path / "cache") for folder in folders)


def test_memory_limit_stands_in_the_options_only_if_given(tmp_path: Path) -> None:
    use = use_of(tmp_path)
    assert "gpu_mem_limit" not in cuda_options(use)
    assert cuda_options(replace(use, gpu_mem_limit=2 << 30))["gpu_mem_limit"] == "2147483648"


def test_cache_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("openvino") == tmp_path / "cache" / "openvino"
    monkeypatch.delenv("EDGECLF_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder("openvino") == Path("/xdg/edgeclf/openvino")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder("openvino") == Path("/home/somebody/.cache/edgeclf/openvino")


def fake_onnxruntime(tmp_path: Path, library: bytes | None) -> Any:
    (tmp_path / "capi").mkdir()
    if library is not None:
        (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(library)
    return SimpleNamespace(__file__=str(tmp_path / "__init__.py"))


@pytest.mark.parametrize(
    ("installed", "problem"),
    [
        ("10.16.1.11", ""),
        ("11.4.0.106", "TensorRT 10 (libnvinfer.so.10) and CUDA 13, TensorRT 11.4.0.106 is installed"),
        ("", "TensorRT 10 (libnvinfer.so.10) and CUDA 13, none is installed"),
    ],
)
def test_tensorrt_of_another_version_than_the_provider_wants_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, problem: str
) -> None:
    monkeypatch.setattr(providers, "installed_tensorrt", lambda: installed)
    fit = tensorrt_fit(fake_onnxruntime(tmp_path, b"\0libnvinfer.so.10\0libcudart.so.13\0"))
    assert (fit.wanted, fit.cuda) == (10, 13)
    assert fit.problem.endswith(problem)
    assert bool(fit.problem) == bool(problem)
    assert 'pip install "tensorrt-cu13>=10,<11"' in fit.cure
    assert "--backend tensorrt" in fit.cure


def test_onnxruntime_without_tensorrt_says_nothing_of_versions(tmp_path: Path) -> None:
    fit = tensorrt_fit(fake_onnxruntime(tmp_path, None))
    assert (fit.wanted, fit.problem) == (None, "")


def test_installed_tensorrt_is_the_systems_library_where_no_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_TENSORRT_PACKAGES", ("no-such-package",))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.10")
    assert providers.installed_tensorrt() == "10"
    assert TensorrtFit(10, 12, providers.installed_tensorrt()).problem == ""
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert providers.installed_tensorrt() == ""


def test_what_does_not_preload_is_named_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def preload_dlls(*, msvc: bool) -> None:
        for library in ("libcublas.so.13", "libcudart.so.13"):
            sys.stdout.write(f"Failed to load {library}: {library}: cannot open shared object file\n")

    ort = SimpleNamespace(preload_dlls=preload_dlls)
    assert preload_libraries(ort, "cuda") == "not found: libcublas.so.13, libcudart.so.13"
    assert preload_libraries(ort, "cpu") == ""
    assert preload_libraries(SimpleNamespace(), "cuda") == ""  # a build that has no such function
    assert capsys.readouterr().out == ""


def test_tensorrt_that_came_as_a_package_is_loaded_before_the_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path / "tensorrt_libs")])
    monkeypatch.setattr(providers, "find_spec", lambda name: package)
    monkeypatch.setattr("ctypes.CDLL", lambda path, mode: loaded.append(Path(path).name))
    preload_libraries(fake_onnxruntime(tmp_path, b"libnvinfer.so.10\0"), "tensorrt")
    assert loaded == ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"]
