"""What all language decoders share: their text side, and the caches that generation walks on."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mm.errors import ResourceLimitError
from mm.kernels.row import NotCompiled

_CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "n_positions", "context_length")


def context_of(config: Any) -> int:
    """How many tokens a language model of this transformers config reads at most; a recurrent state has no bound."""
    config = config.get_text_config()
    return next((int(n) for name in _CONTEXT_NAMES if (n := getattr(config, name, None))), sys.maxsize)


@dataclass(frozen=True, eq=False)
class Unread:
    """What a decoder is yet to read behind a prefix: embeds float[1, T, D], pictures and the words between them.

    A single answer reads it in one forward with its prompt, which costs least; and bfloat16 then rounds as it does in
    transformers, which reads all at once.
    """

    embeds: Tensor
    prefix: Any = None
    batch = 1

    @property
    def length(self) -> int:
        """How many tokens there are, those of the prefix included."""
        return self.embeds.shape[1] + (self.prefix.length if self.prefix is not None else 0)


class Decoder(nn.Module, ABC):
    """lm: an AutoModelForCausalLM; tokenizer: its own.

    A *prefix* is a value, what some rows have read, and is never written to: many answers may start from one, in
    several threads. A *cache* is where one answer, or one batch of answers, goes on.
    """

    def __init__(self, lm: Any, tokenizer: Any) -> None:
        super().__init__()
        self.lm, self.tokenizer = lm, tokenizer

    @property
    def ragged(self) -> bool:
        """Whether the rows of one cache may differ in length."""
        return False

    @cached_property
    def context(self) -> int:
        """How many tokens fit, pictures included."""
        return context_of(self.lm.config)

    @cached_property
    def table(self) -> Any:
        """The language model's token embeddings; to find them takes longer than to use them."""
        return self.lm.get_input_embeddings()

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        settings = getattr(self.lm, "generation_config", None)
        own = getattr(settings, "eos_token_id", None)
        every = [self.tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])]
        return frozenset(int(end) for end in every if end is not None)

    def embed(self, ids: Tensor) -> Tensor:
        """int64[B, T] -> float[B, T, D]."""
        return self.table(ids.to(self.table.weight.device))

    @abstractmethod
    def start(self, batch: int, capacity: int) -> Any:
        """An empty cache for `capacity` tokens in each of `batch` rows."""

    @abstractmethod
    def fork(self, prefixes: Sequence[Any], capacity: int) -> Any:
        """A cache whose rows begin as those prefixes, in their order. Without `ragged` they are of equal length."""

    @abstractmethod
    def crop(self, cache: Any, count: int) -> None:
        """Makes a cache forget the last `count` tokens of every row."""

    @torch.inference_mode()
    def extend(
        self, embeds: Tensor, past: Any = None, *, lengths: Sequence[int] | None = None, keep: int | None = None
    ) -> tuple[Tensor, Any]:
        """Reads embeds float[B, T, D] after `past`.

        past: a prefix, which is left as it was while a longer one is returned; or a cache, which is written to and
            returned itself.
        lengths: how many tokens, at the end of its T, each row really has.
        keep: how many of the last tokens to give logits for, instead of the last one alone.

        Returns:
            float32[B, V], or float32[B, keep, V]; and the prefix or cache.

        Raises:
            ResourceLimitError: the cache is full.
        """
        if lengths is not None and not self.ragged and any(own < embeds.shape[1] for own in lengths):
            raise ValueError(f"expected {embeds.shape[1]} tokens for every row, got {list(lengths)}")
        fresh = not hasattr(past, "capacity")
        cache = past
        if fresh:
            capacity = (past.length if past is not None else 0) + embeds.shape[1]
            cache = self.start(len(embeds), capacity) if past is None else self.fork([past], capacity)
        self._check_room(cache, embeds.shape[1])
        logits = self._read(embeds.to(self.table.weight.dtype), cache, lengths, keep or 1).float()
        return logits if keep else logits[:, -1], cache.prefix() if fresh else cache

    def settled(self, prefix: Any) -> Any:
        """The prefix with what was unread of it read."""
        return self.extend(prefix.embeds, prefix.prefix)[1] if isinstance(prefix, Unread) else prefix

    def compile_rows(self) -> None:
        """Single tokens go through compiled routines from now on, see `mm.kernels.row`.

        Raises:
            NotCompiled: why they do not.
        """
        raise NotCompiled(f"a decoder of kind {self.lm.config.model_type} goes through its own modules")

    @property
    def compiled(self) -> bool:
        return False

    @abstractmethod
    def _read(self, embeds: Tensor, cache: Any, lengths: Sequence[int] | None, keep: int) -> Tensor:
        """The logits of the last `keep` tokens; the cache holds all of them afterwards."""

    def _check_room(self, cache: Any, count: int) -> None:
        holes = getattr(cache, "filled", None) is not None  # then slots are more than any row's tokens
        room = cache.capacity if holes else min(cache.capacity, self.context)
        if cache.length + count > room:
            raise ResourceLimitError(
                f"the decoder has read {cache.length} tokens and should read {count} more, but there is room for {room}"
            )

    def prompt_ids(self, prompt: str) -> list[int]:
        """`<s> prompt newline`; whatever a user wrote stays ordinary text."""
        words = self.tokenizer(prompt.lower(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [self.tokenizer.bos_token_id, *words, self.newline]

    @property
    def newline(self) -> int:
        return self.tokenizer.convert_tokens_to_ids("<0x0A>")

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
