"""A single row with one new token through the layers, which is all that most steps have, by operations of torch.

One row times a matrix is bound by reading the matrix. In float32, on a CPU, the common routines read a row-major
matrix at about half the speed of memory; laid out in blocks of some outputs it comes near to it (`Matrix`). Large
matrices of the narrow dtypes, all but the last, are left to torch. In float32 the norms and sums are part of the
products beside them; in bfloat16 all is rounded where the library's modules round. Norms and attention are summed in
other orders than there, so in bfloat16 answers part from those of transformers where two words are about as likely;
those of compiled rows do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.decoders.int8 import Int8Linear
from mm.decoders.layout import NARROW, Layer, rms
from mm.kernels.cache import KVCache
from mm.kernels.int8 import linear_int8

_COLUMNS = 32  # outputs in a block; wider ones are read more slowly in float32
_SMALL = 2**14  # elements: a smaller matrix is read at once in any layout
_WIDE = 2**18  # elements: a smaller matrix is quicker in float32, with what it gives rounded afterwards


class Matrix:
    """The weights of one or more linear layers with the same input, side by side, for a row at a time.

    norm: float[K], the weight of the norm in front, which becomes part of the matrix. last: nothing is computed from
    what it gives, so that in bfloat16 too it may differ from torch's in the last bit. weight: float[width, K], or a
    large matrix in `count` blocks, float[count, K, columns].
    """

    def __init__(self, *layers: nn.Linear, norm: Tensor | None = None, last: bool = False) -> None:
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        weight = weight if norm is None else weight * norm
        self.width, self.dtype, self.count = len(weight), weight.dtype, 0
        self.weight = weight.float() if weight.dtype in NARROW and weight.numel() < _WIDE else weight
        self.bias = torch.cat(biases).to(self.weight.dtype) if biases else None
        self.same = self.weight.dtype == self.dtype
        quick = (torch.float32, torch.bfloat16) if last else (torch.float32,)
        if self.weight.dtype in quick and weight.numel() >= _SMALL:
            padded = F.pad(self.weight, (0, 0, 0, -self.width % _COLUMNS))
            self.weight = padded.unflatten(0, (-1, _COLUMNS)).transpose(1, 2).contiguous()
            self.count = len(self.weight)
        self.full = self.width == self.count * _COLUMNS
        self.adds = self.full and self.dtype == torch.float32
        self.nothing = self.weight.new_zeros(1, 1, 1)

    def __call__(self, row: Tensor, scale: float = 1.0, onto: Tensor | None = None) -> Tensor:
        """float[K] -> float[width]: the row times `scale` through the layers, then added to `onto`."""
        if self.adds:  # one operation, rounded once
            start = self.nothing if onto is None else onto.view(self.count, 1, -1)
            made = torch.baddbmm(start, row.expand(self.count, 1, -1), self.weight, alpha=scale).view(-1)
            return made if self.bias is None else made + self.bias
        row = row if scale == 1.0 else row * scale
        row = row if self.same else row.float()
        if self.count:
            made = torch.bmm(row.expand(self.count, 1, -1), self.weight).view(-1)
            made = made if self.full else made[: self.width]
            made = made if self.bias is None else made + self.bias
        else:
            made = F.linear(row, self.weight, self.bias)
        made = made if self.same else made.to(self.dtype)
        return made if onto is None else onto + made


class _Int8Matrix:
    """As `Matrix`, of layers in int8. The layers become views of it, so that nothing is kept twice."""

    def __init__(self, *layers: Int8Linear) -> None:
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.weight, self.scale = (torch.cat(each) for each in zip(*((p.weight, p.scale) for p in layers), strict=True))
        self.bias = torch.cat(biases) if biases else None
        for layer, part in zip(layers, self.weight.split([p.out_features for p in layers]), strict=True):
            layer.weight = part

    def __call__(self, row: Tensor, scale: float = 1.0, onto: Tensor | None = None) -> Tensor:
        made = linear_int8(row[None] if scale == 1.0 else row[None] * scale, self.weight, self.scale, self.bias)[0]
        return made if onto is None else onto + made


def _matrix(*layers: Any, norm: Tensor | None = None) -> Matrix | _Int8Matrix:
    return _Int8Matrix(*layers) if isinstance(layers[0], Int8Linear) else Matrix(*layers, norm=norm)


class _RowNorm:
    """A root mean square norm of float[K] on a CPU, where one number is cheaper to take out than to broadcast.

    In float32 all that is left to do for the matrix behind it is to scale; other dtypes round as `rms` does, for a
    row times a number is computed in float32 and rounded once.
    """

    def __init__(self, norm: Any) -> None:
        self.weight, self.width, self.epsilon = norm.weight, len(norm.weight), norm.variance_epsilon
        self.into = self.weight if self.weight.dtype == torch.float32 else None  # the matrix, see `Matrix`

    def __call__(self, row: Tensor) -> tuple[Tensor, float]:
        """What the matrix reads, and the scale that it applies."""
        wide = row if self.into is not None else row.float()
        scale = (torch.dot(wide, wide).item() / self.width + self.epsilon) ** -0.5
        return (row, scale) if self.into is not None else (self.weight * (row * scale), 1.0)


class _SingleRow:
    """A layer for one row with one new token."""

    def __init__(self, layer: Layer) -> None:
        self.norms, self.scale = layer.norms, layer.scale
        self.before, self.between = _RowNorm(layer.before), _RowNorm(layer.between)
        self.qkv, self.out = _matrix(*layer.qkv, norm=self.before.into), _matrix(layer.out)
        self.gate_up, self.down = _matrix(*layer.gate_up, norm=self.between.into), _matrix(layer.down)
        self.act = layer.quick_act
        self.width, self.split = layer.head_width, (layer.heads, 2 * layer.shared)
        self.parts = (layer.heads, layer.shared, layer.shared)
        self.grouped, self.stored = (1, layer.shared, -1, self.width), (2, 1, layer.shared, 1, self.width)

    def __call__(self, x: Tensor, index: int, cache: KVCache, cos: Tensor, sin: Tensor) -> Tensor:
        """x: float[D]; cos, sin: [H + 2 Hk, Dh], which leave values as they are."""
        mixed = self.qkv(*self.before(x)).view(-1, self.width)
        if self.norms:
            query, key, value = torch.split_with_sizes(mixed, self.parts)
            mixed = torch.cat((rms(query, self.norms[0]), rms(key, self.norms[1]), value))
        turned = mixed * cos + mixed.roll(self.width // 2, -1) * sin
        query, both = torch.split_with_sizes(turned, self.split)
        keys, values = cache.write_both(index, both.view(self.stored))
        found = F.scaled_dot_product_attention(query.reshape(self.grouped), keys, values, scale=self.scale)
        x = self.out(found.reshape(-1), onto=x)
        gate, up = self.gate_up(*self.between(x)).chunk(2)
        return self.down(self.act(gate) * up, onto=x)


class SingleRows:
    """See `mm.decoders.layout.Rows`."""

    def __init__(self, layers: Sequence[Layer], norm: Any, head: nn.Linear) -> None:
        self.layers, self.last = [_SingleRow(layer) for layer in layers], _RowNorm(norm)
        self.head = Matrix(head, norm=self.last.into, last=True)

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor:
        cos, sin = cache.kept.at(cache.length)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, cache, cos, sin)
        return self.head(*self.last(x))
