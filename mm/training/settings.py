"""How a head is trained: one frozen value, checked when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm.errors import InputError, nearest
from mm.recipes.fit import Plan

_WHOLE = {"steps": 1, "batch": 1, "negatives": 0, "seed": 0, "workers": 0, "save_every": 1}  # and the least of each
_POSITIVE = ("rate", "encoder_rate", "clip")


@dataclass(frozen=True)
class Settings:
    """steps: of `batch` pictures each. rate: the head's highest learning rate; encoder_rate: the share of it that a
    trained encoder learns at. warm: steps until the highest rate; None: a tenth of all. decay: of weights, not of
    biases. clip: the gradient's greatest norm. negatives: labels asked beside those that a batch shows. bf16: mixed
    precision. flips: whether half of the pictures are mirrored. workers: processes that prepare batches; 0: none beside
    this one. save_every: steps between checkpoints.

    Raises:
        InputError: a value is of the wrong type or out of its range.
    """

    steps: int = 1000
    batch: int = 8
    rate: float = 1e-3
    encoder_rate: float = 0.1
    warm: int | None = None
    decay: float = 0.03
    clip: float = 1.0
    negatives: int = 64
    bf16: bool = False
    flips: bool = False
    seed: int = 0
    workers: int = 0
    save_every: int = 250

    def __post_init__(self) -> None:
        for name, low in (*_WHOLE.items(), ("warm", 0)):
            value = getattr(self, name)
            if (type(value) is not int or value < low) and not (name == "warm" and value is None):
                raise InputError(f"{name}: expected a whole number from {low}, got {value!r}")
        for name in (*_POSITIVE, "decay"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf") or (name in _POSITIVE and value == 0):
                raise InputError(f"{name}: expected a positive number, got {value!r}")
        for name in ("bf16", "flips"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected true or false, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """From a caller's keywords; an unknown one is an InputError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"fit: no setting {name!r}.{nearest(name, known)}")
        return cls(**given)

    @property
    def plan(self) -> Plan:
        warm = max(1, self.steps // 10) if self.warm is None else self.warm
        return Plan(self.steps, self.rate, warm, self.clip, self.save_every, log_every=1)
