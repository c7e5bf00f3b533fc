"""Records of benchmarks made by hand, in the shape that `edgeclf bench --json` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]

_DIRECTIONS = {
    "frames_per_second": ("frames/s", "higher"),
    "clips_per_second": ("clips/s", "higher"),
    "cpu_seconds_per_frame": ("s", "lower"),
    "peak_rss_mb": ("MB", "lower"),
    "latency_p50_ms": ("ms", "lower"),
    "latency_p99_ms": ("ms", "lower"),
}


def metric(name: str, samples: Sequence[float]) -> Record:
    """A metric of a row with these rounds."""
    unit, better = _DIRECTIONS[name]
    median, p90, p95, p99 = (float(value) for value in np.percentile(samples, [50, 90, 95, 99]))
    return {
        "unit": unit,
        "better": better,
        "samples": list(samples),
        "median": median,
        "p90": p90,
        "p95": p95,
        "p99": p99,
        "smallest": min(samples),
        "largest": max(samples),
        "count": len(samples),
    }


def around(middle: float, *, rounds: int = 7, spread: float = 0.02, seed: int = 0) -> list[float]:
    """Rounds that scatter by that share around a figure, the same ones each time."""
    return [float(value) for value in middle * (1 + spread * np.random.default_rng(seed).standard_normal(rounds))]


def row(name: str = "pipelined", *, group: str = "ours", precision: str = "fp32", **more: Any) -> Record:
    """A row that was measured. Metrics are given by name as lists of rounds, other keys as they stand in a row."""
    metrics = {key: metric(key, more.pop(key)) for key in _DIRECTIONS if key in more}
    return {
        "name": name,
        "group": group,
        "device": "cpu",
        "backend": "onnxruntime",
        "provider": "CPU",
        "precision": precision,
        "threads": 1,
        "workers": 2,
        "batch": 2,
        "status": "ok",
        "reason": None,
        "metrics": metrics,
        "latency_ms": None,
        "stages": None,
        **more,
    }


def unavailable(name: str, reason: str, **more: Any) -> Record:
    """A row that does not work here."""
    return {**row(name, group="device"), "status": "unavailable", "reason": reason, "metrics": {}, **more}


def record(rows: Sequence[Mapping[str, Any]], **more: Any) -> Record:
    """A record of the scenario offline."""
    environment = {
        "date": "2026-01-02",
        "processor": "Example 9000",
        "cores": 2,
        "memory_gib": 15.6,
        "system": "Linux 6.1 x86_64",
        "onnxruntime": "1.23.0",
        "edgeclf": "0.1.0",
        "foreign_cores": 0.02,
    }
    return {
        "schema_version": 2,
        "scenario": "offline",
        "command": "edgeclf bench theatre clip.mp4",
        "environment": environment,
        "bundle": {"name": "theatre", "extractor_sha256": {"fp32": "a" * 64}},
        "workload": {"files": 8, "sha256": "b" * 64, "clips": 96},
        "warm_up": "one pass of every loop over all sources, not timed",
        "rounds": 7,
        "rows": [dict(one) for one in rows],
        "ratios": {},
        "bound": None,
        "knee": None,
        "sustained_cameras": None,
        "trace": None,
        **more,
    }


def span(stage: str, thread: str, start: float, seconds: float, items: int = 1) -> Record:
    """One stretch of work of a trace."""
    return {"stage": stage, "thread": thread, "start": start, "seconds": seconds, "items": items}


def pass_of(seconds: float = 2.0) -> list[Record]:
    """The trace of two decoding threads, two extractor runs at a time and a classifier."""
    rng = np.random.default_rng(0)
    spans = []
    for stage, threads, length, gap in (("decode", 2, 0.004, 0.005), ("extract", 2, 0.024, 0.001)):
        for number in range(threads):
            now = 0.001 + 0.002 * number + (0.01 if stage == "extract" else 0.0)
            while now < seconds:
                taken = length * float(rng.uniform(0.8, 1.4))
                spans.append(span(stage, f"{stage} {number}", round(now, 6), round(taken, 6), 2))
                now += taken + gap * float(rng.uniform(0.2, 1.5))
    spans += [span("classify", "MainThread", 0.2 + 0.1 * n, 0.0004) for n in range(int(seconds * 9))]
    return sorted(spans, key=lambda one: float(one["start"]))


def full_record() -> Record:
    """A record that holds everything a record may hold."""
    rng = np.random.default_rng(1)
    latencies = [float(value) for value in rng.gamma(9, 3.0, 1500)]
    stages = {
        "decode": {"busy_seconds": 3.4, "wait_seconds": 5.1, "items": 2400},
        "extract": {"busy_seconds": 8.6, "wait_seconds": 0.4, "items": 480},
        "classify": {"busy_seconds": 0.1, "wait_seconds": 4.2, "items": 96},
    }
    rows = [
        row(
            clips_per_second=around(24.1),
            frames_per_second=around(482.0),
            cpu_seconds_per_frame=around(0.0041, seed=1),
            peak_rss_mb=[171.0] * 7,
            latency_p50_ms=around(26.0),
            latency_p99_ms=around(58.0, spread=0.1),
            latency_ms={"samples": latencies},
            stages=stages,
        ),
        row(
            "pipelined, onnxruntime int8",
            precision="int8",
            clips_per_second=around(61.0, seed=5),
            frames_per_second=around(1220.0, seed=5),
            cpu_seconds_per_frame=around(0.0016, seed=1),
            peak_rss_mb=[158.0] * 7,
            latency_ms={"samples": [value / 3 for value in latencies]},
            stages={name: {**time, "busy_seconds": time["busy_seconds"] / 2} for name, time in stages.items()},
        ),
        row("sequential, 1 thread", group="baseline", clips_per_second=around(12.6, seed=2, spread=0.05), workers=0),
        row("OpenCV and ONNX Runtime, as tutorials do", group="baseline", clips_per_second=around(9.4, seed=3)),
        row("Keras predict, frame by frame", group="baseline", clips_per_second=around(1.1, seed=4), backend="keras"),
        row("decode alone", group="stage", frames_per_second=around(2100.0), backend="av", precision=""),
        *(
            row(
                f"extract, {backend} {precision}",
                group="stage",
                precision=precision,
                backend=backend,
                batch=batch,
                frames_per_second=around(speed * batch / (batch + 0.6), seed=batch),
            )
            for backend, precision, speed in (
                ("onnxruntime", "fp32", 520.0),
                ("openvino", "fp32", 560.0),
                ("openvino", "bf16", 905.0),
                ("onnxruntime", "int8", 1310.0),
            )
            for batch in (1, 2, 4, 8, 16)
        ),
        unavailable("pipelined, tensorrt fp16", "SessionError: there is no NVIDIA driver; see edgeclf doctor"),
    ]
    knee = [
        {
            "cameras": cameras,
            "sustained": cameras <= 14,
            "p50_ms": 22.0 + cameras / 2 + (160.0 if cameras > 14 else 0.0),
            "p99_ms": 48.0 + 4.5 * cameras + (600.0 if cameras > 14 else 0.0),
            "dropped_share": 0.0 if cameras <= 14 else 0.02 * (cameras - 14),
            "sampled_fps": 5.0 if cameras <= 14 else 4.4,
            "cpu_seconds": 1.1 * cameras,
        }
        for cameras in (1, 2, 4, 8, 16, 12, 14, 15)
    ]
    return record(
        rows,
        ratios={"sequential, 1 thread": 1.91, "OpenCV and ONNX Runtime, as tutorials do": 2.56},
        bound={"decode_alone_frames_per_second": 2100.0, "stages_frames_per_second": 511.0, "reached": 0.94},
        knee=knee,
        sustained_cameras=14,
        trace=pass_of(),
        workload={"files": 8, "sha256": "b" * 64, "clips": 96, "p99_ms": 150.0},
    )


def written(path: Path, found: Mapping[str, Any]) -> Path:
    """The record as a file."""
    path.write_text(json.dumps(found), encoding="utf-8")
    return path
