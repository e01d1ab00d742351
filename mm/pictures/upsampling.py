"""From the size of a model's input to that of the picture, along the picture's edges."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mm.kernels.guided import colour_model
from mm.pictures.geometry import Geometry


def along_colours(values: Tensor, small: Tensor, pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """float32[H, W] over the upright original: what `values` says of each colour, said of the picture's own.

    values: float[h, w] over the model's input. small: float[3, h, w], that input in 0..1. pixels: uint8[H, W, 3], the
    picture it was made from, by `geometry`. What the model did not see is 0. One map is brought to full size after
    the other, since each takes four bytes a pixel.
    """
    *slopes, start = colour_model(small.cpu(), values.cpu()).numpy()
    full = geometry.masks_to_original(start[None])[0]
    for channel, slope in enumerate(slopes):
        full += geometry.masks_to_original(slope[None])[0] * (pixels[..., channel] * np.float32(1 / 255))
    return full
