"""Ask a picture a question."""

from __future__ import annotations

from typing import Any

from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.caption import caption
from mm.tasks.each import Cache, Model, OnError


def ask(
    image: Any,
    question: str,
    *,
    model: Model = "tiny",
    cache: Cache = None,
    max_new_tokens: int = 32,
    stream: bool = False,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """The answer, as a `Caption` whose `prompt` is the question; a list of them for a list of images.

    Many questions about one picture: `encode` it first, and the decoder reads the picture once.

    Raises:
        TextInputError: the question is blank or too long. ImageInputError: an image cannot be read.
    """
    return caption(
        image, model=model, cache=cache, prompt=question, max_new_tokens=max_new_tokens, stream=stream,
        on_error=on_error, limits=limits, allow_urls=allow_urls,
    )  # fmt: skip
