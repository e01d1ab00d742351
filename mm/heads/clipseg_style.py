"""Text-conditioned segmentation after CLIPSeg, with early maps for fine edges.

As in Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts" (CVPR 2022), the text modulates reduced
tokens (FiLM) ahead of a small transformer. Unlike there, three earlier maps are added on the way up, since tokens
of stride 16 alone cannot place an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mm.encoders.base import ImageFeatures


@dataclass(frozen=True)
class ClipSegStyleConfig:
    """layer_widths: of the earlier maps, finest first; widths: of the decoder at those maps, same order."""

    width: int
    embedding: int
    reduced: int
    depth: int
    layers: tuple[int, ...]
    layer_widths: tuple[int, ...]
    widths: tuple[int, ...]


class Film(nn.Module):
    """x float[Q, C, h, w] scaled and shifted by a text float[Q, E] (Dumoulin et al., 2018)."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.mul, self.add = nn.Linear(embedding, channels), nn.Linear(embedding, channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return x * (1 + self.mul(text))[..., None, None] + self.add(text)[..., None, None]


class _Step(nn.Module):
    """Twice the size, plus the earlier map of that size, modulated and smoothed."""

    def __init__(self, above: int, lateral: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.reduce, self.lateral = nn.Conv2d(above, channels, 1), nn.Linear(lateral, channels)
        self.film = Film(embedding, channels)
        self.mix, self.out = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, above: Tensor, lateral: Tensor, text: Tensor) -> Tensor:
        size = lateral.shape[-2:]
        up = F.interpolate(self.reduce(above), size=size, mode="bilinear", align_corners=False)
        x = F.gelu(self.mix(self.film(up + lateral, text)))
        return up + self.out(x)


class ClipSegStyleHead(nn.Module):
    """(picture, text) pairs to mask logits at the finest earlier map's size."""

    def __init__(
        self, *, width: int, embedding: int, reduced: int, depth: int,
        layers: Sequence[int], layer_widths: Sequence[int], widths: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = tuple(layers)
        self.reduce = nn.Linear(width, reduced)
        self.film = Film(embedding, reduced)
        block = nn.TransformerEncoderLayer(reduced, 4, 4 * reduced, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        above = [*widths[1:], reduced]
        self.steps = nn.ModuleList(
            _Step(a, lateral, c, embedding) for a, lateral, c in zip(above, layer_widths, widths, strict=True)
        )
        self.out = nn.Conv2d(widths[0], 1, 1)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, -2.0)  # most of a picture is not what is asked for

    def forward(self, image: ImageFeatures, text: Tensor, owner: Tensor) -> Tensor:
        """Mask logits float32[Q, H', W'] for Q questions.

        text: float[Q, E], not normalised; owner: int64[Q], the picture of each question.
        What depends on the picture alone is computed once a picture.
        """
        text = F.normalize(text.float(), dim=-1) * text.shape[-1] ** 0.5
        h, w = image.grid
        x = self.reduce(image.tokens)[owner]
        maps = self.film(x.transpose(1, 2).reshape(len(owner), -1, h, w), text)
        x = self.blocks(maps.flatten(2).transpose(1, 2))
        x = x.transpose(1, 2).reshape(len(owner), -1, h, w)
        for layer, step in zip(reversed(self.layers), reversed(self.steps), strict=True):
            assert isinstance(step, _Step)
            lateral = step.lateral(image.layers[layer]).transpose(1, 2).unflatten(2, image.layer_grids[layer])
            x = step(x, lateral[owner], text)
        return self.out(x)[:, 0].float()
