"""The extractor alone: every session and precision that works here, beside the ways in which Keras is called."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bench.environment import environment
from edgeclf.bench.timing import Distribution, interleaved
from edgeclf.errors import EdgeclfError
from edgeclf.metrics import cosines
from edgeclf.model_directory import extractor_session
from edgeclf.runtime.golden import noise
from edgeclf.runtime.session import BACKENDS, CPU_PRECISIONS, Session, open_session
from edgeclf.specs import Device, PreprocessSpec

REFERENCE = "onnxruntime fp32"
_SECONDS = 0.4  # that one timed turn lasts at least

Frames = NDArray[np.uint8]
Extract = Callable[[Frames], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to get features of a batch of frames."""

    name: str
    placement: str
    extract: Extract
    batch: int


def session_ways(
    graphs: Mapping[str, Path], device: Device, *, batch: int, threads: int
) -> tuple[list[Way], dict[str, str]]:
    """A way for each backend and precision that works here, and for each that does not the reason.

    graphs: by precision, "fp32" among them. OpenVINO also runs that one in bf16.
    """
    ways: list[Way] = []
    reasons: dict[str, str] = {}
    for backend in BACKENDS:
        for precision, graph in _graphs_for(backend, graphs).items():
            name = f"{backend} {precision}"
            try:
                session = open_session(
                    graph, device, precision=precision, backend=backend, threads=threads, max_batch=batch
                )
                extract = _extract(session)
                extract(noise(session.inputs[0], batch))
            except EdgeclfError as error:
                reasons[name] = str(error)
            else:
                ways.append(Way(name, str(session.placement), extract, batch))
    return ways, reasons


def _graphs_for(backend: str, graphs: Mapping[str, Path]) -> dict[str, Path]:
    if backend == "openvino":
        return {**graphs, "bf16": graphs["fp32"]}
    return {name: graph for name, graph in graphs.items() if backend != "tensorrt" or name not in CPU_PRECISIONS}


def keras_ways(extractor: Any, preprocess: PreprocessSpec, *, batch: int) -> list[Way]:
    """How Keras is called: `predict` frame by frame, as tutorials do; the model itself; and as a tf.function."""
    compiled = _extract(extractor_session(extractor, preprocess))
    return [
        Way("Keras predict, frame by frame", "keras", lambda frames: extractor.predict(frames, verbose=0), 1),
        Way("Keras call", "keras", lambda frames: np.asarray(extractor(frames, training=False)), batch),
        Way("tf.function", "keras", compiled, batch),
    ]


def measure_extractors(
    ways: Sequence[Way], frames: Frames, *, rounds: int, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The record of all ways in one interleaved run: frames a second, and how far features are from the first way's.

    frames: uint8 (M, ...), as many as the largest batch or more. Every way is run twice before it is timed.
    """
    reference = ways[0].extract(frames[: ways[0].batch])
    agreement = {way.name: _agreement(way, frames, reference) for way in ways}
    turns = {way.name: _turn(way, frames) for way in ways}
    rates = interleaved(turns, rounds, progress=progress)
    return {
        "environment": environment(),
        "rounds": rounds,
        "ways": [
            {
                "name": way.name,
                "placement": way.placement,
                "batch": way.batch,
                "frames_per_second": Distribution.of(rates[way.name]).to_dict(),
                **agreement[way.name],
            }
            for way in ways
        ],
    }


def extractor_table(record: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """The record as text, the fastest first, beside the reference; then what did not work and why."""
    ways = record["ways"]
    medians = {way["name"]: way["frames_per_second"]["median"] for way in ways}
    base = medians.get(REFERENCE, medians[ways[0]["name"]])
    width = max(len(name) for name in [*medians, *reasons])
    where = record["environment"]
    lines = [
        f"{where['processor']}, {where['cores']} cores; {record['rounds']} interleaved rounds, medians",
        "",
        f"{'extractor alone':<{width}}  batch  frames/s         min-max   times  cosine  runs on",
    ]
    for way in sorted(ways, key=lambda way: -medians[way["name"]]):
        rate = way["frames_per_second"]
        spread = f"{rate['smallest']:.1f}-{rate['largest']:.1f}"
        lines.append(
            f"{way['name']:<{width}}  {way['batch']:>5}  {rate['median']:>8.1f}  {spread:>14}  "
            f"{rate['median'] / base:>6.2f}  {way['mean_cosine']:.4f}  {way['placement']}"
        )
    lines += [f"{name:<{width}}  {reason}" for name, reason in reasons.items()]
    return "\n".join(lines)


def _extract(session: Session) -> Extract:
    taken, given = session.inputs[0].name, session.outputs[0].name
    return lambda frames: session.run({taken: frames})[given]


def _turn(way: Way, frames: Frames) -> Callable[[], float]:
    batch = frames[: way.batch]

    def frames_per_second() -> float:
        count, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < _SECONDS:
            way.extract(batch)
            count += len(batch)
        return count / seconds

    return frames_per_second


def _agreement(way: Way, frames: Frames, reference: NDArray[Any]) -> dict[str, float]:
    parts: Iterable[Frames] = (
        frames[start : start + way.batch] for start in range(0, len(reference) - way.batch + 1, way.batch)
    )
    found = np.concatenate([way.extract(part) for part in parts])
    expected = reference[: len(found)]
    return {
        "mean_cosine": round(float(cosines(found, expected).mean()), 6),
        "largest_difference": float(f"{np.abs(found - expected).max():.3g}"),
    }
