"""`edgeclf bundle`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclf.export.options import judging_options
from edgeclf.runtime.verify_command import verify

if TYPE_CHECKING:
    from edgeclf.bundle import ClassifierEntry, ExtractorEntry, ModelBundle
    from edgeclf.export.triton import Accelerator, InstanceKind

_MANY_LABELS = 12
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group()
def bundle() -> None:
    """Show a bundle, prove it on this machine, add a classifier to it, or hand it to Triton.

    \b
    Examples:
      edgeclf bundle show ucf101_8
      edgeclf bundle verify my_model.edgeclf --device cuda
      edgeclf bundle attach my_model.edgeclf other_model
      edgeclf bundle triton my_model.edgeclf model_repository
    """


bundle.add_command(verify)


@bundle.command()
@click.argument("name", metavar="NAME|PATH")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="What to print."
)
def show(name: str, form: str) -> None:
    """Print what a bundle holds: graphs, labels, clips, accuracy as measured, the gate's report, and where it is from.

    The bundle is opened and its hashes are checked. JSON is the manifest, with the path and the sizes of all files.

    \b
    Examples:
      edgeclf bundle show theatre
      edgeclf bundle show my_model.edgeclf --format json
    """
    from edgeclf.bundle import open_classifiers

    opened = open_classifiers(name)[0]
    if form == "json":
        record = {"path": str(opened.path), "bytes": _sizes(opened), **opened.manifest.to_dict()}
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        for line in _text(opened):
            click.echo("".join(filter(str.isprintable, line)))  # a bundle's own words may hold what steers a terminal


@bundle.command()
@click.argument("path", metavar="BUNDLE", type=_FOLDER)
@click.argument("model", metavar="MODEL_DIR", type=_FOLDER)
@click.option(
    "--clips", multiple=True, metavar="PATH", help="Videos to compare on, from decoding to label; repeatable."
)
@judging_options("Labelled clips that lower precisions of BUNDLE are judged on; INT8 asks for them.")
def attach(path: Path, model: Path, clips: tuple[str, ...], data: Path | None, split: str, min_windows: int) -> None:
    """Add the classifier of the trained model in MODEL_DIR to BUNDLE, if both have the very same extractor.

    The new classifier must agree with Keras, as in export, and pass in every precision of BUNDLE. Where anything fails
    the bundle stays as it was.
    NAME.edgeclf#MODEL then opens the new classifier.

    \b
    Examples:
      edgeclf bundle attach my_model.edgeclf other_model
      edgeclf bundle attach my_model.edgeclf other_model --clips "test/*.mp4"
    """
    from edgeclf.dataset import load_dataset
    from edgeclf.export.attach import attach_classifier
    from edgeclf.video import expand_sources

    opened = attach_classifier(
        path,
        model,
        clips=expand_sources(clips),
        data=load_dataset(data) if data else None,
        split=split,
        min_windows=min_windows,
        say=lambda message: click.echo(message, err=True),
    )
    held = ", ".join(f"{entry.name} with {len(entry.labels)} labels" for entry in opened.manifest.classifiers)
    click.echo(f"{opened.path}: {held}")


@bundle.command()
@click.argument("name", metavar="NAME|PATH")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path, file_okay=False))
@click.option("--precision", default="fp32", show_default=True, help="Which graph of the extractor is served.")
@click.option("--max-batch", type=click.IntRange(1, 1024), default=8, show_default=True, help="Clips in one run.")
@click.option("--instances", type=click.IntRange(1, 64), default=1, show_default=True, help="Copies on each device.")
@click.option(
    "--kind", type=click.Choice(("auto", "gpu", "cpu")), default="auto", show_default=True, help="Where they run."
)
@click.option(
    "--tensorrt", type=click.Choice(("FP32", "FP16")), help="Let ONNX Runtime build TensorRT engines in Triton."
)
def triton(
    name: str,
    folder: Path,
    precision: str,
    max_batch: int,
    instances: int,
    kind: InstanceKind,
    tensorrt: Accelerator | None,
) -> None:
    """Write a bundle into FOLDER as models for NVIDIA Triton Inference Server.

    NAME_clip takes a whole clip of frames and gives scores; BUNDLE_extractor and NAME_classifier are its two halves.
    Other models in FOLDER are left alone.

    \b
    Examples:
      edgeclf bundle triton ucf101_8 model_repository
      edgeclf bundle triton my_model.edgeclf model_repository --tensorrt FP16 --max-batch 4
    """
    from edgeclf.bundle import open_classifiers
    from edgeclf.export.triton import Serving, write_model_repository

    serving = Serving(max_batch=max_batch, instances=instances, kind=kind, tensorrt=tensorrt)
    for path in write_model_repository(open_classifiers(name)[0], folder, precision=precision, serving=serving):
        click.echo(path)


# -- what show prints -------------------------------------------------------------------------------------------------


def _sizes(bundle: ModelBundle) -> dict[str, int]:
    return {name: (bundle.path / name).stat().st_size for name in bundle.manifest.files}


def _text(bundle: ModelBundle) -> Iterator[str]:
    manifest, sizes = bundle.manifest, _sizes(bundle)
    yield _line("name", manifest.name)
    yield _line("path", f"{bundle.path}, {_megabytes(sum(sizes.values()))}, schema version {manifest.schema_version}")
    yield from _extractor(bundle.extractor, sizes)
    for entry in manifest.classifiers:
        yield from _classifier(entry, sizes)
    yield from ("", "agreement with the original")
    yield from _parity(manifest.parity)
    yield from ("", "where it is from")
    yield from _provenance(manifest.provenance)
    entries = [bundle.extractor.precisions, *(entry.precisions for entry in manifest.classifiers)]
    graphs = {file for precisions in entries for file in precisions.values()}
    yield from ("", "other files")
    yield from (_line(name, _megabytes(size)) for name, size in sizes.items() if name not in graphs)


def _extractor(entry: ExtractorEntry, sizes: Mapping[str, int]) -> Iterator[str]:
    preprocess = entry.preprocess
    yield from ("", "extractor" if entry.has_graph else "no extractor: the classifier takes frames")
    stacked = f", {preprocess.stack} pictures {preprocess.stack_seconds:g} s apart" if preprocess.stack > 1 else ""
    yield _line("takes", f"{entry.inputs[0]}: {preprocess.color}, crop {preprocess.crop}{stacked}")
    if entry.has_graph:
        yield _line("gives", str(entry.outputs[0]))
        yield from _graphs(entry.precisions, sizes)


def _classifier(entry: ClassifierEntry, sizes: Mapping[str, int]) -> Iterator[str]:
    clip = entry.clip
    shown = ", ".join(entry.labels[:_MANY_LABELS]) + (", ..." if len(entry.labels) > _MANY_LABELS else "")
    yield from ("", f"classifier {entry.name}")
    yield _line("labels", f"{len(entry.labels)}: {shown}")
    yield _line("clip", f"{clip.length} frames at {clip.rate:g} a second, a new one every {clip.hop_seconds:g} s")
    yield _line("files", f"sampled by {clip.sampling}, padding {clip.padding}, aggregate {entry.aggregate}")
    yield from _graphs(entry.precisions, sizes)
    yield from (_line("accuracy", measured) for measured in _measured(entry.evaluation))
    unknown = ", ".join(f"{label} {score:g}" for label, score in entry.thresholds.items() if score)
    yield _line("unknown", f"below {unknown}" if unknown else "never, unless --conf is given")


def _graphs(precisions: Mapping[str, str], sizes: Mapping[str, int]) -> Iterator[str]:
    yield from (_line(precision, f"{file}, {_megabytes(sizes[file])}") for precision, file in precisions.items())


def _measured(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Of each measurement that says an accuracy; of the evaluation itself where it is one."""
    if "accuracy" in evaluation:
        yield _accuracy(evaluation)
    for name, figures in evaluation.items():
        if isinstance(figures, dict) and "accuracy" in figures:
            yield f"{_accuracy(figures)} ({name.replace('_', ' ')})"


def _accuracy(figures: Mapping[str, Any]) -> str:
    clips = figures.get("clips", figures.get("test_clips"))
    return f"{figures['accuracy']}" + (f" on {clips} clips" if clips else "")


def _parity(parity: Mapping[str, Any]) -> Iterator[str]:
    if not parity:
        yield _line("none", "the manifest holds no report")
    for precision, report in parity.items():
        if not isinstance(report, list):
            yield _line(precision, json.dumps(report, ensure_ascii=False))
            continue
        judged = [check for check in report if isinstance(check, dict) and "top1_agreement" in check]
        for check in judged:
            yield _line(precision, f"{check.get('classifier')}: {_judged(check)}")
        if not judged:
            passed = sum(isinstance(check, dict) and check.get("passed") is True for check in report)
            yield _line(precision, f"{passed} of {len(report)} checks passed")


def _judged(figures: Mapping[str, Any]) -> str:
    said = f"same first label as fp32 in {figures['top1_agreement']:.2%} of {figures.get('windows')} windows"
    if "accuracy" in figures:
        said += f", accuracy {figures['accuracy']:.4f} beside {figures.get('fp32_accuracy'):.4f}"
    return said


def _provenance(provenance: Mapping[str, Any]) -> Iterator[str]:
    """The values that stand there alone; JSON has all of them."""
    for key, value in provenance.items():
        if isinstance(value, (str, int, float)):
            yield _line(key.replace("_", " "), str(value))
    if isinstance(also := provenance.get("also"), dict):
        yield _line("also", ", ".join(also))


def _line(name: str, value: str) -> str:
    return f"  {name:<14}{value}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
