"""The walk through a data set: one picture after the other, a bad one costs only itself, the worst are remembered."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from mm.errors import ImageInputError, InputError, MMError, ResourceLimitError
from mm.images import Picture
from mm.types import ErrorRecord

_OF_ONE_PICTURE = (ImageInputError, ResourceLimitError, OSError)


@dataclass(frozen=True)
class Mark:
    """How one picture, or one label of it, came out. badness: larger is worse, and comparable within a run."""

    badness: float
    figures: dict[str, float]
    label: str | None = None


class Trial(Protocol):
    """A model before a data set, for one task."""

    @property
    def keys(self) -> Sequence[Any]:
        """The pictures of the data set, in order."""
        ...

    def name(self, key: Any) -> str: ...

    def read(self, key: Any) -> tuple[Picture, Any]:
        """A picture and its truth. Raises an `MMError` where either cannot be read."""
        ...

    def score(self, picture: Picture, truth: Any) -> list[Mark]:
        """Asks the model, and takes the answer into `figures`."""
        ...

    def drawn(self, picture: Picture, truth: Any, label: str | None) -> Image.Image:
        """What is true beside what the model says."""
        ...

    def figures(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Case:
    """One of the worst. drawing: asks the model once more, so that no picture has to be kept until the end."""

    name: str
    mark: Mark
    drawing: Callable[[], Image.Image]


@dataclass(frozen=True)
class Walk:
    """pictures: how many were asked. failed: those that could not be. worst: the worst first."""

    pictures: int
    failed: tuple[ErrorRecord, ...]
    worst: tuple[Case, ...]


def walk(trial: Trial, *, limit: int | None = None, worst: int = 0, progress: bool = False) -> Walk:
    """Scores the first `limit` pictures of a trial, whose `figures` then hold.

    Raises:
        InputError: `limit` or `worst` is no such number, or what every picture of the request would meet.
    """
    for field, value, least in (("limit", limit, 1), ("worst", worst, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(f"{field}: expected a whole number from {least}, got {value!r}")
    failed: list[ErrorRecord] = []
    marks: list[tuple[Any, Mark]] = []
    keys = trial.keys[:limit]
    for key in tqdm(keys, disable=not progress, leave=False, unit="picture", file=sys.stderr):
        found = _scored(trial, key)
        if isinstance(found, ErrorRecord):
            failed.append(found)
        else:
            marks += [(key, mark) for mark in found]
    marks.sort(key=lambda each: -each[1].badness)  # stable: among equals the first of the data set
    cases = tuple(Case(trial.name(key), mark, _drawing(trial, key, mark)) for key, mark in marks[:worst])
    return Walk(len(keys) - len(failed), tuple(failed), cases)


def _scored(trial: Trial, key: Any) -> list[Mark] | ErrorRecord:
    try:
        picture, truth = trial.read(key)
    except (MMError, OSError) as error:
        return ErrorRecord.of(error, name=trial.name(key), stage="read")
    try:
        return trial.score(picture, truth)
    except _OF_ONE_PICTURE as error:
        return ErrorRecord.of(error, name=trial.name(key), stage="run")


def _drawing(trial: Trial, key: Any, mark: Mark) -> Callable[[], Image.Image]:
    return lambda: trial.drawn(*trial.read(key), mark.label)
