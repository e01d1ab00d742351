"""Cut out what the labels name, or what looks like an example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.checkpoints.photo import for_task
from mm.encoded import Encoded, encode_pictures
from mm.errors import InputError
from mm.images import Picture
from mm.joined import Joined
from mm.labels import Labels, check_labels
from mm.limits import DEFAULT_LIMITS, Limits
from mm.pictures.tiles import Tile, blended, tiles
from mm.store import FeatureStore, as_store
from mm.tasks.each import Cache, Model, OnError, cut_warnings, each, source, unit
from mm.tasks.encode import encode
from mm.types import Segmentation

_TEXTS_AT_ONCE = 32


def segment(
    image: Any,
    labels: str | Iterable[str] | None = None,
    *,
    like: Any = None,
    model: Model = "tiny",
    cache: Cache = None,
    threshold: float = 0.5,
    tile: int | None = None,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """One mask a label, at the size of the upright original: `Segmentation`, or a list of them for a list.

    labels: one string is one label; a mask covers everything that the label names, and may be empty.
    like: instead of labels one picture of a thing; the mask of what looks like it is labelled "example".
    threshold: the probability from which a pixel belongs to the mask, 0..1. The probabilities are `scores`.
    tile: pixels of the original; a larger picture is read in overlapping squares of this side, which shows small
    things and costs one encoder pass a square. None reads every picture as a whole.

    Raises:
        TextInputError: a label is blank or too long. ImageInputError: an image cannot be read.
        InputError: neither or both of labels and like; tile for a picture that is encoded already.
    """
    if (labels is None) == (like is None):
        raise InputError("segment: expected either labels or like=, one of the two")
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 32):
        raise InputError(f"tile: expected a whole number of pixels from 32, got {tile!r}")
    asked = check_labels("example" if labels is None else labels, limits)
    least = unit("threshold", threshold)
    model = for_task(model, "segment")
    example = None if like is None else encode(like, model=model, cache=cache, limits=limits, allow_urls=allow_urls)

    def work(joined: Joined, encoded: list[Encoded]) -> list[Segmentation]:
        prompts = _prompts(joined, asked, example)
        return [_result(joined, e, _scores(joined, e, prompts.vectors), prompts, least) for e in encoded]

    def work_tiled(joined: Joined, pictures: list[Picture]) -> list[Segmentation]:
        prompts, store = _prompts(joined, asked, example), as_store(cache)
        return [_tiled(joined, picture, prompts, tile or 0, least, store) for picture in pictures]

    return each(
        image,
        work if tile is None else work_tiled,
        encoded=tile is None,
        model=model,
        cache=cache,
        on_error=on_error,
        limits=limits,
        allow_urls=allow_urls,
    )


@dataclass(frozen=True, eq=False)
class _Prompts:
    """vectors: float[K, E], one a distinct label; notes: what has to be warned of."""

    asked: Labels
    vectors: Tensor
    notes: list[str]


def _prompts(joined: Joined, asked: Labels, example: Encoded | None) -> _Prompts:
    if example is not None:
        return _Prompts(asked, example.features.pooled, [])
    texts, cut = joined.texts.embed(joined.encoder, list(asked.unique))
    return _Prompts(asked, texts, cut_warnings(asked.unique, cut))


@torch.inference_mode()
def _scores(joined: Joined, encoded: Encoded, prompts: Tensor) -> np.ndarray:
    """Probabilities float32[K, H, W] over the picture that was encoded, one map a distinct label."""
    segmenter = joined.need("segmenter")
    assert isinstance(segmenter, nn.Module)
    parts = []
    for start in range(0, len(prompts), _TEXTS_AT_ONCE):
        part = prompts[start : start + _TEXTS_AT_ONCE]
        logits = segmenter(encoded.features, part, torch.zeros(len(part), dtype=torch.long))
        size = encoded.geometry.input_hw
        if logits.shape[-2:] != size:
            # Logits are smooth across an edge where probabilities are not: enlarge first, squash after.
            logits = F.interpolate(logits[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]
        parts.append(encoded.geometry.masks_to_original(logits.sigmoid().cpu().numpy()))
    return np.concatenate(parts)


def _tiled(
    joined: Joined, picture: Picture, prompts: _Prompts, side: int, threshold: float, store: FeatureStore | None
) -> Segmentation:
    def parts() -> Iterator[tuple[Tile, np.ndarray]]:
        for tile in tiles(picture.size_hw, side):
            window = picture.pixels[tile.top : tile.bottom, tile.left : tile.right]
            (encoded,) = encode_pictures(joined, [Picture(window, picture.notes, picture.name)], store)
            yield tile, _scores(joined, encoded, prompts.vectors)

    scores = blended(picture.size_hw, parts())
    (whole,) = encode_pictures(joined, [picture], store)  # so that a picture of another world is warned of
    return _result(joined, whole, scores, prompts, threshold)


def _result(joined: Joined, encoded: Encoded, scores: np.ndarray, prompts: _Prompts, threshold: float) -> Segmentation:
    given = scores[list(prompts.asked.index)]
    return Segmentation(given >= threshold, given, prompts.asked.given, source(joined, encoded, prompts.notes))
