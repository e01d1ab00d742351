"""The figures of the drawn world: what a model said of scenes against what the scenes show.

Each class takes scenes and what was said of them one by one (`add`) and knows its figures, from 0 to 1, at
the end (`figures`). For unseen scenes those of `DetectScore` and `SegmentScore` are of held-out pairs alone,
and those of all pairs stand under "all".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from mm.metrics.detection import DetectionScore
from mm.metrics.segmentation import mask_iou
from mm.metrics.truth import BoxTruth
from mm.scenes.language import Mention, background_of, caption_of, mentions, questions_of
from mm.scenes.render import Scene
from mm.scenes.vocabulary import HELD_OUT_PAIRS, PAIR_LABELS, is_held_out
from mm.types import Detections, Segmentation

QUESTIONS_EACH = 3  # of those `questions_of` has for a scene, in its own drawn order
_MOST_BOXES = 100
_HELD_OUT_LABELS = frozenset(f"{colour} {kind}" for colour, kind in HELD_OUT_PAIRS)
Pair = tuple[str, str]  # colour, kind


class DetectScore:
    """COCO average precision of boxes, where all 240 labels are asked at once.

    AP50 (at IoU 0.5), AP and AR100 (over IoU 0.5 to 0.95) are means over the labels that occur in the truth;
    all boxes count, at most 100 a scene. Truth: the tight box of each object's visible part.
    """

    def __init__(self, unseen: bool) -> None:
        self.unseen = unseen
        self._score = DetectionScore(PAIR_LABELS)

    def add(self, scene: Scene, said: Detections) -> None:
        boxes = np.array([thing.box_xyxy for thing in scene.objects])
        truth = BoxTruth(boxes, tuple(thing.label for thing in scene.objects))
        self._score.add(said.top(_MOST_BOXES), truth)

    def figures(self) -> dict[str, Any]:
        labels = {"labels": len(PAIR_LABELS)}
        if not self.unseen:
            return self._of(PAIR_LABELS) | labels
        return self._of(_HELD_OUT_LABELS) | labels | {"all": self._of(PAIR_LABELS)}

    def _of(self, labels: Collection[str]) -> dict[str, float]:
        """Means over those of `labels` that the truth holds."""
        figures = self._score.figures(labels)
        return {name: figures[name] or 0.0 for name in ("AP50", "AP", "AR100")}


class SegmentScore:
    """mIoU: for each distinct label of each scene, the IoU of its mask with the visible pixels of all things
    of that label; the mean over all such pairs of scene and label."""

    def __init__(self, unseen: bool) -> None:
        self.unseen = unseen
        self.ious: list[float] = []
        self.held_out: list[float] = []

    def add(self, scene: Scene, said: Segmentation) -> None:
        masks = dict(zip(said.labels, said.masks, strict=True))
        for label in labels_of(scene):
            truth = np.any([thing.mask for thing in scene.objects if thing.label == label], axis=0)
            iou = mask_iou(masks[label], truth)
            self.ious.append(iou)
            if label in _HELD_OUT_LABELS:
                self.held_out.append(iou)

    def figures(self) -> dict[str, Any]:
        everything, held_out = (
            {"mIoU": share(math.fsum(ious), len(ious)), "masks": len(ious)} for ious in (self.ious, self.held_out)
        )
        return held_out | {"all": everything} if self.unseen else everything


class CaptionScore:
    """What captions mention against what is there, counted over all scenes together.

    object_precision, object_recall, object_F1: of things by colour and kind, as many as the caption says.
    strict_F1: of groups of things alike; texture, colour, kind and number must all be right.
    background_accuracy: the share of captions that name the background's colour.
    exact: the share of captions that equal `caption_of` to the letter.
    unseen_recall (unseen scenes only): the share of things of held-out pairs that were mentioned.
    """

    def __init__(self, unseen: bool) -> None:
        self.unseen = unseen
        self.scenes = self.backgrounds = self.exact = 0
        self.pairs, self.groups = Overlap(), Overlap()
        self.held_out = Overlap()

    def add(self, scene: Scene, said: str) -> None:
        mentioned, truth = mentions(said), Counter((o.texture, o.colour, o.kind) for o in scene.objects)
        said_pairs, true_pairs = _pairs(mentioned), _pairs(truth)
        self.pairs.add(said_pairs, true_pairs)
        self.groups.add(Counter(mentioned.items()), Counter(truth.items()))
        self.held_out.add(*(Counter({p: n for p, n in c.items() if is_held_out(*p)}) for c in (said_pairs, true_pairs)))
        self.scenes += 1
        self.backgrounds += background_of(said) == scene.background
        self.exact += said == caption_of(scene)

    def figures(self) -> dict[str, Any]:
        figures = {
            "object_F1": self.pairs.f1,
            "object_precision": self.pairs.precision,
            "object_recall": self.pairs.recall,
            "strict_F1": self.groups.f1,
            "background_accuracy": share(self.backgrounds, self.scenes),
            "exact": share(self.exact, self.scenes),
        }
        return figures | {"unseen_recall": self.held_out.recall} if self.unseen else figures


class AnswerScore:
    """accuracy: the share of answers that equal the true one to the letter, over all questions."""

    def __init__(self) -> None:
        self.right = self.asked = 0

    def add(self, scene: Scene, said: Sequence[str]) -> None:
        for (_, truth), answer in zip(asked_of(scene), said, strict=True):
            self.right += answer == truth
            self.asked += 1

    def figures(self) -> dict[str, Any]:
        return {"accuracy": share(self.right, self.asked), "questions": self.asked}


class Overlap:
    """Micro-averaged agreement of two multisets; what is said twice must be there twice."""

    def __init__(self) -> None:
        self.hits = self.said = self.true = 0

    def add(self, said: Counter, truth: Counter) -> None:
        self.hits += (said & truth).total()
        self.said += said.total()
        self.true += truth.total()

    @property
    def precision(self) -> float:
        return share(self.hits, self.said)

    @property
    def recall(self) -> float:
        return share(self.hits, self.true)

    @property
    def f1(self) -> float:
        return share(2 * self.hits, self.said + self.true)


def labels_of(scene: Scene) -> list[str]:
    """The distinct labels of a scene's objects, in their order."""
    return list(dict.fromkeys(thing.label for thing in scene.objects))


def asked_of(scene: Scene) -> list[tuple[str, str]]:
    """The questions that a scene is asked, with their answers."""
    return questions_of(scene)[:QUESTIONS_EACH]


def _pairs(things: Counter[Mention]) -> Counter[Pair]:
    pairs: Counter[Pair] = Counter()
    for (_, colour, kind), number in things.items():
        pairs[colour, kind] += number
    return pairs


def share(part: float, whole: float) -> float:
    """part / whole, or 0 of nothing."""
    return part / whole if whole else 0.0
