from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
from faster_coco_eval import COCO

from mm.errors import InputError, MissingExtraError, ResourceLimitError
from mm.limits import Limits
from mm.results.formats import (
    detections_from_coco,
    detections_from_label_studio,
    detections_from_supervision,
    detections_from_transformers,
    detections_from_yolo,
    segmentation_from_coco,
    segmentation_from_supervision,
    to_coco,
    to_label_studio,
    to_supervision,
    to_transformers,
    to_yolo,
)
from mm.types import Detections, Segmentation, Source

SIZE = (37, 53)
LABELS = ("κόκκινο", "красная машина", 'quote" \\ tab\t\n', "猫", "κόκκινο")
NAMES = tuple(dict.fromkeys(LABELS))
pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")


def detections(size_hw: tuple[int, int] = SIZE, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((5, 2, 2)) * [size_hw[1], size_hw[0]], axis=1)
    corners[0] = [[0, 0], size_hw[::-1]]
    return Detections(corners.reshape(5, 4), rng.random(5), LABELS, size_hw, Source(model="tiny"))


def segmentation() -> Segmentation:
    scores = np.random.default_rng(0).random((5, *SIZE)).astype(np.float32)
    masks = scores > 0.6
    masks[3] = False
    return Segmentation(masks, scores, LABELS)


def assert_same(back: Detections, there: Detections, atol: float = 0) -> None:
    np.testing.assert_allclose(back.boxes_xyxy, there.boxes_xyxy, rtol=0, atol=atol)
    np.testing.assert_array_equal(back.scores, there.scores)
    assert back.labels == there.labels and back.size_hw == there.size_hw


def through_json(value):
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("size_hw", [SIZE, (1, 1), (4001, 6007)])
def test_detections_return_from_every_format(size_hw):
    there, empty = detections(size_hw), Detections.empty(size_hw)
    assert_same(detections_from_coco(through_json(there.to_coco(7))), there)
    assert_same(detections_from_yolo(there.to_yolo(NAMES), NAMES, size_hw), there, atol=1e-3)
    assert_same(detections_from_label_studio(through_json(there.to_label_studio("a.png"))), there, atol=1e-3)
    assert_same(detections_from_supervision(there.to_supervision(), size_hw), there)
    ranked = there.top(5)
    assert_same(detections_from_transformers(through_json(there.to_transformers()), size_hw), ranked, atol=1)
    assert_same(detections_from_coco(through_json(empty.to_coco(7))), empty)
    assert_same(detections_from_yolo(empty.to_yolo(NAMES), NAMES, size_hw), empty)
    task = through_json(empty.to_label_studio("a.png"))
    assert_same(detections_from_label_studio(task, size_hw=size_hw), empty)
    assert_same(detections_from_supervision(empty.to_supervision(), size_hw), empty)
    assert_same(detections_from_transformers(empty.to_transformers(), size_hw), empty)


def test_boxes_return_from_normalised_formats_within_a_ten_thousandth_of_a_pixel():
    there = detections()
    assert_same(detections_from_yolo(to_yolo(there, NAMES), NAMES, SIZE), there, atol=1e-4)
    assert_same(detections_from_label_studio(to_label_studio(there, "a.png")), there, atol=1e-4)


def test_whole_pixels_return_exactly_from_transformers():
    there = Detections([[1, 2, 30, 31], [0, 0, 53, 37]], [0.9, 0.2], ("a", "b"), SIZE)  # type: ignore[arg-type]
    assert_same(detections_from_transformers(to_transformers(there), SIZE), there)


def test_segmentations_return_from_coco_and_supervision():
    there = segmentation()
    for back in (
        segmentation_from_coco(through_json(there.to_coco())),
        segmentation_from_supervision(there.to_supervision()),
    ):
        np.testing.assert_array_equal(back.masks, there.masks)
        assert back.labels == there.labels
        np.testing.assert_allclose(back.confidence, there.confidence, atol=1e-6)
    empty = there[:0]
    assert segmentation_from_coco(through_json(empty.to_coco())).masks.shape == (0, *SIZE)


def test_coco_says_what_its_readers_expect():
    result = segmentation()
    dataset = to_coco(result, 3, file_name="a.png", first_id=10)
    assert dataset["images"] == [{"id": 3, "file_name": "a.png", "height": 37, "width": 53}]
    assert [category["name"] for category in dataset["categories"]] == list(NAMES)
    assert [annotation["id"] for annotation in dataset["annotations"]] == [10, 11, 12, 13, 14]
    first = dataset["annotations"][0]
    left, top, right, bottom = result.boxes_xyxy[0].tolist()
    assert first["bbox"] == [left, top, right - left, bottom - top]
    assert first["area"] == result.masks[0].sum() and first["iscrowd"] == 0
    reader = COCO(copy.deepcopy(dataset))
    np.testing.assert_array_equal(reader.annToMask(reader.anns[10]), result.masks[0])
    chosen = to_coco(result, categories=dict(zip(NAMES, (5, 6, 7, 8), strict=True)))
    assert [each["category_id"] for each in chosen["annotations"]] == [5, 6, 7, 8, 5]
    with pytest.raises(InputError, match="has no category"):
        to_coco(result, categories={})


def test_coco_reads_one_picture_of_several():
    first, second = detections().to_coco(1), detections(seed=1).to_coco(2, first_id=6)
    both = first | {key: first[key] + second[key] for key in ("images", "annotations")}
    assert_same(detections_from_coco(both, 2), detections(seed=1))
    with pytest.raises(InputError, match="image_id: expected one of the 2 pictures"):
        detections_from_coco(both)
    with pytest.raises(InputError, match="image_id: expected the id of a picture of the data set, got 3"):
        detections_from_coco(both, 3)


def edited(dataset: dict, part: str, **change) -> dict:
    """`dataset` with the first entry of `part` changed, or without a key where the change says None."""
    entry = {key: value for key, value in (dataset[part][0] | change).items() if value is not None}
    return dataset | {part: [entry, *dataset[part][1:]]}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", {"id": None}, 'images.0.: expected a dictionary with "id"'),
        ("images", {"id": 9}, "annotation 1.image_id"),
        ("images", {"height": None}, "height"),
        ("images", {"width": 0}, "at least 1"),
        ("categories", {"id": 2}, "2 a second time"),
        ("categories", {"name": 3}, "a string"),
        ("annotations", {"id": 2}, "2 a second time"),
        ("annotations", {"image_id": [1]}, "annotation 1.image_id"),
        ("annotations", {"category_id": 99}, "annotation 1.category_id: .* got 99"),
        ("annotations", {"score": 2}, "annotation 1.score: expected a number from 0 to 1, got 2"),
        ("annotations", {"score": float("nan")}, "annotation 1.score"),
        ("annotations", {"bbox": None}, "annotation 1: expected a dictionary with \"bbox\""),
        ("annotations", {"bbox": [1, 2, -3, 4]}, "annotation 1.bbox: expected a number from 0 to .*, got -3"),
        ("annotations", {"bbox": [1, 2, 3]}, "width, height"),
        ("annotations", {"bbox": ["1", 2, 3, 4]}, "expected a number, got str"),
        ("annotations", {"bbox": [1, 2, 10**400, 4]}, "annotation 1.bbox"),
    ],
)  # fmt: skip
def test_wrong_coco_data_sets_are_refused(part, change, message):
    with pytest.raises(InputError, match=message):
        detections_from_coco(edited(detections().to_coco(), part, **change))


@pytest.mark.parametrize("value", [None, [], {}, {"images": 3, "categories": [], "annotations": []}])
def test_what_is_no_coco_data_set_is_refused(value):
    with pytest.raises(InputError):
        detections_from_coco(value)


@pytest.mark.parametrize(
    "segmentation_value",
    [
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[[1, 1, 5, 1, 5, 5]]],
        [[1, 1, 5, 1, 5, float("nan")]],
        [[1, 1, 1e9, 1, 5, 5]],
        "09",
        {"size": [37, 53], "counts": "9"},
        {"size": [53, 37], "counts": [37 * 53]},
        {"size": [37, 53]},
    ],
    ids=str,
)
def test_wrong_masks_in_coco_are_refused(segmentation_value):
    dataset = edited(segmentation().to_coco(), "annotations", segmentation=segmentation_value)
    with pytest.raises(InputError, match="segmentation"):
        segmentation_from_coco(dataset)


def test_coco_masks_are_limited_and_polygons_and_crowds_are_read():
    dataset = segmentation().to_coco()
    polygon = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0], [0, 0, 4, 0, 4, 4, 0, 4]]
    mask = segmentation_from_coco(edited(dataset, "annotations", segmentation=polygon)).masks[0]
    assert mask.sum() == 20 * 20 + 4 * 4 and mask[5:25, 10:30].all() and mask[:4, :4].all()
    crowd = {"size": list(SIZE), "counts": [37, 37, 37 * 51]}
    mask = segmentation_from_coco(edited(dataset, "annotations", segmentation=crowd, iscrowd=1)).masks[0]
    assert mask.sum() == 37 and mask[:, 1].all()
    with pytest.raises(ResourceLimitError):
        segmentation_from_coco(dataset, limits=Limits(max_pixels=100))


def test_yolo_lines_are_what_trainers_read():
    result = Detections([[10, 0, 30, 20]], [0.25], ("b",), (40, 100))  # type: ignore[arg-type]
    assert to_yolo(result, ["a", "b"]) == "1 0.2 0.25 0.2 0.5 0.25\n"
    assert to_yolo(result, ["a", "b"], scores=False) == "1 0.2 0.25 0.2 0.5\n"
    assert detections_from_yolo("1 0.2 0.25 0.2 0.5\n\n", ["a", "b"], (40, 100)).scores.tolist() == [1]
    with pytest.raises(InputError, match="label 'b': expected one of the 1 names. Did you mean \"B\""):
        to_yolo(result, ["B"])


def test_boxes_are_clipped_where_a_format_cannot_say_more():
    result = Detections([[-5, -5, 60, 20], [60, 40, 70, 50]], [0.5, 0.5], ("a", "a"), SIZE)  # type: ignore[arg-type]
    clipped = [[0, 0, 53, 20], [53, 37, 53, 37]]
    for back in (
        detections_from_yolo(result.to_yolo(["a"]), ["a"], SIZE),
        detections_from_label_studio(result.to_label_studio("a.png")),
    ):
        np.testing.assert_allclose(back.boxes_xyxy, clipped, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "4 columns"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "7 columns"),
        ("x 0.5 0.5 0.2 0.2", "line 2: expected a whole number"),
        ("0 0.5 0.5 0.2 y", "line 2: expected a whole number"),
        ("2 0.5 0.5 0.2 0.2", "a class from 0 to 1, got 2"),
        ("-1 0.5 0.5 0.2 0.2", "a class from 0 to 1, got -1"),
        ("0 0.5 0.5 nan 0.2", "line 2"),
        ("0 50 50 20 20", "line 2: expected a number"),
        ("0 0.5 0.5 -0.2 0.2", "line 2"),
        ("0 0.9 0.5 0.4 0.2", "a box inside the picture"),
        ("0 0.5 0.5 0.2 0.2 1.5", "line 2"),
    ],
)
def test_wrong_yolo_lines_are_refused(line, message):
    with pytest.raises(InputError, match=message):
        detections_from_yolo(f"0 0.5 0.5 0.2 0.2\n{line}\n", ["a", "b"], SIZE)


def test_label_studio_gets_percent_of_the_picture():
    result = Detections([[10, 0, 30, 20]], [0.25], ("b",), (40, 100), Source(model="tiny"))  # type: ignore[arg-type]
    task = to_label_studio(result, "s3://a.png", from_name="boxes", to_name="picture")
    (prediction,) = task["predictions"]
    (region,) = prediction["result"]
    assert task["data"] == {"picture": "s3://a.png"} and prediction["model_version"] == "tiny"
    assert (region["from_name"], region["to_name"], region["type"]) == ("boxes", "picture", "rectanglelabels")
    assert (region["original_width"], region["original_height"]) == (100, 40)
    expected = {"x": 10, "y": 0, "width": 20, "height": 50, "rotation": 0, "rectanglelabels": ["b"]}
    assert region["value"] == expected and region["score"] == 0.25
    ids = [each["id"] for each in detections().to_label_studio("a.png")["predictions"][0]["result"]]
    assert len(set(ids)) == 5


def test_label_studio_annotations_of_people_are_read():
    task = to_label_studio(detections(), "a.png")
    task["annotations"] = copy.deepcopy(task.pop("predictions"))
    for region in task["annotations"][0]["result"]:
        del region["score"]
    assert detections_from_label_studio(task, part="annotations").scores.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("change", "value_change", "message"),
    [
        ({"type": "brushlabels"}, {}, "rectanglelabels"),
        ({"original_width": 0}, {}, "original size"),
        ({"original_width": 54}, {}, "a picture of"),
        ({"image_rotation": 90}, {}, "a rotated one"),
        ({}, {"rotation": 5}, "a rotated one"),
        ({}, {"x": 400}, "from 0 to 100"),
        ({}, {"width": -1}, "from 0 to 100"),
        ({}, {"rectanglelabels": ["a", "b"]}, "one label, got 2"),
        ({"value": None}, {}, "a dictionary with"),
        ({"score": "0.5"}, {}, "score"),
    ],
)
def test_wrong_label_studio_regions_are_refused(change, value_change, message):
    task = to_label_studio(detections(), "a.png")
    region = task["predictions"][0]["result"][0]
    region["value"] |= value_change
    region |= change
    with pytest.raises(InputError, match=message):
        detections_from_label_studio(task)


def test_label_studio_without_regions_needs_the_size():
    with pytest.raises(InputError, match="size_hw"):
        detections_from_label_studio({"predictions": []})
    with pytest.raises(InputError, match='a dictionary with "predictions"'):
        detections_from_label_studio({"annotations": []})


def test_transformers_records_are_best_first_in_whole_pixels():
    records = to_transformers(detections())
    assert [each["score"] for each in records] == sorted((each["score"] for each in records), reverse=True)
    assert all(type(side) is int for each in records for side in each["box"].values())
    good = records[0]
    for change in ({"score": 2}, {"label": 3}, {"box": [1, 2, 3, 4]}, {"box": {"xmin": 1}}):
        with pytest.raises(InputError, match=r"records\[0\]"):
            detections_from_transformers([good | change], SIZE)
    for wrong in (good, "x", [3]):
        with pytest.raises(InputError, match="records"):
            detections_from_transformers(wrong, SIZE)  # type: ignore[arg-type]


def test_supervision_needs_names_where_it_has_only_numbers():
    import supervision

    boxes, ids = np.array([[0, 0, 5.0, 5.0], [1, 1, 2, 2]]), np.array([1, 0])
    bare = supervision.Detections(xyxy=boxes, class_id=ids)
    back = detections_from_supervision(bare, SIZE, names=["a", "b"])
    assert back.labels == ("b", "a") and back.scores.tolist() == [1, 1]
    with pytest.raises(InputError, match="names="):
        detections_from_supervision(bare, SIZE)
    with pytest.raises(InputError, match="a class from 0 to 0, got 1"):
        detections_from_supervision(bare, SIZE, names=["a"])
    with pytest.raises(InputError, match="masks, got none"):
        segmentation_from_supervision(bare, names=["a", "b"])
    with pytest.raises(InputError, match="a supervision.Detections, got Detections"):
        detections_from_supervision(detections(), SIZE)
    assert to_supervision(detections()).class_id.tolist() == [0, 1, 2, 3, 0]


def test_a_missing_supervision_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"mm-upcycle\[supervision\]"):
        to_supervision(detections())
