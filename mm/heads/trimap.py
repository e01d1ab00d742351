"""What a matting network asks for beside the picture: a trimap, out of a mask's doubts."""

from __future__ import annotations

import numpy as np

from mm.results.fields import floats

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255
_SURE = 0.9  # a probability above it, or below 1 less it, is taken as known unless it lies near the edge
_LEAST, _MOST = 0.004, 0.06  # of the longer side: bounds of the band's half width


def trimap_of(probability: np.ndarray) -> np.ndarray:
    """uint8[H, W] of 0 (background), 128 (unknown) and 255 (foreground) from a mask's float[H, W] in 0..1.

    Unknown is what the mask doubts (from 0.1 to 0.9), its edge, and a band around both. The band is half as wide as
    the doubt itself is along the edge: a mask that blurs its edge over 20 pixels may well be 10 pixels off.

    Raises:
        InputError: not float[H, W] in 0..1.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    probability = floats("probability", probability, ("H", "W"), low=0, high=1)
    inside = probability >= 0.5
    edge = inside & np.logical_not(binary_erosion(inside, border_value=1))
    doubt = (probability > 1 - _SURE) & (probability < _SURE)
    sure = np.where(inside, FOREGROUND, BACKGROUND).astype(np.uint8)
    seeds = doubt | edge
    if not seeds.any():
        return sure
    longer = max(probability.shape)
    width = doubt.sum() / max(1, edge.sum())
    band = float(np.clip(width / 2, max(2.0, _LEAST * longer), max(2.0, _MOST * longer)))
    distance = distance_transform_edt(~seeds)
    assert isinstance(distance, np.ndarray)
    return np.where(distance <= band, np.uint8(UNKNOWN), sure)
