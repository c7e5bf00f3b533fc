from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from edgeclf.clips import Clip, ClipAssembler, ClipSchedule, ClipWindow, IndexSampler, RateSampler, padded, sampler_of
from edgeclf.specs import ClipSpec

CLIP = ClipSpec.by_rate(4, 5.0, hop_seconds=0.4)


def slots_of(times: list[float], clip: ClipSpec = CLIP) -> list[int]:
    sampler = RateSampler(clip)
    return [sampler.sample(seconds).slots for seconds in times]


def clips_of(times: list[float], clip: ClipSpec = CLIP) -> list[Clip]:
    """The clips of frames whose feature is their number."""
    sampler, assembler = RateSampler(clip), ClipAssembler(clip)
    clips = []
    for number, seconds in enumerate(times):
        sample = sampler.sample(seconds)
        if sample.slots:
            clips += assembler.add(np.array([number], np.float32), seconds, sample)
    return clips + assembler.finish()


@pytest.mark.parametrize("fps", [10, 12, 12.5, 15, 24, 25, 29.97, 30, 50, 60])
def test_every_frame_rate_gives_five_slots_a_second(fps: float) -> None:
    times = [n / fps for n in range(round(10 * fps))]
    assert sum(slots_of(times)) == 50
    assert max(slots_of(times)) == 1


def test_slot_takes_first_frame_at_or_after_its_start() -> None:
    assert slots_of([0.0, 0.1, 0.19, 0.2, 0.3, 0.45, 0.59, 0.6]) == [1, 0, 0, 1, 0, 1, 0, 1]


def test_time_stamps_rounded_to_milliseconds_do_not_lose_slots() -> None:
    assert slots_of([0.0, 0.2, 0.3999, 0.5999]) == [1, 1, 1, 1]


def test_time_stamps_rounded_to_milliseconds_give_an_even_grid() -> None:
    clip = ClipSpec.by_rate(8, 15.0)
    assert slots_of([round(n / 30, 3) for n in range(13)], clip) == [1, 0] * 6 + [1]
    assert slots_of([round(n / 15, 3) for n in range(40)], clip) == [1] * 40


def test_late_frame_fills_the_slots_it_is_first_for() -> None:
    assert slots_of([0.0, 0.65]) == [1, 3]


def test_frames_slower_than_the_rate_keep_the_length_of_a_clip_in_seconds() -> None:
    times = [n / 2 for n in range(20)]
    assert sum(slots_of(times)) == pytest.approx(9.5 * 5, abs=1)


def test_gap_restarts_the_grid_at_the_frame_behind_it() -> None:
    sampler = RateSampler(CLIP)
    sampler.sample(0.0)
    behind = sampler.sample(5.07)
    assert (behind.slots, behind.restart) == (1, True)
    assert sampler.sample(5.2).slots == 0
    assert sampler.sample(5.27).slots == 1


def test_full_clips_start_every_hop_and_the_last_one_ends_with_the_video() -> None:
    schedule = ClipSchedule(CLIP)
    windows = [window for _ in range(9) if (window := schedule.fill())]
    assert windows == [ClipWindow(0, 4), ClipWindow(2, 4), ClipWindow(4, 4)]
    assert schedule.finish() == ClipWindow(5, 4)


def test_video_that_ends_with_a_full_clip_has_no_further_one() -> None:
    assert [(clip.start_seconds, clip.length) for clip in clips_of([n / 5 for n in range(6)])] == [
        (0.0, 4),
        (pytest.approx(0.4), 4),
    ]


def test_video_shorter_than_a_clip_gives_one_partial_clip_padded_with_zeros() -> None:
    (clip,) = clips_of([0.0, 0.2, 0.4])
    assert (clip.length, clip.flags) == (3, ("partial",))
    assert clip.end_seconds == pytest.approx(0.6)
    assert clip.features.ravel().tolist() == [0, 1, 2, 0]


def test_padding_can_repeat_the_last_frame() -> None:
    spec = ClipSpec(4, 5.0, 0.4, 1.0, padding="repeat_last")
    (clip,) = clips_of([0.0, 0.2, 0.4], spec)
    assert clip.features.ravel().tolist() == [0, 1, 2, 2]


def test_frame_that_fills_several_slots_is_repeated_in_the_clip() -> None:
    (clip,) = clips_of([0.0, 0.6])
    assert clip.features.ravel().tolist() == [0, 1, 1, 1]


def test_no_clip_spans_a_gap() -> None:
    before, after = [0.0, 0.2], [9.0, 9.2, 9.4, 9.6]
    stale, full = clips_of(before + after)
    assert (stale.flags, stale.length) == (("partial", "stale"), 2)
    assert (full.flags, full.start_seconds) == ((), 9.0)
    assert full.features.ravel().tolist() == [2, 3, 4, 5]


def test_empty_video_has_no_clip() -> None:
    assert clips_of([]) == []


# -- clips that count frames ------------------------------------------------------------------------------------------


def counted(sampling: Literal["first", "uniform"], length: int = 4) -> ClipSpec:
    return ClipSpec(length, 5.0, 0.4, 1.0, sampling=sampling)


def no_count() -> int:
    pytest.fail("the frames were counted")


def clips_of_file(clip: ClipSpec, times: list[float]) -> list[Clip]:
    """The clips of a file whose frames have their number as feature; it is read no further than they reach."""
    sampler, assembler = sampler_of(clip, lambda: max(1, len(times))), ClipAssembler(clip)
    clips = []
    for number, seconds in enumerate(times):
        sample = sampler.sample(seconds)
        if sample.slots:
            clips += assembler.add(np.array([number], np.float32), seconds, sample)
        if sampler.done:
            break
    return clips + assembler.finish()


@pytest.mark.parametrize(
    "times", [[n / 25 for n in range(9)], [0.0, 7.0, 7.001, 90.0, 90.1, 500.0]], ids=["even", "gaps"]
)
def test_first_frames_are_taken_whatever_their_time(times: list[float]) -> None:
    (clip,) = clips_of_file(counted("first"), times)
    assert clip.features.ravel().tolist() == [0, 1, 2, 3]
    assert (clip.length, clip.flags) == (4, ())
    assert (clip.start_seconds, clip.end_seconds) == (times[0], times[3])


def test_first_frames_of_a_shorter_file_are_a_partial_clip() -> None:
    (clip,) = clips_of_file(counted("first"), [0.0, 0.04, 0.08])
    assert clip.features.ravel().tolist() == [0, 1, 2, 0]
    assert (clip.length, clip.flags) == (3, ("partial",))


@pytest.mark.parametrize("length", [1, 4, 20])
def test_sampler_of_first_frames_is_done_with_the_last_that_it_takes(length: int) -> None:
    sampler = sampler_of(counted("first", length), no_count)
    for number in range(length):
        assert not sampler.done, f"after {number} frames"
        assert sampler.sample(0.0).slots == 1
    assert sampler.done
    assert sampler.sample(1.0).slots == 0


def test_frames_are_counted_only_where_they_are_spread() -> None:
    assert isinstance(sampler_of(CLIP, no_count), RateSampler)
    assert not sampler_of(CLIP, no_count).done
    asked = iter([10])
    sampler_of(counted("uniform"), lambda: next(asked))
    assert list(asked) == []


@pytest.mark.parametrize("count", range(1, 30))
@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_spread_slots_lie_at_equal_shares_of_the_file(length: int, count: int) -> None:
    (clip,) = clips_of_file(counted("uniform", length), [n / 25 for n in range(count)])
    assert clip.features.ravel().tolist() == [k * count // length for k in range(length)]
    assert (clip.length, clip.flags) == (length, ())


def test_spread_clip_of_a_shorter_file_repeats_its_frames_in_order() -> None:
    (clip,) = clips_of_file(counted("uniform", 5), [0.0, 0.5, 1.0])
    assert clip.features.ravel().tolist() == [0, 0, 1, 1, 2]


def test_spread_clip_covers_the_time_of_its_frames() -> None:
    (clip,) = clips_of_file(counted("uniform"), [n / 10 for n in range(100)])
    assert (clip.start_seconds, clip.end_seconds) == (0.0, 7.5)


def test_spread_sampler_is_done_before_the_frames_that_no_slot_takes() -> None:
    sampler = IndexSampler(4, 100)
    taken = [number for number in range(100) if not sampler.done and sampler.sample(0.0).slots]
    assert taken == [0, 25, 50, 75]
    assert sampler.done


def test_gap_does_not_restart_a_clip_that_counts_frames() -> None:
    sampler = IndexSampler(3, 3)
    assert not any(sampler.sample(seconds).restart for seconds in (0.0, 1000.0, 2000.0))


@pytest.mark.parametrize("sampling", ["rate", "first", "uniform"])
def test_empty_file_has_no_clip_however_it_is_sampled(sampling: Literal["first", "uniform"]) -> None:
    assert clips_of_file(counted(sampling), []) == []


@pytest.mark.parametrize(("padding", "behind"), [("mask", 0), ("repeat_last", 7)])
def test_padding_keeps_shape_and_type_of_frames(padding: Literal["mask", "repeat_last"], behind: int) -> None:
    frames = np.full((2, 3, 2, 3), 7, np.uint8)
    full = padded(frames, replace(CLIP, padding=padding))
    assert (full.shape, str(full.dtype)) == ((4, 3, 2, 3), "uint8")
    assert (full[:2] == 7).all()
    assert (full[2:] == behind).all()
