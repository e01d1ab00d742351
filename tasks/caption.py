"""Describe a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mm.checkpoints.loading import as_model
from mm.encoded import Encoded
from mm.errors import InputError
from mm.generation.loop import Row, deltas, generate
from mm.generation.prompts import Prompt, asked
from mm.joined import Joined
from mm.labels import check_text
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import Cache, Model, OnError, each, source
from mm.tasks.encode import encode
from mm.types import Caption
from mm.vlm import Speaker


class CaptionStream:
    """The text in pieces as it is written; `result` is the whole `Caption` once the pieces are used up."""

    def __init__(self, joined: Joined, encoded: Encoded, prompt: str | None, max_new_tokens: int) -> None:
        speaker = speaker_of(joined)
        whole = _whole_prompt(speaker, prompt)
        prefix, ids = speaker.read(whole, [encoded])
        steps = generate(speaker.decoder, prefix, ids, max_new_tokens=max_new_tokens)
        self._rows: list[Row] = []
        self._pieces = deltas(speaker.decoder, self._watched(steps))
        self._finish = lambda: _caption(joined, encoded, self._rows[0], prompt, whole.notes)

    def _watched(self, steps: Iterator[list[Row]]) -> Iterator[list[Row]]:
        for rows in steps:
            self._rows = rows
            yield rows

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def result(self) -> Caption:
        """Writes what is still unwritten and gives the whole."""
        for _ in self._pieces:
            pass
        return self._finish()


def caption(
    image: Any,
    *,
    model: Model = "tiny",
    cache: Cache = None,
    prompt: str | None = None,
    max_new_tokens: int = 96,
    stream: bool = False,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """What the picture shows, in words: a `Caption`, or a list of them for a list of images.

    prompt: what to ask instead of the model's own request for a description.
    stream: for one image, a `CaptionStream` that yields the text in pieces.

    Raises:
        TextInputError: the prompt is blank or too long. ImageInputError: an image cannot be read.
        InputError: max_new_tokens is not a whole number from 1 to `limits.max_new_tokens`.
    """
    said = None if prompt is None else check_prompt(prompt, "prompt", limits)
    check_new_tokens(max_new_tokens, limits)
    if stream:
        if isinstance(image, (list, tuple)):
            raise InputError(f"stream: expected one image, got {len(image)}")
        encoded = encode(image, model=model, cache=cache, limits=limits, allow_urls=allow_urls)
        return CaptionStream(as_model(model), encoded, said, max_new_tokens)

    def work(joined: Joined, encoded: list[Encoded]) -> list[Caption]:
        return _captions(joined, encoded, said, max_new_tokens)

    return each(image, work, model=model, cache=cache, on_error=on_error, limits=limits, allow_urls=allow_urls)


def check_new_tokens(count: int, limits: Limits) -> None:
    """Raises InputError unless it is a whole number from 1 to `limits.max_new_tokens`."""
    whole = isinstance(count, int) and not isinstance(count, bool)
    if not whole or not 1 <= count <= limits.max_new_tokens:
        raise InputError(f"max_new_tokens: expected 1 to {limits.max_new_tokens}, got {count!r}")


def check_prompt(text: str, name: str, limits: Limits) -> str:
    """The text without outer white space; lines of it stay lines.

    Raises:
        TextInputError: not a string, blank or too long.
    """
    check_text(text, name, limits.max_prompt_chars)
    return text.strip()


@torch.inference_mode()
def _captions(joined: Joined, encoded: list[Encoded], prompt: str | None, max_new_tokens: int) -> list[Caption]:
    speaker = speaker_of(joined)
    whole = _whole_prompt(speaker, prompt)
    read = [speaker.read(whole, [e]) for e in encoded]
    rows: list[Row] = []
    steps = generate(
        speaker.decoder, [prefix for prefix, _ in read], [ids for _, ids in read], max_new_tokens=max_new_tokens
    )
    for rows in steps:  # noqa: B007 (the last is kept)
        pass
    return [_caption(joined, e, row, prompt, whole.notes) for e, row in zip(encoded, rows, strict=True)]


def _whole_prompt(speaker: Speaker, prompt: str | None) -> Prompt:
    return speaker.prompts(asked(speaker.prompt if prompt is None else prompt))


def _caption(joined: Joined, encoded: Encoded, row: Row, prompt: str | None, notes: tuple[str, ...]) -> Caption:
    speaker = speaker_of(joined)
    return Caption(
        text=row.text,
        prompt=prompt,
        tokens=len(row.ids),
        finish_reason=row.finish_reason or "length",
        size_hw=encoded.size_hw,
        source=source(joined, encoded, (*speaker.notes, *notes)),
    )


def speaker_of(joined: Joined) -> Speaker:
    """The language half, or an error that says the model has none."""
    speaker = joined.need("speaker")
    assert isinstance(speaker, Speaker)
    return speaker
