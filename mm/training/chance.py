"""The streams of random numbers: a run has its own, can lay them down with its weights, and gives the caller's back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def own_chance(seed: int) -> Iterator[None]:
    """Inside, every stream starts from `seed`; behind it, all go on as if nothing had been drawn."""
    before = chance_state()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        restore_chance(before)


def chance_state() -> dict[str, Tensor]:
    """The streams of torch (on every device), NumPy and Python as tensors."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda.{i}": each for i, each in enumerate(torch.cuda.get_rng_state_all())}
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    state["numpy.keys"] = torch.from_numpy(np.array(keys, np.int64))
    state["numpy.rest"] = torch.tensor([place, has_gauss, gauss], dtype=torch.float64)
    _, words, spare = random.getstate()
    state["python.words"] = torch.tensor(words, dtype=torch.int64)
    state["python.spare"] = torch.tensor([] if spare is None else [spare], dtype=torch.float64)
    return state


def restore_chance(state: Mapping[str, Tensor]) -> None:
    """Sets the streams as `chance_state` found them; an empty state leaves them alone."""
    if not state:
        return
    torch.set_rng_state(state["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{i}"], i)
    place, has_gauss, gauss = state["numpy.rest"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), gauss))
    spare = state["python.spare"].tolist()
    random.setstate((3, tuple(state["python.words"].tolist()), spare[0] if spare else None))
