"""How well a model does on held-out examples, through the public tasks and the field's own figures."""

from __future__ import annotations

from typing import Any

from mm.errors import ImageInputError, ResourceLimitError
from mm.joined import Joined
from mm.metrics.detection import DetectionScore
from mm.metrics.matting import MattingScore
from mm.metrics.segmentation import MaskScore
from mm.metrics.truth import BoxTruth
from mm.tasks.detect import detect
from mm.tasks.matte import matte
from mm.tasks.segment import segment
from mm.training.examples import Example, Examples

_MOST_BOXES = 100


def validated(joined: Joined, word: str, examples: Examples, labels: tuple[str, ...]) -> dict[str, float]:
    """AP50 and AP of boxes, mIoU of masks (one for each label that a picture shows), or MAD of mattes.

    Pictures that cannot be read are left out; crowds do not count.
    """
    score: Any = {"detect": DetectionScore(labels), "segment": MaskScore(), "matte": MattingScore()}[word]
    for place in range(len(examples)):
        try:
            example = examples[place]
        except (ImageInputError, ResourceLimitError):
            continue
        if word == "detect":
            found = detect(example.picture, labels, model=joined, scores="all").top(_MOST_BOXES)
            score.add(found, BoxTruth(example.boxes_xyxy, example.labels))
        elif word == "segment":
            _add_masks(score, joined, example)
        else:
            _add_mattes(score, joined, example)
    figures = score.figures()
    wanted = {"detect": ("AP50", "AP"), "segment": ("mIoU",), "matte": ("MAD",)}[word]
    return {name: round(figures[name] or 0.0, 4) for name in wanted}


def _shown(example: Example) -> list[str]:
    return [label for label in dict.fromkeys(example.labels) if label not in example.unsure]


def _add_masks(score: MaskScore, joined: Joined, example: Example) -> None:
    asked = _shown(example)
    if not asked:
        return
    found = segment(example.picture, asked, model=joined)
    for label, mask in zip(asked, found.masks, strict=True):
        score.add(mask, _alpha(example, label) >= 0.5)


def _add_mattes(score: MattingScore, joined: Joined, example: Example) -> None:
    for label in _shown(example):
        score.add(matte(example.picture, label, model=joined).alpha, _alpha(example, label))


def _alpha(example: Example, label: str) -> Any:
    """float32[H, W]: everything that the label names."""
    assert example.masks is not None
    return example.masks[[each == label for each in example.labels]].sum(0).clip(0, 1)
