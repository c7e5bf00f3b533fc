"""Scenario `stages`: what each stage can do alone, the bound that this implies, and what the loop reaches of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bench.asked import Asked
from edgeclf.bench.devices import Choice, open_asked
from edgeclf.bench.load import Usage, measured
from edgeclf.bench.loops import PIPELINED, pass_over
from edgeclf.bench.rows import RowName, Samples, bundle_of, record_of, row, sources_of, trace_of
from edgeclf.bench.timing import MOST_STABLE_ROUNDS, Distribution, interleaved, is_stable
from edgeclf.clips import sampler_of
from edgeclf.errors import VideoError
from edgeclf.preprocess import limit_opencv_threads
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopMeters, LoopOptions
from edgeclf.runtime.prefetch import parallel_map
from edgeclf.runtime.progress import steps
from edgeclf.runtime.session import Placement
from edgeclf.runtime.stages import PictureStack, SampledFrame, SourceId, decode
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.video import Frame, open_video

DECODE, PREPARE, PREPROCESS, CLASSIFY = "decode", "decode, sample and preprocess", "preprocess", "classify"
CONVERT = "decode and convert every picture"
EXTRACT = "extract"
_BOUND_STAGES = (PREPARE, EXTRACT, CLASSIFY)
_CPU_BATCHES = (1, 2, 4, 8)
_GPU_BATCHES = (1, 8, 32)
_TURN_SECONDS = 0.5  # that a stage without video runs in a round
_KEPT_FRAMES = 32
_CLIPS = 16


@dataclass(frozen=True, slots=True)
class Turn:
    """What a stage did in one round: so many frames that clips are made of, or what stands for them."""

    frames: float
    usage: Usage
    pictures: int = 0
    clips: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, ready to run alone."""

    name: RowName
    run: Callable[[], Turn]


def stages(asked: Asked) -> dict[str, Any]:
    """The record of the stages alone."""
    limit_opencv_threads()
    with ExitStack() as stack:
        models, failed = open_asked(stack, asked.bundle, asked.choices, name="extract", group="stage")
        model = next(iter(models.values()))
        options = asked.options_for(model)
        every = _video_stages(model, options, asked.sources)
        every += [
            _extract_stage(each, choice, batch, asked.options_for(each).workers)
            for choice, each in models.items()
            for batch in _batches(each, options)
        ]
        every += [_loop_stage(model, options, asked.sources)]
        rounds = MOST_STABLE_ROUNDS if asked.stable else asked.rounds
        with steps("turns", (len(every) + 1) * (rounds + 1)) as advance:
            counts = _warmed_up(every, advance)
            every += [_classify_stage(model, counts["frames"] / max(1, counts["clips"]))]
            _warmed_up(every[-1:], advance)
            turns = interleaved(
                {stage.name.name: stage.run for stage in every},
                rounds,
                progress=advance,
                enough=lambda done: asked.stable and is_stable([_rate(turn) for turn in done[PIPELINED]]),
            )
        chosen = extract_name(next(iter(models)), model, options.batch_size)
        return record_of(
            "stages",
            asked.command,
            [*(_row(stage.name, turns[stage.name.name]) for stage in every), *failed],
            bundle=bundle_of(asked.bundle),
            workload={**sources_of(asked.sources), **counts},
            warm_up="one turn of every stage, not timed",
            rounds=len(turns[PIPELINED]),
            foreign_cores=[turn.usage.foreign_cores for each in turns.values() for turn in each],
            bound=bound_of(
                {name: turns[name] for name in (PREPARE, CONVERT, CLASSIFY, PIPELINED)} | {EXTRACT: turns[chosen]}
            ),
            trace=_traced(model, options, asked.sources) if asked.traced else None,
        )


def extract_name(choice: Choice, model: Model, batch: int) -> str:
    """The name of the row of the extractor alone."""
    named = replace(choice, backend=choice.backend or model.extractor.placement.backend)
    return f"{EXTRACT}, {named}, batch {batch}"


def bound_of(turns: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    """The most frames a second that the stages allow together, and the share of it that the loop reaches.

    turns: of the stages PREPARE, CONVERT, EXTRACT and CLASSIFY, and of the loop. It is decoding alone, extracting
    alone, or what the cores allow if each frame costs what it costs in the stages alone, whichever is least.
    """
    cores = available_cores()
    cpu = {name: _median([turn.usage.cpu_seconds / turn.frames for turn in turns[name]]) for name in _BOUND_STAGES}
    limits = {
        "decode": _median([_rate(turn) for turn in turns[PREPARE]]),
        "extract": _median([_rate(turn) for turn in turns[EXTRACT]]),
        "cores": cores / max(1e-9, sum(cpu.values())),
    }
    least = min(limits, key=lambda name: limits[name])
    reached = _median([_rate(turn) for turn in turns[PIPELINED]])
    return {
        "of": "the stages alone",
        "frames_per_second": round(limits[least], 2),
        "reached": round(reached / limits[least], 3),
        "limited_by": least,
        "limits": {name: round(limit, 2) for name, limit in limits.items()},
        "cpu_seconds_per_frame": {name: float(f"{seconds:.4g}") for name, seconds in cpu.items()},
        "cores": cores,
        "decode_side": {"of": CONVERT, "share": round(_decode_side(turns[PREPARE], turns[CONVERT]), 3)},
    }


def _decode_side(prepare: Sequence[Turn], convert: Sequence[Turn]) -> float:
    """What a picture costs at this sampling, preprocessing included, over what it does where all are converted."""
    pairs = zip(prepare, convert, strict=True)
    return _median([_cpu_per_picture(ours) / max(1e-12, _cpu_per_picture(every)) for ours, every in pairs])


def _cpu_per_picture(turn: Turn) -> float:
    return turn.usage.cpu_seconds / max(1, turn.pictures)


def _video_stages(model: Model, options: LoopOptions, sources: Sequence[str]) -> list[Stage]:
    """Decoding and preprocessing, on as many threads as the loop decodes on."""
    clip, preprocess = model.clip.of_stream(), model.preprocess
    at_once = min(options.sources_at_once, len(sources))

    def prepared(source: str) -> _Counts:
        return _prepared(source, preprocess, clip)

    def over_sources(count: Callable[[str], _Counts]) -> Turn:
        def work() -> list[_Counts]:
            with parallel_map(count, sources, workers=at_once, name="decode") as counts:
                return list(counts)

        counts, usage = measured(work)
        return Turn(sum(each.frames for each in counts), usage, sum(each.pictures for each in counts))

    frames = _first_frames(sources[0], clip)
    stack_of = partial(PictureStack, preprocess)
    return [
        Stage(_on_cpu(DECODE, at_once), partial(over_sources, partial(_decoded, clip=clip))),
        Stage(_on_cpu(CONVERT, at_once), partial(over_sources, partial(_decoded, clip=clip, converted=True))),
        Stage(_on_cpu(PREPARE, at_once), partial(over_sources, prepared)),
        Stage(_on_cpu(PREPROCESS, 1), partial(_repeated, partial(_preprocess_all, stack_of, frames))),
    ]


@dataclass(frozen=True, slots=True)
class _Counts:
    frames: int
    pictures: int


def _on_cpu(name: str, workers: int) -> RowName:
    return RowName(name, "stage", Placement("", "", "cpu", "uint8", 1), workers)


def _decoded(source: str, clip: ClipSpec, *, converted: bool = False) -> _Counts:
    """Every picture decoded, and all or none converted."""
    sampler, frames, pictures = sampler_of(clip, lambda: 1), 0, 0
    with closing(open_video(source)) as video:
        for frame in video.frames():
            pictures += 1
            if converted:
                frame.convert()
            frames += sampler.sample(frame.pts_seconds).slots > 0
    return _Counts(frames, pictures)


def _prepared(source: str, preprocess: PreprocessSpec, clip: ClipSpec) -> _Counts:
    """All that the decode thread of the loop does."""
    frames = 0
    for item in decode(SourceId(0, source), partial(open_video, source), preprocess, clip):
        if isinstance(item, SampledFrame):
            frames += 1
        elif item.end.error:
            raise item.end.error
        else:
            return _Counts(frames, item.end.counts.received)
    return _Counts(frames, frames)


def _first_frames(source: str, clip: ClipSpec) -> list[Frame]:
    """The first frames of a source that clips are made of, decoded."""
    sampler = sampler_of(clip, lambda: 1)
    with closing(open_video(source)) as video:
        sampled = (frame for frame in video.frames() if sampler.sample(frame.pts_seconds).slots)
        frames = list(islice(sampled, _KEPT_FRAMES))
    if not frames:
        raise VideoError(f"{source} holds no picture", hint="name a video file")
    return frames


def _preprocess_all(stack_of: Callable[[], PictureStack], frames: Sequence[Frame]) -> int:
    stack = stack_of()
    for frame in frames:
        stack.add(frame, restart=False)
        stack.pixels()
    return len(frames)


def _repeated(work: Callable[[], int]) -> Turn:
    """The work over and over, for as long as one turn lasts."""

    def all_of_it() -> int:
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < _TURN_SECONDS:
            done += work()
        return done

    return Turn(*measured(all_of_it))


def _batches(model: Model, options: LoopOptions) -> list[int]:
    batches = _CPU_BATCHES if model.extractor.placement.device == "cpu" else _GPU_BATCHES
    return sorted({*batches, options.batch_size})


def _extract_stage(model: Model, choice: Choice, batch: int, workers: int) -> Stage:
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *model.preprocess.input_shape), np.uint8)

    def batches() -> Iterator[NDArray[np.uint8]]:
        start = time.perf_counter()
        while time.perf_counter() - start < _TURN_SECONDS:
            yield pixels

    def work() -> int:
        with parallel_map(model.extract, batches(), workers=workers, name="extract") as features:
            return sum(map(len, features))

    name = RowName(extract_name(choice, model, batch), "stage", model.extractor.placement, workers, batch)
    gpu = model.extractor.placement.device != "cpu"
    return Stage(name, lambda: Turn(*measured(work, gpu=gpu)))


def _classify_stage(model: Model, frames_per_clip: float) -> Stage:
    """The sequence model alone; its frames are those of the workload that one clip stands for."""
    spec = model.classifier.inputs[0]
    shape = (_CLIPS, *(size or 1 for size in spec.shape[1:]))
    values = np.random.default_rng(0).random(shape)
    features = (255 * values).astype(np.uint8) if spec.dtype == "uint8" else values.astype(np.float32)
    lengths = np.full(_CLIPS, shape[1], np.int32)

    def turn() -> Turn:
        done = _repeated(lambda: len(model.classify(features, lengths)))
        return replace(done, frames=done.frames * frames_per_clip)

    return Stage(RowName(CLASSIFY, "stage", model.classifier.placement), turn)


def _loop_stage(model: Model, options: LoopOptions, sources: Sequence[str]) -> Stage:
    def turn() -> Turn:
        work, usage = measured(partial(pass_over, model, options, sources))
        return Turn(work.frames, usage, work.pictures, len(work.clips))

    return Stage(RowName(PIPELINED, "ours", model.extractor.placement, options.workers, options.batch_size), turn)


def _warmed_up(every: Sequence[Stage], progress: Callable[[], None]) -> dict[str, int]:
    """One turn of each stage; what the sources hold."""
    counts = {}
    for stage in every:
        turn = stage.run()
        progress()
        if stage.name.name == PIPELINED:
            counts = {"pictures": turn.pictures, "frames": int(turn.frames), "clips": turn.clips}
    return counts


def _row(name: RowName, turns: Sequence[Turn]) -> dict[str, Any]:
    samples = Samples()
    for turn in turns:
        samples.add_usage(turn.usage, turn.frames)
        samples.add(pictures_per_second=turn.pictures / turn.usage.seconds if turn.pictures else None)
    return row(name, samples)


def _rate(turn: Turn) -> float:
    return turn.frames / turn.usage.seconds


def _median(values: Sequence[float]) -> float:
    return Distribution.of(values).median


def _traced(model: Model, options: LoopOptions, sources: Sequence[str]) -> list[dict[str, Any]]:
    meters = LoopMeters.traced()
    pass_over(model, options, sources, meters)
    return trace_of(meters.by_stage())
