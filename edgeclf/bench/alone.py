"""Scenario `extractor`: what runs without a source, an extractor in every session and precision, and in Keras."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeclf.bench.asked import Said
from edgeclf.bench.extractors import Way, extractor_table, keras_ways, measure_extractors, session_ways
from edgeclf.bench.networks import network_graphs
from edgeclf.bench.rows import RowName, bundle_of, record_of, unavailable
from edgeclf.bundle import ModelBundle
from edgeclf.errors import SessionError
from edgeclf.model_directory import load_keras
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.golden import noise
from edgeclf.runtime.progress import steps
from edgeclf.runtime.session import Placement
from edgeclf.specs import Device, TensorSpec

_WARM_UP = "two runs of each way, not timed"


def extractor_alone(
    bundle: ModelBundle, model: Path | None, *, rounds: int, device: Device, batch: int, command: str = ""
) -> tuple[dict[str, Any], str]:
    """The record and the table of a bundle's extractor. model: the model directory, for the ways of Keras."""
    entry = bundle.extractor
    graphs = {precision: bundle.graph(entry, precision) for precision in entry.precisions}
    keras = keras_ways(load_keras(model)[0], entry.preprocess, batch=batch) if model else []
    said = {"bundle": bundle_of(bundle), "command": command}
    return _measured(graphs, keras, entry.inputs[0], rounds, device, batch, said)


def network_alone(
    name: str, *, rounds: int, device: Device, batch: int, command: str = "", said: Said = lambda _: None
) -> tuple[dict[str, Any], str]:
    """The record and the table of an extractor of the recipes with random weights."""
    with TemporaryDirectory() as folder:
        said(f"converting {name}")
        network = network_graphs(name, Path(folder))
        keras = keras_ways(network.model, network.preprocess, batch=batch)
        files = network.to_dict()
        about = {"bundle": {"name": f"{name}, random weights", "files": files}, "command": command}
        record, shown = _measured(network.graphs, keras, network.frames, rounds, device, batch, about)
    made = ", ".join(f"{precision} {file['megabytes']} MB in {file['seconds']} s" for precision, file in files.items())
    return record, f"{name}, random weights: {made}\n{shown}"


def _measured(
    graphs: dict[str, Path],
    keras: list[Way],
    frames: TensorSpec,
    rounds: int,
    device: Device,
    batch: int,
    about: dict[str, Any],
) -> tuple[dict[str, Any], str]:
    ways, reasons = session_ways(graphs, device, batch=batch, threads=available_cores())
    if not ways:
        said = "\n  ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise SessionError(f"nothing runs the extractor on {device}:\n  {said}", hint="see edgeclf doctor")
    ways += keras
    with steps("turns", len(ways) * rounds) as advance:
        found = measure_extractors(ways, noise(frames, batch), rounds=rounds, progress=advance)
    rows = [_row(way, is_keras=way["placement"] == "keras") for way in found["ways"]]
    rows += [unavailable(_name(name, device, batch), reason) for name, reason in reasons.items()]
    workload = {"frames": batch, "shape": list(frames.shape[1:])}
    record = record_of("extractor", rows=rows, workload=workload, warm_up=_WARM_UP, rounds=rounds, **about)
    return record, extractor_table(found, reasons)


def _row(way: Mapping[str, Any], *, is_keras: bool) -> dict[str, Any]:
    rate = {"unit": "frames/s", "better": "higher", **way["frames_per_second"]}
    placement = Placement("keras", "", "cpu", "fp32", available_cores())
    name = (
        RowName(way["name"], "baseline", placement, 1, way["batch"])
        if is_keras
        else _name(way["name"], "auto", way["batch"], way["placement"])
    )
    return {
        **name.to_dict(),
        "status": "ok",
        "reason": None,
        "metrics": {"frames_per_second": rate},
        "latency_ms": None,
        "stages": None,
        "agreement": {key: way[key] for key in ("mean_cosine", "largest_difference")},
    }


def _name(name: str, device: str, batch: int, provider: str = "") -> RowName:
    backend, _, precision = name.partition(" ")
    return RowName(name, "device", Placement(backend, provider, device, precision, available_cores()), 1, batch)
