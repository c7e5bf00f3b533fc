from __future__ import annotations

import numpy as np
import pytest

from edgeclf.clips import Clip, ClipAssembler, ClipSchedule, ClipWindow, RateSampler
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
