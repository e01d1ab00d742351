"""Text in pictures: which characters are shown, in which font, broken into which lines.

`mm/results/fonts/DejaVuSans.ttf` is DejaVu Sans 2.35 cut down with fontTools to Latin, Greek, Cyrillic, Hebrew,
Arabic, punctuation, arrows and a few signs. A character that the font in use lacks, or that would hide,
reorder or break text, is shown as its escape, never as an empty box.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from PIL import ImageFont

from mm.errors import InputError

FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"

_HIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Of category Cf, but needed to spell Persian and the languages of India.
_UNASSIGNED = "\U0010fffe"  # No font has a glyph for it.


def visible(text: str) -> str:
    r"""`text` with control and format characters, direction overrides, line breaks and lone surrogates as
    Python escapes: a newline becomes the two characters ``\n``, an override ``\u202e``."""
    return "".join(_escaped(char) if _hides(char) else char for char in text)


def _hides(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN and char not in _JOINERS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class Lettering:
    """One font at one size in pixels.

    Raises:
        InputError: `path` is not a font that can be opened.
    """

    def __init__(self, pixels: int, path: str | PathLike[str] | None = None) -> None:
        self._path = str(FONT) if path is None else fspath(path)
        self.font = _font(self._path, pixels)
        ascent, descent = self.font.getmetrics()
        self.line_height = ascent + descent

    def shown(self, text: str) -> str:
        """`text` as it can be drawn: `visible`, and escapes for what the font lacks."""
        return "".join(char if _has_glyph(self._path, char) else _escaped(char) for char in visible(text))

    def width(self, text: str) -> int:
        return int(self.font.getlength(text) + 0.999)

    def shortened(self, text: str, width: int) -> str:
        """`text`, or as much of its beginning as fits into `width` pixels with an ellipsis."""
        if self.width(text) <= width:
            return text
        return text[: self._fitting(text, width - self.width("…"))].rstrip() + "…"

    def wrapped(self, text: str, width: int, *, most: int) -> list[str]:
        r"""Lines of at most `width` pixels, broken at spaces, and inside a word only where it fills a line.

        A line also ends after each newline, which is shown as ``\n``. After `most` lines comes an ellipsis.
        """
        lines: list[str] = []
        for paragraph in re.split(r"(?<=\n)", text):
            lines += self._lines(self.shown(paragraph), width, most + 1 - len(lines))
            if len(lines) > most:
                return [*lines[:most], "…"]
        return lines

    def _lines(self, text: str, width: int, most: int) -> list[str]:
        lines, line = [], ""
        words = text.split(" ")
        while words and len(lines) < most:
            word = words.pop(0)
            longer = f"{line} {word}" if line else word
            if self.width(longer) <= width:
                line = longer
            elif line:
                lines.append(line)
                line = ""
                words.insert(0, word)
            else:
                cut = max(self._fitting(word, width), 1)
                lines.append(word[:cut])
                words[:0] = [word[cut:]] if word[cut:] else []
        return [*lines, line] if line or not lines else lines

    def _fitting(self, text: str, width: int) -> int:
        """How many characters of the beginning fit; a letter and its accents stay together."""
        low, high = 0, min(len(text), max(width, 0) + 1)  # Hardly a letter is narrower than a pixel.
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(text[:middle]) <= width else (low, middle - 1)
        while 0 < low < len(text) and unicodedata.combining(text[low]):
            low -= 1
        return low


@lru_cache(maxsize=32)
def _font(path: str, pixels: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, pixels)
    except OSError as error:
        raise InputError(f"font: expected a TrueType or OpenType file, got {path!r} ({error}).") from error


@lru_cache(maxsize=4096)
def _has_glyph(path: str, char: str) -> bool:
    """Whether the font draws something else for `char` than for a character that no font has."""
    font = _font(path, 32)
    drawn, missing = font.getmask(char), font.getmask(_UNASSIGNED)
    return (drawn.size, np.asarray(drawn).tobytes()) != (missing.size, np.asarray(missing).tobytes())
