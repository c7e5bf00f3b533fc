"""Many files at once: what that costs beside one after another, and whether all of them get on alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from edgeclf.bench.loops import PIPELINED, Loop, Run, Work, pass_over, run_of, runtime_loop
from edgeclf.runtime.cores import MAX_OPEN_SOURCES
from edgeclf.runtime.meter import clock
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopOptions
from edgeclf.video import Frame, FrameChooser, SkippingSource, VideoSource, open_video

ONE_AT_A_TIME = f"{PIPELINED}, 1 file at a time"


def together_name(count: int) -> str:
    """The name of the row of so many files at once."""
    return f"{PIPELINED}, {count} files at a time"


def together_loops(model: Model, options: LoopOptions, sources: Sequence[str], tolerance: float | None) -> list[Loop]:
    """Our loop with one file open at a time, and with all of them, up to as many as it ever opens."""
    count = min(len(sources), MAX_OPEN_SOURCES)
    if count < 2:
        return []
    alone = runtime_loop(ONE_AT_A_TIME, model, replace(options, sources_at_once=1), sources, tolerance=tolerance)
    every = replace(options, sources_at_once=count)
    together = runtime_loop(together_name(count), model, every, sources, tolerance=tolerance)
    gpu = model.extractor.placement.device != "cpu"
    return [alone, replace(together, run=partial(run_of, partial(_pass_together, model, every, sources), gpu=gpu))]


def times_alone(runs: Mapping[str, Sequence[Run]], name: str) -> list[float]:
    """For each round the rate of the row of all files at once over that of one at a time; none for other rows."""
    alone = runs.get(ONE_AT_A_TIME)
    if alone is None or not runs[name] or runs[name][0].work.fairness is None:
        return []
    return [here.frames_per_second / one.frames_per_second for here, one in zip(runs[name], alone, strict=True)]


def _pass_together(model: Model, options: LoopOptions, sources: Sequence[str]) -> Work:
    opened: list[Followed] = []

    def opener(name: str) -> VideoSource:
        opened.append(Followed(open_video(name)))
        return opened[-1]

    work = pass_over(model, options, sources, opener=opener)
    return replace(work, fairness=fairness(opened))


def fairness(sources: Sequence[Followed]) -> float:
    """The least over the most video that any source has given at half time; 1 is fair, 0 is one that waits.

    Half time is halfway to the end of the first that ends, so that files of any length can be compared: until then
    each of them could be read. Sources that are opened later do not count. What was read waits in short queues:
    of files that are not much longer than these, the figure says nothing.
    """
    begin, end = min(source.opened for source in sources), min(source.ended for source in sources)
    half = (begin + end) / 2
    given = [source.seconds_at(half) for source in sources if source.opened <= half]
    return min(given) / max(given) if max(given, default=0.0) > 0 else 1.0


class Followed:
    """A source that notes when it gave how much of its video."""

    def __init__(self, source: VideoSource) -> None:
        self.name = source.name
        self.opened = clock()
        self.ended = float("inf")
        self._source = source
        self._given: list[tuple[float, float]] = []  # when, and to which second of the video

    @property
    def decoder(self) -> str:
        """As the source says."""
        return self._source.decoder

    @property
    def dropped(self) -> Mapping[str, int]:
        """As the source says."""
        return self._source.dropped

    def skip_with(self, chooser: FrameChooser) -> None:
        """Handed on, to a source that can."""
        if isinstance(self._source, SkippingSource):
            self._source.skip_with(chooser)

    def frames(self) -> Iterator[Frame]:
        for frame in self._source.frames():
            self._given.append((clock(), frame.pts_seconds))
            yield frame
        self.ended = clock()

    def close(self) -> None:
        self._source.close()

    def seconds_at(self, moment: float) -> float:
        """How much video it had given by then."""
        return max((pts for when, pts in self._given if when <= moment), default=0.0)
