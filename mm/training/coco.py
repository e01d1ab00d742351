"""A folder in COCO's layout: one JSON file of instances, and the pictures it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm.checkpoints.paths import plain_name
from mm.errors import CheckpointError, ImageInputError, InputError
from mm.images import open_image
from mm.labels import check_text
from mm.limits import DEFAULT_LIMITS
from mm.metrics.truth import BoxTruth, truth_from_coco
from mm.results.fields import entry_of, text
from mm.results.formats import segmentation_from_coco
from mm.training.examples import Example


class CocoFolder:
    """The pictures of a data set in the order of their ids. Crowds are no things; their labels become `unsure`.

    path: the folder, or its JSON file where it holds several. Pictures lie in `images/`, in a folder named as the
    file's split (`instances_val2017.json`: `val2017/`), or beside the file.

    Raises:
        InputError: no such file, or it is malformed; the message names the entry.
    """

    def __init__(self, path: Path) -> None:
        self._file = path if path.suffix == ".json" else _instances(path)
        self.name = self._file.name if path.suffix == ".json" else path.name
        data = _read(self._file)
        dataset = _parsed(data, self._file.name)
        self._truth = truth_from_coco(dataset)
        self._ids = list(self._truth.pictures)
        self._images = {image["id"]: image for image in dataset["images"]}
        self._masks, complete = _annotations(dataset)
        self._categories = dataset["categories"]
        self._names = {key: _file_name(image) for key, image in self._images.items()}
        self._home = _home(self._file, list(self._names.values()))
        self._content = hashlib.sha256(data).hexdigest()
        found = [label for shown in self._truth.pictures.values() for label in _things(shown)[0]]
        self.labels = tuple(label for label in self._truth.labels if label in {*found})
        for label in self.labels:
            check_text(label, f"category {ascii(label[:40])}", DEFAULT_LIMITS.max_label_chars)
        self.has = frozenset({"boxes", "masks"} if complete else {"boxes"})
        self.things = len(found)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, place: int) -> Example:
        key = self._ids[place]
        name, shown = self._names[key], self._truth.pictures[key]
        picture = open_image(self._home / name, name=name)
        said = self._truth.sizes_hw[key]
        if picture.size_hw != said:
            raise ImageInputError(f"{name}: the data set says {said}, the upright picture is {picture.size_hw}")
        labels, boxes = _things(shown)
        wide = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)  # a box without area marks nothing that can be found
        unsure = frozenset(label for label, crowd in zip(shown.labels, shown.crowd, strict=True) if crowd)
        masks = self._masks_of(key, boxes, wide)
        return Example(picture, tuple(np.array(labels, object)[wide]), boxes[wide], masks, unsure=unsure)

    def _masks_of(self, key: int, boxes: np.ndarray, wide: Any) -> np.ndarray | None:
        if "masks" not in self.has:
            return None
        size_hw = self._truth.sizes_hw[key]
        if not len(boxes):
            return np.zeros((0, *size_hw), np.float32)
        part = {"images": [self._images[key]], "annotations": self._masks[key], "categories": self._categories}
        return segmentation_from_coco(part, key).masks[wide].astype(np.float32)

    def digest(self) -> str:
        """Of the JSON file, and of the names and sizes of the pictures."""
        running = hashlib.sha256(self._content.encode())
        for key in self._ids:
            path = self._home / self._names[key]
            running.update(f"{self._names[key]} {path.stat().st_size if path.is_file() else -1}\n".encode())
        return running.hexdigest()


def _things(shown: BoxTruth) -> tuple[list[str], np.ndarray]:
    """Labels and float32[n, 4] of what is no crowd."""
    single = ~shown.crowd
    labels = [label for label, each in zip(shown.labels, single, strict=True) if each]
    return labels, shown.boxes_xyxy[single].astype(np.float32).reshape(-1, 4)


def _instances(folder: Path) -> Path:
    """The one JSON file of instances in a folder."""
    if not folder.is_dir():
        raise InputError(f"data: no folder {folder.name!r}")
    found = sorted({*folder.glob("*.json"), *folder.glob("annotations/*.json")})
    chosen = [path for path in found if "instances" in path.name] or found
    if len(chosen) != 1:
        names = ", ".join(path.name for path in chosen[:5]) or "none"
        raise InputError(f"data: expected one JSON file of instances in {folder.name!r}, got {names}; pass the file")
    return chosen[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from None


def _parsed(data: bytes, name: str) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f'{name}: expected an object with "images", "annotations" and "categories"')
    return value


def _annotations(dataset: Mapping[str, Any]) -> tuple[dict[int, list[Any]], bool]:
    """What is no crowd, by picture and in the file's order; whether every one of them has a mask."""
    found: dict[int, list[Any]] = {image["id"]: [] for image in dataset["images"]}
    complete = True
    for annotation in dataset["annotations"]:
        if not annotation.get("iscrowd", 0):
            found[annotation["image_id"]].append({k: v for k, v in annotation.items() if k != "score"})
            complete = complete and bool(annotation.get("segmentation"))
    return found, complete


def _file_name(image: Mapping[str, Any]) -> str:
    where = f"image {image['id']}"
    name = text(f"{where}.file_name", entry_of(where, image, "file_name"))
    try:
        return plain_name(name, where)
    except CheckpointError as error:
        raise InputError(f"{where}.file_name: {error}") from None


def _home(file: Path, names: list[str]) -> Path:
    """The folder of the pictures: the first that has one of those named."""
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = file.stem.removeprefix("instances_")
    candidates = [above / "images" / split, above / "images", above / split, above, file.parent]
    for folder in candidates:
        if any((folder / name).is_file() for name in names):
            return folder
    raise InputError(f"{file.name}: none of its {len(names)} pictures lies in images/, {split}/ or beside the file")
