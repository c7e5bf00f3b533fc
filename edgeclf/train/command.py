"""`edgeclf train` and `edgeclf evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeclf.dataset import Dataset, LabelledClip
    from edgeclf.runtime.model import Model
    from edgeclf.train.evaluation import Evaluation
    from edgeclf.train.recipe import Recipe
    from edgeclf.train.training import Precision, Workplace

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_DATA = click.Path(path_type=Path, exists=True)


class _Recipes(click.Group):
    """One command for each recipe; their modules are loaded only for the help and to run them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from edgeclf.train.recipe import RECIPES

        return [*RECIPES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from edgeclf.train.recipe import RECIPES

        if cmd_name not in RECIPES:
            if found := super().get_command(ctx, cmd_name):
                return found
            ctx.fail(f"No such command {cmd_name!r}; `edgeclf train --list` describes the recipes.")
        recipe = RECIPES.load(cmd_name)
        return click.Command(
            cmd_name,
            params=[click.Argument(["data"], type=_DATA), *_options()],
            callback=partial(_train, cmd_name),
            help=f"{recipe.summary[0].upper()}{recipe.summary[1:]}.\n\n{_HELP.format(name=cmd_name)}",
            short_help=recipe.summary,
        )


_HELP = """DATA is a folder with one folder of videos, or of pictures, for each class, or a CSV with the columns
path,label and, if they are known, group and split. Validation clips are taken out of the training clips by whole
groups; a test split is measured once, at the end. The same command, after it was killed, goes on where it was.

\b
Examples:
  edgeclf train {name} clips/ -o my_model
  edgeclf train {name} ucf101/ -o my_model --ucf-lists ucfTrainTestlist --ucf-split 2 --top 10
  edgeclf train {name} clips.csv -o my_model --extractor efficientnet_lite0 --folds 6
"""


@click.group(cls=_Recipes, invoke_without_command=True)
@click.option("--list", "listed", is_flag=True, help="Describe the recipes and end.")
@click.pass_context
def train(context: click.Context, listed: bool) -> None:
    """Train a model from labelled clips, or from rendered ones, into a model directory.

    \b
    Examples:
      edgeclf train --list
      edgeclf train lite0-gru clips/ -o my_model
      edgeclf train lite0-gru clips.csv -o my_model --classes Punch,PushUps --seed 1
      edgeclf train theatre -o theatre_model
    """
    if listed:
        _list_recipes()
    elif context.invoked_subcommand is None:
        raise click.UsageError("name a recipe; `edgeclf train --list` describes them")


def _list_recipes() -> None:
    from edgeclf.train.recipe import RECIPES

    for name in RECIPES:
        recipe = RECIPES.load(name)
        clip = recipe.clip
        how = {"rate": f"at {clip.rate:g} a second", "first": "the first ones", "uniform": "spread over the file"}
        click.echo(f"{name}\n  {recipe.summary}")
        click.echo(f"  extractor: {recipe.extractor or 'none, the network takes frames'}; weights: {recipe.weights}")
        click.echo(f"  clip: {clip.length} frames, {how[clip.sampling]}; file label: {recipe.aggregate}")
        click.echo(f"  source: {recipe.source}\n")


def _option(*names: str, **settings: Any) -> click.Option:
    return click.Option(list(names), **settings)


def _data_options() -> list[click.Parameter]:
    """What tells which clips of DATA are meant, for training and for evaluation."""
    return [
        _option("--classes", default="", metavar="A,B,...", help="Only the clips of these classes."),
        _option("--background", default="", metavar="A,B,...", help="Make one class `background` of these."),
        _option("--ucf-lists", type=_DATA, metavar="FOLDER", help="Official lists of UCF101, DATA is the videos."),
        _option("--ucf-split", type=click.IntRange(1, 3), help="Which official split; 1 if not given."),
    ]


def _options() -> list[click.Parameter]:
    """What every recipe can be given."""
    return [
        _option("-o", "--output", required=True, type=_FOLDER, metavar="MODEL_DIR", help="Where the model is written."),
        _option("--name", help="What the model is called; the name of MODEL_DIR if not given."),
        *_data_options(),
        _option("--top", type=click.IntRange(2), help="Only so many classes, those with most training clips."),
        _option("--random-split", is_flag=True, help="Validate on single clips, not on whole groups; it flatters."),
        _option("--extractor", help="Another network; `edgeclf train --list` shows the recipe's own."),
        _option("--weights", type=click.Choice(("imagenet", "none")), help="Where the extractor begins."),
        _option("--length", type=click.IntRange(1), help="Frames of a clip."),
        _option(
            "--rate", type=click.FloatRange(0, min_open=True), help="Frames a second, where clips are cut by time."
        ),
        _option("--epochs", type=click.IntRange(1), help="At the most."),
        _option("--batch", type=click.IntRange(1), help="Clips in one step."),
        _option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate."),
        _option("--seed", type=click.IntRange(0), help="Of splits and all that is drawn; 0 if not given."),
        _option("--class-weights/--no-class-weights", default=None, help="Every class weighs the same."),
        _option("--views", type=click.IntRange(1), help="How often features are made, augmented from the second on."),
        _option("--config", type=_FILE, metavar="FILE.toml", help="More settings; options given here go before it."),
        _option("--folds", type=click.IntRange(2), help="Also cross-validate by groups, on the training clips."),
        _option("--repeats", type=click.IntRange(1), help="Of the cross-validation; 1 if not given."),
        _option("--over-all", is_flag=True, help="Cross-validate over all clips, those of the test included."),
        _option(
            "--mixed-precision/--float32",
            "mixed",
            default=None,
            help="Train in half precision; if not given, on a GPU only.",
        ),
        _option("--cache", type=_FOLDER, help="Where features are kept; the user's cache folder if not given."),
        _option(
            "--about",
            type=_FILE,
            metavar="FILE.json",
            help="What the model card shall say: summary, intended_use, and anything else.",
        ),
    ]


def _train(recipe_name: str, data: Path, output: Path, **options: Any) -> None:
    """Train by one recipe; what `edgeclf train NAME` does."""
    from edgeclf.dataset import with_validation
    from edgeclf.train.cross_validation import cross_validate
    from edgeclf.train.outcome import train_model

    _refuse_idle(options)
    recipe = _changed_recipe(recipe_name, options)
    dataset = _dataset(data, options, length=recipe.clip.length, top=recipe.top)
    about = _read_about(options["about"])
    workplace = _workplace(options)
    split = with_validation(dataset, seed=recipe.settings.seed, by="clip" if options["random_split"] else "group")
    measured: dict[str, Any] = {}
    if options["folds"]:
        clips = [clip for clip in dataset.clips if options["over_all"] or clip.split != "test"]
        found = cross_validate(
            recipe, clips, dataset.labels, workplace, folds=options["folds"], repeats=options["repeats"] or 1
        )
        measured["cross_validation"] = found.to_dict()
    name = options["name"] or output.resolve().name
    description = train_model(recipe, split, output, name, workplace, about=about, evaluation=measured)
    for part, figures in description.evaluation.items():
        click.echo(f"{part}: " + ", ".join(f"{k} {v}" for k, v in figures.items() if not isinstance(v, (dict, list))))
    click.echo(f"model directory: {output}")
    if "test" in description.evaluation:
        click.echo(f"report: {output / 'report' / 'report.html'}")


_NEEDED = {"ucf_split": "ucf_lists", "repeats": "folds", "over_all": "folds"}  # without which one means nothing


def _refuse_idle(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that would change nothing, since the one that it belongs to is not given."""
    for name, needed in _NEEDED.items():
        if options.get(name) and not options[needed]:
            raise click.UsageError(f"--{name} needs --{needed}".replace("_", "-"))


def _dataset(data: Path, options: Mapping[str, Any], *, length: int, top: int | None = None) -> Dataset:
    """The clips of DATA that the options choose, of `length` pictures where they are made of loose ones."""
    from edgeclf.dataset import load_dataset

    return load_dataset(
        data,
        classes=_names(options["classes"]),
        background=_names(options["background"]),
        top=top,
        ucf_lists=options["ucf_lists"],
        ucf_split=options["ucf_split"] or 1,
        images_per_clip=length,
    )


def _changed_recipe(name: str, options: Mapping[str, Any]) -> Recipe:
    """The recipe with what the TOML file and the options change of it."""
    from edgeclf.train.overrides import merged, read_config, with_overrides
    from edgeclf.train.recipe import RECIPES

    recipe = RECIPES.load(name)
    config = read_config(options["config"]) if options["config"] else {}
    given = {
        "extractor": options["extractor"],
        "weights": options["weights"],
        "top": options["top"],
        "views": options["views"],
        "clip": {"length": options["length"], "rate": options["rate"]},
        "settings": {
            "epochs": options["epochs"],
            "batch": options["batch"],
            "learning_rate": options["lr"],
            "class_weights": options["class_weights"],
            "seed": options["seed"],
        },
    }
    changed = with_overrides(recipe, merged(config, given))
    return changed.with_seed(changed.settings.seed)


def _workplace(options: Mapping[str, Any]) -> Workplace:
    from edgeclf.runtime.cache import cache_folder
    from edgeclf.runtime.progress import steps
    from edgeclf.train.training import Workplace, has_gpu

    mixed = has_gpu() if options["mixed"] is None else options["mixed"]
    precision: Precision = "mixed_float16" if mixed else "float32"
    if mixed:
        _say("training in mixed precision (float16)")
    return Workplace(options["cache"] or cache_folder("features"), _say, steps, precision=precision)


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


@click.command(params=_data_options())
@click.argument("model", metavar="MODEL")
@click.argument("data", type=_DATA)
@click.option("--split", type=click.Choice(("train", "validation", "test")),
              help="Which clips; if not given those for testing, or all where there are no splits.")  # fmt: skip
@click.option("--draw", type=click.IntRange(1), metavar="N",
              help="Of loose pictures: N clips for each class, drawn with overlap.")  # fmt: skip
@click.option("--report", type=_FOLDER, metavar="FOLDER", help="Also write report.html, report.json, predictions.csv.")
@click.option("--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True)
@click.option("--record", metavar="NAME", help="Keep the figures in the model directory; its model card shows them.")
def evaluate(
    model: str,
    data: Path,
    split: str | None,
    draw: int | None,
    report: Path | None,
    form: str,
    record: str | None,
    **options: Any,
) -> None:
    """Measure MODEL on labelled clips: accuracy with its interval, precision, recall, F1, confusion matrix.

    MODEL is a model directory, which Keras runs, or a bundle (name or path), which the runtime runs without Keras.
    Measured are the test clips; where the data have no splits all clips, also those that the model was trained on.
    Clips that cannot be read count as wrong, and exit code 1 says so.

    \b
    Examples:
      edgeclf evaluate my_model clips.csv
      edgeclf evaluate my_model.edgeclf clips.csv --format json
      edgeclf evaluate my_model clips.csv --classes fall --background walk,sit
      edgeclf evaluate my_model ucf101/ --ucf-lists ucfTrainTestlist --ucf-split 2
      edgeclf evaluate my_model fer2013/manifest.csv --draw 100 --report faces_report
    """
    from edgeclf.model_directory import DESCRIPTION_NAME
    from edgeclf.runtime.pipeline import LoopOptions
    from edgeclf.runtime.progress import steps
    from edgeclf.train import evaluation
    from edgeclf.train.report import write_report

    _refuse_idle(options)
    if record and not Path(model, DESCRIPTION_NAME).is_file():
        raise click.UsageError("--record keeps figures in a model directory; a bundle is not changed")
    with closing(_open(model)) as opened:
        dataset = _dataset(data, options, length=opened.clip.length)
        clips = _evaluated_clips(dataset, split, draw, opened.clip.length)
        click.echo(f"{opened.name} on {opened.extractor.placement}", err=True)
        loop = LoopOptions.for_device(opened.extractor.placement.device)
        if opened.extractor.placement.backend == "keras":  # its threads are its own
            loop = LoopOptions(workers=1, batch_size=32, max_wait=1.0, sources_at_once=2, depth=32)
        with steps("clips", len(clips)) as advance:
            found = evaluation.evaluate(opened, clips, options=loop, progress=advance)
    for error in found.errors:
        click.echo(error, err=True)
    if draw:
        click.echo("drawn clips share pictures: the interval is narrower than it should be", err=True)
    click.echo(json.dumps(found.to_dict(), indent=2) if form == "json" else _table(found))
    if report:
        about = {"model": model, "data": str(data), "runs on": str(opened.extractor.placement)}
        write_report(report, found, title=f"{opened.name} on {data.stem}", about=about, clips=clips)
    if record:
        _record(model, record, found)
    if found.errors:
        raise click.exceptions.Exit(1)


def _evaluated_clips(dataset: Dataset, split: str | None, draw: int | None, length: int) -> list[LabelledClip]:
    from edgeclf.dataset import draw_image_clips

    clips = dataset.split(split or "test") if split or dataset.has_splits else list(dataset.clips)
    if draw is None:
        return clips
    if not all(clip.images for clip in clips):
        raise click.UsageError("--draw draws clips of loose pictures; these are videos")
    return draw_image_clips(clips, per_class=draw, length=length)


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
    interval = evaluation.accuracy_interval()
    lines = [
        f"accuracy {evaluation.accuracy:.3f} on {len(evaluation.truth)} clips; 95 % interval {interval.low:.3f} to "
        f"{interval.high:.3f}, over {evaluation.independent_groups} groups",
        f"macro F1 {evaluation.macro_f1:.3f}",
        "",
    ]
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
