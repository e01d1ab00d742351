"""How far an alpha matte is from the truth: SAD, MSE, MAD, Grad and Conn.

Grad and Conn: Rhemann et al., "A Perceptually Motivated Online Benchmark for Image Matting", CVPR 2009,
in the units of "Deep Automatic Natural Image Matting" (AIM, Li, Zhang, Tao, IJCAI 2021). Units differ from
paper to paper by powers of ten, so each figure here says its own. All are errors: 0 is perfect.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from mm.errors import InputError
from mm.results.fields import floats, size, wrong

_NAMES = ("SAD", "MSE", "MAD", "Grad", "Conn")
_SIGMA = 1.4  # pixels, of the Gaussian whose derivative gives the gradient
_STEPS = np.arange(11, dtype=np.float32) / 10
_SLACK = 0.15  # an alpha so little above the level at which it is connected still counts as connected
_BACKGROUND, _UNKNOWN, _FOREGROUND = 0, 128, 255


def matting_figures(found: np.ndarray, truth: np.ndarray, *, trimap: np.ndarray | None = None) -> dict[str, float]:
    """The errors of one alpha matte, float[H, W] from 0 to 1, against the true one.

    SAD: the sum of absolute differences, in thousands (of fully wrong pixels).
    MSE, MAD: the mean squared and the mean absolute difference, from 0 to 1.
    Grad: the sum of squared differences of the gradients' lengths, over 10 (not over 1000, as others have it).
    Conn: the sum of differences in connectedness, in thousands.

    trimap: uint8[H, W] of 0 (known background), 128 (unknown) and 255 (known foreground). The matte found is
        first set to 0 and 1 where it is known. SAD, MSE and MAD still take in every pixel, but MSE and MAD
        divide by the number of unknown ones; Grad and Conn are sums over the unknown pixels.

    Raises:
        InputError: shapes differ, an alpha lies outside [0, 1] or is not finite, or the trimap has other values
            or nothing unknown.
    """
    found, truth = floats("found", found, ("H", "W"), low=0, high=1), floats("truth", truth, ("H", "W"), low=0, high=1)
    size("found", found.shape)
    if truth.shape != found.shape:
        wrong("truth", f"the shape of what was found, {found.shape}", str(truth.shape))
    unknown = np.ones(found.shape, bool)
    if trimap is not None:
        trimap = _trimap(trimap, found.shape)
        unknown = trimap == _UNKNOWN
        found = np.where(unknown, found, np.float32(trimap == _FOREGROUND))
    differences = np.abs(found.astype(np.float64) - truth)
    total = float(differences.sum())
    return {
        "SAD": total / 1000,
        "MSE": float(np.square(differences).sum() / unknown.sum()),
        "MAD": total / float(unknown.sum()),
        "Grad": float(np.square(_gradient(found) - _gradient(truth))[unknown].sum() / 10),
        "Conn": float(np.abs(np.subtract(*_connectedness(found, truth)))[unknown].sum() / 1000),
    }


class MattingScore:
    """The errors of a data set that streams through: of each, the mean over its pictures, large or small."""

    def __init__(self) -> None:
        self._each: list[dict[str, float]] = []

    def add(self, found: np.ndarray, truth: np.ndarray, *, trimap: np.ndarray | None = None) -> None:
        """Take one picture; arguments and errors as for `matting_figures`."""
        self._each.append(matting_figures(found, truth, trimap=trimap))

    def figures(self) -> dict[str, float | int | None]:
        """SAD, MSE, MAD, Grad, Conn in the units of `matting_figures`, None before the first picture; pictures:
        how many there were."""
        count = len(self._each)
        means = {name: math.fsum(each[name] for each in self._each) / count if count else None for name in _NAMES}
        return means | {"pictures": count}


def _trimap(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    trimap = np.asarray(value)
    if trimap.shape != shape or trimap.dtype != np.uint8:
        wrong("trimap", f"uint8{list(shape)}", f"{trimap.dtype}{list(trimap.shape)}")
    other = trimap[~np.isin(trimap, (_BACKGROUND, _UNKNOWN, _FOREGROUND))]
    if other.size:
        wrong("trimap", "only 0, 128 and 255", str(int(other[0])))
    if not (trimap == _UNKNOWN).any():
        raise InputError("trimap: expected some pixels to be unknown (128), got none.")
    return trimap


def _gradient(alpha: np.ndarray) -> np.ndarray:
    """float64[H, W]: the length of the gradient of `alpha` under a Gaussian, the picture mirrored at its edges."""
    from scipy.ndimage import gaussian_gradient_magnitude

    return gaussian_gradient_magnitude(alpha, _SIGMA, output=np.float64, mode="reflect")


def _connectedness(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[H, W] each: how connected each pixel is in either matte, 1 for fully.

    At each of the levels 0.1, 0.2, … 1 the source is the largest region (of pixels that share an edge) in
    which both mattes reach the level. A pixel is connected up to the last level before it first falls out of
    the source, and disconnected by what its alpha has beyond that. AIM's own script passes over levels that no
    pixel reaches in both mattes, so that an empty matte has a Conn of 0 there; here all pixels fall out.
    """
    from scipy.ndimage import label

    both = np.minimum(found, truth)
    connected = np.full(both.shape, _STEPS[-1], np.float64)
    inside, regions = np.ones(both.shape, bool), np.empty(both.shape, np.int32)
    for below, level in pairwise(_STEPS):
        label(both >= level, output=regions)
        areas = np.bincount(regions.ravel())[1:]
        stays = inside & (regions == areas.argmax() + 1) if areas.size else np.zeros_like(inside)
        connected[inside & ~stays] = below
        inside = stays
    of_found, of_truth = (1 - np.where(alpha - connected >= _SLACK, alpha - connected, 0) for alpha in (found, truth))
    return of_found, of_truth
