"""The theatre: what its scenes promise to training, to tests and to whoever watches the demo."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from edgeclf.errors import VideoError
from edgeclf.video import open_video

pytest.importorskip("cv2", reason="OpenCV is not installed")

from edgeclf import theatre
from edgeclf.theatre import ACTIONS, FRAME_RATES, LOOKS, Scene, play, single_action
from edgeclf.theatre_figure import BACKWARDS, PARTS, WAVES_PER_SECOND, Pose, capsules, draw_figure, draw_manner, waving
from edgeclf.theatre_looks import HUES, LookFamily, draw_look

SEEDS = range(12)


def times(scene: Scene) -> list[float]:
    return [index / scene.fps for index in range(scene.frame_count)]


def difference(a: Pose, b: Pose) -> float:
    return float(np.abs(np.subtract(a, b)).max())


@pytest.mark.parametrize("look", LOOKS)
def test_picture_depends_on_scene_and_index_alone(look: LookFamily) -> None:
    scene = single_action("fall", 3, look=look)
    forwards = [scene.render(index) for index in range(scene.frame_count)]
    theatre._stage.cache_clear()
    again = single_action("fall", 3, look=look)
    backwards = [again.render(index) for index in reversed(range(scene.frame_count))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_picture_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from edgeclf.theatre import single_action;"
        "print(hashlib.sha256(single_action('walk', 5).render(7).tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(single_action("walk", 5).render(7).tobytes()).hexdigest()


def test_caller_may_paint_over_a_picture() -> None:
    scene = single_action("still", 1)
    first = scene.render(0)
    copy = first.copy()
    first[:] = 0
    assert np.array_equal(scene.render(0), copy)


@pytest.mark.parametrize(("action", "partner"), BACKWARDS.items())
@pytest.mark.parametrize("seed", SEEDS)
def test_partner_goes_through_the_same_poses_backwards(action: str, partner: str, seed: int) -> None:
    scene, other = single_action(action, seed), single_action(partner, seed)
    assert scene.frame_count == other.frame_count
    backwards = [other.pose(t) for t in reversed(times(other))]
    assert max(difference(scene.pose(t), b) for t, b in zip(times(scene), backwards, strict=True)) < 1e-9
    assert difference(scene.pose(0), scene.pose(times(scene)[-1])) > 0.1


@pytest.mark.parametrize("action", ["sit_down", "fall"])
def test_changes_of_posture_lie_as_often_before_the_middle_as_after(action: str) -> None:
    scenes = [single_action(action, seed) for seed in range(400)]
    place = [scene.performances[0].centre / times(scene)[-1] for scene in scenes]
    assert 0.28 <= min(place) < 0.30
    assert 0.70 < max(place) <= 0.72
    assert np.mean(place) == pytest.approx(0.5, abs=0.02)


def test_waves_share_their_poses_and_differ_in_tempo() -> None:
    slow, fast = single_action("wave_slow", 4), single_action("wave_fast", 4)
    a, b = slow.performances[0], fast.performances[0]
    assert (a.manner, a.start, a.end, slow.figure) == (b.manner, b.start, b.end, fast.figure)
    cycles = np.linspace(0, 1, 200)
    poses = [waving(slow.figure, a.manner, float(c)) for c in cycles]
    engaged = [t for t in times(fast) if a.start + 0.4 < t < a.end - 0.4]
    breath = 3.0
    assert engaged
    assert all(min(difference(fast.pose(t), pose) for pose in poses) < breath for t in engaged)
    assert all(min(difference(slow.pose(t), pose) for pose in poses) < breath for t in engaged)


def test_tempos_do_not_overlap_and_show_at_ten_pictures_a_second() -> None:
    assert 2 * WAVES_PER_SECOND["wave_slow"][1] < WAVES_PER_SECOND["wave_fast"][0]
    assert WAVES_PER_SECOND["wave_fast"][1] < 10 / 4


def test_still_stands_sits_and_lies() -> None:
    scenes = [single_action("still", seed) for seed in range(60)]
    assert {scene.performances[0].manner.posture for scene in scenes} == {"standing", "sitting", "lying"}
    moved = [difference(scene.pose(0), scene.pose(1)) for scene in scenes]
    assert max(moved) < 6  # degrees of an arm: breathing


def test_no_part_of_the_figure_is_under_the_floor() -> None:
    lowest = [
        float(capsules(scene.figure, scene.pose(t))[:, 1:4:2].min())
        for scene in (single_action(action, seed) for action in ACTIONS for seed in range(3))
        for t in times(scene)[::4]
    ]
    assert min(lowest) > 0.0


@pytest.mark.parametrize("action", ACTIONS)
def test_scene_is_as_declared(action: str) -> None:
    scene = single_action(action, 2, size=(96, 128), fps=25)
    picture = scene.render(scene.frame_count - 1)
    assert picture.shape == (96, 128, 3)
    assert picture.dtype == np.uint8
    assert (scene.frame_count - 1) / scene.fps >= theatre.CLIP_SECONDS - 1e-9
    assert [(act.action, act.start_seconds, act.end_seconds) for act in scene.acts] == [
        (action, 0.0, scene.duration_seconds)
    ]


def test_every_frame_rate_is_drawn() -> None:
    assert {single_action("walk", seed).fps for seed in range(150)} == set(FRAME_RATES)


def test_scenes_of_one_seed_share_rate_figure_and_place() -> None:
    scenes = [single_action(action, 9) for action in ACTIONS]
    assert len({(scene.fps, scene.frame_count, scene.figure) for scene in scenes}) == 1


@pytest.mark.parametrize("look", LOOKS)
def test_looks_draw_hues_of_their_family(look: LookFamily) -> None:
    for seed in range(50):
        drawn = draw_look(look, np.random.default_rng(seed))
        for hue, _, _ in (drawn.wall, drawn.floor, drawn.chair, drawn.shirt, drawn.trousers, drawn.shoes):
            assert any(low <= hue <= high for low, high in HUES[look])


def test_families_share_no_hue() -> None:
    arcs = sorted(arc for arcs in HUES.values() for arc in arcs)
    assert all(end < start for (_, end), (start, _) in pairwise(arcs))


def test_families_look_different() -> None:
    seen, unseen = (single_action("walk", 1, look=look).render(0) for look in LOOKS)
    assert np.abs(seen.astype(int) - unseen).mean() > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_play_is_covered_by_its_acts(seed: int) -> None:
    scene = play(seed)
    assert scene.acts[0].start_seconds == 0
    assert scene.acts[-1].end_seconds == scene.duration_seconds
    assert all(a.end_seconds == b.start_seconds and a.action != b.action for a, b in pairwise(scene.acts))
    assert {act.action for act in scene.acts} == set(ACTIONS)
    assert 20 <= scene.duration_seconds <= 32


@pytest.mark.parametrize("seed", SEEDS)
def test_poses_of_a_play_join_up(seed: int) -> None:
    scene = play(seed)
    for before, after in pairwise(scene.performances):
        assert difference(before.pose(scene.figure, before.end), after.pose(scene.figure, after.start)) < 1e-6


def test_play_goes_on_for_as_long_as_asked() -> None:
    assert play(1, seconds=70).duration_seconds >= 70


def test_capsules_name_every_part() -> None:
    rng = np.random.default_rng(0)
    figure, manner = draw_figure(rng), draw_manner(rng)
    assert capsules(figure, waving(figure, manner, 0.2)).shape == (len(PARTS), 6)


def test_index_outside_the_scene_is_an_error() -> None:
    scene = single_action("still", 0)
    for index in (-1, scene.frame_count):
        with pytest.raises(IndexError):
            scene.render(index)


def test_source_follows_the_scene() -> None:
    source = theatre.open_synthetic("synthetic://wave_fast?seed=3&fps=12.5&size=128x96&look=unseen")
    frames = list(source.frames())
    scene = single_action("wave_fast", 3, fps=12.5, size=(96, 128), look="unseen")
    assert source.scene == scene
    assert [frame.pts_seconds for frame in frames] == [index / 12.5 for index in range(scene.frame_count)]
    assert np.array_equal(frames[5].image, scene.render(5))
    assert source.dropped == {}


def test_source_is_found_by_its_scheme() -> None:
    source = open_video("synthetic://play?seed=1")
    assert source.name == "synthetic://play?seed=1"
    assert next(iter(source.frames())).pts_seconds == 0


def test_frames_are_rendered_only_when_their_image_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    monkeypatch.setattr(Scene, "render", lambda scene, index: rendered.append(index))
    frames = list(theatre.open_synthetic("synthetic://play?seed=1").frames())
    assert not rendered
    assert frames[4].image is None
    assert rendered == [4]


def test_closed_source_ends() -> None:
    source = theatre.open_synthetic("synthetic://walk")
    frames = source.frames()
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("synthetic://sitdown?seed=1", "known: .*sit_down.* or play"),
        ("synthetic://?seed=1", "known: "),
        ("synthetic://walk/fast", "known: "),
        ("synthetic://walk#1", "known: "),
        ("synthetic://[walk", "not a URL"),
        ("synthetic://walk?sede=1", "unknown parameter 'sede'; known: seed"),
        ("synthetic://walk?seed=1&seed=2", "given twice"),
        ("synthetic://walk?seed=-1", "seed=-1 cannot be used; a seed is a whole number"),
        ("synthetic://walk?seed=1.5", "whole number"),
        ("synthetic://walk?seed=", "whole number"),
        ("synthetic://walk?seed", "whole number"),
        ("synthetic://walk?look=other", "known: seen, unseen"),
        ("synthetic://walk?seconds=nan", "seconds nan is out of range"),
        ("synthetic://walk?seconds=0", "out of range"),
        ("synthetic://walk?fps=fast", "it is a number"),
        ("synthetic://walk?fps=1e9", "fps 1e\\+09 is out of range; it may be 1 to 240"),
        ("synthetic://walk?size=160", "WIDTHxHEIGHT"),
        ("synthetic://walk?size=9999x20", "out of range"),
        ("synthetic://walk?size=100x1000", "out of range"),
    ],
)
def test_url_that_means_nothing_is_an_error(url: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        theatre.open_synthetic(url)


def test_unknown_action_lists_the_known_ones() -> None:
    with pytest.raises(VideoError, match="unknown action 'jump'; known: fall, get_up"):
        single_action("jump", 0)


def test_negative_seed_is_an_error() -> None:
    with pytest.raises(VideoError, match="negative"):
        single_action("walk", -1)
    with pytest.raises(VideoError, match="negative"):
        play(-1)


@pytest.mark.parametrize("size", [(48, 48), (96, 48), (48, 192), (240, 320)])
def test_every_size_can_be_drawn(size: tuple[int, int]) -> None:
    for look in LOOKS:
        for seed in range(6):
            assert single_action("fall", seed, look=look, size=size).render(0).shape == (*size, 3)


def test_missing_opencv_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from edgeclf.errors import MissingExtraError\n"
        "from edgeclf.video import open_video\n"
        "try: open_video('synthetic://walk')\n"
        "except MissingExtraError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == 'OpenCV is not installed; pip install "edgeclf[cpu]"'
