"""How a checkpoint wants its pictures: size, fit, filter, mean and spread, read from the checkpoint's own files.

Resizing is Pillow's, on 8-bit pixels, as in the reference preprocessors of Pillow kind; those of torchvision kind
differ by about one grey level at single pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mm.encoders.canvas import on_canvas
from mm.pictures.geometry import Geometry, Policy, Resample, fit

Plan = Policy | Literal["patches"]


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint decides about its pictures; nothing here has a default on purpose.

    input_hw: pixels. policy: of `mm.pictures.geometry`, or `patches`: the aspect is kept, sides are multiples of
    `patch` and there are at most `max_patches` of them (NaFlex, SigLIP 2, section 2.4.2); `input_hw` is then unused.
    shortest_edge: where a crop first resizes to, None: to the frame; a squash goes there
    with both sides, and its middle is kept. centre: how a crop halves an odd margin.
    mean, std: of pixels in 0..1. fill: RGB 0-255 of padding.
    """

    input_hw: tuple[int, int]
    policy: Plan
    resample: Resample
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shortest_edge: int | None
    centre: Literal["floor", "even"]
    fill: tuple[int, int, int]
    patch: int | None
    max_patches: int | None

    def geometry(self, picture_hw: tuple[int, int]) -> Geometry:
        """How a picture of this size is laid into the model's input."""
        if self.policy == "patches":
            assert self.patch and self.max_patches
            return fit(picture_hw, patches_hw(picture_hw, self.patch, self.max_patches), "squash")
        edge, policy = self.shortest_edge, self.policy
        if policy == "squash" and edge is not None:
            middle = fit((edge, edge), self.input_hw, "crop", shortest_edge=edge, centre=self.centre)
            return replace(middle, picture_hw=picture_hw)
        return fit(picture_hw, self.input_hw, policy, shortest_edge=edge, centre=self.centre)

    def pixels(self, picture: np.ndarray) -> Tensor:
        """uint8[H, W, 3], upright sRGB -> float32[3, h, w], normalised."""
        height, width = picture.shape[:2]
        if self.policy == "canvas":
            array = on_canvas(picture, self.input_hw)
        else:
            array = self.geometry((height, width)).apply(picture, self.resample, self.fill)
        tensor = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
        # One multiply and one add a pixel: (x / 255 - mean) / std.
        scale = torch.tensor([1 / (255 * s) for s in self.std])[:, None, None]
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)])[:, None, None]
        return torch.addcmul(shift, tensor, scale)

    def coloured(self, pixels: Tensor) -> Tensor:
        """Back again: float[…, 3, h, w], normalised -> float32, RGB in 0..1."""
        mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (self.mean, self.std))
        return pixels.float() * std + mean

    def to_dict(self) -> dict[str, Any]:
        """What `result.source` says of the preprocessing; fields that do not apply are left out."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if v is not None}


def squashed(
    side: int | tuple[int, int], resample: Resample, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Preprocessing:
    """The whole picture, its shape not kept."""
    hw = (side, side) if isinstance(side, int) else side
    return Preprocessing(hw, "squash", resample, mean, std, None, "floor", (0, 0, 0), None, None)


def patches_hw(picture_hw: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """The largest size of this shape, in whole patches, that has at most `most` of them."""

    def sides(scale: float) -> tuple[int, int]:
        height, width = (max(patch, math.ceil(side * scale / patch) * patch) for side in picture_hw)
        return height, width

    low, high = 1e-6, 100.0  # the reference's bracket and end, so that ties fall the same way
    while high - low >= 1e-5:
        middle = (low + high) / 2
        height, width = sides(middle)
        low, high = (middle, high) if (height / patch) * (width / patch) <= most else (low, middle)
    return sides(low)
