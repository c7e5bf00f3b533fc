"""The recipe from a folder of clips to a bundle, with the real extractor: one training, looked at from all sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.errors import DataError, MissingExtraError
from edgeclf.model_directory import ModelDescription, extractor_session, load_keras, read_description, read_parity
from edgeclf.train import extractors, lite0_gru
from edgeclf.train.dataset import Dataset, load_dataset, with_validation
from edgeclf.train.fit import FitSettings
from edgeclf.train.lite0_gru import CLIP, RECIPE, train_lite0_gru
from tests.support.labelled import COLORS, edgeclf, require_keras, write_color_clips, write_csv

pytestmark = pytest.mark.keras

SETTINGS = FitSettings(epochs=8, batch=4, learning_rate=0.01, seed=5)


@dataclass
class Trained:
    """A finished training, and what it said."""

    path: Path
    description: ModelDescription
    said: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def installed() -> None:
    require_keras()
    try:
        extractors._lite0_path()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV: three colours, four recordings, the last for the test; one clip of each split cannot be read."""
    folder = tmp_path_factory.mktemp("clips")
    rows = [
        [str(path.relative_to(folder)), path.parent.name, group, "test" if group == "g04" else "train"]
        for path in write_color_clips(folder, 4, seconds=1.4)
        for group in [path.stem.split("_")[2]]
    ]
    for name in ("train", "test"):
        (folder / f"bad_{name}.avi").write_text("not a video")
        rows.append([f"bad_{name}.avi", "red", f"bad {name}", name])
    return write_csv(folder / "clips.csv", rows)


@pytest.fixture(scope="module")
def dataset(data: Path) -> Dataset:
    return with_validation(load_dataset(data), seed=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(dataset: Dataset, path: Path, cache: Path) -> Trained:
    said: list[str] = []
    steps: dict[str, int] = {}

    @contextmanager
    def counted(task: str, count: int) -> Iterator[Callable[[], None]]:
        steps[f"{task} of {count}"] = 0

        def advance() -> None:
            steps[f"{task} of {count}"] += 1

        yield advance

    description = train_lite0_gru(dataset, path, "colours", SETTINGS, cache=cache, say=said.append, steps=counted)
    return Trained(path, description, said, steps)


@pytest.fixture(scope="module")
def trained(installed: None, dataset: Dataset, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(dataset, tmp_path_factory.mktemp("models") / "colours", cache)


def confusion(model: Path, data: Path, *, exit_code: int = 1) -> Any:
    """What `edgeclf evaluate` finds on the test split."""
    done = edgeclf("evaluate", model, data, "--format", "json")
    assert done.returncode == exit_code, done.stderr
    return json.loads(done.stdout)


def test_model_directory_is_complete(trained: Trained) -> None:
    names = {file.name for file in trained.path.iterdir()}
    assert names == {"model.json", "extractor.keras", "classifier.keras", "parity.npz"}
    description = read_description(trained.path)
    assert description == trained.description
    assert (description.name, description.recipe) == ("colours", "lite0-gru")
    assert description.labels == tuple(sorted(COLORS))
    assert (description.preprocess, description.clip) == (RECIPE.preprocess, CLIP)


def test_provenance_says_what_it_was_made_of(trained: Trained) -> None:
    provenance = trained.description.provenance
    assert provenance["fit"]["seed"] == 5
    assert provenance["fit"]["epochs"] == 8
    assert 1 <= provenance["best_epoch"] <= 8
    assert "EfficientNet" in json.dumps(provenance["extractor"]) or "efficientnet" in json.dumps(
        provenance["extractor"]
    )
    splits = provenance["splits"]
    assert {name: split["videos"] for name, split in splits.items()} == {"train": 7, "validation": 3, "test": 4}
    assert splits["test"]["classes"] == {"blue": 1, "green": 1, "red": 2}
    assert len({split["sha256_of_all"] for split in splits.values()}) == 3


def test_each_video_and_epoch_is_a_step(trained: Trained) -> None:
    assert trained.steps == {"features of 14": 14, "epochs of 8": 8}


def test_video_that_cannot_be_read_is_reported_and_wrong_only_in_the_test(trained: Trained) -> None:
    said = [line for line in trained.said if line.startswith("not wholly read:")]
    assert len(said) == 2
    assert "6 training and 3 validation clips of features" in trained.said
    assert trained.description.evaluation["test"]["failed"] == 1


def test_colours_are_learned(trained: Trained) -> None:
    evaluation = trained.description.evaluation
    assert evaluation["validation"]["accuracy_of_clips"] == 1
    assert evaluation["test"]["clips"] == 4
    assert evaluation["test"]["accuracy"] == 0.75
    assert evaluation["test"]["confusion"] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]


def test_parity_frames_are_of_validation_clips_of_all_classes(trained: Trained) -> None:
    parity = read_parity(trained.path)
    assert parity.frames.shape == (3, CLIP.length, *RECIPE.preprocess.size, 3)
    assert parity.lengths.tolist() == [7, 7, 7]
    brightest = [
        clip[:length].mean((0, 1, 2)).argmax() for clip, length in zip(parity.frames, parity.lengths, strict=True)
    ]
    assert brightest == [2, 1, 0], "blue, green and red"


def test_evaluate_finds_the_labels_of_the_test_in_training(trained: Trained, data: Path) -> None:
    assert confusion(trained.path, data) == trained.description.evaluation["test"]


def test_bundle_finds_the_labels_of_its_model_directory(trained: Trained, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: pip install 'edgeclf[dev]'")
    bundle = tmp_path / "colours.edgeclf"
    exported = edgeclf("export", trained.path, "-o", bundle)
    assert exported.returncode == 0, exported.stderr
    assert confusion(bundle, data) == trained.description.evaluation["test"]


def test_second_training_takes_kept_features_and_gives_the_same_model(
    trained: Trained, dataset: Dataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unused(extractor: Any, preprocess: Any) -> Any:
        session = original(extractor, preprocess)
        monkeypatch.setattr(session, "run", lambda _: pytest.fail("the extractor ran"))
        return session

    original = extractor_session
    monkeypatch.setattr(lite0_gru, "extractor_session", unused)
    again = train(dataset, tmp_path / "again", cache)
    assert again.description == trained.description
    assert again.steps == trained.steps
    (_, first), (_, second) = load_keras(trained.path), load_keras(again.path)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_split_without_a_readable_video_is_refused(installed: None, tmp_path: Path, cache: Path) -> None:
    rows = [[f"{name}.avi", name, "", split] for name in ("red", "blue") for split in ("train", "val")]
    data = write_csv(tmp_path / "clips.csv", [[f"{split}_{path}", *rest, split] for path, *rest, split in rows])
    with pytest.raises(DataError, match="no train video can be read; check the paths of the data set"):
        train(with_validation(load_dataset(data)), tmp_path / "model", cache)
    assert not (tmp_path / "model").exists()
