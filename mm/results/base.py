"""What every result is made from: its `Source`, equality, pickling, JSON, picking among entries."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Self

import numpy as np

from mm.errors import InputError
from mm.results.fields import text, texts, whole, wrong
from mm.results.packing import record


@dataclass(frozen=True)
class Source:
    """What produced a result. An empty string says that it is not known."""

    model: str = ""
    revision: str = ""
    sha256: str = ""
    preprocessing: str | Mapping[str, Any] = field(default="", hash=False)
    kernel: str = ""
    dtype: str = ""
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    licence: str = ""  # the strictest among the parts
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("model", "revision", "sha256", "kernel", "dtype", "device", "licence"):
            text(f"source.{name}", getattr(self, name))
        if not isinstance(self.versions, Mapping):
            wrong("source.versions", "a dictionary", type(self.versions).__name__)
        for name, version in self.versions.items():
            text(f"source.versions[{name!r}]", version)
        if isinstance(self.preprocessing, Mapping):
            try:  # Through JSON, so that what is kept is what a reader of the result gets.
                object.__setattr__(self, "preprocessing", json.loads(json.dumps(dict(self.preprocessing))))
            except (TypeError, ValueError) as error:
                raise InputError(f"source.preprocessing: not writable as JSON ({error}).") from error
        else:
            text("source.preprocessing", self.preprocessing)
        object.__setattr__(self, "versions", dict(self.versions))
        object.__setattr__(self, "warnings", texts("source.warnings", self.warnings))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        return cls(**record("source", value, [each.name for each in fields(cls)]))


UNKNOWN = Source()
Colors = Mapping[str, tuple[int, int, int]]  # RGB, 0-255, by label


class Result:
    """What all results share: equality by content, pickling through their checks, and JSON."""

    __slots__ = ()

    @classmethod
    def type_name(cls) -> str:
        """The value of "type" in `to_dict`."""
        return cls.__name__.lower()

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain Python values, with "type" first."""
        return {"type": self.type_name()} | {name: _plain(value) for name, value in self._values().items()}

    def to_json(self) -> str:
        """One line of ASCII: control characters and lone surrogates are escaped."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """The result that `to_dict` wrote.

        Raises:
            InputError: a key is missing or unknown, or a value does not pass the checks of the result.
        """
        values = cls._read(value, [each.name for each in fields(cls)])  # pyright: ignore[reportArgumentType]
        if "source" in values:
            values["source"] = Source.from_dict(values["source"])
        return cls(**values)

    @classmethod
    def _read(cls, value: Any, names: list[str]) -> dict[str, Any]:
        values = record(cls.type_name(), value, ["type", *names])
        if values.pop("type") != cls.type_name():
            wrong("type", repr(cls.type_name()), repr(value["type"]))
        return values

    def _values(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # pyright: ignore[reportArgumentType]

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not isinstance(source := getattr(self, "source", UNKNOWN), Source):
            wrong("source", "a mm.types.Source", type(source).__name__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = zip(self._values().values(), other._values().values(), strict=True)
        return all(
            np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs for mine, theirs in pairs
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self._values().values())


def _plain(value: Any) -> Any:
    if isinstance(value, Source):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.ndarray):
        return value.tolist()  # A float32 is a Python float exactly.
    return list(value) if isinstance(value, tuple) else value


class Listed(Result):
    """A result with one entry per label in each of the fields `_entries`."""

    __slots__ = ()
    _entries: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def _take(self, indices: Any) -> Self:
        values = self._values()
        for name in self._entries:
            values[name] = values[name][indices]
        values["labels"] = tuple(self.labels[index] for index in indices)
        return type(self)(**values)

    def _select(self, key: Any) -> Self:
        """By a slice, by bool[n], or by a list of places, as NumPy would."""
        if isinstance(key, slice):
            return self._take(np.arange(len(self))[key])
        places = np.asarray(key)
        if places.dtype == bool or places.size == 0:
            if places.size and places.shape != (len(self),):
                wrong("selection", f"bool[{len(self)}]", f"bool{list(places.shape)}")
            return self._take(np.flatnonzero(places))
        if places.ndim != 1 or places.dtype.kind not in "iu":
            wrong("selection", "an index, a slice, bool[n] or a list of indices", repr(key)[:80])
        return self._take(np.arange(len(self))[places])

    def _filter(self, scores: np.ndarray, score: float | None, label: str | Collection[str] | None) -> Self:
        keep = np.ones(len(self), bool)
        if score is not None:
            keep &= scores >= np.float32(score)
        if label is not None:
            wanted = {label} if isinstance(label, str) else set(label)
            keep &= np.array([each in wanted for each in self.labels], bool)
        return self._take(np.flatnonzero(keep))

    def _top(self, scores: np.ndarray, k: int) -> Self:
        return self._take(np.argsort(-scores, kind="stable")[: whole("k", k)])
