"""Connectors that act on each token by itself or mix tokens by a fixed matrix: no attention, no convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mm.connectors.base import Connector, Grid, same_grid

__all__ = ["MLP", "Grid", "Linear", "LinearCompression"]


class Linear(Connector):
    """One matrix with bias (LLaVA, Liu et al. 2023, section 4.1). M = N."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.proj = nn.Linear(d_in, d_out)

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.proj(tokens)


class MLP(Connector):
    """`depth` matrices with a GELU between each two (LLaVA-1.5, Liu et al. 2024, arXiv 2310.03744: depth 2). M = N.

    LLaVA's name for it is `mlp{depth}x_gelu`.
    """

    def __init__(self, d_in: int, d_out: int, *, depth: int = 2) -> None:
        super().__init__(d_in, d_out, depth=depth)
        self.depth = depth
        for i in range(1, depth + 1):
            self.add_module(f"linear_{i}", nn.Linear(d_in if i == 1 else d_out, d_out))
        self.act = nn.GELU()

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = self.get_submodule("linear_1")(tokens)
        for i in range(2, self.depth + 1):
            tokens = self.get_submodule(f"linear_{i}")(self.act(tokens))
        return tokens


class LinearCompression(Connector):
    """Each output token is a learned linear mix of all input tokens, then a matrix changes the width.

    The mix is the Linear Compression Block of Wukong (Zhang et al. 2024, arXiv 2403.02545), there
    between embeddings of a recommender: W X with W float[M, N] over the token axis, no bias. N is fixed by `grid`,
    because the mix knows tokens by their place; M = `out`, any number. The grid that comes out is (1, M).
    """

    def __init__(self, d_in: int, d_out: int, *, grid: Grid, out: int = 64) -> None:
        super().__init__(d_in, d_out, grid=grid, out=out)
        self.grid, self.out = grid, out
        n = grid[0] * grid[1]
        self.mix = nn.Parameter(torch.empty(out, n).uniform_(-(n**-0.5), n**-0.5))
        self.proj = nn.Linear(d_in, d_out)

    def out_grid(self, grid: Grid) -> Grid:
        same_grid("LinearCompression", self.grid, grid)
        return 1, self.out

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.proj(self.mix @ tokens)
