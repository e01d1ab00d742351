"""A data set in COCO's or LVIS's layout, as it is measured: true boxes with their crowds, and masks by category."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from mm.checkpoints.paths import plain_name
from mm.errors import CheckpointError, ImageInputError, InputError
from mm.images import Picture, open_image
from mm.labels import check_labels
from mm.metrics.truth import BoxTruth, truth_from_coco
from mm.results.fields import entry_of
from mm.results.formats import segmentation_from_coco


class CocoTruth:
    """The pictures of a JSON file of instances, in the order of their ids.

    A label is the name of its category, with spaces for the underscores in which LVIS writes them.

    file: the JSON file. images: the folder of the pictures; by default the first of the file's own folder, `images/`
    beside it, and the folders that COCO itself uses, which has one of them. lvis: the file says how frequent each
    category is and what each picture was looked through for. masks: they are what counts, so that each thing needs one.

    Raises:
        InputError: no such file, it is malformed (the message names the entry) or holds nothing to be found, or none
            of its pictures is there.
    """

    def __init__(self, file: Path, *, images: Path | None = None, lvis: bool = False, masks: bool = False) -> None:
        dataset = _spaced(_parsed(file))
        self._truth = truth_from_coco(dataset)
        if lvis:
            _check_lvis(dataset)
        if masks:
            _check_each("annotations", dataset, "segmentation")
        self._categories = dataset["categories"]
        self.keys = tuple(self._truth.pictures)
        self.labels = self._truth.labels
        if not dataset["annotations"]:
            raise InputError(f"{file.name}: expected things to be found, got no annotations")
        check_labels(self.labels)
        self.frequencies = dict(zip(self.labels, self._truth.frequencies, strict=True))
        self._images: dict[int, Mapping[str, Any]] = {image["id"]: image for image in dataset["images"]}
        self._names = {key: _file_name(image) for key, image in self._images.items()}
        self._annotations: dict[int, list[Any]] = {key: [] for key in self.keys}
        for annotation in dataset["annotations"]:
            self._annotations[annotation["image_id"]].append({k: v for k, v in annotation.items() if k != "score"})
        self._home = _home(file, images, list(self._names.values()))

    def name(self, key: int) -> str:
        return self._names[key]

    def boxes(self, key: int) -> BoxTruth:
        return self._truth.pictures[key]

    def labels_of(self, key: int) -> tuple[str, ...]:
        """What the picture shows, each label once."""
        return tuple(dict.fromkeys(self._truth.pictures[key].labels))

    def picture(self, key: int) -> Picture:
        """
        Raises:
            ImageInputError: it cannot be read, or is not of the size that the data set says.
        """
        name, said = self._names[key], self._truth.sizes_hw[key]
        picture = open_image(self._home / name, name=name)
        if picture.size_hw != said:
            raise ImageInputError(f"{name}: the data set says {said}, the upright picture is {picture.size_hw}")
        return picture

    def masks(self, key: int, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
        """bool[H, W] by label: all of its things together, crowds too. size_hw: of the picture.

        Raises:
            InputError: an annotation of the picture has a malformed mask, or one of another size.
        """
        image = {**self._images[key], "height": size_hw[0], "width": size_hw[1]}
        part = {"images": [image], "annotations": self._annotations[key], "categories": self._categories}
        found = segmentation_from_coco(part, key)
        together: dict[str, np.ndarray] = {}
        for mask, label in zip(found.masks, found.labels, strict=True):
            together[label] = together[label] | mask if label in together else mask
        return together


def _parsed(file: Path) -> Mapping[str, Any]:
    if file.is_dir():
        raise InputError(f"{file.name}: expected a JSON file of instances, got a folder; pass the file, and --images")
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file.name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.name}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f'{file.name}: expected an object with "images", "annotations" and "categories"')
    return value


def _spaced(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data set with spaces for underscores in the names of its categories; what is malformed stays so."""
    categories = dataset.get("categories")
    if not isinstance(categories, list):
        return dataset
    return {**dataset, "categories": [_spaced_name(category) for category in categories]}


def _spaced_name(category: Any) -> Any:
    if isinstance(category, dict) and isinstance(category.get("name"), str):
        return {**category, "name": category["name"].replace("_", " ")}
    return category


def _check_lvis(dataset: Mapping[str, Any]) -> None:
    """Without these, a false box would not count, or no label would have a frequency."""
    _check_each("images", dataset, "neg_category_ids")
    _check_each("categories", dataset, "frequency")
    for place, annotation in enumerate(dataset["annotations"]):
        if annotation.get("iscrowd", 0):
            raise InputError(f"annotations[{place}]: expected a single thing, got a crowd, which LVIS does not have")


def _check_each(part: str, dataset: Mapping[str, Any], key: str) -> None:
    for place, entry in enumerate(dataset[part]):
        entry_of(f"{part}[{place}]", entry, key)


def _file_name(image: Mapping[str, Any]) -> str:
    """The path of a picture below its folder. LVIS gives a URL instead, whose last two parts are split and file."""
    where = f"image {image['id']}"
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        name = "/".join(urlparse(image["coco_url"]).path.split("/")[-2:])
    if not isinstance(name, str) or not name:
        raise InputError(f'{where}: expected a "file_name" or a "coco_url"')
    try:
        return plain_name(name, where)
    except CheckpointError as error:
        raise InputError(f"{where}.file_name: {error}") from None


def _home(file: Path, images: Path | None, names: list[str]) -> Path:
    """The folder of the pictures: the one given, or the first that has one of those named."""
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = file.stem.removeprefix("instances_")
    candidates = [file.parent, file.parent / "images", above / split, above / "images" / split, above / "images", above]
    for folder in candidates if images is None else [images]:
        if any((folder / name).is_file() for name in names):
            return folder
    where = f"beside the file, in images/ or {split}/; say --images" if images is None else f"in {images.name!r}"
    raise InputError(f"{file.name}: none of its {len(names)} pictures lies {where}")
