"""`edgeclf bench`."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click
from click.core import ParameterSource

from edgeclf.specs import Device

if TYPE_CHECKING:
    from edgeclf.runtime.tuned import Objective

SCENARIOS = ("offline", "single-stream", "multi-stream", "stages")
_COMPARE = "compare"
_GIVEN = "edgeclf.bench.given"  # the words behind `bench`, in the context
_Record = dict[str, Any]


class _BenchCommand(click.Command):
    """`bench compare A B` compares records; whatever else follows `bench` is measured."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] != [_COMPARE]:
            given = tuple(args)  # parsing empties the list
            context = super().make_context(info_name, args, parent, **extra)
            context.meta[_GIVEN] = given
            return context
        from edgeclf.bench.compare_command import compare

        return compare.make_context(f"{info_name} {_COMPARE}", args[1:], parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """What the command of the context gives, which may be that of `compare`."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


_Callback = Callable[[click.Context, click.Parameter, str], Any]


def _names(*known: str) -> _Callback:
    """Takes names with commas between them, as a tuple, each once; known ones only, where there are some."""

    def convert(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
        for name in names:
            if not name or (known and name not in known):
                raise click.BadParameter(f"{name!r} is not one of {', '.join(known) or 'the names'}.", ctx, param)
        return names

    return convert


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """Takes numbers with commas between them, as a tuple."""
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= 1000 for number in numbers):
        raise click.BadParameter(f"{value!r} must be numbers above 0, 1000 at the most.", ctx, param)
    return numbers


_DEVICES = (*get_args(Device), "all")
_DEVICE_NAMES = f"[{'|'.join(_DEVICES)}],..."
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=_BenchCommand)
@click.argument("bundle", required=False)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--scenario", type=click.Choice((*SCENARIOS, "all")), default="offline", show_default=True,
              help="What is done with the sources.")  # fmt: skip
@click.option("--keras", "model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="MODEL_DIR",
              help="Also time Keras on the model this bundle was made from.")  # fmt: skip
@click.option("--network", metavar="NAME", help="Instead of BUNDLE: an extractor of the recipes, with random weights.")
@click.option("--row", "rows", multiple=True, metavar="NAME",
              help="Only such loops beside ours, by a part of their name; may be repeated.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="How often each is timed.")
@click.option("--stable", is_flag=True,
              help="Instead of --rounds: until quartiles are within 3 % of the median, 15 rounds at most.")  # fmt: skip
@click.option("--device", callback=_names(*_DEVICES), metavar=_DEVICE_NAMES, default="auto", show_default=True,
              help="Several, or all: a row for each that works, and for each that does not the reason.")  # fmt: skip
@click.option("--precision", callback=_names(), metavar="NAME,...", default="fp32", show_default=True,
              help="Which graphs of the bundle run; all of them, and bf16: all.")  # fmt: skip
@click.option("--backend", metavar="NAME", help="What runs the extractor: onnxruntime, openvino or tensorrt.")
@click.option(
    "--batch", type=click.IntRange(1, 1024), help="Frames in one extractor run; chosen by device if not given."
)
@click.option("--tuned", is_flag=True,
              help="Run as edgeclf tune chose: for latency in single-stream, else for throughput.")  # fmt: skip
@click.option("--fps", callback=_numbers, metavar="N,...", default="25", show_default=True,
              help="Live: pictures a second; of several rates the cameras take one each in turn.")  # fmt: skip
@click.option("--sample-fps", type=click.FloatRange(0.1, 1000), help="Live: frames a second that are classified.")
@click.option("--cameras", type=click.IntRange(1, 4096), help="Live: just so many, instead of the most that go.")
@click.option("--p99-ms", type=click.FloatRange(0.1), default=150.0, show_default=True,
              help="Live: 99 % of the labels come sooner after their picture.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 86400), default=10.0, show_default=True,
              help="Live: how long each number of cameras is measured.")  # fmt: skip
@click.option(
    "--jitter-ms", type=click.FloatRange(0, 10000), default=0.0, help="Live: pictures are late by up to this."
)
@click.option("--key-pause-ms", type=click.FloatRange(0, 10000), default=0.0,
              help="Live: every 50th picture, an I-frame, is late by this.")  # fmt: skip
@click.option("--outages", type=click.FloatRange(0.1), nargs=2, metavar="EVERY LENGTH",
              help="Live: every so many seconds a camera is gone for so long.")  # fmt: skip
@click.option("--from-memory", is_flag=True, help="Live: pictures are decoded beforehand.")
@click.option("--json", "record_path", type=_FILE, help="Keep the record here.")
@click.option("--html", "page_path", type=_FILE, help="Write a page with plots here.")
@click.option("--trace", "trace_path", type=_FILE, help="Write a timeline of one more pass here, for Perfetto.")
@click.option("--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True)
def bench(
    bundle: str | None,
    sources: tuple[str, ...],
    network: str | None,
    form: str,
    trace_path: Path | None,
    **options: Any,
) -> None:
    """Measure throughput and latency of BUNDLE over video files, beside the loops it replaces.

    Scenarios: `offline` takes the files as fast as they go; `single-stream` and `multi-stream` show them on simulated
    cameras, one, or more and more until labels come too late; `stages` runs every stage alone.

    Without a SOURCE its extractor alone is measured: every backend and precision that works here, and for each that
    does not the reason. So is, with --network, what any extractor would cost here, beside the ways Keras is called.

    Every loop first runs once over all sources, untimed; its scores must be those of the sequential loop. Then all
    are timed in turn, round by round. The record holds every figure with its machine; the table is made from it.
    Exit code 1 says that a source cannot be read or that scores differ.

    `edgeclf bench compare` compares two records, or those of several machines.

    \b
    Examples:
      edgeclf bench theatre
      edgeclf bench --network resnet50
      edgeclf bench theatre "synthetic://play?seed=1"
      edgeclf bench my_model.edgeclf "test/*.avi" --keras my_model --json record.json --html record.html
      edgeclf bench my_model.edgeclf clip.mp4 --scenario multi-stream --sample-fps 5 --p99-ms 150
      edgeclf bench my_model.edgeclf clip.mp4 --device all --precision all
      edgeclf bench compare record.json other.json
    """
    from edgeclf.video import redacted

    if (bundle is None) == (network is None):
        raise click.UsageError("name a BUNDLE, or a --network")
    if options["tuned"]:
        _check_tuned(options, sources)
    if trace_path and not sources:
        raise click.UsageError("--trace shows the loop: name a SOURCE")
    command = shlex.join(["edgeclf", "bench", *map(redacted, click.get_current_context().meta[_GIVEN])])
    traced = bool(trace_path or options["page_path"])
    if network or not sources:
        records, said = _alone(bundle, network, command, options)
    else:
        records, said = _scenarios(cast(str, bundle), sources, command, options, traced=traced)
    shown = records if len(records) > 1 else records[0]
    click.echo(json.dumps(shown, indent=2) if form == "json" else said)
    _write(records, options["record_path"], options["page_path"], trace_path)


def _check_tuned(options: dict[str, Any], sources: tuple[str, ...]) -> None:
    """Say that --tuned leaves nothing else to choose."""
    given = click.get_current_context().get_parameter_source
    named = [name for name in ("precision", "backend", "batch") if given(name) is not ParameterSource.DEFAULT]
    if named:
        raise click.UsageError(f"--tuned chooses --{named[0]}: leave out one of the two")
    if not sources:
        raise click.UsageError("--tuned is a way to run the loop: name a SOURCE")
    if len(options["device"]) > 1 or options["device"] == ("all",):
        raise click.UsageError("--tuned runs one choice: name one --device, or none")


def _alone(bundle: str | None, network: str | None, command: str, options: dict[str, Any]) -> tuple[list[_Record], str]:
    """The extractor alone."""
    from edgeclf.bench.alone import extractor_alone, network_alone
    from edgeclf.bundle import open_classifiers

    if options["precision"] != ("fp32",):
        raise click.UsageError("--precision chooses a graph for SOURCE; without a SOURCE every precision is measured")
    if len(options["device"]) > 1 or options["device"] == ("all",):
        raise click.UsageError("without a SOURCE one --device is measured")
    how = {
        "rounds": options["rounds"],
        "device": options["device"][0],
        "batch": options["batch"] or 8,
        "command": command,
    }
    if network:
        record, said = network_alone(network, **how, said=partial(click.echo, err=True))
        return [record], said
    opened = open_classifiers(cast(str, bundle))[0]
    if not opened.extractor.has_graph:
        raise click.UsageError("this bundle has no extractor: name a SOURCE to measure the whole loop")
    record, said = extractor_alone(opened, options["model"], **how)
    return [record], said


def _scenarios(
    bundle: str, sources: tuple[str, ...], command: str, options: dict[str, Any], *, traced: bool
) -> tuple[list[_Record], str]:
    from edgeclf.bench.asked import Asked
    from edgeclf.bench.devices import choices_of
    from edgeclf.bench.report import table
    from edgeclf.bundle import open_bundle
    from edgeclf.video import expand_sources

    names = tuple(expand_sources(sources))
    opened = open_bundle(bundle)
    choices = choices_of(options["device"], options["precision"], options["backend"], opened)
    asked = Asked(
        opened,
        names,
        tuple(replace(choice, max_batch=max(choice.max_batch, options["batch"] or 0)) for choice in choices),
        command,
        keras=options["model"],
        batch=options["batch"],
        rows=options["rows"],
        rounds=options["rounds"],
        stable=options["stable"],
        traced=traced,
        live=_live(options),
        said=partial(click.echo, err=True),
    )
    wanted = SCENARIOS if options["scenario"] == "all" else (options["scenario"],)
    # All choices are looked up first: one that is missing must not cost the scenarios before it.
    each = [_as_tuned(asked, bundle, options["device"], name) if options["tuned"] else asked for name in wanted]
    records = [_scenario(name)(one) for name, one in zip(wanted, each, strict=True)]
    width = shutil.get_terminal_size().columns
    return records, "\n\n\n".join(table(record, width) for record in records)


def _as_tuned(asked: Any, bundle: str, devices: Sequence[Device], scenario: str) -> Any:
    """The same benchmark with the choice of `edgeclf tune` for the scenario."""
    from edgeclf.bench.devices import Choice
    from edgeclf.runtime.tuned import find

    objective: Objective = "latency" if scenario == "single-stream" else "throughput"
    tuned = find(asked.bundle, devices[0], objective)
    if tuned is None:
        hint = f"edgeclf tune {bundle} --objective {objective}"
        raise click.UsageError(f"{bundle} was never tuned for {objective} on this machine as it is now: {hint}")
    asked.said(str(tuned))
    choice = Choice(tuned.device, tuned.precision, tuned.backend, tuned.threads)
    return replace(asked, choices=(choice,), tuned=tuned)


def _live(options: dict[str, Any]) -> Any:
    from edgeclf.bench.asked import LiveSettings

    every, length = options["outages"] or (0.0, 0.0)
    if every and length >= every:
        raise click.UsageError("an outage must be shorter than the time from one to the next")
    return LiveSettings(
        fps=options["fps"],
        sample_fps=options["sample_fps"],
        jitter_ms=options["jitter_ms"],
        key_pause_ms=options["key_pause_ms"],
        outages=(every, length),
        seconds=options["seconds"],
        p99_ms=options["p99_ms"],
        cameras=options["cameras"],
        from_memory=options["from_memory"],
    )


def _scenario(name: str) -> Callable[[Any], _Record]:
    from edgeclf.bench.live import multi_stream, single_stream
    from edgeclf.bench.offline import offline
    from edgeclf.bench.stages import stages

    known = {"offline": offline, "single-stream": single_stream, "multi-stream": multi_stream, "stages": stages}
    return known[name]


def _write(records: list[_Record], record_path: Path | None, page_path: Path | None, trace_path: Path | None) -> None:
    """Keep the records; of several each in a file of its own, the scenario's name before the suffix."""
    from edgeclf.bench.rows import write_record

    for record in records if record_path else []:
        assert record_path
        one = record_path.with_suffix(f".{record['scenario']}{record_path.suffix}")
        write_record(one if len(records) > 1 else record_path, record)
    if page_path:
        from edgeclf.bench.page import write_page

        write_page(page_path, records)
    if trace_path:
        from edgeclf.bench.trace import write_trace

        write_trace(trace_path, records[0])
