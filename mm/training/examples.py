"""One picture with its truth, whatever the data set: from a caller's pairs, or from drawn scenes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mm.errors import InputError, nearest
from mm.images import Picture, open_image
from mm.labels import check_text
from mm.limits import DEFAULT_LIMITS
from mm.recipes.batches import TRAIN_SEED
from mm.results.fields import floats, same_length, texts, wrong
from mm.results.segmentation import Segmentation
from mm.scenes.render import Scene, render_scene
from mm.scenes.soft import render_soft
from mm.scenes.vocabulary import SEEN_PAIRS
from mm.types import Detections

_HELD_OUT_SEED = 800_000_000  # scenes for validation: seeds that neither training nor the published scores use
_FRAMES = ((128, 128), (160, 112), (112, 160))  # width, height
_KEYS = ("labels", "boxes_xyxy", "masks", "foregrounds")


@dataclass(frozen=True, eq=False)
class Example:
    """A picture and the n things in it, in pixels of the upright original.

    masks: float32[n, H, W] in 0..1, how much of a pixel each thing owns. foregrounds: uint8[n, H, W, 3], a thing's own
    colours where it owns a pixel in part; None: the picture's. Either is None where the data has none.
    unsure: labels that may be there beside (crowds): for them the picture says neither yes nor no.
    """

    picture: Picture
    labels: tuple[str, ...]
    boxes_xyxy: np.ndarray  # float32[n, 4]
    masks: np.ndarray | None
    foregrounds: np.ndarray | None = None
    unsure: frozenset[str] = frozenset()

    def flipped(self) -> Example:
        """Left and right exchanged."""
        boxes = self.boxes_xyxy.copy()
        boxes[:, [0, 2]] = self.picture.size_hw[1] - self.boxes_xyxy[:, [2, 0]]
        return replace(
            self,
            picture=Picture(np.ascontiguousarray(self.picture.pixels[:, ::-1]), name=self.picture.name),
            boxes_xyxy=boxes,
            masks=None if self.masks is None else self.masks[..., ::-1],
            foregrounds=None if self.foregrounds is None else self.foregrounds[:, :, ::-1],
        )


class Examples(Protocol):
    """A data set: examples by place, always the same.

    name: for messages. labels: all that occur. has: what the truth holds, of "boxes" and "masks". things: how many
    things are shown in all; None where they are drawn on demand.
    """

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def has(self) -> frozenset[str]: ...

    @property
    def things(self) -> int | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> Example:
        """Raises ImageInputError or ResourceLimitError where this picture, and only this, cannot be had."""
        ...

    def digest(self) -> str:
        """What changes when the data does."""
        ...


class Part:
    """Some of the examples of a data set."""

    def __init__(self, whole: Examples, places: Sequence[int]) -> None:
        self._whole, self._places = whole, list(places)
        self.name, self.labels, self.has, self.things = whole.name, whole.labels, whole.has, whole.things

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Example:
        return self._whole[self._places[place]]

    def digest(self) -> str:
        return hashlib.sha256(f"{self._whole.digest()} {self._places}".encode()).hexdigest()


class Scenes:
    """Drawn scenes, each thing labelled by colour and kind; soft: of the materials that matting needs."""

    def __init__(self, count: int, *, soft: bool = False, held_out: bool = False) -> None:
        self._count, self._soft = count, soft
        self._seed = _HELD_OUT_SEED if held_out else TRAIN_SEED
        self.name = f"scenes:{count}"
        self.labels = tuple(f"{colour} {kind}" for colour, kind in SEEN_PAIRS)
        self.has, self.things = frozenset({"boxes", "masks"}), None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Example:
        draw = render_soft if self._soft else render_scene
        return example_of_scene(draw(self._seed + place, _FRAMES[place % 3]), f"scene {place}")

    def digest(self) -> str:
        return f"{self.name} from seed {self._seed}{', soft' if self._soft else ''}"


def example_of_scene(scene: Scene, name: str) -> Example:
    things = scene.objects
    return Example(
        Picture(scene.pixels, name=name),
        tuple(thing.label for thing in things),
        np.array([thing.box_xyxy for thing in things], np.float32).reshape(-1, 4),
        np.stack([thing.soft_alpha for thing in things]),
        np.stack([thing.foreground for thing in things]),
    )


class Pairs:
    """A caller's (image, truth) pairs. Images are opened when they are needed; the truth is checked at once.

    Raises:
        InputError: an item is no such pair, or its truth is malformed; the message says which.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self.name = "the given pairs"
        self._items = [_pair(item, f"item {place}") for place, item in enumerate(items)]
        self.labels = tuple(dict.fromkeys(label for _, truth in self._items for label in truth["labels"]))
        kinds = {"boxes": "boxes_xyxy", "masks": "masks"}
        present = [name for name, key in kinds.items() if all(truth[key] is not None for _, truth in self._items)]
        self.has = frozenset({*present, "boxes"} if "masks" in present else present)
        self.things = sum(len(truth["labels"]) for _, truth in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Example:
        image, truth = self._items[place]
        name = None if isinstance(image, (str, os.PathLike, Picture)) else f"item {place}"
        picture = open_image(image, name=name)
        masks, boxes = truth["masks"], truth["boxes_xyxy"]
        for key in ("masks", "foregrounds"):
            if truth[key] is not None and len(truth[key]) and truth[key].shape[1:3] != picture.size_hw:
                wrong(f"item {place}, {key}", f"the picture's size {picture.size_hw}", str(truth[key].shape[1:3]))
        if boxes is None:
            assert masks is not None
            boxes = Segmentation(masks >= 0.5, masks, truth["labels"]).boxes_xyxy if len(masks) else np.zeros((0, 4))
        return Example(picture, truth["labels"], np.asarray(boxes, np.float32), masks, truth["foregrounds"])

    def digest(self) -> str:
        running = hashlib.sha256()
        for image, truth in self._items:
            path = isinstance(image, (str, os.PathLike))
            there = path and os.path.isfile(image)
            seen = f"{os.path.basename(image)} {os.path.getsize(image) if there else 0}" if path else _content(image)
            running.update(f"{seen} {truth['labels']}".encode("utf-8", "surrogatepass"))
            for key in _KEYS[1:]:
                if truth[key] is not None:
                    running.update(truth[key].tobytes())
        return running.hexdigest()


def _content(image: Any) -> str:
    """A digest of an image that is no path; a file object would be used up, so its name must do."""
    if callable(getattr(image, "read", None)):
        return os.path.basename(str(getattr(image, "name", "file")))
    try:
        return open_image(image).digest
    except InputError as error:
        return str(error)


def _pair(item: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """The image, and its truth under the keys of `_KEYS`."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        wrong(where, "(image, truth)", type(item).__name__)
    image, truth = item
    if isinstance(truth, Detections):
        truth = {"labels": truth.labels, "boxes_xyxy": truth.boxes_xyxy}
    elif isinstance(truth, Segmentation):
        truth = {"labels": truth.labels, "masks": truth.masks}
    if not isinstance(truth, Mapping) or "labels" not in truth:
        wrong(f"{where}, truth", 'a dictionary with "labels", Detections or Segmentation', type(truth).__name__)
    if unknown := [key for key in truth if key not in _KEYS]:
        raise InputError(f"{where}, truth: no key {unknown[0]!r}.{nearest(str(unknown[0]), _KEYS)}")
    most = DEFAULT_LIMITS.max_label_chars
    given = texts(f"{where}, labels", truth["labels"])
    labels = tuple(check_text(each, f"{where}, label {i + 1}", most) for i, each in enumerate(given))
    return image, {
        "labels": labels,
        "boxes_xyxy": _boxes(truth.get("boxes_xyxy"), len(labels), where),
        "masks": _masks(truth.get("masks"), len(labels), where),
        "foregrounds": None if truth.get("foregrounds") is None else np.asarray(truth["foregrounds"], np.uint8),
    }


def _boxes(value: Any, count: int, where: str) -> np.ndarray | None:
    if value is None:
        return None
    boxes = floats(f"{where}, boxes_xyxy", value, ("n", 4))
    same_length(f"{where}, boxes_xyxy", len(boxes), "labels", count)
    if len(boxes) and (boxes[:, 2:] <= boxes[:, :2]).any():
        wrong(f"{where}, boxes_xyxy", "left < right and top < bottom", str(boxes.tolist())[:80])
    return boxes


def _masks(value: Any, count: int, where: str) -> np.ndarray | None:
    if value is None:
        return None
    masks = floats(f"{where}, masks", np.asarray(value, np.float32), ("n", "H", "W"), low=0, high=1)
    same_length(f"{where}, masks", len(masks), "labels", count)
    return masks


def check_known(found: Iterable[str], known: Collection[str], where: str) -> None:
    """Raises InputError for a label that is none of `known`."""
    for label in found:
        if label not in known:
            raise InputError(f"{where}: label {label!r} is none of the {len(known)} labels.{nearest(label, known)}")
