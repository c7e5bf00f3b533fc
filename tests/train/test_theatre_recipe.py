"""The theatre recipe in small: what is rendered, what is learned from it, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.model_directory import read_description, read_parity
from edgeclf.theatre import ACTIONS, Scene, single_action
from edgeclf.train import theatre_recipe
from edgeclf.train.theatre_recipe import (
    CLIP,
    PREPROCESS,
    RenderedClips,
    Split,
    TheatreSettings,
    _pose_target,
    _shuffled,
    render_clips,
    train_theatre,
)
from tests.support.labelled import require_keras

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.fixture(scope="module")
def rendered() -> RenderedClips:
    return render_clips(len(ACTIONS), "train")


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """Every scene that is rendered while the test runs."""
    kept: list[Scene] = []

    def keeping(*arguments: Any, **options: Any) -> Scene:
        kept.append(single_action(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr(theatre_recipe, "single_action", keeping)
    return kept


# -- rendering --------------------------------------------------------------------------------------------------------


def test_clips_are_full_and_as_the_extractor_takes_them(rendered: RenderedClips) -> None:
    count = len(ACTIONS)
    assert rendered.frames.shape == (count, CLIP.length, *PREPROCESS.size, 3)
    assert rendered.frames.dtype == np.uint8
    assert rendered.lengths.tolist() == [CLIP.length] * count
    assert rendered.labels.tolist() == list(range(count))
    assert rendered.valid.all()
    assert all(clip.std() > 5 for clip in rendered.frames)


def test_rendering_is_the_same_with_any_number_of_workers(rendered: RenderedClips) -> None:
    again = render_clips(len(ACTIONS), "train", workers=1)
    for name in ("frames", "poses", "lengths", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rendered, name))


def test_more_clips_begin_with_the_same(rendered: RenderedClips) -> None:
    np.testing.assert_array_equal(render_clips(2, "train").frames, rendered.frames[:2])


def test_splits_share_no_scene_and_only_the_test_shows_unseen_looks(scenes: list[Scene]) -> None:
    made = {split: render_clips(4, split, workers=1).frames for split in SPLITS}
    assert [scene.look for scene in scenes] == ["seen"] * 8 + ["unseen"] * 4
    assert len({scene.seed for scene in scenes}) == 12
    assert not np.array_equal(made["train"], made["validation"])
    assert not np.array_equal(made["train"], made["test"])


def test_seeds_of_the_splits_are_apart_by_more_than_is_ever_rendered() -> None:
    settings = TheatreSettings()
    first = theatre_recipe._FIRST_SEED
    assert first["train"] + settings.train_clips < first["validation"]
    assert first["validation"] + settings.validation_clips < first["test"]


def test_poses_are_finite_of_like_size_and_move(rendered: RenderedClips) -> None:
    assert np.isfinite(rendered.poses).all()
    assert np.abs(rendered.poses).max() < 10
    moving = ACTIONS.index("fall")
    assert np.ptp(rendered.poses[moving], axis=0).max() > 0.3


def test_angles_of_a_pose_are_points_on_a_circle() -> None:
    target = np.array(_pose_target(single_action("walk", 3).pose(0.5)))
    np.testing.assert_allclose(target[0:10:2] ** 2 + target[1:10:2] ** 2, 1, atol=1e-9)


# -- what is changed in training --------------------------------------------------------------------------------------


def test_shuffling_keeps_the_frames_of_each_clip_and_what_lies_behind_them() -> None:
    features = np.arange(2 * CLIP.length, dtype=np.float32).reshape(2, CLIP.length, 1)
    lengths = np.array([CLIP.length, 7], np.int32)
    shuffled = _shuffled(features, lengths, np.random.default_rng(0))
    assert not np.array_equal(shuffled, features)
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), features)
    np.testing.assert_array_equal(shuffled[1, 7:], features[1, 7:])


# -- the whole recipe -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The model directory of a short training, and what was said."""
    require_keras()
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'edgeclf[dev]'")
    path = tmp_path_factory.mktemp("models") / "theatre"
    said: list[str] = []
    settings = TheatreSettings(
        train_clips=64, validation_clips=16, test_clips=16, pose_epochs=1, action_epochs=1, seed=3
    )
    train_theatre(path, settings, said.append)
    return path, said


@pytest.mark.keras
def test_training_writes_a_model_directory(trained: tuple[Path, list[str]]) -> None:
    path, _ = trained
    description = read_description(path)
    assert (description.name, description.recipe, description.labels) == ("theatre", "theatre", ACTIONS)
    assert (description.preprocess, description.clip) == (PREPROCESS, CLIP)
    assert description.provenance["seed"] == 3
    assert description.provenance["test"] == {"clips": 16, "looks": "unseen", "first_seed": 2_000_000}
    assert {file.name for file in path.iterdir()} == {
        "model.json",
        "extractor.keras",
        "classifier.keras",
        "parity.npz",
    }


@pytest.mark.keras
def test_parity_frames_are_validation_clips(trained: tuple[Path, list[str]]) -> None:
    parity = read_parity(trained[0])
    np.testing.assert_array_equal(parity.frames, render_clips(8, "validation").frames)
    assert parity.scores.shape == (8, len(ACTIONS))
    np.testing.assert_allclose(parity.scores.sum(1), 1, atol=1e-5)


@pytest.mark.keras
def test_evaluation_has_each_action_and_both_controls(trained: tuple[Path, list[str]]) -> None:
    evaluation = read_description(trained[0]).evaluation
    assert evaluation["test_clips"] == 16
    assert tuple(evaluation["per_label_accuracy"]) == ACTIONS
    assert np.mean(list(evaluation["per_label_accuracy"].values())) == pytest.approx(evaluation["accuracy"], abs=1e-3)
    controls = evaluation["controls"]
    assert set(controls) == {"mean_of_features_accuracy", "shuffled_frames_accuracy"}
    assert all(0 <= value <= 1 for value in (evaluation["accuracy"], *controls.values()))


@pytest.mark.keras
def test_training_says_what_it_does(trained: tuple[Path, list[str]]) -> None:
    said = "\n".join(trained[1])
    for part in ("rendering 64 clips", "poses, epoch 1/1: loss", "actions, best of 1 epochs is 1", "measuring on 16"):
        assert part in said


@pytest.mark.keras
def test_loop_takes_what_was_trained(trained: tuple[Path, list[str]]) -> None:
    from edgeclf.model_directory import open_keras_model
    from edgeclf.runtime.pipeline import LoopOptions, run_loop
    from edgeclf.runtime.records import Result

    model = open_keras_model(trained[0])
    records = list(run_loop(["synthetic://walk?seed=5"], model, LoopOptions(depth=0, workers=0)))
    (result,) = [record for record in records if isinstance(record, Result)]
    assert result.top_label in ACTIONS
