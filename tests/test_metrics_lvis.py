"""LVIS's figures of boxes: what federated truth counts and what it does not, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mm.errors import InputError
from mm.metrics.detection import DetectionScore
from mm.metrics.lvis import LvisScore, lvis_figures
from mm.metrics.truth import BoxTruth
from mm.types import Detections

FREQUENCIES = {"cup": "f", "kite": "c", "quill": "r", "sash": "r"}
BOX, ELSEWHERE = [10, 10, 30, 30], [60, 60, 80, 80]
STATS = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_small", "AR_medium", "AR_large"]


def found(*boxes: tuple[list[float], float, str]) -> Detections:
    rows = np.array([box for box, _, _ in boxes], float).reshape(-1, 4)
    return Detections(rows, [score for _, score, _ in boxes], tuple(label for *_, label in boxes), (100, 100))


def shown(*boxes: tuple[list[float], str], **more: Any) -> BoxTruth:
    return BoxTruth(np.array([box for box, _ in boxes]), tuple(label for _, label in boxes), **more)


def figures(*pictures: tuple[Detections, BoxTruth]) -> dict[str, Any]:
    score = LvisScore(FREQUENCIES)
    for said, truth in pictures:
        score.add(said, truth)
    return score.figures()


FOUND_LATE = (found((BOX, 0.5, "cup")), shown((BOX, "cup")))  # Whatever false box counts comes before it.


def test_a_box_of_a_label_that_was_not_looked_for_does_not_count():
    other = (found((BOX, 0.9, "cup")), shown((BOX, "kite")))
    assert figures(FOUND_LATE, other)["per_label"]["cup"] == pytest.approx(1)


def test_a_box_of_a_label_known_to_be_absent_counts_against():
    other = (found((BOX, 0.9, "cup")), shown((BOX, "kite"), absent=("cup",)))
    assert figures(FOUND_LATE, other)["per_label"]["cup"] == pytest.approx(0.5)


def test_a_box_that_misses_counts_against_only_where_the_label_is_complete():
    miss = found((ELSEWHERE, 0.9, "cup"), (BOX, 0.8, "cup"))
    complete, incomplete = (shown((BOX, "cup"), incomplete=names) for names in ((), ("cup",)))
    assert figures((miss, complete))["AP"] == pytest.approx(0.5)
    assert figures((miss, incomplete))["AP"] == pytest.approx(1)


def test_an_incomplete_label_still_counts_what_hits_and_what_is_not_found():
    truth = shown((BOX, "cup"), (ELSEWHERE, "cup"), incomplete=("cup",))
    scores = figures((found((BOX, 0.8, "cup")), truth))
    assert scores["AP"] == pytest.approx(51 / 101) and scores["AR300"] == pytest.approx(0.5)


def test_labels_are_averaged_by_how_frequent_they_are():
    truth = shown((BOX, "cup"), (BOX, "kite"), (BOX, "quill"), (BOX, "sash"))
    scores = figures((found((BOX, 0.9, "cup"), (BOX, 0.9, "quill")), truth))
    assert scores["AP_frequent"] == pytest.approx(1) and scores["AP_common"] == 0
    assert scores["AP_rare"] == pytest.approx(0.5) and scores["AP"] == pytest.approx(0.5)
    assert scores["per_label"] == {"cup": pytest.approx(1), "kite": 0, "quill": pytest.approx(1), "sash": 0}
    assert figures(FOUND_LATE)["AP_rare"] is None


def test_the_best_300_boxes_of_a_picture_count_whatever_their_labels():
    false = [(ELSEWHERE, 0.9, "kite")] * 299
    truth = shown((BOX, "cup"), (BOX, "quill"))
    scores = figures((found(*false, (BOX, 0.6, "cup"), (BOX, 0.5, "quill")), truth))
    assert scores["per_label"]["cup"] == pytest.approx(1) and scores["per_label"]["quill"] == 0


def test_more_than_100_boxes_of_a_label_count():
    said = found(*[(ELSEWHERE, 0.9, "cup")] * 199, (BOX, 0.5, "cup"))
    assert figures((said, shown((BOX, "cup"))))["AP"] == pytest.approx(1 / 200)


def test_a_box_without_area_does_not_count():
    said = found(([5, 5, 5, 40], 0.9, "cup"), (BOX, 0.5, "cup"))
    assert figures((said, shown((BOX, "cup"))))["AP"] == pytest.approx(1)


def test_nothing_found_and_nothing_shown():
    nothing = Detections.empty((100, 100))
    assert figures((nothing, shown((BOX, "cup"))))["AP"] == 0
    assert figures()["AP"] is figures((nothing, shown()))["AP"] is None


def test_where_every_label_is_verified_the_figures_are_coco_s():
    rng = np.random.default_rng(3)
    lvis, coco = LvisScore(FREQUENCIES), DetectionScore(list(FREQUENCIES))
    for _ in range(8):
        low = rng.uniform(0, 60, (4, 2))
        boxes = np.hstack([low, low + rng.uniform(4, 40, (4, 2))])
        labels = tuple(rng.choice(list(FREQUENCIES), 4))
        truth = BoxTruth(boxes, labels, absent=tuple(each for each in FREQUENCIES if each not in labels))
        near = np.repeat(boxes, 5, axis=0) + rng.normal(0, 2, (20, 4))
        near[:, 2:] = np.maximum(near[:, :2] + 1, near[:, 2:])
        said = Detections(near, rng.random(20), tuple(rng.permutation(labels * 5)), (100, 100))
        lvis.add(said, truth)
        coco.add(said, truth)
    ours, theirs = lvis.figures(), coco.figures()
    assert 0.05 < ours["AP"] < 0.9
    assert [ours[name] for name in STATS] == pytest.approx([theirs[name] for name in STATS])
    assert ours["AR300"] == pytest.approx(theirs["AR100"]) and ours["per_label"] == theirs["per_label"]


def dataset(**image: Any) -> dict[str, Any]:
    cup = {"id": 1, "image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400}
    categories = [{"id": i + 1, "name": name, "frequency": each} for i, (name, each) in enumerate(FREQUENCIES.items())]
    picture = {"id": 5, "height": 100, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {"images": [picture | image], "annotations": [cup], "categories": categories}


def test_a_data_set_says_what_is_absent_and_what_is_incomplete():
    miss = {5: found((ELSEWHERE, 0.9, "cup"), (BOX, 0.8, "cup"), (BOX, 0.9, "kite"))}
    assert lvis_figures(dataset(), miss)["AP"] == pytest.approx(0.5)
    assert lvis_figures(dataset(not_exhaustive_category_ids=[1]), miss)["AP"] == pytest.approx(1)
    kite = {"id": 2, "image_id": 6, "category_id": 2, "bbox": [10, 10, 20, 20], "area": 400}
    two = dataset(neg_category_ids=[2])
    two["images"].append(two["images"][0] | {"id": 6, "neg_category_ids": []})
    two["annotations"].append(kite)
    scores = lvis_figures(two, miss | {6: found((BOX, 0.5, "kite"))})
    assert scores["AP_common"] == pytest.approx(0.5)


def test_what_lvis_does_not_have_is_refused():
    with pytest.raises(InputError, match="got a crowd"):
        figures((found(), shown((BOX, "cup"), crowd=[True])))
    with pytest.raises(InputError, match='frequency of label \'cup\': expected "r", "c" or "f", got \'often\''):
        LvisScore({"cup": "often"})
    plain = dataset()
    del plain["images"][0]["neg_category_ids"]
    with pytest.raises(InputError, match=r"images\[0\]: expected a dictionary with \"neg_category_ids\""):
        lvis_figures(plain, {5: found()})
    with pytest.raises(InputError, match="neg_category_ids: expected one of the 4 ids of the data set, got 77"):
        lvis_figures(dataset(neg_category_ids=[77]), {5: found()})
    with pytest.raises(InputError, match="neg_category_ids: expected a list of ids"):
        lvis_figures(dataset(neg_category_ids=7), {5: found()})
    with pytest.raises(InputError, match="'cups'.*Did you mean \"cup\""):
        figures((found((BOX, 0.9, "cups")), shown()))
