"""``mm check``: a checkpoint beside its reference library."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mm.checking.check import Report


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `mm models`, a hub id, or a folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Hold a checkpoint against its reference library.

    Compares preprocessing, token ids, features and scores on pictures and texts that are easily read wrongly, and
    the checkpoint's own files with the values that its family was published with. Exit code 1 on a mismatch.

    \b
    mm check tiny
    mm check siglip2-base-patch16-224
    mm check folder/ --json
    """
    from mm.checking.check import check as compare
    from mm.errors import MMError
    from mm.results.lettering import visible

    try:
        report = compare(model)
    except MMError as error:
        typer.echo(f"error: {visible(str(error))}", err=True)
        raise typer.Exit(2) from error
    typer.echo(json_format.dumps(report.to_dict(), allow_nan=False) if json else _text(report))
    if report.mismatches:
        typer.echo(f"mismatch: {', '.join(report.mismatches)}", err=True)
        raise typer.Exit(1)


def _text(report: Report) -> str:
    from mm.cli import render

    rows = []
    for column in map(asdict, report.columns):
        found, allowed = column["difference"], column["allowed"]
        rows.append(
            {
                "column": column["name"],
                "largest difference": column["said"] or ("" if found is None else f"{found:.2g}"),
                "allowed": "" if allowed is None else f"{allowed:.2g}",
                "at": column["at"],
                "": "ok" if column["ok"] else "MISMATCH",
            }
        )
    lines = [f"{report.model} beside {report.reference or 'its reference library'}", "", render.table(rows), ""]
    lines += [f"note: {note}" for note in report.notes]
    if report.top1 is not None:
        lines.append(f"published zero-shot top-1 on ImageNet: {report.top1:.1f} % ({report.top1_source})")
        lines.append(f"reproduce: {report.reproduce}")
    return "\n".join(lines)
