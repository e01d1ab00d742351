"""The loop over pictures: open, run the task, save, print. One bad picture never costs the others."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

from mm.errors import ImageInputError, MMError, ResourceLimitError
from mm.files import replacing
from mm.images import Picture, open_image
from mm.results.lettering import visible
from mm.types import ErrorRecord

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# What belongs to one picture; every other error of the library would meet every picture alike.
ITEM_ERRORS = (ImageInputError, ResourceLimitError, OSError)


@dataclass(frozen=True)
class Request:
    """What the command line asked for, the same for every item. `task` names the saved files.

    stream: tasks give a `CaptionStream`, which is printed as it grows.
    """

    task: str
    names: Sequence[str]
    as_json: bool
    save: Path | None
    allow_urls: bool
    stream: bool = False


@dataclass(frozen=True)
class Answer:
    """The result for one item, with what has to be said about it on stderr."""

    result: Any
    warnings: tuple[str, ...] = ()


@dataclass
class SaveFolder:
    """Where annotated pictures go. No two inputs of one run share a name, and no input is overwritten."""

    folder: Path
    task: str
    taken: set[str] = field(default_factory=set)

    def place(self, name: str) -> Path:
        """``<stem>_<task>.png``, with ``-2``, ``-3`` … after the stem where that name is taken."""
        stem = re.sub(r"[^\w.-]+", "_", Path(name).stem)[:100] or "picture"
        number, file = 1, f"{stem}_{self.task}.png"
        while file.casefold() in self.taken:
            number += 1
            file = f"{stem}-{number}_{self.task}.png"
        self.taken.add(file.casefold())
        return self.folder / file

    def save(self, name: str, image: Any) -> Path:
        """Writes `image` (a PIL picture) so that a reader never sees half a file."""
        target = self.place(name)
        with replacing(target) as partial:
            image.save(partial, format="PNG")
        return target


def run_pictures(
    request: Request,
    task: Callable[[Picture], Any],
    text: Callable[[Any], str],
    drawing: Callable[[Any, Picture], Any] = lambda result, picture: result.plot(picture),
) -> None:
    """Runs `task` on every picture of the request, prints what `text` says of its result and saves its `drawing`."""
    names = expand(request.names)
    folder = _save_folder(request, names)

    def solve(name: str) -> Answer | ErrorRecord:
        stage = "read"
        try:
            picture = open_image(name, allow_urls=request.allow_urls)
            stage = "run"
            result = task(picture)
            if request.stream:
                result = _streamed(name, result)
            stage = "save"
            if folder is not None:
                folder.save(name, drawing(result, picture))
        except ITEM_ERRORS as error:
            return ErrorRecord.of(error, name=name, stage=stage)
        return Answer(result, tuple(dict.fromkeys((*picture.notes, *result.source.warnings))))

    _run(request, names, solve, text)


def run_texts(request: Request, task: Callable[[str], Any], text: Callable[[Any], str]) -> None:
    """Runs `task` on every text of the request; its line starts with the text itself."""

    def solve(words: str) -> Answer:
        result = task(words)
        return Answer(result, result.source.warnings)

    _run(request, list(request.names), solve, text)


def expand(names: Sequence[str]) -> list[str]:
    """Folders become their pictures, sorted by name; a folder without any stays, for the gate to refuse."""
    expanded: list[str] = []
    for name in names:
        inside: list[Path] = []
        if os.path.isdir(name) and os.access(name, os.R_OK | os.X_OK):
            inside = sorted(entry for entry in Path(name).iterdir() if entry.suffix.lower() in SUFFIXES)
        expanded += map(str, inside) if inside else [name]
    return expanded


def _save_folder(request: Request, names: Sequence[str]) -> SaveFolder | None:
    """The folder of --save, made before any work starts."""
    if request.save is None:
        return None
    try:
        request.save.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot make the folder {request.save}: {error.strerror}") from error
    if not os.access(request.save, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"cannot write into the folder {request.save}")
    home = request.save.resolve()
    inputs = {Path(name).name.casefold() for name in names if Path(name).resolve().parent == home}
    return SaveFolder(request.save, request.task, inputs)


def _run(
    request: Request,
    names: list[str],
    solve: Callable[[str], Answer | ErrorRecord],
    text: Callable[[Any], str],
) -> None:
    failed = 0
    hidden = True if len(names) < 2 else None  # None: shown on a terminal only
    for name in tqdm(names, disable=hidden, leave=False, unit="item", file=sys.stderr):
        with _request_errors():
            answer = solve(name)
        with tqdm.external_write_mode():
            if isinstance(answer, ErrorRecord):
                failed += 1
                _print_error(request, answer)
            else:
                _print_answer(request, name, answer, text)
    if failed:
        if len(names) > 1:
            typer.echo(f"{failed} of {len(names)} failed", err=True)
        raise typer.Exit(1)


@contextmanager
def _request_errors() -> Iterator[None]:
    """An error that every item would meet (a blank label, an unknown model) ends the run with code 2."""
    try:
        yield
    except MMError as error:
        typer.echo(f"error: {visible(str(error))}", err=True)
        raise typer.Exit(2) from error


def _print_answer(request: Request, name: str, answer: Answer, text: Callable[[Any], str]) -> None:
    for warning in answer.warnings:
        typer.echo(f"warning: {visible(name)}: {visible(warning)}", err=True)
    if request.stream:
        return
    if request.as_json:
        typer.echo(json.dumps({"name": name, "ok": True, "result": answer.result.to_dict()}, allow_nan=False))
    else:
        typer.echo(f"{visible(name)}\t{visible(text(answer.result))}")


def _streamed(name: str, stream: Any) -> Any:
    """Prints the line of a `CaptionStream` as it grows; its result."""
    with tqdm.external_write_mode():
        typer.echo(f"{visible(name)}\t", nl=False)
        try:
            for piece in stream:
                typer.echo(visible(piece), nl=False)
                sys.stdout.flush()
        finally:
            typer.echo("")
    return stream.result


def _print_error(request: Request, record: ErrorRecord) -> None:
    if request.as_json:
        error = {"type": record.type, "message": record.message, "stage": record.stage}
        typer.echo(json.dumps({"name": record.name, "ok": False, "error": error}))
    else:
        said = record.message if record.name in record.message else f"{record.name}: {record.message}"
        typer.echo(f"error: {visible(said)}", err=True)
