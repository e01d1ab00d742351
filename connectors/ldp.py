"""The lightweight downsample projectors of MobileVLM: an MLP, then depthwise convolutions on the map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mm.connectors.base import Connector, Grid, as_map, as_tokens, pooled_grid
from mm.connectors.projections import MLP


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of float[B, D, h, w]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class MobileBlock(nn.Module):
    """Depthwise 3 x 3, squeeze-and-excitation, pointwise (MobileNetV3, Howard et al. 2019, section 5.3).

    With a stride of 1 the input is added; with 2 each side is halved, rounded up.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.norm_1 = ChannelNorm(width)
        squeezed = _round_to_8(width // 4)
        self.squeeze, self.excite = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm_2 = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.hardswish(self.norm_1(self.depthwise(x)))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(out.mean((2, 3), keepdim=True)))))
        out = self.norm_2(self.pointwise(gate * out))
        return out + x if self.residual else out


def _round_to_8(n: int) -> int:
    """The nearest multiple of 8, at least 8; one more where that would lose over a tenth (MobileNet's rule)."""
    rounded = max(8, (n + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * n else rounded


class LDP(Connector):
    """MobileVLM's projector (Chu et al. 2023, arXiv 2312.16886): MLP, a MobileNet block, one of stride 2.

    M = ceil(h / 2) * ceil(w / 2).
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.mlp = MLP(d_in, d_out)
        self.keep, self.halve = MobileBlock(d_out, 1), MobileBlock(d_out, 2)

    def out_grid(self, grid: Grid) -> Grid:
        return (grid[0] + 1) // 2, (grid[1] + 1) // 2

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens, _ = self.mlp(tokens, grid)
        return as_tokens(self.halve(self.keep(as_map(tokens, grid))))


class LDPv2(Connector):
    """MobileVLM V2's projector (Chu et al. 2024, arXiv 2402.03766): MLP, adaptive average pooling, and a
    depthwise 3 x 3 convolution added to its input, which tells the tokens where they are.

    out: the grid to pool to, or the most tokens to give in the proportions of the grid that comes in (the paper:
    144 of 24 x 24). M is their number.
    """

    def __init__(self, d_in: int, d_out: int, *, out: Grid | int = 144) -> None:
        super().__init__(d_in, d_out, out=out)
        self.out = out
        self.mlp = MLP(d_in, d_out)
        self.place = nn.Conv2d(d_out, d_out, 3, padding=1, groups=d_out)

    def out_grid(self, grid: Grid) -> Grid:
        return pooled_grid(self.out, grid)

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens, _ = self.mlp(tokens, grid)
        pooled = F.adaptive_avg_pool2d(as_map(tokens, grid), self.out_grid(grid))
        return as_tokens(self.place(pooled) + pooled)
