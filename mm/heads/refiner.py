"""Alpha once more, from the colours around each pixel.

A pixel is I = alpha F + (1 - alpha) B. With an alpha that is nearly right, F and B follow from a neighbourhood by least
squares, as in Germer et al., "Fast Multi-Level Foreground Estimation" (ICPR 2020); with F and B, alpha follows from the
pixel, as in Chuang et al., "A Bayesian Approach to Digital Matting" (CVPR 2001). A small network reads that alpha, and
how far to trust it, beside what the head has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the map a quarter as fine as the picture: how wide a neighbourhood is, and how much it leans on the one before it.
_NEIGHBOURHOODS = ((None, 0.002), (9, 0.01), (3, 0.02))
_SPAN = 4.0  # normalised pixels divided by it span about one
_LEAST, _MOST = 0.002, 0.998  # alpha has finite logits in between
_STEP = 4.0  # how much of a logit one unit of the network's output is
SHOWN = 16  # channels that `colour_maps` gives


def block(inside: int, outside: int, kernel: int = 3) -> nn.Sequential:
    """Conv, BN, ReLU."""
    conv = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


def colours_around(pixels: Tensor, alpha: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The colours of what is asked for and of what lies behind, float32[Q, 3, h, w] each, h and w a quarter of H and W,
    from a wide neighbourhood and from a narrow one.

    pixels: float32[Q, 3, H, W], about -0.5..0.5; alpha: float32[Q, 1, H, W]. The wide one leans on the whole picture
    and the narrow one on the wide one, where they do not show both colours.
    """
    rest = 1 - alpha
    sums = torch.cat([alpha * alpha, alpha * rest, rest * rest, alpha * pixels, rest * pixels], 1)
    height, width = pixels.shape[-2:]
    sums = F.adaptive_avg_pool2d(sums, (-(-height // 4), -(-width // 4)))
    front = behind = pixels.mean((2, 3), keepdim=True)
    found = []
    for side, lean in _NEIGHBOURHOODS:
        if side is None:
            around = sums.mean((2, 3), keepdim=True)
        else:
            around = F.avg_pool2d(sums, side, 1, side // 2, count_include_pad=False)
        aa, ab, bb, with_front, with_behind = around.split((1, 1, 1, 3, 3), 1)
        aa, bb = aa + lean, bb + lean
        one, other = with_front + lean * front, with_behind + lean * behind
        determinant = (aa * bb - ab * ab).clamp(min=1e-7)
        front = ((bb * one - ab * other) / determinant).clamp(-0.8, 0.8)
        behind = ((aa * other - ab * one) / determinant).clamp(-0.8, 0.8)
        found.append((front, behind))
    return found[1:]


def colour_maps(pixels: Tensor, alpha: Tensor) -> Tensor:
    """float32[Q, 16, H, W]: for both neighbourhoods the two colours, the alpha that explains the pixel best by them,
    and how far from the pixel that still is."""
    maps = []
    for pair in colours_around(pixels, alpha):
        front, behind = (
            F.interpolate(colour, pixels.shape[-2:], mode="bilinear", align_corners=False) for colour in pair
        )
        apart = front - behind
        length = apart.square().sum(1, keepdim=True)
        best = (((pixels - behind) * apart).sum(1, keepdim=True) / (length + 0.003)).clamp(-0.5, 1.5)
        left = ((pixels - behind - best * apart).square().sum(1, keepdim=True) + 1e-12).sqrt()  # 0 has no slope
        maps += [front, behind, best, left]
    return torch.cat(maps, 1)


class Refiner(nn.Module):
    """The colours as `colour_maps` gives them and `beside` other channels, through three sizes and back.

    It begins as the alpha it is given.
    """

    def __init__(self, beside: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = fine, half, quarter = tuple(widths)
        self.enter = block(3 + 1 + beside + SHOWN, fine)
        self.down = nn.ModuleList([block(fine, half), block(half, quarter)])
        self.middle = block(quarter, quarter)
        self.reduce = nn.ModuleList([nn.Conv2d(quarter, half, 1), nn.Conv2d(half, fine, 1)])
        self.smooth = nn.ModuleList([block(half, half), block(fine, fine)])
        self.out = nn.Conv2d(fine, 1, 3, padding=1)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, pixels: Tensor, alpha: Tensor, beside: Tensor, fine: Tensor) -> Tensor:
        """pixels: float[Q, 3, H, W], normalised; alpha: float32[Q, H, W]; beside and fine: float[Q, …, H, W], together
        `beside` channels -> float32[Q, H, W] in 0..1."""
        pixels, given = pixels.float() / _SPAN, alpha[:, None]
        seen = torch.cat([pixels, given, beside.float(), colour_maps(pixels, given)], 1).to(fine.dtype)
        x = self.enter(torch.cat([seen, fine], 1).contiguous(memory_format=torch.channels_last))
        finer = []
        for step in self.down:
            finer.append(x)
            x = step(F.avg_pool2d(x, 2, ceil_mode=True))
        x = self.middle(x)
        for reduce, smooth, skip in zip(self.reduce, self.smooth, reversed(finer), strict=True):
            x = skip + F.interpolate(reduce(x), skip.shape[-2:], mode="bilinear", align_corners=False)
            x = x + smooth(x)
        logit = alpha.clamp(_LEAST, _MOST).logit() + _STEP * self.out(x)[:, 0].float()
        return ((logit.sigmoid() - _LEAST) / (_MOST - _LEAST)).clamp(0, 1)
