"""A single row with one new token through the layers by compiled routines.

In bfloat16 they give the bits that transformers gets from torch, so that they write the same words. What is left for
torch is the activation, and attention in float32 or where the compiled one has other bits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.decoders.int8 import Int8Linear
from mm.decoders.layout import Layer
from mm.kernels.cache import KVCache
from mm.kernels.row import Attention, NotCompiled, Projection, Rotation


class CompiledRows:
    """See `mm.decoders.layout.Rows`. In bfloat16 each kind of matrix is compared with torch's product of it.

    Raises:
        NotCompiled: why there are no routines for these layers on this machine.
    """

    def __init__(self, layers: Sequence[Layer], norm: Any, head: nn.Linear) -> None:
        self.layers = [_CompiledRow(layer) for layer in layers]
        self.head = _projection(head, norm=norm)
        kinds = {(p.inputs, p.outputs, p.biased): p for row in self.layers for p in row.projections}
        for kind in (*kinds.values(), self.head):
            if kind.dtype == torch.bfloat16 and not kind.rounded:
                kind.check()

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor:
        turns = cache.kept.turns[cache.length]
        for index, layer in enumerate(self.layers):
            x = layer(x, index, cache, turns)
        return self.head(x)


# (queries [H, Dh], keys and values [1, Hk, capacity, Dh], how many of those there are) -> [H Dh]
_Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class _CompiledRow:
    def __init__(self, layer: Layer) -> None:
        self.qkv, self.out = _projection(*layer.qkv, norm=layer.before), _projection(layer.out)
        self.gate_up, self.down = _projection(*layer.gate_up, norm=layer.between), _projection(layer.down)
        norms = layer.norms and (layer.norms[0].weight, layer.norms[1].weight)
        epsilon = layer.norms[0].variance_epsilon if layer.norms else 0.0
        self.turned = Rotation(
            layer.heads, layer.shared, layer.head_width, norms, epsilon, dtype=layer.before.weight.dtype
        )
        self.act, self.token = layer.quick_act, (1, layer.shared, 1, layer.head_width)
        self.attend = _attention(layer.heads, layer.shared, layer.head_width, layer.scale, layer.before.weight.dtype)

    @property
    def projections(self) -> list[Projection]:
        return [self.qkv, self.out, self.gate_up, self.down]

    def __call__(self, x: Tensor, index: int, cache: KVCache, turns: Tensor) -> Tensor:
        """x: float[D]; turns: float[2, 1, Dh]."""
        keys, values = cache.buffers(index, x, self.token)
        query = self.turned(self.qkv(x), turns, keys, values, cache.length)
        x = self.out(self.attend(query, keys, values, cache.length + 1), x)
        gate, up = self.gate_up(x).chunk(2)
        return self.down(self.act(gate) * up, x)


@functools.cache
def _attention(heads: int, shared: int, width: int, scale: float, dtype: torch.dtype) -> _Attend:
    """Compared with torch's once a process; it is the same for all layers of a decoder."""
    if dtype == torch.bfloat16:
        with contextlib.suppress(NotCompiled):
            made = Attention(heads, shared, width, scale)
            made.check()
            return made

    def by_torch(query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
        grouped, keys, values = query.view(1, shared, -1, width), keys[:, :, :length], values[:, :, :length]
        return F.scaled_dot_product_attention(grouped, keys, values, scale=scale).reshape(-1)

    return by_torch


def _projection(*layers: Any, norm: Any = None) -> Projection:
    scales = [layer.scale if isinstance(layer, Int8Linear) else None for layer in layers]
    weights = [layer.weight.detach() for layer in layers]
    biases = [None if layer.bias is None else layer.bias.detach() for layer in layers]
    dtype = weights[0].dtype if scales[0] is None else scales[0].dtype
    if norm is None:
        return Projection(weights, biases, scales, dtype=dtype)
    return Projection(weights, biases, scales, norm.weight.detach(), norm.variance_epsilon, dtype=dtype)
