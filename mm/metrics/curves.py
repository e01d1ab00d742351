"""Precision and recall of boxes by COCO's rules, over a data set that streams through: what AP and AR average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm.metrics.truth import BoxTruth, place_of
from mm.results.fields import texts, wrong
from mm.types import Detections

SIZES = ("small", "medium", "large")  # below 32², to 96², and above, in square pixels
_AREAS = ("all", *SIZES)
_IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
# The evaluation holds something for every pair of picture and label: so many at once stay below 1 GB.
_PAIRS_AT_ONCE = 400_000


@dataclass(frozen=True, eq=False)
class Curves:
    """precision: float[10 IoUs, 101 recalls, K labels, 4 areas]; recall: float[10, K, 4, D limits].

    -1 stands where the truth has nothing of that label and area. Precision is that at the highest limit.
    """

    precision: np.ndarray
    recall: np.ndarray
    limits: tuple[int, ...]

    def ap(self, labels: Sequence[int] | None = None, *, iou: float | None = None, area: str = "all") -> float | None:
        """Average precision: the mean over recalls, IoUs (or at `iou`) and those labels that the truth has.

        None where it has none of them.
        """
        values = self.precision[..., _AREAS.index(area)]
        return _mean(values if iou is None else values[_IOUS.index(iou)], labels)

    def ar(self, labels: Sequence[int] | None = None, *, limit: int | None = None, area: str = "all") -> float | None:
        """Average recall with at most `limit` boxes, the mean over IoUs and labels; None as for `ap`."""
        place = -1 if limit is None else self.limits.index(limit)
        return _mean(self.recall[:, :, _AREAS.index(area), place], labels)


def _mean(values: np.ndarray, labels: Sequence[int] | None) -> float | None:
    """Over those of `labels` (the last axis) that are there."""
    values = values if labels is None else values[..., list(labels)]
    there = values[values > -1]
    return float(there.mean()) if there.size else None


class BoxRecord:
    """Boxes found and true boxes of picture after picture, and their `curves`.

    limits: of boxes of one label in one picture, best first, ascending. federated: by LVIS's rules, where what
    is found counts only for the labels that a picture is verified for.
    """

    def __init__(self, labels: Sequence[str], limits: tuple[int, ...], *, federated: bool = False) -> None:
        self.labels = texts("labels", labels)
        self._places = {label: place for place, label in enumerate(self.labels)}
        if not self.labels or len(self._places) < len(self.labels):
            wrong("labels", "at least one, all different", repr(self.labels)[:80])
        self._limits, self._federated = limits, federated
        self._found: list[np.ndarray] = []  # rows: picture, label, left, top, width, height, score
        self._truth: list[np.ndarray] = []  # rows: picture, label, left, top, width, height, area, crowd
        self._images: list[dict[str, Any]] = []
        self._curves: Curves | None = None

    def add(self, found: Detections, truth: BoxTruth) -> None:
        """Take one picture.

        Raises:
            InputError: a label is none of those that are scored.
        """
        self._curves = None
        picture = len(self._images)
        said, true = (self._rows(picture, of.boxes_xyxy, of.labels) for of in (found, truth))
        verified = {
            key: [place_of(label, self._places) + 1 for label in labels]
            for key, labels in (("neg_category_ids", truth.absent), ("not_exhaustive_category_ids", truth.incomplete))
        }
        self._found.append(np.column_stack([said, found.scores]))
        self._truth.append(np.column_stack([true, truth.areas, truth.crowd]))
        height, width = found.size_hw
        self._images.append({"id": picture + 1, "height": height, "width": width} | verified)

    def _rows(self, picture: int, boxes_xyxy: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        boxes = boxes_xyxy.astype(np.float64)
        places = [place_of(label, self._places) for label in labels]
        return np.column_stack([np.full(len(boxes), picture), places, boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])

    def curves(self) -> Curves:
        """Of all pictures so far."""
        self._curves = self._curves or self._computed()
        return self._curves

    def _computed(self) -> Curves:
        """Labels do not influence each other: they are evaluated a few at a time, each few on the pictures
        that show or were said to show them."""
        count = len(self.labels)
        precision = np.full((len(_IOUS), 101, count, len(_AREAS)), -1.0)
        recall = np.full((len(_IOUS), count, len(_AREAS), len(self._limits)), -1.0)
        found = np.concatenate(self._found or [np.zeros((0, 7))])
        truth = np.concatenate(self._truth or [np.zeros((0, 8))])
        step = max(1, _PAIRS_AT_ONCE // max(1, len(self._images)))
        for start in range(0, count, step):
            block = slice(start, start + step)
            said, true = (rows[(rows[:, 1] >= start) & (rows[:, 1] < start + step)] for rows in (found, truth))
            if len(true):  # A label without truth keeps its -1, whatever was found.
                precision[:, :, block], recall[:, block] = self._evaluated(said, true, block)
        return Curves(precision, recall, self._limits)

    def _evaluated(self, found: np.ndarray, truth: np.ndarray, block: slice) -> tuple[np.ndarray, np.ndarray]:
        from faster_coco_eval import COCO, COCOeval_faster

        touched = np.unique(np.concatenate([found[:, 0], truth[:, 0]])).astype(int)
        categories = [
            {"id": number, "name": label, "frequency": "f"}
            for number, label in enumerate(self.labels[block], start=block.start + 1)
        ]
        true_rows = [
            _coco_row(row) | {"id": number, "area": row[6], "iscrowd": int(row[7])}
            for number, row in enumerate(truth.tolist(), start=1)  # 0 would stand for "not matched".
        ]
        images = [self._images[i] for i in touched]
        true = COCO({"images": images, "annotations": true_rows, "categories": categories})
        said = true.loadRes([_coco_row(row) | {"score": row[6]} for row in found.tolist()])
        coco = COCOeval_faster(true, said, iouType="bbox", lvis_style=self._federated)
        coco.params.maxDets = list(self._limits)
        coco.evaluate()
        coco.accumulate()
        return coco.eval["precision"][..., -1], coco.eval["recall"]


def _coco_row(row: Sequence[float]) -> dict[str, Any]:
    return {"image_id": int(row[0]) + 1, "category_id": int(row[1]) + 1, "bbox": list(row[2:6])}
