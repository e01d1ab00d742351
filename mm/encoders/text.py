"""From strings to token ids, by the rules of one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LETTERS_PER_TOKEN = 16  # no text tower reads more of a word than this, so the rest never reaches the tokenizer


@dataclass(frozen=True)
class TextRules:
    """tokenizer: a fast tokenizer of transformers. length: tokens, the two marks at the ends included."""

    tokenizer: Any
    length: int
    lower_case: bool

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor, tuple[bool, ...]]:
        """ids int64[K, L], mask bool[K, L], and which texts were cut. L is the longest of them, not `length`."""
        bos, eos, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        room = self.length - 2
        rows, cut = [], []
        for text in texts:
            short = text[: self.length * _LETTERS_PER_TOKEN]
            ids = self._plain_ids(short.lower() if self.lower_case else short)
            cut.append(len(ids) > room or len(short) < len(text))
            rows.append([bos, *ids[:room], eos])
        width = max(map(len, rows), default=2)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long).reshape(-1, width)
        lengths = torch.tensor([len(row) for row in rows]).reshape(-1, 1)
        return ids, torch.arange(width)[None] < lengths, tuple(cut)

    def _plain_ids(self, text: str) -> list[int]:
        """User text never becomes a special token: their spellings are read as ordinary letters."""
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return self.tokenizer(clean, add_special_tokens=False, split_special_tokens=True)["input_ids"]
