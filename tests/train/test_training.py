"""What one pipeline promises for all recipes: what is fitted, what is left out, and what comes out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.dataset import Dataset, LabelledClip
from edgeclf.errors import DataError
from edgeclf.model_directory import load_keras, open_keras_model
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.train import features, training
from edgeclf.train import fit as fitting
from edgeclf.train.evaluation import FAILED, evaluate
from edgeclf.train.features import VideoFeatures
from edgeclf.train.fit import FitSettings
from edgeclf.train.outcome import train_model
from edgeclf.train.training import score, with_stream_form
from tests.support.labelled import COLORS, edgeclf, write_csv
from tests.support.training import ONE_THREAD, Told, fit_without_graphs, tiny_recipe, trained, use_tiny_networks

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("tiny_networks")]


def with_clips(dataset: Dataset, *more: LabelledClip) -> Dataset:
    return replace(dataset, clips=(*dataset.clips, *more))


# -- clips that cannot be read ----------------------------------------------------------------------------------------


def test_clip_that_cannot_be_read_is_told_left_out_and_wrong_in_the_test(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    bad = [
        LabelledClip(tmp_path / name, "red", f"bad {split}", split)
        for name, split in (("text.avi", "train"), ("none.avi", "validation"), ("gone.avi", "test"))
    ]
    told, recipe = Told(), tiny_recipe("inceptionv3-gru")
    description = train_model(recipe, with_clips(dataset, *bad), tmp_path / "m", "colours", told.workplace(cache))
    said = [line for line in told.said if line.startswith("not wholly read: ")]
    assert [any(clip.name in line for line in said) for clip in bad] == [True] * 3
    test = description.evaluation["test"]
    assert (test["clips"], test["failed"]) == (4, 1)
    assert test["accuracy"] <= 0.75
    assert sum(row[-1] for row in test["confusion"]) == 1
    expected = train_model(recipe, dataset, tmp_path / "n", "colours", Told().workplace(cache))
    assert description.evaluation["validation"] == expected.evaluation["validation"]
    for found, other in zip(
        load_keras(tmp_path / "m")[1].get_weights(), load_keras(tmp_path / "n")[1].get_weights(), strict=True
    ):
        np.testing.assert_array_equal(found, other)
    evaluated = evaluate(open_keras_model(tmp_path / "m"), with_clips(dataset, *bad).split("test"), options=ONE_THREAD)
    assert evaluated.found.count(FAILED) == 1
    assert evaluated.accuracy == test["accuracy"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_split_without_a_clip_that_can_be_read_is_refused(
    dataset: Dataset, cache: Path, tmp_path: Path, split: str
) -> None:
    clips = tuple(
        replace(clip, path=tmp_path / f"none_{clip.path.name}") if clip.split == split else clip
        for clip in dataset.clips
    )
    with pytest.raises(DataError, match="no clip can be read; check the paths of the data set"):
        train_model(
            tiny_recipe("inceptionv3-gru"), replace(dataset, clips=clips), tmp_path / "m", "m", Told().workplace(cache)
        )
    assert not (tmp_path / "m" / "model.json").exists()


# -- calibration ------------------------------------------------------------------------------------------------------


def test_temperature_is_folded_into_the_scores_and_thresholds_are_stored(
    dataset: Dataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[float] = []
    monkeypatch.setattr(training, "fit_temperature", lambda *_: 4.0)
    monkeypatch.setattr(training, "choose_thresholds", lambda *_: {"red": 0.25, "green": 0.0, "blue": 0.5})
    recipe = tiny_recipe("inceptionv3-gru", settings={"epochs": 4})
    soft = trained(recipe, dataset, cache)
    monkeypatch.setattr(training, "fold_temperature", lambda _, temperature: folded.append(temperature))
    plain = trained(recipe, dataset, cache)
    assert folded == [4.0]
    assert (soft.temperature, soft.thresholds) == (4.0, {"red": 0.25, "green": 0.0, "blue": 0.5})
    workplace = Told().workplace(cache)
    scores = [score(model, dataset.split("test"), workplace)[0].scores for model in (soft, plain)]
    expected = scores[1] ** 0.25
    np.testing.assert_allclose(scores[0], expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)
    _, untempered = score(soft, dataset.split("test"), workplace)
    np.testing.assert_allclose(untempered.scores, scores[1], rtol=1e-4)


def test_thresholds_are_chosen_on_the_scores_of_whole_videos(
    dataset: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that vote have scores between 0 and 1; their videos the share of votes, which is what is compared."""
    seen: list[Any] = []

    def keep(*given: Any) -> dict[str, float]:
        seen.append(given)
        return {}

    monkeypatch.setattr(training, "choose_thresholds", keep)
    model = trained(tiny_recipe("vgg16-vote"), dataset, cache)
    ((scores, truth, _),) = seen
    found, _ = score(model, dataset.split("validation"), Told().workplace(cache))
    np.testing.assert_array_equal(scores, found.scores)
    np.testing.assert_array_equal(truth, found.truth_indices)


def test_figures_of_validation_are_those_of_its_clips(dataset: Dataset, cache: Path) -> None:
    model = trained(tiny_recipe("inceptionv3-gru", settings={"epochs": 3}), dataset, cache)
    found, _ = score(model, dataset.split("validation"), Told().workplace(cache))
    truth = found.scores[np.arange(3), found.truth_indices]
    assert model.validation["loss"] == pytest.approx(-np.log(truth).mean(), abs=1e-3)
    assert model.validation["accuracy_of_clips"] == pytest.approx(found.accuracy, abs=1e-4)


# -- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inceptionv3-gru", "lite0-gru", "lite0-motion", "resnet50-lstm"])
def test_model_trained_in_half_precision_is_written_in_single(
    dataset: Dataset, cache: Path, tmp_path: Path, name: str
) -> None:
    """What is measured in training is what the written model finds."""
    workplace = Told().workplace(cache, precision="mixed_float16")
    description = train_model(tiny_recipe(name), dataset, tmp_path / "m", "colours", workplace)
    for model in load_keras(tmp_path / "m"):
        kinds = {weight.dtype for weight in model.get_weights()}
        assert kinds <= {np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64)}
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    import keras

    assert keras.config.dtype_policy().name == "float32", "other models are not changed"
    found = evaluate(open_keras_model(tmp_path / "m"), dataset.split("test"), options=ONE_THREAD).to_dict()
    expected = description.evaluation["test"]
    assert found["confusion"] == expected["confusion"]
    assert found["calibration"] == pytest.approx(expected["calibration"], abs=1e-3)


def test_half_precision_loss_is_scaled_wherever_layers_compute_in_it(
    dataset: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers: list[str] = []
    compiled = fitting._compile

    def compile_and_keep(model: Any, settings: FitSettings) -> None:
        compiled(model, settings)
        optimizers.append(type(model.optimizer).__name__)

    monkeypatch.setattr(fitting, "_compile", compile_and_keep)
    for name in ("inceptionv3-gru", "lite0-motion", "resnet50-lstm"):
        trained(tiny_recipe(name, settings={"epochs": 1}), dataset, cache, precision="mixed_float16")
    assert optimizers == ["LossScaleOptimizer"] * 5, "the second recipe is fitted twice, the third fine-tuned"


# -- how clips are cut from a stream ----------------------------------------------------------------------------------


def timed(times: list[float], slots: list[int] | None = None) -> VideoFeatures:
    count = len(times)
    return VideoFeatures(
        np.zeros((count, 3), np.float32),
        np.array(times),
        np.array(slots or [1] * count, np.int32),
        np.zeros(count, np.bool_),
    )


FIRST = ClipSpec(4, 25.0, 0.2, 1.0, sampling="first", padding="repeat_last")


def test_stream_form_has_the_median_rate_of_the_frames_that_were_taken() -> None:
    videos = [timed([n / fps for n in range(4)]) for fps in (10, 30, 12.5)]
    clip = with_stream_form(FIRST, videos)
    assert (clip.rate, clip.sampling, clip.padding, clip.length) == (12.5, "first", "repeat_last", 4)
    assert clip.seconds == pytest.approx(0.32)
    assert clip.hop_seconds == pytest.approx(0.08)


def test_frame_of_several_slots_counts_as_often() -> None:
    spread = replace(FIRST, sampling="uniform")
    assert with_stream_form(spread, [timed([0.0, 1.0], [2, 2])]).rate == 3.0


def test_stream_form_of_clips_that_are_cut_by_time_is_their_own() -> None:
    clip = ClipSpec.by_rate(4, 5.0)
    assert with_stream_form(clip, [timed([0.0, 9.0])]) == clip


@pytest.mark.parametrize("videos", [[], [timed([])], [timed([0.0])], [timed([0.0, 0.0])]], ids=len)
def test_videos_without_two_times_leave_the_rate_of_the_recipe(videos: list[VideoFeatures]) -> None:
    assert with_stream_form(FIRST, videos).rate == 25.0


# -- killed and taken up again ----------------------------------------------------------------------------------------


def weights_of(path: Path) -> list[Any]:
    extractor, classifier = load_keras(path)
    return [*(extractor.get_weights() if extractor is not None else ()), *classifier.get_weights()]


def test_settings_that_are_changed_after_a_kill_begin_anew(
    dataset: Dataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier was finished and fine-tuning was begun; then other settings are given."""
    monkeypatch.setattr(training, "_fine_tuned", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_model(tiny_recipe("resnet50-lstm"), dataset, tmp_path / "m", "m", Told().workplace(cache))
    monkeypatch.undo()
    other = tiny_recipe("resnet50-lstm", settings={"learning_rate": 0.1})
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_networks(patch)
        fit_without_graphs(patch)
        train_model(other, dataset, tmp_path / "m", "m", Told().workplace(cache))
    assert (tmp_path / "m" / "model.json").is_file()
    assert not (tmp_path / "m" / "training").exists()


CHILD = """
import os, signal, sys
import pytest
from edgeclf.train import fit
from edgeclf.train.examples import ClipExamples
from tests.support.training import use_tiny_networks

use_tiny_networks(pytest.MonkeyPatch())
fit._SECONDS_BETWEEN_CHECKPOINTS = 0.0
epoch = ClipExamples.epoch

def killing(self, number):
    for position, batch in enumerate(epoch(self, number)):
        if self.training and number == int(os.environ["KILLED_IN_EPOCH"]) and position == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

ClipExamples.epoch = killing
from edgeclf.cli import main
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_command_goes_on_to_the_same_bits(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    root = tmp_path
    data = write_csv(
        root / "clips.csv", [[str(clip.path), clip.label, clip.group, clip.split] for clip in dataset.clips]
    )

    said: list[str] = []

    def command(output: str, killed_in: int) -> int:
        options = ["--epochs", "4", "--batch", "3", "--length", "4", "--cache", str(cache)]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, "train", "lite0-gru", str(data), "-o", str(root / output), *options],
            env={**os.environ, "KILLED_IN_EPOCH": str(killed_in), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        said.append(done.stderr)
        return done.returncode

    assert command("whole", -1) == 0
    assert command("killed", 2) == -signal.SIGKILL
    assert [path.name for path in (root / "killed" / "training" / "classifier").glob("epoch-*")] == ["epoch-0002"]
    assert not (root / "killed" / "model.json").exists()
    run_before = (root / "killed" / "training" / "classifier" / "log.csv").read_text().splitlines()
    assert command("killed", -1) == 0
    run = (root / "killed" / "log.csv").read_text().replace(",phase,", ",").replace(",classifier,", ",").splitlines()
    assert run[:3] == run_before, "with the seconds it took then"
    assert "is not taken up" not in said[-1]
    for found, expected in zip(weights_of(root / "killed"), weights_of(root / "whole"), strict=True):
        np.testing.assert_array_equal(found, expected)
    logs = [(root / name / "log.csv").read_text().splitlines() for name in ("killed", "whole")]
    assert [row.rsplit(",", 1)[0] for row in logs[0]] == [row.rsplit(",", 1)[0] for row in logs[1]]
    assert not (root / "killed" / "training").exists()


# -- the model directory ----------------------------------------------------------------------------------------------


def test_test_split_may_be_missing(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    without = replace(dataset, clips=tuple(clip for clip in dataset.clips if clip.split != "test"))
    description = train_model(tiny_recipe("inceptionv3-gru"), without, tmp_path / "m", "m", Told().workplace(cache))
    assert set(description.evaluation) == {"validation"}
    assert not (tmp_path / "m" / "report").exists()


def test_test_clips_are_read_after_all_choices_were_made(
    dataset: Dataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[str]] = []

    def kept(clips: Any, *rest: Any, **options: Any) -> Any:
        read.append({clip.split for clip in clips})
        return original(clips, *rest, **options)

    original = features.video_features
    monkeypatch.setattr(training, "video_features", kept)
    train_model(tiny_recipe("inceptionv3-gru"), dataset, tmp_path / "m", "m", Told().workplace(cache))
    assert read == [{"train"}, {"validation"}, {"test"}]


def test_evaluate_command_finds_what_training_found(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    import json

    description = train_model(tiny_recipe("vgg16-vote"), dataset, tmp_path / "m", "m", Told().workplace(cache))
    data = write_csv(tmp_path / "clips.csv", [[str(c.path), c.label, c.group, c.split] for c in dataset.clips])
    done = edgeclf("evaluate", tmp_path / "m", data, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["confusion"] == description.evaluation["test"]["confusion"]
    assert set(json.loads(done.stdout)["classes"]) == set(COLORS)


def test_figures_measured_before_and_words_about_it_are_kept(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    description = train_model(
        tiny_recipe("inceptionv3-gru"),
        dataset,
        tmp_path / "m",
        "m",
        Told().workplace(cache),
        about={"summary": "colours"},
        evaluation={"cross_validation": {"accuracy": 0.5}},
    )
    assert description.provenance["summary"] == "colours"
    assert description.evaluation["cross_validation"] == {"accuracy": 0.5}
    assert description.preprocess == PreprocessSpec((12, 12))
