"""From strings to token ids, by the rules of one checkpoint."""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Canonical = Literal["as is", "lower", "letters", "mended", "mended lower", "mended letters"]

_LETTERS_PER_TOKEN = 16  # tokens are shorter than this as a rule; where they are not, more is read
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NESTED_AMPERSAND = re.compile(r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);){2,}")


@dataclass(frozen=True)
class TextSpec:
    """What a checkpoint decides about its texts; nothing here has a default on purpose.

    length: tokens, the marks at the ends included. canonical: see `canonical_form`. fill: every text is padded to
    `length`, because the tower pools the last place (SigLIP); otherwise to the longest of a batch.
    begin, end: ids around every text. pad: the id behind the end.
    """

    length: int
    canonical: Canonical
    fill: bool
    begin: tuple[int, ...]
    end: tuple[int, ...]
    pad: int


def canonical_form(text: str, form: Canonical) -> str:
    """The text as the tower saw texts in training.

    `lower`: lower case. `letters`: also without ASCII punctuation, an underscore as a space and runs of white space
    as one space, which is how SigLIP and SigLIP 2 were trained (Zhai et al. 2023; big_vision's evaluators).
    `mended…`: wrongly decoded and HTML-escaped letters are put right before, as open_clip does it.
    """
    if form.startswith("mended"):
        text = _mended(text)
    if form in ("as is", "mended"):
        return text
    if form in ("lower", "mended lower"):
        return text.lower()
    plain = text.replace("_", " ").translate(_PUNCTUATION).lower()
    return re.sub(r"\s+", " ", plain).strip()


def _mended(text: str) -> str:
    """Through ftfy, out of HTML, and runs of white space as one space."""
    import ftfy

    if "<" not in text:  # then ftfy unescapes level by level to the last, each time over the whole text
        text = _NESTED_AMPERSAND.sub("&amp;", text)
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@dataclass(frozen=True)
class TextRules:
    """tokenizer: whatever the checkpoint came with. plain_ids: one text in, its ids without any mark out; user text
    never becomes a special token there."""

    tokenizer: Any
    spec: TextSpec
    plain_ids: Callable[[str], list[int]]

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor, tuple[bool, ...]]:
        """ids int64[K, L], mask bool[K, L] (the marks are real tokens), and which texts were cut."""
        spec = self.spec
        room = spec.length - len(spec.begin) - len(spec.end)
        rows, cut = [], []
        for text in texts:
            ids = self._enough_ids(text, room + 1)
            cut.append(len(ids) > room)
            rows.append([*spec.begin, *ids[:room], *spec.end])
        width = spec.length if spec.fill else max(map(len, rows), default=len(spec.begin) + len(spec.end))
        ids = torch.tensor([row + [spec.pad] * (width - len(row)) for row in rows], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows]).reshape(-1, 1)
        return ids.reshape(-1, width), torch.arange(width)[None] < lengths, tuple(cut)

    def _enough_ids(self, text: str, enough: int) -> list[int]:
        """The ids of the text's beginning, at least `enough` or all: byte-pair encoding of a long word is slow."""
        letters = enough * _LETTERS_PER_TOKEN
        while True:
            clean = self.canonical(_beginning(text, letters)).encode("utf-8", "replace").decode("utf-8")
            ids = self.plain_ids(clean)
            if len(ids) >= enough or letters >= len(text):
                return ids
            letters *= 2

    def canonical(self, text: str) -> str:
        return canonical_form(text, self.spec.canonical)


def _beginning(text: str, letters: int) -> str:
    """At most so many letters, ending with a whole word unless that one is as long as half of them."""
    if letters >= len(text):
        return text
    space = text.rfind(" ", letters // 2, letters)
    return text[: space if space > 0 else letters]


def fast_rules(tokenizer: Any, spec: TextSpec) -> TextRules:
    """Rules over a fast tokenizer of transformers, which reads the spellings of special tokens as letters here.

    Where a vocabulary of whole pieces spells one nevertheless (SentencePiece's `</s>`), it is left out.
    """
    marks = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def plain_ids(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [i for i in ids if i not in marks]

    return TextRules(tokenizer, spec, plain_ids)
