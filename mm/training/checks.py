"""Faults of a training set-up that would cost hours, found before the first step and right after it."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import Tensor, nn

from mm.errors import InputError
from mm.training.batches import HeadBatch
from mm.training.chance import own_chance
from mm.training.heads import HeadTraining

_SHOWN = 5


def check_targets(batch: HeadBatch, needs: str) -> None:
    """Raises InputError where a first batch has no truth to learn from."""
    if needs == "boxes" and not len(batch.owner):
        raise InputError("data: the first batch shows no thing in the model's input frame; use a larger batch")
    if needs == "masks" and not batch.ask_alpha.any():
        raise InputError("data: the masks of the first batch are all empty; use a larger batch")


def check_step(training: HeadTraining, batch: HeadBatch) -> list[str]:
    """One step without its end: the loss is finite, every weight of the head is reached, and of the encoder what the
    head reads. Weights of a trained encoder that no gradient reaches (its pooling, its words) are frozen; their names
    come back. Nothing else is changed.

    Raises:
        InputError: a weight that should train is not reached, or one that should not is.
        FloatingPointError: the loss is not finite.
    """
    head, encoder = training.head, training.joined.encoder
    assert isinstance(encoder, nn.Module)
    before = copy.deepcopy(head.state_dict())
    with own_chance(0):
        terms = training.losses(batch)
        for name, term in terms.items():
            if not torch.isfinite(term):
                raise FloatingPointError(f"the {name} loss of the first batch is {term.item()}")
        torch.stack(list(terms.values())).sum().backward()
    head.load_state_dict(before)  # a batch norm has moved
    missed = [name for name, p in head.named_parameters() if p.grad is None]
    if missed:
        raise InputError(f"no gradient reaches {_some(missed)} of the head; the data does not use all of it")
    unread = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    if training.encoder_trained and not any(p.grad is not None for p in encoder.parameters()):
        raise InputError("no gradient reaches the encoder; it cannot be trained")
    stray = [name for name, p in encoder.named_parameters() if not p.requires_grad and p.grad is not None]
    if stray:
        raise InputError(f"a gradient reaches frozen weights: {_some(stray)}")
    for name, p in encoder.named_parameters():
        p.requires_grad_(p.requires_grad and name not in unread)
        p.grad = None
    for p in head.parameters():
        p.grad = None
    return unread


def frozen_digest(training: HeadTraining) -> str:
    """sha256 over every weight and statistic of the encoder that is not trained, to the bit."""
    encoder = training.joined.encoder
    assert isinstance(encoder, nn.Module)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    running = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        if name not in trained:
            running.update(name.encode() + _bytes(value))
    return running.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """sha256 over all names and weights of a module."""
    running = hashlib.sha256()
    for name, value in module.state_dict().items():
        running.update(name.encode() + _bytes(value))
    return running.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _some(names: list[str]) -> str:
    listed = ", ".join(names[:_SHOWN])
    return listed if len(names) <= _SHOWN else f"{listed} and {len(names) - _SHOWN} more"
