"""What surrounds a matting network, in plain arrays: a trimap out of a mask's doubts, and the subject's own colours."""

from __future__ import annotations

import numpy as np

from mm.fields import floats, wrong

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255
_SURE = 0.9  # a probability above it, or below 1 less it, is taken as known unless it lies near the edge
_LEAST, _MOST = 0.004, 0.06  # of the longer side: bounds of the band's half width
_WIDE, _NARROW = 0.09, 0.006  # of the longer side: radii of the two passes for the colours
_EPSILON = 1e-5


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
    edge = inside & ~binary_erosion(inside, border_value=1)
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


def foreground_of(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3]: the subject's colours without the background's, for a picture and its alpha.

    Twice the closed form of Forte, "Approximate Fast Foreground Colour Estimation" (ICIP 2021): colours averaged
    around each pixel, weighted by alpha and by its rest, then moved along alpha until they blend to the picture; first
    with a wide window, then with a narrow one. Where alpha is 1 they are the picture's own.

    pixels: uint8[H, W, 3]. alpha: float[H, W] in 0..1.

    Raises:
        InputError: shapes differ, or an alpha lies outside [0, 1].
    """
    alpha = floats("alpha", alpha, ("H", "W"), low=0, high=1)
    if pixels.dtype != np.uint8 or pixels.shape != (*alpha.shape, 3):
        wrong("pixels", f"uint8{[*alpha.shape, 3]}", f"{pixels.dtype}{list(pixels.shape)}")
    result = np.empty(pixels.shape, np.uint8)
    radii = [max(least, round(part * max(alpha.shape))) for part, least in ((_WIDE, 8), (_NARROW, 2))]
    for channel in range(3):  # one at a time: a large picture's floats are four times its bytes
        image = pixels[..., channel].astype(np.float32)
        front = behind = image
        for radius in radii:
            front, behind = _moved(image, front, behind, alpha, radius)
        result[..., channel] = np.clip(front + 0.5, 0, 255)
    return result


def _moved(
    image: np.ndarray, front: np.ndarray, behind: np.ndarray, alpha: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import uniform_filter

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, 2 * radius + 1, mode="nearest")

    share = mean(alpha)
    near = mean(front * alpha) / (share + _EPSILON)
    far = mean(behind * (1 - alpha)) / (1 - share + _EPSILON)
    return np.clip(near + alpha * (image - alpha * near - (1 - alpha) * far), 0, 255), far
