"""`edgeclf infer`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from click.core import ParameterSource

from edgeclf.specs import Device, Resize

if TYPE_CHECKING:
    from edgeclf.runtime.pipeline import Classifier
    from edgeclf.runtime.records import Prediction
    from edgeclf.runtime.tuned import Objective
    from edgeclf.video import VideoSource

_FORMATS = ("table", "jsonl", "csv", "vtt")


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("-s", "--source", "more_sources", multiple=True, metavar="SOURCE", help="A source; may be repeated.")
@click.option("-b", "--bundle", "bundles", multiple=True, metavar="NAME|PATH",
              help="A packaged classifier, or the folder of a bundle; several that share an extractor.")  # fmt: skip
@click.option(
    "--device", type=click.Choice(get_args(Device)), default="auto", show_default=True, help="Where the extractor runs."
)
@click.option("--backend", help="What runs it there: onnxruntime, openvino or tensorrt; chosen by device if not given.")
@click.option("--precision", help="Which graph of the bundle runs; fp32 if not given.")
@click.option(
    "--batch", type=click.IntRange(1, 1024), help="Frames in one extractor run; chosen by device if not given."
)
@click.option("--decoder", help="What decodes: pyav, opencv, nvdec, vaapi, v4l2 or gstreamer; pyav if not given.")
@click.option("--resize", type=click.Choice(get_args(Resize)),
              help="How pictures are resized; as the model was trained, if not given.")  # fmt: skip
@click.option("--sample-fps", type=click.FloatRange(0.01, 1000), metavar="N",
              help="Frames a second that clips are made of; the model's own rate if not given.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 256), help="Extractor runs at a time; one per core if not given.")
@click.option("--no-tuned", is_flag=True, help="Run by defaults, whatever edgeclf tune has found on this machine.")
@click.option(
    "--streams", type=click.IntRange(1, 1024), help="Files that are read at a time; two per core if not given."
)
@click.option("--motion-gate", "gates", metavar="[SOURCE=]LEVEL", multiple=True,
              help="Extract only frames of which a part changed in brightness by more than LEVEL (0-255).")  # fmt: skip
@click.option(
    "--conf",
    type=click.FloatRange(0, 1),
    help="Below this score the label is 'unknown'; each label's own threshold in the bundle if not given.",
)
@click.option("--top-k", type=click.IntRange(1), help="How many labels to give with their scores.")
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), default="table", show_default=True, help="Output on stdout."
)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.mp4|.gif",
              help="Write a copy of the one SOURCE with the labels drawn on it.")  # fmt: skip
def infer(
    sources: tuple[str, ...],
    more_sources: tuple[str, ...],
    bundles: tuple[str, ...],
    device: Device,
    backend: str | None,
    precision: str | None,
    batch: int | None,
    decoder: str | None,
    resize: Resize | None,
    sample_fps: float | None,
    workers: int | None,
    no_tuned: bool,
    streams: int | None,
    gates: tuple[str, ...],
    conf: float | None,
    top_k: int | None,
    form: str,
    save: Path | None,
) -> None:
    """Classify SOURCES: video files, folders of them, quoted globs, cameras (0), streams (rtsp://...), lists (@FILE).

    A video longer than one clip gives a timeline. What runs, and errors, stand on stderr; exit code 1 says that
    a source failed, after all others were done. Without any source or option a demo is played.

    \b
    Examples:
      edgeclf infer
      edgeclf infer holiday.mp4 -b ucf101_8
      edgeclf infer holiday.mp4 -b ucf101_8 --save labelled.mp4
      edgeclf infer "recordings/*.mkv" -b my_model.edgeclf --format jsonl > labels.jsonl
      edgeclf infer street.mp4 -b ucf101_8 -b fight
      edgeclf infer rtsp://camera/stream 0 -b fight --format jsonl
    """
    from edgeclf.runtime.pipeline import open_classifier, run_loop
    from edgeclf.runtime.records import Prediction, SourceEnd
    from edgeclf.runtime.writers import WRITERS
    from edgeclf.video import expand_sources

    if not _anything_given():
        _play_demo()
        return
    names = expand_sources((*sources, *more_sources))
    _check_usage(names, bundles, form, save, conf)
    _check_decoder(decoder)
    levels = _levels(gates, names)
    failed = False
    shown: list[Prediction] = []
    objective = None if no_tuned else _objective(names)
    with open_classifier(
        *bundles,
        device=device,
        precision=precision,
        backend=backend,
        tuned_for=objective,
        resize=resize,
        sample_fps=sample_fps,
        batch_size=batch,
    ) as classifier:
        options = replace(
            classifier.options,
            workers=workers or classifier.options.workers,
            sources_at_once=streams or classifier.options.sources_at_once,
        )
        click.echo(_banner(classifier, options.workers), err=True)
        opener = _opener(decoder, classifier.model.preprocess.size)
        writer = WRITERS.load(form)(sys.stdout, top_k=top_k, several=len(bundles) > 1)
        for record in run_loop(
            names,
            classifier.model,
            options,
            also=classifier.also,
            threshold=conf,
            motion_gate=levels,
            opener=opener,
        ):
            writer.write(record)
            if save and isinstance(record, Prediction):
                shown.append(record)
            if isinstance(record, SourceEnd) and record.error:
                failed = True
                click.echo(f"{record.error.kind}: {record.error}", err=True)
    if save and shown:
        _save(opener(names[0]), shown, save)
    if failed:
        raise click.exceptions.Exit(1)


def _anything_given() -> bool:
    context = click.get_current_context()
    return any(context.get_parameter_source(name) is not ParameterSource.DEFAULT for name in context.params)


def _play_demo() -> None:
    from edgeclf.runtime.demo import BUNDLE, run_demo
    from edgeclf.runtime.pipeline import open_classifier

    click.echo(
        "no SOURCE was named: a rendered scene of several actions is played through the packaged model", err=True
    )
    with open_classifier(BUNDLE) as classifier:
        click.echo(_banner(classifier, classifier.options.workers), err=True)
        run_demo(classifier, sys.stdout)


def _save(source: VideoSource, predictions: list[Prediction], path: Path) -> None:
    from edgeclf.runtime.overlay import save_labelled
    from edgeclf.runtime.timeline import segments_of

    written = save_labelled(source, list(segments_of(predictions)), path)
    click.echo(f"{path}: {written} frames", err=True)


def _opener(decoder: str | None, size: tuple[int, int]) -> Callable[[str], VideoSource]:
    """What opens sources; a decoder that scales may scale down to `size`."""
    from edgeclf.decoders import open_source
    from edgeclf.video import open_video

    return partial(open_source, decoder=decoder, short_side=min(size)) if decoder else open_video


def _check_decoder(decoder: str | None) -> None:
    """Say before any work that a decoder is unknown or does not work here."""
    from edgeclf.decoders import require_decoder
    from edgeclf.errors import VideoError

    try:
        if decoder:
            require_decoder(decoder)
    except VideoError as error:
        raise click.UsageError(str(error)) from error


def _objective(names: list[str]) -> Objective:
    """What counts: the delay of a label where one camera is looked at, throughput everywhere else."""
    from edgeclf.video import is_live

    return "latency" if len(names) == 1 and is_live(names[0]) else "throughput"


def _levels(gates: tuple[str, ...], names: list[str]) -> dict[str, float] | None:
    """The levels of the motion gate by source, as it was given."""
    from edgeclf.video import redacted

    levels: dict[str, float] = {}
    for gate in gates:
        source, mark, level = gate.rpartition("=")
        try:
            value = float(level)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 255:
            raise click.UsageError(f"--motion-gate wants a LEVEL of 0 to 255, not {redacted(level)!r}")
        if mark and source not in names:
            raise click.UsageError(f"--motion-gate names {redacted(source)!r}, which is no SOURCE")
        levels |= dict.fromkeys([source] if mark else names, value)
    return levels or None


def _check_usage(names: list[str], bundles: tuple[str, ...], form: str, save: Path | None, conf: float | None) -> None:
    from edgeclf.bundle import packaged_classifiers

    if not names:
        raise click.UsageError("name at least one SOURCE")
    if not bundles:
        known = ", ".join(packaged_classifiers()) or "none"
        raise click.UsageError(f"say which model to use with --bundle; packaged: {known}")
    if conf is not None and math.isnan(conf):
        raise click.UsageError("--conf must be a number from 0 to 1")
    if form == "vtt" and len(names) > 1:
        raise click.UsageError(f"--format vtt describes one source, {len(names)} were named")
    if len(bundles) > 1 and (form == "vtt" or save):
        raise click.UsageError("--format vtt and --save show one classifier: name one --bundle")
    if save:
        _check_save(names, save)


def _check_save(names: list[str], save: Path) -> None:
    """Say now, not after all the work, that the labelled copy cannot be written."""
    from edgeclf.runtime.overlay import SUFFIXES
    from edgeclf.video import is_live

    if len(names) > 1:
        raise click.UsageError(f"--save writes one source, {len(names)} were named")
    if is_live(names[0]):
        raise click.UsageError("--save reads its source twice, which a live one cannot be: record it first")
    if save.suffix.lower() not in SUFFIXES:
        raise click.UsageError(f"--save writes {', '.join(SUFFIXES)}, not {save.suffix or 'a name without ending'}")
    if not os.access(save.parent, os.W_OK):
        raise click.UsageError(f"--save cannot write into the folder {save.parent}")
    if save.exists() and Path(names[0]).exists() and save.samefile(names[0]):
        raise click.UsageError("--save would overwrite the source itself")


def _banner(classifier: Classifier, workers: int) -> str:
    model = classifier.model
    copies = f" x {workers} workers" if workers > 1 else ""
    names = ", ".join(each.name for each in (model, *classifier.also))
    parts = [
        f"{names}: extractor on {model.extractor.placement}{copies}",
        f"classifier on {model.classifier.placement}",
        *(["planes resized"] if model.preprocess.resize == "planes" else []),
        *([f"{model.sample_fps:g} frames/s"] if model.sample_fps else []),
        *([str(classifier.tuned)] if classifier.tuned else []),
    ]
    return "; ".join(parts)
