"""Pixel shuffle: r x r neighbours become one token that is r * r times as wide, then a projection. Nothing is lost.

The channels of a token that comes out are ordered (dy, dx, c), as in the released models;
`torch.pixel_unshuffle` would give (c, dy, dx), which their weights do not fit.
"""

from __future__ import annotations

from torch import Tensor, nn

from mm.connectors.base import Connector, Grid


def shuffled_grid(name: str, grid: Grid, factor: int) -> Grid:
    """(h / r, w / r).

    Raises:
        ValueError: `factor` does not divide both sides.
    """
    h, w = grid
    if h % factor or w % factor:
        raise ValueError(f"{name}: expected a grid with both sides divisible by {factor}, got {h} x {w}")
    return h // factor, w // factor


def shuffle(tokens: Tensor, grid: Grid, factor: int) -> Tensor:
    """float[B, h * w, D] -> float[B, (h / r) * (w / r), r * r * D], channels ordered (dy, dx, c)."""
    batch, _, width = tokens.shape
    h, w = grid[0] // factor, grid[1] // factor
    blocks = tokens.reshape(batch, h, factor, w, factor, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, h * w, factor * factor * width)


class PixelShuffle(Connector):
    """Pixel shuffle and one matrix without bias (Idefics3, Laurençon et al. 2024, arXiv 2408.12637). M = N / r^2."""

    def __init__(self, d_in: int, d_out: int, *, factor: int = 2) -> None:
        super().__init__(d_in, d_out, factor=factor)
        self.factor = factor
        self.proj = nn.Linear(factor * factor * d_in, d_out, bias=False)

    def out_grid(self, grid: Grid) -> Grid:
        return shuffled_grid("PixelShuffle", grid, self.factor)

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.proj(shuffle(tokens, grid, self.factor))


class InternVLProjector(Connector):
    """Pixel shuffle, LayerNorm and a 2-layer GELU MLP (InternVL 1.5, Chen et al. 2024, arXiv 2404.16821).

    M = N / r^2.
    """

    def __init__(self, d_in: int, d_out: int, *, factor: int = 2) -> None:
        super().__init__(d_in, d_out, factor=factor)
        self.factor = factor
        self.norm = nn.LayerNorm(factor * factor * d_in)
        self.linear_1 = nn.Linear(factor * factor * d_in, d_out)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(d_out, d_out)

    def out_grid(self, grid: Grid) -> Grid:
        return shuffled_grid("InternVLProjector", grid, self.factor)

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.linear_2(self.act(self.linear_1(self.norm(shuffle(tokens, grid, self.factor)))))
