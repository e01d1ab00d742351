"""Find what the labels name, or what looks like an example."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mm.checkpoints.photo import for_task
from mm.encoded import Encoded
from mm.errors import InputError
from mm.heads.owlvit import OwlHead
from mm.joined import Joined
from mm.labels import Labels, check_labels
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.each import Cache, Model, OnError, cut_warnings, each, source, unit
from mm.tasks.encode import encode
from mm.types import Detections

_ALL = 1000  # pairs of box and label that `scores="all"` keeps


def detect(
    image: Any,
    labels: str | Iterable[str] | None = None,
    *,
    like: Any = None,
    model: Model = "tiny",
    cache: Cache = None,
    threshold: float = 0.3,
    nms: float | None = 0.5,
    scores: Literal["display", "all"] = "display",
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """Boxes of the things that `labels` name, best first: `Detections`, or a list of them for a list of images.

    labels: one string is one label. Each box carries the label that fits it best, as the caller spelt it.
    like: instead of labels one picture of a thing; boxes of what looks like it are labelled "example". Scores are
    probabilities here too.
    threshold: the least score, 0..1; 0 keeps every box. nms: boxes that overlap a better one of the same
    label by more than this IoU, or one of another label by more than half-way from it to 1, are left out; None keeps
    all. Both are for display. Where the model says so (`tiny`), a box is the mean of those that it stands for.
    scores: "all" leaves threshold and nms aside and gives the 1,000 best pairs of box and label, a box with several
    labels where they fit: what average precision is defined over.

    Raises:
        TextInputError: a label is blank or too long. ImageInputError: an image cannot be read.
        InputError: neither or both of labels and like.
    """
    if (labels is None) == (like is None):
        raise InputError("detect: expected either labels or like=, one of the two")
    if scores not in ("display", "all"):
        raise InputError(f'scores: expected "display" or "all", got {scores!r}')
    asked = check_labels("example" if labels is None else labels, limits)
    least, overlap = unit("threshold", threshold), None if nms is None else unit("nms", nms)
    everything = scores == "all"
    model = for_task(model, "detect")
    example = None if like is None else encode(like, model=model, cache=cache, limits=limits, allow_urls=allow_urls)

    def work(joined: Joined, encoded: list[Encoded]) -> list[Detections]:
        queries, notes = _queries(joined, asked, example)
        if everything:
            return [_all(joined, e, asked, queries, notes) for e in encoded]
        return [_detect(joined, e, asked, queries, notes, least, overlap) for e in encoded]

    return each(image, work, model=model, cache=cache, on_error=on_error, limits=limits, allow_urls=allow_urls)


def _head(joined: Joined) -> OwlHead:
    detector = joined.need("detector")
    assert isinstance(detector, OwlHead)
    return detector


def _queries(joined: Joined, asked: Labels, example: Encoded | None) -> tuple[Tensor, list[str]]:
    """float[K, E], one a distinct label, and what has to be warned of."""
    if example is not None:
        return _head(joined).example(example.features), []
    texts, cut = joined.texts.embed(joined.encoder, list(asked.unique))
    return texts, cut_warnings(asked.unique, cut)


def _detect(
    joined: Joined, encoded: Encoded, asked: Labels, queries: Tensor, notes: list[str], threshold: float,
    nms: float | None,
) -> Detections:  # fmt: skip
    head = _head(joined)
    found = head.boxes(encoded.features)
    scores, places = head.best(found, queries)
    keep = scores[0] >= threshold
    result = _result(joined, encoded, asked, notes, found.xyxy[0][keep], scores[0][keep], places[0][keep])
    if nms is None:
        return result.top(len(result))
    return result.nms(nms, vote=head.vote).nms((1 + nms) / 2, across_labels=True)


def _all(joined: Joined, encoded: Encoded, asked: Labels, queries: Tensor, notes: list[str]) -> Detections:
    head = _head(joined)
    found = head.boxes(encoded.features)
    scores, tokens, places = head.pairs(found, queries, _ALL)
    return _result(joined, encoded, asked, notes, found.xyxy[0][tokens], scores, places)


def _result(
    joined: Joined, encoded: Encoded, asked: Labels, notes: list[str], xyxy: Tensor, scores: Tensor, places: Tensor
) -> Detections:
    """xyxy: float[n, 4] in 0..1 of the model input; places: int64[n] among the distinct labels."""
    input_h, input_w = encoded.geometry.input_hw
    pixels = xyxy.cpu().numpy() * np.array([input_w, input_h, input_w, input_h], np.float32)
    spelt = {place: label for label, place in reversed(list(zip(asked.given, asked.index, strict=True)))}
    return Detections(
        encoded.geometry.boxes_to_original(pixels),
        scores.to(torch.float32).cpu().numpy(),
        tuple(spelt[int(p)] for p in places),
        encoded.size_hw,
        source(joined, encoded, notes),
    )
