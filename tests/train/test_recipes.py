"""What recipes are made of, and that each of them trains from clips to a model directory that evaluates the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.dataset import Dataset
from edgeclf.errors import DataError
from edgeclf.model_directory import ModelDescription, load_keras, open_keras_model, read_description, read_parity
from edgeclf.train.evaluation import evaluate
from edgeclf.train.outcome import train_model
from edgeclf.train.recipe import RECIPES, Recipe
from tests.support.labelled import require_keras
from tests.support.training import (
    ONE_THREAD,
    SIZE,
    Told,
    fit_without_graphs,
    picture_dataset,
    tiny_recipe,
    use_tiny_networks,
)

NAMES = tuple(RECIPES)


# -- what they say ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_recipe_has_its_name_and_says_where_it_is_from(name: str) -> None:
    recipe = RECIPES.load(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.source
    assert recipe.preprocess.size[0] >= 48


@pytest.mark.parametrize(
    ("name", "clip", "aggregate"),
    [
        ("inceptionv3-gru", (20, "first", "mask"), "first"),
        ("vgg16-lstm", (20, "uniform", "repeat_last"), "first"),
        ("vgg16-vote", (1, "rate", "repeat_last"), "vote"),
        ("conv3d", (10, "first", "repeat_last"), "first"),
        ("lite0-gru", (40, "rate", "mask"), "mean"),
    ],
)
def test_published_recipes_take_the_frames_that_were_published(
    name: str, clip: tuple[Any, ...], aggregate: str
) -> None:
    recipe = RECIPES.load(name)
    assert (recipe.clip.length, recipe.clip.sampling, recipe.clip.padding) == clip
    assert recipe.aggregate == aggregate


def test_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(DataError, match="unknown recipe 'nothing'; known: lite0-gru, lite0-motion"):
        RECIPES.load("nothing")


def test_recipe_has_a_classifier_or_a_network() -> None:
    lite0, conv3d = RECIPES.load("lite0-gru"), RECIPES.load("conv3d")
    with pytest.raises(ValueError, match="must have a classifier of features or a network, not both"):
        replace(lite0, classifier=None)
    with pytest.raises(ValueError, match="must have a classifier of features or a network, not both"):
        replace(lite0, network=conv3d.network)


def test_motion_stacks_two_pictures_and_has_twice_the_features() -> None:
    recipe = RECIPES.load("lite0-motion")
    assert (recipe.preprocess.stack, recipe.preprocess.stack_seconds) == (2, recipe.stack_seconds)
    assert recipe.feature_size == 2 * replace(recipe, motion=False).feature_size
    assert replace(recipe, motion=False).preprocess.stack == 1


# -- trained end to end -----------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A finished training."""

    path: Path
    dataset: Dataset
    recipe: Recipe
    description: ModelDescription
    told: Told


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    require_keras()
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    clips = picture_dataset(folder) if name == "faces-lstm" else dataset
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_networks(patch)
        fit_without_graphs(patch)
        recipe, told = tiny_recipe(name), Told()
        description = train_model(recipe, clips, folder / "model", "colours", told.workplace(folder / "cache"))
        yield Run(folder / "model", clips, recipe, description, told)


@pytest.mark.keras
def test_model_directory_is_whole(trained: Run) -> None:
    names = {file.name for file in trained.path.iterdir()}
    extractor = {"extractor.keras"} if trained.recipe.extractor else set()
    assert names == {"model.json", "classifier.keras", "parity.npz", "log.csv", "report", *extractor}
    assert (trained.path / "report" / "report.html").is_file()
    description = read_description(trained.path)
    assert description == trained.description
    assert (description.name, description.recipe) == ("colours", trained.recipe.name)
    assert description.has_extractor == bool(trained.recipe.extractor)
    assert description.preprocess == trained.recipe.preprocess
    assert (description.clip.sampling, description.clip.padding, description.clip.length) == (
        trained.recipe.clip.sampling,
        trained.recipe.clip.padding,
        trained.recipe.clip.length,
    )


@pytest.mark.keras
def test_evaluating_finds_the_labels_that_training_found(trained: Run) -> None:
    model = open_keras_model(trained.path)
    found = evaluate(model, trained.dataset.split("test"), options=ONE_THREAD)
    expected = trained.description.evaluation["test"]
    assert found.to_dict()["confusion"] == expected["confusion"]
    assert found.to_dict()["accuracy"] == expected["accuracy"]
    assert found.to_dict()["calibration"] == pytest.approx(expected["calibration"], abs=2e-3)


@pytest.mark.keras
def test_parity_holds_what_the_loaded_model_answers(trained: Run) -> None:
    parity, model = read_parity(trained.path), open_keras_model(trained.path)
    np.testing.assert_allclose(model.classify(parity.features, parity.lengths), parity.scores, rtol=1e-4, atol=1e-5)
    assert parity.frames.shape[2:] == trained.recipe.preprocess.input_shape


@pytest.mark.keras
def test_description_says_how_it_was_made(trained: Run) -> None:
    provenance, evaluation = trained.description.provenance, trained.description.evaluation
    assert provenance["source"] == trained.recipe.source
    assert provenance["settings"]["classifier"]["epochs"] == 2
    assert ("extractor" in provenance) == bool(trained.recipe.extractor)
    assert {"train", "validation", "test"} == set(provenance["splits"])
    assert set(trained.description.thresholds) == set(trained.dataset.labels)
    assert np.isfinite(evaluation["validation"]["loss"])
    assert provenance["temperature"] > 0
    json.dumps(trained.description.to_dict(), allow_nan=False)


@pytest.mark.keras
def test_phases_are_those_of_the_recipe_and_the_log_has_all_their_epochs(trained: Run) -> None:
    phases = trained.description.provenance["best_epochs"]
    expected = ["classifier"]
    if trained.recipe.frames_first and trained.recipe.weights == "none":
        expected = ["frames", *expected]
    if trained.recipe.fine_tuning.last:
        expected += ["fine-tuning"]
    if trained.recipe.refit:
        expected += ["refitted"]
    assert list(phases) == expected
    rows = (trained.path / "log.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(float(n)) for n in range(1, len(rows) + 1)]
    assert len(rows) >= 2 * len(expected) - bool(trained.recipe.fine_tuning.last) - bool(trained.recipe.refit)


@pytest.mark.keras
def test_every_step_is_told(trained: Run) -> None:
    for task, steps in trained.told.steps.items():
        _, _, count = task.rpartition(" of ")
        if "epochs" not in task:
            assert steps % int(count) == 0, task
        assert steps > 0, task


@pytest.mark.keras
def test_networks_take_frames_of_the_size_that_is_said(trained: Run) -> None:
    extractor, classifier = load_keras(trained.path)
    taken = extractor if extractor is not None else classifier
    assert tuple(taken.inputs[0].shape[-3:]) == (*SIZE, 3)
