"""A single row with one new token through the layers by compiled routines: what is left for torch is the attention and
the activation, in whose exponentials two libraries seldom agree to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.decoders.int8 import Int8Linear
from mm.decoders.layout import Layer
from mm.kernels.cache import KVCache
from mm.kernels.row import Projection, Rotation


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


class _CompiledRow:
    def __init__(self, layer: Layer) -> None:
        self.qkv, self.out = _projection(*layer.qkv, norm=layer.before), _projection(layer.out)
        self.gate_up, self.down = _projection(*layer.gate_up, norm=layer.between), _projection(layer.down)
        norms = layer.norms and (layer.norms[0].weight, layer.norms[1].weight)
        epsilon = layer.norms[0].variance_epsilon if layer.norms else 0.0
        self.turned = Rotation(
            layer.heads, layer.shared, layer.head_width, norms, epsilon, dtype=layer.before.weight.dtype
        )
        self.act, self.scale = layer.quick_act, layer.scale
        self.grouped, self.token = (1, layer.shared, -1, layer.head_width), (1, layer.shared, 1, layer.head_width)

    @property
    def projections(self) -> list[Projection]:
        return [self.qkv, self.out, self.gate_up, self.down]

    def __call__(self, x: Tensor, index: int, cache: KVCache, turns: Tensor) -> Tensor:
        """x: float[D]; turns: float[2, 1, Dh]."""
        keys, values = cache.buffers(index, x, self.token)
        query = self.turned(self.qkv(x), turns, keys, values, cache.length)
        stop = cache.length + 1
        keys, values = keys.narrow(2, 0, stop), values.narrow(2, 0, stop)
        found = F.scaled_dot_product_attention(query.view(self.grouped), keys, values, scale=self.scale)
        x = self.out(found.reshape(-1), x)
        gate, up = self.gate_up(x).chunk(2)
        return self.down(self.act(gate) * up, x)


def _projection(*layers: Any, norm: Any = None) -> Projection:
    scales = [layer.scale if isinstance(layer, Int8Linear) else None for layer in layers]
    weights = [layer.weight.detach() for layer in layers]
    biases = [None if layer.bias is None else layer.bias.detach() for layer in layers]
    dtype = weights[0].dtype if scales[0] is None else scales[0].dtype
    if norm is None:
        return Projection(weights, biases, scales, dtype=dtype)
    return Projection(weights, biases, scales, norm.weight.detach(), norm.variance_epsilon, dtype=dtype)
