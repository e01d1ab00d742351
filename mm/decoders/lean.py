"""Decoders of the plain Llama layout, computed by functions over the model's own weights.

transformers spends most of a small model's token on masks, cache objects and hooks. Here a token is some thirty
operations a layer, or less where they are compiled. Queries that share a key are rows of one head for the attention,
which reads each key once then; in bfloat16 that is several times faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.decoders.compiled import CompiledRows
from mm.decoders.int8 import Int8Linear
from mm.decoders.layout import Kept, Layer, Rows, rms
from mm.decoders.rows import SingleRows
from mm.kernels.cache import KVCache
from mm.kernels.linear import linear
from mm.kernels.row import NotCompiled

_FEWEST = 4  # rows that are summed in the order in which many are; fewer are not always
_COPIED_AT_MOST = 2**31  # bytes of weights that are worth a second, faster copy


class LeanLlama:
    """lm: a model that `fits`. Weights that change are seen by the next cache, so training goes on to show here."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.layers = [Layer(module) for module in lm.model.layers]
        self.compiled = False
        self._rows: tuple[Any, Rows] | None = None

    def compile(self) -> None:
        """Single rows go through compiled routines from the next cache on.

        Raises:
            NotCompiled: why there are none for this model on this machine.
        """
        rows = CompiledRows(self.layers, self.lm.model.norm, self.lm.lm_head)
        self.compiled, self._rows = True, (self._stamp(), rows)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, and makes its rows of them."""
        return self.__dict__ | {"_rows": None}

    def __call__(self, embeds: Tensor, cache: KVCache, keep: int) -> Tensor:
        """The logits of the last `keep` tokens of embeds float[B, T, D]; writes their keys and values."""
        batch, count, width = embeds.shape
        x = embeds.reshape(batch * count, width)
        if cache.kept is None:
            cache.kept = self._kept(cache, x)
        if len(x) == 1 and cache.kept.rows is not None:
            return cache.kept.rows(x[0], cache)[None, None]
        turns = self._turns(cache, count, x)
        causal = cache.length == 0 and cache.filled is None and count > 1
        seen = None if causal else _added(cache.seen(count, x.device), x.dtype)
        for index, layer in enumerate(self.layers):
            mixed = _side_by_side(layer.qkv, rms(x, layer.before))
            query, key, value = _heads(layer, mixed.view(batch, count, -1, layer.head_width), turns)
            keys, values = cache.write(index, key, value)
            if index == len(self.layers) - 1 and max(keep, _FEWEST) < count:  # of the last, keys and values are enough
                fewer = max(keep, _FEWEST)
                seen, causal = _added(cache.seen(count, x.device, fewer), x.dtype), False
                query, x = query[:, :, -fewer:], x.view(batch, count, width)[:, -fewer:].flatten(0, 1)
                count = fewer
            found = _attended(layer, query, keys, values, seen, causal=causal)
            x = x + _through(layer.out, found.transpose(1, 2).reshape(len(x), -1))
            inner = rms(x, layer.between)
            gate, up = (_through(part, inner) for part in layer.gate_up)
            x = x + _through(layer.down, layer.act(gate) * up)
        last = rms(x.view(batch, count, width)[:, -keep:], self.lm.model.norm)
        return _through(self.lm.lm_head, last)

    def _turns(self, cache: KVCache, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for the announced tokens: [count, 1, Dh], or [B, count, 1, Dh] with holes."""
        turns = cache.kept.turns
        if cache.filled is None:
            turns = turns[cache.length : cache.length + count]
        else:
            turns = turns[cache.positions(count, like.device)]
        return turns[..., 0, :, :], turns[..., 1, :, :]

    def _kept(self, cache: KVCache, like: Tensor) -> Kept:
        cos, sin = self.lm.model.rotary_emb(like, torch.arange(cache.capacity, device=like.device)[None])
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        rows = self._prepared() if cache.batch == 1 and cache.filled is None and like.device.type == "cpu" else None
        first = self.layers[0]
        return Kept(torch.stack((cos[0], sin[0]), 1)[:, :, None], rows, first.heads + first.shared, first.shared)

    def _prepared(self) -> Rows | None:
        """The layers for single rows, made again when a weight has changed; None where they cost too much memory."""
        if self._rows is None or self._rows[0] != self._stamp():
            rows = self._compiled_rows() if self.compiled else None
            copied = [p.weight for p in self._linears if not isinstance(p, Int8Linear)]
            if rows is None and sum(weight.numel() * weight.element_size() for weight in copied) > _COPIED_AT_MOST:
                return None
            rows = rows or SingleRows(self.layers, self.lm.model.norm, self.lm.lm_head)  # may move weights
            self._rows = self._stamp(), rows
        return self._rows[1]

    def _compiled_rows(self) -> Rows | None:
        try:
            return CompiledRows(self.layers, self.lm.model.norm, self.lm.lm_head)
        except NotCompiled:  # the weights have become others than those that were compiled for
            self.compiled = False
            return None

    @property
    def _linears(self) -> list[Any]:
        return [linear for layer in self.layers for linear in layer.linears] + [self.lm.lm_head]

    def _stamp(self) -> list[tuple[int, int]]:
        """Differs once a weight has been written to or replaced."""
        given = [p for linear in self._linears for p in (linear.weight, linear.bias) if p is not None]
        given += [norm.weight for layer in self.layers for norm in (layer.before, layer.between)]
        given.append(self.lm.model.norm.weight)
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in given]


def _through(layer: Any, x: Tensor) -> Tensor:
    return layer(x) if isinstance(layer, Int8Linear) else linear(x, layer.weight, layer.bias)


def _side_by_side(parts: tuple[Any, ...], x: Tensor) -> Tensor:
    return torch.cat([_through(part, x) for part in parts], -1)


def _heads(layer: Layer, mixed: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, H + 2 Hk, Dh] -> queries [B, H, T, Dh], keys and values [B, Hk, T, Dh]; the first two are rotated."""
    both = layer.heads + layer.shared
    turned, value = mixed[:, :, :both], mixed[:, :, both:]
    if layer.norms:
        query, key = turned[:, :, : layer.heads], turned[:, :, layer.heads :]
        turned = torch.cat((rms(query, layer.norms[0]), rms(key, layer.norms[1])), 2)
    cos, sin = turns
    turned = (turned * cos + turned.roll(layer.head_width // 2, -1) * sin).transpose(1, 2)
    return turned[:, : layer.heads], turned[:, layer.heads :], value.transpose(1, 2)


def _added(seen: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What attention adds to its scores: nothing where a slot is seen. Made once for all layers."""
    return None if seen is None else torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, float("-inf")
    )  # fmt: skip


def _attended(
    layer: Layer, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, *, causal: bool
) -> Tensor:
    """float[B, H, T, Dh]; seen: `_added`, of [1 or B, 1, T, slots], None for all of them."""
    batch, heads, count, width = query.shape
    group = heads // layer.shared
    if group == 1 or causal:
        return F.scaled_dot_product_attention(
            query, keys, values, seen, is_causal=causal, scale=layer.scale, enable_gqa=group > 1
        )
    rows = query.reshape(batch, layer.shared, group * count, width)
    seen = seen if seen is None or count == 1 else seen.repeat(1, 1, group, 1)
    return F.scaled_dot_product_attention(rows, keys, values, seen, scale=layer.scale).reshape(query.shape)
