"""`edgeclf bench compare`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click


class Percentage(click.ParamType):  # type: ignore[type-arg]  # click 8.1 knows no argument here
    """A share written as a percentage: "5%" is 0.05. The sign is asked for, since 0.05 could be meant either way."""

    name = "percentage"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share."""
        if isinstance(value, float):
            return value
        written = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*%\s*", str(value))
        if not written:
            self.fail(f"{value!r} is no percentage; write it as 5%", param, ctx)
        return float(written[1]) / 100


@click.command()
@click.argument("before", type=click.Path(path_type=Path, dir_okay=False), metavar="BEFORE.json")
@click.argument(
    "after", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True, metavar="AFTER.json..."
)
@click.option("--threshold", type=Percentage(), default="5%", show_default=True,
              help="How far a median must have moved for a verdict.")  # fmt: skip
@click.option("--gate", is_flag=True, help="Exit with 1 also where no verdict could be reached.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page of all records here."
)
@click.option("--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True)
def compare(before: Path, after: tuple[Path, ...], threshold: float, gate: bool, page: Path | None, form: str) -> None:
    """Compare records of `edgeclf bench --json` with the first of them.

    Records of the same machine, scenario, bundle and workload are judged, metric by metric: worse or better if the
    median moved by more than the threshold and by more than noise explains, with 5 rounds each at least. Others are
    shown beside each other, with what differs and without a verdict: that is how machines are compared.

    Exit code 1 says that a metric is worse, or that something which ran does not run any more.

    \b
    Examples:
      edgeclf bench compare before.json after.json
      edgeclf bench compare before.json after.json --threshold 3% --gate
      edgeclf bench compare laptop.json jetson.json server.json --html machines.html
    """
    from edgeclf.bench.compare import Named, comparison_table
    from edgeclf.bench.compare import compare as compared
    from edgeclf.bench.page import write_page
    from edgeclf.bench.record_file import read_record

    records = [Named(str(path), read_record(path)) for path in (before, *after)]
    comparisons = compared(records, threshold=threshold)
    if form == "json":
        record = {"threshold": threshold, "comparisons": [comparison.to_dict() for comparison in comparisons]}
        click.echo(json.dumps(record, indent=2))
    else:
        click.echo(comparison_table(records, comparisons, threshold=threshold))
    if page:
        write_page(page, [named.record for named in records], comparisons=comparisons)
    if any(comparison.regressed or (gate and not comparison.is_told) for comparison in comparisons):
        raise click.exceptions.Exit(1)
