"""Losses of heads against a data set's truth; those of masks and mattes are the recipes' own.

Boxes are matched to things one to one before they are compared: Carion et al., "End-to-End Object Detection with
Transformers" (DETR), ECCV 2020, section 3.1, with the focal class term and the weights of Zhu et al., "Deformable
DETR", ICLR 2021, section A.4, as OWL-ViT trains its head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mm.heads.owlvit import OwlOutput
from mm.recipes.losses import generalised_iou, mask_loss, quality_focal
from mm.training.batches import HeadBatch

_CLASS, _L1, _GIOU = 2.0, 5.0, 2.0
_ALPHA, _GAMMA = 0.25, 2.0


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """The focal loss of each logit, its target 0 or 1 (Lin et al., ICCV 2017, equation 5)."""
    p = logits.sigmoid()
    right = p * target + (1 - p) * (1 - target)
    weight = _ALPHA * target + (1 - _ALPHA) * (1 - target)
    return weight * (1 - right) ** _GAMMA * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


@torch.no_grad()
def matched(out: OwlOutput, batch: HeadBatch) -> tuple[Tensor, Tensor]:
    """The thing and the token of each pair of the best assignment, int64[m] both.

    Every thing gets a token of its own picture; where there are more things than tokens, the costliest go without.
    """
    things, tokens = [], []
    for picture in range(len(out.logits)):
        mine = (batch.owner == picture).nonzero()[:, 0]
        if not len(mine):
            continue
        cost = _costs(out.logits[picture][:, batch.label[mine]], out.boxes_cxcywh[picture], batch.boxes[mine])
        row, column = linear_sum_assignment(cost.cpu().double().numpy())
        things.append(mine[torch.from_numpy(row).to(mine.device)])
        tokens.append(torch.from_numpy(column).to(mine.device))
    if not things:
        return batch.owner[:0], batch.owner[:0]
    return torch.cat(things), torch.cat(tokens)


def _costs(logits: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
    """float32[n, N] for logits float[N, n] of each thing's label, boxes float[N, 4] and true boxes float[n, 4]."""
    yes, no = focal(logits, torch.ones_like(logits)), focal(logits, torch.zeros_like(logits))
    count, tokens = len(truth), len(boxes)
    pairs = boxes[None].expand(count, -1, -1).reshape(-1, 4), truth[:, None].expand(-1, tokens, -1).reshape(-1, 4)
    apart = -generalised_iou(*pairs).view(count, tokens)
    return _CLASS * (yes - no).T + _L1 * torch.cdist(truth, boxes, p=1) + _GIOU * apart


def detect_loss(out: OwlOutput, batch: HeadBatch) -> dict[str, Tensor]:
    """Class, box and overlap terms, and objectness where the head has it, each a thing."""
    thing, token = matched(out, batch)
    owner, count = batch.owner[thing], max(1, len(batch.owner))
    target = torch.zeros_like(out.logits)
    target[owner, token, batch.label[thing]] = 1.0
    counted = (~batch.unsure[:, None]).float().expand_as(target).maximum(target)
    boxes, truth = out.boxes_cxcywh[owner, token], batch.boxes[thing]
    overlap = generalised_iou(boxes, truth)
    terms = {
        "class": _CLASS * (focal(out.logits, target) * counted).sum() / count,
        "l1": _L1 * (boxes - truth).abs().sum() / count,
        "giou": _GIOU * (1 - overlap).sum() / count,
    }
    if out.objectness is not None:
        objectness = torch.zeros_like(out.objectness)
        objectness[owner, token] = overlap.detach().clamp(0.1, 1.0)  # so that of two boxes the better one wins
        terms["object"] = quality_focal(out.objectness, objectness) / count
    return terms


def segment_loss(logits: Tensor, batch: HeadBatch) -> dict[str, Tensor]:
    """Cross-entropy and Dice of masks at the size that the head gives them, float[Q, h, w]."""
    truth = batch.ask_alpha
    if truth.shape[-2:] != logits.shape[-2:]:
        truth = F.interpolate(truth[:, None], logits.shape[-2:], mode="area")[:, 0]
    return {"mask": mask_loss(logits, truth)}
