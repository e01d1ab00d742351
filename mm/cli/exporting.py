"""Writing a joined model in another library's format."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

FORMATS = ("llava-hf",)


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A joined model: its folder, or a name.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; it must not exist yet.")],
    format: Annotated[str, typer.Option("--format", "-f", metavar="NAME", help="llava-hf.")] = "llava-hf",
    json: Annotated[bool, typer.Option("--json", help="Print the receipt as one JSON object.")] = False,
) -> None:
    """Write a model in another library's format and compare the two.

    llava-hf is what LlavaForConditionalGeneration and AutoProcessor of transformers load. The receipt compares logits
    and greedy tokens of what was written with this library's; where they differ, nothing stays.

    \b
    mm export my-model my-model-hf --format llava-hf
    """
    from mm.cli import render
    from mm.errors import MMError, nearest
    from mm.results.lettering import visible

    if format not in FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(FORMATS)}, got {format!r}.{nearest(format, FORMATS)}")
    from mm.checkpoints.llava_export import export_llava
    from mm.checkpoints.loading import load

    try:
        receipt = export_llava(load(model), folder)
    except MMError as error:
        typer.echo(f"error: {visible(str(error))}", err=True)
        raise typer.Exit(2) from error
    told = receipt.to_dict()
    typer.echo(json_format.dumps(told) if json else render.table([told]))
