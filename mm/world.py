"""Whether a picture resembles those a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class World:
    """Mean and whitening of the pooled feature over training pictures, and the distance that 99 % stay within.

    mean: float[E]; whiten: float[E, R], columns scaled so that distances are Mahalanobis; threshold: unitless.
    """

    name: str
    mean: Tensor
    whiten: Tensor
    threshold: float

    def distance(self, pooled: Tensor) -> Tensor:
        """float[B, E] -> float[B]: the Mahalanobis distance, divided by the root of the number of directions."""
        return ((pooled - self.mean) @ self.whiten).square().mean(-1).sqrt()

    def warning(self, distance: float) -> str | None:
        if distance <= self.threshold:
            return None
        return (
            f"this picture lies far from what the model was trained on ({self.name}): distance {distance:.1f}, "
            f"usual up to {self.threshold:.1f}. Expect wrong answers; choose a model for such pictures with model=."
        )
