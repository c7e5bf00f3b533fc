"""What one pipeline promises for all recipes: what is fitted, what is left out, and what comes out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.dataset import Dataset, LabelledClip
from edgeclf.errors import DataError
from edgeclf.model_directory import load_keras, open_keras_model
from edgeclf.runtime.pipeline import LoopOptions
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.train import features, training
from edgeclf.train import fit as fitting
from edgeclf.train.augment import Augmentation
from edgeclf.train.evaluation import FAILED, evaluate
from edgeclf.train.examples import ClipExamples, feeds_of
from edgeclf.train.features import VideoFeatures
from edgeclf.train.fit import FitSettings
from edgeclf.train.outcome import train_model
from edgeclf.train.overrides import with_overrides
from edgeclf.train.recipe import FineTuning
from edgeclf.train.training import Trained, score, standardise, train_recipe, with_stream_form
from tests.support.labelled import COLORS, edgeclf, require_keras, write_csv
from tests.support.training import (
    Told,
    color_dataset,
    fit_without_graphs,
    picture_dataset,
    tiny_recipe,
    use_tiny_networks,
)

pytestmark = pytest.mark.keras

ONE_THREAD = LoopOptions(depth=0, workers=0, batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def tiny_networks() -> Iterator[None]:
    require_keras()
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_networks(patch)
        fit_without_graphs(patch)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return color_dataset(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trained(recipe: Any, dataset: Dataset, cache: Path, told: Told | None = None, **options: Any) -> Trained:
    parts = dataset.split("train"), dataset.split("validation")
    return train_recipe(recipe, *parts, dataset.labels, (told or Told()).workplace(cache, **options))


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


# -- standardised features --------------------------------------------------------------------------------------------


def videos_of(count: int) -> list[VideoFeatures]:
    """Videos of three to six frames, whose features are far from mean 0 and spread 1."""
    rng = np.random.default_rng(6)
    return [
        VideoFeatures(
            rng.gamma(2.0, [1.0, 10.0, 100.0], (frames, 3)).astype(np.float32),
            np.arange(frames) / 5,
            np.ones(frames, np.int32),
            np.zeros(frames, np.bool_),
        )
        for frames in rng.integers(3, 7, count)
    ]


def examples_of(model: Any, videos: list[VideoFeatures]) -> ClipExamples:
    clip = ClipSpec.by_rate(4, 5.0)
    return ClipExamples([videos], np.zeros(len(videos), np.int32), 2, clip, feeds_of(model), FitSettings())


def test_standardised_features_have_mean_0_and_spread_1_over_rows_that_there_are() -> None:
    import keras

    from edgeclf.train.classifiers import change_gru_classifier

    clip = ClipSpec.by_rate(6, 5.0)
    model = change_gru_classifier(6, 3, 2, units=3, narrow=4)
    examples = ClipExamples(
        [videos_of(20)], np.arange(20, dtype=np.int32) % 2, 2, clip, feeds_of(model), FitSettings(batch=7),
        training=True, augmentation=Augmentation(temporal_shift=True),
    )  # fmt: skip
    standardise(model, examples)
    output = keras.Model(model.input, model.get_layer("standardise").output)
    rows = [
        output(batch.inputs, training=False).numpy()[batch.inputs["mask"]]
        for batch in replace(examples, training=False).epoch(0)
    ]
    found = np.concatenate(rows).astype(np.float64)
    assert len(found) < 20 * 6, "there is padding"
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)
    spread = found.std(axis=0)
    assert (spread <= 1.001).all()
    assert (spread > 0.85).all(), "what varies is scaled to 1, but for the little that is added"


def test_feature_that_does_not_vary_is_not_blown_up() -> None:
    from edgeclf.train.classifiers import change_gru_classifier

    model = change_gru_classifier(4, 3, 2, units=3, narrow=4)
    still = VideoFeatures(np.ones((4, 3), np.float32), np.arange(4) / 5, np.ones(4, np.int32), np.zeros(4, np.bool_))
    standardise(model, examples_of(model, [still] * 4))
    layer = model.get_layer("standardise")
    assert (np.sqrt(layer.adapt_variance.numpy()) >= 0.019).all()


def test_network_without_that_layer_is_left_alone() -> None:
    from edgeclf.train.classifiers import gru_classifier

    model = gru_classifier(4, 3, 2, units=3)
    before = model.get_weights()
    standardise(model, examples_of(model, videos_of(2)))
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["lite0-gru", "lite0-motion"])
def test_trained_classifier_is_standardised_by_training_clips(dataset: Dataset, cache: Path, name: str) -> None:
    model = trained(tiny_recipe(name), dataset, cache)
    layer = model.classifier.get_layer("standardise")
    assert np.abs(layer.adapt_mean.numpy()).max() > 0.05
    np.testing.assert_allclose(np.ravel(layer.mean), layer.adapt_mean.numpy(), rtol=1e-5)


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


# -- phases -----------------------------------------------------------------------------------------------------------


def test_fine_tuning_moves_the_last_layers_of_the_extractor_only(dataset: Dataset, cache: Path) -> None:
    recipe = tiny_recipe("resnet50-lstm")
    before = {layer.name: layer.get_weights() for layer in recipe.build_extractor().layers}
    model = trained(recipe, dataset, cache)
    moved = {
        layer.name
        for layer in model.extractor.layers
        if any((now != was).any() for now, was in zip(layer.get_weights(), before[layer.name], strict=True))
    }
    assert moved == {"second"}
    assert list(model.phases) == ["classifier", "fine-tuning"]


def test_fine_tuned_extractor_gives_the_features_that_are_measured(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    tuning = FineTuning(last=2, settings=FitSettings(epochs=2, batch=3, learning_rate=0.1, patience=0))
    recipe = replace(tiny_recipe("resnet50-lstm"), fine_tuning=tuning)
    description = train_model(recipe, dataset, tmp_path / "m", "m", Told().workplace(cache))
    found = evaluate(open_keras_model(tmp_path / "m"), dataset.split("test"), options=ONE_THREAD).to_dict()
    assert found["calibration"] == pytest.approx(description.evaluation["test"]["calibration"], abs=1e-3)


def test_fine_tuning_that_makes_it_worse_changes_nothing(
    dataset: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, tuning = Told(), {"last": 2, "settings": {"epochs": 2, "learning_rate": 0.01}}
    losses = iter([0.3, 0.4, 0.5])
    original, recipe = fitting.measure, tiny_recipe("resnet50-lstm", fine_tuning=tuning)

    def worse(model: Any, batches: Any) -> dict[str, float]:
        found = original(model, batches)
        return {**found, "loss": next(losses)} if "frames" in model.input.name else found

    monkeypatch.setattr(fitting, "measure", worse)
    model = trained(recipe, dataset, cache, told)
    assert [row["val_loss"] for row in model.phases["fine-tuning"].history] == [0.4, 0.5]
    assert model.phases["fine-tuning"].best_epoch == 0
    for found, before in zip(model.extractor.get_weights(), recipe.build_extractor().get_weights(), strict=True):
        np.testing.assert_array_equal(found, before)
    assert "no epoch of fine-tuning has a lower validation loss: both stay as they were" in told.said


@pytest.mark.parametrize(
    ("changes", "on_maps"),
    [({}, True), ({"augmentation": {"flip": True}}, False), ({"fine_tuning": {"last": 2}}, False)],
    ids=["frozen layers run once", "pixels are augmented", "nothing is frozen"],
)
def test_what_does_not_change_is_computed_once_in_fine_tuning(
    dataset: Dataset, cache: Path, changes: dict[str, Any], on_maps: bool
) -> None:
    tuning = {"last": 1, "settings": {"epochs": 1, "batch": 4, "learning_rate": 0.01}}
    told = Told()
    recipe = with_overrides(tiny_recipe("lite0-gru", refit=False, fine_tuning=tuning), changes)
    model = trained(recipe, dataset, cache, told)
    assert list(model.phases) == ["classifier", "fine-tuning"]
    assert ("maps of 9" in told.steps, "frames of 9" in told.steps) == (on_maps, not on_maps)


def test_fine_tuning_on_maps_does_what_it_does_on_frames(
    dataset: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = {"last": 1, "settings": {"epochs": 2, "batch": 4, "learning_rate": 0.01}}
    recipe = tiny_recipe("lite0-gru", refit=False, fine_tuning=tuning)
    on_maps = trained(recipe, dataset, cache)
    monkeypatch.setattr(training, "split_at_trained", lambda model, _trained: (None, model))
    on_frames = trained(recipe, dataset, cache)
    before = recipe.build_extractor().get_layer("second").get_weights()[0]
    moved, expected = (model.extractor.get_layer("second").get_weights()[0] for model in (on_maps, on_frames))
    assert np.abs(moved - expected).mean() < 0.05 * np.abs(expected - before).mean()  # maps are kept as float16


def test_refitting_takes_validation_clips_too_for_as_many_epochs_as_were_best(
    dataset: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips: list[int] = []
    original = training._fit

    def kept(model: Any, train: ClipExamples, *rest: Any) -> Any:
        clips.append(len(train.labels))
        return original(model, train, *rest)

    monkeypatch.setattr(training, "_fit", kept)
    model = trained(tiny_recipe("inceptionv3-gru", refit=True, settings={"epochs": 3}), dataset, cache)
    assert clips == [6, 9]
    assert list(model.phases) == ["classifier", "refitted"]
    assert len(model.history) == len(model.measured_history) + len(model.phases["refitted"].history)
    assert [row["phase"] for row in model.history] == ["classifier"] * 3 + ["refitted"] * (len(model.history) - 3)
    without_phase = [{key: value for key, value in row.items() if key != "phase"} for row in model.history]
    assert list(model.measured_history) == without_phase[: len(model.phases["classifier"].history)]
    first, second = model.phases.values()
    assert len(second.history) == second.best_epoch == first.best_epoch
    assert [row["epoch"] for row in model.history] == [float(n + 1) for n in range(3 + first.best_epoch)]


def test_classifier_of_change_alone_ignores_the_first_half_of_the_features(dataset: Dataset, cache: Path) -> None:
    model = trained(tiny_recipe("lite0-motion", stream="change"), dataset, cache)
    rng = np.random.default_rng(1)
    clips = rng.random((3, 4, 12)).astype(np.float32)
    other = clips.copy()
    other[..., :6] = rng.random((3, 4, 6))
    mask = np.ones((3, 4), bool)
    scores = [model.classifier({"features": part, "mask": mask}, training=False).numpy() for part in (clips, other)]
    np.testing.assert_array_equal(*scores)
    both = trained(tiny_recipe("lite0-motion"), dataset, cache)
    scores = [both.classifier({"features": part, "mask": mask}, training=False).numpy() for part in (clips, other)]
    assert (scores[0] != scores[1]).any()


@pytest.mark.parametrize("length", [4, 6])
def test_clips_are_drawn_of_as_many_pictures_as_a_clip_has(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    seen: list[int] = []
    original = features.video_features

    def kept(clips: Any, *rest: Any, **options: Any) -> Any:
        seen.extend(len(clip.images) for clip in clips if clip.split == "train" and "draw" in clip.name)
        return original(clips, *rest, **options)

    monkeypatch.setattr(training, "video_features", kept)
    trained(tiny_recipe("faces-lstm", clip={"length": length}, drawn_clips=2), picture_dataset(tmp_path), cache)
    assert set(seen) == {length}


def test_views_are_made_once_and_kept(dataset: Dataset, cache: Path) -> None:
    recipe = tiny_recipe("inceptionv3-gru", views=3, augmentation={"flip": True, "crop": 0.2})
    told = Told()
    trained(recipe, dataset, cache, told)
    assert {"features, view 1 of 6": 6, "features, view 2 of 6": 6}.items() <= told.steps.items()


@pytest.mark.parametrize("sampling", ["first", "uniform"])
def test_pictures_are_evaluated_as_they_were_in_training(cache: Path, tmp_path: Path, sampling: Any) -> None:
    recipe = tiny_recipe("vgg16-lstm")
    recipe = replace(recipe, clip=replace(recipe.clip, sampling=sampling))
    pictures = picture_dataset(tmp_path)
    description = train_model(recipe, pictures, tmp_path / "m", "m", Told().workplace(cache))
    found = evaluate(open_keras_model(tmp_path / "m"), pictures.split("test"), options=ONE_THREAD)
    assert found.to_dict()["confusion"] == description.evaluation["test"]["confusion"]


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
