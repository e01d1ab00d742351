"""What a model is asked of each picture of a data set, task by task, and how the answer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from mm.evaluation.coco import CocoTruth
from mm.evaluation.folder import GreyFolder
from mm.evaluation.panels import grey, panels
from mm.evaluation.run import Mark
from mm.images import Picture
from mm.joined import Joined
from mm.metrics.detection import DetectionScore
from mm.metrics.lvis import LvisScore
from mm.metrics.matting import MattingScore
from mm.metrics.segmentation import MaskScore, mask_iou
from mm.metrics.truth import BoxTruth
from mm.tasks.detect import detect
from mm.tasks.matte import matte
from mm.tasks.segment import segment
from mm.types import Detections, Matte, Segmentation

_LEAST_SHOWN = 5  # boxes of an answer that is drawn, where the truth has fewer


class DetectTrial:
    """Every picture is asked for every label; average precision by COCO's rules or, with `lvis`, by LVIS's.

    ranked: whether each picture is marked by itself, with its AP50 over the labels that it shows.
    """

    def __init__(self, model: Joined, data: CocoTruth, *, lvis: bool, ranked: bool) -> None:
        self._model, self._data, self._ranked = model, data, ranked
        self._total = LvisScore(data.frequencies) if lvis else DetectionScore(data.labels)

    @property
    def keys(self) -> Sequence[int]:
        return self._data.keys

    def name(self, key: int) -> str:
        return self._data.name(key)

    def read(self, key: int) -> tuple[Picture, BoxTruth]:
        return self._data.picture(key), self._data.boxes(key)

    def score(self, picture: Picture, truth: BoxTruth) -> list[Mark]:
        found = self._found(picture)
        self._total.add(found, truth)
        if not self._ranked:
            return []
        alone = ap50_of(found, truth)
        return [] if alone is None else [Mark(-alone, {"AP50": alone})]

    def _found(self, picture: Picture) -> Detections:
        return detect(picture, self._data.labels, model=self._model, scores="all")

    def drawn(self, picture: Picture, truth: BoxTruth, label: str | None) -> Image.Image:
        """The answer is drawn with as many boxes as the truth has, at least 5, best first, without doubles."""
        count = len(truth.labels)
        true = Detections(truth.boxes_xyxy, np.ones(count), truth.labels, picture.size_hw)
        found = self._found(picture).nms(0.7, across_labels=True).top(max(_LEAST_SHOWN, count))
        return panels([("truth", true.plot(picture)), ("answer", found.plot(picture))])

    def figures(self) -> dict[str, Any]:
        return self._total.figures()


def ap50_of(found: Detections, truth: BoxTruth) -> float | None:
    """The AP50 of one picture over the labels that it shows; None where it shows nothing that would count."""
    labels = tuple(dict.fromkeys(truth.labels))
    if not labels:
        return None
    alone = DetectionScore(labels)
    alone.add(found.filter(label=labels), BoxTruth(truth.boxes_xyxy, truth.labels, truth.crowd, truth.areas))
    return alone.figures()["AP50"]


@dataclass(eq=False)
class SegmentTrial:
    """Every picture is asked for the labels that it shows, as PhraseCut asks its phrases."""

    model: Joined
    data: CocoTruth | GreyFolder
    threshold: float
    _total: MaskScore = field(default_factory=MaskScore)
    _by_label: dict[str, MaskScore] = field(default_factory=dict)

    @property
    def keys(self) -> Sequence[Any]:
        return [key for key in self.data.keys if self.data.labels_of(key)]  # type: ignore[arg-type]

    def name(self, key: Any) -> str:
        return self.data.name(key)

    def read(self, key: Any) -> tuple[Picture, dict[str, np.ndarray]]:
        picture = self.data.picture(key)
        return picture, self.data.masks(key, picture.size_hw)

    def score(self, picture: Picture, truth: dict[str, np.ndarray]) -> list[Mark]:
        marks = []
        for label, mask in zip(truth, self._found(picture, tuple(truth)).masks, strict=True):
            for total in (self._total, self._by_label.setdefault(label, MaskScore())):
                total.add(mask, truth[label])
            iou = mask_iou(mask, truth[label])
            marks.append(Mark(-iou, {"IoU": iou}, label))
        return marks

    def _found(self, picture: Picture, labels: tuple[str, ...]) -> Segmentation:
        return segment(picture, labels, model=self.model, threshold=self.threshold)

    def drawn(self, picture: Picture, truth: dict[str, np.ndarray], label: str | None) -> Image.Image:
        assert label is not None
        mask = truth[label][None]
        true = Segmentation(mask, mask.astype(np.float32), (label,))
        found = self._found(picture, (label,))
        return panels([(f"truth: {label}", true.plot(picture)), ("answer", found.plot(picture))])

    def figures(self) -> dict[str, Any]:
        """As `MaskScore.figures`, and `per_label` the same of each label."""
        return self._total.figures() | {"per_label": {k: v.figures() for k, v in sorted(self._by_label.items())}}


@dataclass(eq=False)
class MatteTrial:
    """Every picture is asked for the labels that it has an alpha of. options: of `mm.matte`."""

    model: Joined
    data: GreyFolder
    options: dict[str, Any]
    _total: MattingScore = field(default_factory=MattingScore)
    _by_label: dict[str, MattingScore] = field(default_factory=dict)

    @property
    def keys(self) -> Sequence[str]:
        return self.data.keys

    def name(self, key: str) -> str:
        return self.data.name(key)

    def read(self, key: str) -> tuple[Picture, dict[str, np.ndarray]]:
        picture = self.data.picture(key)
        return picture, self.data.alphas(key, picture.size_hw)

    def score(self, picture: Picture, truth: dict[str, np.ndarray]) -> list[Mark]:
        marks = []
        for label, alpha in truth.items():
            found = self._found(picture, label).alpha
            for total in (self._total, self._by_label.setdefault(label, MattingScore())):
                total.add(found, alpha)
            apart = float(np.abs(found - alpha).mean(dtype=np.float64))
            marks.append(Mark(apart, {"MAD": apart}, label))
        return marks

    def _found(self, picture: Picture, label: str) -> Matte:
        return matte(picture, label, model=self.model, **self.options)

    def drawn(self, picture: Picture, truth: dict[str, np.ndarray], label: str | None) -> Image.Image:
        assert label is not None
        found = self._found(picture, label).alpha
        parts = [(label, picture.pil()), ("truth", grey(truth[label])), ("answer", grey(found))]
        return panels(parts)

    def figures(self) -> dict[str, Any]:
        """As `MattingScore.figures`, `mattes` for its `pictures`; `per_label` the same of each label."""
        return _mattes(self._total) | {"per_label": {k: _mattes(v) for k, v in sorted(self._by_label.items())}}


def _mattes(score: MattingScore) -> dict[str, Any]:
    """One picture may be asked for several labels, so that what is counted are mattes."""
    figures = score.figures()
    return {("mattes" if name == "pictures" else name): value for name, value in figures.items()}
