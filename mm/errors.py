"""The errors that `mm` raises on purpose: one small family under `MMError`.

A message names the item, says what was expected and what came, and gives the nearest valid name.
Whoever wants to carry on after a bad image or a bad label catches `InputError`, which is a `ValueError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MMError(Exception):
    """Anything that `mm` itself refuses or cannot do."""


class InputError(MMError, ValueError):
    """What the caller gave is not usable; another item of the same batch may well be."""


class ImageInputError(InputError):
    """An image cannot be read, or has no single meaning as a picture."""


class TextInputError(InputError):
    """A label, prompt or question is empty, too long, or not a string."""


class ResourceLimitError(InputError):
    """The item is larger, or would cost more, than the limits in force allow (see `mm.limits.Limits`)."""


class CheckpointError(MMError, ValueError):
    """Weights or configuration are damaged, do not fit together, or come in a form that is never loaded."""


class MissingExtraError(MMError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: ' Did you mean "x"?' for the closest of `known`, or '' where none is close."""
    by_folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.6)
    return f' Did you mean "{by_folded[close[0]]}"?' if close else ""
