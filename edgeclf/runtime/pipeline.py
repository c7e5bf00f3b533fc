"""The loop put together, and the classifier that an embedding program holds."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

from edgeclf.bundle import open_bundle
from edgeclf.errors import VideoError
from edgeclf.preprocess import limit_opencv_threads
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.merge import merge
from edgeclf.runtime.meter import Meter, StageTime
from edgeclf.runtime.model import Model, open_model
from edgeclf.runtime.prefetch import parallel_map
from edgeclf.runtime.records import Prediction, Record, Result, SourceEnd
from edgeclf.runtime.stages import Ended, SampledFrame, SourceId, classify, conclude, decode, extract
from edgeclf.specs import Device
from edgeclf.video import VideoSource, open_video, redacted

Source = str | Path | VideoSource
Form = Literal["file", "stream"]


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Threads, queues and batches of the loop. Results do not depend on them."""

    depth: int = 8  # frames that a source's thread is ahead; 0 is no thread at all, for any stage
    workers: int = 1  # extractor runs at a time
    batch_size: int = 2  # frames in one extractor run
    max_wait: float = 0.0  # seconds that a frame may wait for its batch to fill
    sources_at_once: int = 1  # sources that are decoded at the same time

    @classmethod
    def for_device(cls, device: str) -> LoopOptions:
        """What suits a device when nothing was measured on it.

        On the CPU: one extractor run per core, one thread each, two frames a run; larger batches only cost
        cache (docs/pipeline.md). On a GPU: large batches, and decoding on all cores.
        """
        cores = available_cores()
        if device == "cpu":
            return cls(workers=cores, batch_size=2, sources_at_once=cores)
        return cls(depth=32, workers=2, batch_size=32, max_wait=0.02, sources_at_once=cores)

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

    def read(self) -> dict[str, StageTime]:
        """The sums so far, by stage."""
        return {"decode": self.decode.read(), "extract": self.extract.read(), "classify": self.classify.read()}


def run_loop(
    sources: Iterable[Source],
    model: Model,
    options: LoopOptions,
    *,
    threshold: float | None = None,
    form: Form = "stream",
    meters: LoopMeters | None = None,
) -> Generator[Record, None, None]:
    """Predictions of all sources as they come, and for each source its result and its end.

    threshold: for all labels, instead of the model's own. form: "stream" cuts clips by time; "file" as the model's
    recipe takes them from a file that it labels as a whole, which is the same unless that counts frames. A source that
    cannot be read ends with its error and harms no other. Closing the iterator stops every thread.
    """
    meters = meters or LoopMeters()
    model = model.with_threshold(threshold)
    if form == "stream":
        model = replace(model, clip=model.clip.of_stream())
    limit_opencv_threads()
    with (
        merge(
            (_decoded(index, source, model) for index, source in enumerate(sources)),
            batch_size=options.batch_size,
            max_wait=options.max_wait,
            depth=options.depth,
            at_once=options.sources_at_once,
            meter=meters.decode,
        ) as batches,
        parallel_map(
            partial(extract, model=model), batches, workers=options.workers, meter=meters.extract, name="extract"
        ) as features,
    ):
        predictions = classify(features, model, meter=meters.classify)
        yield from conclude(predictions, model.aggregate)


def _decoded(index: int, source: Source, model: Model) -> Generator[SampledFrame | Ended, None, None]:
    name = redacted(str(source)) if isinstance(source, (str, Path)) else source.name
    return decode(SourceId(index, name), partial(_opened, source), model.preprocess, model.clip)


def _opened(source: Source) -> VideoSource:
    return open_video(source) if isinstance(source, (str, Path)) else source


class Classifier:
    """A bundle, opened to classify video; close it, or leave its `with` block, when done.

    While it runs, OpenCV resizes on the calling thread and FFmpeg's log is silent, in the whole process.
    """

    def __init__(self, model: Model, options: LoopOptions | None = None, *, threshold: float | None = None) -> None:
        self.model = model
        self.options = options or LoopOptions.for_device(model.extractor.placement.device)
        self.threshold = threshold
        self._running: weakref.WeakSet[Generator[Record, None, None]] = weakref.WeakSet()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End every stream with its threads, and give up both sessions."""
        for records in list(self._running):
            records.close()
        self.model.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of `scores`."""
        return self.model.labels

    def classify(self, source: Source) -> Result:
        """The label of a whole file, with the predictions of its clips, taken as the model's recipe takes files.

        Raises VideoError where the file cannot be read or is damaged; `stream` gives what could be decoded.
        """
        found: Result | None = None
        for record in self._records([source], form="file"):
            if isinstance(record, Result):
                found = record
            if isinstance(record, SourceEnd) and record.error:
                raise record.error
        if found is None:
            raise VideoError(f"{source} gave no clip", hint="check that it holds at least one picture")
        return found

    def stream(
        self, sources: Source | Sequence[Source], *, on_error: Literal["auto", "raise", "yield"] = "auto"
    ) -> Iterator[Prediction | SourceEnd]:
        """Predictions as they come, and one `SourceEnd` for each source.

        on_error: "raise" raises a source's error after all that it gave, "yield" leaves it in its `SourceEnd`;
        "auto" raises for a single source.
        """
        given = list(sources) if isinstance(sources, (list, tuple)) else [cast(Source, sources)]
        for source in given:
            if not isinstance(source, (str, Path)) and not hasattr(source, "frames"):
                raise VideoError(f"{source!r} is no source", hint="give paths, URLs or objects with frames()")
        raising = on_error == "raise" or (on_error == "auto" and len(given) == 1)
        for record in self._records(given):
            if isinstance(record, SourceEnd) and record.error and raising:
                raise record.error
            if not isinstance(record, Result):
                yield record

    def _records(self, sources: Iterable[Source], form: Form = "stream") -> Iterator[Record]:
        records = run_loop(sources, self.model, self.options, threshold=self.threshold, form=form)
        self._running.add(records)
        return records


def open_classifier(
    name: str | Path,
    *,
    device: Device = "auto",
    precision: str = "fp32",
    backend: str | None = None,
    threshold: float | None = None,
    options: LoopOptions | None = None,
) -> Classifier:
    """The classifier of a packaged bundle, or of the bundle at a path; also `edgeclf.open`.

    device: "auto", "cpu", "cuda" or "tensorrt". backend: what runs the graphs there, as of `open_session`. threshold:
    the score below which any label is "unknown", instead of the bundle's own. Raises BundleError and SessionError.
    """
    model = open_model(open_bundle(name), device, precision=precision, backend=backend)
    return Classifier(model, options, threshold=threshold)
