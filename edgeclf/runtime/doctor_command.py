"""`edgeclf doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.option(
    "--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True, help="What to print."
)
def doctor(form: str) -> None:
    """Say what works on this machine, what does not, why, and what to do about it.

    Every library and device is tried in a process of its own with a time limit, so that one that crashes or hangs does
    no harm. What is "not there" may be of no use here. Exit code 1 says that nothing can be classified at all.

    \b
    Examples:
      edgeclf doctor
      edgeclf doctor --format json > machine.json
    """
    from edgeclf.runtime.doctor import Finding, can_run, examine

    findings: list[Finding] = []
    for finding in examine():
        findings.append(finding)
        if form == "table":
            click.echo(finding)
    runs = can_run(findings)
    if form == "json":
        click.echo(json.dumps({"works": runs, "findings": [asdict(finding) for finding in findings]}, indent=2))
    if not runs:
        click.echo("nothing can be classified here: ONNX Runtime's CPU and OpenCV are needed", err=True)
        raise click.exceptions.Exit(1)
