"""Results in the formats of other tools, and back: COCO, YOLO, Label Studio, transformers, supervision.

Whatever comes in is checked first; a message names the entry that is wrong. Each pair says what returns
exactly. What a format has no place for (`source`, and dense probabilities everywhere) does not return.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mm.errors import InputError, MissingExtraError, nearest
from mm.limits import DEFAULT_LIMITS, Limits
from mm.results.fields import by_id, dictionaries, entry_of, finite, size, text, texts, whole, wrong
from mm.results.packing import decode_rles, encode_rle, rle_size
from mm.types import Detections, Segmentation

_EDGE = 1e-4  # how far a normalised number may leave [0, 1] by rounding


def _place_of(label: str, names: Sequence[str]) -> int:
    if label not in names:
        raise InputError(f"label {label!r}: expected one of the {len(names)} names.{nearest(label, names)}")
    return names.index(label)


def to_coco(
    result: Detections | Segmentation,
    image_id: int = 1,
    *,
    file_name: str = "",
    categories: Mapping[str, int] | None = None,
    first_id: int = 1,
) -> dict[str, Any]:
    """A COCO data set of one picture: {"images", "annotations", "categories"}, each annotation with a score.

    Boxes, masks, labels and scores return exactly; of a segmentation, the score is its `confidence`.

    categories: ids by label; without them, the labels count from 1 in the order they appear.
    first_id: the id of the first annotation, for data sets put together from several pictures.
    """
    if categories is None:
        categories = {label: place for place, label in enumerate(dict.fromkeys(result.labels), start=1)}
    ids = dict(categories)
    segmented = isinstance(result, Segmentation)
    scores = (result.confidence if segmented else result.scores).tolist()
    annotations = []
    for place, (box, label) in enumerate(zip(result.boxes_xyxy.tolist(), result.labels, strict=True)):
        if label not in ids:
            raise InputError(f"label {label!r}: has no category.{nearest(label, ids)}")
        left, top, right, bottom = box
        annotation: dict[str, Any] = {"id": first_id + place, "image_id": image_id, "category_id": ids[label]}
        annotation["bbox"] = [left, top, right - left, bottom - top]
        annotation |= {"area": (right - left) * (bottom - top), "iscrowd": 0, "score": scores[place]}
        if segmented:
            mask = result.masks[place]
            annotation |= {"area": int(mask.sum()), "segmentation": encode_rle(mask)}
        annotations.append(annotation)
    height, width = result.size_hw
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
    }


def detections_from_coco(dataset: Mapping[str, Any], image_id: int | None = None) -> Detections:
    """The boxes of one picture of a COCO data set, in their order; an annotation without a score scores 1.

    image_id: needed where the data set holds more than one picture.
    """
    size_hw, found = _coco_annotations(dataset, image_id)
    boxes = []
    for field, annotation, _, _ in found:
        box = entry_of(field, annotation, "bbox")
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            wrong(f"{field}.bbox", "[x, y, width, height]", repr(box)[:80])
        x, y = (finite(f"{field}.bbox", side) for side in box[:2])
        w, h = (finite(f"{field}.bbox", side, 0) for side in box[2:])
        boxes.append([x, y, x + w, y + h])
    scores, labels = [score for *_, score in found], tuple(label for _, _, label, _ in found)
    return Detections(np.array(boxes), np.array(scores), labels, size_hw)


def segmentation_from_coco(
    dataset: Mapping[str, Any], image_id: int | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> Segmentation:
    """The masks of one picture of a COCO data set, one for each annotation: run lengths or polygons.

    The score of an annotation becomes the probability of all the pixels of its mask.

    Raises:
        InputError: an annotation, a run-length code or a polygon is malformed.
        ResourceLimitError: the masks hold too many pixels.
    """
    size_hw, found = _coco_annotations(dataset, image_id)
    codes = [
        _run_lengths(f"{field}.segmentation", entry_of(field, annotation, "segmentation"), size_hw, limits)
        for field, annotation, _, _ in found
    ]
    masks = decode_rles("segmentation", codes, size_hw, limits)
    scores = np.array([score for *_, score in found], np.float32)
    return Segmentation(masks, masks * scores[:, None, None], tuple(label for _, _, label, _ in found))


def _coco_annotations(
    dataset: Any, image_id: int | None
) -> tuple[tuple[int, int], list[tuple[str, Mapping[str, Any], str, float]]]:
    """The size of the picture, and for each of its annotations (where it stands, itself, label, score)."""
    images = by_id("images", entry_of("dataset", dataset, "images"))
    categories = by_id("categories", entry_of("dataset", dataset, "categories"))
    if image_id is None and len(images) != 1:
        wrong("image_id", f"one of the {len(images)} pictures of the data set", "none")
    image_id = next(iter(images)) if image_id is None else whole("image_id", image_id)
    if image_id not in images:
        wrong("image_id", "the id of a picture of the data set", repr(image_id))
    field, image = f"image {image_id}", images[image_id]
    size_hw = size(f"{field}.size", (entry_of(field, image, "height"), entry_of(field, image, "width")))
    found = []
    annotations = by_id("annotations", entry_of("dataset", dataset, "annotations"))
    for number, annotation in annotations.items():
        field = f"annotation {number}"
        owner = whole(f"{field}.image_id", entry_of(field, annotation, "image_id"))
        if owner not in images:
            wrong(f"{field}.image_id", "the id of a picture of the data set", str(owner))
        if owner != image_id:
            continue
        category = whole(f"{field}.category_id", entry_of(field, annotation, "category_id"))
        if category not in categories:
            wrong(f"{field}.category_id", "the id of a category of the data set", str(category))
        label = text(f"category {category}.name", entry_of(f"category {category}", categories[category], "name"))
        found.append((field, annotation, label, finite(f"{field}.score", annotation.get("score", 1.0), 0, 1)))
    return size_hw, found


def _run_lengths(field: str, value: Any, size_hw: tuple[int, int], limits: Limits) -> Any:
    """The run-length code of a segmentation: itself, or its polygons filled as COCO's own tools do."""
    from faster_coco_eval.core import mask as coco

    if not isinstance(value, (list, tuple)):
        return value
    height, width = rle_size(f"{field}.size", size_hw, limits)
    if not value:
        wrong(field, "run lengths or at least one polygon", "an empty list")
    for place, polygon in enumerate(value):
        part = f"{field}[{place}]"
        if not isinstance(polygon, (list, tuple)) or len(polygon) < 6 or len(polygon) % 2:
            wrong(part, "x, y of three points or more, in one flat list", repr(polygon)[:80])
        for position, side in enumerate(polygon):
            longest = height if position % 2 else width
            finite(part, side, -longest, 2 * longest)
    polygons = [[float(side) for side in polygon] for polygon in value]
    codes = coco.frPyObjects(polygons, height, width)
    merged = coco.merge(codes if isinstance(codes, list) else [codes])
    return {"size": [height, width], "counts": merged["counts"]}


def to_yolo(detections: Detections, names: Sequence[str], *, scores: bool = True) -> str:
    """One line per box: ``class cx cy w h [score]``, normalised to the picture; the class counts in `names`.

    A box is clipped to the picture. Otherwise boxes return within 1e-4 pixels, scores and labels exactly.
    """
    names = texts("names", names)
    height, width = detections.size_hw
    lines = []
    for box, score, label in detections:
        left, right = np.clip(box[[0, 2]].astype(float), 0, width) / width
        top, bottom = np.clip(box[[1, 3]].astype(float), 0, height) / height
        numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        numbers += [score] if scores else []
        lines.append(" ".join([str(_place_of(label, names)), *(f"{number:.10g}" for number in numbers)]))
    return "".join(line + "\n" for line in lines)


def detections_from_yolo(content: str, names: Sequence[str], size_hw: tuple[int, int]) -> Detections:
    """The boxes of one YOLO label file (its content, not its path). A line without a score scores 1."""
    names = texts("names", names)
    height, width = size("size_hw", size_hw)
    boxes, scores, labels = [], [], []
    for row, line in enumerate(text("content", content).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) not in (5, 6):
            wrong(f"line {row}", "class cx cy w h [score]", f"{len(words)} columns")
        try:
            place, numbers = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            wrong(f"line {row}", "a whole number and then numbers", repr(line[:80]))
        if not 0 <= place < len(names):
            wrong(f"line {row}", f"a class from 0 to {len(names) - 1}", words[0])
        cx, cy, w, h = (finite(f"line {row}", number, -_EDGE, 1 + _EDGE) for number in numbers[:4])
        sides = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        if w < 0 or h < 0 or sides.min() < -_EDGE or sides.max() > 1 + _EDGE:
            wrong(f"line {row}", "a box inside the picture", repr(line[:80]))
        boxes.append(np.clip(sides, 0, 1) * [width, height, width, height])
        scores.append(finite(f"line {row}", numbers[4], 0, 1) if len(numbers) == 5 else 1.0)
        labels.append(names[place])
    return Detections(np.array(boxes), np.array(scores), tuple(labels), (height, width))


def to_label_studio(
    detections: Detections,
    image: str,
    *,
    from_name: str = "label",
    to_name: str = "image",
    model_version: str | None = None,
) -> dict[str, Any]:
    """A Label Studio task for `image` (a URL that it can open) with one prediction, boxes in percent.

    A box is clipped to the picture. Otherwise boxes return within 1e-4 pixels, scores and labels exactly.

    from_name, to_name: the names of the tags <RectangleLabels> and <Image> in the labelling configuration.
    """
    height, width = detections.size_hw
    regions = []
    for place, (box, score, label) in enumerate(detections):
        left, right = (np.clip(box[[0, 2]].astype(float), 0, width) * 100 / width).tolist()
        top, bottom = (np.clip(box[[1, 3]].astype(float), 0, height) * 100 / height).tolist()
        value = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0}
        regions.append(
            {
                "id": uuid.uuid5(uuid.NAMESPACE_URL, f"{place} {label!a} {value}").hex[:10],
                "type": "rectanglelabels",
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": score,
                "value": value | {"rectanglelabels": [label]},
            }
        )
    prediction: dict[str, Any] = {
        "model_version": detections.source.model if model_version is None else model_version,
        "score": float(detections.scores.mean(dtype=float)) if len(detections) else 0.0,
        "result": regions,
    }
    return {"data": {to_name: image}, "predictions": [prediction]}


def detections_from_label_studio(
    task: Mapping[str, Any],
    *,
    part: Literal["predictions", "annotations"] = "predictions",
    size_hw: tuple[int, int] | None = None,
) -> Detections:
    """The boxes of the first prediction, or annotation, of a task. A region without a score scores 1.

    size_hw: needed where there is no region to tell the size of the picture.
    """
    answers = dictionaries(part, entry_of("task", task, part))
    regions = dictionaries(f"{part}[0].result", entry_of(f"{part}[0]", answers[0], "result")) if answers else []
    boxes, scores, labels = [], [], []
    for place, region in enumerate(regions):
        field = f"{part}[0].result[{place}]"
        if entry_of(field, region, "type") != "rectanglelabels":
            wrong(f"{field}.type", '"rectanglelabels"', repr(region["type"]))
        sides = (entry_of(field, region, "original_height"), entry_of(field, region, "original_width"))
        height, width = size(f"{field}.original size", sides)
        if size_hw is not None and size("size_hw", size_hw) != (height, width):
            wrong(field, f"a picture of {size_hw[0]} x {size_hw[1]}", f"{height} x {width}")
        size_hw = height, width
        value = entry_of(field, region, "value")
        names = texts(f"{field}.rectanglelabels", entry_of(field, value, "rectanglelabels"))
        if len(names) != 1:
            wrong(f"{field}.rectanglelabels", "one label", str(len(names)))
        if value.get("rotation", 0) or region.get("image_rotation", 0):
            wrong(f"{field}.value", "an upright box", "a rotated one")
        x, y, w, h = (finite(field, entry_of(field, value, key), 0, 100.01) for key in ("x", "y", "width", "height"))
        boxes.append(np.array([x, y, x + w, y + h]) * [width, height, width, height] / 100)
        score = region.get("score")
        scores.append(1.0 if score is None else finite(f"{field}.score", score, 0, 1))
        labels.append(names[0])
    if size_hw is None:
        wrong("size_hw", "(height, width), as no region tells the size of the picture", "none")
    return Detections(np.array(boxes), np.array(scores), tuple(labels), size_hw)


def to_transformers(detections: Detections) -> list[dict[str, Any]]:
    """What transformers' zero-shot-object-detection pipeline returns: best first, sides cut to whole pixels.

    Boxes of whole pixels return exactly, in that order; others within one pixel.
    """
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        {"score": score, "label": label, "box": dict(zip(sides, map(int, box), strict=True))}
        for box, score, label in detections.top(len(detections))
    ]


def detections_from_transformers(records: Sequence[Mapping[str, Any]], size_hw: tuple[int, int]) -> Detections:
    """The records of a transformers detection pipeline for one picture of size `size_hw`, in their order."""
    boxes, scores, labels = [], [], []
    for place, entry in enumerate(dictionaries("records", records)):
        field = f"records[{place}]"
        box = entry_of(field, entry, "box")
        sides = [entry_of(f"{field}.box", box, side) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append([finite(f"{field}.box", side) for side in sides])
        scores.append(finite(f"{field}.score", entry_of(field, entry, "score"), 0, 1))
        labels.append(text(f"{field}.label", entry_of(field, entry, "label")))
    return Detections(np.array(boxes), np.array(scores), tuple(labels), size_hw)


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        message = 'supervision is not installed: python -m pip install "mm-upcycle[supervision]"'
        raise MissingExtraError(message) from error
    return supervision


def to_supervision(result: Detections | Segmentation) -> Any:
    """A `supervision.Detections`; labels are in `data["class_name"]`, `class_id` counts the distinct ones.

    Boxes, masks, labels and scores return exactly; of a segmentation, the score is its `confidence`.
    """
    supervision = _supervision()
    distinct = {label: place for place, label in enumerate(dict.fromkeys(result.labels))}
    segmented = isinstance(result, Segmentation)
    return supervision.Detections(
        xyxy=result.boxes_xyxy.copy(),
        mask=result.masks.copy() if segmented else None,
        confidence=(result.confidence if segmented else result.scores).copy(),
        class_id=np.array([distinct[label] for label in result.labels], dtype=int),
        data={"class_name": np.array(result.labels, dtype=str)},
    )


def _supervised(found: Any, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The scores and labels of a `supervision.Detections`."""
    if not isinstance(found, _supervision().Detections):
        wrong("found", "a supervision.Detections", type(found).__name__)
    scores = np.ones(len(found)) if found.confidence is None else found.confidence
    if "class_name" in found.data:
        return scores, texts('data["class_name"]', found.data["class_name"])
    if names is None or (found.class_id is None and len(found)):
        wrong("found", 'data["class_name"], or class_id and names=', "neither")
    names, places = texts("names", names), () if found.class_id is None else found.class_id
    for place in places:
        whole("class_id", place)
        if place >= len(names):
            wrong("class_id", f"a class from 0 to {len(names) - 1}", str(place))
    return scores, tuple(names[place] for place in places)


def detections_from_supervision(
    found: Any, size_hw: tuple[int, int], *, names: Sequence[str] | None = None
) -> Detections:
    """The boxes of a `supervision.Detections`; what has no score scores 1.

    names: the labels by `class_id`, where `data["class_name"]` is missing.
    """
    scores, labels = _supervised(found, names)
    return Detections(found.xyxy, scores, labels, size_hw)


def segmentation_from_supervision(found: Any, *, names: Sequence[str] | None = None) -> Segmentation:
    """The masks of a `supervision.Detections`, each with its score as the probability of all its pixels."""
    scores, labels = _supervised(found, names)
    if found.mask is None:
        wrong("found", "masks", "none")
    masks = np.asarray(found.mask)
    return Segmentation(masks, masks * np.asarray(scores, np.float32)[:, None, None], labels)
