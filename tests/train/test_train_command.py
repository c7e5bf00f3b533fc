"""`edgeclf train` and `edgeclf evaluate` at the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.bundle import write_manifest
from edgeclf.dataset import Dataset
from edgeclf.train import cross_validation, outcome, theatre_recipe
from edgeclf.train.recipe import RECIPES, Recipe
from edgeclf.train.theatre_recipe import TheatreSettings
from edgeclf.train.training import Workplace
from tests.support.colors import manifest_of, write_bundle
from tests.support.labelled import COLORS, edgeclf, require_keras, write_color_clips, write_csv


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each colour, two clips in each."""
    folder = tmp_path_factory.mktemp("clips")
    write_color_clips(folder, 2)
    return folder


@pytest.fixture
def csv(clips: Path, tmp_path: Path) -> Path:
    """The same clips, the first recordings for training and the second for the test."""
    rows = [
        [str(path), path.parent.name, "", "train" if "g01" in path.name else "test"]
        for path in sorted(clips.rglob("*.avi"))
    ]
    return write_csv(tmp_path / "clips.csv", rows)


class Training:
    """Stands in for training: keeps what it is called with."""

    def __init__(self) -> None:
        self.called_with: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        self.called_with, self.options = arguments, options
        return SimpleNamespace(evaluation={"test": {"accuracy": 0.5, "confusion": [[1]], "clips": 4}})

    @property
    def recipe(self) -> Recipe:
        return self.called_with[0]  # type: ignore[no-any-return]

    @property
    def dataset(self) -> Dataset:
        return self.called_with[1]  # type: ignore[no-any-return]

    @property
    def workplace(self) -> Workplace:
        return self.called_with[4]  # type: ignore[no-any-return]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'edgeclf[train]'")
    training = Training()
    monkeypatch.setattr(outcome, "train_model", training)
    monkeypatch.setattr("edgeclf.train.training.has_gpu", lambda: False)
    return training


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Stands in for the cross-validation."""
    crossed = Training()

    def run(*arguments: Any, **options: Any) -> SimpleNamespace:
        crossed(*arguments, **options)
        return SimpleNamespace(to_dict=lambda: {"folds": options["folds"], "accuracy": 0.75})

    monkeypatch.setattr(cross_validation, "cross_validate", run)
    return crossed


@pytest.fixture
def theatre(monkeypatch: pytest.MonkeyPatch) -> Training:
    training = Training()
    monkeypatch.setattr(theatre_recipe, "train_theatre", training)
    return training


# -- help and wrong usage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("train",), *(("train", name) for name in RECIPES), ("train", "theatre"), ("evaluate",)], ids=str
)
def test_help_has_examples(command: tuple[str, ...]) -> None:
    done = edgeclf(*command, "--help")
    assert done.returncode == 0
    assert f"edgeclf {command[0]}" in done.stdout.partition("Examples:")[2]


@pytest.mark.parametrize("name", tuple(RECIPES))
def test_help_of_a_recipe_names_it_in_its_examples(name: str) -> None:
    done = edgeclf("train", name, "--help")
    assert f"edgeclf train {name} clips/" in done.stdout
    assert "{name}" not in done.stdout
    for option in ("--folds", "--background", "--top", "--config", "--ucf-lists"):
        assert option in done.stdout


def test_list_describes_every_recipe() -> None:
    done = edgeclf("train", "--list")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for name in RECIPES:
        recipe = RECIPES.load(name)
        described = lines[lines.index(name) :][:6]
        assert described[1].strip() == recipe.summary
        assert (recipe.extractor or "none, the network takes frames") in described[2]
        assert f"{recipe.clip.length} frames" in described[3]
        assert recipe.source in described[4]


def test_train_without_a_recipe_is_exit_2_and_says_how_to_find_one() -> None:
    done = edgeclf("train")
    assert done.returncode == 2
    assert "name a recipe; `edgeclf train --list` describes them" in done.stderr


def test_help_of_train_imports_no_framework() -> None:
    code = (
        "import sys; from edgeclf.cli import cli; cli.main(['train', '--help'], standalone_mode=False);"
        "sys.exit(str(sorted({'tensorflow', 'keras', 'sklearn', 'cv2', 'matplotlib'} & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""
    assert "lite0-gru" in done.stdout
    assert "theatre" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing"], "No such command 'nothing'"),
        (["train", "lite0-gru", "{clips}"], "Missing option '-o'"),
        (["train", "lite0-gru", "-o", "m"], "Missing argument 'DATA'"),
        (["train", "lite0-gru", "{tmp}/none.csv", "-o", "m"], "none.csv' does not exist"),
        (["train", "lite0-gru", "{clips}", "-o", "{tmp}/clips.csv"], "is a file"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--epochs", "0"], "0 is not in the range"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--lr", "0"], "not in the range"),
        (
            ["train", "lite0-gru", "{clips}", "-o", "m", "--classes", "red, pink"],
            "DataError: {clips} has no class pink",
        ),
        (["train", "lite0-gru", "{clips}/red", "-o", "m"], "DataError: {clips}/red does not hold two folders"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--background", "pink"], "has no class pink"),
        (
            ["train", "lite0-gru", "{clips}", "-o", "m", "--classes", "red", "--background", "red"],
            "DataError: red cannot be a class and background",
        ),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--top", "1"], "1 is not in the range"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--folds", "1"], "1 is not in the range"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--views", "0"], "0 is not in the range"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--rate", "0"], "not in the range"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--weights", "coco"], "'coco' is not one of"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--config", "{tmp}/none.toml"], "none.toml' does not exist"),
        (["train", "conv3d", "{clips}", "-o", "m", "--extractor", "vgg16"], "DataError: conv3d has no extractor"),
        (
            ["train", "lite0-motion", "{clips}", "-o", "m", "--extractor", "resnet50"],
            "DataError: resnet50 gives no features of change",
        ),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--ucf-lists", "{tmp}"], "DataError: "),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--ucf-split", "2"], "--ucf-split needs --ucf-lists"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--repeats", "3"], "--repeats needs --folds"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--over-all"], "--over-all needs --folds"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--views", "2"], "views are the same without an augmentation"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--extractor", ""], "there is no extractor ''"),
        (["evaluate", "{colors}", "{clips}", "--ucf-split", "2"], "--ucf-split needs --ucf-lists"),
        (["evaluate", "{colors}", "{clips}", "--background", "pink"], "has no class pink"),
        (["evaluate", "{colors}", "{csv}", "--draw", "3"], "--draw draws clips of loose pictures; these are videos"),
        (["evaluate", "{colors}", "{csv}", "--draw", "0"], "0 is not in the range"),
        (["evaluate", "{colors}", "{csv}", "--report", "{csv}"], "is a file"),
        (["train", "theatre"], "Missing option '-o'"),
        (["train", "theatre", "-o", "m", "--clips", "8"], "8 is not in the range"),
        (["evaluate", "{colors}"], "Missing argument 'DATA'"),
        (["evaluate", "{colors}", "{tmp}/none.csv"], "none.csv' does not exist"),
        (["evaluate", "nothing", "{csv}"], "BundleError: there is no bundle 'nothing'"),
        (["evaluate", "{colors}", "{csv}", "--split", "later"], "'later' is not one of 'train', 'validation', 'test'"),
        (["evaluate", "{colors}", "{csv}", "--split", "validation"], "DataError: there is no clip to evaluate on"),
        (["evaluate", "{colors}", "{csv}", "--format", "xml"], "'xml' is not one of"),
        (["evaluate", "{colors}", "{csv}", "--record", "x"], "--record keeps figures in a model directory"),
        (["train", "lite0-gru", "{clips}", "-o", "m", "--about", "{csv}"], "is not valid JSON"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_2_with_a_clear_line(
    colors: Path, clips: Path, csv: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"colors": colors, "clips": clips, "csv": csv, "tmp": tmp_path}
    done = edgeclf(*(text.format(**places) for text in arguments))
    assert done.returncode == 2
    assert message.format(**places) in done.stderr
    assert done.stdout == ""


def test_training_without_keras_says_what_to_install(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    csv.write_text(csv.read_text().replace(",test", ",val"))
    done = edgeclf("train", "lite0-gru", csv, "-o", tmp_path / "model")
    assert done.returncode == 2
    assert 'TensorFlow is not installed; pip install "edgeclf[train]"' in done.stderr
    assert not (tmp_path / "model").exists()


# -- train ------------------------------------------------------------------------------------------------------------


def test_options_reach_the_training(clips: Path, training: Training, tmp_path: Path) -> None:
    options = [
        "--epochs",
        "7",
        "--batch",
        "9",
        "--lr",
        "0.5",
        "--seed",
        "3",
        "--length",
        "8",
        "--rate",
        "4",
        "--class-weights",
        "--weights",
        "none",
    ]
    output = tmp_path / "a_model"
    done = edgeclf("train", "lite0-gru", clips, "-o", output, *options, "--classes", "red,blue", "--cache", tmp_path)
    assert done.returncode == 0, done.stderr
    recipe, dataset = training.recipe, training.dataset
    assert dataset.labels == ("blue", "red")
    assert len(dataset.split("train")) == len(dataset.split("validation")) == 2
    assert training.called_with[2:4] == (output, "a_model")
    settings = recipe.settings
    assert (settings.epochs, settings.batch, settings.learning_rate, settings.seed) == (7, 9, 0.5, 3)
    assert settings.class_weights
    assert (recipe.clip.length, recipe.clip.rate, recipe.weights) == (8, 4.0, "none")
    assert training.workplace.cache == tmp_path
    assert training.workplace.precision == "float32"
    assert training.options == {"about": {}, "evaluation": {}}


def test_views_of_a_recipe_that_augments_are_as_many_as_asked_for(
    clips: Path, training: Training, tmp_path: Path
) -> None:
    done = edgeclf("train", "faces-lstm", clips, "-o", tmp_path / "m", "--views", "3")
    assert done.returncode == 0, done.stderr
    assert training.recipe.views == 3


@pytest.mark.parametrize("name", tuple(RECIPES))
def test_recipe_is_as_it_is_written_where_nothing_is_said(
    clips: Path, training: Training, tmp_path: Path, name: str
) -> None:
    done = edgeclf("train", name, clips, "-o", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert training.recipe == RECIPES.load(name)


def test_one_seed_is_that_of_all_phases(clips: Path, training: Training, tmp_path: Path) -> None:
    for name, phase in (("resnet50-lstm", "fine_tuning"), ("faces-lstm", "frames_first")):
        edgeclf("train", name, clips, "-o", tmp_path / "m", "--seed", "5")
        part = getattr(training.recipe, phase)
        assert training.recipe.settings.seed == getattr(part, "settings", part).seed == 5


def test_option_goes_before_the_file_and_the_file_before_the_recipe(
    clips: Path, training: Training, tmp_path: Path
) -> None:
    pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")
    config = tmp_path / "more.toml"
    config.write_text("views = 3\n[settings]\nepochs = 5\nbatch = 7\nmixup = 0.1\n[augmentation]\nflip = true\n")
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--config", config, "--epochs", "9")
    assert done.returncode == 0, done.stderr
    settings = training.recipe.settings
    assert (settings.epochs, settings.batch, settings.mixup) == (9, 7, 0.1)
    assert (training.recipe.views, training.recipe.augmentation.flip) == (3, True)


def test_seed_of_the_file_counts_where_none_is_given(clips: Path, training: Training, tmp_path: Path) -> None:
    pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")
    config = tmp_path / "more.toml"
    config.write_text("[settings]\nseed = 8\n")
    edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--config", config)
    assert training.recipe.settings.seed == 8
    edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--config", config, "--seed", "2")
    assert training.recipe.settings.seed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 1", "a recipe has no speed to change"),
        ("[settings]\nepoch = 1", "settings has no epoch"),
        ("[clip]\nframes = 1", "clip has no frames"),
        ("[frames_first]\nepochs = 1", "lite0-gru has no frames_first"),
        ("settings = 3", "settings must be a table, not 3"),
        ('extractor = ""', "lite0-gru cannot be changed so: there is no extractor ''"),
        ('[augmentation]\nflip = "no"', "augmentation: flip is 'no', must be true or false"),
        ("views = 2", "lite0-gru cannot be changed so: views are the same"),
        ("[settings", "more.toml cannot be read"),
    ],
    ids=str,
)
def test_mistake_in_the_file_is_exit_2_and_named(
    clips: Path, training: Training, tmp_path: Path, text: str, message: str
) -> None:
    pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")
    (tmp_path / "more.toml").write_text(text)
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--config", tmp_path / "more.toml")
    assert done.returncode == 2
    assert f"DataError: {message}" in done.stderr or message in done.stderr
    assert training.called_with == ()


def test_background_is_one_class_of_those_named(clips: Path, training: Training, tmp_path: Path) -> None:
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--classes", "red", "--background", "green,blue")
    assert done.returncode == 0, done.stderr
    assert training.dataset.labels == ("background", "red")
    assert sum(clip.label == "background" for clip in training.dataset.clips) == 4


def test_top_keeps_the_largest_classes(clips: Path, training: Training, tmp_path: Path) -> None:
    rows = [[str(path), path.parent.name, path.stem.split("_")[2], ""] for path in sorted(clips.rglob("*.avi"))]
    data = write_csv(tmp_path / "clips.csv", [row for row in rows if row[1:3] != ["green", "g02"]])
    done = edgeclf("train", "lite0-gru", data, "-o", tmp_path / "m", "--top", "2")
    assert done.returncode == 0, done.stderr
    assert training.dataset.labels == ("blue", "red")
    assert training.recipe.top == 2


def test_folds_are_measured_before_training_and_kept(
    clips: Path, training: Training, crossed: Training, tmp_path: Path
) -> None:
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--folds", "2", "--repeats", "3")
    assert done.returncode == 0, done.stderr
    assert crossed.options == {"folds": 2, "repeats": 3}
    recipe, clips_of_folds, labels, _ = crossed.called_with
    assert recipe == training.recipe
    assert labels == ("blue", "green", "red")
    assert len(clips_of_folds) == 6, "validation clips are drawn anew in each fold"
    assert training.options["evaluation"] == {"cross_validation": {"folds": 2, "accuracy": 0.75}}


def test_folds_are_made_once_unless_more_are_asked_for(
    clips: Path, training: Training, crossed: Training, tmp_path: Path
) -> None:
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--folds", "2")
    assert done.returncode == 0, done.stderr
    assert crossed.options == {"folds": 2, "repeats": 1}


@pytest.mark.parametrize(("options", "count"), [((), 3), (("--over-all",), 6)], ids=["training clips", "all"])
def test_folds_leave_test_clips_alone_unless_all_are_asked_for(
    csv: Path, training: Training, crossed: Training, tmp_path: Path, options: tuple[str, ...], count: int
) -> None:
    csv.write_text(f"{csv.read_text()}" + "".join(f"{c}.avi,{c},,val\r\n" for c in COLORS))
    done = edgeclf("train", "lite0-gru", csv, "-o", tmp_path / "m", "--folds", "2", *options)
    assert done.returncode == 0, done.stderr
    assert len(crossed.called_with[1]) == count + 3
    assert ("test" in {clip.split for clip in crossed.called_with[1]}) == bool(options)


def test_without_folds_there_is_no_cross_validation(
    clips: Path, training: Training, crossed: Training, tmp_path: Path
) -> None:
    edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m")
    assert crossed.called_with == ()


def test_mixed_precision_is_said(clips: Path, training: Training, tmp_path: Path) -> None:
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--mixed-precision")
    assert training.workplace.precision == "mixed_float16"
    assert "training in mixed precision (float16)" in done.stderr


def test_words_for_the_model_card_reach_the_training(clips: Path, training: Training, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text('{"summary": "three colours"}')
    edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "model", "--about", tmp_path / "about.json")
    assert training.options["about"] == {"summary": "three colours"}


def test_result_is_one_line_for_each_split_and_the_places(clips: Path, training: Training, tmp_path: Path) -> None:
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--name", "mine")
    assert done.stdout.splitlines() == [
        "test: accuracy 0.5, clips 4",
        f"model directory: {tmp_path / 'm'}",
        f"report: {tmp_path / 'm' / 'report' / 'report.html'}",
    ]
    assert training.called_with[3] == "mine"


def test_seed_moves_clips_between_training_and_validation(clips: Path, training: Training, tmp_path: Path) -> None:
    drawn = set()
    for seed in range(8):
        edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--seed", str(seed))
        drawn.add(frozenset(clip.group for clip in training.dataset.split("validation")))
    assert len(drawn) > 1
    assert {len(groups) for groups in drawn} == {3}, "one recording of each class"


def test_model_in_this_folder_has_the_name_of_the_folder(
    clips: Path, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edgeclf("train", "lite0-gru", clips, "-o", ".")
    assert training.called_with[3] == tmp_path.name


def test_options_of_theatre_reach_the_recipe(theatre: Training, tmp_path: Path) -> None:
    done = edgeclf("train", "theatre", "-o", tmp_path / "m", "--clips", "64", "--epochs", "2", "--seed", "9")
    assert done.returncode == 0, done.stderr
    assert theatre.called_with[:2] == (
        tmp_path / "m",
        TheatreSettings(train_clips=64, pose_epochs=2, seed=9),
    )
    assert f"model directory: {tmp_path / 'm'}" in done.stdout


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_table_lists_each_class_twice(colors: Path, csv: Path) -> None:
    done = edgeclf("evaluate", colors, csv)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("accuracy 1.000 on 3 clips; 95 % interval 1.000 to 1.000, over 3 groups")
    for color in COLORS:
        figures, cells = (line.split() for line in lines if color in line.split())
        assert figures == [color, "1.000", "1.000", "1.000", "1"]
        assert cells[1] == color
        assert sorted(cells[2:]) == [".", ".", ".", "1"]
    assert "colors on onnxruntime CPU fp32" in done.stderr


def test_json_is_all_that_stands_on_stdout(colors: Path, csv: Path) -> None:
    done = edgeclf("evaluate", colors, csv, "--format", "json")
    found = json.loads(done.stdout)
    assert (found["clips"], found["accuracy"], found["failed"]) == (3, 1.0, 0)
    assert set(found["classes"]) == set(COLORS)
    assert found["confusion"] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_split_chooses_the_clips_of_a_csv_and_a_folder_has_only_one(colors: Path, clips: Path, csv: Path) -> None:
    csv.write_text(csv.read_text().replace(",train", ",val", 1))
    counts = [
        json.loads(edgeclf("evaluate", colors, csv, "--split", split, "--format", "json").stdout)["clips"]
        for split in ("train", "validation", "test")
    ]
    assert counts == [2, 1, 3]
    assert json.loads(edgeclf("evaluate", colors, clips, "--format", "json").stdout)["clips"] == 6


def test_background_of_the_model_is_made_of_the_same_classes(clips: Path, tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "model.edgeclf")
    (entry,) = manifest_of(model).classifiers
    known = replace(entry, labels=("red", "background", "blue"))
    write_manifest(model, replace(manifest_of(model), classifiers=(known,)))
    refused = edgeclf("evaluate", model, clips).stderr
    assert "does not know green; it knows red, background, blue: name those of its background with --back" in refused
    for options in ((), ("--classes", "red,blue")):
        done = edgeclf("evaluate", model, clips, "--background", "green", *options, "--format", "json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["clips"], found["accuracy"]) == (6, 1.0)
        assert found["classes"]["background"]["clips"] == 2


@pytest.mark.parametrize(("split", "count"), [((), 1), (("--ucf-split", "2"), 2)], ids=["first", "second"])
def test_official_lists_choose_the_test_clips(
    colors: Path, clips: Path, tmp_path: Path, split: tuple[str, ...], count: int
) -> None:
    entries = sorted(f"{path.parent.name}/{path.name}" for path in clips.rglob("*.avi"))
    for number in (1, 2):
        (tmp_path / f"trainlist0{number}.txt").write_text("\n".join(entries[number:]))
        (tmp_path / f"testlist0{number}.txt").write_text("\n".join(entries[:number]))
    done = edgeclf("evaluate", colors, clips, "--ucf-lists", tmp_path, *split, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clips"] == count


@pytest.mark.parametrize("form", ["table", "json"])
def test_clip_that_cannot_be_read_is_exit_1_and_counted(colors: Path, csv: Path, form: str) -> None:
    csv.write_text(f"{csv.read_text()}text.avi,red,,test\r\n")
    (csv.parent / "text.avi").write_text("not a video")
    done = edgeclf("evaluate", colors, csv, "--format", form)
    assert done.returncode == 1
    assert "VideoError: " in done.stderr
    assert "text.avi" in done.stderr
    if form == "json":
        found = json.loads(done.stdout)
        assert (found["clips"], found["accuracy"], found["failed"]) == (4, 0.75, 1)
    else:
        assert "accuracy 0.750 on 4 clips" in done.stdout


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder of loose red, green and blue pictures, ten in each class."""
    for color, rgb in COLORS.items():
        (tmp_path / "faces" / color).mkdir(parents=True)
        for number in range(10):
            picture = np.full((8, 8, 3), [min(255, value + number) for value in rgb[::-1]], np.uint8)
            assert cv2.imwrite(str(tmp_path / "faces" / color / f"{number}.png"), picture)
    return tmp_path / "faces"


def test_clips_of_loose_pictures_are_drawn_as_often_as_asked_for(colors: Path, faces: Path) -> None:
    plain = json.loads(edgeclf("evaluate", colors, faces, "--format", "json").stdout)
    done = edgeclf("evaluate", colors, faces, "--draw", "5", "--format", "json")
    drawn = json.loads(done.stdout)
    assert (plain["clips"], plain["accuracy"]) == (3, 1.0)
    assert (drawn["clips"], drawn["accuracy"]) == (15, 1.0)
    assert "drawn clips share pictures: the interval is narrower than it should be" in done.stderr


def test_report_is_written_beside_the_table(colors: Path, csv: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'edgeclf[train]'")
    done = edgeclf("evaluate", colors, csv, "--report", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert {"report.html", "report.json", "predictions.csv"} <= {file.name for file in (tmp_path / "report").iterdir()}
    assert "colors on clips" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_class_that_the_model_does_not_know_is_exit_2(colors: Path, csv: Path) -> None:
    csv.write_text(f"{csv.read_text()}pink.avi,pink,,test\r\n")
    done = edgeclf("evaluate", colors, csv)
    assert done.returncode == 2
    assert "DataError: the model does not know pink; it knows red, green, blue: choose with --classes" in done.stderr


@pytest.mark.keras
def test_model_directory_is_run_by_keras(csv: Path, tmp_path: Path) -> None:
    require_keras()
    from tests.support.keras_models import LABELS, write_tiny_model

    model = write_tiny_model(tmp_path / "tiny")
    csv.write_text(csv.read_text().replace(",red,", ",one,").replace(",green,", ",two,").replace(",blue,", ",three,"))
    done = edgeclf("evaluate", model, csv, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert "tiny on keras" in done.stderr
    assert tuple(json.loads(done.stdout)["classes"]) == LABELS


@pytest.mark.keras
def test_recorded_evaluation_stays_in_the_model_directory(csv: Path, tmp_path: Path) -> None:
    require_keras()
    from edgeclf.model_directory import read_description
    from tests.support.keras_models import write_tiny_model

    model = write_tiny_model(tmp_path / "tiny")
    before = read_description(model)
    csv.write_text(csv.read_text().replace(",red,", ",one,").replace(",green,", ",two,").replace(",blue,", ",three,"))
    done = edgeclf("evaluate", model, csv, "--record", "colours", "--format", "json")
    assert done.returncode == 0, done.stderr
    after = read_description(model)
    assert after.evaluation["colours"] == json.loads(done.stdout)
    assert {**after.evaluation, "colours": None} == {**before.evaluation, "colours": None}
