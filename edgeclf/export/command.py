"""`edgeclf export`."""

from __future__ import annotations

from pathlib import Path

import click


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
def export(model: Path, output: Path, also: tuple[Path, ...], clips: tuple[str, ...]) -> None:
    """Convert the trained model in MODEL_DIR to ONNX and write a bundle, once it agrees with Keras.

    Compared are the extractor and the classifier one by one, the classifier at every clip length, and both from picture
    to label. Where they differ, exit code 1, and nothing is written.

    \b
    Examples:
      edgeclf export my_model -o my_model.edgeclf
      edgeclf export my_model -o my_model.edgeclf --clips "test/*.mp4"
      edgeclf export actions -o both.edgeclf --also moods
    """
    from edgeclf.export.bundling import export_bundle
    from edgeclf.video import expand_sources

    bundle = export_bundle(
        model, output, also=also, clips=expand_sources(clips), say=lambda message: click.echo(message, err=True)
    )
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    entries = bundle.manifest.classifiers
    held = ", ".join(f"{entry.name} with {len(entry.labels)} labels" for entry in entries)
    if len(entries) == 1:
        held = f"{len(bundle.classifier.labels)} labels"
    click.echo(f"{bundle.path}: {held}, {size / 1e6:.1f} MB")
