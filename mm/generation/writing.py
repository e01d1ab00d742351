"""An answer's text as it grows: whole characters only, and never a piece of a string that ends it."""

from __future__ import annotations

from collections.abc import Sequence

from mm.decoders.base import Decoder

_BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are no character, or not yet


class Writing:
    """Turns token numbers into text, piece by piece. The pieces joined are `text`.

    A tokenizer may join, strip or repair at the seams of what it decodes, so each new piece is decoded with the one
    before it, and what that one gave is taken off. stops: the text ends before the first of them.
    """

    def __init__(self, decoder: Decoder, stops: Sequence[str] = ()) -> None:
        self._decoder, self._stops = decoder, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._anchor = self._done = 0  # ids[anchor:done] gave the last whole piece
        self._whole = ""
        self.text = ""  # what was given out
        self.stopped = False

    def add(self, ids: Sequence[int], last: bool = False) -> str:
        """The next tokens; what they add to the text. `last` gives out whatever was held back."""
        self._ids += ids
        if self.stopped or not (ids or last):
            return ""
        before = self._decoder.text(self._ids[self._anchor : self._done])
        after = self._decoder.text(self._ids[self._anchor :])
        if last or not after.endswith(_BROKEN):
            self._whole += after[len(before) :]
            self._anchor, self._done = self._done, len(self._ids)
        return self._give(last)

    def _give(self, last: bool) -> str:
        given = len(self.text)
        ends = [at for stop in self._stops if (at := self._whole.find(stop, given)) >= 0]
        self.stopped = bool(ends)
        stop = min(ends) if ends else len(self._whole) if last else len(self._whole) - self._held()
        self.text = self._whole[:stop]
        return self.text[given:]

    def _held(self) -> int:
        """How much of the end may yet become a stop string."""
        sizes = [n for stop in self._stops for n in range(1, len(stop)) if self._whole.endswith(stop[:n])]
        return max(sizes, default=0)


def whole_text(decoder: Decoder, ids: Sequence[int]) -> str:
    """The text of a finished answer, the same that it gives piece by piece."""
    text = decoder.text(list(ids))
    if _BROKEN not in text:
        return text
    writing = Writing(decoder)
    for token in ids:
        writing.add([token])
    writing.add([], last=True)
    return writing.text
