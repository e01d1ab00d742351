"""What the library knows of itself and of this machine: the table of models, and the doctor."""

from __future__ import annotations

import json as json_format
import platform
from dataclasses import asdict
from typing import Annotated

import typer


def models(json: Annotated[bool, typer.Option("--json", help="One JSON object per model.")] = False) -> None:
    """List the models that are known by name.

    top-1 is the published zero-shot accuracy on ImageNet-1k in percent (--json names its source); checked says
    whether tests compare the family with its reference library; a star marks licences for research only.

    \b
    mm models
    mm models --json
    """
    from mm.cli import render
    from mm.zoo import MODELS, PHOTO, PHOTO_MATTER

    entries = MODELS.values()
    photo = {entry.name: [task for task, name in PHOTO.items() if name == entry.name] for entry in entries}
    if json:
        for entry in entries:
            facts = {"research_only": entry.research_only, "checked": entry.checked, "photo": photo[entry.name]}
            typer.echo(json_format.dumps(asdict(entry) | facts))
        return
    rows = [
        {
            "name": entry.name,
            "tasks": entry.tasks,
            "parameters": f"{entry.parameters:g} M",
            "input": entry.input,
            "width": entry.embedding,
            "top-1": "" if entry.top1 is None else f"{entry.top1:.1f}",
            "licence": entry.licence + "*" * entry.research_only,
            "checked": "yes" if entry.checked else "no",
            "note": entry.note or _photo_note(photo[entry.name], PHOTO_MATTER.name),
        }
        for entry in entries
    ]
    typer.echo(render.table(rows))


def _photo_note(tasks: list[str], matter: str) -> str:
    said = (f"{task}, with {matter}" if task == "matte" else task for task in tasks)
    return f"photo: {'; '.join(said)}" if tasks else ""


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
