"""Average pooling: fewer tokens without a parameter more."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mm.connectors.base import Connector, Grid, as_map, as_tokens


class AveragePool(Connector):
    """The mean of each window of n x n tokens, then one matrix with bias (MM1, McKinzie et al. 2024,
    arXiv 2403.09611, section 3.2).

    M = ceil(h / n) * ceil(w / n): where n does not divide a side, the last windows hold fewer tokens and average
    over those.
    """

    def __init__(self, d_in: int, d_out: int, *, window: int = 2) -> None:
        super().__init__(d_in, d_out, window=window)
        self.window = window
        self.proj = nn.Linear(d_in, d_out)

    def out_grid(self, grid: Grid) -> Grid:
        return -(-grid[0] // self.window), -(-grid[1] // self.window)

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        pooled = F.avg_pool2d(as_map(tokens, grid), self.window, ceil_mode=True, count_include_pad=False)
        return self.proj(as_tokens(pooled))
