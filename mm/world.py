"""Whether a picture resembles those a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm.encoders.base import ImageFeatures


def describe(features: ImageFeatures) -> Tensor:
    """float[B, F]: the pooled feature, and mean and log spread of every channel of the earlier maps.

    What a tower pools it was taught to; grain, shading and clutter of a photograph show in its earlier maps.
    """
    parts = [features.pooled]
    for layer in sorted(features.layers):
        tokens = features.layers[layer]
        parts += [tokens.mean(1), tokens.std(1).clamp(min=1e-3).log()]
    return torch.cat(parts, 1)


@dataclass(frozen=True, eq=False)
class World:
    """Mean and whitening of `describe` over training pictures, and the distance that 99 % stay within.

    mean: float[F]; whiten: float[F, R], columns scaled so that distances are Mahalanobis; threshold: unitless.
    """

    name: str
    mean: Tensor
    whiten: Tensor
    threshold: float

    def distance(self, described: Tensor) -> Tensor:
        """float[B, F] -> float[B]: the Mahalanobis distance, divided by the root of the number of directions."""
        return ((described - self.mean) @ self.whiten).square().mean(-1).sqrt()

    def warning(self, distance: float) -> str | None:
        if distance <= self.threshold:
            return None
        return (
            f"this picture lies far from what the model was trained on ({self.name}): distance {distance:.1f}, "
            f"usual up to {self.threshold:.1f}. Expect wrong answers; choose a model for such pictures with model=."
        )
