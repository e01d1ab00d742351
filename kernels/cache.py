"""Keys and values of the tokens that a decoder has read: `KVPrefix` is a value, `KVCache` a place to go on from it.

A cache is one buffer a layer, made once for all the tokens that will come. Its rows advance together, slot by slot.
Rows of unequal length have holes, slots without a token: attention never looks into them, and a token's position
counts only the tokens in front of it. So a row gives in a batch what it gives alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KVPrefix:
    """One entry a layer. keys, values: float[B, H, T, Dh]. Never written to: a `KVCache` starts from a copy."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.values) or not self.keys:
            raise ValueError(
                f"expected keys and values of the same layers, got {len(self.keys)} and {len(self.values)}"
            )

    @property
    def length(self) -> int:
        """T, how many tokens were read."""
        return self.keys[0].shape[2]

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    def __getitem__(self, i: int) -> KVPrefix:
        """The prefix of one item of the batch, B = 1."""
        i = range(self.batch)[i]
        return KVPrefix(tuple(k[i : i + 1] for k in self.keys), tuple(v[i : i + 1] for v in self.values))

    @staticmethod
    def stack(prefixes: Sequence[KVPrefix]) -> KVPrefix:
        """One batch out of prefixes of equal length."""
        layers = range(len(prefixes[0].keys))
        return KVPrefix(
            tuple(torch.cat([p.keys[i] for p in prefixes]) for i in layers),
            tuple(torch.cat([p.values[i] for p in prefixes]) for i in layers),
        )


class KVCache:
    """Room for `capacity` tokens in each of `batch` rows; `length` slots are filled. For one thread at a time."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch, self.capacity, self.length = batch, capacity, 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._pairs: list[Tensor | None] = []  # of which both are views, where they are of one shape
        self.filled: Tensor | None = None  # bool[B, capacity], False at holes; None while there are none
        self.kept: Any = None  # what a decoder has prepared for this cache

    @staticmethod
    def fork(prefixes: Sequence[KVPrefix], capacity: int) -> KVCache:
        """A cache whose rows begin as copies of those prefixes, in their order; they may differ in length."""
        cache = KVCache(sum(p.batch for p in prefixes), capacity)
        longest = max(p.length for p in prefixes)
        cache._room(longest)
        for layer, (k, v) in enumerate(zip(prefixes[0].keys, prefixes[0].values, strict=True)):
            cache._make(layer, k, v)
        row = 0
        for prefix in prefixes:
            rows, slots = slice(row, row + prefix.batch), slice(longest - prefix.length, longest)
            for layer, (k, v) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                cache.keys[layer][rows, :, slots] = k
                cache.values[layer][rows, :, slots] = v
            if prefix.length < longest:
                cache._holes(k.device)[rows, : slots.start] = False
            row += prefix.batch
        cache.length = longest
        return cache

    def begin(self, count: int, lengths: Sequence[int] | None, device: torch.device) -> None:
        """Announces `count` tokens a row. lengths: how many of them, at the end, are row b's own; the others are holes.

        Raises:
            ValueError: they do not fit.
        """
        self._room(count)
        if lengths is not None and any(own < count for own in lengths):
            holes = self._holes(device)
            for row, own in enumerate(lengths):
                holes[row, self.length : self.length + count - own] = False

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts float[B, H, T, Dh] behind the filled slots; all of the layer so far, as views of its buffers."""
        if layer == len(self.keys):
            self._make(layer, keys, values)
        begin, count = self.length, keys.shape[2]
        k, v = self.keys[layer], self.values[layer]
        k.narrow(2, begin, count).copy_(keys)
        v.narrow(2, begin, count).copy_(values)
        return k.narrow(2, 0, begin + count), v.narrow(2, 0, begin + count)

    def write_both(self, layer: int, both: Tensor) -> tuple[Tensor, Tensor]:
        """`write` in one copy, for keys and values that lie in one tensor, float[2, B, H, T, Dh]."""
        if layer == len(self.keys):
            self._make(layer, *both)
        pair = self._pairs[layer]
        assert pair is not None
        stop = self.length + both.shape[3]
        pair.narrow(3, self.length, both.shape[3]).copy_(both)
        return self.keys[layer].narrow(2, 0, stop), self.values[layer].narrow(2, 0, stop)

    def buffers(self, layer: int, like: Tensor, token: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """Where keys and values of a layer lie, float[B, H, capacity, Dh] each, for who writes the announced token
        there himself. token: [B, H, 1, Dh], if it is the first; of the dtype and on the device of `like`."""
        if layer == len(self.keys):
            self._make(layer, *like.new_empty(2, *token))
        return self.keys[layer], self.values[layer]

    def end(self, count: int) -> None:
        """The announced tokens are written in every layer."""
        self.length += count

    def positions(self, count: int, device: torch.device) -> Tensor:
        """int64[1 or B, count]: how many tokens stand in front of each announced one."""
        if self.filled is None:
            return torch.arange(self.length, self.length + count, device=device)[None]
        return (self.filled[:, : self.length + count].cumsum(1)[:, -count:] - 1).clamp_(min=0)

    def seen(self, count: int, device: torch.device, last: int | None = None) -> Tensor | None:
        """bool[1 or B, 1, count, slots]: which slots each announced token attends to. None: all of them.

        A hole attends to itself, so that its row of the softmax is never empty. last: of the last so many tokens.
        """
        stop = self.length + count
        if count == 1 and self.filled is None:
            return None
        slots = torch.arange(stop, device=device)
        own = slots[stop - (last or count) :, None]
        if self.filled is None:
            return (slots <= own)[None, None]
        return ((self.filled[:, None, :stop] & (slots <= own)) | (slots == own))[:, None]

    def crop(self, count: int) -> None:
        """Forgets the last `count` tokens of every row."""
        if not 0 <= count <= self.length:
            raise ValueError(f"expected to forget 0 to {self.length} tokens, got {count}")
        if self.filled is not None:
            self.filled[:, self.length - count :] = True
        self.length -= count

    def row(self, i: int) -> KVPrefix:
        """What row `i` has read, as a value of its own without holes."""
        kept = slice(self.length) if self.filled is None else self.filled[i, : self.length].nonzero()[:, 0]
        keys, values = ([b[i : i + 1, :, : self.length][:, :, kept].clone() for b in s] for s in self.layers)
        return KVPrefix(tuple(keys), tuple(values))

    def prefix(self) -> KVPrefix:
        """What all rows have read, as a value. Rows must be of equal length."""
        if self.filled is not None:
            return KVPrefix.stack([self.row(i) for i in range(self.batch)])
        keys, values = ([b[:, :, : self.length].clone() for b in side] for side in self.layers)
        return KVPrefix(tuple(keys), tuple(values))

    @property
    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.keys, self.values

    def _room(self, count: int) -> None:
        if self.length + count > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens, {self.length + count} are needed")

    def _holes(self, device: torch.device) -> Tensor:
        if self.filled is None:
            self.filled = torch.ones(self.batch, self.capacity, dtype=torch.bool, device=device)
        return self.filled

    def _make(self, layer: int, keys: Tensor, values: Tensor) -> None:
        assert layer == len(self.keys), "layers are written in their order"
        pair = None
        if keys.shape == values.shape:
            pair = keys.new_zeros(2, self.batch, keys.shape[1], self.capacity, keys.shape[3])
        sides = pair if pair is not None else (
            side.new_zeros(self.batch, side.shape[1], self.capacity, side.shape[3]) for side in (keys, values)
        )  # fmt: skip
        for buffers, made in zip((self.keys, self.values), sides, strict=True):
            buffers.append(made)
        self._pairs.append(pair)
