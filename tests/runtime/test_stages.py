"""Decoding with its samplers, and the pictures that are stacked with a frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pytest

from edgeclf.errors import VideoError
from edgeclf.runtime.model import FramesAsFeatures
from edgeclf.runtime.stages import Ended, PictureStack, SampledFrame, SourceId, decode
from edgeclf.specs import ClipSpec, PreprocessSpec
from tests.support.counting import NumberedSource

Sampling = Literal["rate", "first", "uniform"]

PLAIN = PreprocessSpec((4, 4))
STACKED = PreprocessSpec((4, 4), stack=2, stack_seconds=0.12)


def clip_of(sampling: Sampling, length: int = 4) -> ClipSpec:
    return ClipSpec(length, 5.0, 0.4, 1.0, sampling=sampling)


class Opener:
    """Opens the same numbered frames as often as it is asked to, and keeps the sources."""

    def __init__(self, times: Iterable[float], error: BaseException | None = None) -> None:
        self.opened: list[NumberedSource] = []
        self._times, self._error = list(times), error

    def __call__(self) -> NumberedSource:
        self.opened.append(NumberedSource(self._times, error=self._error))
        return self.opened[-1]


def decoded(
    times: Iterable[float], clip: ClipSpec, preprocess: PreprocessSpec = PLAIN, *, error: BaseException | None = None
) -> tuple[list[SampledFrame], Ended, list[NumberedSource]]:
    opener = Opener(times, error)
    *frames, end = decode(SourceId(0, "numbered"), opener, preprocess, clip)
    assert isinstance(end, Ended)
    return [frame for frame in frames if isinstance(frame, SampledFrame)], end, opener.opened


def numbers(frames: Iterable[SampledFrame]) -> list[int]:
    """Which frames these are, each as often as the slots that it fills."""
    return [int(frame.pixels.flat[0]) for frame in frames for _ in range(frame.sample.slots)]


def stacks(frames: Iterable[SampledFrame]) -> list[list[int]]:
    """The numbers of the pictures of each stack."""
    return [[int(picture.flat[0]) for picture in frame.pixels] for frame in frames]


# -- which frames are read --------------------------------------------------------------------------------------------


def test_first_frames_are_read_and_no_other() -> None:
    frames, ended, (source,) = decoded([n / 25 for n in range(100)], clip_of("first"))
    assert numbers(frames) == [0, 1, 2, 3]
    assert (source.read, source.converted, source.closed) == (4, 4, True)
    counts = ended.end.counts
    assert (counts.received, counts.processed, counts.skipped) == (4, 4, 0)
    assert ended.end.error is None


def test_damage_behind_the_first_frames_does_not_matter() -> None:
    frames, ended, _ = decoded([0.0, 0.1, 0.2, 0.3], clip_of("first"), error=VideoError("damaged"))
    assert numbers(frames) == [0, 1, 2, 3]
    assert ended.end.error is None


def test_damage_before_the_last_of_the_first_frames_is_told() -> None:
    frames, ended, _ = decoded([0.0, 0.1, 0.2], clip_of("first"), error=VideoError("damaged"))
    assert numbers(frames) == [0, 1, 2]
    assert str(ended.end.error) == "damaged"


def test_spread_frames_are_counted_by_a_source_of_their_own() -> None:
    frames, ended, (counted, read) = decoded([n / 10 for n in range(10)], clip_of("uniform"))
    assert numbers(frames) == [0, 2, 5, 7]
    assert (counted.read, counted.converted, counted.closed) == (10, 0, True)
    assert (read.read, read.converted, read.closed) == (8, 4, True)
    assert (ended.end.counts.processed, ended.end.counts.skipped) == (4, 4)


def test_damaged_file_is_spread_over_the_frames_before_the_damage() -> None:
    frames, _, _ = decoded([n / 10 for n in range(6)], clip_of("uniform", 3), error=VideoError("damaged"))
    assert numbers(frames) == [0, 2, 4]


def test_shorter_file_is_spread_with_repetition() -> None:
    frames, _, _ = decoded([0.0, 0.1], clip_of("uniform"))
    assert [frame.sample.slots for frame in frames] == [2, 2]
    assert numbers(frames) == [0, 0, 1, 1]


@pytest.mark.parametrize("sampling", ["rate", "first"])
def test_empty_file_ends_without_a_frame(sampling: Sampling) -> None:
    frames, ended, opened = decoded([], clip_of(sampling))
    assert (frames, ended.end.error, ended.end.counts.received) == ([], None, 0)
    assert all(source.closed for source in opened)


def test_source_that_gives_its_frames_once_cannot_be_spread_over_and_says_so() -> None:
    source = NumberedSource([n / 10 for n in range(9)])
    (ended,) = decode(SourceId(0, "numbered"), lambda: source, PLAIN, clip_of("uniform"))
    assert isinstance(ended, Ended)
    assert (
        "numbered gave no frame when it was read again; it holds no picture, or can be read only once: give its path"
        in str(ended.end.error)
    )


@pytest.mark.parametrize("sampling", ["rate", "first", "uniform"])
def test_file_that_cannot_be_opened_ends_with_its_error(sampling: Sampling) -> None:
    def refuse() -> NumberedSource:
        raise VideoError("no such file")

    (ended,) = decode(SourceId(0, "none"), refuse, PLAIN, clip_of(sampling))
    assert isinstance(ended, Ended)
    assert str(ended.end.error) == "no such file"


def test_our_own_bug_in_counting_is_not_taken_for_a_short_file() -> None:
    with pytest.raises(ZeroDivisionError):
        decoded([0.0, 0.1], clip_of("uniform"), error=ZeroDivisionError("bug"))


@pytest.mark.parametrize("fps", [10, 12.5, 25, 30])
def test_sampling_by_rate_reads_to_the_end(fps: float) -> None:
    frames, _, (source,) = decoded([n / fps for n in range(round(2 * fps))], clip_of("rate"))
    assert sum(frame.sample.slots for frame in frames) == 10
    assert source.read == round(2 * fps)


# -- stacked pictures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (25, [[0, 0], [2, 5], [7, 10], [12, 15], [17, 20]]),  # 0.12 seconds are 3 frames
        (30, [[0, 0], [2, 6], [8, 12], [14, 18], [20, 24]]),  # 3.6 frames: the one before
        (12.5, [[0, 0], [1, 3], [3, 5], [6, 8], [8, 10]]),  # 1.5 frames
    ],
)
def test_earlier_picture_is_the_last_that_is_old_enough(fps: float, expected: list[list[int]]) -> None:
    frames, _, _ = decoded([n / fps for n in range(round(fps))], clip_of("rate"), STACKED)
    assert stacks(frames) == expected
    assert all(frame.pixels.shape == (2, 4, 4, 3) for frame in frames)


@pytest.mark.parametrize("fps", [25, 30, 12.5])
def test_time_stamps_in_milliseconds_choose_the_same_pictures(fps: float) -> None:
    exact, rounded = (
        stacks(decoded(times, clip_of("rate"), STACKED)[0])
        for times in ([n / fps for n in range(200)], [round(n / fps, 3) for n in range(200)])
    )
    assert rounded == exact


def test_first_picture_stands_where_there_is_none_before() -> None:
    spec = PreprocessSpec((4, 4), stack=2, stack_seconds=1.0)
    frames, _, _ = decoded([n / 5 for n in range(8)], clip_of("rate"), spec)
    assert stacks(frames) == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [1, 6], [2, 7]]


def test_stack_of_three_has_equal_distances_and_the_frame_last() -> None:
    spec = PreprocessSpec((4, 4), stack=3, stack_seconds=0.08)
    frames, _, _ = decoded([n / 25 for n in range(16)], clip_of("rate"), spec)
    assert stacks(frames) == [[0, 0, 0], [1, 3, 5], [6, 8, 10], [11, 13, 15]]


def test_no_stack_reaches_across_a_gap_at_which_clips_restart() -> None:
    times = [n / 25 for n in range(6)] + [9 + n / 25 for n in range(6)]
    frames, _, _ = decoded(times, clip_of("rate"), STACKED)
    assert [frame.sample.restart for frame in frames] == [False, False, True, False]
    assert stacks(frames) == [[0, 0], [2, 5], [6, 6], [8, 11]]


def test_gap_that_does_not_restart_clips_leaves_the_last_picture_before_it() -> None:
    frames, _, _ = decoded([0.0, 0.04, 0.9, 0.94], clip_of("rate"), STACKED)
    assert stacks(frames) == [[0, 0], [1, 2]]


@pytest.mark.parametrize("sampling", ["first", "uniform"])
def test_pictures_are_stacked_also_where_frames_are_counted(sampling: Sampling) -> None:
    frames, _, _ = decoded([n / 25 for n in range(16)], clip_of(sampling), STACKED)
    expected = {"first": [[0, 0], [0, 1], [0, 2], [0, 3]], "uniform": [[0, 0], [1, 4], [5, 8], [9, 12]]}
    assert stacks(frames) == expected[sampling]


def test_frame_without_stack_is_a_picture_alone() -> None:
    frames, _, (source,) = decoded([n / 25 for n in range(25)], clip_of("rate"))
    assert all(frame.pixels.shape == (4, 4, 3) for frame in frames)
    assert source.converted == len(frames) == 5


def test_stack_forgets_pictures_that_are_too_old() -> None:
    source = NumberedSource([n / 25 for n in range(250)])
    stack = PictureStack(STACKED)
    for frame in source.frames():
        stack.add(frame, restart=False)
    assert len(stack._frames) <= 5
    assert [int(picture.flat[0]) for picture in stack.pixels()] == [246, 249]


def test_asking_twice_gives_the_same_stack() -> None:
    stack = PictureStack(STACKED)
    for frame in NumberedSource([n / 25 for n in range(9)]).frames():
        stack.add(frame, restart=False)
    np.testing.assert_array_equal(stack.pixels(), stack.pixels())


# -- frames in the place of features ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "shape"), [(PLAIN, (4, 4, 3)), (STACKED, (2, 4, 4, 3))], ids=["plain", "stacked"])
def test_frame_is_its_own_feature_where_the_classifier_takes_frames(spec: PreprocessSpec, shape: Sequence[int]) -> None:
    session = FramesAsFeatures(spec)
    frames = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    found = session.run({session.inputs[0].name: frames})[session.outputs[0].name]
    np.testing.assert_array_equal(found, frames)
    assert session.inputs[0].shape == (None, *shape)
    assert session.placement.device == "cpu"
    session.close()
    session.close()
