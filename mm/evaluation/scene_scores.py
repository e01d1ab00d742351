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
from mm.metrics.matting import MattingScore
from mm.metrics.segmentation import mask_iou
from mm.metrics.truth import BoxTruth
from mm.scenes.language import Mention, background_of, caption_of, mentions, questions_of
from mm.scenes.render import Scene
from mm.scenes.vocabulary import HELD_OUT_PAIRS, PAIR_LABELS, is_held_out
from mm.types import Detections, Matte, Segmentation

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


class HallucinationScore:
    """Of what captions mention, the things whose kind is nowhere in the picture (CHAIR; Rohrbach et al., "Object
    Hallucination in Image Captioning", EMNLP 2018).

    mentions: their share of all things mentioned. captions: the share of captions with one or more.
    """

    def __init__(self) -> None:
        self.invented = self.mentioned = self.inventing = self.captions = 0

    def add(self, scene: Scene, said: str) -> None:
        there, mentioned = {thing.kind for thing in scene.objects}, mentions(said)
        invented = sum(number for (_, _, kind), number in mentioned.items() if kind not in there)
        self.invented += invented
        self.mentioned += mentioned.total()
        self.inventing += invented > 0
        self.captions += 1

    def figures(self) -> dict[str, float]:
        return {"mentions": share(self.invented, self.mentioned), "captions": share(self.inventing, self.captions)}


# How each kind of question begins; those of existence are asked about what is there and what is not.
_FORMS = {
    "colour": "what colour", "texture": "what is the texture", "count": "how many", "existence": "is there",
    "relation": "where is", "size": "is the",
}  # fmt: skip


class AnswerScore:
    """accuracy: the share of answers that equal the true one to the letter, over all questions.

    blind: the same, where the model was shown a grey picture instead. by: the accuracy for each form of question.
    yes: the share of the questions of existence that were answered so, true_yes: that should have been (POPE; Li et
    al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023).
    """

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.blind = self.yes = self.true_yes = 0

    def add(self, scene: Scene, said: Sequence[str], blind: Sequence[str]) -> None:
        for (question, truth), answer, guess in zip(asked_of(scene), said, blind, strict=True):
            form = next(form for form, words in _FORMS.items() if question.startswith(words))
            self.asked[form] += 1
            self.right[form] += answer == truth
            self.blind += guess == truth
            if form == "existence":
                self.yes += answer == "yes"
                self.true_yes += truth == "yes"

    def figures(self) -> dict[str, Any]:
        asked, existence = self.asked.total(), self.asked["existence"]
        return {
            "accuracy": share(self.right.total(), asked),
            "blind": share(self.blind, asked),
            "questions": asked,
            "by": {form: share(self.right[form], self.asked[form]) for form in _FORMS if self.asked[form]},
            "yes": share(self.yes, existence),
            "true_yes": share(self.true_yes, existence),
        }


class MatteScore:
    """SAD (thousands of pixels), MSE, MAD, Grad and Conn of mattes, the means over all pictures; `mm.metrics.matting`.

    mask: the same of the segmentation's mask, taken for an alpha of 0 or 1. colours: the mean absolute difference of
    the subject's colour, 0..255, each pixel counted by alpha.
    """

    def __init__(self) -> None:
        self.matte, self.mask = MattingScore(), MattingScore()
        self.colours: list[float] = []

    def add(self, truth: tuple[np.ndarray, np.ndarray], said: Matte, mask: np.ndarray) -> None:
        """truth: alpha float32[H, W] and colours uint8[H, W, 3]; mask: bool[H, W]."""
        alpha, colours = truth
        self.matte.add(said.alpha, alpha)
        self.mask.add(mask.astype(np.float32), alpha)
        off = np.abs(said.foreground.astype(np.float32) - colours).mean(-1)
        self.colours.append(float((off * alpha).sum() / alpha.sum()))

    def figures(self) -> dict[str, Any]:
        mask = {name: value for name, value in self.mask.figures().items() if name != "pictures"}
        colours = share(math.fsum(self.colours), len(self.colours))
        return {**self.matte.figures(), "colours": colours, "mask": mask}


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
