"""What a field of a result may hold: the checks that all of `mm.types` shares.

Every check returns a value of the result's own (arrays are copied and made read-only) or raises an
`InputError` that names the field, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from mm.errors import InputError

# Interpolated or averaged probabilities may leave [0, 1] by rounding; this much is clipped in silence.
_ROUNDING = 1e-4

_HUGE = float(np.finfo(np.float32).max)

Shape = tuple[int | str, ...]


def wrong(field: str, expected: str, got: str) -> NoReturn:
    raise InputError(f"{field}: expected {expected}, got {got}.")


def floats(field: str, value: Any, shape: Shape, *, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """`value` as read-only float32 of `shape` (a letter stands for any length), finite, in [low, high].

    An empty list stands for an empty array of any shape that may be empty; float16, float64 and integers
    become float32.
    """
    expected = f"float32{_spelled(shape)}"
    array = _shaped(field, value, shape, expected)
    if array.dtype.kind not in "fiu":
        wrong(field, expected, f"{array.dtype}{list(array.shape)}")
    with np.errstate(over="ignore"):
        array = _frozen(array, np.dtype(np.float32))
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        wrong(field, "finite numbers", f"{array[tuple(place)]} at {place}")
    if array.size and (array.min() < low or array.max() > high):
        worst = float(array.min() if array.min() < low else array.max())
        if not low - _ROUNDING <= worst <= high + _ROUNDING:
            wrong(field, f"numbers from {low:g} to {high:g}", f"{worst:g}")
        array = _frozen(np.clip(array, low, high), np.dtype(np.float32))
    return array


def bools(field: str, value: Any, shape: Shape) -> np.ndarray:
    """`value` as read-only bool of `shape`. Integers pass where they are 0 or 1; probabilities do not."""
    expected = f"bool{_spelled(shape)}"
    array = _shaped(field, value, shape, expected)
    if array.dtype.kind in "iu" and np.isin(array, (0, 1)).all():
        array = array.astype(bool)
    if array.dtype != bool and array.size:
        hint = " (compare the probabilities with a threshold first)" if array.dtype.kind == "f" else ""
        wrong(field, expected + hint, f"{array.dtype}{list(array.shape)}")
    return _frozen(array, np.dtype(bool))


def bytes_of(field: str, value: Any, shape: Shape) -> np.ndarray:
    """`value` as read-only uint8 of `shape`; no other type is converted."""
    expected = f"uint8{_spelled(shape)}"
    array = _shaped(field, value, shape, expected)
    if array.dtype != np.uint8:
        wrong(field, expected, f"{array.dtype}{list(array.shape)}")
    return _frozen(array, np.dtype(np.uint8))


def _shaped(field: str, value: Any, shape: Shape, expected: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{field}: expected {expected}, got {type(value).__name__} ({error}).") from error
    if array.shape == (0,) and isinstance(shape[0], str):
        array = array.reshape([0 if isinstance(side, str) else side for side in shape])
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wrong(field, expected, f"{array.dtype}{list(array.shape)}")
    return array


def _frozen(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    flags = array.flags
    if array.dtype == dtype and flags.owndata and flags.c_contiguous and not flags.writeable:
        return array
    array = np.array(array, dtype=dtype, order="C")
    array.flags.writeable = False
    return array


def _spelled(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def same_length(field: str, count: int, other: str, expected: int) -> None:
    if count != expected:
        wrong(field, f"{expected}, one for each of {other}", str(count))


def text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        wrong(field, "a string", type(value).__name__)
    return value


def texts(field: str, value: Any) -> tuple[str, ...]:
    """`value` as a tuple of strings. A single string is refused rather than split into its characters."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        wrong(field, "a sequence of strings", f"{type(value).__name__} {value!r:.80}")
    strings = tuple(str(each) if isinstance(each, np.str_) else each for each in value)
    for place, each in enumerate(strings):
        if not isinstance(each, str):
            wrong(f"{field}[{place}]", "a string", type(each).__name__)
    return strings


def whole(field: str, value: Any, *, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value < 2**53:
        wrong(field, f"a whole number of at least {least}", repr(value)[:80])
    return int(value)


def size(field: str, value: Any) -> tuple[int, int]:
    """`value` as (height, width) in pixels, both at least 1."""
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
        wrong(field, "(height, width)", repr(value))
    return whole(f"{field}[0]", value[0], least=1), whole(f"{field}[1]", value[1], least=1)


def dictionaries(field: str, value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        wrong(field, "a list", type(value).__name__)
    for place, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            wrong(f"{field}[{place}]", "a dictionary", type(entry).__name__)
    return list(value)


def entry_of(field: str, dictionary: Any, key: str) -> Any:
    """`dictionary[key]`, where `dictionary` need not be one."""
    if not isinstance(dictionary, Mapping):
        wrong(field, f'a dictionary with "{key}"', type(dictionary).__name__)
    if key not in dictionary:
        wrong(field, f'a dictionary with "{key}"', f"only {', '.join(map(str, dictionary)) or 'an empty one'}")
    return dictionary[key]


def by_id(field: str, value: Any) -> dict[int, Mapping[str, Any]]:
    """The objects of a list by their `id`, each id once."""
    entries: dict[int, Mapping[str, Any]] = {}
    for place, entry in enumerate(dictionaries(field, value)):
        number = whole(f"{field}[{place}].id", entry_of(f"{field}[{place}]", entry, "id"))
        if number in entries:
            wrong(f"{field}[{place}].id", "an id of its own", f"{number} a second time")
        entries[number] = entry
    return entries


def finite(field: str, value: Any, low: float = -_HUGE, high: float = _HUGE) -> float:
    """`value` as a float from `low` to `high`; strings and booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        wrong(field, "a number", f"{type(value).__name__} {value!r:.80}")
    if not low <= value <= high:  # False for NaN, too.
        limits = "a finite number" if (low, high) == (-_HUGE, _HUGE) else f"a number from {low:g} to {high:g}"
        wrong(field, limits, repr(value)[:80])
    return float(value)
