"""OWLv2's way to its input: the picture on a black square, smoothed and resized in one linear step.

The original smooths with a Gaussian of half the excess of the shrinking factor and then interpolates linearly, with
mirrored borders (Minderer et al. 2023; scikit-image's `resize`). Both act on each axis alone, so each axis is one
band matrix; the black part of the square needs no columns.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

_TRUNCATE = 4.0  # the Gaussian's reach in standard deviations


def on_canvas(picture: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """uint8[H, W, 3] -> float32[h, w, 3], 0-255: the square of the longer side, resized to `input_hw`."""
    height, width, colours = picture.shape
    longer = max(height, width)
    down = _axis(longer, input_hw[0])[:, :height].astype(np.float32)
    across = _axis(longer, input_hw[1])[:, :width].astype(np.float32)
    rows = (down @ picture.reshape(height, -1).astype(np.float32)).reshape(-1, width, colours)
    columns = across @ rows.transpose(1, 0, 2).reshape(width, -1)
    return columns.reshape(-1, len(rows), colours).transpose(1, 0, 2)


def _axis(size: int, out: int) -> sparse.csr_matrix:
    """float64[out, size]: smooth, then sample linearly at the centres of `out` equal cells."""
    factor = size / out
    matrix = _sampling(size, out, factor)
    sigma = (factor - 1) / 2
    return matrix @ _smoothing(size, sigma) if sigma > 0 else matrix


def _sampling(size: int, out: int, factor: float) -> sparse.csr_matrix:
    at = (np.arange(out) + 0.5) * factor - 0.5
    low = np.floor(at).astype(int)
    share = at - low
    rows = np.repeat(np.arange(out), 2)
    columns = _mirrored(np.stack([low, low + 1], 1).ravel(), size)
    return sparse.csr_matrix((np.stack([1 - share, share], 1).ravel(), (rows, columns)), (out, size))


def _smoothing(size: int, sigma: float) -> sparse.csr_matrix:
    reach = int(_TRUNCATE * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    rows = np.repeat(np.arange(size), len(steps))
    columns = _mirrored((np.arange(size)[:, None] + steps).ravel(), size)
    return sparse.csr_matrix((np.tile(weights, size), (rows, columns)), (size, size))


def _mirrored(at: np.ndarray, size: int) -> np.ndarray:
    """Places outside 0 … size - 1, reflected about the centres of the outermost cells."""
    if size == 1:
        return np.zeros_like(at)
    period = 2 * (size - 1)
    folded = np.abs(at) % period
    return np.minimum(folded, period - folded)
