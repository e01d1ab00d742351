"""How the next token is chosen: greedily, or drawn from the likely ones.

The order and the edges are those of transformers' logits processors: repetition penalty (Keskar et al., 2019),
temperature, top-k (Fan et al., 2018), top-p (Holtzman et al., 2020), min-p (Nguyen et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm.errors import InputError


def _check(name: str, value: Any, expected: str, within: Callable[[Any], bool]) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and within(value)):
        raise InputError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class Sampling:
    """Without a temperature the likeliest token is taken; `top_k`, `top_p`, `min_p` and `seed` need one.

    temperature: above 0. top_k: only so many of the likeliest. top_p: the smallest set that holds this probability.
    min_p: nothing below this part of the likeliest token's probability. repetition_penalty: above 1 makes tokens of
    the prompt and of the answer so far less likely. seed: equal seeds draw equal answers, in any batch.

    Raises:
        InputError: a value is out of its range, or needs a temperature and has none.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, "a number above 0", lambda v: 0 < v < math.inf)
        _check("top_p", self.top_p, "a number above 0 and at most 1", lambda v: 0 < v <= 1)
        _check("min_p", self.min_p, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        _check("repetition_penalty", self.repetition_penalty, "a number above 0", lambda v: 0 < v < math.inf)
        _check("top_k", self.top_k, "a whole number from 1", lambda v: isinstance(v, int) and v >= 1)
        _check("seed", self.seed, "a whole number from 0 to 2**63 - 1", lambda v: isinstance(v, int) and 0 <= v < 2**63)
        if self.repetition_penalty is None or self.seed is None:
            raise InputError("repetition_penalty and seed: expected numbers, got None")
        if self.temperature is None:
            for name in ("top_k", "top_p", "min_p"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}: expected with a temperature, got {getattr(self, name)!r} without one")

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is taken as it is."""
        return self.temperature is None and self.repetition_penalty == 1.0


GREEDY = Sampling()


def processed(logits: Tensor, sampling: Sampling, seen: Sequence[int]) -> Tensor:
    """Logits float32[V] as they are drawn from; those that cannot be drawn are -inf. seen: prompt and answer so far."""
    if sampling.repetition_penalty != 1.0 and len(seen):
        ids = torch.tensor(sorted(set(seen)), device=logits.device)
        old = logits[ids]
        penalty = sampling.repetition_penalty
        logits = logits.index_put((ids,), torch.where(old < 0, old * penalty, old / penalty))
    if sampling.temperature is None:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        least = torch.topk(logits, sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        rising, places = torch.sort(logits)
        drop = rising.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        drop[-1] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(0, places, drop), -math.inf)
    if sampling.min_p is not None:
        probabilities = logits.softmax(-1)
        highest = probabilities.max()
        logits = logits.masked_fill((probabilities < sampling.min_p * highest) & (probabilities < highest), -math.inf)
    return logits


class Chooser:
    """Chooses for one row, token after token, from a random stream of its own."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling, self._seen = sampling, list(prompt)
        self._random = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """logits: float32[V]. The token's number."""
        if self.sampling.plain:
            return int(logits.argmax())
        logits = processed(logits, self.sampling, self._seen)
        if self.sampling.temperature is None:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(logits.softmax(-1).cpu(), 1, generator=self._random))
        self._seen.append(token)
        return token
