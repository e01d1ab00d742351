"""The command ``mm``: its sub-commands and how it starts. Nothing heavy is imported before one runs."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from mm.cli import about, datasets, exporting, fit, language, measure, parity, pictures
from mm.version import __version__

app = typer.Typer(
    name="mm",
    help="""Caption, question, detect, segment, cut out, classify and embed pictures from the command line.

    \b
    mm caption holiday/
    mm ask drawing.png "What colour is the car?"
    mm detect drawing.png -l car -l "red boat" --save out

    Results go to stdout, one line per picture; warnings, errors and progress go to stderr.

    Exit code: 0 all good, 1 some picture failed, 2 the request cannot be carried out, 130 interrupted.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the sub-command."""


for command in (
    language.caption,
    language.ask,
    language.chat,
    pictures.detect,
    pictures.segment,
    pictures.matte,
    pictures.classify,
    pictures.embed,
    fit.fit,
    exporting.export,
    about.models,
    about.doctor,
    parity.check,
):
    app.command()(command)
app.add_typer(measure.benchmarks, name="bench")
for command in (datasets.detect, datasets.segment, datasets.matte):
    measure.evaluation.command()(command)
app.add_typer(measure.evaluation, name="eval")


def main() -> None:
    """The console script. A terminal that cannot show a character gets its escape instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="mm")
