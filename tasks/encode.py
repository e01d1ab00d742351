"""Encode a picture once, to ask it many things."""

from __future__ import annotations

from typing import Any

from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import OnError, each


def encode(
    image: Any,
    *,
    model: str = "tiny",
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """An `Encoded` (or a list, for a list), which every task takes wherever it takes an image.

    The image tower runs once; captions and answers also share the decoder's reading of the picture.
    """
    return each(
        image,
        lambda _, encoded: encoded,
        model=model,
        on_error=on_error,
        limits=limits,
        allow_urls=allow_urls,
    )
