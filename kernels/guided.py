"""A coarse map that is to follow the edges of a finer picture.

He, Sun and Tang, "Guided Image Filtering" (ECCV 2010): around each pixel the map is taken for a linear function of the
picture's colours. As in He and Sun, "Fast Guided Filter" (arXiv 1505.00996), that function is found where the map is
coarse and applied where the picture is fine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_RADIUS = 3  # pixels of the coarse picture
_FLAT = 1e-5  # a variance of colours, from 0 to 1, that is too small to follow


def colour_model(picture: Tensor, values: Tensor, *, radius: int = _RADIUS, flat: float = _FLAT) -> Tensor:
    """picture: float32[3, h, w] in 0..1; values: float32[h, w] -> float32[4, h, w]: what red, green and blue are
    multiplied by, and what is added, to give the value at a pixel; means over the windows that hold the pixel."""
    guide, target = picture.float()[None], values.float()[None, None]
    mean, level = _mean(guide, radius), _mean(target, radius)
    apart = _mean(target * guide, radius) - level * mean
    pairs = guide[:, :, None] * guide[:, None]
    spread = _mean(pairs.flatten(1, 2), radius).view(pairs.shape) - mean[:, :, None] * mean[:, None]
    spread = spread[0].permute(2, 3, 0, 1) + flat * torch.eye(3, device=picture.device)
    slopes = torch.linalg.solve(spread, apart[0].permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)[None]
    start = level - (slopes * mean).sum(1, keepdim=True)
    return _mean(torch.cat([slopes, start], 1), radius)[0]


def _mean(x: Tensor, radius: int) -> Tensor:
    """Over the part of each window that lies inside."""
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
