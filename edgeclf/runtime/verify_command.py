"""`edgeclf verify`."""

from __future__ import annotations

import json
from typing import get_args

import click

from edgeclf.specs import Device


@click.command()
@click.argument("bundle", metavar="NAME|PATH")
@click.option(
    "--device", type=click.Choice(get_args(Device)), default="auto", show_default=True, help="Where the extractor runs."
)
@click.option("--backend", help="What runs it there: onnxruntime, openvino or tensorrt; chosen by device if not given.")
@click.option(
    "--precision", "precisions", multiple=True, help="One to replay; may be repeated. All in the bundle if not given."
)
@click.option(
    "--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True, help="What to print."
)
def verify(bundle: str, device: Device, backend: str | None, precisions: tuple[str, ...], form: str) -> None:
    """Replay the golden inputs of a bundle on a device, and compare with the answers of the model it was made from.

    fp32 must give the same labels and scores. Other precisions must give features that point the same way and, where
    the winner is clear, the same labels. No training framework is needed. Exit code 1 says that something differs, 2
    that the bundle or the device cannot be used.

    \b
    Examples:
      edgeclf verify theatre
      edgeclf verify my_model.edgeclf --device tensorrt --precision fp16
      edgeclf verify my_model.edgeclf --backend openvino --format json > verdict.json
    """
    from edgeclf.bundle import open_classifiers
    from edgeclf.runtime.verify import table, verify_bundle

    opened = open_classifiers(bundle)
    verdicts = [
        verdict
        for one in opened
        for verdict in verify_bundle(one, device=device, backend=backend, precisions=precisions)
    ]
    passed = all(verdict.passed for verdict in verdicts)
    if form == "json":
        record = {"bundle": bundle, "passed": passed, "verdicts": [verdict.to_dict() for verdict in verdicts]}
        click.echo(json.dumps(record, indent=2))
    else:
        click.echo(table(opened[0].path, verdicts))
    if not passed:
        raise click.exceptions.Exit(1)
