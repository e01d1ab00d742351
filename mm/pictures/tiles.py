"""Large pictures in overlapping squares, and one map out of the squares' maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tile:
    """A window of a picture, in its pixels: rows top … bottom - 1, columns left … right - 1."""

    top: int
    left: int
    bottom: int
    right: int


def tiles(size_hw: tuple[int, int], side: int, overlap: float = 0.25) -> list[Tile]:
    """Squares of `side` that cover the picture, neighbours sharing at least this part of a side.

    A picture smaller than a square along an axis is one window along it.
    """
    rows, columns = (_starts(length, side, overlap) for length in size_hw)
    height, width = min(side, size_hw[0]), min(side, size_hw[1])
    return [Tile(top, left, top + height, left + width) for top in rows for left in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    count = -(-(length - side) // max(1, int(side * (1 - overlap)))) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def blended(size_hw: tuple[int, int], parts: Iterator[tuple[Tile, np.ndarray]]) -> np.ndarray:
    """One map float32[K, H, W] out of maps float32[K, h, w] of tiles, weighted towards each tile's middle.

    The parts pass one at a time, so only one of them is held beside the sum.
    """
    total: np.ndarray | None = None
    weight = np.zeros(size_hw, np.float32)
    for tile, values in parts:
        if total is None:
            total = np.zeros((len(values), *size_hw), np.float32)
        share = np.outer(_ramp(values.shape[1]), _ramp(values.shape[2]))
        window = np.s_[tile.top : tile.bottom, tile.left : tile.right]
        weight[window] += share
        total[(slice(None), *window)] += values * share
    assert total is not None
    total /= weight
    return total


def _ramp(length: int) -> np.ndarray:
    """Rises from the edge to the middle and falls again; never zero."""
    place = np.arange(length) + 0.5
    return np.minimum(place, length - place).astype(np.float32) / length
