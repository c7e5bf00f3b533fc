"""`edgeclf bench`."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import click

from edgeclf.errors import SessionError
from edgeclf.specs import Device, TensorSpec

if TYPE_CHECKING:
    from edgeclf.bench.extractors import Way


@click.command()
@click.argument("bundle", required=False)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--keras", "model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="MODEL_DIR",
              help="Also time Keras' predict, frame by frame, on the model this bundle was made from.")  # fmt: skip
@click.option("--network", metavar="NAME", help="Instead of BUNDLE: an extractor of the recipes, with random weights.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each loop is timed.")
@click.option("--device", type=click.Choice(get_args(Device)), default="auto", show_default=True)
@click.option("--precision", default="fp32", show_default=True, help="Which graph of the bundle runs.")
@click.option(
    "--batch", type=click.IntRange(1, 1024), help="Frames in one extractor run; chosen by device if not given."
)
@click.option("--json", "record_path", type=click.Path(path_type=Path, dir_okay=False), help="Keep the record here.")
@click.option("--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True)
def bench(
    bundle: str | None,
    sources: tuple[str, ...],
    model: Path | None,
    network: str | None,
    rounds: int,
    device: Device,
    precision: str,
    batch: int | None,
    record_path: Path | None,
    form: str,
) -> None:
    """Measure throughput and latency of BUNDLE over video files, beside the loops it replaces.

    Without a SOURCE its extractor alone is measured: every backend and precision that works here, and for each that
    does not the reason. So is, with --network, what any extractor would cost here, beside the ways Keras is called.

    Every loop first runs once over all sources, untimed; its scores must be those of the sequential loop. Then all
    are timed in turn, round by round. The record holds every figure with its machine; the table is made from it.
    Exit code 1 says that a source cannot be read or that scores differ.

    \b
    Examples:
      edgeclf bench theatre
      edgeclf bench --network resnet50
      edgeclf bench theatre "synthetic://play?seed=1"
      edgeclf bench my_model.edgeclf "test/*.avi" --keras my_model --json record.json
    """
    from edgeclf.bench.report import write_record

    if (bundle is None) == (network is None):
        raise click.UsageError("name a BUNDLE, or a --network")
    if network:
        record, said = _network(network, rounds, device, batch or 8)
    elif sources:
        assert bundle
        record, said = _loops(bundle, sources, model, rounds, device, precision, batch)
    elif precision != "fp32":
        raise click.UsageError("--precision chooses a graph for SOURCE; without a SOURCE every precision is measured")
    else:
        assert bundle
        record, said = _extractors(bundle, model, rounds, device, batch or 8)
    click.echo(json.dumps(record, indent=2) if form == "json" else said)
    if record_path:
        write_record(record_path, record)


def _loops(
    bundle: str,
    sources: tuple[str, ...],
    model: Path | None,
    rounds: int,
    device: Device,
    precision: str,
    batch: int | None,
) -> tuple[dict[str, Any], str]:
    from edgeclf.bench.loops import keras_loop, runtime_loops
    from edgeclf.bench.report import measure, table
    from edgeclf.bundle import open_bundle
    from edgeclf.runtime.progress import steps
    from edgeclf.video import expand_sources

    names = expand_sources(sources)
    opened = open_bundle(bundle)
    loops = runtime_loops(opened, names, device, precision=precision, batch=batch)
    if model:
        loops.append(keras_loop(model, names))
    click.echo(f"{opened.classifier.name}: extractor on {loops[0].placement}", err=True)
    with steps("passes", len(loops) * (rounds + 1) + rounds) as advance:
        record = measure(opened, loops, names, rounds=rounds, progress=advance)
    return record, table(record)


def _extractors(bundle: str, model: Path | None, rounds: int, device: Device, batch: int) -> tuple[dict[str, Any], str]:
    from edgeclf.bench.extractors import keras_ways
    from edgeclf.model_directory import load_keras
    from edgeclf.runtime.verify import open_classifiers

    opened = open_classifiers(bundle)[0]
    entry = opened.extractor
    if not entry.has_graph:
        raise click.UsageError("this bundle has no extractor: name a SOURCE to measure the whole loop")
    graphs = {precision: opened.graph(entry, precision) for precision in entry.precisions}
    keras = keras_ways(load_keras(model)[0], entry.preprocess, batch=batch) if model else []
    return _ways(graphs, keras, entry.inputs[0], rounds, device, batch)


def _network(name: str, rounds: int, device: Device, batch: int) -> tuple[dict[str, Any], str]:
    from edgeclf.bench.extractors import keras_ways
    from edgeclf.bench.networks import network_graphs

    with TemporaryDirectory() as folder:
        click.echo(f"converting {name}", err=True)
        network = network_graphs(name, Path(folder))
        keras = keras_ways(network.model, network.preprocess, batch=batch)
        record, said = _ways(network.graphs, keras, network.frames, rounds, device, batch)
        files = network.to_dict()
    made = ", ".join(f"{precision} {file['megabytes']} MB in {file['seconds']} s" for precision, file in files.items())
    return {**record, "network": name, "files": files}, f"{name}, random weights: {made}\n{said}"


def _ways(
    graphs: dict[str, Path], keras: list[Way], frames: TensorSpec, rounds: int, device: Device, batch: int
) -> tuple[dict[str, Any], str]:
    """The record and the table of one extractor in every session and precision, and in Keras."""
    from edgeclf.bench.extractors import extractor_table, measure_extractors, noise, session_ways
    from edgeclf.runtime.cores import available_cores
    from edgeclf.runtime.progress import steps

    ways, reasons = session_ways(graphs, device, batch=batch, threads=available_cores())
    if not ways:
        said = "\n  ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise SessionError(f"nothing runs the extractor on {device}:\n  {said}", hint="see edgeclf doctor")
    ways += keras
    with steps("turns", len(ways) * rounds) as advance:
        record = measure_extractors(ways, noise(frames, batch), rounds=rounds, progress=advance)
    return {**record, "unavailable": reasons}, extractor_table(record, reasons)
