"""The loop put together, and the classifier that an embedding program holds."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

from edgeclf.bundle import open_bundle
from edgeclf.errors import VideoError
from edgeclf.preprocess import limit_opencv_threads
from edgeclf.runtime.cores import available_cores, default_options
from edgeclf.runtime.merge import merge
from edgeclf.runtime.meter import Meter, StageTime
from edgeclf.runtime.model import Model, open_models
from edgeclf.runtime.motion import MotionGate
from edgeclf.runtime.prefetch import parallel_map
from edgeclf.runtime.records import Prediction, Record, Result, SourceEnd
from edgeclf.runtime.session import MAX_BATCH
from edgeclf.runtime.stages import (
    Ended,
    SampledFrame,
    SourceId,
    classify,
    conclude,
    decode,
    extract,
    overtake,
    waited_for,
)
from edgeclf.runtime.tuned import Objective, Tuned, find_for_all
from edgeclf.specs import Device, Resize, require
from edgeclf.video import VideoSource, is_live, open_video, redacted

Source = str | Path | VideoSource
Form = Literal["file", "stream"]


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Threads, queues and batches of the loop. Results do not depend on them."""

    depth: int = 8  # frames that a source's thread is ahead; 0 is no thread at all, for any stage
    live_depth: int = 2  # frames of a live source that wait; the oldest gives way to the next
    workers: int = 1  # extractor runs at a time
    batch_size: int = 2  # frames in one extractor run
    max_wait: float = 0.0  # seconds that a frame may wait for its batch to fill
    sources_at_once: int = 1  # files that are decoded at the same time; live sources always are

    def __post_init__(self) -> None:
        least = {"workers": 0, "depth": 0, "live_depth": 1, "batch_size": 1, "sources_at_once": 1}
        for name, value in least.items():
            require(getattr(self, name) >= value, f"{name} is {getattr(self, name)}, must be {value} or more")
        require(self.max_wait >= 0, f"max_wait is {self.max_wait}, must be 0 or more")

    @classmethod
    def for_device(cls, device: str, *, tuned: Tuned | None = None, batch_size: int | None = None) -> LoopOptions:
        """What suits a device when nothing was measured on it (`cores.default_options`).

        tuned: what was measured goes before it. batch_size: goes before both.
        """
        options = cls(**default_options(device, available_cores()))
        options = tuned.options(options) if tuned else options
        return options.with_batch(batch_size) if batch_size else options

    def sequential(self) -> LoopOptions:
        """The same work on the caller's thread alone: the reference in tests, the baseline in benchmarks."""
        return LoopOptions(depth=0, workers=0, batch_size=self.batch_size)

    def with_batch(self, size: int) -> LoopOptions:
        """The same with batches of `size` frames, which are given a little time and room to fill."""
        wait = self.max_wait if size <= self.batch_size else max(self.max_wait, 0.02)
        return replace(self, batch_size=size, depth=max(self.depth, size), max_wait=wait)


@dataclass(frozen=True, slots=True)
class LoopMeters:
    """Where the stages report their busy and waiting time."""

    decode: Meter = field(default_factory=Meter)
    extract: Meter = field(default_factory=Meter)
    classify: Meter = field(default_factory=Meter)

    @classmethod
    def traced(cls) -> LoopMeters:
        """Meters that also keep every stretch of work, for a trace."""
        return cls(Meter(spans=True), Meter(spans=True), Meter(spans=True))

    def by_stage(self) -> dict[str, Meter]:
        """The meters, in the order of the loop."""
        return {"decode": self.decode, "extract": self.extract, "classify": self.classify}

    def read(self) -> dict[str, StageTime]:
        """The sums so far, by stage."""
        return {stage: meter.read() for stage, meter in self.by_stage().items()}


def run_loop(
    sources: Iterable[Source],
    model: Model,
    options: LoopOptions,
    *,
    also: Sequence[Model] = (),
    threshold: float | None = None,
    form: Form = "stream",
    motion_gate: Mapping[str, float] | float | None = None,
    opener: Callable[[str], VideoSource] = open_video,
    meters: LoopMeters | None = None,
) -> Generator[Record, None, None]:
    """Predictions of all sources as they come, and for each source its results and its end.

    also: further classifiers of the same extractor, which runs once for all (`model.open_models`). threshold: for all
    labels, instead of the models' own. form: "stream" cuts clips by time; "file" as the model's recipe takes them from
    a file that it labels as a whole, which is the same unless that counts frames. motion_gate: for all sources or by
    name, the brightness (0 to 255) by which a block of a picture has to change before the extractor runs again
    (`motion.MotionGate`). opener: what opens names, with another decoder say. A source that cannot be read ends with
    its error and harms no other. Closing the iterator stops every thread.
    """
    meters = meters or LoopMeters()
    models = [_as_asked(each, threshold, form) for each in (model, *also)]
    limit_opencv_threads()
    given = [(SourceId(number, _name(source)), source) for number, source in enumerate(sources)]
    live = sum(is_live(source) for _, source in given)
    door = _Door(opener)
    with (
        merge(
            (_decoded(source_id, source, models, motion_gate, door) for source_id, source in _live_first(given)),
            batch_size=options.batch_size,
            max_wait=options.max_wait,
            depth=options.depth,
            live_depth=min(options.live_depth, options.depth),
            at_once=live + min(options.sources_at_once, len(given) - live),
            overtake=overtake,
            waited=waited_for,
            meter=meters.decode,
        ) as batches,
        parallel_map(
            partial(extract, model=model), batches, workers=options.workers, meter=meters.extract, name="extract"
        ) as features,
        door,
    ):
        predictions = classify(features, models, meter=meters.classify)
        yield from conclude(predictions, {each.name: each.aggregate for each in models})


def _as_asked(model: Model, threshold: float | None, form: Form) -> Model:
    model = model.with_threshold(threshold)
    return replace(model, clip=model.clip.of_stream()) if form == "stream" else model


def _live_first(given: list[tuple[SourceId, Source]]) -> list[tuple[SourceId, Source]]:
    """Files wait for their turn; what is live does not."""
    return sorted(given, key=lambda pair: not is_live(pair[1]))


def _name(source: Source) -> str:
    return redacted(str(source)) if isinstance(source, (str, Path)) else source.name


def _decoded(
    source_id: SourceId,
    source: Source,
    models: Sequence[Model],
    levels: Mapping[str, float] | float | None,
    door: _Door,
) -> Generator[SampledFrame | Ended, None, None]:
    given = str(source) if isinstance(source, (str, Path)) else source.name
    level = levels.get(given) if isinstance(levels, Mapping) else levels
    gate = None if level is None else MotionGate(level)
    clips = [model.clip for model in models]
    return decode(source_id, partial(door.open, source), models[0].preprocess, *clips, gate=gate)


class _Door:
    """Opens sources, and ends the live ones when nobody wants more: each may wait long for its next picture."""

    def __init__(self, opener: Callable[[str], VideoSource]) -> None:
        self._opener = opener
        self._live: list[VideoSource] = []
        self._shut = False
        self._lock = threading.Lock()

    def open(self, source: Source) -> VideoSource:
        """The source, opened by the thread that reads it."""
        opened = self._opener(str(source)) if isinstance(source, (str, Path)) else source
        with self._lock:
            if is_live(opened):
                self._live.append(opened)
                if self._shut:
                    opened.close()
        return opened

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._shut = True
            for source in self._live:
                source.close()


class Classifier:
    """A bundle, opened to classify video; close it, or leave its `with` block, when done.

    also: further models of the same extractor, whose predictions come beside those of the first. While it runs, OpenCV
    resizes on the calling thread and FFmpeg's log is silent, in the whole process.
    """

    def __init__(
        self,
        model: Model,
        options: LoopOptions | None = None,
        *,
        also: Sequence[Model] = (),
        threshold: float | None = None,
        tuned: Tuned | None = None,
    ) -> None:
        self.model = model
        self.also = tuple(also)
        self.tuned = tuned  # the choice of `edgeclf tune` that it runs by, if any
        self.options = options or LoopOptions.for_device(model.extractor.placement.device)
        self.threshold = threshold
        self._running: weakref.WeakSet[Generator[Record, None, None]] = weakref.WeakSet()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End every stream with its threads, and give up all sessions."""
        for records in list(self._running):
            records.close()
        for model in (self.model, *self.also):
            model.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the first classifier, in the order of `scores`."""
        return self.model.labels

    def classify(self, source: Source) -> Result:
        """The label of a whole file, with the predictions of its clips, taken as the model's recipe takes files.

        Raises VideoError where the file cannot be read or is damaged; `stream` gives what could be decoded. Of several
        classifiers it is the first one's; `classify_all` gives every result.
        """
        return self.classify_all(source)[self.model.name]

    def classify_all(self, source: Source) -> dict[str, Result]:
        """As `classify`, the result of each classifier by its name."""
        found: dict[str, Result] = {}
        for record in self._records([source], form="file"):
            if isinstance(record, Result):
                found[record.classifier] = record
            if isinstance(record, SourceEnd) and record.error:
                raise record.error
        if not found:
            raise VideoError(f"{source} gave no clip", hint="check that it holds at least one picture")
        return found

    def stream(
        self,
        sources: Source | Sequence[Source],
        *,
        on_error: Literal["auto", "raise", "yield"] = "auto",
        motion_gate: Mapping[str, float] | float | None = None,
    ) -> Iterator[Prediction | SourceEnd]:
        """Predictions as they come, and one `SourceEnd` for each source.

        on_error: "raise" raises a source's error after all that it gave, "yield" leaves it in its `SourceEnd`;
        "auto" raises for a single source. motion_gate: as of `run_loop`.
        """
        given = list(sources) if isinstance(sources, (list, tuple)) else [cast(Source, sources)]
        for source in given:
            if not isinstance(source, (str, Path)) and not hasattr(source, "frames"):
                raise VideoError(f"{source!r} is no source", hint="give paths, URLs or objects with frames()")
        raising = on_error == "raise" or (on_error == "auto" and len(given) == 1)
        for record in self._records(given, motion_gate=motion_gate):
            if isinstance(record, SourceEnd) and record.error and raising:
                raise record.error
            if not isinstance(record, Result):
                yield record

    def _records(
        self,
        sources: Iterable[Source],
        form: Form = "stream",
        motion_gate: Mapping[str, float] | float | None = None,
    ) -> Iterator[Record]:
        records = run_loop(
            sources,
            self.model,
            self.options,
            also=self.also,
            threshold=self.threshold,
            form=form,
            motion_gate=motion_gate,
        )
        self._running.add(records)
        return records


def open_classifier(
    name: str | Path,
    *further: str | Path,
    device: Device = "auto",
    precision: str | None = None,
    backend: str | None = None,
    threshold: float | None = None,
    options: LoopOptions | None = None,
    tuned_for: Objective | None = None,
    resize: Resize | None = None,
    sample_fps: float | None = None,
    batch_size: int | None = None,
) -> Classifier:
    """The classifier of a packaged bundle, or of the bundle at a path; also `edgeclf.open`.

    further: more classifiers of the same extractor, which then runs once for all of them. device: "auto", "cpu", "cuda"
    or "tensorrt". precision, backend: which graph runs ("fp32" if not given), and what runs it, as of `open_session`.
    threshold: the score below which any label is "unknown", instead of the bundle's own. tuned_for: run as
    `edgeclf tune` chose for this objective on this machine, if it did, where neither precision nor backend is given.
    resize: "rgb" or "planes", instead of what the model was trained with. sample_fps: frames a second that clips are
    made of, 0.01 to 1000, instead of the model's rate; it then stands in every record. batch_size: frames in one
    extractor run, whatever the options say. Raises BundleError and SessionError, and ValueError where sample_fps makes
    no sense.
    """
    bundles = [open_bundle(each) for each in (name, *further)]
    tuned = find_for_all(bundles, device, tuned_for) if tuned_for and not (precision or backend) else None
    opened = partial(open_models, bundles, max_batch=max(MAX_BATCH, batch_size or 0))
    if tuned is None:
        models = opened(device, precision=precision or "fp32", backend=backend)
    else:
        models = opened(tuned.device, precision=tuned.precision, backend=tuned.backend, threads=tuned.threads)
    models = tuple(each.resizing(resize) for each in models) if resize else models
    model, *also = models if sample_fps is None else (each.sampling_at(sample_fps) for each in models)
    if options is None:
        runs_on = tuned.device if tuned else model.extractor.placement.device
        options = LoopOptions.for_device(runs_on, tuned=tuned, batch_size=batch_size)
    elif batch_size:
        options = options.with_batch(batch_size)
    return Classifier(model, options, also=also, threshold=threshold, tuned=tuned)
