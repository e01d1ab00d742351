"""How well masks and class maps agree with the truth: intersection over union, in the ways the field averages it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mm.errors import InputError
from mm.results.fields import bools, size, whole, wrong

_PRECISION_AT = (0.5, 0.7, 0.9)


def mask_iou(found: np.ndarray, truth: np.ndarray, *, ignore: np.ndarray | None = None) -> float:
    """Intersection over union of two masks, bool[H, W]; 1 where both are empty.

    ignore: bool[H, W], the pixels that do not count.

    Raises:
        InputError: a mask is not of booleans, or the shapes differ.
    """
    counts = _counts(found, truth, ignore)
    return _share(counts[1, 1], counts.sum() - counts[0, 0])


class MaskScore:
    """Figures of single masks, one for each picture or each phrase asked of it."""

    def __init__(self) -> None:
        self._counts: list[np.ndarray] = []

    def add(self, found: np.ndarray, truth: np.ndarray, *, ignore: np.ndarray | None = None) -> None:
        """Take one mask; arguments and errors as for `mask_iou`."""
        self._counts.append(_counts(found, truth, ignore))

    def figures(self) -> dict[str, Any]:
        """Figures from 0 to 1, None before the first mask.

        mIoU: the mean over masks of the foreground's IoU, where two empty masks have 1. PhraseCut's mean IoU.
        cIoU: all intersections together over all unions together, so that large masks weigh more: PhraseCut's
            cumulative IoU, CLIPSeg's IoU_FG.
        IoU_BIN: the mean of cIoU and of the same of the background.
        P@0.5, P@0.7, P@0.9: the share of masks whose IoU is above 0.5, 0.7, 0.9.
        masks: how many there were.
        """
        if not self._counts:
            names = ("mIoU", "cIoU", "IoU_BIN", *(f"P@{each}" for each in _PRECISION_AT))
            return dict.fromkeys(names, None) | {"masks": 0}
        ious = [_share(counts[1, 1], counts.sum() - counts[0, 0]) for counts in self._counts]
        total = np.sum(self._counts, axis=0)
        background, foreground = (_share(total[i, i], total.sum() - total[1 - i, 1 - i]) for i in range(2))
        figures: dict[str, Any] = {"mIoU": math.fsum(ious) / len(ious), "cIoU": foreground}
        figures["IoU_BIN"] = (foreground + background) / 2
        figures |= {f"P@{least}": sum(iou > least for iou in ious) / len(ious) for least in _PRECISION_AT}
        return figures | {"masks": len(ious)}


class ClassMapScore:
    """Figures of maps that give every pixel one of `classes` classes, counted from 0, over all pixels together.

    ignore: the value of true pixels that do not count, such as 255.
    """

    def __init__(self, classes: int, *, ignore: int | None = None) -> None:
        self.classes = whole("classes", classes, least=1)
        self.ignore = None if ignore is None else whole("ignore", ignore)
        if self.ignore is not None and self.ignore < self.classes:
            wrong("ignore", f"none of the classes 0 to {classes - 1}", str(ignore))
        self._confusion = np.zeros((self.classes, self.classes), np.int64)  # [true, found]

    def add(self, found: np.ndarray, truth: np.ndarray) -> None:
        """Take one picture: whole numbers [H, W] each.

        Raises:
            InputError: the shapes differ, or where it counts a pixel is none of the classes.
        """
        found, truth = _whole_map("found", found), _whole_map("truth", truth)
        _same_shape(found, truth, "truth")
        counted = np.ones(truth.shape, bool) if self.ignore is None else truth != self.ignore
        for name, values in (("truth", truth), ("found", found)):
            outside = counted & ((values < 0) | (values >= self.classes))
            if outside.any():
                row, column = np.argwhere(outside)[0].tolist()
                got = f"{values[row, column]} at row {row}, column {column}"
                wrong(name, f"classes from 0 to {self.classes - 1}", got)
        pairs = truth[counted].astype(np.int64) * self.classes + found[counted].astype(np.int64)
        self._confusion += np.bincount(pairs, minlength=self.classes**2).reshape(self._confusion.shape)

    def figures(self) -> dict[str, Any]:
        """Figures from 0 to 1; None where no pixel would count.

        mIoU: the mean over the classes that were found or are true anywhere. pixel_accuracy: the share of
        pixels whose class is right. mean_accuracy: that share for each class that is true somewhere, the mean
        over them. per_class: the IoU of each class, in order, None for one that is neither found nor true.
        """
        right, true, found = np.diag(self._confusion), self._confusion.sum(axis=1), self._confusion.sum(axis=0)
        union = true + found - right
        ious = [float(a / b) if b else None for a, b in zip(right, union, strict=True)]
        recalls = [float(a / b) for a, b in zip(right, true, strict=True) if b]
        return {
            "mIoU": _mean([iou for iou in ious if iou is not None]),
            "pixel_accuracy": float(right.sum() / true.sum()) if true.any() else None,
            "mean_accuracy": _mean(recalls),
            "per_class": ious,
        }


def _counts(found: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> np.ndarray:
    """int[2 true, 2 found]: how many pixels are of each kind."""
    found, truth = bools("found", found, ("H", "W")), bools("truth", truth, ("H", "W"))
    _same_shape(found, truth, "truth")
    pairs = truth * 2 + found
    if ignore is not None:
        ignore = bools("ignore", ignore, ("H", "W"))
        _same_shape(found, ignore, "ignore")
        pairs = pairs[~ignore]
    return np.bincount(pairs.ravel(), minlength=4).reshape(2, 2)


def _whole_map(field: str, value: np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        wrong(field, "whole numbers [H, W]", f"{array.dtype}{list(array.shape)}")
    size(field, array.shape)
    return array


def _same_shape(found: np.ndarray, other: np.ndarray, name: str) -> None:
    if found.shape != other.shape:
        raise InputError(f"{name}: expected the shape of what was found, {found.shape}, got {other.shape}.")


def _share(part: Any, whole_: Any) -> float:
    return float(part / whole_) if whole_ else 1.0


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
