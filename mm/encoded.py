"""A picture that has been encoded, as a value: encode once, ask many.

The features belong to the value, never to the model, so two threads cannot disturb each other.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mm.encoders.base import ImageFeatures
from mm.images import Picture
from mm.pictures.geometry import Geometry
from mm.store import FeatureStore, feature_key

if TYPE_CHECKING:
    from mm.joined import Joined
    from mm.vlm import Speaker

_PREFIXES_KEPT = 4  # beginnings of prompts; each holds the keys and values of the whole picture


@dataclass(frozen=True, eq=False)
class Encoded:
    """What one pass of `model`'s image tower found in one picture; every task takes it where it takes an image.

    size_hw: of the upright original, pixels. digest: sha256 of its pixels. features: B = 1.
    notes: what the image gate had to say about the file. reused: it may be asked again, so that what the decoder has
    read of it is worth keeping; of any other, the decoder reads picture and prompt at once.
    """

    model: str
    name: str
    size_hw: tuple[int, int]
    digest: str
    notes: tuple[str, ...]
    geometry: Geometry = field(repr=False)
    features: ImageFeatures = field(repr=False)
    reused: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _prefixes: list[tuple[Speaker, tuple[int, ...], tuple[int, ...], Any]] = field(default_factory=list, repr=False)

    def prefix(self, speaker: Speaker, before: tuple[int, ...] = ()) -> Any:
        """What the decoder keeps after the words `before` and the picture, made at the first question and kept.

        Training makes it anew; a model keeps a few of them, one for each beginning of a prompt.
        """
        stamp = speaker.stamp
        with self._lock:
            for reader, weights, words, prefix in self._prefixes:
                if reader is speaker and weights == stamp and words == before:
                    return prefix
            prefix = speaker.prefix(self.features, before)
            self._prefixes.append((speaker, stamp, before, prefix))
            del self._prefixes[:-_PREFIXES_KEPT]
            return prefix


def encode_pictures(joined: Joined, pictures: list[Picture], store: FeatureStore | None = None) -> list[Encoded]:
    """One encoder pass for all whose inputs have one size, one value for each picture, in their order.

    store: pictures whose features it holds pass no encoder; those of the others are kept there.
    """
    plans = [joined.geometry(p) for p in pictures]
    notes = [p.notes for p in pictures]
    keys = [feature_key(joined, p) for p in pictures] if store else []
    rows: dict[int, ImageFeatures] = {}
    if store:
        encoder: Any = joined.encoder
        device = next(encoder.parameters()).device
        rows = {i: found for i, key in enumerate(keys) if (found := store.get(key, device)) is not None}
    fresh = [i for i in range(len(pictures)) if i not in rows]
    for size in dict.fromkeys(plans[i].input_hw for i in fresh):
        members = [i for i in fresh if plans[i].input_hw == size]
        features = joined.encode([pictures[i] for i in members])
        rows |= {i: _row(features, place) for place, i in enumerate(members)}
    if store:
        for i in fresh:
            said = store.put(keys[i], rows[i])
            notes[i] += (said,) if said else ()
    return [
        Encoded(joined.name, p.name, p.size_hw, p.digest, notes[i], plan, rows[i])
        for i, (p, plan) in enumerate(zip(pictures, plans, strict=True))
    ]


def _row(features: ImageFeatures, i: int) -> ImageFeatures:
    return ImageFeatures(
        features.tokens[i : i + 1], features.grid, features.prefix[i : i + 1], features.pooled[i : i + 1],
        {k: v[i : i + 1] for k, v in features.layers.items()}, features.layer_grids,
        {k: v[i : i + 1] for k, v in features.layer_prefix.items()},
    )  # fmt: skip


def stacked(many: list[Encoded]) -> ImageFeatures:
    """The features of several values of one model as one batch."""
    first = many[0].features
    rows = [e.features for e in many]
    return ImageFeatures(
        torch.cat([r.tokens for r in rows]), first.grid, torch.cat([r.prefix for r in rows]),
        torch.cat([r.pooled for r in rows]),
        {k: torch.cat([r.layers[k] for r in rows]) for k in first.layers}, first.layer_grids,
        {k: torch.cat([r.layer_prefix[k] for r in rows]) for k in first.layer_prefix},
    )  # fmt: skip
