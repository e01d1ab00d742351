"""What heads are trained by: the matching of boxes and things, focal loss, and what crowds leave out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mm.heads.owlvit import OwlOutput
from mm.training.batches import HeadBatch
from mm.training.losses import detect_loss, focal, matched, segment_loss


def batch(owner: list[int], label: list[int], boxes: list[list[float]], unsure: Tensor) -> HeadBatch:
    owners, labels, empty = (torch.tensor(values, dtype=torch.long) for values in (owner, label, []))
    return HeadBatch(
        torch.zeros(len(unsure), 3, 8, 8), torch.arange(unsure.shape[1]), owners, labels,
        torch.tensor(boxes).reshape(-1, 4), unsure, empty, empty, torch.zeros(0, 1, 1), torch.zeros(0, 3, 1, 1), 0, (),
    )  # fmt: skip


def output(seed: int, pictures: int = 2, tokens: int = 5, labels: int = 3) -> OwlOutput:
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.2 + 0.5 * torch.rand(pictures, tokens, 4, generator=generator)
    logits = torch.randn(pictures, tokens, labels, generator=generator)
    return OwlOutput(logits, boxes, torch.randn(pictures, tokens, generator=generator), torch.zeros(0))


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [
        (0.0, 1.0, 0.25 * 0.25 * math.log(2)),  # alpha (1 - p)^2
        (0.0, 0.0, 0.75 * 0.25 * math.log(2)),
        (math.log(3), 1.0, 0.25 * 0.0625 * math.log(4 / 3)),  # p = 3/4
        (math.log(3), 0.0, 0.75 * 0.5625 * math.log(4)),
    ],
)
def test_focal_by_hand(logit: float, target: float, expected: float):
    assert focal(torch.tensor(logit), torch.tensor(target)).item() == pytest.approx(expected, abs=1e-6)


def giou(a: list[float], b: list[float]) -> float:
    """Of corners, in plain numbers."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(0, width) * max(0, height)
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - inter
    hull = math.prod(max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1))
    return inter / union - (hull - union) / hull


def cost(out: OwlOutput, picture: int, token: int, label: int, truth: list[float]) -> float:
    p = 1 / (1 + math.exp(-out.logits[picture, token, label].item()))
    yes, no = -0.25 * (1 - p) ** 2 * math.log(p), -0.75 * p**2 * math.log(1 - p)
    box = out.boxes_cxcywh[picture, token].tolist()
    corners = [[c[0] - c[2] / 2, c[1] - c[3] / 2, c[0] + c[2] / 2, c[1] + c[3] / 2] for c in (box, truth)]
    return 2 * (yes - no) + 5 * sum(abs(x - y) for x, y in zip(box, truth, strict=True)) - 2 * giou(*corners)


@pytest.mark.parametrize("seed", range(6))
def test_things_get_the_tokens_of_least_cost_together(seed: int):
    out = output(seed)
    owner, label = [0, 1, 1, 1], [2, 0, 1, 1]
    boxes = np.random.default_rng(seed).uniform(0.3, 0.6, (4, 4)).astype(np.float32).tolist()
    thing, token = matched(out, batch(owner, label, boxes, torch.zeros(2, 3, dtype=torch.bool)))
    chosen = dict(zip(thing.tolist(), token.tolist(), strict=True))
    assert sorted(chosen) == [0, 1, 2, 3]
    best: dict[int, int] = {0: min(range(5), key=lambda t: cost(out, 0, t, label[0], boxes[0]))}
    ways = itertools.permutations(range(5), 3)
    way = min(ways, key=lambda w: sum(cost(out, 1, t, label[i], boxes[i]) for i, t in zip((1, 2, 3), w, strict=True)))
    assert chosen == best | dict(zip((1, 2, 3), way, strict=True))


def test_more_things_than_tokens_leave_the_costliest_without():
    out = output(0, pictures=1, tokens=2)
    crowd = batch([0] * 4, [0, 1, 2, 0], [[0.5, 0.5, 0.1 * (i + 1), 0.3] for i in range(4)], torch.zeros(1, 3) > 0)
    thing, token = matched(out, crowd)
    assert len(thing) == 2 and sorted(token.tolist()) == [0, 1]
    assert all(torch.isfinite(term) for term in detect_loss(out, crowd).values())


def test_a_batch_without_things_trains_the_classes_alone():
    out = output(1)
    terms = detect_loss(out, batch([], [], [], torch.zeros(2, 3) > 0))
    assert terms["l1"] == 0 and terms["giou"] == 0
    assert terms["class"].item() == pytest.approx(2 * focal(out.logits, torch.zeros_like(out.logits)).sum().item())


def test_a_label_that_a_picture_is_unsure_of_counts_neither_way():
    out, unsure = output(2), torch.zeros(2, 3, dtype=torch.bool)
    things = [0], [2], [[0.5, 0.5, 0.2, 0.2]]
    before = detect_loss(out, batch(*things, unsure))["class"]
    unsure[1, 0] = True
    after = detect_loss(out, batch(*things, unsure))["class"]
    left_out = 2 * focal(out.logits[1, :, 0], torch.zeros(5)).sum()
    assert (before - after).item() == pytest.approx(left_out.item(), rel=1e-4)


def test_a_perfect_answer_costs_almost_nothing():
    logits = torch.full((1, 4, 2), -12.0)
    logits[0, 1, 0] = 12.0
    boxes = torch.full((1, 4, 4), 0.9)
    boxes[0, 1] = torch.tensor([0.4, 0.4, 0.2, 0.2])
    objectness = torch.tensor([[-12.0, 12.0, -12.0, -12.0]])
    terms = detect_loss(
        OwlOutput(logits, boxes, objectness, torch.zeros(0)),
        batch([0], [0], [[0.4, 0.4, 0.2, 0.2]], torch.zeros(1, 2) > 0),
    )
    assert sum(term.item() for term in terms.values()) < 1e-4


def test_masks_are_compared_at_the_size_of_the_logits():
    truth = torch.zeros(1, 8, 8)
    truth[0, :4] = 1
    asked = HeadBatch(
        *(torch.zeros(0) for _ in range(6)), torch.zeros(1).long(), torch.zeros(1).long(), truth,
        torch.zeros(1, 3, 8, 8), 0, (),
    )  # fmt: skip
    right, wrong = torch.full((1, 4, 4), -9.0), torch.full((1, 4, 4), 9.0)
    right[0, :2], wrong[0, :2] = 9.0, -9.0
    assert segment_loss(right, asked)["mask"] < 0.01 < segment_loss(wrong, asked)["mask"]
