"""`edgeclf train` and `edgeclf evaluate`."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeclf.runtime.model import Model
    from edgeclf.train.evaluation import Evaluation

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_DATA = click.Path(path_type=Path, exists=True)


@click.group()
def train() -> None:
    """Train a model from labelled clips, or from rendered ones, into a model directory.

    \b
    Examples:
      edgeclf train lite0-gru clips/ -o my_model
      edgeclf train lite0-gru clips.csv -o my_model --classes Punch,PushUps --seed 1
      edgeclf train theatre -o theatre_model
    """


@train.command("lite0-gru")
@click.argument("data", type=_DATA)
@click.option("-o", "--output", required=True, type=_FOLDER, metavar="MODEL_DIR", help="Where the model is written.")
@click.option("--name", help="What the model is called; the name of MODEL_DIR if not given.")
@click.option("--classes", default="", metavar="A,B,...", help="Train on these classes only.")
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True, help="At the most.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Clips in one step.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="Learning rate.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split and of all that is drawn."
)
@click.option("--cache", type=_FOLDER, help="Where features are kept; the user's cache folder if not given.")
@click.option("--about", type=_FILE, metavar="FILE.json",
              help="What the model card shall say: summary, intended_use, and anything else.")  # fmt: skip
def train_lite0(
    data: Path,
    output: Path,
    name: str | None,
    classes: str,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    cache: Path | None,
    about: Path | None,
) -> None:
    """A GRU on ImageNet features of EfficientNet-Lite0, 20 frames at 5 a second.

    DATA is a folder with one folder of videos for each class, or a CSV with the columns path,label and, if they are
    known, group and split. Validation clips are taken out of the training clips by whole groups; a test split is
    measured at the end.

    \b
    Examples:
      edgeclf train lite0-gru clips/ -o my_model
      edgeclf train lite0-gru ucf101_8/manifest.csv -o ucf101_8_model --seed 3
    """
    from edgeclf.runtime.progress import steps
    from edgeclf.train.dataset import load_dataset, with_validation
    from edgeclf.train.features import feature_cache_folder
    from edgeclf.train.fit import FitSettings
    from edgeclf.train.lite0_gru import train_lite0_gru

    dataset = with_validation(load_dataset(data, classes=_names(classes)), seed=seed)
    description = train_lite0_gru(
        dataset,
        output,
        name or output.resolve().name,
        FitSettings(epochs, batch, lr, seed=seed),
        cache=cache or feature_cache_folder(),
        say=_say,
        steps=steps,
        about=_read_about(about),
    )
    for split, figures in description.evaluation.items():
        click.echo(f"{split}: " + ", ".join(f"{k} {v}" for k, v in figures.items() if not isinstance(v, (dict, list))))
    click.echo(f"model directory: {output}")


@train.command("theatre")
@click.option("-o", "--output", required=True, type=_FOLDER, metavar="MODEL_DIR", help="Where the model is written.")
@click.option("--clips", type=click.IntRange(64), default=5000, show_default=True, help="Rendered clips to train on.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Over the poses.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is drawn in training.")
def train_theatre(output: Path, clips: int, epochs: int, seed: int) -> None:
    """A small CNN-GRU from scratch on rendered scenes: the packaged `theatre` model.

    \b
    Examples:
      edgeclf train theatre -o theatre_model
    """
    from edgeclf.train.theatre_recipe import TheatreSettings
    from edgeclf.train.theatre_recipe import train_theatre as run

    description = run(output, TheatreSettings(train_clips=clips, pose_epochs=epochs, seed=seed), _say)
    click.echo(json.dumps(description.evaluation, indent=2))
    click.echo(f"model directory: {output}")


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("data", type=_DATA)
@click.option("--classes", default="", metavar="A,B,...", help="Only the clips of these classes.")
@click.option("--split", type=click.Choice(("train", "validation", "test")),
              help="Which clips of a CSV; 'test' if not given. A folder has no splits.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True)
@click.option("--record", metavar="NAME", help="Keep the figures in the model directory; its model card shows them.")
def evaluate(model: str, data: Path, classes: str, split: str | None, form: str, record: str | None) -> None:
    """Measure MODEL on labelled clips: accuracy, precision, recall, F1, confusion matrix.

    MODEL is a model directory, which Keras runs, or a bundle (name or path), which the runtime runs without Keras.
    Measured are the test clips of a CSV; of a folder all clips, also those that the model was trained on. Clips
    that cannot be read count as wrong, and exit code 1 says so.

    \b
    Examples:
      edgeclf evaluate my_model clips.csv
      edgeclf evaluate my_model.edgeclf clips.csv --format json
    """
    from edgeclf.model_directory import DESCRIPTION_NAME
    from edgeclf.runtime.pipeline import LoopOptions
    from edgeclf.runtime.progress import steps
    from edgeclf.train import evaluation
    from edgeclf.train.dataset import load_dataset

    if record and not Path(model, DESCRIPTION_NAME).is_file():
        raise click.UsageError("--record keeps figures in a model directory; a bundle is not changed")
    if split and data.is_dir():
        raise click.UsageError("--split chooses clips of a CSV; a folder has no splits")
    clips = load_dataset(data, classes=_names(classes)).split("train" if data.is_dir() else split or "test")
    with closing(_open(model)) as opened, steps("clips", len(clips)) as advance:
        click.echo(f"{opened.name} on {opened.extractor.placement}", err=True)
        options = LoopOptions.for_device(opened.extractor.placement.device)
        if opened.extractor.placement.backend == "keras":  # its threads are its own
            options = LoopOptions(workers=1, batch_size=32, max_wait=1.0, sources_at_once=2, depth=32)
        found = evaluation.evaluate(opened, clips, options=options, progress=advance)
    for error in found.errors:
        click.echo(error, err=True)
    click.echo(json.dumps(found.to_dict(), indent=2) if form == "json" else _table(found))
    if record:
        _record(model, record, found)
    if found.errors:
        raise click.exceptions.Exit(1)


def _read_about(path: Path | None) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError as error:
        raise click.UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(about, dict):
        raise click.UsageError(f"{path} must hold an object")
    return about


def _record(model: str, name: str, found: Evaluation) -> None:
    """Keep an evaluation in the model directory."""
    from edgeclf.model_directory import read_description, write_description

    description = read_description(Path(model))
    write_description(Path(model), replace(description, evaluation={**description.evaluation, name: found.to_dict()}))


def _open(name: str) -> Model:
    """The model of a bundle, or of a model directory."""
    from edgeclf.bundle import open_bundle
    from edgeclf.model_directory import DESCRIPTION_NAME, open_keras_model
    from edgeclf.runtime.model import open_model

    if Path(name, DESCRIPTION_NAME).is_file():
        return open_keras_model(Path(name))
    return open_model(open_bundle(name))


def _table(evaluation: Evaluation) -> str:
    width = max(len(label) for label in evaluation.labels)
    lines = [f"accuracy {evaluation.accuracy:.3f} on {len(evaluation.truth)} clips", ""]
    lines.append(f"{'':{width}}  precision  recall     f1  clips")
    lines += [
        f"{row.label:{width}}  {row.precision:9.3f}  {row.recall:6.3f}  {row.f1:5.3f}  {row.clips:5}"
        for row in evaluation.class_scores()
        if row.clips
    ]
    columns = [*(str(n) for n in range(1, len(evaluation.labels) + 1)), "failed"]
    lines += ["", f"confusion matrix; row: what it is, column: what was found\n{'':{width + 4}}" + _cells(columns)]
    for number, (label, row) in enumerate(zip(evaluation.labels, evaluation.confusion(), strict=True), start=1):
        lines.append(f"{number:2}  {label:{width}}" + _cells(["." if count == 0 else str(count) for count in row]))
    return "\n".join(lines)


def _cells(cells: list[str]) -> str:
    return "".join(f"{cell:>5}" for cell in cells[:-1]) + f"{cells[-1]:>8}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _say(message: str) -> None:
    click.echo(message, err=True)
