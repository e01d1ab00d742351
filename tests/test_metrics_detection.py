"""COCO's figures of boxes: cases worked out by hand, and pycocotools on random data."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mm.errors import InputError
from mm.metrics import curves
from mm.metrics.detection import DetectionScore, detection_figures
from mm.metrics.truth import BoxTruth, truth_from_coco
from mm.types import Detections

LABELS = ["red car", "red cat", "blue cat"]
STATS = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
STATS += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]
CAR = [10, 10, 30, 30]


def found(*boxes: tuple[list[float], float, str]) -> Detections:
    rows = np.array([box for box, _, _ in boxes], float).reshape(-1, 4)
    return Detections(rows, [score for _, score, _ in boxes], tuple(label for *_, label in boxes), (200, 200))


def shown(*boxes: tuple[list[float], str], **more: Any) -> BoxTruth:
    return BoxTruth(np.array([box for box, _ in boxes]), tuple(label for _, label in boxes), **more)


def figures(*pictures: tuple[Detections, BoxTruth], labels: list[str] | None = None) -> dict[str, Any]:
    score = DetectionScore(LABELS)
    for said, truth in pictures:
        score.add(said, truth)
    return score.figures(labels)


def test_what_is_found_exactly_scores_one_and_what_is_not_there_scores_nothing():
    said = found((CAR, 0.9, "red car"), ([50, 50, 90, 90], 0.8, "red cat"))
    scores = figures((said, shown((CAR, "red car"), ([50, 50, 90, 90], "red cat"))))
    assert scores.pop("per_label") == {"red car": pytest.approx(1), "red cat": pytest.approx(1), "blue cat": None}
    assert scores.pop("AP_large") is scores.pop("AR_large") is None
    assert scores == dict.fromkeys((name for name in STATS if "large" not in name), pytest.approx(1))


def test_a_box_counts_at_each_overlap_it_reaches():
    # 16.5 of 20 columns: an IoU of 0.825, enough at 0.5, 0.55, … 0.8, seven of ten thresholds.
    scores = figures((found(([10, 10, 26.5, 30], 0.9, "red car")), shown((CAR, "red car"))))
    assert scores["AP"] == pytest.approx(0.7) and scores["AR100"] == pytest.approx(0.7)
    assert scores["AP50"] == scores["AP75"] == pytest.approx(1)


def test_a_better_false_box_halves_the_precision_and_a_worse_one_costs_nothing():
    truth = shown((CAR, "red car"))
    better = found(([90, 90, 99, 99], 0.95, "red car"), (CAR, 0.9, "red car"))
    worse = found(([90, 90, 99, 99], 0.5, "red car"), (CAR, 0.9, "red car"))
    assert figures((better, truth))["AP"] == pytest.approx(0.5)
    assert figures((worse, truth))["AP"] == pytest.approx(1)


def test_half_the_things_found_fill_51_of_101_recalls():
    truth = shown((CAR, "red car"), ([50, 50, 70, 70], "red car"))
    scores = figures((found((CAR, 0.9, "red car")), truth))
    assert scores["AP"] == pytest.approx(51 / 101) and scores["AR100"] == pytest.approx(0.5)


def test_recall_is_limited_to_the_best_boxes_of_each_label():
    boxes = [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(3)]
    said = found(*((box, 0.9, "red car") for box in boxes), ([0, 50, 10, 60], 0.1, "red cat"))
    scores = figures((said, shown(*((box, "red car") for box in boxes), ([0, 50, 10, 60], "red cat"))))
    assert scores["AR1"] == pytest.approx((1 / 3 + 1) / 2) and scores["AR10"] == pytest.approx(1)


def test_the_hundred_and_first_box_of_a_label_no_longer_counts():
    false = [([100.0, 100, 110, 110], 0.9, "red car")] * 100
    truth = shown((CAR, "red car"))
    assert figures((found(*false, (CAR, 0.5, "red car")), truth))["AP50"] == 0
    assert figures((found(*false[1:], (CAR, 0.5, "red car")), truth))["AP50"] == pytest.approx(0.01)


def test_sizes_go_by_the_area_of_the_truth():
    truth = shown((CAR, "red car"), ([50, 50, 150, 150], "red car"))
    scores = figures((found((CAR, 0.9, "red car")), truth))
    assert (scores["AP_small"], scores["AP_medium"], scores["AP_large"]) == (pytest.approx(1), None, 0)
    thin = shown((CAR, "red car"), ([50, 50, 150, 150], "red car"), areas=[400, 2000])
    scores = figures((found((CAR, 0.9, "red car")), thin))
    assert (scores["AP_small"], scores["AP_medium"], scores["AP_large"]) == (pytest.approx(1), 0, None)


def test_a_crowd_neither_counts_against_a_box_in_it_nor_need_be_found():
    truth = shown(([100, 100, 200, 200], "red car"), (CAR, "red car"), crowd=[True, False])
    inside = [([110.0 + 20 * i, 110, 120 + 20 * i, 120], 0.95, "red car") for i in range(3)]
    assert figures((found(*inside, (CAR, 0.9, "red car")), truth))["AP"] == pytest.approx(1)
    assert figures((found((CAR, 0.9, "red car")), truth))["AR100"] == pytest.approx(1)


def test_empty_pictures_and_empty_answers():
    nothing, truth = Detections.empty((200, 200)), shown((CAR, "red car"))
    assert figures()["AP"] is figures((nothing, shown()))["AP"] is None
    assert figures((nothing, truth))["AP"] == figures((nothing, truth))["AR100"] == 0
    assert figures((found((CAR, 0.9, "red car")), shown()))["AP"] is None
    empty_picture = (found((CAR, 0.9, "red car")), shown())
    assert figures(empty_picture, (found((CAR, 0.5, "red car")), truth))["AP"] == pytest.approx(0.5)


def test_figures_of_some_labels_are_means_over_those_that_are_there():
    said = found((CAR, 0.9, "red car"))
    truth = shown((CAR, "red car"), ([50, 50, 90, 90], "red cat"))
    scores = figures((said, truth), labels=["blue cat", "red cat"])
    assert scores["AP"] == 0 and scores["per_label"] == {"red cat": 0.0, "blue cat": None}
    assert figures((said, truth), labels=["blue cat", "red car"])["AP"] == pytest.approx(1)


def test_figures_can_be_asked_for_between_pictures():
    score = DetectionScore(LABELS)
    score.add(found((CAR, 0.9, "red car")), shown((CAR, "red car")))
    assert score.figures()["AP50"] == pytest.approx(1)
    score.add(found(), shown((CAR, "red cat")))
    assert score.figures()["AP50"] == pytest.approx(0.5)


def random_data(seed: int) -> tuple[dict[str, Any], dict[int, Detections]]:
    """Boxes with fractions, crowds, areas of masks, equal scores, more than 100 boxes, and a label never true."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 3 * i + 2, "name": f"label {i}"} for i in range(5)]
    dataset: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    said = {}
    for image in (31, 7, 19, 4, 100, 12):
        count, guesses = int(rng.integers(0, 6)), int(rng.choice([0, 12, 30, 300]))
        corners, sides = rng.uniform(0, 250, (count, 2)), rng.uniform(2, 180, (count, 2))
        kinds = rng.integers(0, 4, count)
        for box, kind in zip(np.hstack([corners, sides]), kinds, strict=True):
            row = {"id": len(dataset["annotations"]) + 1, "image_id": image, "category_id": 3 * int(kind) + 2}
            area = float(box[2] * box[3] * rng.uniform(0.4, 1))
            dataset["annotations"].append(
                row | {"bbox": box.tolist(), "area": area, "iscrowd": int(rng.random() < 0.2)}
            )
        low = rng.uniform(0, 250, (guesses, 2))
        boxes, labels = np.hstack([low, low + rng.uniform(0, 90, (guesses, 2))]), rng.integers(0, 5, guesses)
        for place in range(guesses * 3 // 4 if count else 0):
            owner = int(rng.integers(0, count))
            near = np.hstack([corners[owner], corners[owner] + sides[owner]]) + rng.normal(0, rng.choice([0.5, 9]), 4)
            boxes[place], labels[place] = [*near[:2], *np.maximum(near[:2], near[2:])], kinds[owner]
        names = tuple(f"label {i}" for i in labels)
        said[image] = Detections(boxes, np.round(rng.random(guesses), 2), names, (300, 400))
        dataset["images"].append({"id": image, "height": 300, "width": 400})
    return dataset, said


@pytest.mark.parametrize("seed", range(6))
def test_all_figures_equal_those_of_pycocotools(seed: int):
    dataset, said = random_data(seed)
    ids = {each["name"]: each["id"] for each in dataset["categories"]}
    results = [
        {"image_id": image, "category_id": ids[label], "score": score}
        | {"bbox": [*box[:2].tolist(), *(box[2:].astype(float) - box[:2]).tolist()]}
        for image, boxes in said.items()
        for box, score, label in boxes
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset) | {"info": {}}
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(results), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    scores = detection_figures(dataset, said)
    ours = [-1 if scores[name] is None else scores[name] for name in STATS]
    np.testing.assert_allclose(ours, reference.stats, rtol=0, atol=1e-12)
    for place, of_label in enumerate(scores["per_label"].values()):
        precision = reference.eval["precision"][:, :, place, 0, -1]
        assert (of_label is None and (precision == -1).all()) or of_label == pytest.approx(precision.mean(), abs=1e-12)


def test_a_few_labels_at_a_time_or_all_at_once_is_the_same(monkeypatch: pytest.MonkeyPatch):
    dataset, said = random_data(0)
    whole = detection_figures(dataset, said)
    monkeypatch.setattr(curves, "_PAIRS_AT_ONCE", 12)  # Two labels for six pictures.
    assert detection_figures(dataset, said) == whole


def test_unknown_labels_are_named():
    with pytest.raises(InputError, match=r"'red carr': expected one of the 3 labels\. Did you mean \"red car\"\?"):
        figures((found((CAR, 0.9, "red carr")), shown()))
    with pytest.raises(InputError, match="'dog'"):
        figures((found(), shown((CAR, "dog"))))
    with pytest.raises(InputError, match="'blue car'"):
        figures(labels=["blue car"])
    with pytest.raises(InputError, match="labels: expected at least one, all different"):
        DetectionScore(["cat", "cat"])


def test_what_is_refused_leaves_no_trace():
    score = DetectionScore(LABELS)
    score.add(found((CAR, 0.9, "red car")), shown((CAR, "red car")))
    with pytest.raises(InputError):
        score.add(found((CAR, 0.9, "red car")), shown((CAR, "dog")))
    assert score.figures()["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_xyxy": [[10, 10, 5, 20]]}, r"boxes_xyxy\[0\]: expected left <= right"),
        ({"boxes_xyxy": [[10, 10, np.nan, 20]]}, "boxes_xyxy: expected finite numbers"),
        ({"boxes_xyxy": [[10, 10, 20]]}, r"boxes_xyxy: expected float32\[n, 4\]"),
        ({"labels": ("a", "b")}, "labels: expected 1"),
        ({"crowd": [0.5]}, "crowd: expected bool"),
        ({"crowd": [True, False]}, "crowd: expected 1"),
        ({"areas": [-1]}, "areas: expected numbers from 0"),
        ({"absent": ("a",)}, "absent: expected labels that no box has, got 'a'"),
    ],
)
def test_truth_checks_itself(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        BoxTruth(**({"boxes_xyxy": [[10, 10, 20, 20]], "labels": ("a",)} | changes))


def coco(**changes: Any) -> dict[str, Any]:
    """One picture of 200 x 200 with one cat, and what `changes` says of the annotation."""
    cat = {"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 10, 20, 20.5]} | changes
    return {
        "images": [{"id": 5, "height": 200, "width": 200}],
        "annotations": [cat],
        "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def test_a_data_set_is_read_with_its_labels_in_the_order_of_their_ids():
    truth = truth_from_coco(coco(area=77, iscrowd=1))
    assert truth.labels == ("dog", "cat") and truth.sizes_hw == {5: (200, 200)}
    picture = truth.pictures[5]
    assert picture.boxes_xyxy.tolist() == [[10, 10, 30, 30.5]] and picture.labels == ("cat",)
    assert picture.areas.tolist() == [77] and picture.crowd.tolist() == [True]
    assert truth_from_coco(coco()).pictures[5].areas.tolist() == [410]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 3}, "annotation 1.category_id: expected one of the 2 ids of the data set, got 3"),
        ({"image_id": 6}, "annotation 1.image_id: expected one of the 1 ids"),
        ({"bbox": [10, 10, -1, 5]}, "annotation 1.bbox: expected a number from 0"),
        ({"bbox": [10, 10, 5]}, r"annotation 1.bbox: expected \[left, top, width, height\]"),
        ({"area": "large"}, "annotation 1.area: expected a number"),
    ],
)
def test_malformed_annotations_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        truth_from_coco(coco(**changes))


def test_malformed_data_sets_are_named():
    for part in ("images", "annotations", "categories"):
        double = coco()
        double[part] *= 2
        with pytest.raises(InputError, match=rf"{part}\[\d\].id: expected an id of its own"):
            truth_from_coco(double)
    with pytest.raises(InputError, match=r"category 9.name: expected a name of its own, got 'dog' a second time"):
        truth_from_coco(coco() | {"categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "dog"}]})
    with pytest.raises(InputError, match='dictionary with "annotations"'):
        truth_from_coco({"images": [], "categories": []})


def test_every_picture_needs_an_answer_in_its_own_size():
    boxes = Detections.empty((200, 200))
    assert detection_figures(coco(), {5: boxes})["AP"] == 0
    with pytest.raises(InputError, match="nothing for 5"):
        detection_figures(coco(), {})
    with pytest.raises(InputError, match="ids of images of the data set, got 6"):
        detection_figures(coco(), {5: boxes, 6: boxes})
    with pytest.raises(InputError, match=r"found\[5\].size_hw: expected \(200, 200\)"):
        detection_figures(coco(), {5: Detections.empty((100, 200))})
