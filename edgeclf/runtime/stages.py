"""The stages of the loop: generators that know no thread and no queue."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.chooser import ClipChooser
from edgeclf.clips import TIME_ROUNDING, Clip, ClipAssembler, Sample, Sampler, sampler_of
from edgeclf.errors import EdgeclfError, SessionError, VideoError
from edgeclf.preprocess import preprocess
from edgeclf.runtime.meter import Meter, clock
from edgeclf.runtime.model import Model
from edgeclf.runtime.motion import MotionGate
from edgeclf.runtime.records import Prediction, Record, SourceEnd, result_of
from edgeclf.specs import Aggregate, ClipSpec, PreprocessSpec
from edgeclf.video import Frame, RgbImage, SkippingSource, SourceCounts, VideoSource


@dataclass(frozen=True, slots=True)
class SourceId:
    """Tells sources apart, also where two have one name."""

    index: int
    name: str  # as it stands in records


class Ledger:
    """What became of the pictures of one source so far. Only the thread that decodes the source writes to it."""

    def __init__(self) -> None:
        self.processed = self.skipped = self.still = 0
        self.dropped: Counter[str] = Counter()

    def drop_sampled(self, cause: str) -> None:
        """A sampled frame that was counted as processed is dropped after all."""
        self.processed -= 1
        self.dropped[cause] += 1

    def counts(self, dropped: Mapping[str, int]) -> SourceCounts:
        """The counts at the end of the source, with what the source itself dropped."""
        causes = dict(self.dropped + Counter(dropped))
        return SourceCounts(
            self.processed + self.skipped + sum(causes.values()), self.processed, self.skipped, causes, self.still
        )


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """A frame that clips are made of, as the extractor takes it."""

    id: SourceId
    pixels: RgbImage  # uint8 (height, width, 3), or (stack, height, width, 3); nothing where it is still
    pts_seconds: float
    samples: tuple[Sample, ...]  # for each classifier
    ready_at: float  # meter.clock
    ledger: Ledger = field(default_factory=Ledger, compare=False, repr=False)
    arrival: float | None = None  # of a live frame, meter.clock
    still: bool = False  # it shows what the extracted frame before it shows, whose feature stands for it
    waited_seconds: float = 0.0  # for live pictures to come, since the sampled frame before

    @property
    def sample(self) -> Sample:
        """What the sampler of the one classifier, or of the first, makes of the frame."""
        return self.samples[0]

    def without_pixels(self) -> SampledFrame:
        """The same with no pixels, for those who have to remember many."""
        return replace(self, pixels=_NO_PIXELS)


_NO_PIXELS: RgbImage = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class SampledFeature:
    """The feature of a sampled frame."""

    id: SourceId
    frame: SampledFrame
    feature: NDArray[Any] | None  # float32 (F,), or the frame itself where the classifier takes frames; none if still
    extracted_at: float  # meter.clock


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a source, in its place behind the frames."""

    id: SourceId
    end: SourceEnd


def decode(
    source_id: SourceId,
    open_source: Callable[[], VideoSource],
    preprocess: PreprocessSpec,
    *clips: ClipSpec,
    gate: MotionGate | None = None,
) -> Generator[SampledFrame | Ended, None, None]:
    """The frames of a source that clips of any of these kinds are made of, then its end.

    A source that cannot be opened or read ends with its error. It is read no further than its clips reach, which only
    matters to clips that count frames. Where the source can, it leaves pictures undecoded that no clip wants.
    """
    ledger = Ledger()
    source: VideoSource | None = None
    error: EdgeclfError | None = None
    try:
        count = lru_cache(partial(_count_frames, open_source))
        samplers = [sampler_of(clip, count) for clip in clips]
        source = open_source()
        if isinstance(source, SkippingSource):
            source.skip_with(ClipChooser([sampler_of(clip, count) for clip in clips], preprocess))
        with closing(source):
            yield from _sampled_frames(source_id, source, samplers, PictureStack(preprocess), ledger, gate)
        if clips[0].sampling == "uniform" and not ledger.processed:
            raise VideoError(
                f"{source_id.name} gave no frame when it was read again",
                hint="it holds no picture, or can be read only once: give its path",
            )
    except EdgeclfError as failure:
        error = failure
    counts = ledger.counts(source.dropped if source else {})
    decoder = source.decoder if source else ""
    yield Ended(source_id, SourceEnd(source_id.name, counts, error, decoder, source_id.index))


def _sampled_frames(
    source_id: SourceId,
    source: VideoSource,
    samplers: Sequence[Sampler],
    stack: PictureStack,
    ledger: Ledger,
    gate: MotionGate | None,
) -> Iterator[SampledFrame]:
    waited = 0.0
    asked = clock()
    for frame in source.frames():
        waited += max(0.0, (frame.arrival or 0.0) - asked)
        samples = _sampled(frame, samplers)
        if frame.decoded:
            stack.add(frame, restart=any(sample.restart for sample in samples))
        if any(sample.slots for sample in samples):
            pixels = stack.pixels()
            still = gate is not None and gate.is_still(pixels)
            ledger.processed += 1
            ledger.still += still
            kept = _NO_PIXELS if still else pixels
            yield SampledFrame(
                source_id, kept, frame.pts_seconds, samples, clock(), ledger, frame.arrival, still, waited
            )
            waited = 0.0
        else:
            ledger.skipped += 1
        if all(sampler.done for sampler in samplers):
            return
        asked = clock()


_PASSED_OVER = Sample(0)


def _sampled(frame: Frame, samplers: Sequence[Sampler]) -> tuple[Sample, ...]:
    if frame.decoded:
        return tuple(sampler.sample(frame.pts_seconds) for sampler in samplers)
    for sampler in samplers:
        sampler.pass_over(frame.pts_seconds)
    return (_PASSED_OVER,) * len(samplers)


def waited_for(item: SampledFrame | Ended) -> float:
    """Seconds that the source's thread waited for live pictures rather than worked, before this item."""
    return item.waited_seconds if isinstance(item, SampledFrame) else 0.0


def overtake(
    older: SampledFrame | Ended, newer: SampledFrame | Ended, coming: SampledFrame | Ended
) -> SampledFrame | Ended | None:
    """What stands for two neighbours of a live source where only one can be kept; None where both must be.

    The newer one is kept and also fills the slots of the older one, so that clips keep their length in time. Once the
    end is `coming`, whose counts are final, nothing is dropped.
    """
    if isinstance(older, Ended) or isinstance(newer, Ended) or isinstance(coming, Ended) or older.arrival is None:
        return None
    ledger = older.ledger
    ledger.drop_sampled("queue")
    samples = tuple(_joined(first, second) for first, second in zip(older.samples, newer.samples, strict=True))
    if (
        newer.still
    ):  # one of the two reused a feature, or would have; if the older did not, the newer has to have its own
        ledger.still -= 1
        return replace(newer, samples=samples, pixels=older.pixels, still=older.still)
    ledger.still -= older.still
    return replace(newer, samples=samples)


def _joined(older: Sample, newer: Sample) -> Sample:
    if newer.restart:
        return newer
    return Sample(max(newer.slots, 1) if older.restart else older.slots + newer.slots, older.restart)


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
        pictures = [preprocess(frame, self._preprocess) for frame in frames]
        return pictures[0] if len(pictures) == 1 else np.stack(pictures)

    def _at(self, steps: int) -> Frame:
        wanted = self._frames[-1].pts_seconds - steps * self._preprocess.stack_seconds + TIME_ROUNDING
        return next((frame for frame in reversed(self._frames) if frame.pts_seconds <= wanted), self._frames[0])


def extract(batch: list[SampledFrame | Ended], model: Model) -> list[SampledFeature | Ended]:
    """The batch with every frame replaced by its feature."""
    moving = [item.pixels for item in batch if isinstance(item, SampledFrame) and not item.still]
    features = iter(model.extract(np.stack(moving)) if moving else ())
    now = clock()
    return [
        item
        if isinstance(item, Ended)
        else SampledFeature(item.id, item.without_pixels(), None if item.still else next(features), now)
        for item in batch
    ]


def classify(
    batches: Iterable[list[SampledFeature | Ended]], models: Sequence[Model], *, meter: Meter | None = None
) -> Iterator[tuple[SourceId, Prediction | SourceEnd]]:
    """Predictions and ends of all sources, each with its source, in order for each source.

    models: what classifies; they share one extractor. The clips of all sources that are due with one batch of features
    are classified together.
    """
    tracks: dict[SourceId, _Track] = {}
    meter = meter or Meter()
    for batch in meter.waiting(batches):
        start = clock()
        due = [part for item in batch for part in _due(item, tracks, models)]
        predictions = _predictions([part for part in due if isinstance(part, _DueClip)])
        meter.add(busy=clock() - start, items=len(due))
        for part in due:
            yield part.id, part.end if isinstance(part, Ended) else next(predictions)


class _Track:
    """What one source's clips still need: for each classifier, rows of the features that they share."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = models
        self._assemblers = [ClipAssembler(model.clip) for model in models]
        self._last: SampledFeature | None = None

    def add(self, item: SampledFeature) -> Iterator[_DueClip]:
        """The clips that are due with a feature; a still frame has that of the frame before it."""
        feature = item.feature if item.feature is not None or self._last is None else self._last.feature
        assert feature is not None
        self._last = last = replace(item, feature=feature)
        for model, assembler, sample in zip(self._models, self._assemblers, item.frame.samples, strict=True):
            clips = assembler.add(feature, item.frame.pts_seconds, sample) if sample.slots else []
            yield from (_DueClip(item.id, model, clip, last) for clip in clips)

    def finish(self, source_id: SourceId) -> Iterator[_DueClip]:
        """The clips that cover what is left."""
        for model, assembler in zip(self._models, self._assemblers, strict=True):
            for clip in assembler.finish():
                assert self._last is not None
                yield _DueClip(source_id, model, clip, self._last)


@dataclass(frozen=True, slots=True)
class _DueClip:
    id: SourceId
    model: Model
    clip: Clip
    last: SampledFeature  # the one that made it due


def _due(
    item: SampledFeature | Ended, tracks: dict[SourceId, _Track], models: Sequence[Model]
) -> Iterator[_DueClip | Ended]:
    """The clips that are due with an item, classifier by classifier, and the end behind them."""
    if item.id not in tracks:
        tracks[item.id] = _Track(models)
    if isinstance(item, SampledFeature):
        yield from tracks[item.id].add(item)
    else:
        yield from tracks.pop(item.id).finish(item.id)
        yield item


def _predictions(due: Sequence[_DueClip]) -> Iterator[Prediction]:
    """The prediction of each clip, in order; the clips of one classifier are classified together."""
    clips: dict[str, list[_DueClip]] = {}
    for part in due:
        clips.setdefault(part.model.name, []).append(part)
    scores = {name: iter(_scores([part.clip for part in parts], parts[0].model)) for name, parts in clips.items()}
    now = clock()
    return (_prediction(part, next(scores[part.model.name]), now) for part in due)


def _scores(clips: Sequence[Clip], model: Model) -> NDArray[np.float32]:
    features = np.stack([clip.features for clip in clips])
    scores = model.classify(features, np.array([clip.length for clip in clips], np.int32))
    if not np.isfinite(scores).all():
        raise SessionError(f"{model.name} gave a score that is no number", hint="export it again, or in fp32")
    return scores


def _prediction(due: _DueClip, scores: NDArray[np.float32], now: float) -> Prediction:
    frame = due.last.frame
    arrived = {} if frame.arrival is None else {"decode": frame.ready_at - frame.arrival}
    return Prediction(
        due.id.name,
        due.model.labels,
        tuple(scores.tolist()),
        due.model.thresholds,
        due.model.name,
        due.id.index,
        due.model.sample_fps,
        start_seconds=round(due.clip.start_seconds, 6),
        end_seconds=round(due.clip.end_seconds, 6),
        flags=due.clip.flags,
        latency_seconds={
            **arrived,
            "extract": due.last.extracted_at - frame.ready_at,
            "classify": now - due.last.extracted_at,
        },
        arrived_at=None if frame.arrival is None else time.time() - (clock() - frame.arrival),
    )


def conclude(
    records: Iterable[tuple[SourceId, Prediction | SourceEnd]], aggregates: Mapping[str, Aggregate]
) -> Iterator[Record]:
    """The same records, with the results of each file, one for each classifier, before its end.

    aggregates: how the clips of each classifier make a file's label. A live source has no result.
    """
    clips: dict[SourceId, dict[str, list[Prediction]]] = {}
    for source_id, record in records:
        if isinstance(record, Prediction):
            if record.arrived_at is None:
                clips.setdefault(source_id, {}).setdefault(record.classifier, []).append(record)
        else:
            for name, predictions in clips.pop(source_id, {}).items():
                yield result_of(predictions, aggregates[name])
        yield record
