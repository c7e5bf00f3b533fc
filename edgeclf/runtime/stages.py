"""The stages of the loop: generators that know no thread and no queue."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from edgeclf.clips import Clip, ClipAssembler, FrameSampler, Sample
from edgeclf.errors import EdgeclfError
from edgeclf.preprocess import preprocess_frame
from edgeclf.runtime.meter import Meter, clock
from edgeclf.runtime.model import Floats, Model
from edgeclf.runtime.records import Prediction, Record, SourceEnd, result_of
from edgeclf.specs import Aggregate, ClipSpec, PreprocessSpec
from edgeclf.video import RgbImage, SourceCounts, VideoSource


@dataclass(frozen=True, slots=True)
class SourceId:
    """Tells sources apart, also where two have one name."""

    index: int
    name: str  # as it stands in records


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """A frame that clips are made of, as the extractor takes it."""

    id: SourceId
    pixels: RgbImage  # uint8 (height, width, 3)
    pts_seconds: float
    sample: Sample
    ready_at: float  # meter.clock


@dataclass(frozen=True, slots=True)
class SampledFeature:
    """The feature of a sampled frame."""

    id: SourceId
    frame: SampledFrame
    feature: Floats  # (F,)
    extracted_at: float  # meter.clock


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a source, in its place behind the frames."""

    id: SourceId
    end: SourceEnd


def decode(
    source_id: SourceId, open_source: Callable[[], VideoSource], preprocess: PreprocessSpec, clip: ClipSpec
) -> Generator[SampledFrame | Ended, None, None]:
    """The sampled frames of a source, then its end. A source that cannot be opened or read ends with its error."""
    sampler = FrameSampler(clip)
    processed = skipped = 0
    dropped: Mapping[str, int] = {}
    error: EdgeclfError | None = None
    try:
        with closing(open_source()) as source:
            dropped = source.dropped
            for frame in source.frames():
                sample = sampler.sample(frame.pts_seconds)
                if sample.slots == 0:
                    skipped += 1
                    continue
                pixels = preprocess_frame(frame.image, preprocess)
                processed += 1
                yield SampledFrame(source_id, pixels, frame.pts_seconds, sample, clock())
    except EdgeclfError as failure:
        error = failure
    counts = SourceCounts(processed + skipped + sum(dropped.values()), processed, skipped, dict(dropped))
    yield Ended(source_id, SourceEnd(source_id.name, counts, error))


def extract(batch: list[SampledFrame | Ended], model: Model) -> list[SampledFeature | Ended]:
    """The batch with every frame replaced by its feature."""
    frames = [item for item in batch if isinstance(item, SampledFrame)]
    features = iter(model.extract(np.stack([frame.pixels for frame in frames])) if frames else ())
    now = clock()
    return [item if isinstance(item, Ended) else SampledFeature(item.id, item, next(features), now) for item in batch]


def classify(
    batches: Iterable[list[SampledFeature | Ended]], model: Model, *, threshold: float = 0.0, meter: Meter | None = None
) -> Iterator[tuple[SourceId, Prediction | SourceEnd]]:
    """Predictions and ends of all sources, each with its source, in order for each source."""
    assemblers: dict[SourceId, ClipAssembler] = {}
    last: dict[SourceId, SampledFeature] = {}
    meter = meter or Meter()
    for batch in meter.waiting(batches):
        for item in batch:
            start = clock()
            assembler = assemblers.setdefault(item.id, ClipAssembler(model.clip))
            if isinstance(item, SampledFeature):
                last[item.id] = item
                due = assembler.add(item.feature, item.frame.pts_seconds, item.frame.sample)
            else:
                due = assembler.finish()
            predictions = [_predict(clip, model, last[item.id], threshold) for clip in due]
            meter.add(busy=clock() - start, items=len(due))
            for prediction in predictions:
                yield item.id, prediction
            if isinstance(item, Ended):
                del assemblers[item.id]
                last.pop(item.id, None)
                yield item.id, item.end


def conclude(records: Iterable[tuple[SourceId, Prediction | SourceEnd]], aggregate: Aggregate) -> Iterator[Record]:
    """The same records, with the result of each source before its end."""
    clips: dict[SourceId, list[Prediction]] = {}
    for source_id, record in records:
        if isinstance(record, Prediction):
            clips.setdefault(source_id, []).append(record)
        elif source_id in clips:
            yield result_of(clips.pop(source_id), aggregate)
        yield record


def _predict(clip: Clip, model: Model, last: SampledFeature, threshold: float) -> Prediction:
    scores = model.classify(clip.features[None], np.array([clip.length], np.int32))[0]
    latency = {
        "extract": last.extracted_at - last.frame.ready_at,
        "classify": clock() - last.extracted_at,
    }
    return Prediction(
        last.id.name,
        model.labels,
        tuple(scores.tolist()),
        threshold,
        start_seconds=round(clip.start_seconds, 6),
        end_seconds=round(clip.end_seconds, 6),
        flags=clip.flags,
        latency_seconds=latency,
    )
