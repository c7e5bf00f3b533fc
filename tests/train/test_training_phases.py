"""In which phases a model is fitted, and what each of them may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.dataset import Dataset
from edgeclf.model_directory import open_keras_model
from edgeclf.specs import ClipSpec
from edgeclf.train import fit as fitting
from edgeclf.train import training
from edgeclf.train.augment import Augmentation
from edgeclf.train.evaluation import evaluate
from edgeclf.train.examples import ClipExamples, feeds_of
from edgeclf.train.features import VideoFeatures, joined_pictures
from edgeclf.train.fit import FitSettings
from edgeclf.train.outcome import train_model
from edgeclf.train.overrides import with_overrides
from edgeclf.train.recipe import FineTuning
from edgeclf.train.training import standardise
from tests.support.training import ONE_THREAD, Told, picture_dataset, tiny_recipe, trained

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("tiny_networks")]


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
def test_drawn_clips_are_as_long_as_clips_and_each_picture_is_extracted_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    joined: list[tuple[int, int]] = []
    pictures: set[Path] = set()
    rows: list[Any] = []

    def kept(clips: Any, *rest: Any) -> Any:
        made = joined_pictures(clips, *rest)
        joined.extend((len(clip.images), len(video.rows)) for clip, video in zip(clips, made, strict=True))
        rows.extend(video.rows for video in made)
        pictures.update(path for clip in clips for path in clip.images)
        return made

    monkeypatch.setattr(training, "joined_pictures", kept)
    told, recipe = Told(), tiny_recipe("faces-lstm", clip={"length": length}, drawn_clips=7)
    trained(recipe, picture_dataset(tmp_path), cache, told)
    assert joined == [(length, length)] * (3 * 7 * recipe.views)
    assert {f"{task} of {len(pictures)}" for task in ("features", "features, view 1")} <= set(told.steps)
    first, second = np.concatenate(rows[: len(rows) // 2]), np.concatenate(rows[len(rows) // 2 :])
    assert (first != second).any(axis=1).mean() > 0.9, "the second view is changed"


def test_drawn_picture_that_cannot_be_read_is_told_once_and_does_no_harm(cache: Path, tmp_path: Path) -> None:
    pictures, told = picture_dataset(tmp_path), Told()
    bad = next(clip for clip in pictures.clips if clip.split == "train").images[3]
    bad.write_bytes(b"no picture")
    model = trained(tiny_recipe("faces-lstm", drawn_clips=9), pictures, cache, told)
    assert len([line for line in told.said if line.startswith(f"not wholly read: {bad}: none of its")]) == 1
    assert all(np.isfinite(weight).all() for weight in model.classifier.get_weights())


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
