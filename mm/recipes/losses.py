"""The losses of the `tiny` recipe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.heads.owlvit import OwlOutput
from mm.recipes.batches import LABEL_GROUPS, Batch
from mm.scenes.vocabulary import SEEN_PAIRS

_REGION_SCALE = 16.0  # inverse temperature of the region-text softmax


def quality_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of |target - p| * BCE (Li et al., "Generalized Focal Loss", 2020, equation 3, with beta = 1)."""
    p = logits.sigmoid()
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * (target - p).abs()).sum()


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of cxcywh boxes, float[n] (Rezatofighi et al., 2019)."""
    a0, a1, b0, b1 = (
        a[:, :2] - a[:, 2:] / 2,
        a[:, :2] + a[:, 2:] / 2,
        b[:, :2] - b[:, 2:] / 2,
        b[:, :2] + b[:, 2:] / 2,
    )
    inter = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(1)
    union = (a[:, 2:].prod(1) + b[:, 2:].prod(1) - inter).clamp(min=1e-9)
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(1).clamp(min=1e-9)
    return inter / union - (hull - union) / hull


def detection_loss(out: OwlOutput, batch: Batch) -> dict[str, Tensor]:
    """Class, box and objectness terms, each per object."""
    thing, cell, weight = batch.cell_object, batch.cell_index, batch.cell_weight
    owner = batch.owner[thing]
    count = float(len(batch.owner))
    target = torch.zeros_like(out.logits)
    target[owner, cell] = batch.match[thing].float() * weight[:, None]
    boxes, truth = out.boxes_cxcywh[owner, cell], batch.boxes[thing].float()
    scale = (truth[:, 2:].clamp(min=0.05)).repeat(1, 2)  # a pixel matters more on a small thing
    l1 = ((boxes - truth).abs() / scale).mean(1)
    overlap = generalised_iou(boxes, truth)
    assert out.objectness is not None
    objectness = torch.zeros_like(out.objectness)
    objectness[owner, cell] = overlap.detach().clamp(0.1, 1.0)  # so that of two boxes the better one wins
    return {
        "class": quality_focal(out.logits, target) / count,
        "object": quality_focal(out.objectness, objectness) / count,
        "box": (weight * (l1 + 2 * (1 - overlap))).sum() / weight.sum(),
    }


def attribute_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of kind, colour and texture of each object's own cell, from float[B, N, 37].

    While texts of alike labels still lie close together, nothing else tells the tokens that kinds differ.
    """
    own = batch.cell_weight == 1
    thing, cell = batch.cell_object[own], batch.cell_index[own]
    found = logits[batch.owner[thing], cell].float()
    first = LABEL_GROUPS[1][0]
    total = found.new_zeros(())
    for start, stop in LABEL_GROUPS[1:]:
        truth = batch.match[thing, start:stop].float().argmax(1)
        total = total + F.cross_entropy(found[:, start - first : stop - first], truth)
    return total


def region_loss(out: OwlOutput, text: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each object's own cell over all seen pairs, over kinds, colours and textures.

    Independent sigmoids tell 216 alike labels apart only slowly; a softmax over them does it at once.
    """
    own = batch.cell_weight == 1
    thing, cell = batch.cell_object[own], batch.cell_index[own]
    e = out.embeds[batch.owner[thing], cell]
    logits = _REGION_SCALE * e @ F.normalize(text.float(), dim=-1).T
    total = logits.new_zeros(())
    for start, stop in LABEL_GROUPS:
        truth = batch.match[thing, start:stop].float()
        total = total + F.cross_entropy(logits[:, start:stop], truth / truth.sum(1, keepdim=True))
    return total


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy plus Dice where there is something; float[Q, s, s] both."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    p = logits.sigmoid()
    area = target.sum((1, 2))
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / ((p * p).sum((1, 2)) + (target * target).sum((1, 2)) + 1)
    return 4 * bce.mean() + (dice * (area > 1)).mean()


def contrastive_loss(image: Tensor, text: Tensor, captions: list[str], scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the first pictures of a batch, those that have a caption here (Radford et al.,
    2021); equal captions count as one truth."""
    image = image[: len(captions)]
    logits = scale.exp() * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    same = torch.tensor([[a == b for a in captions] for b in captions], dtype=torch.float32, device=logits.device)
    truth = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def present_loss(image: Tensor, text: Tensor, batch: Batch, scale: Tensor) -> Tensor:
    """Cross-entropy of each picture over all seen pairs, the truth shared among those present."""
    pairs = len(SEEN_PAIRS)
    logits = scale.exp() * F.normalize(image.float(), dim=-1) @ F.normalize(text[:pairs].float(), dim=-1).T
    truth = torch.zeros_like(logits)
    truth[batch.owner, batch.pair_index] = 1.0
    return F.cross_entropy(logits, truth / truth.sum(1, keepdim=True))
