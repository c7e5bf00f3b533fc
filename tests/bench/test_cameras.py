"""Simulated cameras keep to their plan on any clock, and a show begins and ends them together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

from edgeclf.bench.cameras import CameraPlan, PacedCamera, Pictures, Show, decoded_again, in_memory, labels_due
from edgeclf.errors import VideoError
from edgeclf.specs import ClipSpec
from edgeclf.video import Frame, RgbImage, is_live
from tests.support.videos import BLUE, RED, plain, write_video


class FakeTime:
    """A clock that goes on only while somebody waits; decoding a picture can take time too."""

    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def pictures(count: int = 3) -> Pictures:
    def image(number: int) -> RgbImage:
        return np.full((2, 2, 3), number, np.uint8)

    return lambda: cycle([Frame(0.0, lambda n=n: image(n)) for n in range(count)])  # type: ignore[misc]


def camera(plan: CameraPlan, time: FakeTime, show: Show, *, lead_seconds: float = 0.0) -> PacedCamera:
    return PacedCamera("a", pictures(), plan, show, lead_seconds=lead_seconds, clock=time.read, wait=time.wait)


def begun(seconds: float = 1e9) -> Show:
    show = Show(["a"], seconds)
    show.join("a", 100.0)
    return show


def stamps(plan: CameraPlan, count: int) -> list[tuple[float, float]]:
    return [(round(a.due_seconds, 6), round(a.pts_seconds, 6)) for a in islice(plan.arrivals(), count)]


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_pictures_come_evenly_by_default() -> None:
    assert stamps(CameraPlan(fps=10), 3) == [(0.0, 0.0), (0.1, 0.1), (0.2, 0.2)]


def test_jitter_is_the_same_for_one_seed_and_another_for_another() -> None:
    first, second, other = (stamps(CameraPlan(fps=10, jitter_seconds=0.05, seed=n), 200) for n in (1, 1, 2))
    assert first == second != other
    late = [due - pts for due, pts in first]
    assert min(late) >= 0
    assert 0.04 < max(late) <= 0.05


def test_no_picture_overtakes_the_one_before_it() -> None:
    plan = CameraPlan(fps=100, jitter_seconds=0.5, key_interval=7, key_pause_seconds=0.3)
    dues = [due for due, _ in stamps(plan, 300)]
    assert dues == sorted(dues)


def test_key_picture_is_late_and_what_follows_comes_in_a_burst() -> None:
    plan = CameraPlan(fps=10, key_interval=3, key_pause_seconds=0.25)
    assert stamps(plan, 6) == [(0.0, 0.0), (0.1, 0.1), (0.45, 0.2), (0.45, 0.3), (0.45, 0.4), (0.75, 0.5)]


def test_disconnected_camera_sends_nothing_and_its_clock_goes_on() -> None:
    plan = CameraPlan(fps=10, outage_every_seconds=1.0, outage_seconds=0.75)
    assert [pts for _, pts in stamps(plan, 5)] == [0.0, 0.1, 0.2, 1.0, 1.1]


def test_outage_that_empties_the_clip_owes_no_label_until_it_is_full_again() -> None:
    clip = ClipSpec(length=10, rate=5.0, hop_seconds=0.2, stale_seconds=1.0)
    lead = clip.seconds + 1 / clip.rate
    steady, gone = CameraPlan(fps=25), CameraPlan(fps=25, outage_every_seconds=4.0, outage_seconds=1.5)
    short = CameraPlan(fps=25, outage_every_seconds=4.0, outage_seconds=0.79)
    assert labels_due(steady, clip, lead, 0, 12) == 60
    assert labels_due(steady, clip, lead, 4, 12) == 40
    assert labels_due(gone, clip, lead, 0, 12) == 13 + 4 + 4, "of 13 slots behind each outage 9 only fill the clip"
    assert labels_due(short, clip, lead, 0, 12) == 51, "the clip stays; slots of the outage are filled by what follows"


@pytest.mark.parametrize(("fps", "due"), [(2.0, 20), (5.0, 50), (25.0, 50)])
def test_slow_camera_owes_no_more_than_it_shows(fps: float, due: int) -> None:
    clip = ClipSpec(length=10, rate=5.0, hop_seconds=0.2, stale_seconds=1.0)
    assert labels_due(CameraPlan(fps=fps), clip, clip.seconds + 0.2, 1.0, 11.0) == due


# -- the camera -------------------------------------------------------------------------------------------------------


def test_pictures_are_shown_when_they_come_and_carry_their_arrival() -> None:
    time = FakeTime()
    seen = [(time.now, frame) for frame in islice(camera(CameraPlan(fps=10), time, begun()).frames(), 4)]
    assert [now for now, _ in seen] == pytest.approx([100.0, 100.1, 100.2, 100.3])
    assert [frame.arrival for _, frame in seen] == pytest.approx([100.0, 100.1, 100.2, 100.3])
    assert [frame.pts_seconds for _, frame in seen] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [int(frame.image[0, 0, 0]) for _, frame in seen] == [0, 1, 2, 0]


def test_pictures_that_nobody_took_in_time_have_come_meanwhile() -> None:
    time = FakeTime()
    frames = camera(CameraPlan(fps=10), time, begun()).frames()
    next(frames)
    time.now += 0.35
    late = [next(frames) for _ in range(3)]
    assert time.now == pytest.approx(100.35)
    assert [frame.arrival for frame in late] == pytest.approx([100.1, 100.2, 100.3])


def test_lead_is_not_live_and_time_goes_on_behind_it() -> None:
    time, show = FakeTime(), Show(["a"], 1e9)
    frames = camera(CameraPlan(fps=10), time, show, lead_seconds=0.3).frames()
    lead = [next(frames) for _ in range(3)]
    assert [frame.arrival for frame in lead] == [None] * 3
    assert time.now == 100.0
    show.join("a", 100.0)
    first = next(frames)
    assert first.pts_seconds == pytest.approx(0.3)
    assert first.arrival == 100.0


def test_camera_waits_for_the_others_and_its_waiting_is_known() -> None:
    time, show = FakeTime(), Show(["a", "b"], 1e9)
    show.join("a", time.now)
    one = camera(CameraPlan(fps=10), time, show)

    def wait(seconds: float) -> None:
        time.wait(seconds)
        if time.now > 101.0:
            show.join("b", time.now)

    one._wait = wait
    first = next(one.frames())
    assert first.arrival is not None
    assert first.arrival > 101.0


def test_show_ends_all_cameras_and_counts_only_what_comes_after_settling() -> None:
    time = FakeTime()
    show = Show(["a"], 2.0, settle_seconds=1.0)
    show.join("a", time.now)
    frames = list(camera(CameraPlan(fps=10), time, show).frames())
    assert len(frames) == 30
    assert [show.is_measured(moment) for moment in (100.9, 101.0, 102.9, 103.0)] == [False, True, True, False]
    assert show.position(102.0) == pytest.approx(0.5)


def test_stopped_show_ends_a_camera_that_waits_for_others() -> None:
    time, show = FakeTime(), Show(["a", "never"], 1.0)
    one = camera(CameraPlan(), time, show)
    one._wait = lambda _: show.stop()
    assert list(one.frames()) == []


def test_closed_camera_ends() -> None:
    time = FakeTime()
    one = camera(CameraPlan(), time, begun())
    frames = one.frames()
    next(frames)
    one.close()
    assert list(frames) == []


def test_loop_takes_a_camera_for_live() -> None:
    assert is_live(camera(CameraPlan(), FakeTime(), begun()))


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    images = plain(RED, 0.3, fps=10) + plain(BLUE, 0.2, fps=10)
    return str(write_video(tmp_path_factory.mktemp("videos") / "short.avi", images, fps=10))


def reds(frames: Iterator[Frame | None], count: int) -> list[bool | None]:
    """Whether each picture is red; None where none comes."""
    return [None if frame is None else bool(frame.image[..., 0].mean() > 100) for frame in islice(frames, count)]


def test_decoded_video_starts_again_at_its_end_without_its_first_picture(video: str) -> None:
    again = [None, True, True, False, False]
    assert reds(decoded_again(video), 14) == [True, True, True, False, False, *again, *again[:4]]


def test_video_of_one_picture_is_shown_each_time(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "one.avi", plain(RED, 0.1, fps=10), fps=10))
    assert reds(decoded_again(video), 3) == [True] * 3


def test_picture_that_does_not_come_is_left_out_and_the_next_is_on_time() -> None:
    time = FakeTime()
    shown = next(pictures()())
    paced = PacedCamera(
        "a", lambda: iter([shown, None, shown, shown]), CameraPlan(fps=10), begun(0.4), clock=time.read, wait=time.wait
    )
    seen = list(paced.frames())
    assert [frame.pts_seconds for frame in seen] == pytest.approx([0.0, 0.2, 0.3])
    assert [frame.arrival for frame in seen] == pytest.approx([100.0, 100.2, 100.3])


def test_pictures_in_memory_are_bounded_and_shared(video: str) -> None:
    shown = in_memory(video, most=4)
    assert reds(shown(), 6) == [True] * 3 + [False] + [True] * 2
    assert reds(shown(), 1) == [True]
    few = in_memory(video, most_bytes=2 * 48 * 64 * 3)
    images = [frame.image for frame in islice(few(), 3) if frame]
    assert images[2] is images[0], "two fill the bytes that are allowed"


@pytest.mark.parametrize("read", [in_memory, lambda source: next(decoded_again(source))], ids=["memory", "decoded"])
def test_source_that_cannot_be_read_is_an_error(read: object, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.avi does not exist"):
        read(str(tmp_path / "none.avi"))  # type: ignore[operator]


def test_camera_that_is_behind_the_others_carries_the_same_times() -> None:
    plain, behind = (list(islice(CameraPlan(fps=10, phase_seconds=phase).arrivals(), 4)) for phase in (0.0, 0.07))
    assert [arrival.pts_seconds for arrival in behind] == [arrival.pts_seconds for arrival in plain]
    assert [arrival.due_seconds for arrival in behind] == pytest.approx([0.07, 0.17, 0.27, 0.37])
