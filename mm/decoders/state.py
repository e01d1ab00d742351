"""Decoders with a recurrent state, alone or beside attention: Mamba, Mamba-2, Falcon-Mamba, RWKV, Jamba and their like."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mm.decoders.base import Decoder
from mm.kernels.states import StateCache, StatePrefix

# Given a state and several tokens, these go on from the state. The scan of the others begins anew without a word.
_CHUNKS = ("mamba2", "rwkv")
# How a model's forward names what it carries over; the first that it knows.
_CARRIERS = ("cache_params", "state", "past_key_values")


class StateDecoder(Decoder):
    """A state holds all tokens at once: rows go on only together, and forgetting means reading again."""

    def start(self, batch: int, capacity: int) -> StateCache:
        return StateCache(batch, capacity)

    @torch.inference_mode()
    def fork(self, prefixes: Sequence[StatePrefix], capacity: int) -> StateCache:
        base = prefixes[0] if len(prefixes) == 1 else StatePrefix.stack(prefixes)
        return StateCache(base.batch, capacity, base)

    @torch.inference_mode()
    def crop(self, cache: StateCache, count: int) -> None:
        """Goes back to where the cache began, or was last marked, and reads again what remains."""
        fed = cache.restart()
        known = sum(part.shape[1] for part in fed)
        if not 0 <= count <= known:
            raise ValueError(f"expected to forget 0 to {known} tokens since the last mark, got {count}")
        if count < known:
            self._read(torch.cat(fed, 1)[:, : known - count], cache, None, 1)

    def _read(self, embeds: Tensor, cache: StateCache, lengths: Sequence[int] | None, keep: int) -> Tensor:
        if lengths is not None and any(own < embeds.shape[1] for own in lengths):
            raise ValueError(f"expected {embeds.shape[1]} tokens for every row of a recurrent state, got {lengths}")
        whole = cache.state is None or self.lm.config.model_type in _CHUNKS
        parts = [embeds] if whole else list(embeds.split(1, 1))
        logits = [self._forward(part, cache, keep if whole else 1) for part in parts]
        cache.fed.append(embeds)
        cache.length += embeds.shape[1]
        return torch.cat(logits[-keep:], 1)

    def _forward(self, embeds: Tensor, cache: StateCache, keep: int) -> Tensor:
        if cache.state is None and self._carrier != "state":
            from transformers import DynamicCache

            cache.state = DynamicCache(config=self.lm.config.get_text_config())
        out = self.lm(inputs_embeds=embeds, use_cache=True, logits_to_keep=keep, **{self._carrier: cache.state})
        cache.state = out[self._carrier]
        return out.logits[:, -keep:]

    @cached_property
    def _carrier(self) -> str:
        known = inspect.signature(self.lm.forward).parameters
        return next(name for name in _CARRIERS if name in known)
