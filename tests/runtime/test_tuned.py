"""What `edgeclf tune` found is kept for one bundle on one machine, and found again there alone."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.runtime import tuned as storing
from edgeclf.runtime.driver import DeviceIdentity
from edgeclf.runtime.pipeline import LoopOptions
from edgeclf.runtime.tuned import Tuned, find, find_for_all, keep, key_of
from tests.golden.bundles.make_examples import seal

pytestmark = pytest.mark.usefixtures("no_gpu")

TUNED = Tuned("throughput", "onnxruntime", "cpu", "fp32", 2, 4, 1, 812.5, 0.0031, "2026-11-22")


def kept(bundle: ModelBundle, tuned: Tuned = TUNED, **more: Any) -> Path:
    return keep(key_of(bundle, "cpu", tuned.objective), {"tuned": asdict(tuned), **more})


def test_choice_is_found_again(bundle: ModelBundle, own_cache: Path) -> None:
    assert find(bundle, "cpu", "throughput") is None
    assert kept(bundle).parent == own_cache / "tuned"
    assert find(bundle, "cpu", "throughput") == TUNED


def test_auto_is_the_processor_where_there_is_no_gpu(bundle: ModelBundle) -> None:
    kept(bundle)
    assert find(bundle, "auto", "throughput") == TUNED
    assert find(bundle, "cuda", "throughput") is None


def test_objectives_are_kept_apart(bundle: ModelBundle) -> None:
    kept(bundle)
    assert find(bundle, "cpu", "latency") is None
    latency = replace(TUNED, objective="latency", batch_size=1)
    kept(bundle, latency)
    assert find(bundle, "cpu", "latency") == latency
    assert find(bundle, "cpu", "throughput") == TUNED


@pytest.mark.parametrize(
    ("name", "value"),
    [("available_cores", lambda: 96), ("processor", lambda: "another"), ("package_version", lambda package: "0.1")],
)
def test_choice_of_another_machine_or_library_is_not_found(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, name: str, value: Callable[..., Any]
) -> None:
    kept(bundle)
    monkeypatch.setattr(storing, name, value)
    assert find(bundle, "cpu", "throughput") is None


def test_choice_of_another_gpu_is_not_found(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = iter(
        [DeviceIdentity("A", "8.7", "12.6"), DeviceIdentity("A", "8.7", "12.6"), DeviceIdentity("B", "9.0", "12.6")]
    )
    monkeypatch.setattr(storing, "cuda_driver_problem", lambda: "")
    monkeypatch.setattr(storing, "device_identity", lambda: next(gpus))
    keep(key_of(bundle, "auto", "throughput"), {"tuned": asdict(TUNED)})
    assert find(bundle, "auto", "throughput") == TUNED
    assert find(bundle, "auto", "throughput") is None


def test_choice_of_another_graph_is_not_found(bundle: ModelBundle, folder: Path) -> None:
    kept(bundle)
    (folder / "MODEL_CARD.md").write_text("# other words\n", encoding="utf-8")
    assert find(open_bundle(seal(folder)), "cpu", "throughput") == TUNED
    shutil.copy(folder / "extractor.onnx", folder / "classifier.onnx")
    assert find(open_bundle(seal(folder)), "cpu", "throughput") is None


def test_classifiers_of_one_extractor_share_a_choice_that_holds_for_all(folder: Path) -> None:
    def twice(manifest: dict[str, Any]) -> None:
        manifest["classifiers"].append({**manifest["classifiers"][0], "name": "again"})
        manifest["classifiers"][1]["precisions"] = {"fp32": "again.onnx"}

    (folder / "again.onnx").write_bytes((folder / "classifier.onnx").read_bytes())
    seal(folder, twice)
    both = [open_bundle(f"{folder}#colors"), open_bundle(f"{folder}#again")]
    assert find_for_all(both, "cpu", "throughput") is None
    kept(both[1])
    assert find_for_all(both, "cpu", "throughput") == TUNED
    kept(both[1], replace(TUNED, precision="bf16"))
    assert find_for_all(both, "cpu", "throughput") is None
    kept(both[0], replace(TUNED, precision="bf16", workers=3))
    assert find_for_all(both, "cpu", "throughput") == replace(TUNED, precision="bf16", workers=3)


def altered(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**record, "tuned": {**record["tuned"], **changes}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "",
        lambda record: json.dumps(record)[:-20],
        lambda record: "[]",
        lambda record: "[" * 100_000,
        lambda record: json.dumps({**record, "key": {}}),
        lambda record: json.dumps({**record, "tuned": None}),
        lambda record: json.dumps(altered(record, workers=0)),
        lambda record: json.dumps(altered(record, threads=True)),
        lambda record: json.dumps(altered(record, backend=["x"])),
        lambda record: json.dumps(altered(record, objective="latency")),
        lambda record: json.dumps(altered(record, device="abacus")),
        lambda record: json.dumps(altered(record, latency_seconds=float("nan"))),
        lambda record: json.dumps(altered(record, more=1)),
        lambda record: "\udcff",
    ],
)
def test_damaged_or_foreign_file_is_ignored_with_a_line_in_the_log(
    bundle: ModelBundle, caplog: pytest.LogCaptureFixture, damage: Callable[[dict[str, Any]], str]
) -> None:
    path = kept(bundle)
    path.write_bytes(damage(json.loads(path.read_text())).encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert find(bundle, "cpu", "throughput") is None
    assert f"{path} is not used" in caplog.text
    assert "run edgeclf tune again" in caplog.text


def test_file_is_whole_whenever_it_is_read_while_others_write_it(bundle: ModelBundle) -> None:
    choices = [replace(TUNED, batch_size=size) for size in range(1, 9)]
    kept(bundle)
    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(kept, bundle, choice, filler="x" * 100_000) for choice in choices * 4]
        seen = [find(bundle, "cpu", "throughput") for _ in range(50)]
    assert all(job.exception() is None for job in writing)
    assert set(seen) <= set(choices)
    assert find(bundle, "cpu", "throughput") in choices


def test_options_take_workers_and_batch_and_leave_the_rest() -> None:
    base = LoopOptions(depth=5, workers=1, batch_size=2, sources_at_once=3)
    assert TUNED.options(base) == replace(base, workers=4)


def test_options_of_a_large_batch_let_it_fill_for_throughput_but_never_for_latency() -> None:
    base = LoopOptions()
    throughput = replace(TUNED, batch_size=16).options(base)
    assert throughput.batch_size == 16
    assert throughput.depth >= 16
    assert throughput.max_wait > 0
    latency = replace(TUNED, objective="latency", batch_size=16).options(LoopOptions(max_wait=0.5))
    assert (latency.batch_size, latency.max_wait) == (16, 0.0)


def test_choice_says_what_it_is() -> None:
    assert str(TUNED) == ("tuned for throughput on 2026-11-22: onnxruntime fp32 on cpu, batch 2, 4 workers x 1 thread")
