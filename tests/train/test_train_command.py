"""`edgeclf train` and `edgeclf evaluate` at the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclf.train import lite0_gru, theatre_recipe
from edgeclf.train.dataset import Dataset
from edgeclf.train.fit import FitSettings
from edgeclf.train.theatre_recipe import TheatreSettings
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


class Recipe:
    """Stands in for training: keeps what it is called with."""

    def __init__(self) -> None:
        self.called_with: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        self.called_with, self.options = arguments, options
        return SimpleNamespace(evaluation={"test": {"accuracy": 0.5, "confusion": [[1]], "clips": 4}})


@pytest.fixture
def lite0(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    recipe = Recipe()
    monkeypatch.setattr(lite0_gru, "train_lite0_gru", recipe)
    return recipe


@pytest.fixture
def theatre(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    recipe = Recipe()
    monkeypatch.setattr(theatre_recipe, "train_theatre", recipe)
    return recipe


# -- help and wrong usage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("train",), ("train", "lite0-gru"), ("train", "theatre"), ("evaluate",)], ids=str)
def test_help_has_examples(command: tuple[str, ...]) -> None:
    done = edgeclf(*command, "--help")
    assert done.returncode == 0
    assert f"edgeclf {command[0]}" in done.stdout.partition("Examples:")[2]


def test_help_of_train_imports_no_framework() -> None:
    code = (
        "import sys; from edgeclf.cli import cli; cli.main(['train', '--help'], standalone_mode=False);"
        "sys.exit(str(sorted({'tensorflow', 'keras', 'sklearn', 'cv2', 'numpy'} & set(sys.modules)) or ''))"
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


def test_options_of_lite0_gru_reach_the_recipe(clips: Path, lite0: Recipe, tmp_path: Path) -> None:
    options = ["--epochs", "7", "--batch", "9", "--lr", "0.5", "--seed", "3", "--classes", "red,blue"]
    output = tmp_path / "a_model"
    done = edgeclf("train", "lite0-gru", clips, "-o", output, *options, "--cache", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    dataset, path, name, settings = lite0.called_with
    assert isinstance(dataset, Dataset)
    assert dataset.labels == ("blue", "red")
    assert len(dataset.split("train")) == len(dataset.split("validation")) == 2
    assert (path, name) == (output, "a_model")
    assert settings == FitSettings(epochs=7, batch=9, learning_rate=0.5, seed=3)
    assert lite0.options["cache"] == tmp_path / "cache"
    assert lite0.options["about"] == {}


def test_words_for_the_model_card_reach_the_recipe(clips: Path, lite0: Recipe, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text('{"summary": "three colours"}')
    edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "model", "--about", tmp_path / "about.json")
    assert lite0.options["about"] == {"summary": "three colours"}


def test_result_is_one_line_for_each_split_and_the_place(clips: Path, lite0: Recipe, tmp_path: Path) -> None:
    done = edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--name", "mine")
    assert done.stdout.splitlines() == ["test: accuracy 0.5, clips 4", f"model directory: {tmp_path / 'm'}"]
    assert lite0.called_with[2] == "mine"


def test_seed_moves_clips_between_training_and_validation(clips: Path, lite0: Recipe, tmp_path: Path) -> None:
    drawn = set()
    for seed in range(8):
        edgeclf("train", "lite0-gru", clips, "-o", tmp_path / "m", "--seed", str(seed))
        drawn.add(frozenset(clip.group for clip in lite0.called_with[0].split("validation")))
    assert drawn == {frozenset({"g01"}), frozenset({"g02"})}


def test_model_in_this_folder_has_the_name_of_the_folder(
    clips: Path, lite0: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edgeclf("train", "lite0-gru", clips, "-o", ".")
    assert lite0.called_with[2] == tmp_path.name


def test_options_of_theatre_reach_the_recipe(theatre: Recipe, tmp_path: Path) -> None:
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
    assert lines[0] == "accuracy 1.000 on 3 clips"
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


def test_class_that_the_model_does_not_know_is_exit_2(colors: Path, csv: Path) -> None:
    csv.write_text(f"{csv.read_text()}pink.avi,pink,,test\r\n")
    done = edgeclf("evaluate", colors, csv)
    assert done.returncode == 2
    assert "DataError: the model does not know pink; it knows red, green, blue" in done.stderr


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
