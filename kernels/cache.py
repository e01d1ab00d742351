"""Keys and values of tokens that a decoder has already read, as a value that many answers can start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KVPrefix:
    """One entry a layer. keys, values: float[B, H, T, Dh]. Never written to: continuing makes new tensors."""

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
