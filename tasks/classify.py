"""Say which label fits a picture best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mm.encoded import Encoded, stacked
from mm.joined import Joined
from mm.labels import check_labels
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import OnError, cut_warnings, each, source
from mm.types import Classification


def classify(
    image: Any,
    labels: str | Iterable[str],
    *,
    model: str = "tiny",
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """A score for each label, in the caller's order: `Classification`, or a list of them for a list of images.

    Scores follow the checkpoint's own rule; for `tiny` that is a softmax over the distinct labels, so they sum to 1
    where no label is given twice.

    Raises:
        TextInputError: a label is blank or too long. ImageInputError: an image cannot be read.
    """
    asked = check_labels(labels, limits)

    @torch.inference_mode()
    def work(joined: Joined, encoded: list[Encoded]) -> list[Classification]:
        texts, cut = joined.texts.embed(joined.encoder, list(asked.unique))
        scores = joined.encoder.similarity(stacked(encoded).pooled, texts)[:, list(asked.index)]
        cut_notes = cut_warnings(asked.unique, cut)
        return [
            Classification(asked.given, row.numpy(), source=source(joined, e, cut_notes))
            for row, e in zip(scores, encoded, strict=True)
        ]

    return each(image, work, model=model, on_error=on_error, limits=limits, allow_urls=allow_urls)
