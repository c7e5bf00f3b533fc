from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from edgeclf.bench.command import bench
from edgeclf.bench.extractors import (
    REFERENCE,
    Way,
    extractor_table,
    keras_ways,
    measure_extractors,
    session_ways,
)
from edgeclf.runtime.golden import noise
from edgeclf.specs import PreprocessSpec, TensorSpec
from tests.support.labelled import edgeclf

FRAMES = TensorSpec("frames", "uint8", (None, 16, 16, 3))


def mean_color(frames: NDArray[np.uint8]) -> NDArray[Any]:
    means: NDArray[Any] = (frames.mean(axis=(1, 2)) / 255).astype(np.float32)
    return means


def test_every_backend_gives_a_way_or_a_reason(colors: Path) -> None:
    ways, reasons = session_ways({"fp32": colors / "extractor.onnx"}, "cpu", batch=4, threads=1)
    names = {way.name for way in ways} | set(reasons)
    assert names == {REFERENCE, "openvino fp32", "openvino bf16", "tensorrt fp32"}
    assert REFERENCE in {way.name for way in ways}
    assert "tensorrt" in reasons["tensorrt fp32"]
    assert all("fp32" in way.placement or "bf16" in way.placement for way in ways)


def test_precision_that_does_not_load_is_a_reason(colors: Path, tmp_path: Path) -> None:
    broken = tmp_path / "extractor.fp16.onnx"
    broken.write_bytes(b"no graph")
    ways, reasons = session_ways({"fp32": colors / "extractor.onnx", "fp16": broken}, "cpu", batch=1, threads=1)
    assert "extractor.fp16.onnx" in reasons["onnxruntime fp16"]
    assert REFERENCE in {way.name for way in ways}


def test_tensorrt_is_not_given_the_form_that_it_refuses(colors: Path) -> None:
    graph = colors / "extractor.onnx"
    ways, reasons = session_ways({"fp32": graph, "u8s8": graph}, "cpu", batch=1, threads=1)
    assert "tensorrt u8s8" not in {way.name for way in ways} | set(reasons)


def test_record_tells_rates_and_how_far_features_are(colors: Path) -> None:
    ways, _ = session_ways({"fp32": colors / "extractor.onnx"}, "cpu", batch=4, threads=1)
    same = Way("the mean", "numpy", mean_color, 4)
    single = Way("one by one", "numpy", mean_color, 1)
    other = Way("upside down", "numpy", lambda frames: 1 - mean_color(frames), 2)
    record = measure_extractors([ways[0], same, single, other], noise(FRAMES, 4), rounds=2)
    found = {way["name"]: way for way in record["ways"]}
    assert all(way["frames_per_second"]["count"] == 2 for way in found.values())
    assert all(way["frames_per_second"]["smallest"] > 0 for way in found.values())
    assert found["the mean"]["mean_cosine"] == found["one by one"]["mean_cosine"] == pytest.approx(1, abs=1e-5)
    assert found["upside down"]["largest_difference"] > 0.05
    text = extractor_table(record, {"tensorrt fp32": "no driver"})
    assert "tensorrt fp32" in text
    assert text.index("times") < text.index("upside down")


def test_bench_without_a_source_measures_the_extractor(colors: Path) -> None:
    done = CliRunner().invoke(
        bench, [str(colors), "--rounds", "1", "--batch", "2", "--device", "cpu", "--format", "json"]
    )
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows[REFERENCE]["status"] == "ok"
    assert rows[REFERENCE]["metrics"]["frames_per_second"]["median"] > 0
    assert rows["tensorrt fp32"]["status"] == "unavailable"
    assert "tensorrt" in rows["tensorrt fp32"]["reason"]


def test_device_that_nothing_runs_on_is_an_error(colors: Path) -> None:
    done = edgeclf("bench", colors, "--device", "cuda", "--rounds", "1")
    assert done.returncode == 2
    assert "nothing runs the extractor on cuda" in done.stderr
    assert REFERENCE in done.stderr


@pytest.mark.keras
def test_keras_is_called_in_three_ways() -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is missing: pip install 'edgeclf[dev]'")
    from edgeclf.model_directory import import_keras

    keras = import_keras()
    frames = keras.Input((16, 16, 3), dtype="uint8", name="frames")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(frames))
    ways = keras_ways(keras.Model(frames, pooled), PreprocessSpec((16, 16)), batch=4)
    assert [way.batch for way in ways] == [1, 4, 4]
    some = noise(FRAMES, 4)
    for way in ways:
        assert way.extract(some[: way.batch]) == pytest.approx(mean_color(some[: way.batch]), abs=1e-5)


@pytest.mark.keras
def test_network_of_the_recipes_is_measured_without_training() -> None:
    for package in ("tensorflow", "tf2onnx"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install 'edgeclf[dev]'")
    arguments = ["--network", "faces_cnn", "--rounds", "1", "--batch", "2", "--device", "cpu", "--format", "json"]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    files = record["bundle"]["files"]
    assert set(files) == {"fp32", "fp16", "int8", "u8s8"}
    assert files["fp16"]["megabytes"] < files["fp32"]["megabytes"]
    rows = {row["name"]: row for row in record["rows"]}
    assert {"onnxruntime u8s8", "openvino int8", "Keras predict, frame by frame", "tf.function"} <= set(rows)
    assert rows["tf.function"]["agreement"]["mean_cosine"] == pytest.approx(1, abs=1e-4)
