"""A loop that can be compared with others: ours in its forms, and how a pass of it is measured and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

import numpy as np

from edgeclf.bench.load import Usage, measured
from edgeclf.bench.rows import Group, RowName
from edgeclf.runtime.meter import StageTime
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopMeters, LoopOptions, run_loop
from edgeclf.runtime.prefetch import parallel_map
from edgeclf.runtime.records import Prediction, SourceEnd
from edgeclf.video import VideoSource, open_video

PIPELINED = "pipelined"
ONE_THREAD = "sequential, 1 thread"
DEFAULT_THREADS = "sequential, default threads"

SAME = 0.0  # ONNX Runtime on a CPU gives the same bits for any batch
NEARLY_SAME = 1e-3  # elsewhere the batch may choose the kernel, and another backend rounds otherwise
# Largest difference of a score from FP32's on clips that are near a tie. Whether a precision is good enough is what
# export's gate says; here a graph that is plainly another one must not be timed as if it were the same.
TOLERANCES = {"fp32": NEARLY_SAME, "fp16": 0.05, "bf16": 0.2, "int8": 0.5, "u8s8": 0.5}


@dataclass(frozen=True, slots=True)
class Work:
    """What one pass over all sources gave."""

    clips: tuple[Prediction, ...]
    frames: int  # that clips are made of
    pictures: int = 0  # in the sources
    stages: dict[str, StageTime] = field(default_factory=dict)
    fairness: float | None = None  # of files that were read at once


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over all sources, and what it took."""

    work: Work
    usage: Usage

    @property
    def clips_per_second(self) -> float:
        """Throughput in clips."""
        return len(self.work.clips) / self.usage.seconds

    @property
    def frames_per_second(self) -> float:
        """Throughput in frames that clips are made of."""
        return self.work.frames / self.usage.seconds

    @property
    def latencies(self) -> list[float]:
        """Seconds from a clip's last frame being decoded to its scores, for each clip."""
        return [sum(clip.latency_seconds.values()) for clip in self.work.clips if clip.latency_seconds]


@dataclass(frozen=True, slots=True)
class Loop:
    """A way to get from sources to clips, ready to run."""

    name: RowName
    run: Callable[[], Run]
    tolerance: float | None = SAME  # largest difference of a score from the sequential loop; None: it is only said
    required: bool = True  # where it fails or differs the benchmark ends, instead of having a row with the reason
    extract_alone: Callable[[int], Run] | None = None  # the same extractor runs on frames that are there already


def runtime_loop(
    name: str,
    model: Model,
    options: LoopOptions,
    sources: Sequence[str],
    *,
    group: Group = "ours",
    tolerance: float | None = SAME,
) -> Loop:
    """Our loop with these options."""
    row = RowName(name, group, model.extractor.placement, options.workers, options.batch_size)
    gpu = model.extractor.placement.device != "cpu"
    run = partial(run_of, partial(pass_over, model, options, sources), gpu=gpu)
    alone = partial(_extract_alone, model, options)
    return Loop(row, run, tolerance, required=group == "ours", extract_alone=alone)


def pass_over(
    model: Model,
    options: LoopOptions,
    sources: Sequence[str],
    meters: LoopMeters | None = None,
    opener: Callable[[str], VideoSource] = open_video,
) -> Work:
    """One pass of our loop over all sources. Raises the error of a source that cannot be read."""
    meters = meters or LoopMeters()
    clips, counts = [], []
    for record in run_loop(sources, model, options, opener=opener, meters=meters):
        if isinstance(record, SourceEnd):
            if record.error:
                raise record.error
            counts.append(record.counts)
        elif isinstance(record, Prediction):
            clips.append(record)
    frames, pictures = sum(count.processed for count in counts), sum(count.received for count in counts)
    return Work(tuple(clips), frames, pictures, meters.read())


def run_of(work: Callable[[], Work], *, gpu: bool = False, children: bool = False) -> Run:
    """The work, measured."""
    return Run(*measured(work, gpu=gpu, children=children))


def _extract_alone(model: Model, options: LoopOptions, frames: int) -> Run:
    """What the loop could reach if decoding and classifying cost nothing: `frames` frames of noise, extracted."""
    noise = np.random.default_rng(0).integers(0, 256, (options.batch_size, *model.preprocess.input_shape), np.uint8)

    def work() -> Work:
        batches = repeat(noise, max(1, frames // options.batch_size))
        with parallel_map(model.extract, batches, workers=options.workers, name="extract") as features:
            return Work((), sum(map(len, features)))

    return run_of(work)


def disagreement(found: Iterable[Prediction], expected: Iterable[Prediction]) -> float:
    """The largest difference of a score; infinite where the clips themselves differ, NaN where a score is none."""
    ordered = [_in_order(clips) for clips in (found, expected)]
    places = [[(clip.source, clip.start_seconds, clip.end_seconds, clip.labels) for clip in clips] for clips in ordered]
    if places[0] != places[1]:
        return float("inf")
    pairs = zip(*ordered, strict=True)
    differences = [abs(x - y) for a, b in pairs for x, y in zip(a.scores, b.scores, strict=True)]
    return float(np.max(differences, initial=0.0))  # Python's max passes over NaN


def changed_labels(found: Iterable[Prediction], expected: Iterable[Prediction]) -> int:
    """How many clips have another label."""
    pairs = zip(_in_order(found), _in_order(expected), strict=False)
    return sum(ours.top_label != theirs.top_label for ours, theirs in pairs)


def _in_order(clips: Iterable[Prediction]) -> list[Prediction]:
    return sorted(clips, key=lambda clip: (clip.source, clip.start_seconds))
