"""The connector that reads a detector's regions: once each, from left to right, and where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from mm.connectors.base import Grid
from mm.connectors.regions import Regions
from mm.connectors.table import build

GRID = (4, 6)


class Told(torch.nn.Module):
    """A finder that finds what it is told: (probability, cx, cy, width, height) of some tokens."""

    def __init__(self, things: dict[int, tuple[float, ...]]) -> None:
        super().__init__()
        self.things = things

    def forward(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        told = torch.full((len(tokens), tokens.shape[1], 5), 0.01)
        for place, thing in self.things.items():
            told[:, place] = torch.tensor(thing)
        return told[..., 0], told[..., 1:]


def test_regions_come_once_each_and_from_left_to_right():
    torch.manual_seed(0)
    connector, tokens = build("regions", 13, 17, regions=4).eval(), torch.randn(1, 24, 13)
    right, twice, left = (0.5, 0.8, 0.5, 0.2, 0.2), (0.4, 0.81, 0.5, 0.2, 0.2), (0.9, 0.2, 0.5, 0.2, 0.2)
    connector.finder = Told({3: right, 4: twice, 9: left})
    out = connector(tokens, GRID)[0][0]
    assert (out[2:4] == connector.get_parameter("nothing")).all()
    for token, moved in ((9, [0]), (3, [1]), (4, [])):  # the second box of a thing shows in the surroundings alone
        changed = tokens.clone()
        changed[0, token] += 1
        rows = (connector(changed, GRID)[0][0] != out).any(-1).nonzero()[:, 0].tolist()
        assert [row for row in rows if row < 4] == moved and any(row >= 4 for row in rows)


def test_regions_say_where_they_lie():
    torch.manual_seed(0)
    connector = build("regions", 13, 17, regions=1).eval()
    assert isinstance(connector, Regions)
    connector.linear_1.weight.data[:, 13:] = 0.0  # what the network itself makes of the box
    tokens, here, there = torch.randn(1, 24, 13), (0.9, 0.2, 0.5, 0.2, 0.2), (0.9, 0.7, 0.25, 0.4, 0.2)
    found = []
    for thing in (here, there):
        connector.finder = Told({3: thing})
        found.append(connector(tokens, GRID)[0][0, 0])
    moved = 4 * (torch.tensor(there[1:]) - torch.tensor(here[1:]))
    torch.testing.assert_close(found[1] - found[0], connector.position(moved))


def test_regions_find_as_a_detection_head_does():
    from mm.encoders.base import ImageFeatures
    from mm.heads.owlvit import OwlHead

    torch.manual_seed(0)
    head, connector = OwlHead(width=13, embedding=5).eval(), build("regions", 13, 17)
    assert isinstance(connector, Regions)
    connector.find_as(head)
    tokens = torch.randn(2, 24, 13)
    found = head(ImageFeatures(tokens, GRID, tokens[:, :0], tokens.mean(1)), torch.randn(3, 5))
    thing, boxes = connector.finder(tokens, GRID)
    torch.testing.assert_close(thing, found.objectness.sigmoid())
    torch.testing.assert_close(boxes, found.boxes_cxcywh)
