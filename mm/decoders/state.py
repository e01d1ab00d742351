"""Decoders with a recurrent state, alone or beside attention: Mamba, Mamba-2, Falcon-Mamba, RWKV, Jamba, their like."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mm.decoders.base import Decoder
from mm.kernels.states import StateCache, StatePrefix, merge

# Given a state and several tokens, these go on from the state. The scan of the others begins anew without a word.
_CHUNKS = ("mamba2", "rwkv")
# With one token and several rows, these mix the rows up.
_ROWS_APART = ("rwkv",)
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
        kind = self.lm.config.model_type
        whole = cache.state is None or kind in _CHUNKS
        parts = [embeds] if whole else list(embeds.split(1, 1))
        apart = kind in _ROWS_APART and len(embeds) > 1 and embeds.shape[1] == 1
        step = self._row_by_row if apart else self._forward
        logits = []
        for part in parts:
            made, cache.state = step(part, cache.state, keep if whole else 1)
            logits.append(made)
        cache.fed.append(embeds)
        cache.length += embeds.shape[1]
        return torch.cat(logits[-keep:], 1)

    def _forward(self, embeds: Tensor, state: Any, keep: int) -> tuple[Tensor, Any]:
        if state is None and self._carrier != "state":
            from transformers import DynamicCache

            state = DynamicCache(config=self.lm.config.get_text_config())
        out = self.lm(inputs_embeds=embeds, use_cache=True, logits_to_keep=keep, **{self._carrier: state})
        return out.logits[:, -keep:], out[self._carrier]

    def _row_by_row(self, embeds: Tensor, state: Any, keep: int) -> tuple[Tensor, Any]:
        rows = [state and merge([state], lambda t, i=i: t[0][i : i + 1]) for i in range(len(embeds))]
        logits, states = zip(*(self._forward(embeds[i : i + 1], row, keep) for i, row in enumerate(rows)), strict=True)
        return torch.cat(logits), merge(states, torch.cat)

    @cached_property
    def _carrier(self) -> str:
        known = inspect.signature(self.lm.forward).parameters
        return next(name for name in _CARRIERS if name in known)
