"""The three heads over any encoder: what a fresh one looks like, and how each turns a batch into losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mm.encoders.base import Encoder, ImageFeatures, TextFeatures
from mm.errors import InputError
from mm.heads.clipmat import ClipMatHead
from mm.heads.clipseg import ClipSegConfig, ClipSegHead
from mm.heads.clipseg_style import ClipSegStyleConfig, ClipSegStyleHead
from mm.heads.owlvit import OwlConfig, OwlHead
from mm.joined import Joined
from mm.recipes.matting import config_for, matte_losses
from mm.training.batches import HeadBatch
from mm.training.losses import detect_loss, segment_loss

Word = Literal["detect", "segment", "matte"]

_TEXTS_AT_ONCE = 256
_DEEPEST = 1024  # blocks; no tower is that deep


@dataclass(frozen=True)
class Kind:
    """part: of `Joined`. needs: what the truth has to hold. asks: masks asked of each picture.

    fresh: a new head for a model's encoder, which gives the maps that `mapped` chose. loss: of a batch.
    """

    part: str
    needs: Literal["boxes", "masks"]
    asks: int
    fresh: Callable[[Joined], nn.Module]
    mapped: bool
    loss: Callable[[Any, ImageFeatures, HeadBatch, TextTable], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class TextTable:
    """What the text tower says of every label of the run, one row each; `pixels` undoes the normalisation.

    segmenter: of the model, frozen, for a head that it guides.
    """

    text: TextFeatures
    mean: Tensor
    std: Tensor
    segmenter: nn.Module | None

    def rows(self, places: Tensor) -> TextFeatures:
        text = self.text
        return TextFeatures(text.pooled[places], text.tokens[places], text.mask[places])

    def pixels(self, normalised: Tensor) -> Tensor:
        """float32[B, 3, h, w] in 0..255."""
        return (normalised * self.std + self.mean) * 255


@torch.no_grad()
def text_table(joined: Joined, head: nn.Module, labels: tuple[str, ...], device: torch.device) -> TextTable:
    """Every label read once: the text tower is never trained here, so that words keep their meaning."""
    asked = [head.asks(label) for label in labels] if isinstance(head, ClipMatHead) else list(labels)
    parts = [joined.encoder.encode_text(asked[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(asked), _TEXTS_AT_ONCE)]
    longest = max(part.tokens.shape[1] for part in parts)
    tokens, masks = [], []
    for part in parts:
        room = longest - part.tokens.shape[1]
        tokens.append(nn.functional.pad(part.tokens.float().to(device), (0, 0, 0, room)))
        masks.append(nn.functional.pad(part.mask.to(device), (0, room), value=False))
    pooled = torch.cat([part.pooled.float().to(device) for part in parts])
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (joined.spec.preprocessing.mean, joined.spec.preprocessing.std)
    )
    return TextTable(TextFeatures(pooled, torch.cat(tokens), torch.cat(masks)), mean, std, joined.segmenter)


def _detect(head: Any, image: ImageFeatures, batch: HeadBatch, table: TextTable) -> dict[str, Tensor]:
    return detect_loss(head(image, table.text.pooled[batch.asked]), batch)


def _segment(head: Any, image: ImageFeatures, batch: HeadBatch, table: TextTable) -> dict[str, Tensor]:
    return segment_loss(head(image, table.text.pooled[batch.ask_label], batch.ask_owner), batch)


def _matte(head: Any, image: ImageFeatures, batch: HeadBatch, table: TextTable) -> dict[str, Tensor]:
    text, owner = table.rows(batch.ask_label), batch.ask_owner
    out = head(batch.pixels, image, text, owner, head.guide(table.segmenter, image, text, owner))
    raw = table.pixels(batch.pixels)
    return matte_losses(out, batch.ask_alpha, batch.ask_colour, raw[batch.ask_owner])


def _fresh_detector(joined: Joined) -> OwlHead:
    config = OwlConfig(
        width=joined.spec.width, embedding=joined.spec.embedding, merge_class_token=False, objectness=True,
        score="label x objectness", norm_eps=1e-5, vote=True,
    )  # fmt: skip
    return OwlHead(**vars(config))


def _fresh_segmenter(joined: Joined) -> nn.Module:
    """With edges from finer maps where the tower has any, else CLIPSeg's decoder over three of its blocks."""
    spec = joined.spec
    image = _looked(joined.encoder, spec.layers)
    finer = [i for i in sorted(spec.layers) if image.layer_grids[i][0] > image.grid[0]][:3]
    if finer:
        style = ClipSegStyleConfig(
            width=spec.width, embedding=spec.embedding, reduced=96, depth=1, layers=tuple(finer),
            layer_widths=tuple(image.layers[i].shape[-1] for i in finer), widths=(16, 32, 64)[-len(finer) :],
        )  # fmt: skip
        return ClipSegStyleHead(**vars(style))
    config = ClipSegConfig(
        width=image.layers[spec.layers[0]].shape[-1], embedding=spec.embedding, reduced=64, layers=spec.layers,
        conditional=0, heads=4, hidden=256, patch=max(1, spec.preprocessing.input_hw[0] // image.grid[0]),
        refined=False, norm_eps=1e-5,
    )  # fmt: skip
    return ClipSegHead(**vars(config))


def _fresh_matter(joined: Joined) -> ClipMatHead:
    return ClipMatHead(**vars(config_for(joined)))


KINDS: dict[str, Kind] = {
    "detect": Kind("detector", "boxes", 0, _fresh_detector, False, _detect),
    "segment": Kind("segmenter", "masks", 2, _fresh_segmenter, True, _segment),
    "matte": Kind("matter", "masks", 2, _fresh_matter, True, _matte),
}


def ready(joined: Joined, kind: Kind, *, fresh: bool) -> tuple[Joined, nn.Module]:
    """The model whose encoder gives what the head reads, and a head of its own to train: a copy of the model's, or,
    where it has none or `fresh` asks for it, a new one. The model that came in is left as it is.

    Raises:
        InputError: the encoder has no text tower, so nothing can be asked of a head over it.
    """
    if joined.spec.text is None:
        raise InputError(
            f"model {joined.name!r} has no text tower, and its heads are asked in words; choose an image-text encoder"
        )
    given = getattr(joined, kind.part)
    if given is None or fresh:
        if kind.mapped and not joined.spec.layers:
            joined = replace(joined, encoder=with_layers(joined.encoder, _spread(joined.encoder)), world=None)
        given = kind.fresh(joined)
    tower: Any = joined.encoder
    at = next(tower.parameters())
    return joined, copy.deepcopy(given).to(at.device, torch.float32).requires_grad_(True).train()


def with_layers(encoder: Encoder, layers: tuple[int, ...]) -> Encoder:
    """The same encoder, over the same weights, whose spec asks for these maps."""
    other: Any = copy.copy(encoder)
    other.spec = replace(encoder.spec, layers=layers)
    return other


def _spread(encoder: Encoder) -> tuple[int, ...]:
    """Three blocks at a quarter, a half and three quarters of the depth; every stage but the last of a few stages."""
    low, high = 0, 1
    while high < _DEEPEST and _gives(encoder, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _gives(encoder, middle) else (low, middle)
    depth = low + 1
    if depth < 5:
        return tuple(range(max(1, depth - 1))) if depth > 2 else tuple(range(depth))
    return tuple(round(depth * part / 4) for part in (1, 2, 3))


def _gives(encoder: Encoder, layer: int) -> bool:
    try:
        _looked(encoder, (layer,))
    except InputError:
        return False
    return True


@torch.no_grad()
def _looked(encoder: Any, layers: tuple[int, ...]) -> ImageFeatures:
    at = next(encoder.parameters())
    blank = torch.zeros(1, 3, *encoder.spec.preprocessing.input_hw, device=at.device, dtype=at.dtype)
    return encoder.encode_image(blank, layers)


class HeadTraining:
    """A head, the encoder under it, and the losses of both. The encoder stays in evaluation mode even where it is
    trained: batches are too small for its own statistics, and dropout would only blur what the head has to read."""

    def __init__(self, joined: Joined, kind: Kind, head: nn.Module, table: TextTable, *, bf16: bool) -> None:
        self.joined, self.kind, self.head, self.table, self.bf16 = joined, kind, head, table, bf16
        self.encoder_trained = False

    def losses(self, batch: HeadBatch) -> dict[str, Tensor]:
        device = batch.pixels.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            with torch.set_grad_enabled(self.encoder_trained and torch.is_grad_enabled()):
                image = self.joined.encoder.encode_image(batch.pixels, self.joined.spec.layers)
            return self.kind.loss(self.head, image, batch, self.table)
