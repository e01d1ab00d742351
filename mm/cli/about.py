"""What the library knows of itself and of this machine: the table of models, and the doctor."""

from __future__ import annotations

import json as json_format
import platform
from dataclasses import asdict
from typing import Annotated

import typer


def models(json: Annotated[bool, typer.Option("--json", help="One JSON object per model.")] = False) -> None:
    """List the models that are known by name.

    \b
    mm models
    mm models --json
    """
    from mm.cli import render
    from mm.zoo import MODELS

    entries = MODELS.values()
    if json:
        for entry in entries:
            typer.echo(json_format.dumps(asdict(entry)))
    else:
        columns = ("name", "tasks", "parameters", "input", "licence", "note")
        rows = [asdict(entry) | {"parameters": f"{entry.parameters:g} M"} for entry in entries]
        typer.echo(render.table([{column: row[column] for column in columns} for row in rows]))


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object per finding.")] = False,
) -> None:
    """Check the installation and name cures.

    Looks at versions, devices, extras, weights and limits. Exit code 1 where something will not work.

    \b
    mm doctor
    """
    from mm.cli import render
    from mm.cli.checks import findings
    from mm.limits import DEFAULT_LIMITS

    found = findings()
    if json:
        for finding in found:
            typer.echo(json_format.dumps(asdict(finding)))
        typer.echo(json_format.dumps({"limits": asdict(DEFAULT_LIMITS)}))
    else:
        typer.echo(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}\n")
        typer.echo(render.table([asdict(finding) for finding in found]))
        limits = [{"limit": name, "value": value} for name, value in asdict(DEFAULT_LIMITS).items()]
        typer.echo("\n" + render.table(limits))
    if any(finding.state == "fault" for finding in found):
        raise typer.Exit(1)
