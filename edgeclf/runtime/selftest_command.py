"""`edgeclf selftest`."""

from __future__ import annotations

import faulthandler
import json
import sys

import click


@click.command()
@click.option("--gpu", is_flag=True, help="Also try TensorRT, CUDA graphs and ONNX Runtime's GPU providers.")
@click.option("-b", "--bundle", "bundles", multiple=True, metavar="NAME|PATH",
              help="What to try; may be repeated. All packaged bundles if not given.")  # fmt: skip
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="The report's form.",
)
def selftest(gpu: bool, bundles: tuple[str, ...], form: str) -> None:
    """Try everything that this machine can do with bundles, and print a report to paste.

    Each check is passed, failed or not possible here, with the reason; it stands on stderr as soon as it is done. With
    --gpu, engines are built for this GPU first, which takes minutes. Answers are compared with those of ONNX Runtime on
    the CPU before anything is timed. Exit code 1 says that a check failed, or that there is no GPU.

    \b
    Examples:
      edgeclf selftest
      edgeclf selftest --gpu > report.txt
      edgeclf selftest --gpu -b my_model.edgeclf --format json > report.json
    """
    from edgeclf.runtime.selftest import run_selftest

    if sys.__stderr__:
        faulthandler.enable(sys.__stderr__)  # a library that ends the process should at least say where
    report = run_selftest(bundles, gpu=gpu, say=lambda check: click.echo(str(check), err=True))
    click.echo(json.dumps(report.to_dict(), indent=2) if form == "json" else str(report))
    if report.failed:
        raise click.exceptions.Exit(1)
