"""The stages of the loop: generators that know no thread and no queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.clips import TIME_ROUNDING, Clip, ClipAssembler, Sample, sampler_of
from edgeclf.errors import EdgeclfError, SessionError, VideoError
from edgeclf.preprocess import preprocess_frame
from edgeclf.runtime.meter import Meter, clock
from edgeclf.runtime.model import Model
from edgeclf.runtime.records import Prediction, Record, SourceEnd, result_of
from edgeclf.specs import Aggregate, ClipSpec, PreprocessSpec
from edgeclf.video import Frame, RgbImage, SourceCounts, VideoSource


@dataclass(frozen=True, slots=True)
class SourceId:
    """Tells sources apart, also where two have one name."""

    index: int
    name: str  # as it stands in records


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """A frame that clips are made of, as the extractor takes it."""

    id: SourceId
    pixels: RgbImage  # uint8 (height, width, 3), or (stack, height, width, 3)
    pts_seconds: float
    sample: Sample
    ready_at: float  # meter.clock

    def without_pixels(self) -> SampledFrame:
        """The same with no pixels, for those who have to remember many."""
        return replace(self, pixels=_NO_PIXELS)


_NO_PIXELS: RgbImage = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class SampledFeature:
    """The feature of a sampled frame."""

    id: SourceId
    frame: SampledFrame
    feature: NDArray[Any]  # float32 (F,), or the frame itself where the classifier takes frames
    extracted_at: float  # meter.clock


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a source, in its place behind the frames."""

    id: SourceId
    end: SourceEnd


def decode(
    source_id: SourceId, open_source: Callable[[], VideoSource], preprocess: PreprocessSpec, clip: ClipSpec
) -> Generator[SampledFrame | Ended, None, None]:
    """The sampled frames of a source, then its end. A source that cannot be opened or read ends with its error.

    It is read no further than its clips reach, which only matters to clips that count frames.
    """
    processed = skipped = 0
    source: VideoSource | None = None
    error: EdgeclfError | None = None
    try:
        sampler = sampler_of(clip, partial(_count_frames, open_source))
        stack = PictureStack(preprocess)
        source = open_source()
        with closing(source):
            for frame in source.frames():
                sample = sampler.sample(frame.pts_seconds)
                stack.add(frame, restart=sample.restart)
                if sample.slots:
                    processed += 1
                    yield SampledFrame(source_id, stack.pixels(), frame.pts_seconds, sample, clock())
                else:
                    skipped += 1
                if sampler.done:
                    break
        if clip.sampling == "uniform" and not processed:
            raise VideoError(
                f"{source_id.name} gave no frame when it was read again",
                hint="it holds no picture, or can be read only once: give its path",
            )
    except EdgeclfError as failure:
        error = failure
    dropped = dict(source.dropped) if source else {}
    counts = SourceCounts(processed + skipped + sum(dropped.values()), processed, skipped, dropped)
    yield Ended(source_id, SourceEnd(source_id.name, counts, error, source.decoder if source else ""))


def _count_frames(open_source: Callable[[], VideoSource]) -> int:
    """How many frames a source gives; one that ends with an error gave those before it."""
    count = 0
    with closing(open_source()) as source, suppress(VideoError):
        for _ in source.frames():
            count += 1
    return max(1, count)


class PictureStack:
    """Keeps the pictures that a frame is stacked with, and preprocesses those that are asked for."""

    def __init__(self, preprocess: PreprocessSpec) -> None:
        self._preprocess = preprocess
        self._frames: deque[Frame] = deque()

    def add(self, frame: Frame, *, restart: bool) -> None:
        """One more frame; with `restart` none before it is remembered."""
        if restart:
            self._frames.clear()
        self._frames.append(frame)
        oldest = frame.pts_seconds - (self._preprocess.stack - 1) * self._preprocess.stack_seconds
        while len(self._frames) > 1 and self._frames[1].pts_seconds <= oldest + TIME_ROUNDING:
            self._frames.popleft()

    def pixels(self) -> RgbImage:
        """The last frame preprocessed, or the stack that ends with it: uint8 (K, height, width, 3).

        In the place of each earlier picture stands the last frame that is not later than it should be, and the
        first frame where there is none before.
        """
        frames = [self._at(steps) for steps in range(self._preprocess.stack - 1, 0, -1)] + [self._frames[-1]]
        pictures = [preprocess_frame(frame.image, self._preprocess) for frame in frames]
        return pictures[0] if len(pictures) == 1 else np.stack(pictures)

    def _at(self, steps: int) -> Frame:
        wanted = self._frames[-1].pts_seconds - steps * self._preprocess.stack_seconds + TIME_ROUNDING
        return next((frame for frame in reversed(self._frames) if frame.pts_seconds <= wanted), self._frames[0])


def extract(batch: list[SampledFrame | Ended], model: Model) -> list[SampledFeature | Ended]:
    """The batch with every frame replaced by its feature."""
    frames = [item for item in batch if isinstance(item, SampledFrame)]
    features = iter(model.extract(np.stack([frame.pixels for frame in frames])) if frames else ())
    now = clock()
    return [item if isinstance(item, Ended) else SampledFeature(item.id, item, next(features), now) for item in batch]


def classify(
    batches: Iterable[list[SampledFeature | Ended]],
    model: Model,
    *,
    meter: Meter | None = None,
) -> Iterator[tuple[SourceId, Prediction | SourceEnd]]:
    """Predictions and ends of all sources, each with its source, in order for each source.

    The clips of all sources that are due with one batch of features are classified together.
    """
    tracks: dict[SourceId, _Track] = {}
    meter = meter or Meter()
    for batch in meter.waiting(batches):
        start = clock()
        due = [part for item in batch for part in _due(item, tracks, model)]
        predictions = iter(_predictions([part for part in due if isinstance(part, _DueClip)], model))
        meter.add(busy=clock() - start, items=len(due))
        for part in due:
            yield part.id, part.end if isinstance(part, Ended) else next(predictions)


@dataclass(slots=True)
class _Track:
    """What one source's clips still need."""

    assembler: ClipAssembler
    last: SampledFeature | None = None


@dataclass(frozen=True, slots=True)
class _DueClip:
    id: SourceId
    clip: Clip
    last: SampledFeature  # the one that made it due


def _due(item: SampledFeature | Ended, tracks: dict[SourceId, _Track], model: Model) -> Iterator[_DueClip | Ended]:
    """The clips that are due with an item, and the end behind them."""
    track = tracks.setdefault(item.id, _Track(ClipAssembler(model.clip)))
    if isinstance(item, SampledFeature):
        clips = track.assembler.add(item.feature, item.frame.pts_seconds, item.frame.sample)
        track.last = item
    else:
        clips = track.assembler.finish()
        del tracks[item.id]
    for clip in clips:
        assert track.last is not None
        yield _DueClip(item.id, clip, track.last)
    if isinstance(item, Ended):
        yield item


def _predictions(due: Sequence[_DueClip], model: Model) -> list[Prediction]:
    if not due:
        return []
    features = np.stack([part.clip.features for part in due])
    scores = model.classify(features, np.array([part.clip.length for part in due], np.int32))
    if not np.isfinite(scores).all():
        raise SessionError(f"{model.name} gave a score that is no number", hint="export it again, or in fp32")
    now = clock()
    return [
        Prediction(
            part.id.name,
            model.labels,
            tuple(row.tolist()),
            model.thresholds,
            start_seconds=round(part.clip.start_seconds, 6),
            end_seconds=round(part.clip.end_seconds, 6),
            flags=part.clip.flags,
            latency_seconds={
                "extract": part.last.extracted_at - part.last.frame.ready_at,
                "classify": now - part.last.extracted_at,
            },
        )
        for part, row in zip(due, scores, strict=True)
    ]


def conclude(records: Iterable[tuple[SourceId, Prediction | SourceEnd]], aggregate: Aggregate) -> Iterator[Record]:
    """The same records, with the result of each source before its end."""
    clips: dict[SourceId, list[Prediction]] = {}
    for source_id, record in records:
        if isinstance(record, Prediction):
            clips.setdefault(source_id, []).append(record)
        elif source_id in clips:
            yield result_of(clips.pop(source_id), aggregate)
        yield record
