"""The subject's own colours, without the background that shines through its soft edges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from mm.results.fields import floats, wrong

Region = tuple[slice, slice]  # rows and columns, each with a start and a stop

_SEEN = 1 / 510  # half a step of 8 bits: an alpha nearer to 0 or 1 is written as that
_SMOOTH = 1e-5  # weight between neighbours of one alpha; a change of alpha adds its size
_SMALL, _SMALL_SWEEPS, _LARGE_SWEEPS = 64 * 64, 20, 4  # pixels of a level, and its sweeps
_MARGIN = 8  # pixels around the subject that tell its background
_WHOLE = 512 * 512  # pixels of the largest level that is solved whole
_TILE = 256  # pixels, the side of a tile of a larger picture


def foreground_of(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3]: the subject's colours without the background's, for a picture and its alpha.

    After Germer, Uelwer, Conrad and Harmeling, "Fast Multi-Level Foreground Estimation" (ICPR 2020): at each pixel the
    two colours that blend to the picture's own while they differ little from their neighbours', least where alpha
    changes; solved from one pixel up to the full size, each level starting from the one before. Sweeps are over all
    pixels at once here.

    A picture above `_WHOLE` pixels is solved in tiles, and only where its alpha, written in 8 bits, is neither 0 nor
    255; so the memory beside the result hardly grows with the picture. Where alpha is written as 255 the colours are
    the picture's own. Where it is written as 0 they mean nothing.

    pixels: uint8[H, W, 3]. alpha: float[H, W] in 0..1.

    Raises:
        InputError: shapes differ, or an alpha lies outside [0, 1].
    """
    alpha = floats("alpha", alpha, ("H", "W"), low=0, high=1)
    if pixels.dtype != np.uint8 or pixels.shape != (*alpha.shape, 3):
        wrong("pixels", f"uint8{[*alpha.shape, 3]}", f"{pixels.dtype}{list(pixels.shape)}")
    result = pixels.copy()
    window = _around(alpha)
    if window is None:
        return result
    levels = _Levels(pixels[window], alpha[window])
    for tile in _tiles(levels.alpha.shape):
        shared = levels.alpha[tile] < 1 - _SEEN
        if shared.any():
            np.copyto(result[window][tile], levels.subject(tile), where=shared[..., None])
    return result


def _around(alpha: np.ndarray) -> Region | None:
    """The rows and columns of the subject and a margin; None where alpha is 0 everywhere."""
    spans = []
    for axis in (1, 0):
        places = np.flatnonzero(alpha.any(axis))
        if not places.size:
            return None
        spans.append(slice(max(0, int(places[0]) - _MARGIN), int(places[-1]) + 1 + _MARGIN))
    return spans[0], spans[1]


def _tiles(size: tuple[int, ...]) -> Iterator[Region]:
    """Regions of at most `_TILE` by `_TILE` pixels that share out the size between them."""
    spans = [[slice(at, min(at + _TILE, length)) for at in range(0, length, _TILE)] for length in size]
    return itertools.product(spans[0], spans[1])


class _Levels:
    """The subject's and the background's colours at every level, from one pixel to the full size.

    Each side about doubles from level to level. Levels of up to `_WHOLE` pixels are solved whole and the last of them
    is kept. Of a finer level only a region that is asked for is solved, out of the levels below it. A sweep carries a
    colour one pixel further, so a region widened by the number of sweeps gives what the whole level would.
    """

    def __init__(self, pixels: np.ndarray, alpha: np.ndarray) -> None:
        """pixels: uint8[H, W, 3]. alpha: float32[H, W] in 0..1."""
        self.pixels, self.alpha = pixels, alpha
        (height, width), count = alpha.shape, max(1, int(np.ceil(np.log2(max(alpha.shape)))))
        shares = [i / count for i in range(count + 1)]
        self._sizes = [(1, 1), *((round(height**share), round(width**share)) for share in shares)]
        self._kept, self._colours = 0, np.zeros((2, 3, 1, 1), np.float32)
        for level, (height, width) in enumerate(self._sizes[1:], 1):
            if height * width > _WHOLE:
                break
            self._colours = self._solved(level, (slice(0, height), slice(0, width)))
            self._kept = level

    def subject(self, tile: Region) -> np.ndarray:
        """uint8[h, w, 3]: the subject's colours in a region of the full size.

        They are of the full size in the box around all that is seen as half transparent, else of the level kept.
        """
        top, alpha = len(self._sizes) - 1, self.alpha[tile]
        y, x = self._places(top, tile, self._sizes[self._kept])
        result = _rounded(self._colours[0][:, y[:, None], x])
        rows, columns = np.nonzero((alpha > _SEEN) & (alpha < 1 - _SEEN))
        if rows.size and self._kept < top:
            box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in (rows, columns))
            down, right = (slice(t.start + b.start, t.start + b.stop) for t, b in zip(tile, box, strict=True))
            result[box] = _rounded(self._solved(top, (down, right))[0])
        return result

    def _solved(self, level: int, region: Region) -> np.ndarray:
        """float32[2, 3, h, w] in 0..255: the subject's colours and the background's in a region of a level."""
        if level == self._kept:
            return self._colours[:, :, *region]
        height, width = self._sizes[level]
        small = height * width <= _SMALL
        sweeps = _SMALL_SWEEPS if small else _LARGE_SWEEPS
        wide = _widened(region[0], sweeps, height), _widened(region[1], sweeps, width)
        y, x = self._places(level, wide, self._sizes[level - 1])
        below = self._solved(level - 1, (slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1)))
        start = below[:, :, (y - y[0])[:, None], x - x[0]]
        y, x = self._places(level, wide, self.alpha.shape)
        image = self.pixels[y[:, None], x].transpose(2, 0, 1).astype(np.float32, order="C")
        swept = _swept(image, self.alpha[y[:, None], x], start, sweeps, everywhere=small)
        rows, columns = (slice(r.start - w.start, r.stop - w.start) for r, w in zip(region, wide, strict=True))
        return swept[:, :, rows, columns]

    def _places(self, level: int, region: Region, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """int[h] and int[w]: the nearest rows and columns, at another size, to those of a region of a level."""
        y, x = (
            ((np.arange(span.start, span.stop) + 0.5) * new / old).astype(int)
            for span, old, new in zip(region, self._sizes[level], size, strict=True)
        )
        return y, x


def _widened(span: slice, by: int, length: int) -> slice:
    return slice(max(0, span.start - by), min(length, span.stop + by))


def _rounded(colours: np.ndarray) -> np.ndarray:
    """float32[3, h, w] in 0..255 -> uint8[h, w, 3]."""
    return (colours.transpose(1, 2, 0) + 0.5).astype(np.uint8)


def _swept(image: np.ndarray, alpha: np.ndarray, start: np.ndarray, sweeps: int, *, everywhere: bool) -> np.ndarray:
    """Jacobi sweeps of the 2 x 2 system of each pixel, from `start`, which is overwritten: float32[2, 3, h, w].

    A sweep blends each colour from its neighbours' and shares what is then missing from the picture between the two.
    image: float32[3, h, w]. alpha: float32[h, w]. Unless `everywhere`, only where alpha lies between 0 and 1: elsewhere
    one of the colours is the picture's own.
    """
    np.copyto(start[0], image, where=alpha == 1)
    np.copyto(start[1], image, where=alpha == 0)
    solved = np.full(alpha.shape, True) if everywhere else (alpha > 0) & (alpha < 1)
    weights = [_SMOOTH + np.abs(alpha - near) for near in _neighbours(np.pad(alpha, 1, mode="edge"))]
    total = weights[0] + weights[1] + weights[2] + weights[3]
    weights = [weight / total for weight in weights]
    shares = np.stack([alpha, 1 - alpha])[:, None]
    gains = shares / ((shares**2).sum(0) + total)
    padded = np.pad(start, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    colours, part = padded[..., 1:-1, 1:-1], np.empty_like(start)
    for _ in range(sweeps):
        near = _neighbours(padded)
        found = weights[0] * near[0]
        for weight, each in zip(weights[1:], near[1:], strict=True):
            found += np.multiply(weight, each, out=part)
        np.multiply(shares, found, out=part)
        missing = image - part[0] - part[1]
        found += np.multiply(gains, missing, out=part)
        np.copyto(colours, np.clip(found, 0, 255, out=found), where=solved)
        for edge, own in ((0, 1), (-1, -2)):  # at the border a pixel is its own neighbour
            padded[..., edge, :] = padded[..., own, :]
            padded[..., edge] = padded[..., own]
    return colours


def _neighbours(padded: np.ndarray) -> list[np.ndarray]:
    """Views [..., h, w] of what lies above, below, left and right, from values with a border of one pixel."""
    inner = slice(1, -1)
    return [padded[..., :-2, inner], padded[..., 2:, inner], padded[..., inner, :-2], padded[..., inner, 2:]]
