"""The rules for labels and prompts that a caller gives."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from mm.errors import ResourceLimitError, TextInputError
from mm.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class Labels:
    """given: as the caller spelt them, in the caller's order. unique: what is asked of the model, each once.
    index: for each given label, its place in `unique`."""

    given: tuple[str, ...]
    unique: tuple[str, ...]
    index: tuple[int, ...]


def check_labels(labels: str | Iterable[str], limits: Limits = DEFAULT_LIMITS) -> Labels:
    """One string is one label, commas and all.

    Raises:
        TextInputError: no label, or one that is blank, without a letter or digit, too long, or not a string.
        ResourceLimitError: more labels than `limits.max_labels`.
    """
    if labels is None:
        raise TextInputError("labels: expected a label or a list of labels, got None")
    given = (labels,) if isinstance(labels, str) else tuple(labels)
    if not given:
        raise TextInputError("labels: expected at least one label, got none")
    if len(given) > limits.max_labels:
        raise ResourceLimitError(f"labels: {len(given):,} given, at most {limits.max_labels:,} allowed")
    asked = [check_text(label, f"label {i + 1}", limits.max_label_chars) for i, label in enumerate(given)]
    unique = tuple(dict.fromkeys(asked))
    place = {text: i for i, text in enumerate(unique)}
    return Labels(given, unique, tuple(place[text] for text in asked))


def check_text(text: object, name: str, max_chars: int) -> str:
    """The text with its outer and doubled spaces removed.

    Raises:
        TextInputError: not a string, longer than `max_chars`, or with nothing to read in it.
    """
    if not isinstance(text, str):
        raise TextInputError(f"{name}: expected a string, got {type(text).__name__}")
    if len(text) > max_chars:
        raise TextInputError(f"{name}: {len(text):,} characters, at most {max_chars:,} allowed")
    if not any(unicodedata.category(c)[0] in "LNS" for c in text):
        raise TextInputError(f"{name}: {ascii(text[:40])} has no letter, digit or symbol to look for")
    return " ".join(text.split())
