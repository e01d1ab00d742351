"""The open-vocabulary detection head of OWL-ViT and OWLv2 over any encoder's tokens.

Minderer et al., "Simple Open-Vocabulary Object Detection with Vision Transformers", ECCV 2022, section 3.1;
the objectness head is that of OWLv2 ("Scaling Open-Vocabulary Object Detection", NeurIPS 2023, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.encoders.base import Grid, ImageFeatures
from mm.kernels.boxes import box_bias

_TEXTS_AT_ONCE = 4096
_AS_GOOD = 0.8  # of the best overlap: cells that may stand for an example picture (v1)

# Parts of a released checkpoint, in its own spelling, and what they are called here.
RELEASED_KEYS: dict[str, str] = {
    "class_head.dense0": "class_head.dense0",
    "class_head.logit_shift": "class_head.logit_shift",
    "class_head.logit_scale": "class_head.logit_scale",
    "box_head.dense0": "box_head.0",
    "box_head.dense1": "box_head.2",
    "box_head.dense2": "box_head.4",
    "objectness_head.dense0": "objectness_head.0",
    "objectness_head.dense1": "objectness_head.2",
    "objectness_head.dense2": "objectness_head.4",
    "layer_norm": "norm",
}


@dataclass(frozen=True)
class OwlConfig:
    """width: of the tokens; embedding: of the text embeddings the tokens are compared with.

    merge_class_token: tokens are multiplied by the class token first, as in the released models.
    objectness: whether there is such a head (OWLv2, not OWL-ViT). score: a box scores its label's probability, or that
    times its probability of being a thing at all. norm_eps: of the layer norm. vote: boxes of one label that overlap
    are averaged where they are shown, which helps where tokens are coarse; the released models do not.
    """

    width: int
    embedding: int
    merge_class_token: bool
    objectness: bool
    score: Literal["label", "label x objectness"]
    norm_eps: float
    vote: bool


@dataclass(frozen=True)
class OwlOutput:
    """logits: float[B, N, K], one a token and text; boxes_cxcywh: float[B, N, 4] in 0..1 of the model input;
    objectness: float[B, N], a logit, None without such a head; embeds: float[B, N, E], what the class logits compare,
    of length 1."""

    logits: Tensor
    boxes_cxcywh: Tensor
    objectness: Tensor | None
    embeds: Tensor


@dataclass(frozen=True)
class OwlBoxes:
    """What does not depend on the texts. class_tokens: float[B, N, D]; xyxy: float32[B, N, 4] in 0..1 of the input;
    embeds: float32[B, N, E]; objectness: a probability, float32[B, N], or None."""

    class_tokens: Tensor
    xyxy: Tensor
    embeds: Tensor
    objectness: Tensor | None


class OwlHead(nn.Module):
    """Every token says what it shows, where that is, and whether it is a thing at all."""

    def __init__(
        self, *, width: int, embedding: int, merge_class_token: bool = False, objectness: bool = True,
        score: Literal["label", "label x objectness"] = "label x objectness", norm_eps: float = 1e-5,
        vote: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.merge_class_token, self.score, self.vote = merge_class_token, score, vote
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.class_head = ClassHead(width, embedding)
        self.box_head = _mlp(width, 4)
        self.objectness_head = _mlp(width, 1) if objectness else None
        if self.objectness_head is not None:
            last = self.objectness_head[-1]
            assert isinstance(last, nn.Linear)
            nn.init.constant_(last.bias, -2.0)  # most tokens show no thing

    def forward(self, image: ImageFeatures, text: Tensor) -> OwlOutput:
        """text: float[K, E], not normalised."""
        tokens = self._tokens(image)
        embeds = self.class_head.embed(tokens)
        logits = self.class_head.compare(tokens, embeds, text)
        return OwlOutput(logits, self._boxes(tokens, image.grid), self._objectness(tokens), embeds)

    @torch.inference_mode()
    def boxes(self, image: ImageFeatures) -> OwlBoxes:
        """Everything about a picture but which label fits where."""
        tokens = self._tokens(image)
        boxes, objectness = self._boxes(tokens, image.grid), self._objectness(tokens)
        half = boxes[..., 2:] / 2
        xyxy = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)
        thing = objectness.sigmoid() if objectness is not None else None
        return OwlBoxes(tokens, xyxy, self.class_head.embed(tokens), thing)

    @torch.inference_mode()
    def best(self, found: OwlBoxes, text: Tensor) -> tuple[Tensor, Tensor]:
        """For each token its best text: score float32[B, N] in 0..1 and place int64[B, N].

        Texts pass in parts, so a hundred thousand of them need no more memory than a few thousand.
        """
        best = place = None
        for start in range(0, len(text), _TEXTS_AT_ONCE):
            logits = self.class_head.compare(found.class_tokens, found.embeds, text[start : start + _TEXTS_AT_ONCE])
            more, where = logits.max(-1)
            if best is None or place is None:
                best, place = more, where
            else:
                place = torch.where(more > best, where + start, place)
                best = torch.maximum(best, more)
        assert best is not None and place is not None
        return self._scored(best, found), place

    @torch.inference_mode()
    def pairs(self, found: OwlBoxes, text: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `most` best (token, text) pairs of one picture, B = 1: score float32[P], token int64[P], text int64[P].

        A token may come with several texts, which is what average precision is defined over.
        """
        scores: list[Tensor] = []
        places: list[Tensor] = []
        for start in range(0, len(text), _TEXTS_AT_ONCE):
            part = text[start : start + _TEXTS_AT_ONCE]
            logits = self.class_head.compare(found.class_tokens, found.embeds, part)[0]
            value, flat = self._scored(logits.T, found).T.flatten().topk(min(most, logits.numel()))
            scores.append(value)
            places.append(torch.stack([flat // len(part), flat % len(part) + start]))
        value, order = torch.cat(scores).topk(min(most, sum(map(len, scores))))
        token, label = torch.cat(places, 1)[:, order]
        return value, token, label

    @torch.inference_mode()
    def example(self, image: ImageFeatures) -> Tensor:
        """float32[B, E]: the class embedding that stands for each example picture.

        With an objectness head that of the likeliest thing (OWLv2). Without one, among the tokens whose box covers the
        picture almost as well as the best, that least like the average token (OWL-ViT, appendix on image-conditioned
        detection).
        """
        found = self.boxes(image)
        raw = self.class_head.dense0(found.class_tokens).float()
        things = self._objectness(found.class_tokens)  # logits, since of several sure things all have probability 1
        if things is not None:
            return raw[torch.arange(len(raw)), things.argmax(-1)]
        chosen = []
        for boxes, embeds in zip(found.xyxy, raw, strict=True):
            overlap = _overlap_with_whole(boxes)
            candidates = (overlap >= overlap.max() * _AS_GOOD).nonzero()[:, 0]
            chosen.append(embeds[candidates[(embeds[candidates] @ embeds.mean(0)).argmin()]])
        return torch.stack(chosen)

    def _tokens(self, image: ImageFeatures) -> Tensor:
        return self.norm(image.tokens * image.prefix[:, :1] if self.merge_class_token else image.tokens)

    def _boxes(self, tokens: Tensor, grid: Grid) -> Tensor:
        # In float32 whatever the weights are: half precision moves a box by several pixels.
        return (self.box_head(tokens).float() + box_bias(grid, tokens.device)).sigmoid()

    def _objectness(self, tokens: Tensor) -> Tensor | None:
        return None if self.objectness_head is None else self.objectness_head(tokens)[..., 0].float()

    def _scored(self, logits: Tensor, found: OwlBoxes) -> Tensor:
        """Probabilities of logits float32[…, N]."""
        score = logits.sigmoid()
        return score * found.objectness if self.score != "label" and found.objectness is not None else score


class ClassHead(nn.Module):
    """Cosine between a token's class embedding and each text, shifted and scaled by the token itself."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.dense0 = nn.Linear(width, embedding)
        self.logit_shift = nn.Linear(width, 1)
        self.logit_scale = nn.Linear(width, 1)
        nn.init.constant_(self.logit_shift.bias, -0.46)  # a token shows a given label with p = 0.01 to begin with
        nn.init.constant_(self.logit_scale.bias, 9.0)

    def embed(self, tokens: Tensor) -> Tensor:
        """float[B, N, D] -> float32[B, N, E] of length 1."""
        e = self.dense0(tokens).float()
        return e / (e.norm(dim=-1, keepdim=True) + 1e-6)

    def compare(self, tokens: Tensor, e: Tensor, text: Tensor) -> Tensor:
        """float32[B, N, K]: logits of the tokens, whose embeddings are `e`, for texts float[K, E]."""
        q = text.float()
        q = q / (q.norm(dim=-1, keepdim=True) + 1e-6)
        scale = F.elu(self.logit_scale(tokens).float()) + 1
        return (e @ q.T + self.logit_shift(tokens).float()) * scale


def released_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors out of a released OWL-ViT or OWLv2 checkpoint, under the names of `OwlHead`."""
    renamed = {}
    for theirs, ours in RELEASED_KEYS.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in tensors:
                renamed[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    return renamed


def _mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def _overlap_with_whole(boxes_xyxy: Tensor) -> Tensor:
    """IoU of boxes float[N, 4] with 0, 0, 1, 1; where none overlaps, the generalised IoU instead."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    inter = (high.clamp(max=1) - low.clamp(min=0)).clamp(min=0).prod(1)
    union = (high - low).prod(1) + 1 - inter
    overlap = inter / union
    if bool((overlap > 0).any()):
        return overlap
    hull = (high.clamp(min=1) - low.clamp(max=0)).clamp(min=0).prod(1)
    return overlap - (hull - union) / hull
