"""The plain Llama layout, computed by one function over the model's own weights.

transformers spends most of a small model's token on masks, cache objects and hooks. Here a token is some thirty
tensor operations a layer. In float32 the norms and sums of a single row are part of the products beside them; in
bfloat16 all is rounded where the library's modules round.

One row times a matrix is bound by reading the matrix. In float32, on a CPU, the common routines read a row-major
matrix at about half the speed of memory; laid out in blocks of some outputs it comes near to it (`Matrix`). Large
matrices of the narrow dtypes, all but the last, are left to torch: the smallest difference in a layer's sums would grow
to other words than transformers finds. Queries that share a key are rows of one head for the attention, which reads
each key once then; in bfloat16 that is several times faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.decoders.int8 import Int8Linear
from mm.kernels.cache import KVCache
from mm.kernels.int8 import linear_int8
from mm.kernels.linear import linear

# Llama, and those that differ from it by a bias or by a norm of queries and keys.
LAYOUTS = ("llama", "mistral", "qwen2", "qwen3")
_NARROW = (torch.bfloat16, torch.float16)
_STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")

_COLUMNS = 32  # outputs in a block; wider ones are read more slowly in float32
_SMALL = 2**14  # elements: a smaller matrix is read at once in any layout
_WIDE = 2**18  # elements: a smaller matrix is quicker in float32, with what it gives rounded afterwards
_FEWEST = 4  # rows that are summed in the order in which many are; fewer are not always
_COPIED_AT_MOST = 2**31  # bytes of weights that are worth a second, faster copy


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
        self.weight = weight.float() if weight.dtype in _NARROW and weight.numel() < _WIDE else weight
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


class _Layer:
    """The parts of one transformer layer."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.gate_up, self.down = attention.o_proj, (mlp.gate_proj, mlp.up_proj), mlp.down_proj
        self.act, self.before, self.between = mlp.act_fn, module.input_layernorm, module.post_attention_layernorm
        self.head_width, self.scale = attention.head_dim, attention.scaling
        self.heads = self.qkv[0].out_features // self.head_width
        self.shared = self.qkv[1].out_features // self.head_width
        self.norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None

    @property
    def linears(self) -> list[Any]:
        return [*self.qkv, self.out, *self.gate_up, self.down]


class _RowNorm:
    """A root mean square norm of float[K] on a CPU, where one number is cheaper to take out than to broadcast.

    In float32 all that is left to do for the matrix behind it is to scale; other dtypes round as `_rms` does, for a
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
    """A layer for one row with one new token, which is all that most steps have."""

    def __init__(self, layer: _Layer) -> None:
        self.norms, self.scale = layer.norms, layer.scale
        self.before, self.between = _RowNorm(layer.before), _RowNorm(layer.between)
        self.qkv, self.out = _matrix(*layer.qkv, norm=self.before.into), _matrix(layer.out)
        self.gate_up, self.down = _matrix(*layer.gate_up, norm=self.between.into), _matrix(layer.down)
        self.act = F.silu if type(layer.act).__name__ in ("SiLU", "SiLUActivation") else layer.act
        self.width, self.split = layer.head_width, (layer.heads, 2 * layer.shared)
        self.parts = (layer.heads, layer.shared, layer.shared)
        self.grouped, self.stored = (1, layer.shared, -1, self.width), (2, 1, layer.shared, 1, self.width)

    def __call__(self, x: Tensor, index: int, cache: KVCache, cos: Tensor, sin: Tensor) -> Tensor:
        """x: float[D]; cos, sin: [H + 2 Hk, Dh], which leave values as they are."""
        mixed = self.qkv(*self.before(x)).view(-1, self.width)
        if self.norms:
            query, key, value = torch.split_with_sizes(mixed, self.parts)
            mixed = torch.cat((_rms(query, self.norms[0]), _rms(key, self.norms[1]), value))
        turned = mixed * cos + mixed.roll(self.width // 2, -1) * sin
        query, both = torch.split_with_sizes(turned, self.split)
        keys, values = cache.write_both(index, both.view(self.stored))
        found = F.scaled_dot_product_attention(query.reshape(self.grouped), keys, values, scale=self.scale)
        x = self.out(found.reshape(-1), onto=x)
        gate, up = self.gate_up(*self.between(x)).chunk(2)
        return self.down(self.act(gate) * up, onto=x)


_Rows = tuple[list[_SingleRow], _RowNorm, Matrix]  # the layers for a single row, and what follows them


class _Kept:
    """What a cache needs beside its tokens.

    turns: float[capacity, 2, 1, Dh], cosine and signed sine of each place. turned, straight: how many rows of a
    token's queries, keys and values are rotated, and how many are not.
    """

    def __init__(self, turns: Tensor, rows: _Rows | None, turned: int, straight: int) -> None:
        self.turns, self.rows = turns, rows
        one, zero = turns.new_ones(straight, turns.shape[-1]), turns.new_zeros(straight, turns.shape[-1])
        self._turn = torch.stack([F.pad(side, (0, 0, turned, 0)) for side in (one, zero)])
        self._rotated = self._turn[:, :turned]

    def at(self, place: int) -> tuple[Tensor, Tensor]:
        """float[H + 2 Hk, Dh] each, of one place; valid until the next call."""
        self._rotated.copy_(self.turns[place])
        return self._turn[0], self._turn[1]


class LeanLlama:
    """lm: a model that `fits`. Weights that change are seen by the next cache, so training goes on to show here."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.layers = [_Layer(module) for module in lm.model.layers]
        self._rows: tuple[Any, _Rows] | None = None

    @staticmethod
    def fits(lm: Any) -> bool:
        """Whether the model is of this layout, down to the kind of each part."""
        config = getattr(lm, "config", None)
        if getattr(config, "model_type", None) not in LAYOUTS:
            return False
        window = getattr(config, "sliding_window", None)
        full = window is None or {"full_attention"} == set(getattr(config, "layer_types", None) or ["windowed"])
        static = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") in _STATIC_ROTATIONS
        plain = all(type(p) in (nn.Linear, Int8Linear) for m in lm.model.layers for p in _Layer(m).linears)
        return full and static and plain and type(lm.lm_head) is nn.Linear

    def __call__(self, embeds: Tensor, cache: KVCache, keep: int) -> Tensor:
        """The logits of the last `keep` tokens of embeds float[B, T, D]; writes their keys and values."""
        batch, count, width = embeds.shape
        x = embeds.reshape(batch * count, width)
        if cache.kept is None:
            cache.kept = self._kept(cache, x)
        if len(x) == 1 and cache.kept.rows is not None:
            return self._single(x[0], cache)[None, None]
        turns = self._turns(cache, count, x)
        causal = cache.length == 0 and cache.filled is None and count > 1
        seen = None if causal else _added(cache.seen(count, x.device), x.dtype)
        for index, layer in enumerate(self.layers):
            mixed = _side_by_side(layer.qkv, _rms(x, layer.before))
            query, key, value = _heads(layer, mixed.view(batch, count, -1, layer.head_width), turns)
            keys, values = cache.write(index, key, value)
            if index == len(self.layers) - 1 and max(keep, _FEWEST) < count:  # of the last, keys and values are enough
                fewer = max(keep, _FEWEST)
                seen, causal = _added(cache.seen(count, x.device, fewer), x.dtype), False
                query, x = query[:, :, -fewer:], x.view(batch, count, width)[:, -fewer:].flatten(0, 1)
                count = fewer
            found = _attended(layer, query, keys, values, seen, causal=causal)
            x = x + _through(layer.out, found.transpose(1, 2).reshape(len(x), -1))
            inner = _rms(x, layer.between)
            gate, up = (_through(part, inner) for part in layer.gate_up)
            x = x + _through(layer.down, layer.act(gate) * up)
        last = _rms(x.view(batch, count, width)[:, -keep:], self.lm.model.norm)
        return _through(self.lm.lm_head, last)

    def _single(self, x: Tensor, cache: KVCache) -> Tensor:
        layers, last, head = cache.kept.rows
        cos, sin = cache.kept.at(cache.length)
        for index, layer in enumerate(layers):
            x = layer(x, index, cache, cos, sin)
        return head(*last(x))

    def _turns(self, cache: KVCache, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for the announced tokens: [count, 1, Dh], or [B, count, 1, Dh] with holes."""
        turns = cache.kept.turns
        if cache.filled is None:
            turns = turns[cache.length : cache.length + count]
        else:
            turns = turns[cache.positions(count, like.device)]
        return turns[..., 0, :, :], turns[..., 1, :, :]

    def _kept(self, cache: KVCache, like: Tensor) -> _Kept:
        cos, sin = self.lm.model.rotary_emb(like, torch.arange(cache.capacity, device=like.device)[None])
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        rows = self._prepared() if cache.batch == 1 and cache.filled is None and like.device.type == "cpu" else None
        first = self.layers[0]
        return _Kept(torch.stack((cos[0], sin[0]), 1)[:, :, None], rows, first.heads + first.shared, first.shared)

    def _prepared(self) -> _Rows | None:
        """The layers for single rows, made again when a weight has changed; None where they cost too much memory."""
        linears = [linear for layer in self.layers for linear in layer.linears] + [self.lm.lm_head]
        norms = [norm for layer in self.layers for norm in (layer.before, layer.between)] + [self.lm.model.norm]
        if self._rows is None or self._rows[0] != _stamp(linears, norms):
            copied = [p.weight for p in linears if not isinstance(p, Int8Linear)]
            if sum(weight.numel() * weight.element_size() for weight in copied) > _COPIED_AT_MOST:
                return None
            rows, last = [_SingleRow(layer) for layer in self.layers], _RowNorm(norms[-1])
            made = rows, last, Matrix(self.lm.lm_head, norm=last.into, last=True)
            self._rows = _stamp(linears, norms), made
        return self._rows[1]


def _stamp(linears: list[Any], norms: list[Any]) -> list[tuple[int, int]]:
    """Differs once a weight has been written to or replaced."""
    given = [p for linear in linears for p in (linear.weight, linear.bias) if p is not None]
    given += [norm.weight for norm in norms]
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in given]


def _through(layer: Any, x: Tensor) -> Tensor:
    return layer(x) if isinstance(layer, Int8Linear) else linear(x, layer.weight, layer.bias)


def _side_by_side(parts: tuple[Any, ...], x: Tensor) -> Tensor:
    return torch.cat([_through(part, x) for part in parts], -1)


def _heads(layer: _Layer, mixed: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, H + 2 Hk, Dh] -> queries [B, H, T, Dh], keys and values [B, Hk, T, Dh]; the first two are rotated."""
    both = layer.heads + layer.shared
    turned, value = mixed[:, :, :both], mixed[:, :, both:]
    if layer.norms:
        query, key = turned[:, :, : layer.heads], turned[:, :, layer.heads :]
        turned = torch.cat((_rms(query, layer.norms[0]), _rms(key, layer.norms[1])), 2)
    cos, sin = turns
    turned = (turned * cos + turned.roll(layer.head_width // 2, -1) * sin).transpose(1, 2)
    return turned[:, : layer.heads], turned[:, layer.heads :], value.transpose(1, 2)


def _added(seen: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What attention adds to its scores: nothing where a slot is seen. Made once for all layers."""
    return None if seen is None else torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, float("-inf")
    )  # fmt: skip


def _attended(
    layer: _Layer, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, *, causal: bool
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


def _rms(x: Tensor, norm: Any) -> Tensor:
    """Root mean square norm (Zhang and Sennrich, 2019) in float32, rounded before the weight is applied."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide.to(x.dtype)
