"""Describe a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.checkpoints.photo import for_task
from mm.encoded import Encoded
from mm.errors import InputError
from mm.generation.prompts import asked
from mm.generation.sampling import GREEDY, Sampling
from mm.joined import Joined
from mm.labels import check_text
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.answer import Asked, CaptionStream, DraftModel, Manner, captioned, last_rows, speaker_of
from mm.tasks.each import Cache, Model, OnError, each
from mm.types import Caption


def caption(
    image: Any,
    *,
    model: Model = "tiny",
    cache: Cache = None,
    prompt: str | None = None,
    max_new_tokens: int = 96,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    stream: bool = False,
    draft: DraftModel = None,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """What the picture shows, in words: a `Caption`, or a list of them for a list of images.

    prompt: what to ask instead of the model's own request for a description.
    sampling: how words are chosen, `mm.Sampling`; the likeliest by default. stop: texts that end the answer.
    stream: for one image, a `CaptionStream` that yields the text in pieces.
    draft: what guesses the next words, so that the decoder is run less often and writes the same: `lookup`, a language
    model or a joined one (`mm.tasks.answer.Manner`). `Caption.stats` says what it gained.

    Raises:
        TextInputError: the prompt is blank or too long. ImageInputError: an image cannot be read.
        InputError: max_new_tokens is not a whole number from 1 to `limits.max_new_tokens`, or the draft does not fit.
    """
    said = None if prompt is None else check_prompt(prompt, "prompt", limits)
    manner = Manner(max_new_tokens, limits, sampling, stop, draft)
    model = for_task(model, "caption" if prompt is None else "ask")
    if stream and isinstance(image, (list, tuple)):
        raise InputError(f"stream: expected one image, got {len(image)}")

    def streams(joined: Joined, encoded: list[Encoded]) -> list[CaptionStream]:
        return [CaptionStream(joined, _question(joined, picture, said), manner, said) for picture in encoded]

    def captions(joined: Joined, encoded: list[Encoded]) -> list[Caption]:
        questions = [_question(joined, picture, said) for picture in encoded]
        rows = last_rows(joined, questions, manner)
        return [captioned(joined, *pair, said) for pair in zip(questions, rows, strict=True)]

    work = streams if stream else captions
    return each(image, work, model=model, cache=cache, on_error=on_error, limits=limits, allow_urls=allow_urls)


def check_prompt(text: str, name: str, limits: Limits) -> str:
    """The text without outer white space; lines of it stay lines.

    Raises:
        TextInputError: not a string, blank or too long.
    """
    check_text(text, name, limits.max_prompt_chars)
    return text.strip()


def _question(joined: Joined, encoded: Encoded, prompt: str | None) -> Asked:
    speaker = speaker_of(joined)
    return speaker.prompts(asked(speaker.prompt if prompt is None else prompt)), [encoded]
