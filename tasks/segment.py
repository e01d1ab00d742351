"""Cut out what the labels name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from mm.encoded import Encoded
from mm.heads.clipseg_style import ClipSegStyleHead
from mm.joined import Joined
from mm.labels import Labels, check_labels
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import OnError, cut_warnings, each, source, unit
from mm.types import Segmentation

_TEXTS_AT_ONCE = 32


def segment(
    image: Any,
    labels: str | Iterable[str],
    *,
    model: str = "tiny",
    threshold: float = 0.5,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """One mask a label, at the size of the upright original: `Segmentation`, or a list of them for a list.

    labels: one string is one label; a mask covers everything that the label names, and may be empty.
    threshold: the probability from which a pixel belongs to the mask, 0..1. The probabilities are `scores`.

    Raises:
        TextInputError: a label is blank or too long. ImageInputError: an image cannot be read.
    """
    asked, least = check_labels(labels, limits), unit("threshold", threshold)

    def work(joined: Joined, encoded: list[Encoded]) -> list[Segmentation]:
        return [_segment(joined, e, asked, least) for e in encoded]

    return each(image, work, model=model, on_error=on_error, limits=limits, allow_urls=allow_urls)


@torch.inference_mode()
def _segment(joined: Joined, encoded: Encoded, asked: Labels, threshold: float) -> Segmentation:
    segmenter = joined.need("segmenter")
    assert isinstance(segmenter, ClipSegStyleHead)
    texts, cut = joined.texts.embed(joined.encoder, list(asked.unique))
    parts = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = texts[start : start + _TEXTS_AT_ONCE]
        logits = segmenter(encoded.features, part, torch.zeros(len(part), dtype=torch.long))
        # Logits are smooth across an edge where probabilities are not: enlarge first, squash after.
        full = F.interpolate(logits[:, None], size=encoded.geometry.input_hw, mode="bicubic", align_corners=False)
        parts.append(full[:, 0].sigmoid())
    scores = encoded.geometry.masks_to_original(torch.cat(parts).numpy())[list(asked.index)]
    return Segmentation(
        scores >= threshold, scores, asked.given, source(joined, encoded, cut_warnings(asked.unique, cut))
    )
