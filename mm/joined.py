"""A joined model: an encoder, and the connector, heads and decoder that stand on it, with what they share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.encoders.base import Encoder, EncoderSpec, ImageFeatures
from mm.errors import InputError, TextInputError
from mm.images import Picture
from mm.pictures.geometry import Geometry
from mm.pictures.side_by_side import side_by_side
from mm.templates import AS_IS, filled
from mm.vlm import Speaker
from mm.world import World

if TYPE_CHECKING:
    from mm.joining import Plan

_TEXTS_AT_ONCE = 256
_TEXTS_KEPT = 20_000


# What to do where a model lacks a part
_CURES = {
    "detector": 'Choose a detector, such as owlv2-base-patch16-ensemble, or train one: mm.fit(…, head="detect").',
    "segmenter": 'Choose a segmenter, such as clipseg-rd64-refined, or train one: mm.fit(…, head="segment").',
    "matter": "For photographs give matter= (--matter), a ViTMatte checkpoint, with a model that segments; "
    'for a matting head of its own train one: mm.fit(…, head="matte").',
    "speaker": "Choose a vision-language model, or join a language model to this encoder: "
    "mm.join(encoder=…, decoder=…).",
}


class TextCache:
    """Label embeddings by content: an embedding is made once, the oldest are dropped first."""

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[str, tuple[str, ...]], tuple[Tensor, bool]] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def embed(
        self, encoder: Encoder, texts: list[str], templates: tuple[str, ...] = AS_IS
    ) -> tuple[Tensor, list[bool]]:
        """float[K, E] for K texts in their order, and which were cut; only new ones pass the text tower.

        templates: each text is read inside every one of them, and its row is the mean of the normalised embeddings,
        normalised (Radford et al. 2021, section 3.1.4). With `AS_IS` a row is the text's own, not normalised.

        Raises:
            TextInputError: nothing is left of a text in the form that the tower reads.
        """
        with self._lock:
            known = {text: self._rows[text, templates] for text in texts if (text, templates) in self._rows}
        new = list(dict.fromkeys(text for text in texts if text not in known))
        _check_readable(encoder, new)
        at_once = max(1, _TEXTS_AT_ONCE // len(templates))
        for start in range(0, len(new), at_once):
            part = new[start : start + at_once]
            made = encoder.encode_text([filled(template, text) for text in part for template in templates])
            rows = made.pooled if templates == AS_IS else _means(made.pooled, len(templates))
            cut = [any(made.cut[i : i + len(templates)]) for i in range(0, len(made.cut), len(templates))]
            known |= dict(zip(part, zip(rows.unbind(), cut, strict=True), strict=True))
        with self._lock:
            for text in new:
                self._rows[text, templates] = known[text]
            while len(self._rows) > _TEXTS_KEPT:
                self._rows.popitem(last=False)
        return torch.stack([known[text][0] for text in texts]), [known[text][1] for text in texts]


def _check_readable(encoder: Encoder, texts: list[str]) -> None:
    """A tower that drops punctuation would read nothing where a text is nothing else."""
    if encoder.rules is None:
        return  # the encoder itself says that it reads no text
    for text in texts:
        if not encoder.rules.canonical(text).strip():
            raise TextInputError(f"{ascii(text[:40])}: nothing is left of it in the form that the model reads")


def _means(pooled: Tensor, templates: int) -> Tensor:
    """float[K * templates, E] -> float[K, E]: the direction between the normalised rows of each text."""
    rows = F.normalize(pooled, dim=-1).unflatten(0, (-1, templates))
    return F.normalize(rows.mean(1), dim=-1)


@dataclass(frozen=True, eq=False)
class Joined:
    """Everything that answers under one model name. Parts that the model lacks are None."""

    name: str
    revision: str
    sha256: str
    licence: str
    encoder: Encoder
    detector: nn.Module | None
    segmenter: nn.Module | None
    speaker: Speaker | None
    world: World | None
    matter: nn.Module | None = None
    texts: TextCache = field(default_factory=TextCache)
    plan: Plan | None = None  # how `mm.join` made it

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec

    def need(self, part: str) -> nn.Module | Speaker:
        """The part of this name, or an error that says the model has none."""
        found = getattr(self, part)
        if found is None:
            raise InputError(f"model {self.name!r} has no {part}. {_CURES[part]}")
        return found

    def geometry(self, picture: Picture) -> Geometry:
        return self.spec.preprocessing.geometry(picture.size_hw)

    def pixels(self, picture: Picture) -> Tensor:
        """float32[3, H, W]: the picture as the encoder wants it."""
        return self.spec.preprocessing.pixels(picture.pixels)

    @torch.inference_mode()
    def encode(self, pictures: list[Picture]) -> ImageFeatures:
        """One pass of the image tower over a batch, whose pictures become inputs of one size."""
        at = next(iter(self.encoder.parameters()))
        pixels = torch.stack(side_by_side(self.pixels, pictures)).to(at.device, at.dtype)
        return self.encoder.encode_image(pixels, self.spec.layers)

    def to(self, device: str) -> Joined:
        """All parts on this device; the same value."""
        parts = [self.encoder, self.detector, self.segmenter, self.matter]
        speaker = [self.speaker.connector, self.speaker.decoder] if self.speaker else []
        for part in (*parts, *speaker):
            if isinstance(part, nn.Module):
                part.to(device)
        return self
