"""Connectors that keep the number of tokens: a matrix, or a small network on each token.

All connectors share one signature: `forward(tokens float[B, N, D_in], grid) -> (float[B, M, D_out], grid)`.
"""

from __future__ import annotations

from torch import Tensor, nn

Grid = tuple[int, int]


class Linear(nn.Module):
    """One matrix with bias (LLaVA, Liu et al. 2023). M = N."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d_in, d_out)

    def tokens(self, grid: Grid) -> int:
        """How many tokens come out for this grid."""
        return grid[0] * grid[1]

    def forward(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        return self.proj(tokens), grid


class MLP(nn.Module):
    """Linear, GELU, Linear (LLaVA-1.5, Liu et al. 2024, section 3.2). M = N."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.linear_1, self.act, self.linear_2 = nn.Linear(d_in, d_out), nn.GELU(), nn.Linear(d_out, d_out)

    def tokens(self, grid: Grid) -> int:
        """How many tokens come out for this grid."""
        return grid[0] * grid[1]

    def forward(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        return self.linear_2(self.act(self.linear_1(tokens))), grid
