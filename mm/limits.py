"""How large an input may be. One frozen value that a caller replaces whole: `Limits(max_pixels=…)`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mm.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Upper bounds, all checked before the work they bound begins.

    Raises:
        InputError: a bound is negative, not a number, or zero where something must fit.
    """

    max_pixels: int = 50_000_000  # width x height of one picture, from its header
    max_side: int = 32_768  # the longer side of one picture, in pixels
    max_file_bytes: int = 256 * 1024 * 1024  # an encoded image as a file or as bytes
    max_icc_bytes: int = 4 * 1024 * 1024  # a larger colour profile is ignored, with a note
    max_fetch_bytes: int = 32 * 1024 * 1024  # what one URL may deliver, `data:` URLs included
    fetch_timeout_s: float = 20.0  # for the whole fetch: names, connections, redirects and body
    max_redirects: int = 5
    max_labels: int = 100_000  # labels in one call
    max_label_chars: int = 1_000  # one label
    max_prompt_chars: int = 20_000  # one prompt or question
    max_new_tokens: int = 4_096  # one answer of a language decoder

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "max_redirects" else 1e-9
            whole = isinstance(value, int) and not isinstance(value, bool)
            number = whole or (field.name == "fetch_timeout_s" and isinstance(value, float))
            if not number or not least <= value < float("inf"):
                raise InputError(f"Limits.{field.name}: expected a positive number, got {value!r}.")


DEFAULT_LIMITS = Limits()
