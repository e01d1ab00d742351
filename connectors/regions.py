"""Regions: the things of a picture, one token each, for a decoder that would otherwise have to find and count them."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm.connectors.base import Connector, Grid, as_map, as_tokens
from mm.kernels.boxes import box_bias, overlaps

_DISTINCT = 0.2  # IoU from which two boxes are taken for one thing
_SURE = 0.1  # how likely a token has to stand for a thing; the decoder, which reads how likely, may still pass it over
_SPREAD = 4.0  # boxes vary by about a quarter of the picture; what is read of them varies by one


class Regions(Connector):
    """The likeliest things from left to right, then the whole picture in `coarse` x `coarse` cells.

    A detector's regions as what a language model reads are those of Anderson et al., "Bottom-Up and Top-Down Attention"
    (CVPR 2018); as in OWL-ViT a region is a token, with its box and its probability of being a thing. Of overlapping
    ones the likeliest stays. The box is also added to what is made of a region, by a map of its own: inside the network
    alone it drowns among the features, and a decoder never learns where things lie. M = regions + coarse^2; a place
    that no thing takes holds a learned token. Its `finder` is a trained detection head's (`find_as`): what a decoder
    reads back cannot teach it.
    """

    def __init__(self, d_in: int, d_out: int, *, regions: int = 12, coarse: int = 2) -> None:
        super().__init__(d_in, d_out, regions=regions, coarse=coarse)
        self.regions, self.coarse = regions, coarse
        self.finder = Finder(d_in).requires_grad_(False)
        self.linear_1, self.linear_2 = nn.Linear(d_in + 5, d_out), nn.Linear(d_out, d_out)
        self.position = nn.Linear(4, d_out, bias=False)
        self.nothing = nn.Parameter(torch.randn(d_out) * 0.02)
        self.surroundings = nn.Linear(d_in, d_out)

    def find_as(self, head: nn.Module) -> None:
        """Takes the weights with which that `OwlHead` finds things."""
        theirs = head.state_dict()
        for key, mine in self.finder.state_dict().items():
            mine.copy_(theirs[key])

    def learnable(self) -> Self:
        super().learnable()
        self.finder.requires_grad_(False)
        return self

    def out_grid(self, grid: Grid) -> Grid:
        return 1, self.regions + self.coarse**2

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        with torch.no_grad():
            thing, boxes = self.finder(tokens, grid)
            place, there = _distinct(thing, boxes, min(self.regions, tokens.shape[1]))
        row = torch.arange(len(tokens), device=tokens.device)[:, None]
        found = torch.cat([boxes, thing[..., None]], -1)[row, place]
        seen = torch.cat([tokens[row, place], found.to(tokens)], -1)
        lies = self.position(_SPREAD * (found[..., :4] - 0.5).to(tokens))
        made = self.linear_2(F.gelu(self.linear_1(seen))) + lies
        made = torch.where(there[..., None], made, self.nothing.to(made))
        made = torch.cat([made, self.nothing.to(made).expand(len(made), self.regions - made.shape[1], -1)], 1)
        cells = as_tokens(F.adaptive_avg_pool2d(as_map(tokens, grid), self.coarse))
        return torch.cat([made, self.surroundings(cells).to(made)], 1)


class Finder(nn.Module):
    """Where each token's thing is, and how likely there is one: the parts of a detection head that need no words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.box_head, self.objectness_head = _mlp(width, 4), _mlp(width, 1)

    def forward(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """float[B, N, D] -> probabilities float32[B, N] and boxes float32[B, N, 4], cxcywh in 0..1."""
        tokens = self.norm(tokens)
        boxes = (self.box_head(tokens).float() + box_bias(grid, tokens.device)).sigmoid()
        return self.objectness_head(tokens)[..., 0].float().sigmoid(), boxes


def _mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def _distinct(thing: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens whose boxes are not one thing, from left to right: int64[B, count], and whether
    there is a thing at all, bool[B, count]; those without come last."""
    alike = overlaps(boxes) > _DISTINCT
    row = torch.arange(len(thing), device=thing.device)
    left, places, likely = thing.clone(), [], []
    for _ in range(count):
        best, place = left.max(1)
        places.append(place)
        likely.append(best)
        left = left.masked_fill(alike[row, place], 0.0)
        left[row, place] = 0.0
    place, there = torch.stack(places, 1), torch.stack(likely, 1) > _SURE
    order = boxes[row[:, None], place, 0].masked_fill(~there, 2.0).argsort(dim=1, stable=True)
    return place.gather(1, order), there.gather(1, order)
