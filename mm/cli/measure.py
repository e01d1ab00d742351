"""The commands that measure: quality on drawn scenes, and time on this machine."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mm.files import replace_text

SCORES_BEGIN, SCORES_END = "<!-- scores -->", "<!-- /scores -->"

evaluation = typer.Typer(
    help="Measure the quality of a model.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)


@evaluation.callback()
def options() -> None:
    """Measure the quality of a model.

    \b
    mm eval scenes --count 200
    """


@evaluation.command()
def scenes(
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="A name from `mm models`, or a folder.")
    ] = "tiny",
    count: Annotated[int, typer.Option(min=1, help="How many scenes are drawn.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Which held-out scenes are drawn.")] = 0,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Scenes with a thing in a colour that training never showed.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the scores as JSON.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Renew a column between {SCORES_BEGIN} and its end.")
    ] = None,
) -> None:
    """Score a model on held-out drawn scenes.

    The scenes are drawn from seeds that no training has used.

    \b
    mm eval scenes
    mm eval scenes --unseen --count 200 --json
    """
    from mm.cli import render
    from mm.evaluation.scenes import evaluate_scenes

    if readme is not None and not readme.is_file():
        raise typer.BadParameter(f"there is no file {readme}")
    scores = evaluate_scenes(model=model, count=count, seed=seed, unseen=unseen, progress=sys.stderr.isatty())
    text = json_format.dumps(scores, indent=2, allow_nan=False)
    typer.echo(text if json else render.table(render.flatten(scores)))
    if out is not None:
        replace_text(out, text + "\n")
    if readme is not None:
        replace_text(readme, with_scores(readme.read_text(encoding="utf-8"), scores))


def with_scores(readme: str, scores: dict[str, Any]) -> str:
    """The text of a README whose table between the two marks has `scores` in the column of seen or unseen scenes."""
    from mm.cli import render

    before, mark, rest = readme.partition(SCORES_BEGIN)
    table, end, after = rest.partition(SCORES_END)
    if not (mark and end):
        raise typer.BadParameter(f"the README has no {SCORES_BEGIN} … {SCORES_END}")
    columns = _columns(table)
    told = {task: figures for task, figures in scores.items() if isinstance(figures, dict)}
    columns["unseen" if scores["unseen"] else "seen"] = {row["measure"]: row["value"] for row in render.flatten(told)}
    measures = dict.fromkeys([*columns["unseen"], *columns["seen"]])
    rows = [{"measure": m} | {name: column.get(m) for name, column in columns.items()} for m in measures]
    return f"{before}{mark}\n{render.markdown(rows)}\n{end}{after}"


def _columns(table: str) -> dict[str, dict[str, Any]]:
    """What a table of `with_scores` says of seen and of unseen scenes; nothing where it is another."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    body = rows[2:] if rows[:1] == [["measure", "seen", "unseen"]] else []
    return {name: {row[0]: row[i] for row in body if row[i]} for i, name in ((1, "seen"), (2, "unseen"))}


@evaluation.command()
def zeroshot(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="A folder with one folder of pictures a class.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="A name from `mm models`, a hub id, or a folder.")
    ] = "tiny",
    templates: Annotated[
        str | None, typer.Option(metavar="NAME", help="simple, photo, as is, or a sentence with {} for the label.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pictures of each class.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Score a model on a folder of class folders, by names alone.

    Class folders are named by their labels, or are ImageNet's 1000 WordNet numbers.

    \b
    mm eval zeroshot --model siglip2-base-patch16-224 --data imagenet/val
    mm eval zeroshot --model clip-vit-base-patch32 --data imagenet/val --templates simple
    """
    from mm.cli import render
    from mm.errors import MMError
    from mm.evaluation.zeroshot import evaluate_zeroshot
    from mm.results.lettering import visible

    try:
        scores = evaluate_zeroshot(model, data, templates=templates, limit=limit, progress=sys.stderr.isatty())
    except MMError as error:
        typer.echo(f"error: {visible(str(error))}", err=True)
        raise typer.Exit(2) from error
    typer.echo(json_format.dumps(scores, allow_nan=False) if json else render.table(render.flatten(scores)))


benchmarks = typer.Typer(invoke_without_command=True, rich_markup_mode=None, add_completion=False)


@benchmarks.callback()
def bench(
    context: typer.Context,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="A name from `mm models`, or a folder.")
    ] = "tiny",
    repeats: Annotated[int, typer.Option(min=1, help="How often each warm step is timed.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Time the library on this machine.

    Starts in fresh processes first, then each task when warm; medians in milliseconds.

    \b
    mm bench
    mm bench --repeats 50 --json
    mm bench encoders
    mm bench detect
    mm bench segment
    mm bench generate
    """
    if context.invoked_subcommand is not None:
        return
    from mm.bench.library import run

    _report(run(model=model, repeats=repeats, progress=sys.stderr.isatty()), json)


@benchmarks.command()
def encoders(
    repeats: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Pictures, or texts, in one pass.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Time encoders beside their reference libraries.

    Towers of full size with random weights read JPEG files and texts: items per second by medians of turns.

    \b
    mm bench encoders
    mm bench encoders --repeats 3 --json
    """
    from mm.bench.encoders import run

    _report(run(repeats=repeats, batch=batch, progress=sys.stderr.isatty()), json)


@benchmarks.command("detect")
def bench_detect(
    repeats: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Time detection with 1, 20 and 80 labels beside transformers' pipeline.

    \b
    mm bench detect
    """
    from mm.bench.heads import run_detect

    _report(run_detect(repeats=repeats, progress=sys.stderr.isatty()), json)


@benchmarks.command("segment")
def bench_segment(
    repeats: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Time segmentation with 1 and 10 prompts beside transformers' CLIPSeg.

    \b
    mm bench segment
    """
    from mm.bench.heads import run_segment

    _report(run_segment(repeats=repeats, progress=sys.stderr.isatty()), json)


@benchmarks.command("generate")
def bench_generate(
    repeats: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Time generation beside transformers' `generate()`, on random weights of two sizes.

    \b
    mm bench generate
    """
    from mm.bench.generate import run

    _report(run(repeats=repeats, progress=sys.stderr.isatty()), json)


def _report(rows: list[dict[str, Any]], json: bool) -> None:
    from mm.bench.timing import machine
    from mm.cli import render

    if json:
        for row in rows:
            typer.echo(json_format.dumps(row | {"machine": machine()}))
    else:
        typer.echo("; ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
        typer.echo(render.table(rows))
