"""The commands whose answer is written by a language model: caption, ask, chat."""

from __future__ import annotations

import inspect
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mm.cli.pictures import AllowUrls, Cache, Image, Images, Json, Model, Save

if TYPE_CHECKING:
    from mm.tasks.chat import Chat, ChatStream

Longest = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print the words as they are written.")]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Who guesses ahead, for the same answer sooner: lookup, a language model, a joined model."
    ),
]
Temperature = Annotated[
    float | None, typer.Option(help="Draw words by chance, likely ones more often; 1 as they come, below 1 bolder.")
]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest words that hold this probability together.")]
Seed = Annotated[int | None, typer.Option(help="Of the chance: equal seeds draw equal answers.")]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="float32, bfloat16, float16 or auto; for models as others publish them."),
]
Int8 = Annotated[bool, typer.Option("--int8", help="The decoder's weights in 8 bits, with --dtype bfloat16.")]
Compile = Annotated[bool, typer.Option("--compile", help="Build routines for this processor first; words come sooner.")]


def caption(
    images: Images,
    prompt: Annotated[str | None, typer.Option(help="What to ask instead of the model's own request.")] = None,
    max_new_tokens: Longest = 96,
    stream: Stream = False,
    draft: Draft = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    model: Model = "tiny",
    dtype: Dtype = None,
    int8: Int8 = False,
    compile: Compile = False,
    cache: Cache = None,
    json: Json = False,
    save: Save = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Say in a sentence what each picture shows.

    \b
    mm caption drawing.png
    mm caption holiday/ --json > captions.jsonl
    mm caption photo.jpg --model photo --stream
    """
    from mm.tasks.caption import caption as task

    def work(picture: Any, **how: Any) -> Any:
        by = _model(model, "caption" if prompt is None else "ask", dtype, int8, compile)
        return task(picture, model=by, cache=cache, prompt=prompt, max_new_tokens=max_new_tokens, **how)

    _write("caption", images, work, _manner(stream, draft, temperature, top_p, seed), json, save, allow_urls)


def ask(
    image: Image,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A question about the picture.")],
    max_new_tokens: Longest = 32,
    stream: Stream = False,
    draft: Draft = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    model: Model = "tiny",
    dtype: Dtype = None,
    int8: Int8 = False,
    compile: Compile = False,
    cache: Cache = None,
    json: Json = False,
    save: Save = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Answer a question about one picture.

    \b
    mm ask drawing.png "How many cars are there?"
    mm ask photo.jpg "What is on the table?" --model photo --stream
    """
    from mm.tasks.ask import ask as task

    def work(picture: Any, **how: Any) -> Any:
        by = _model(model, "ask", dtype, int8, compile)
        return task(picture, question, model=by, cache=cache, max_new_tokens=max_new_tokens, **how)

    _write("ask", [image], work, _manner(stream, draft, temperature, top_p, seed), json, save, allow_urls)


def chat(
    image: Image,
    max_new_tokens: Longest = 256,
    draft: Draft = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    model: Model = "tiny",
    dtype: Dtype = None,
    int8: Int8 = False,
    compile: Compile = False,
    cache: Cache = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Talk about one picture; it is read once, answers are printed as they are written.

    \b
    mm chat drawing.png
    mm chat photo.jpg --model photo --dtype bfloat16 --compile

    \b
    /new IMAGE  look at another picture
    /forget     begin anew with this picture
    /help       these lines
    /quit       leave (or Ctrl-D); Ctrl-C ends an answer
    """
    from mm.errors import MMError
    from mm.results.lettering import visible
    from mm.tasks.chat import Chat

    try:
        how = _manner(False, draft, temperature, top_p, seed)
        by = _model(model, "ask", dtype, int8, compile)
        talk = Chat(image, model=by, cache=cache, max_new_tokens=max_new_tokens, allow_urls=allow_urls, **how)
    except (MMError, OSError) as error:
        typer.echo(f"error: {visible(str(error))}", err=True)
        raise typer.Exit(2) from error
    _converse(talk)


def _model(name: str, task: str, dtype: str | None, int8: bool, compile: bool) -> Any:
    """The name, which tasks load as they do by default; or, where more is said, what `mm.load` makes of it."""
    if dtype is None and not int8 and not compile:
        return name
    from mm.checkpoints.loading import load
    from mm.checkpoints.photo import for_task

    given: Any = {} if dtype is None else {"dtype": dtype}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="compile: ")
        made = load(for_task(name, task), int8=int8, compile=compile, **given)
    for warning in said:
        typer.echo(f"note: {warning.message}", err=True)
    return made


def _manner(
    stream: bool, draft: str | None, temperature: float | None, top_p: float | None, seed: int | None
) -> dict[str, Any]:
    """The words of a task; only those that were given, so that its own defaults hold."""
    how: dict[str, Any] = {"stream": True} if stream else {}
    if draft is not None:
        how["draft"] = draft
    if seed is not None and temperature is None:
        raise typer.BadParameter("--seed is of the chance that --temperature brings; give both")
    if temperature is not None or top_p is not None:
        from mm.errors import InputError
        from mm.generation.sampling import Sampling

        try:
            how["sampling"] = Sampling(temperature=temperature, top_p=top_p, seed=seed or 0)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
    return how


def _write(
    task: str, names: list[str], work: Callable[..., Any], how: dict[str, Any], json: bool, save: Any, allow_urls: bool
) -> None:
    from mm.cli import render
    from mm.cli.run import Request, run_pictures

    if json and how.get("stream"):
        raise typer.BadParameter("--stream writes words as they come, --json whole lines; give one of them")
    request = Request(task, names, json, save, allow_urls, stream=bool(how.get("stream")))
    run_pictures(request, lambda picture: work(picture, **how), render.caption)


def _converse(talk: Chat) -> None:
    """Reads lines and answers them until the last."""
    from mm.errors import MMError
    from mm.results.lettering import visible

    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives `input` its editing and history)
        typer.echo(f"{visible(talk.picture.name)}: ask away. /help tells more.", err=True)
    while (line := _line(terminal)) is not None:
        if line in ("/quit", "/exit"):
            return
        if line:
            try:
                _turn(talk, line)
            except (MMError, OSError) as error:  # the conversation goes on
                typer.echo(f"error: {visible(str(error))}", err=True)


def _line(terminal: bool) -> str | None:
    """The next line; None at the end. On a terminal Ctrl-C clears what was typed, as in a shell."""
    while True:
        try:
            return input("> " if terminal else "").strip()
        except EOFError:
            if terminal:
                typer.echo("")
            return None
        except KeyboardInterrupt:
            if not terminal:
                raise
            typer.echo("")


def _turn(talk: Chat, line: str) -> None:
    from mm.errors import InputError, nearest

    word, _, rest = line.partition(" ")
    if word == "/new" and rest.strip():
        talk.show(rest.strip())
    elif line == "/forget":
        talk.turns.clear()
    elif line == "/help":
        typer.echo((inspect.getdoc(chat) or "").rpartition("\b\n")[2])
    elif word.startswith("/"):
        known = ("/new", "/forget", "/help", "/quit")
        said = "/new: expected a picture behind it" if word == "/new" else f"no command {word!r}"
        raise InputError(f"{said}.{nearest(word, known) if word not in known else ''}")
    else:
        _answer(talk.say(line))


def _answer(stream: ChatStream) -> None:
    """Prints the answer as it grows; Ctrl-C ends it, and what was written stays in the conversation."""
    from mm.results.lettering import visible
    from mm.training.interrupt import stop_on_signal

    with stop_on_signal() as stop:
        for piece in stream:
            typer.echo("\n".join(map(visible, piece.split("\n"))), nl=False)
            sys.stdout.flush()
            if stop:
                stream.cancel()
    typer.echo("")
    if stop.asked == signal.SIGTERM:
        raise typer.Exit(128 + signal.SIGTERM)
