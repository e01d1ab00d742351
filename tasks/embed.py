"""Vectors of pictures and texts in one space."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from mm.checkpoints.loading import as_model
from mm.checkpoints.photo import for_task
from mm.encoded import Encoded
from mm.errors import InputError
from mm.joined import Joined
from mm.labels import check_text
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import Cache, Model, cut_warnings, each, provenance, source
from mm.types import Embeddings


def embed(
    items: Any,
    *,
    model: Model = "tiny",
    cache: Cache = None,
    kind: Literal["image", "text"] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Embeddings:
    """One row a picture or text, not normalised: `Embeddings`, whose `similarity` compares two of them.

    items: one or a list. Where `kind` is not given, strings are texts and everything else is a picture; with
    `kind="image"` strings are paths. A list holds one kind only.
    on_error: `skip` leaves out the rows of pictures that cannot be read.

    Raises:
        TextInputError, ImageInputError: an item cannot be used. InputError: kinds are mixed, or nothing is given.
    """
    model = for_task(model, "embed")
    many = list(items) if isinstance(items, (list, tuple)) else [items]
    if not many:
        raise InputError("embed: expected at least one picture or text, got none")
    if on_error not in ("raise", "skip"):
        raise InputError(f'on_error: expected "raise" or "skip" here, got {on_error!r}')
    kinds = {kind or ("text" if isinstance(item, str) else "image") for item in many}
    if len(kinds) > 1:
        raise InputError('embed: strings beside pictures; say kind="image" where the strings are paths')
    if kinds == {"text"}:
        return _texts(many, model, limits)
    if kinds != {"image"}:
        raise InputError(f'kind: expected "image" or "text", got {kind!r}')

    def work(joined: Joined, encoded: list[Encoded]) -> list[tuple[np.ndarray, Any]]:
        return [(e.features.pooled[0].float().cpu().numpy(), source(joined, e)) for e in encoded]

    rows = each(many, work, model=model, cache=cache, on_error=on_error, limits=limits, allow_urls=allow_urls)
    if not rows:
        raise InputError("embed: none of the pictures can be read")
    warnings = dict.fromkeys(w for _, s in rows for w in s.warnings)
    vectors = np.stack([vector for vector, _ in rows])
    return Embeddings(vectors, "image", provenance(as_model(model), tuple(warnings)))


@torch.inference_mode()
def _texts(texts: list[Any], model: Model, limits: Limits) -> Embeddings:
    joined = as_model(model)
    asked = [check_text(text, f"text {i + 1}", limits.max_prompt_chars) for i, text in enumerate(texts)]
    vectors, cut = joined.texts.embed(joined.encoder, asked)
    return Embeddings(vectors.float().cpu().numpy(), "text", provenance(joined, tuple(cut_warnings(asked, cut))))
