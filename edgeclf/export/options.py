"""Options that several commands of export have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def judging_options(about_data: str, *, several: bool = False) -> Callable[[_Command], _Command]:
    """`--data`, `--split` and `--windows`: the labelled clips that lower precisions are judged on.

    about_data: the help of `--data`. several: it may be repeated, and `data` is a tuple. The command is given `data`,
    `split` and `min_windows`.
    """
    options = (
        click.option(
            "--data", multiple=several, type=click.Path(path_type=Path, exists=True), metavar="DATA", help=about_data
        ),
        click.option(
            "--split",
            type=click.Choice(["train", "validation", "test"]),
            default="test",
            show_default=True,
            help="The clips of DATA that precisions are judged on.",
        ),
        click.option(
            "--windows",
            "min_windows",
            type=click.IntRange(1),
            default=2000,
            show_default=True,
            help="Labelled windows that INT8 is judged on at least.",
        ),
    )

    def with_options(command: _Command) -> _Command:
        for option in reversed(options):  # the last to be added is the first in the help
            command = option(command)
        return command

    return with_options
