"""`edgeclf export`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclf.export.options import judging_options

if TYPE_CHECKING:
    from edgeclf.bundle import ModelBundle


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="MODEL_DIR")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="NAME.edgeclf",
    help="The bundle to write. Of several classifiers in it, NAME.edgeclf#MODEL opens one.",
)
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="MODEL_DIR",
    help="Another model with the same extractor, whose classifier the bundle shall hold too; repeatable.",
)
@click.option(
    "--clips", multiple=True, metavar="PATH", help="Videos to compare on, from decoding to label; repeatable."
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp16", "int8", "u8s8"]),
    help="A lower precision to add; repeatable. int8 is symmetric, for TensorRT; u8s8 is for CPUs.",
)
@judging_options(
    "Labelled clips, as for train, that calibrate and judge lower precisions; once for each model.", several=True
)
@click.option("--allow", is_flag=True, help="Leave out a precision that misses its limits, and write the rest.")
@click.option(
    "--golden",
    multiple=True,
    metavar="PATH",
    help="Videos of which frames go into the bundle, for `edgeclf verify`; rendered ones alone if not given.",
)
@click.option("--tensorrt", is_flag=True, help="Build this machine's TensorRT engines now, instead of on first use.")
@click.option(
    "--triton",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write a model repository for NVIDIA Triton.",
)
def export(
    model: Path,
    output: Path,
    also: tuple[Path, ...],
    clips: tuple[str, ...],
    precisions: tuple[str, ...],
    data: tuple[Path, ...],
    split: str,
    min_windows: int,
    allow: bool,
    golden: tuple[str, ...],
    tensorrt: bool,
    triton: Path | None,
) -> None:
    """Convert the trained model in MODEL_DIR to ONNX and write a bundle, once it agrees with Keras.

    Compared are the extractor and the classifier one by one, the classifier at every clip length, and both from picture
    to label. Where they differ, exit code 1, and nothing is written. Lower precisions are compared with FP32 on
    labelled clips; fp16 also without any, on the model's own few.

    \b
    Examples:
      edgeclf export my_model -o my_model.edgeclf
      edgeclf export my_model -o my_model.edgeclf --clips "test/*.mp4" --precision fp16
      edgeclf export my_model -o my_model.edgeclf --precision int8 --precision u8s8 --data clips.csv
      edgeclf export actions -o both.edgeclf --also moods
    """
    from edgeclf.dataset import load_dataset
    from edgeclf.export.bundling import export_bundle
    from edgeclf.export.lowering import Lowering
    from edgeclf.video import expand_sources

    if tensorrt:
        _check_tensorrt()
    lowering = Lowering(precisions, tuple(map(load_dataset, data)), split, allow, min_windows)
    bundle = export_bundle(
        model,
        output,
        also=also,
        clips=expand_sources(clips),
        golden=expand_sources(golden),
        lowering=lowering,
        say=_say,
    )
    _show(bundle)
    if triton:
        from edgeclf.export.triton import write_model_repository

        written = write_model_repository(bundle, triton)
        click.echo(f"{triton}: {', '.join(path.name for path in written)}")
    if tensorrt:
        _build_engines(bundle)


def _check_tensorrt() -> None:
    """Say now, not after all the work, that no engine can be built here."""
    from edgeclf.errors import SessionError
    from edgeclf.runtime.driver import cuda_driver_problem
    from edgeclf.runtime.tensorrt_engine import import_tensorrt

    if problem := cuda_driver_problem():
        raise SessionError(
            f"engines cannot be built here: {problem}",
            hint="export without --tensorrt; the device that runs the bundle builds its engines on first use",
        )
    import_tensorrt()


def _build_engines(bundle: ModelBundle) -> None:
    """Open what runs on the device in each precision that TensorRT takes, which builds and keeps its engine."""
    from edgeclf.runtime.session import CPU_PRECISIONS, open_session

    entries = [bundle.extractor] if bundle.extractor.has_graph else list(bundle.manifest.classifiers)
    for entry in entries:
        for precision in entry.precisions:
            if precision not in CPU_PRECISIONS:
                _say(f"building the {precision} engine of {entry.precisions[precision]}")
                with closing(open_session(bundle.graph(entry, precision), "tensorrt", precision=precision)) as session:
                    _say(f"{precision}: {session.placement}")


def _say(message: str) -> None:
    click.echo(message, err=True)


def _show(bundle: ModelBundle) -> None:
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    entries = bundle.manifest.classifiers
    held = ", ".join(f"{entry.name} with {len(entry.labels)} labels" for entry in entries)
    if len(entries) == 1:
        held = f"{len(bundle.classifier.labels)} labels"
    click.echo(f"{bundle.path}: {held}, {size / 1e6:.1f} MB")
