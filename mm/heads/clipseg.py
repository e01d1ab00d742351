"""The decoder of CLIPSeg over any encoder's layers.

Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.encoders.base import ImageFeatures

# Fragments of a released checkpoint's keys, behind `decoder.`, and what they are called here.
RELEASED_KEYS: dict[str, str] = {
    "film_mul": "film_mul",
    "film_add": "film_add",
    "reduces": "reduces",
    "transposed_convolution": "to_mask",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "layer_norm1": "norm_1",
    "layer_norm2": "norm_2",
    "mlp.fc1": "linear_1",
    "mlp.fc2": "linear_2",
}


@dataclass(frozen=True)
class ClipSegConfig:
    """width: of the encoder's layers; embedding: of the prompt; layers: which are read, shallowest first.

    conditional: the place, counted from the deepest layer, where the prompt modulates. hidden: of a block's MLP.
    patch: pixels of a token's side. refined: three convolutions at the end instead of one ("rd64-refined").
    """

    width: int
    embedding: int
    reduced: int
    layers: tuple[int, ...]
    conditional: int
    heads: int
    hidden: int
    patch: int
    refined: bool
    norm_eps: float


class Block(nn.Module):
    """Self-attention and a ReLU network, each followed by its layer norm."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.linear_1, self.linear_2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """float[Q, T, D] -> the same."""
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm_1(x + self.out(seen))
        return self.norm_2(x + self.linear_2(F.relu(self.linear_1(x))))


class ClipSegHead(nn.Module):
    """(picture, prompt) pairs to mask logits at the size of the model input; the grid may have any shape."""

    def __init__(
        self, *, width: int, embedding: int, reduced: int, layers: Sequence[int], conditional: int, heads: int,
        hidden: int, patch: int, refined: bool, norm_eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers, self.conditional = tuple(layers), conditional
        self.film_mul, self.film_add = nn.Linear(embedding, reduced), nn.Linear(embedding, reduced)
        self.reduces = nn.ModuleList(nn.Linear(width, reduced) for _ in layers)
        self.blocks = nn.ModuleList(Block(reduced, heads, hidden, norm_eps) for _ in layers)
        self.to_mask = _refined(reduced, patch) if refined else nn.ConvTranspose2d(reduced, 1, patch, patch)

    def forward(self, image: ImageFeatures, text: Tensor, owner: Tensor) -> Tensor:
        """Mask logits float32[Q, h * patch, w * patch] for Q questions.

        text: float[Q, E], un-normalised embeddings of texts or of example pictures; owner: int64[Q], the picture of
        each question. What depends on the picture alone is computed once a picture.
        """
        x = None
        deepest_first = list(reversed(self.layers))
        for place, (layer, reduce, block) in enumerate(zip(deepest_first, self.reduces, self.blocks, strict=True)):
            tokens = image.layers[layer]
            if layer in image.layer_prefix:
                tokens = torch.cat([image.layer_prefix[layer], tokens], 1)
            reduced = reduce(tokens)[owner]
            x = reduced if x is None else reduced + x
            if place == self.conditional:
                x = self.film_mul(text)[:, None] * x + self.film_add(text)[:, None]
            x = block(x)
        assert x is not None
        h, w = image.layer_grids[deepest_first[0]]
        maps = x[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))
        return self.to_mask(maps)[:, 0].float()


def released_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors out of a released CLIPSeg checkpoint, under the names of `ClipSegHead`."""
    renamed = {}
    for key, value in tensors.items():
        if not key.startswith("decoder."):
            continue
        name = key.removeprefix("decoder.")
        name = f"blocks.{name.removeprefix('layers.')}" if name.startswith("layers.") else name
        for theirs, ours in RELEASED_KEYS.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def _refined(reduced: int, patch: int) -> nn.Sequential:
    step = patch // 4
    return nn.Sequential(
        nn.Conv2d(reduced, reduced, 3, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(reduced, reduced // 2, step, step), nn.ReLU(),
        nn.ConvTranspose2d(reduced // 2, 1, step, step),
    )  # fmt: skip
