"""Encode a picture once, to ask it many things."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mm.encoded import Encoded
from mm.joined import Joined
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import Cache, Model, OnError, each


def encode(
    image: Any,
    *,
    model: Model = "tiny",
    cache: Cache = None,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """An `Encoded` (or a list, for a list), which every task takes wherever it takes an image.

    cache: a folder where features are kept, so that a picture of an earlier run passes no encoder; what they depend
    on (pixels, weights, preprocessing, dtype, versions) is part of their name. The folder stays below 2 GB unless you
    give a `mm.store.FeatureStore` of your own. Every task takes the same argument.

    The image tower runs once; captions and answers also share the decoder's reading of the picture.
    """
    return each(
        image,
        _reused,
        model=model,
        cache=cache,
        on_error=on_error,
        limits=limits,
        allow_urls=allow_urls,
    )


def _reused(_: Joined, encoded: list[Encoded]) -> list[Encoded]:
    return [one if one.reused else replace(one, reused=True) for one in encoded]
