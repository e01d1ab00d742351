"""The figures of masks and class maps, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mm.errors import InputError
from mm.metrics.segmentation import ClassMapScore, MaskScore, mask_iou


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[rows, columns] = True
    return mask


LEFT, RIGHT, MIDDLE = (block(slice(None), slice(first, first + 5)) for first in (0, 5, 2))
NOTHING = np.zeros((10, 10), bool)


def test_intersection_over_union():
    assert mask_iou(LEFT, LEFT) == 1 and mask_iou(LEFT, RIGHT) == 0
    assert mask_iou(MIDDLE, LEFT) == mask_iou(LEFT, MIDDLE) == pytest.approx(30 / 70)
    assert mask_iou(NOTHING, LEFT) == mask_iou(LEFT, NOTHING) == 0
    assert mask_iou(NOTHING, NOTHING) == 1


def test_ignored_pixels_are_in_neither_intersection_nor_union():
    ignore = block(slice(0, 5), slice(None))
    assert mask_iou(MIDDLE, LEFT, ignore=ignore) == pytest.approx(15 / 35)
    assert mask_iou(LEFT, LEFT & ~ignore, ignore=ignore) == 1
    assert mask_iou(LEFT, RIGHT, ignore=~NOTHING) == 1  # Nothing is left to compare.


def test_the_mean_weighs_masks_alike_and_the_cumulative_iou_weighs_pixels():
    score = MaskScore()
    score.add(LEFT, LEFT)  # 50 of 50
    score.add(block(slice(0, 1), slice(0, 1)), block(slice(0, 2), slice(0, 2)))  # 1 of 4
    score.add(NOTHING, block(slice(0, 1), slice(0, 10)))  # 0 of 10
    background = (50 + 96 + 90) / (50 + 99 + 100)
    assert score.figures() == {
        "mIoU": pytest.approx(1.25 / 3),
        "cIoU": pytest.approx(51 / 64),
        "IoU_BIN": pytest.approx((51 / 64 + background) / 2),
        "P@0.5": pytest.approx(1 / 3),
        "P@0.7": pytest.approx(1 / 3),
        "P@0.9": pytest.approx(1 / 3),
        "masks": 3,
    }


def test_a_mask_must_be_above_a_threshold_to_count_there():
    score = MaskScore()
    score.add(block(slice(0, 5), slice(0, 5)), LEFT)  # exactly a half
    score.add(block(slice(0, 8), slice(0, 5)), LEFT)  # four fifths
    figures = score.figures()
    assert (figures["P@0.5"], figures["P@0.7"], figures["P@0.9"]) == (0.5, 0.5, 0)


def test_masks_may_differ_in_size_from_picture_to_picture():
    score = MaskScore()
    score.add(LEFT, LEFT)
    score.add(np.ones((3, 4), bool), np.ones((3, 4), bool))
    assert score.figures()["mIoU"] == score.figures()["cIoU"] == 1


def test_no_masks_no_figures():
    names = ("mIoU", "cIoU", "IoU_BIN", "P@0.5", "P@0.7", "P@0.9")
    assert MaskScore().figures() == dict.fromkeys(names) | {"masks": 0}


@pytest.mark.parametrize(
    ("found", "truth", "more", "message"),
    [
        (LEFT.astype(np.float32), LEFT, {}, r"found: expected bool\[H, W\] \(compare the probabilities"),
        (LEFT, LEFT * 255, {}, "truth: expected bool"),
        (LEFT, LEFT[:5], {}, r"truth: expected the shape of what was found, \(10, 10\), got \(5, 10\)"),
        (LEFT, LEFT, {"ignore": LEFT[:5]}, "ignore: expected the shape"),
        (LEFT[None], LEFT, {}, r"found: expected bool\[H, W\], got bool\[1, 10, 10\]"),
    ],
)
def test_masks_are_checked(found: np.ndarray, truth: np.ndarray, more: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        mask_iou(found, truth, **more)


def test_class_maps_are_averaged_over_the_classes_that_occur():
    score = ClassMapScore(4)
    score.add(np.array([[0, 0, 1], [1, 1, 1]]), np.array([[0, 0, 0], [1, 1, 2]]))
    ious = [2 / 3, 2 / 4, 0.0, None]
    assert score.figures() == {
        "mIoU": pytest.approx((2 / 3 + 2 / 4) / 3),
        "pixel_accuracy": pytest.approx(4 / 6),
        "mean_accuracy": pytest.approx((2 / 3 + 1 + 0) / 3),
        "per_class": [None if iou is None else pytest.approx(iou) for iou in ious],
    }


def test_class_maps_are_counted_over_all_pixels_together():
    score = ClassMapScore(2)
    score.add(np.zeros((1, 8), int), np.zeros((1, 8), int))
    score.add(np.zeros((1, 2), np.uint8), np.ones((1, 2), np.uint8))
    figures = score.figures()
    assert figures["per_class"] == [0.8, 0] and figures["mIoU"] == 0.4
    assert figures["pixel_accuracy"] == 0.8 and figures["mean_accuracy"] == 0.5


def test_a_class_that_is_only_found_lowers_the_mean_iou_but_has_no_accuracy():
    score = ClassMapScore(3)
    score.add(np.array([[0, 2]]), np.array([[0, 0]]))
    figures = score.figures()
    assert figures["per_class"] == [0.5, None, 0] and figures["mIoU"] == 0.25 and figures["mean_accuracy"] == 0.5


def test_ignored_pixels_count_nowhere_whatever_was_found_there():
    score = ClassMapScore(2, ignore=255)
    truth = np.array([[0, 1, 255, 255]], np.uint8)
    score.add(np.array([[0, 1, 0, 200]], np.uint8), truth)
    assert score.figures()["per_class"] == [1, 1]
    score.add(np.zeros((1, 2), np.uint8), np.full((1, 2), 255, np.uint8))
    assert score.figures()["mIoU"] == 1


def test_no_pixels_no_figures():
    nothing = {"mIoU": None, "pixel_accuracy": None, "mean_accuracy": None, "per_class": [None, None]}
    assert ClassMapScore(2).figures() == nothing


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        ([[0, 2]], [[0, 1]], "found: expected classes from 0 to 1, got 2 at row 0, column 1"),
        ([[0, 255]], [[0, 1]], "found: expected classes from 0 to 1, got 255"),
        ([[0, 1]], [[-1, 1]], "truth: expected classes from 0 to 1, got -1"),
        ([[0, 1]], [[0], [1]], "truth: expected the shape"),
        ([[0.0, 1.0]], [[0, 1]], r"found: expected whole numbers \[H, W\], got float64"),
        ([0, 1], [0, 1], r"found: expected whole numbers \[H, W\], got int64\[2\]"),
    ],
)
def test_class_maps_are_checked(found: Any, truth: Any, message: str):
    score = ClassMapScore(2, ignore=255)
    with pytest.raises(InputError, match=message):
        score.add(np.array(found), np.array(truth))
    assert score.figures()["mIoU"] is None


def test_the_ignored_value_is_no_class():
    with pytest.raises(InputError, match="ignore: expected none of the classes 0 to 20, got 0"):
        ClassMapScore(21, ignore=0)
    with pytest.raises(InputError, match="classes: expected a whole number of at least 1"):
        ClassMapScore(0)
