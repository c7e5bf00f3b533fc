from __future__ import annotations

import random

import numpy as np
import pytest

from edgeclf.chooser import ClipChooser
from edgeclf.clips import IndexSampler, RateSampler, Sampler
from edgeclf.runtime.stages import PictureStack
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.video import Frame, RgbImage

CLIP = ClipSpec.by_rate(4, 5.0)
PLAIN = PreprocessSpec((4, 4))


def samplers() -> list[Sampler]:
    return [RateSampler(CLIP)]


def verdicts_of(times: list[float], made_of: list[Sampler], preprocess: PreprocessSpec) -> list[bool]:
    chooser = ClipChooser(made_of, preprocess)
    return [verdict for seconds in times for verdict in chooser.add(seconds)] + chooser.finish()


def test_without_a_stack_each_verdict_comes_at_once() -> None:
    chooser = ClipChooser(samplers(), PLAIN)
    answers = [chooser.add(n / 25) for n in range(11)]
    assert answers == [[n % 5 == 0] for n in range(11)]
    assert chooser.finish() == []


def test_wanted_is_what_any_of_the_samplers_takes() -> None:
    times = [n / 10 for n in range(10)]
    both = verdicts_of(times, [RateSampler(ClipSpec.by_rate(4, 2.5)), IndexSampler(3, 3)], PLAIN)
    assert [n for n, wanted in enumerate(both) if wanted] == [0, 1, 2, 4, 8]


def test_first_picture_behind_a_gap_is_wanted() -> None:
    times = [0.0, 0.04, 0.08, 5.01, 5.05, 5.09]
    assert verdicts_of(times, samplers(), PLAIN) == [True, False, False, True, False, False]


def test_pictures_of_a_stack_are_wanted_too() -> None:
    stacked = PreprocessSpec((4, 4), stack=3, stack_seconds=0.04)
    verdicts = verdicts_of([n / 25 for n in range(11)], samplers(), stacked)
    assert [n for n, wanted in enumerate(verdicts) if wanted] == [0, 3, 4, 5, 8, 9, 10]


def test_with_a_stack_a_verdict_waits_until_no_later_picture_can_want_it() -> None:
    chooser = ClipChooser(samplers(), PreprocessSpec((4, 4), stack=2, stack_seconds=0.08))
    answers = [chooser.add(n / 25) for n in range(6)]
    assert answers == [[True], [], [], [], [False], [False, True]]
    assert chooser.finish() == [False, True]


class Asked:
    """Frames that note when their pixels are asked for."""

    def __init__(self) -> None:
        self.indices: set[int] = set()

    def frame(self, index: int, seconds: float) -> Frame:
        def convert() -> RgbImage:
            self.indices.add(index)
            return np.zeros((4, 4, 3), np.uint8)

        return Frame(seconds, convert)


@pytest.mark.parametrize("seed", range(20))
def test_wanted_is_exactly_what_the_stage_asks_for(seed: int) -> None:
    chance = random.Random(seed)
    steps = [chance.choice([0.001, 0.02, 0.04, 0.1, 0.3, 3.0]) for _ in range(200)]
    times = [sum(steps[:n]) for n in range(200)]
    stack = chance.randrange(1, 5)
    preprocess = PreprocessSpec((4, 4), stack=stack, stack_seconds=chance.choice([0.04, 0.12, 0.5]) if stack > 1 else 0)
    sampler, pictures, asked = RateSampler(CLIP), PictureStack(preprocess), Asked()
    for index, seconds in enumerate(times):
        sample = sampler.sample(seconds)
        pictures.add(asked.frame(index, seconds), restart=sample.restart)
        if sample.slots:
            pictures.pixels()
    verdicts = verdicts_of(times, samplers(), preprocess)
    assert {index for index, wanted in enumerate(verdicts) if wanted} == asked.indices
    assert len(verdicts) == len(times)
