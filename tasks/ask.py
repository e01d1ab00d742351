"""Ask a picture a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.generation.sampling import GREEDY, Sampling
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.answer import DraftModel
from mm.tasks.caption import caption
from mm.tasks.each import Cache, Model, OnError


def ask(
    image: Any,
    question: str,
    *,
    model: Model = "tiny",
    cache: Cache = None,
    max_new_tokens: int = 32,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    stream: bool = False,
    draft: DraftModel = None,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """The answer, as a `Caption` whose `prompt` is the question; a list of them for a list of images.

    Many questions about one picture: `encode` it first, and the decoder reads the picture once. For a conversation
    there is `mm.Chat`. sampling, stop, stream, draft: as for `mm.caption`.

    Raises:
        TextInputError: the question is blank or too long. ImageInputError: an image cannot be read.
        InputError: a number is out of its range, or the draft does not fit.
    """
    return caption(
        image, model=model, cache=cache, prompt=question, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop,
        stream=stream, draft=draft, on_error=on_error, limits=limits, allow_urls=allow_urls,
    )  # fmt: skip
