"""The `edgeclf` command: a group whose sub-commands are imported when they run."""

from __future__ import annotations

import io
import logging
import os
import sys
from importlib import import_module
from typing import cast

import click

from edgeclf import __version__
from edgeclf.errors import EdgeclfError

_COMMANDS = {
    "infer": ("edgeclf.runtime.command:infer", "Classify video files, or play the demo."),
    "train": ("edgeclf.train.command:train", "Train a model from labelled clips."),
    "evaluate": ("edgeclf.train.command:evaluate", "Measure a model on labelled clips."),
    "bench": ("edgeclf.bench.command:bench", "Measure throughput and latency beside the loops it replaces."),
    "export": ("edgeclf.export.command:export", "Convert a trained model into a bundle that agrees with it."),
    "verify": ("edgeclf.runtime.verify_command:verify", "Prove on this machine that a bundle gives its own answers."),
    "bundle": ("edgeclf.export.bundle_command:bundle", "Show a bundle, or add a classifier to it."),
    "tune": ("edgeclf.runtime.tune_command:tune", "Find the fastest way to run a bundle on this machine."),
    "doctor": ("edgeclf.runtime.doctor_command:doctor", "Say what works on this machine, and what does not and why."),
    "selftest": ("edgeclf.runtime.selftest_command:selftest", "Run everything a GPU can do here, and print a report."),
}
_FAILED, _INTERRUPTED = 1, 130


class _LazyGroup(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name][0].partition(":")
        return cast(click.Command, getattr(import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgeclf")
@click.option("-v", "--verbose", is_flag=True, help="Show the library's log on stderr.")
def cli(verbose: bool) -> None:
    """Edge inference engine for video classification: from labelled clips to labels on a running video."""
    logging.getLogger("edgeclf.runtime.sessions.tensorrt").setLevel(logging.INFO)  # an engine takes minutes to build
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


def main() -> None:
    """Run the command line and exit: 0 success, 1 the job failed, 2 wrong usage, 130 interrupted."""
    # Importing NumPy and OpenCV starts OpenBLAS threads that spin beside ours.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _prepare_output()
    try:
        sys.exit(cli.main(prog_name="edgeclf", standalone_mode=False))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except (click.ClickException, EdgeclfError, OSError) as error:
        sys.exit(_report(error))


def _prepare_output() -> None:
    """Let file names through that the terminal cannot show; end at once where results have nowhere to go."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        sys.exit(_FAILED)


def _report(error: click.ClickException | EdgeclfError | OSError) -> int:
    """Say on stderr what went wrong; the exit code."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of our output went away; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing stdout fails once more
        return _FAILED
    if isinstance(error, EdgeclfError):
        click.echo(f"{error.kind}: {error}", err=True)
        return error.exit_code
    click.echo(f"{type(error).__name__}: {error}", err=True)
    return _FAILED
