"""The loops that are compared: ours, ours on one thread, and the one that tutorials write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.bundle import ModelBundle
from edgeclf.clips import ClipAssembler
from edgeclf.model_directory import load_keras, read_description
from edgeclf.runtime.meter import StageTime
from edgeclf.runtime.model import Model, open_model
from edgeclf.runtime.pipeline import LoopMeters, LoopOptions, run_loop
from edgeclf.runtime.prefetch import parallel_map
from edgeclf.runtime.records import Prediction, SourceEnd
from edgeclf.runtime.stages import SampledFrame, SourceId, decode
from edgeclf.specs import Device
from edgeclf.train.examples import feeds_of
from edgeclf.video import open_video

PIPELINED = "pipelined"
ONE_THREAD = "sequential, 1 thread"
DEFAULT_THREADS = "sequential, default threads"
KERAS = "Keras predict, frame by frame"


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over all sources."""

    seconds: float
    cpu_seconds: float
    clips: tuple[Prediction, ...]
    frames: int  # that went through the extractor
    pictures: int  # in the sources
    stages: dict[str, StageTime] = field(default_factory=dict)

    @property
    def clips_per_second(self) -> float:
        """Throughput in clips."""
        return len(self.clips) / self.seconds

    @property
    def latencies(self) -> list[float]:
        """Seconds from a clip's last frame being decoded to its scores, for each clip."""
        return [sum(clip.latency_seconds.values()) for clip in self.clips if clip.latency_seconds]


@dataclass(frozen=True, slots=True)
class Loop:
    """A way to get from sources to clips, ready to run."""

    name: str
    placement: str
    options: dict[str, Any]
    run: Callable[[], Run]
    device: str = "cpu"
    extract_alone: Callable[[int], Run] | None = None  # the same extractor runs on frames that are there already


def runtime_loops(
    bundle: ModelBundle, sources: Sequence[str], device: Device, *, precision: str = "fp32", batch: int | None = None
) -> list[Loop]:
    """The pipelined loop, and the same on one thread with one and with ONNX Runtime's own number of threads."""
    single = open_model(bundle, device, precision=precision, threads=1)
    default = open_model(bundle, device, precision=precision, threads=0)
    options = LoopOptions.for_device(single.extractor.placement.device)
    options = options.with_batch(batch) if batch else options
    return [
        _runtime_loop(PIPELINED, single, options, sources),
        _runtime_loop(ONE_THREAD, single, options.sequential(), sources),
        _runtime_loop(DEFAULT_THREADS, default, options.sequential(), sources),
    ]


def _runtime_loop(name: str, model: Model, options: LoopOptions, sources: Sequence[str]) -> Loop:
    shown = {"depth": options.depth, "workers": options.workers, "batch_size": options.batch_size}
    placement = model.extractor.placement
    alone = partial(_extract_alone, model, options)
    return Loop(name, str(placement), shown, partial(_run, model, options, sources), placement.device, alone)


def _extract_alone(model: Model, options: LoopOptions, frames: int) -> Run:
    """What the loop could reach if decoding and classifying cost nothing: `frames` frames of noise, extracted."""
    noise = np.random.default_rng(0).integers(0, 256, (options.batch_size, *model.preprocess.input_shape), np.uint8)
    batches = repeat(noise, max(1, frames // options.batch_size))
    start, cpu = time.perf_counter(), time.process_time()
    with parallel_map(model.extract, batches, workers=options.workers, name="extract") as features:
        extracted = sum(map(len, features))
    return Run(time.perf_counter() - start, time.process_time() - cpu, (), extracted, 0)


def _run(model: Model, options: LoopOptions, sources: Sequence[str]) -> Run:
    meters = LoopMeters()
    start, cpu = time.perf_counter(), time.process_time()
    records = list(run_loop(sources, model, options, meters=meters))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    ends = [record for record in records if isinstance(record, SourceEnd)]
    for end in ends:
        if end.error:
            raise end.error
    clips = tuple(record for record in records if isinstance(record, Prediction))
    counts = [end.counts for end in ends]
    return Run(
        seconds,
        cpu_seconds,
        clips,
        sum(count.processed for count in counts),
        sum(count.received for count in counts),
        meters.read(),
    )


def keras_loop(model_path: Path, sources: Sequence[str]) -> Loop:
    """What tutorials do, with the same weights: decode, `predict` each sampled frame alone, `predict` each clip."""
    extractor, classifier = load_keras(model_path)
    description, feeds = read_description(model_path), feeds_of(classifier)
    clip_spec = description.clip.of_stream()

    def predict_clip(name: str, clip: Any) -> Prediction:
        scores = classifier.predict(feeds(clip.features[None], np.array([clip.length])), verbose=0)[0]
        return Prediction(
            name,
            description.labels,
            tuple(scores.tolist()),
            start_seconds=round(clip.start_seconds, 6),
            end_seconds=round(clip.end_seconds, 6),
            flags=clip.flags,
        )

    def run() -> Run:
        start, cpu = time.perf_counter(), time.process_time()
        clips: list[Prediction] = []
        frames = 0
        for number, source in enumerate(sources):
            assembler = ClipAssembler(clip_spec)
            source_id = SourceId(number, source)
            for item in decode(source_id, partial(open_video, source), description.preprocess, clip_spec):
                if isinstance(item, SampledFrame):
                    feature = extractor.predict(item.pixels[None], verbose=0)[0] if extractor else item.pixels
                    due = assembler.add(feature, item.pts_seconds, item.sample)
                    frames += 1
                else:
                    if item.end.error:
                        raise item.end.error
                    due = assembler.finish()
                clips += [predict_clip(source, clip) for clip in due]
        return Run(time.perf_counter() - start, time.process_time() - cpu, tuple(clips), frames, 0)

    return Loop(KERAS, "keras cpu fp32, its own threads", {"batch_size": 1}, run)


def disagreement(found: Iterable[Prediction], expected: Iterable[Prediction]) -> float:
    """The largest difference of a score; infinite where the clips themselves differ, NaN where a score is none."""
    ordered = [sorted(clips, key=lambda clip: (clip.source, clip.start_seconds)) for clips in (found, expected)]
    places = [[(clip.source, clip.start_seconds, clip.end_seconds, clip.labels) for clip in clips] for clips in ordered]
    if places[0] != places[1]:
        return float("inf")
    pairs = zip(*ordered, strict=True)
    differences = [abs(x - y) for a, b in pairs for x, y in zip(a.scores, b.scores, strict=True)]
    return float(np.max(differences, initial=0.0))  # Python's max passes over NaN
