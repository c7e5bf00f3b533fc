"""The record of a benchmark: one shape for every scenario (docs/benchmarks.md), JSON-ready."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeclf.bench.environment import environment
from edgeclf.bench.load import Usage
from edgeclf.bench.timing import Distribution
from edgeclf.bundle import ModelBundle
from edgeclf.runtime.meter import Meter, StageTime
from edgeclf.runtime.session import Placement

SCHEMA_VERSION = 2
Group = Literal["ours", "baseline", "stage", "device"]
Better = Literal["higher", "lower"]

_MOST_LATENCIES = 2000
_MOST_SPANS = 5000
_UNITS: dict[str, tuple[str, Better]] = {
    "frames_per_second": ("frames/s", "higher"),
    "clips_per_second": ("clips/s", "higher"),
    "pictures_per_second": ("pictures/s", "higher"),
    "cpu_seconds_per_frame": ("s", "lower"),
    "peak_rss_mb": ("MB", "lower"),
    "latency_p50_ms": ("ms", "lower"),
    "latency_p90_ms": ("ms", "lower"),
    "latency_p99_ms": ("ms", "lower"),
    "sustained_cameras": ("cameras", "higher"),
    "gpu_utilisation": ("%", "higher"),
    "fairness": ("min/max", "higher"),
    "times_one_at_a_time": ("x", "higher"),
}


@dataclass(frozen=True, slots=True)
class RowName:
    """What a row measures, and on what."""

    name: str
    group: Group
    placement: Placement
    workers: int = 1
    batch: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, the first keys of a row."""
        placement = self.placement
        return {
            "name": self.name,
            "group": self.group,
            "device": placement.device,
            "backend": placement.backend,
            "provider": placement.provider,
            "precision": placement.precision,
            "threads": placement.threads,
            "workers": self.workers,
            "batch": self.batch,
        }


@dataclass(slots=True)
class Samples:
    """The metrics of a row as they are measured, round by round."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **metrics: float | None) -> None:
        """The figures of one round; None where there is none."""
        for name, value in metrics.items():
            if value is not None:
                self.values.setdefault(name, []).append(value)

    def add_usage(self, usage: Usage, frames: float) -> None:
        """What one round took, for so many frames."""
        self.add(
            frames_per_second=frames / usage.seconds,
            cpu_seconds_per_frame=usage.cpu_seconds / frames if frames else None,
            peak_rss_mb=usage.peak_rss_mb,
            gpu_utilisation=usage.gpu_percent,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary: each metric with its unit, direction and distribution."""
        return {
            name: {"unit": _UNITS[name][0], "better": _UNITS[name][1], **Distribution.of(values).to_dict()}
            for name, values in self.values.items()
        }


def row(
    name: RowName,
    samples: Samples,
    *,
    latencies: Sequence[float] = (),
    stages: Mapping[str, StageTime] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A row of what worked. latencies: in seconds."""
    return {
        **name.to_dict(),
        "status": "ok",
        "reason": None,
        "metrics": samples.to_dict(),
        "latency_ms": {"samples": thinned(latencies)} if latencies else None,
        "stages": {stage: time.to_dict() for stage, time in stages.items()} if stages else None,
        **more,
    }


def unavailable(name: RowName, reason: str) -> dict[str, Any]:
    """A row of what does not work here, with the reason."""
    absent: dict[str, Any] = {"metrics": {}, "latency_ms": None, "stages": None}
    return {**name.to_dict(), "status": "unavailable", "reason": reason, **absent}


def record_of(
    scenario: str,
    command: str,
    rows: Sequence[dict[str, Any]],
    *,
    bundle: dict[str, Any],
    workload: dict[str, Any],
    warm_up: str,
    rounds: int,
    foreign_cores: Sequence[float | None] = (),
    **more: Any,
) -> dict[str, Any]:
    """The record of one scenario. foreign_cores: the other load on the machine during each measurement."""
    loads = [load for load in foreign_cores if load is not None]
    load = round(Distribution.of(loads).median, 3) if loads else None
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": scenario,
        "command": command,
        "environment": {**environment(), "foreign_cores": load},
        "bundle": bundle,
        "workload": workload,
        "warm_up": warm_up,
        "rounds": rounds,
        "rows": list(rows),
        "ratios": {},
        "bound": None,
        "knee": None,
        "sustained_cameras": None,
        "trace": None,
        **more,
    }


def bundle_of(bundle: ModelBundle) -> dict[str, Any]:
    """What is measured: the classifier's name, and the hashes of the graphs in each precision that the bundle holds."""
    files = bundle.manifest.files
    return {
        "name": bundle.classifier.name,
        "extractor_sha256": {name: files[file] for name, file in bundle.extractor.precisions.items()},
        "classifier_sha256": {name: files[file] for name, file in bundle.classifier.precisions.items()},
    }


def sources_of(sources: Sequence[str]) -> dict[str, Any]:
    """What is measured on: how many sources, and one hash of what they hold, wherever they stand."""
    digest = hashlib.sha256()
    for source in sources:
        path = Path(source)
        digest.update(path.read_bytes() if path.is_file() else source.encode())
    return {"files": len(sources), "sha256": digest.hexdigest()}


def trace_of(meters: Mapping[str, Meter]) -> list[dict[str, Any]]:
    """The stretches of work that the meters kept, in order of time from 0."""
    spans = sorted(
        ((span, stage) for stage, meter in meters.items() for span in meter.spans or []), key=lambda pair: pair[0].start
    )
    origin = spans[0][0].start if spans else 0.0
    return [
        {
            "stage": stage,
            "thread": span.thread,
            "start": round(span.start - origin, 6),
            "seconds": round(span.seconds, 6),
            "items": span.items,
        }
        for span, stage in spans[:_MOST_SPANS]
    ]


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def thinned(latencies: Sequence[float]) -> list[float]:
    """Milliseconds in order of size; of too many, as many evenly over that order, the extremes among them."""
    ordered = sorted(latencies)
    count = min(len(ordered), _MOST_LATENCIES)
    step = (len(ordered) - 1) / max(1, count - 1)
    return [float(f"{1000 * ordered[round(n * step)]:.6g}") for n in range(count)]
