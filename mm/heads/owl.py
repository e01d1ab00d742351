"""The open-vocabulary detection head of OWL-ViT over any encoder's tokens.

Minderer et al., "Simple Open-Vocabulary Object Detection with Vision Transformers", ECCV 2022, section 3.1;
the objectness head is that of OWLv2 (NeurIPS 2023, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.encoders.base import Grid, ImageFeatures

_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class OwlConfig:
    """width: of the tokens; embedding: of the text embeddings the tokens are compared with."""

    width: int
    embedding: int


@dataclass(frozen=True)
class OwlOutput:
    """logits: float[B, N, K], one a token and text; boxes_cxcywh: float[B, N, 4] in 0..1 of the model input;
    objectness: float[B, N], a logit; embeds: float[B, N, E], what the class logits compare, of length 1."""

    logits: Tensor
    boxes_cxcywh: Tensor
    objectness: Tensor
    embeds: Tensor


class OwlHead(nn.Module):
    """Every token says what it shows, where that is, and whether it is a thing at all."""

    def __init__(self, *, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.class_head = ClassHead(width, embedding)
        self.box_head = _mlp(width, 4)
        self.objectness_head = _mlp(width, 1)
        last = self.objectness_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, -2.0)  # most tokens show no thing

    def forward(self, image: ImageFeatures, text: Tensor) -> OwlOutput:
        """text: float[K, E], not normalised."""
        tokens = self.norm(image.tokens)
        boxes = (self.box_head(tokens).float() + box_bias(image.grid, tokens.device)).sigmoid()
        embeds = self.class_head.embed(tokens)
        logits = self.class_head.compare(tokens, embeds, text)
        return OwlOutput(logits, boxes, self.objectness_head(tokens)[..., 0].float(), embeds)

    @torch.inference_mode()
    def best(self, image: ImageFeatures, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each token its best text: score float32[B, N] in 0..1, place int64[B, N], and box_xyxy float32[B, N, 4]
        in 0..1 of the model input. The score is the label's probability times that of being a thing at all.

        Texts pass in parts, so a hundred thousand of them need no more memory than a few thousand.
        """
        tokens = self.norm(image.tokens)
        boxes = (self.box_head(tokens).float() + box_bias(image.grid, tokens.device)).sigmoid()
        embeds = self.class_head.embed(tokens)
        best, place = self.class_head.compare(tokens, embeds, text[:_TEXTS_AT_ONCE]).max(-1)
        for start in range(_TEXTS_AT_ONCE, len(text), _TEXTS_AT_ONCE):
            part = text[start : start + _TEXTS_AT_ONCE]
            more, where = self.class_head.compare(tokens, embeds, part).max(-1)
            place = torch.where(more > best, where + start, place)
            best = torch.maximum(best, more)
        score = best.sigmoid() * self.objectness_head(tokens)[..., 0].float().sigmoid()
        half = boxes[..., 2:] / 2
        return score, place, torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1).clamp(0, 1)


class ClassHead(nn.Module):
    """Cosine between a token's class embedding and each text, shifted and scaled by the token itself."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.dense0 = nn.Linear(width, embedding)
        self.logit_shift = nn.Linear(width, 1)
        self.logit_scale = nn.Linear(width, 1)
        nn.init.constant_(self.logit_shift.bias, -0.46)  # a token shows a given label with p = 0.01 to begin with
        nn.init.constant_(self.logit_scale.bias, 9.0)

    def embed(self, tokens: Tensor) -> Tensor:
        """float[B, N, D] -> float32[B, N, E] of length 1."""
        e = self.dense0(tokens).float()
        return e / (e.norm(dim=-1, keepdim=True) + 1e-6)

    def compare(self, tokens: Tensor, e: Tensor, text: Tensor) -> Tensor:
        """float32[B, N, K]: logits of the tokens, whose embeddings are `e`, for texts float[K, E]."""
        q = text.float()
        q = q / (q.norm(dim=-1, keepdim=True) + 1e-6)
        scale = F.elu(self.logit_scale(tokens).float()) + 1
        return (e @ q.T + self.logit_shift(tokens).float()) * scale


def _mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def box_bias(grid: Grid, device: torch.device | str | None = None) -> Tensor:
    """float32[h * w, 4]: the logits of a box of one cell at each cell's lower right corner, as OWL-ViT defines it."""
    h, w = grid
    x = torch.arange(1, w + 1, device=device).repeat(h) / w
    y = torch.arange(1, h + 1, device=device).repeat_interleave(w) / h
    size = torch.tensor([1 / w, 1 / h], device=device).expand(h * w, 2)
    both = torch.cat([torch.stack([x, y], 1).clamp(0, 1), size], 1)
    return torch.log(both + 1e-4) - torch.log1p(-both + 1e-4)
