"""What surrounds a matting network, in plain arrays: a trimap out of a mask's doubts, and the subject's own colours."""

from __future__ import annotations

import numpy as np

from mm.results.fields import floats, wrong

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255
_SURE = 0.9  # a probability above it, or below 1 less it, is taken as known unless it lies near the edge
_LEAST, _MOST = 0.004, 0.06  # of the longer side: bounds of the band's half width
_SMOOTH = 1e-5  # weight between neighbours of one alpha; a change of alpha adds its size
_SMALL, _SMALL_SWEEPS, _LARGE_SWEEPS = 64 * 64, 20, 4  # pixels of a level, and its sweeps
_MARGIN = 8  # pixels around the subject that tell its background


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


def foreground_of(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3]: the subject's colours without the background's, for a picture and its alpha.

    After Germer, Uelwer, Conrad and Harmeling, "Fast Multi-Level Foreground Estimation" (ICPR 2020): at each pixel the
    two colours that blend to the picture's own while they differ little from their neighbours', least where alpha
    changes; solved from one pixel up to the full size, each level starting from the one before. Sweeps are over all
    pixels at once here. Where alpha is 1 the colours are the picture's own; far from the subject they are the picture's
    too, and mean nothing.

    pixels: uint8[H, W, 3]. alpha: float[H, W] in 0..1.

    Raises:
        InputError: shapes differ, or an alpha lies outside [0, 1].
    """
    alpha = floats("alpha", alpha, ("H", "W"), low=0, high=1)
    if pixels.dtype != np.uint8 or pixels.shape != (*alpha.shape, 3):
        wrong("pixels", f"uint8{[*alpha.shape, 3]}", f"{pixels.dtype}{list(pixels.shape)}")
    window = _around(alpha)
    result = pixels.copy()
    if window is None:
        return result
    front = behind = np.zeros((1, 1, 3), np.float32)
    for height, width in _levels(alpha[window].shape):
        cover = _resized(alpha[window], height, width)
        image = _resized(pixels[window], height, width)
        front, behind = (_resized(each, height, width) for each in (front, behind))
        front, behind = _solved(image, cover, front, behind)
    opaque = (alpha[window] == 1)[..., None]
    result[window] = np.where(opaque, pixels[window], np.clip(front + 0.5, 0, 255).astype(np.uint8))
    return result


def _around(alpha: np.ndarray) -> tuple[slice, slice] | None:
    """The rows and columns of the subject and a margin; None where alpha is 0 everywhere."""
    spans = []
    for axis in (1, 0):
        places = np.flatnonzero(alpha.any(axis))
        if not places.size:
            return None
        spans.append(slice(max(0, int(places[0]) - _MARGIN), int(places[-1]) + 1 + _MARGIN))
    return spans[0], spans[1]


def _levels(size: tuple[int, ...]) -> list[tuple[int, int]]:
    """Heights and widths from one pixel to `size`, each side about doubling."""
    count = max(1, int(np.ceil(np.log2(max(size)))))
    return [(round(size[0] ** (i / count)), round(size[1] ** (i / count))) for i in range(count + 1)]


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32[height, width, …]: the nearest of `values`, with a last axis for all channels."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip((height, width), values.shape[:2], strict=True)
    )
    taken = values[rows[:, None], columns[None]].astype(np.float32)
    return taken if taken.ndim == 3 else taken[..., None]


def _solved(
    image: np.ndarray, alpha: np.ndarray, front: np.ndarray, behind: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Jacobi sweeps of the 2 x 2 system of each pixel; float32[h, w, 3] each, alpha float32[h, w, 1].

    On a large level only where alpha lies between 0 and 1: elsewhere one of the colours is the picture's own.
    """
    small = alpha.size <= _SMALL
    front, behind = np.where(alpha == 1, image, front), np.where(alpha == 0, image, behind)
    solved = np.flatnonzero(np.full(alpha.shape, True) if small else (alpha > 0) & (alpha < 1))
    near = _neighbours(solved, alpha.shape[0], alpha.shape[1])
    flat, fronts, behinds = alpha.reshape(-1, 1), front.reshape(-1, 3), behind.reshape(-1, 3)
    cover, picture = flat[solved], image.reshape(-1, 3)[solved]
    weights = [_SMOOTH + np.abs(cover - flat[place]) for place in near]
    total, rest = np.sum(weights, axis=0), 1 - cover
    a, b, c = cover**2 + total, cover * rest, rest**2 + total
    scale = 1 / (a * c - b * b)
    for _ in range(_SMALL_SWEEPS if small else _LARGE_SWEEPS):
        u, v = cover * picture, rest * picture
        for place, weight in zip(near, weights, strict=True):
            u += weight * fronts[place]
            v += weight * behinds[place]
        fronts[solved] = np.clip((c * u - b * v) * scale, 0, 255)
        behinds[solved] = np.clip((a * v - b * u) * scale, 0, 255)
    return front, behind


def _neighbours(places: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """The flat places above, below, left and right of some; at the border a pixel is its own neighbour."""
    rows, columns = np.divmod(places, width)
    return [
        np.where(rows > 0, places - width, places),
        np.where(rows < height - 1, places + width, places),
        np.where(columns > 0, places - 1, places),
        np.where(columns < width - 1, places + 1, places),
    ]
