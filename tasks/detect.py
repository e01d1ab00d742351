"""Find what the labels name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mm.encoded import Encoded
from mm.heads.owl import OwlHead
from mm.joined import Joined
from mm.labels import Labels, check_labels
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import OnError, cut_warnings, each, source, unit
from mm.types import Detections


def detect(
    image: Any,
    labels: str | Iterable[str],
    *,
    model: str = "tiny",
    threshold: float = 0.3,
    nms: float | None = 0.5,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """Boxes of the things that `labels` name, best first: `Detections`, or a list of them for a list of images.

    labels: one string is one label. Each box carries the label that fits it best, as the caller spelt it.
    threshold: the least score, 0..1; 0 keeps every box. nms: boxes that overlap a better one by more than this IoU
    are left out, whatever their labels; None keeps all.

    Raises:
        TextInputError: a label is blank or too long. ImageInputError: an image cannot be read.
    """
    asked = check_labels(labels, limits)
    least, overlap = unit("threshold", threshold), None if nms is None else unit("nms", nms)

    def work(joined: Joined, encoded: list[Encoded]) -> list[Detections]:
        return [_detect(joined, e, asked, least, overlap) for e in encoded]

    return each(image, work, model=model, on_error=on_error, limits=limits, allow_urls=allow_urls)


def _detect(joined: Joined, encoded: Encoded, asked: Labels, threshold: float, nms: float | None) -> Detections:
    detector = joined.need("detector")
    assert isinstance(detector, OwlHead)
    texts, cut = joined.texts.embed(joined.encoder, list(asked.unique))
    scores, places, boxes = detector.best(encoded.features, texts)
    keep = scores[0] >= threshold
    input_h, input_w = encoded.geometry.input_hw
    pixels = boxes[0][keep].numpy() * np.array([input_w, input_h, input_w, input_h], np.float32)
    spelt = {place: label for label, place in reversed(list(zip(asked.given, asked.index, strict=True)))}
    found = Detections(
        encoded.geometry.boxes_to_original(pixels),
        scores[0][keep].numpy(),
        tuple(spelt[int(p)] for p in places[0][keep]),
        encoded.size_hw,
        source(joined, encoded, cut_warnings(asked.unique, cut)),
    )
    return found.top(len(found)) if nms is None else found.nms(nms, across_labels=True)
