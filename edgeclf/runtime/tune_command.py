"""`edgeclf tune`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from edgeclf.specs import Device

if TYPE_CHECKING:
    from edgeclf.runtime.tuned import Objective


@click.command()
@click.argument("bundle", metavar="NAME|PATH")
@click.option(
    "--objective",
    type=click.Choice(("throughput", "latency")),
    default="throughput",
    show_default=True,
    help="Most frames a second over files, or the shortest run of a live frame.",
)
@click.option(
    "--device", type=click.Choice(get_args(Device)), default="auto", show_default=True, help="Where to look for it."
)
@click.option(
    "--precision",
    default="all",
    show_default=True,
    help="One to choose among; or all in the bundle that its export has proven, and bf16.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=12.0,
    show_default=True,
    help="About how long to measure; opening sessions comes on top.",
)
@click.option("--show", is_flag=True, help="Show what was found before; nothing is measured.")
@click.option(
    "--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True, help="What to print."
)
def tune(
    bundle: str, objective: Objective, device: Device, precision: str, seconds: float, show: bool, form: str
) -> None:
    """Find the fastest way to run a bundle on this machine, and keep it for `edgeclf infer`.

    Every backend, precision, batch, and number of workers and threads that works here is tried, unless it is clearly
    behind. What gives other answers than the bundle's own is left out.

    \b
    Examples:
      edgeclf tune ucf101_8
      edgeclf tune my_model.edgeclf --objective latency --device cpu
      edgeclf tune my_model.edgeclf --precision fp32 --format json > tuned.json
      edgeclf tune my_model.edgeclf --show
    """
    from edgeclf.bundle import open_bundle
    from edgeclf.runtime.progress import steps
    from edgeclf.runtime.tune import tune as tune_bundle
    from edgeclf.runtime.tuned import key_of, stored_record

    opened = open_bundle(bundle)
    if show:
        record = stored_record(opened, device, objective)
        if record is None:
            click.echo(f"{bundle} was never tuned for {objective} on this machine as it is now", err=True)
            raise click.exceptions.Exit(1)
    else:
        key = key_of(opened, device, objective)
        _warn_if_busy(key["cores"])
        found = tune_bundle(opened, device, objective=objective, precision=precision, seconds=seconds, progress=steps)
        record = {**found, "key": key}
        _keep(key, found)
    _print(record, form)


def _warn_if_busy(cores: int) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores / 2:
        click.echo(f"this machine is busy (load {load:.1f}, {cores} cores): tune it again when it is quiet", err=True)


def _keep(key: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """A result that cannot be kept is still one."""
    from edgeclf.runtime.tuned import keep

    try:
        click.echo(f"kept in {keep(key, record)}", err=True)
    except OSError as error:
        click.echo(f"it cannot be kept: {error}; set EDGECLF_CACHE_DIR to a folder that can be written", err=True)


def _print(record: Mapping[str, Any], form: str) -> None:
    from edgeclf.runtime.tuned import table

    click.echo(json.dumps(record, indent=2) if form == "json" else table(record))
