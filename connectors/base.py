"""What every connector is: a small network between two widths, on tokens that lie on a grid.

All share one signature: `forward(tokens float[B, N, D_in], grid (h, w)) -> (float[B, M, D_out], grid (h', w'))`.
N = h * w, row by row, and M = h' * w'; `tokens(grid)` says M before anything runs. No connector assumes a square.
Connectors that ask with M learned queries have no rows: their grid is (1, M).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import isqrt
from typing import Self

from torch import Tensor, nn

Grid = tuple[int, int]


class Connector(nn.Module, ABC):
    """A subclass says what grid comes out and how tokens become tokens; the checks are here."""

    def __init__(self, d_in: int, d_out: int, **sizes: int | Grid) -> None:
        """sizes: the subclass's own settings that must be at least 1, checked here with the two widths."""
        super().__init__()
        for name, value in {"d_in": d_in, "d_out": d_out, **sizes}.items():
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{type(self).__name__}: expected {name} of at least 1, got {value}")
        self.d_in, self.d_out = d_in, d_out

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that comes out for this one.

        Raises:
            ValueError: the connector cannot take this grid.
        """
        return grid

    def tokens(self, grid: Grid) -> int:
        """How many tokens come out for this grid."""
        h, w = self.out_grid(grid)
        return h * w

    def learnable(self) -> Self:
        """Itself, where everything that a decoder can teach it requires gradients."""
        return self.requires_grad_(True)

    @abstractmethod
    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        """float[B, N, D_in] -> float[B, M, D_out]; the shape is already checked."""

    def forward(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        h, w = grid
        if tokens.ndim != 3 or tokens.shape[1:] != (h * w, self.d_in):
            raise ValueError(
                f"{type(self).__name__}: expected tokens of shape [batch, {h * w}, {self.d_in}] "
                f"for a grid of {h} x {w}, got {list(tokens.shape)}"
            )
        out = self.out_grid(grid)
        return self.connect(tokens, grid), out


def as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """float[B, h * w, D] -> float[B, D, h, w]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def as_tokens(map_: Tensor) -> Tensor:
    """float[B, D, h, w] -> float[B, h * w, D]."""
    return map_.flatten(2).transpose(1, 2)


def pooled_grid(out: Grid | int, grid: Grid) -> Grid:
    """The grid to pool to: `out` itself where it is one, else at most `out` tokens in the proportions of `grid`.

    A square grid and a square number give the square: 144 tokens of 24 x 24 are 12 x 12, of 16 x 32 are 8 x 16.
    With a number nothing is enlarged: no side grows beyond that of `grid`.
    """
    if not isinstance(out, int):
        return out
    h, w = grid
    rows = min(max(1, isqrt(out * h // w)), h, out)
    return rows, min(max(1, isqrt(out * w // h)), w, out // rows)


def same_grid(name: str, built_for: Grid, grid: Grid) -> None:
    """Refuses any grid but the one that a connector's weights were made for."""
    if tuple(grid) != tuple(built_for):
        (h, w), (got_h, got_w) = built_for, grid
        raise ValueError(
            f"{name}: built for a grid of {h} x {w} ({h * w} tokens), got {got_h} x {got_w} ({got_h * got_w} tokens)"
        )
