"""Many files at once: how alike they get on, and that following them changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edgeclf.bench import together
from edgeclf.bench.asked import Asked
from edgeclf.bench.devices import Choice, open_one
from edgeclf.bench.loops import disagreement, pass_over
from edgeclf.bench.together import Followed, fairness, together_loops
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.video import Frame
from tests.support.videos import BLUE, GREEN, RED, plain, write_video


class Pictures:
    """A source of ten pictures a second, the first at 0.1 seconds."""

    name = "a"
    decoder = "by hand"
    dropped: Mapping[str, int] = {}

    def __init__(self, count: int) -> None:
        self._count = count

    def frames(self) -> Iterator[Frame]:
        return iter([Frame(number / 10, lambda: np.zeros((2, 2, 3), np.uint8)) for number in range(1, self._count + 1)])

    def close(self) -> None:
        """Nothing to give up."""


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now


def read_in_turn(monkeypatch: pytest.MonkeyPatch, counts: list[int], steps: list[int]) -> float:
    """The fairness of sources of so many pictures, of which each second so many are read."""
    time = Time()
    monkeypatch.setattr(together, "clock", time.read)
    sources = [Followed(Pictures(count)) for count in counts]
    readers = [source.frames() for source in sources]
    while any(source.ended == float("inf") for source in sources):
        time.now += 1
        for reader, step in zip(readers, steps, strict=True):
            for _ in range(step):
                next(reader, None)
    return fairness(sources)


@pytest.mark.parametrize(
    ("counts", "steps", "expected"),
    [([40, 40], [2, 2], 1.0), ([40, 40], [4, 1], 0.25), ([40, 400], [2, 2], 1.0), ([40, 40, 40], [4, 3, 2], 0.5)],
    ids=["alike", "one fast", "one long", "three"],
)
def test_fairness_is_the_least_over_the_most_video_at_half_time(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], steps: list[int], expected: float
) -> None:
    assert read_in_turn(monkeypatch, counts, steps) == pytest.approx(expected)


def test_source_that_got_nothing_by_half_time_makes_it_unfair(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(together, "clock", time.read)
    sources = [Followed(Pictures(10)), Followed(Pictures(10))]
    for source in sources:
        for _ in source.frames():
            time.now += 1
    assert fairness(sources) == 0.0


@pytest.fixture(scope="module")
def bundle(colors: Path) -> ModelBundle:
    return open_bundle(colors)


def test_files_at_once_give_the_clips_of_one_after_another(bundle: ModelBundle, tmp_path: Path) -> None:
    videos = [
        str(write_video(tmp_path / f"{number}.avi", plain(color, 2, fps=10) + plain(BLUE, 1, fps=10), fps=10))
        for number, color in enumerate((RED, GREEN, BLUE))
    ]
    with ExitStack() as stack:
        model = open_one(stack, bundle, Choice("cpu"))
        options = Asked(bundle, tuple(videos), (Choice("cpu"),)).options_for(model)
        expected = pass_over(model, options.sequential(), videos)
        loops = together_loops(model, options, videos, 0.0)
        assert [loop.name.name for loop in loops] == ["pipelined, 1 file at a time", "pipelined, 3 files at a time"]
        works = [loop.run().work for loop in loops]
        assert together_loops(model, options, videos[:1], 0.0) == [], "of one file there is nothing to say"
    assert [disagreement(work.clips, expected.clips) for work in works] == [0.0, 0.0]
    assert [(work.frames, work.pictures) for work in works] == [(expected.frames, expected.pictures)] * 2
    assert works[0].fairness is None
    assert works[1].fairness is not None
    assert 0 <= works[1].fairness <= 1
