"""Say which label fits a picture best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mm.checkpoints.photo import for_task
from mm.encoded import Encoded, stacked
from mm.joined import Joined
from mm.labels import check_labels
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import Cache, Model, OnError, cut_warnings, each, source
from mm.templates import AS_IS, PHOTO, chosen
from mm.types import Classification


def classify(
    image: Any,
    labels: str | Iterable[str],
    *,
    templates: str | Sequence[str] | None = None,
    model: Model = "tiny",
    cache: Cache = None,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """A score for each label, in the caller's order: `Classification`, or a list of them for a list of images.

    templates: the sentences in which a label is read, each with one `{}`; or the name of an ensemble: `simple`
    (CLIP's seven), `photo` ("a photo of a {}."), `as is`. Of several the mean embedding counts. By default `photo`,
    and `as is` for `tiny`, whose world has no photographs. Where labels are sentences already, say `as is`.

    Scores follow the checkpoint's own rule: a softmax over the distinct labels, so they sum to 1 where no label is
    given twice, or a sigmoid for each label by itself (SigLIP).

    Raises:
        TextInputError: a label is blank, too long, or empty in the form in which the model reads texts.
        InputError: a template has no place for the label. ImageInputError: an image cannot be read.
    """
    asked = check_labels(labels, limits)
    chosen(templates, AS_IS)  # refused before any work
    model = for_task(model, "classify")

    @torch.inference_mode()
    def work(joined: Joined, encoded: list[Encoded]) -> list[Classification]:
        sentences = chosen(templates, AS_IS if joined.world else PHOTO)
        texts, cut = joined.texts.embed(joined.encoder, list(asked.unique), sentences)
        scores = joined.encoder.similarity(stacked(encoded).pooled, texts)[:, list(asked.index)].float().cpu()
        cut_notes = cut_warnings(asked.unique, cut)
        return [
            Classification(asked.given, row.numpy(), source=source(joined, e, cut_notes))
            for row, e in zip(scores, encoded, strict=True)
        ]

    return each(image, work, model=model, cache=cache, on_error=on_error, limits=limits, allow_urls=allow_urls)
