"""The convolutional abstractor of Honeybee: neighbourhoods are read before and after the map is pooled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm.connectors.base import Connector, Grid, as_map, as_tokens, pooled_grid, same_grid


def stage(depth: int, d_in: int, d_out: int) -> nn.Module:
    """`depth` RegNet blocks: pointwise, depthwise 3 x 3, squeeze-and-excitation, pointwise; SiLU and LayerNorm."""
    from timm.layers.norm import LayerNorm2d
    from timm.models.regnet import RegStage

    return RegStage(depth, d_in, d_out, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)


class CAbstractor(Connector):
    """The C-Abstractor of Honeybee (Cha et al. 2024, arXiv 2312.06742); the choice of MM1.

    RegNet blocks, adaptive average pooling, RegNet blocks, and an MLP with SiLU as readout.
    out: the grid to pool to, or the most tokens to give in the proportions of the grid that comes in (the paper:
    144 of 24 x 24, a square). M is their number plus `end_tokens`, learned tokens at the end (Honeybee's
    `num_eos_tokens`); with any of these the tokens are no rectangle, and the grid that comes out is (1, M).
    grid: where given, learned positions are added to the tokens (as in the published models) and only this grid
    is taken; without it, any.
    prenorm: a LayerNorm on the tokens first.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        grid: Grid | None = None,
        out: Grid | int = 144,
        width: int = 1024,
        depth: int = 3,
        readout_depth: int = 2,
        end_tokens: int = 0,
        prenorm: bool = False,
    ) -> None:
        super().__init__(d_in, d_out, out=out, width=width, depth=depth, readout_depth=readout_depth)
        self.grid, self.out = grid, out
        self.prenorm = nn.LayerNorm(d_in) if prenorm else None
        self.positions = _learned(grid[0] * grid[1], d_in) if grid else None
        self.before, self.after = stage(depth, d_in, width), stage(depth, width, width)
        readout: list[nn.Module] = [nn.Linear(width, d_out)]
        for _ in range(1, readout_depth):
            readout += [nn.SiLU(), nn.Linear(d_out, d_out)]
        self.readout = nn.Sequential(*readout)
        self.ends = _learned(end_tokens, d_out) if end_tokens else None

    def _map_grid(self, grid: Grid) -> Grid:
        if self.grid is not None:
            same_grid("CAbstractor", self.grid, grid)
        return pooled_grid(self.out, grid)

    def out_grid(self, grid: Grid) -> Grid:
        h, w = self._map_grid(grid)
        return (h, w) if self.ends is None else (1, h * w + self.ends.shape[1])

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        if self.prenorm is not None:
            tokens = self.prenorm(tokens)
        if self.positions is not None:
            tokens = tokens + self.positions
        pooled = F.adaptive_avg_pool2d(self.before(as_map(tokens, grid)), self._map_grid(grid))
        out = self.readout(as_tokens(self.after(pooled)))
        return out if self.ends is None else torch.cat([out, self.ends.expand(out.shape[0], -1, -1)], dim=1)


def _learned(n: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, n, width), std=0.02))
