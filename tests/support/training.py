"""Small stand-ins for the networks of recipes, tiny data sets, and a workplace that keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.dataset import Dataset, LabelledClip
from edgeclf.model_directory import import_keras
from edgeclf.runtime.pipeline import LoopOptions
from edgeclf.train import fit
from edgeclf.train.extractors import EXTRACTORS, Extractor, Pooling, features_of
from edgeclf.train.fit import FitSettings
from edgeclf.train.overrides import with_overrides
from edgeclf.train.recipe import RECIPES, Recipe
from edgeclf.train.training import Trained, Workplace, train_recipe
from tests.support.labelled import COLORS, write_color_clips

ONE_THREAD = LoopOptions(depth=0, workers=0, batch_size=8)
SIZE = (12, 12)
CHANNELS = 6


def tiny_extractor(weights: Any, *, pooling: Pooling = "avg") -> Any:
    """Two convolutions with a normalisation between them, always the same; features are not negative."""
    keras = import_keras()
    layers = keras.layers
    frames = keras.Input((*SIZE, 3), dtype="uint8", name="frames")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(frames)
    x = layers.Conv2D(CHANNELS, 3, 3, padding="same", activation="relu", name="first")(x)
    x = layers.BatchNormalization(name="normal")(x)
    x = layers.Conv2D(CHANNELS, 3, 2, padding="same", activation="relu", name="second")(x)
    return _fixed(keras.Model(frames, features_of(x, pooling), name="tiny"))


def tiny_motion_extractor(weights: Any, *, name: str) -> Any:
    """Means of the last picture, and how far those of the first are from them."""
    keras = import_keras()
    layers, ops = keras.layers, keras.ops
    frames = keras.Input((2, *SIZE, 3), dtype="uint8", name="frames")
    x = layers.Rescaling(1 / 255, name="scale")(frames)
    means = layers.Reshape((2, 3), name="means")(ops.mean(x, axis=(2, 3)))
    last, first = means[:, 1], means[:, 0]
    still = layers.Concatenate(name="still")([last, last])
    change = layers.Concatenate(name="change")([ops.abs(last - first)] * 2)
    return keras.Model(frames, layers.Concatenate(name="features")([still, change]), name=name)


TINY = Extractor("tiny", tiny_extractor, SIZE, (2, 2, CHANNELS), "none: fixed numbers", "Apache-2.0")


def fit_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the steps of fitting as they are written, which for a few of them is quicker than making graphs."""
    compiled = fit._compile

    def compile_for_few_steps(model: Any, settings: FitSettings) -> None:
        compiled(model, settings)
        model.run_eagerly = True

    monkeypatch.setattr(fit, "_compile", compile_for_few_steps)


def _fixed(model: Any) -> Any:
    rng = np.random.default_rng(5)
    model.set_weights(
        [
            np.abs(rng.normal(1, 0.2, weight.shape)) if weight.ndim == 1 else rng.normal(0, 0.4, weight.shape)
            for weight in model.get_weights()
        ]
    )
    return model


def use_tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins in the place of all extractors."""
    for name in EXTRACTORS:
        monkeypatch.setitem(EXTRACTORS._builtin, name, "tests.support.training:TINY")
    monkeypatch.setattr("edgeclf.train.lite_networks.motion_extractor", tiny_motion_extractor)


def tiny_recipe(name: str, **overrides: Any) -> Recipe:
    """A recipe on clips of four frames, for two epochs; what it is made of stays as it is."""
    recipe: Recipe = RECIPES.load(name)
    tables: dict[str, Any] = {"settings": {"epochs": 2, "batch": 4}}
    if recipe.clip.length > 1:
        tables["clip"] = {"length": 4}
    if recipe.frames_first:
        tables["frames_first"] = {"epochs": 2, "batch": 16}
        tables["drawn_clips"] = 4
    if recipe.fine_tuning.last:
        tables["fine_tuning"] = {"last": 1, "settings": {"epochs": 1, "batch": 4, "learning_rate": 0.01}}
    for key, value in overrides.items():
        tables[key] = {**tables.get(key, {}), **value} if isinstance(value, dict) else value
    return with_overrides(replace(recipe, size=SIZE) if recipe.network else recipe, tables)


@dataclass
class Told:
    """What a workplace was told."""

    said: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def count(self, task: str, count: int) -> Iterator[Callable[[], None]]:
        """Counts the steps of each task."""
        name = f"{task} of {count}"
        self.steps.setdefault(name, 0)

        def advance() -> None:
            self.steps[name] += 1

        yield advance

    def workplace(self, cache: Path, **options: Any) -> Workplace:
        return Workplace(cache, self.said.append, self.count, **options)


def trained(recipe: Recipe, dataset: Dataset, cache: Path, told: Told | None = None, **options: Any) -> Trained:
    """The recipe trained on the clips of a data set that are for it."""
    parts = dataset.split("train"), dataset.split("validation")
    return train_recipe(recipe, *parts, dataset.labels, (told or Told()).workplace(cache, **options))


def color_dataset(folder: Path, groups: int = 4) -> Dataset:
    """Three colours; the last group is for the test, the one before it for validation."""
    paths = write_color_clips(folder, groups)
    splits = {f"g{groups:02}": "test", f"g{groups - 1:02}": "validation"}
    clips = [
        LabelledClip(path, path.parent.name, group, splits.get(group, "train"))
        for path in paths
        for group in [path.stem.split("_")[2]]
    ]
    return Dataset(tuple(clips), tuple(sorted(COLORS)))


def picture_dataset(folder: Path, *, per_clip: int = 10, clips: int = 3) -> Dataset:
    """Clips of coloured pictures: one for training, one for validation and one for the test, of each colour."""
    rng = np.random.default_rng(8)
    found = []
    for color, rgb in COLORS.items():
        for number, split in enumerate(("train", "validation", "test")[:clips]):
            paths = tuple(folder / f"{color}_{number}_{index}.png" for index in range(per_clip))
            for path in paths:
                picture = np.clip(np.array(rgb) + rng.integers(-20, 20, (10, 10, 3)), 0, 255).astype(np.uint8)
                assert cv2.imwrite(str(path), picture[..., ::-1])
            found.append(LabelledClip(Path(color, f"clip{number}"), color, f"{color}{number}", split, paths))
    return Dataset(tuple(found), tuple(sorted(COLORS)))
