"""Boxes that tokens on a grid stand for, in 0..1 of the picture that the grid covers."""

from __future__ import annotations

import torch
from torch import Tensor


def box_bias(grid: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """float32[h * w, 4]: the logits of a box of one cell at each cell's lower right corner, as OWL-ViT defines it."""
    h, w = grid
    x = torch.arange(1, w + 1, device=device).repeat(h) / w
    y = torch.arange(1, h + 1, device=device).repeat_interleave(w) / h
    size = torch.tensor([1 / w, 1 / h], device=device).expand(h * w, 2)
    both = torch.cat([torch.stack([x, y], 1).clamp(0, 1), size], 1)
    return torch.log(both + 1e-4) - torch.log1p(-both + 1e-4)


def overlaps(boxes: Tensor) -> Tensor:
    """IoU of each two of some boxes: cxcywh float[…, N, 4] -> float[…, N, N]."""
    half = boxes[..., 2:] / 2
    low, high = boxes[..., :2] - half, boxes[..., :2] + half
    sides = torch.minimum(high[..., :, None, :], high[..., None, :, :])
    sides = sides - torch.maximum(low[..., :, None, :], low[..., None, :, :])
    shared, area = sides.clamp(min=0).prod(-1), boxes[..., 2:].prod(-1)
    return shared / (area[..., :, None] + area[..., None, :] - shared).clamp(min=1e-9)
