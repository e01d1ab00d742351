"""The results: small frozen values over NumPy that check themselves, draw themselves and pass through JSON.

Boxes are left, top, right, bottom in pixels of the upright original; masks and mattes have its height and
width. Arrays are read-only copies. `to_dict` gives what `json` can write and `from_dict` reads it back:
every field returns exactly, except `Segmentation.scores`, for which `Segmentation.to_dict` offers a choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from PIL import Image

from mm.errors import InputError, nearest
from mm.results.base import UNKNOWN, Colors, Listed, Result, Source
from mm.results.fields import floats, same_length, size, text, texts, whole, wrong
from mm.results.packing import record
from mm.results.segmentation import Matte, Segment, Segmentation

__all__ = [
    "Caption",
    "Classification",
    "Detection",
    "Detections",
    "Embeddings",
    "ErrorRecord",
    "Matte",
    "Segment",
    "Segmentation",
    "Source",
    "Stats",
    "result_from_dict",
]


@dataclass(frozen=True)
class Stats:
    """What an answer has cost.

    forwards: of the decoder behind the picture, the one over the words of the prompt and a recurrent one's second
    readings included. tokens: decided, an end token included. guessed, accepted: tokens of a draft.
    """

    forwards: int
    tokens: int
    guessed: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, whole(f"stats.{each.name}", getattr(self, each.name)))

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.forwards if self.forwards else 0.0

    @property
    def acceptance(self) -> float:
        """0-1, of all that was guessed."""
        return self.accepted / self.guessed if self.guessed else 0.0


@dataclass(frozen=True, eq=False)
class Caption(Result):
    """What a language decoder wrote about a picture. `str(caption)` is the text."""

    text: str
    prompt: str | None
    tokens: int  # generated, the end token not counted
    finish_reason: str  # "stop" at the end token or a stop string, "length" at max_new_tokens, "cancelled"
    size_hw: tuple[int, int]
    source: Source = UNKNOWN
    stats: Stats | None = None

    def __post_init__(self) -> None:
        prompt = None if self.prompt is None else text("prompt", self.prompt)
        reason = text("finish_reason", self.finish_reason)
        self._set(text=text("text", self.text), prompt=prompt, finish_reason=reason)
        self._set(tokens=whole("tokens", self.tokens), size_hw=size("size_hw", self.size_hw))
        if isinstance(self.stats, Mapping):  # as JSON has it
            self._set(stats=Stats(**record("stats", self.stats, [each.name for each in fields(Stats)])))
        elif self.stats is not None and not isinstance(self.stats, Stats):
            wrong("stats", "a mm.types.Stats", type(self.stats).__name__)

    def __str__(self) -> str:
        return self.text

    def plot(self, image: Any, *, font: Any = None) -> Image.Image:
        """A new RGB picture with the text in a band below; `image` is anything `open_image` takes."""
        from mm.results.draw import draw_caption

        return draw_caption(image, self, font=font)


class Detection(NamedTuple):
    """One box of `Detections`."""

    box_xyxy: np.ndarray
    score: float
    label: str


@dataclass(frozen=True, eq=False, repr=False)
class Detections(Listed):
    """Boxes found in a picture, in the order of the caller; a box may reach beyond the picture.

    Iteration and an integer index give a `Detection`; a slice, bool[n] or a list of indices, `Detections`.

    Raises:
        InputError: lengths differ, a box is reversed or not finite, a score lies outside [0, 1].
    """

    boxes_xyxy: np.ndarray  # float32[n, 4], left, top, right, bottom in pixels
    scores: np.ndarray  # float32[n], 0-1
    labels: tuple[str, ...]
    size_hw: tuple[int, int]
    source: Source = UNKNOWN

    _entries = ("boxes_xyxy", "scores")

    def __post_init__(self) -> None:
        boxes = floats("boxes_xyxy", self.boxes_xyxy, ("n", 4))
        scores = floats("scores", self.scores, ("n",), low=0, high=1)
        labels = texts("labels", self.labels)
        same_length("scores", len(scores), "boxes_xyxy", len(boxes))
        same_length("labels", len(labels), "boxes_xyxy", len(boxes))
        reversed_ = np.flatnonzero((boxes[:, :2] > boxes[:, 2:]).any(axis=1))
        if reversed_.size:
            row = int(reversed_[0])
            wrong(f"boxes_xyxy[{row}]", "left <= right and top <= bottom", str(boxes[row].tolist()))
        self._set(boxes_xyxy=boxes, scores=scores, labels=labels, size_hw=size("size_hw", self.size_hw))

    @classmethod
    def empty(cls, size_hw: tuple[int, int], source: Source = UNKNOWN) -> Self:
        return cls(np.zeros((0, 4)), np.zeros(0), (), size_hw, source)

    def __repr__(self) -> str:
        found = [f"{label!r} {score:.2f}" for label, score in zip(self.labels[:5], self.scores, strict=False)]
        more = [f"{len(self) - 5} more"] if len(self) > 5 else []
        return f"Detections({len(self)} in {self.size_hw[0]}x{self.size_hw[1]}: {', '.join(found + more)})"

    def __iter__(self) -> Iterator[Detection]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            return Detection(self.boxes_xyxy[key], float(self.scores[key]), self.labels[key])
        return self._select(key)

    @property
    def areas(self) -> np.ndarray:
        """float32[n], square pixels."""
        sides = self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        return sides[:, 0] * sides[:, 1]

    def filter(self, *, score: float | None = None, label: str | Collection[str] | None = None) -> Self:
        """Those that score at least `score` and have (one of) the label(s)."""
        return self._filter(self.scores, score, label)

    def top(self, k: int) -> Self:
        """The `k` best, best first; equal scores keep their order."""
        return self._top(self.scores, k)

    def nms(self, iou: float = 0.5, *, across_labels: bool = False, vote: bool = False) -> Self:
        """Greedy non-maximum suppression, best first: a box goes where it overlaps a better one of its label
        (or of any label) by more than `iou`.

        vote: a box that stays becomes the mean of itself and of those of its label that go for it, weighted by their
        scores (Gidaris and Komodakis, ICCV 2015, section 5).
        """
        boxes = self.boxes_xyxy.astype(np.float64)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        names = np.unique(np.array(self.labels, dtype=object), return_inverse=True)[1]
        waiting, kept, settled = np.argsort(-self.scores, kind="stable"), [], boxes.copy()
        while waiting.size:
            best, rest = waiting[0], waiting[1:]
            kept.append(best)
            low = np.maximum(boxes[best, :2], boxes[rest, :2])
            sides = np.clip(np.minimum(boxes[best, 2:], boxes[rest, 2:]) - low, 0, None)
            shared = sides[:, 0] * sides[:, 1]
            joint = areas[best] + areas[rest] - shared
            overlaps = shared > iou * joint
            same = names[rest] == names[best]
            if vote:
                voters = np.append(rest[overlaps & same], best)
                weights = self.scores[voters] + np.finfo(np.float32).tiny
                settled[best] = np.average(boxes[voters], axis=0, weights=weights)
            waiting = rest[~(overlaps & (across_labels | same))]
        left = self._take(np.array(kept, dtype=int))
        return replace(left, boxes_xyxy=settled[kept].astype(np.float32)) if vote and kept else left

    def plot(self, image: Any, *, colors: Colors | None = None, font: Any = None) -> Image.Image:
        """A new RGB picture with boxes and tags; `image` is anything `open_image` takes.

        colors: RGB by label, for those that shall not have their usual one.
        font: path of a TrueType font for scripts beyond Latin, Greek, Cyrillic, Hebrew and Arabic.
        """
        from mm.results.draw import draw_detections

        return draw_detections(image, self, colors=colors, font=font)

    def to_coco(self, image_id: int = 1, *, file_name: str = "", first_id: int = 1) -> dict[str, Any]:
        """A COCO data set of this one picture; see `mm.results.formats.to_coco`."""
        from mm.results.formats import to_coco

        return to_coco(self, image_id, file_name=file_name, first_id=first_id)

    def to_yolo(self, names: Sequence[str]) -> str:
        """Lines ``class cx cy w h score``; see `mm.results.formats.to_yolo`."""
        from mm.results.formats import to_yolo

        return to_yolo(self, names)

    def to_label_studio(self, image: str) -> dict[str, Any]:
        """A Label Studio task with a prediction; see `mm.results.formats.to_label_studio`."""
        from mm.results.formats import to_label_studio

        return to_label_studio(self, image)

    def to_transformers(self) -> list[dict[str, Any]]:
        """As transformers' zero-shot-object-detection pipeline; see `mm.results.formats.to_transformers`."""
        from mm.results.formats import to_transformers

        return to_transformers(self)

    def to_supervision(self) -> Any:
        """A `supervision.Detections`; see `mm.results.formats.to_supervision`."""
        from mm.results.formats import to_supervision

        return to_supervision(self)


@dataclass(frozen=True, eq=False, repr=False)
class Classification(Listed):
    """One score per label, in the caller's order; `top` gives them best first.

    Iteration and an integer index give (label, score); a slice, bool[K] or a list of indices give a
    `Classification`.
    """

    labels: tuple[str, ...]
    scores: np.ndarray  # float32[K], finite; probabilities where the model has them
    source: Source = UNKNOWN

    _entries = ("scores",)

    def __post_init__(self) -> None:
        labels, scores = texts("labels", self.labels), floats("scores", self.scores, ("K",))
        same_length("scores", len(scores), "labels", len(labels))
        self._set(labels=labels, scores=scores)

    def __repr__(self) -> str:
        found = ", ".join(f"{label!r} {score:.3f}" for label, score in self.top(5))
        return f"Classification({len(self)}: {found}{', …' if len(self) > 5 else ''})"

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            return self.labels[key], float(self.scores[key])
        return self._select(key)

    @property
    def best(self) -> str:
        """The label that scores highest, the first among equals."""
        if not len(self):
            wrong("best", "at least one label", "none")
        return self.labels[int(self.scores.argmax())]

    def filter(self, *, score: float | None = None, label: str | Collection[str] | None = None) -> Self:
        """Those that score at least `score` and are (one of) the label(s)."""
        return self._filter(self.scores, score, label)

    def top(self, k: int) -> Self:
        """The `k` best, best first; equal scores keep their order."""
        return self._top(self.scores, k)

    def plot(self, image: Any, *, best: int = 5, colors: Colors | None = None, font: Any = None) -> Image.Image:
        """A new RGB picture with bars for the `best` labels in a band below."""
        from mm.results.draw import draw_classification

        return draw_classification(image, self, best=best, colors=colors, font=font)


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings(Result):
    """Vectors of one space, as the model gives them: not normalised."""

    vectors: np.ndarray  # float32[n, E]
    kind: Literal["image", "text"]
    source: Source = UNKNOWN

    def __post_init__(self) -> None:
        if self.kind not in ("image", "text"):
            wrong("kind", '"image" or "text"', repr(self.kind))
        self._set(vectors=floats("vectors", self.vectors, ("n", "E")))

    def __repr__(self) -> str:
        return f"Embeddings({self.kind}, {len(self)} x {self.vectors.shape[1]})"

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def unit(self) -> np.ndarray:
        """float32[n, E]: the vectors at length 1; a vector of zeros stays."""
        vectors = self.vectors.astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)

    def similarity(self, other: Embeddings) -> np.ndarray:
        """float32[n, m]: the cosine of each of these vectors with each of `other`."""
        if self.vectors.shape[1] != other.vectors.shape[1]:
            wrong("similarity", f"vectors of {self.vectors.shape[1]} numbers", str(other.vectors.shape[1]))
        return np.clip(self.unit @ other.unit.T, -1, 1)


@dataclass(frozen=True, eq=False)
class ErrorRecord(Result):
    """Stands in a list of results for an item that failed."""

    name: str  # the item, as the caller called it
    type: str  # the class of the error
    message: str
    stage: str  # what was being done: "read", "run", ...

    def __post_init__(self) -> None:
        for name in ("name", "type", "message", "stage"):
            text(name, getattr(self, name))

    @classmethod
    def of(cls, error: BaseException, *, name: str, stage: str) -> Self:
        return cls(name, type(error).__name__, str(error), stage)

    @classmethod
    def type_name(cls) -> str:
        return "error"

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`; the class of the error stands under "error", as "type" is taken."""
        return {
            "type": self.type_name(),
            "name": self.name,
            "error": self.type,
            "message": self.message,
            "stage": self.stage,
        }

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        values = cls._read(value, ["name", "error", "message", "stage"])
        return cls(values["name"], values["error"], values["message"], values["stage"])


_RESULTS: tuple[type[Result], ...] = (
    Caption,
    Detections,
    Segmentation,
    Classification,
    Embeddings,
    Matte,
    ErrorRecord,
)


def result_from_dict(value: Any) -> Result:
    """The result that any `to_dict` wrote, by its "type".

    Raises:
        InputError: there is no such type, or the rest does not make a result of that type.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        wrong("result", 'a dictionary with a "type"', type(value).__name__)
    by_name = {each.type_name(): each for each in _RESULTS}
    if value["type"] not in by_name:
        known = ", ".join(by_name)
        raise InputError(f"type {value['type']!r}: expected one of {known}.{nearest(value['type'], by_name)}")
    return by_name[value["type"]].from_dict(value)
