"""Rows on their way through a decoder, each at its own pace, and each free to go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mm.decoders.base import Decoder
from mm.kernels.cache import KVCache
from mm.kernels.states import StateCache

_SLACK = 64  # slots; a cache with holes is packed anew once it is full


def walking_together(decoder: Decoder, prefixes: Sequence[Any]) -> list[list[int]]:
    """Which rows may share a walk: all that have a prefix and all that have none, or each alone."""
    if not decoder.ragged:
        return [[i] for i in range(len(prefixes))]
    sides = ([i for i, p in enumerate(prefixes) if (p is None) == bare] for bare in (True, False))
    return [side for side in sides if side]


class Walk:
    """Rows behind their prefixes. What one of them has read and what did not come true becomes a hole of its cache.

    prefixes: one for each row, or None for all of them.
    tokens: the most that any row, prefix included, will have read in the end.
    at_once: the most that is read at once, once the prompts are read.
    forwards: how often the decoder was run.
    """

    def __init__(self, decoder: Decoder, prefixes: Sequence[Any], tokens: int, at_once: int) -> None:
        self.decoder, self.forwards = decoder, 0
        batch = len(prefixes)
        self._capacity = tokens if batch == 1 else tokens + at_once + _SLACK
        bare = prefixes[0] is None
        self._cache = decoder.start(batch, self._capacity) if bare else decoder.fork(prefixes, self._capacity)
        self._begin = self._cache.length
        self._ids: list[list[int]] = [[] for _ in prefixes]
        self._slots: list[list[int]] = [[] for _ in prefixes]  # where in the cache each of them lies
        self._sure = [0] * batch  # so many of them came true

    def follow(self, tokens: Sequence[list[int] | None]) -> list[list[int]]:
        """Forgets what differs from each row's tokens; which of them, at least the last, are still to be read.

        None for a row that has come to its end and will read nothing more.
        """
        unread, wrong, stop = [], [], self._begin
        for row, wanted in enumerate(tokens):
            if wanted is None:
                unread.append([])
                continue
            agreed = self._sure[row] = self._agreed(row, wanted)
            slots = self._slots[row]
            wrong += [(row, slot) for slot in slots[agreed:]]
            del self._ids[row][agreed:], slots[agreed:]
            stop = max(stop, slots[-1] + 1 if slots else 0)
            unread.append(wanted[agreed:])
        self._forget(stop, [(row, slot) for row, slot in wrong if slot < stop])
        return unread

    def mark(self) -> None:
        """What was read so far will not be forgotten."""
        if isinstance(self._cache, StateCache):
            self._cache.mark()
        self._sure = [len(ids) for ids in self._ids]

    def read(self, ids: Sequence[list[int]], keep: int = 1) -> Tensor:
        """float32[B, keep, V]: the logits behind each of the last `keep` tokens of a row. A row may read nothing."""
        lengths = [len(own) for own in ids]
        count = max(lengths)
        if self._cache.length + count > self._capacity:
            self._pack()
        embeds = self.decoder.embed(torch.tensor([[0] * (count - len(own)) + own for own in ids]))
        logits, _ = self.decoder.extend(embeds, self._cache, lengths=lengths, keep=min(keep, count))
        self.forwards += 1
        end = self._cache.length
        for row, own in enumerate(ids):
            self._ids[row] += own
            self._slots[row] += range(end - len(own), end)
        return logits

    def _agreed(self, row: int, wanted: list[int]) -> int:
        ids, agreed = self._ids[row], self._sure[row]
        most = min(len(ids), len(wanted) - 1)
        while agreed < most and ids[agreed] == wanted[agreed]:
            agreed += 1
        return agreed

    def _forget(self, stop: int, holes: list[tuple[int, int]]) -> None:
        """Ends every row at the slot `stop`, and makes holes (row, slot) in front of it."""
        cache = self._cache
        if cache.length > stop:
            self.decoder.crop(cache, cache.length - stop)
            self.forwards += isinstance(cache, StateCache) and bool(cache.fed)  # it has read again what is kept
        if holes:
            assert isinstance(cache, KVCache), "a state is walked by one row"
            if cache.filled is None:
                cache.filled = torch.ones(cache.batch, cache.capacity, dtype=torch.bool, device=cache.keys[0].device)
            rows, slots = zip(*holes, strict=True)
            cache.filled[list(rows), list(slots)] = False

    def _pack(self) -> None:
        """A new cache without the holes that lie between a row's tokens."""
        self._cache = self.decoder.fork([self._cache.row(i) for i in range(len(self._ids))], self._capacity)
        end = self._cache.length
        self._begin = 0
        self._slots = [list(range(end - len(ids), end)) for ids in self._ids]
