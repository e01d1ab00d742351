"""What a recurrent decoder has read: `StatePrefix` is a value, `StateCache` a place to go on from it.

A state is whatever tree of lists, dicts and plain objects a model keeps its tensors in; dimension 0 is the batch.
It has no tokens that could be cut off, so a cache also keeps where it began and what it was fed since.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StatePrefix:
    """state: the tree after `length` tokens in each of `batch` rows. Never written to."""

    state: Any
    length: int
    batch: int

    def __getitem__(self, i: int) -> StatePrefix:
        """The prefix of one item of the batch, B = 1."""
        i = range(self.batch)[i]
        return StatePrefix(merge([self.state], lambda t: t[0][i : i + 1].clone()), self.length, 1)

    @staticmethod
    def stack(prefixes: Sequence[StatePrefix]) -> StatePrefix:
        """One batch out of prefixes of equal length."""
        state = merge([p.state for p in prefixes], torch.cat)
        return StatePrefix(state, prefixes[0].length, sum(p.batch for p in prefixes))


class StateCache:
    """A state that advances, at most to `capacity` tokens. For one thread at a time.

    state: None before the first token. fed: float[B, T, D] since `base`, what was read there.
    """

    def __init__(self, batch: int, capacity: int, base: StatePrefix | None = None) -> None:
        self.batch, self.capacity = batch, capacity
        self.length, self.fed, self.base = 0, [], base
        self.state: Any = None
        self.restart()

    def restart(self) -> list[Tensor]:
        """Goes back to `base`; what was fed since."""
        fed, self.fed = self.fed, []
        self.length = self.base.length if self.base else 0
        self.state = merge([self.base.state], lambda t: t[0].clone()) if self.base else None
        return fed

    def prefix(self) -> StatePrefix:
        """What was read so far, as a value."""
        return StatePrefix(merge([self.state], lambda t: t[0].clone()), self.length, self.batch)

    def row(self, i: int) -> StatePrefix:
        """What row `i` has read, as a value of its own."""
        return StatePrefix(self.state, self.length, self.batch)[i]

    def mark(self) -> None:
        """The next `restart` comes back to here."""
        self.base, self.fed = self.prefix(), []


def merge(trees: Sequence[Any], op: Callable[[list[Tensor]], Tensor]) -> Any:
    """One tree out of trees of the same form: `op` on the tensors at each place, anything else from the first."""
    first = trees[0]
    if isinstance(first, Tensor):
        return op(list(trees)) if first.ndim else first
    if isinstance(first, dict):
        return {key: merge([tree[key] for tree in trees], op) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(merge(places, op) for places in zip(*trees, strict=True))
    if hasattr(first, "__dict__") and not isinstance(first, type) and not callable(first):
        made = copy.copy(first)
        vars(made).update(merge([vars(tree) for tree in trees], op))
        return made
    return first
