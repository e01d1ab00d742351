"""The results that say something of every pixel, `Segmentation` and `Matte`: import them from `mm.types`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from PIL import Image

from mm.errors import InputError, nearest
from mm.files import replacing
from mm.limits import DEFAULT_LIMITS
from mm.results.base import UNKNOWN, Colors, Listed, Result, Source
from mm.results.fields import bools, bytes_of, floats, same_length, size, texts, wrong
from mm.results.packing import decode_rles, encode_rle, pack, unpack

_BAND = 256  # rows that are blended at once, since floats take many times the room of the picture


class Segment(NamedTuple):
    """One entry of a `Segmentation`."""

    mask: np.ndarray
    scores: np.ndarray
    label: str


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Listed):
    """One mask per label; masks may overlap, and one may be empty.

    Iteration and an integer index give a `Segment`; a slice, bool[K] or a list of indices a `Segmentation`.

    Raises:
        InputError: shapes or lengths differ, or a probability is not finite or lies outside [0, 1].
    """

    masks: np.ndarray  # bool[K, H, W]
    scores: np.ndarray  # float32[K, H, W], probabilities
    labels: tuple[str, ...]
    source: Source = UNKNOWN

    _entries = ("masks", "scores")

    def __post_init__(self) -> None:
        masks = bools("masks", self.masks, ("K", "H", "W"))
        size("masks", masks.shape[1:])
        scores = floats("scores", self.scores, ("K", *masks.shape[1:]), low=0, high=1)
        labels = texts("labels", self.labels)
        same_length("scores", len(scores), "masks", len(masks))
        same_length("labels", len(labels), "masks", len(masks))
        self._set(masks=masks, scores=scores, labels=labels)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def confidence(self) -> np.ndarray:
        """float32[K]: the mean probability inside each mask, 0 where a mask is empty."""
        sums = np.where(self.masks, self.scores, 0).sum(axis=(1, 2), dtype=np.float64)
        means = sums / np.maximum(self.masks.sum(axis=(1, 2)), 1)
        return np.clip(means, 0, 1).astype(np.float32)

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """float32[K, 4]: the outer edges of each mask in pixels, all 0 where it is empty."""
        boxes = np.zeros((len(self), 4), np.float32)
        for box, mask in zip(boxes, self.masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if rows.size:
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes

    def __repr__(self) -> str:
        shares = zip(self.labels[:5], self.masks, strict=False)
        parts = [f"{label!r} {mask.mean():.1%}" for label, mask in shares]
        more = [f"{len(self) - 5} more"] if len(self) > 5 else []
        return f"Segmentation({len(self)} in {self.size_hw[0]}x{self.size_hw[1]}: {', '.join(parts + more)})"

    def __iter__(self) -> Iterator[Segment]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            return Segment(self.masks[key], self.scores[key], self.labels[key])
        return self._select(key)

    def filter(self, *, score: float | None = None, label: str | Collection[str] | None = None) -> Self:
        """Those whose `confidence` is at least `score` and that have (one of) the label(s)."""
        return self._filter(self.confidence, score, label)

    def top(self, k: int) -> Self:
        """The `k` of the highest `confidence`, best first."""
        return self._top(self.confidence, k)

    def cutout(self, image: Any, label: str, *, soft: bool = False) -> Image.Image:
        """An RGBA picture of the size of `image` in which only `label` is left.

        soft: alpha is the probability instead of the mask.
        """
        from mm.results.draw import open_for

        if label not in self.labels:
            known = ", ".join(map(repr, self.labels[:10]))
            raise InputError(f"label {label!r}: expected one of {known}.{nearest(label, self.labels)}")
        picture = open_for(image, self)
        mine = [place for place, each in enumerate(self.labels) if each == label]
        alpha = (self.scores if soft else self.masks)[mine].max(axis=0)
        bands = np.dstack([picture.pixels, np.round(alpha * 255.0).astype(np.uint8)])
        return Image.fromarray(bands)

    def plot(self, image: Any, *, colors: Colors | None = None, font: Any = None) -> Image.Image:
        """A new RGB picture with translucent masks and tags; arguments as for `Detections.plot`."""
        from mm.results.draw import draw_segmentation

        return draw_segmentation(image, self, colors=colors, font=font)

    def to_coco(self, image_id: int = 1, *, file_name: str = "", first_id: int = 1) -> dict[str, Any]:
        """A COCO data set of this one picture; see `mm.results.formats.to_coco`."""
        from mm.results.formats import to_coco

        return to_coco(self, image_id, file_name=file_name, first_id=first_id)

    def to_supervision(self) -> Any:
        """A `supervision.Detections` with masks; see `mm.results.formats.to_supervision`."""
        from mm.results.formats import to_supervision

        return to_supervision(self)

    def to_dict(self, *, scores: Literal["uint8", "float32", "none"] = "uint8") -> dict[str, Any]:
        """As `Result.to_dict`, masks as COCO run lengths.

        scores: "uint8" keeps the probabilities to within 1/510; "float32" keeps them exactly, at up to four
            times the size; "none" leaves them out, and reading gives 1 inside a mask and 0 outside.
        """
        if scores not in ("uint8", "float32", "none"):
            wrong("scores", '"uint8", "float32" or "none"', repr(scores))
        kept = np.round(self.scores * 255).astype(np.uint8) if scores == "uint8" else self.scores
        return {
            "type": self.type_name(),
            "size_hw": list(self.size_hw),
            "masks": [encode_rle(mask) for mask in self.masks],
            "scores": None if scores == "none" else pack(kept),
            "labels": list(self.labels),
            "source": self.source.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        values = cls._read(value, ["size_hw", "masks", "scores", "labels", "source"])
        size_hw = size("size_hw", values["size_hw"])
        masks = decode_rles("masks", values["masks"], size_hw)
        if values["scores"] is None:
            scores = masks.astype(np.float32)
        else:
            scores = unpack("scores", values["scores"], ("uint8", "float32"), max_bytes=4 * masks.size)
            scores = scores / np.float32(255) if scores.dtype == np.uint8 else scores
        return cls(masks, scores, values["labels"], Source.from_dict(values["source"]))


@dataclass(frozen=True, eq=False, repr=False)
class Matte(Result):
    """A subject cut from its picture: how opaque each pixel is, and its colour without the old background."""

    alpha: np.ndarray  # float32[H, W], 0-1
    foreground: np.ndarray  # uint8[H, W, 3], RGB, not multiplied by alpha
    source: Source = UNKNOWN

    def __post_init__(self) -> None:
        alpha = floats("alpha", self.alpha, ("H", "W"), low=0, high=1)
        size("alpha", alpha.shape)
        self._set(alpha=alpha, foreground=bytes_of("foreground", self.foreground, (*alpha.shape, 3)))

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.alpha.shape[0], self.alpha.shape[1]

    def __repr__(self) -> str:
        return f"Matte({self.size_hw[0]}x{self.size_hw[1]}, {float(self.alpha.mean()):.1%} opaque)"

    def rgba(self) -> Image.Image:
        """The subject on nothing: RGBA."""
        return Image.fromarray(np.dstack([self.foreground, np.round(self.alpha * 255).astype(np.uint8)]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the subject on nothing as an RGBA PNG; a reader of `path` never sees half of it."""
        with replacing(Path(path)) as partial:
            self.rgba().save(partial, format="PNG")

    def over(self, background: Any) -> Image.Image:
        """RGB on `background`: a colour (r, g, b), or a picture of the same size."""
        from mm.results.draw import backdrop

        behind = backdrop(background, self)
        mixed = np.empty_like(self.foreground)
        for top in range(0, len(mixed), _BAND):
            rows = slice(top, top + _BAND)
            alpha = self.alpha[rows, :, None]
            mixed[rows] = np.round(alpha * self.foreground[rows] + (1 - alpha) * behind[rows])
        return Image.fromarray(mixed)

    def plot(self, image: Any = None) -> Image.Image:
        """RGB on a checkerboard. The matte holds its own colours; `image` is only checked for its size."""
        from mm.results.draw import checkerboard, open_for

        if image is not None:
            open_for(image, self)
        return self.over(checkerboard(self.size_hw))

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`, both arrays exactly, as deflated bytes."""
        return {
            "type": self.type_name(),
            "alpha": pack(self.alpha),
            "foreground": pack(self.foreground),
            "source": self.source.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        values = cls._read(value, ["alpha", "foreground", "source"])
        most = 4 * DEFAULT_LIMITS.max_pixels
        alpha = unpack("alpha", values["alpha"], ("float32",), max_bytes=most)
        foreground = unpack("foreground", values["foreground"], ("uint8",), max_bytes=most)
        return cls(alpha, foreground, Source.from_dict(values["source"]))
