"""The true boxes that detections are scored against: of one picture, or read from a COCO or LVIS data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm.errors import InputError, nearest
from mm.results.fields import bools, by_id, entry_of, finite, floats, same_length, size, text, texts, whole, wrong


@dataclass(frozen=True, eq=False)
class BoxTruth:
    """What one picture really shows.

    A crowd stands for many things of its label: a box in it is neither right nor wrong, and it need not be found.
    LVIS verifies only some labels of each picture: those of its boxes, which it shows, and those `absent`,
    which it does not. Of those `incomplete` it may show more than the boxes.

    Raises:
        InputError: lengths differ, a box is reversed or not finite, an area is negative, or a label is both
            `absent` and among the boxes.
    """

    boxes_xyxy: np.ndarray  # float64[n, 4], left, top, right, bottom in pixels of the upright original
    labels: tuple[str, ...]
    crowd: Any = None  # bool[n]; without it, there is no crowd
    areas: Any = None  # float64[n], square pixels, what a thing's size goes by; without them, those of the boxes
    absent: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        boxes, labels = _doubles("boxes_xyxy", self.boxes_xyxy, ("n", 4)), texts("labels", self.labels)
        count = len(boxes)
        same_length("labels", len(labels), "boxes_xyxy", count)
        sides = boxes[:, 2:] - boxes[:, :2]
        if (sides < 0).any():
            row = int(np.argwhere(sides < 0)[0, 0])
            wrong(f"boxes_xyxy[{row}]", "left <= right and top <= bottom", str(boxes[row].tolist()))
        crowd = np.zeros(count, bool) if self.crowd is None else bools("crowd", self.crowd, ("n",))
        areas = sides.prod(axis=1) if self.areas is None else _doubles("areas", self.areas, ("n",), low=0)
        same_length("crowd", len(crowd), "boxes_xyxy", count)
        same_length("areas", len(areas), "boxes_xyxy", count)
        absent, incomplete = texts("absent", self.absent), texts("incomplete", self.incomplete)
        if both := set(absent) & set(labels):
            wrong("absent", "labels that no box has", repr(min(both)))
        fields = {"boxes_xyxy": boxes, "labels": labels, "crowd": crowd, "areas": areas}
        for name, value in (fields | {"absent": absent, "incomplete": incomplete}).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class TruthSet:
    """A whole COCO or LVIS data set: its labels in the order of their ids, and its pictures by theirs."""

    labels: tuple[str, ...]
    frequencies: tuple[str, ...]  # "r", "c" or "f" for each label of LVIS, "" in other data sets
    pictures: Mapping[int, BoxTruth]  # ids ascending
    sizes_hw: Mapping[int, tuple[int, int]]


def truth_from_coco(dataset: Mapping[str, Any]) -> TruthSet:
    """The truth of a data set in COCO's or LVIS's layout, as `json` reads it.

    Of each annotation "image_id", "category_id" and "bbox" ([left, top, width, height]) are needed; "area" and
    "iscrowd" are used where they stand. Of an image, "neg_category_ids" and "not_exhaustive_category_ids".

    Raises:
        InputError: something is missing, malformed, there twice, or refers to what is not there.
    """
    images, categories, annotations = (
        by_id(part, entry_of("dataset", dataset, part)) for part in ("images", "categories", "annotations")
    )
    labels: dict[int, str] = {}
    for key in sorted(categories):
        label = text(f"category {key}.name", entry_of(f"category {key}", categories[key], "name"))
        if label in labels.values():
            wrong(f"category {key}.name", "a name of its own", f"{label!r} a second time")
        labels[key] = label
    rows: dict[int, list[tuple[list[float], str, bool, float]]] = {key: [] for key in images}
    for key, annotation in annotations.items():
        field = f"annotation {key}"
        owner = _known(f"{field}.image_id", entry_of(field, annotation, "image_id"), images)
        rows[owner].append(_row(field, annotation, labels))
    sizes = {
        key: size(f"image {key}.size", tuple(entry_of(f"image {key}", image, side) for side in ("height", "width")))
        for key, image in images.items()
    }
    pictures = {key: _picture(f"image {key}", images[key], rows[key], labels) for key in sorted(images)}
    frequencies = tuple(str(categories[key].get("frequency", "")) for key in labels)
    return TruthSet(tuple(labels.values()), frequencies, pictures, sizes)


def place_of(label: str, places: Mapping[str, int]) -> int:
    """Where `label` stands among those that are scored; an InputError where it does not."""
    if label not in places:
        raise InputError(f"label {label!r}: expected one of the {len(places)} labels.{nearest(label, places)}")
    return places[label]


def _row(field: str, annotation: Mapping[str, Any], labels: Mapping[int, str]) -> tuple[list[float], str, bool, float]:
    """The box (left, top, right, bottom), label, crowd or not, and area of an annotation."""
    category = _known(f"{field}.category_id", entry_of(field, annotation, "category_id"), labels)
    box = entry_of(field, annotation, "bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        wrong(f"{field}.bbox", "[left, top, width, height]", repr(box)[:80])
    left, top = (finite(f"{field}.bbox", side) for side in box[:2])
    width, height = (finite(f"{field}.bbox", side, 0) for side in box[2:])
    area = finite(f"{field}.area", annotation.get("area", width * height), 0)
    crowd = whole(f"{field}.iscrowd", annotation.get("iscrowd", 0))
    return [left, top, left + width, top + height], labels[category], bool(crowd), area


def _picture(
    field: str, image: Mapping[str, Any], rows: Sequence[tuple[list[float], str, bool, float]], labels: Mapping
) -> BoxTruth:
    verified = {}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        ids = image.get(key, [])
        if not isinstance(ids, (list, tuple)):
            wrong(f"{field}.{key}", "a list of ids", type(ids).__name__)
        verified[key] = tuple(labels[_known(f"{field}.{key}", each, labels)] for each in ids)
    boxes, names, crowd, areas = zip(*rows, strict=True) if rows else ([], (), [], [])
    return BoxTruth(np.array(boxes), tuple(names), np.array(crowd), np.array(areas), *verified.values())


def _known(field: str, value: Any, entries: Mapping[int, Any]) -> int:
    number = whole(field, value)
    if number not in entries:
        wrong(field, f"one of the {len(entries)} ids of the data set", str(number))
    return number


def _doubles(field: str, value: Any, shape: tuple[int | str, ...], *, low: float = -np.inf) -> np.ndarray:
    """As `floats`, but float64: an overlap can lie so close to a threshold that float32 decides it."""
    checked = floats(field, value, shape, low=low)
    array = np.array(value, np.float64).reshape(checked.shape)
    array.flags.writeable = False
    return array
