"""Decoders of the attention kind: any causal language model of transformers whose layers keep keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mm.decoders.base import Decoder
from mm.decoders.layout import fits
from mm.decoders.lean import LeanLlama
from mm.kernels.cache import KVCache, KVPrefix


class CausalDecoder(Decoder):
    """Layers of the plain Llama layout are computed here, the others by the model's own modules."""

    @cached_property
    def lean(self) -> LeanLlama | None:
        """The layers as functions over the model's own weights, where its layout is one that is known."""
        return LeanLlama(self.lm) if fits(self.lm) else None

    def compile_rows(self) -> None:
        if self.lean is None:
            super().compile_rows()
        else:
            self.lean.compile()

    @property
    def compiled(self) -> bool:
        return self.lean is not None and self.lean.compiled

    @property
    def ragged(self) -> bool:
        """A sliding window counts slots, so a row with holes would see too few of its own tokens."""
        return getattr(self.lm.config.get_text_config(), "sliding_window", None) is None or self.lean is not None

    def start(self, batch: int, capacity: int) -> KVCache:
        return KVCache(batch, capacity)

    @torch.inference_mode()
    def fork(self, prefixes: Sequence[KVPrefix], capacity: int) -> KVCache:
        return KVCache.fork(prefixes, capacity)

    def crop(self, cache: KVCache, count: int) -> None:
        cache.crop(count)

    def _read(self, embeds: Tensor, cache: KVCache, lengths: Sequence[int] | None, keep: int) -> Tensor:
        count = embeds.shape[1]
        cache.begin(count, lengths, embeds.device)
        logits = self.lean(embeds, cache, keep) if self.lean else self._through_the_module(embeds, cache, keep)
        cache.end(count)
        return logits

    def _through_the_module(self, embeds: Tensor, cache: KVCache, keep: int) -> Tensor:
        from mm.decoders.slots import slot_cache

        count, device = embeds.shape[1], embeds.device
        wanted: dict[str, Any] = {"logits_to_keep": keep, "position_ids": cache.positions(count, device)}
        known = {name: value for name, value in wanted.items() if name in self._parameters_of_forward}
        mask = None if cache.filled is None else cache.filled[:, : cache.length + count].long()
        past = slot_cache(cache, self.lm.config.get_text_config().num_hidden_layers)
        out = self.lm(inputs_embeds=embeds, attention_mask=mask, past_key_values=past, use_cache=True, **known)
        return out.logits[:, -keep:]

    @cached_property
    def _parameters_of_forward(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.lm.forward).parameters)


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row, int64[B]."""
    return torch.argmax(logits, dim=-1)
