"""The loop under every stage of a recipe: schedule, log, progress, checkpoints that survive a kill."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm


def cosine(step: int, total: int, warm: int = 200, floor: float = 0.01) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine."""
    if step < warm:
        return (step + 1) / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class Checkpoint:
    """Weights, optimiser state and the step, in one safetensors file that is replaced as a whole."""

    def __init__(self, path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.path, self.module, self.optimiser = path, module, optimiser
        self.extra: dict[str, Tensor] = {}

    def save(self, step: int, extra: Mapping[str, Tensor] | None = None, **notes: str) -> None:
        """extra: more tensors to keep, such as the state of random numbers; notes: more words, such as settings."""
        tensors = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
        tensors |= {f"extra.{k}": v for k, v in (extra or {}).items()}
        unique = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        try:
            save_file(unique, temporary, metadata={"step": str(step), **notes})
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self.extra = dict(extra or {})

    def notes(self) -> dict[str, str]:
        """The step and the other words of the file; empty where there is no checkpoint."""
        if not self.path.exists():
            return {}
        with safe_open(self.path, "pt") as file:
            return dict(file.metadata())

    def load(self) -> int:
        """The step to go on from; 0 where there is no checkpoint. What was saved beside is `extra` then."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no mapping)
            step = int(file.metadata()["step"])
        self.extra = {k[6:]: v for k, v in tensors.items() if k.startswith("extra.")}
        self.module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key in (k for k in tensors if k.startswith("optimiser.")):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = tensors[key]
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        return step


def load_stage(name: str, folder: Path, module: nn.Module) -> None:
    """The weights of a stage's last checkpoint, without going on with it."""
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        module.load_state_dict({k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("model.")})  # noqa: SIM118


class Stream(IterableDataset):
    """Batches `first` to `last - 1`, for a loader with any number of workers; a resumed run goes on exactly."""

    def __init__(self, make: Callable[[int], Any], first: int, last: int) -> None:
        self.make, self.first, self.last = make, first, last

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        shift, stride = (info.id, info.num_workers) if info else (0, 1)
        return map(self.make, range(self.first + shift, self.last, stride))


def fit_stage(
    name: str, folder: Path, module: nn.Module, losses: Callable[[Any], dict[str, Tensor]], *,
    make: Callable[[int], Any], steps: int, peak: float, shift: int = 0, workers: int = 1, save_every: int = 250,
    parts: Sequence[tuple[nn.Module, float]] | None = None,
) -> None:  # fmt: skip
    """Trains what of `module` requires gradients; goes on from `folder/name.safetensors` where that exists.

    parts: of the module, each with its share of the learning rate; the whole, at all of it, where not given.
    make: the batch of a step, a pure function of it, which workers may call; a batch has `to(device)`.
    shift: added to the step that draws a batch, so that stages see different scenes.
    """
    optimiser = adamw(parts or [(module, 1.0)], decay=0.03)
    checkpoint = Checkpoint(folder / f"{name}.safetensors", module, optimiser)
    first = checkpoint.load()
    stream = Stream(make, first + shift, steps + shift)
    loader = DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=4)
    run_steps(
        name, Plan(steps, peak, save_every=save_every), loader, losses, optimiser,
        first=first, save=checkpoint.save, log=folder / f"{name}.jsonl",
    )  # fmt: skip


def adamw(parts: Iterable[tuple[nn.Module, float]], *, decay: float) -> torch.optim.AdamW:
    """Over what of each part requires gradients, at its share of the learning rate; vectors do not decay."""
    groups: list[dict[str, Any]] = []
    for module, share in parts:
        trained = [p for p in module.parameters() if p.requires_grad]
        groups.append({"params": [p for p in trained if p.ndim > 1], "weight_decay": decay, "share": share})
        groups.append({"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "share": share})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


@dataclass(frozen=True)
class Plan:
    """steps: of the whole run, before and after a resumption. peak: the highest learning rate, reached after `warm`
    steps. clip: the gradient's greatest norm."""

    steps: int
    peak: float
    warm: int = 200
    clip: float = 1.0
    save_every: int = 250
    log_every: int = 20


def run_steps(
    name: str, plan: Plan, batches: Iterable[Any], losses: Callable[[Any], dict[str, Tensor]],
    optimiser: torch.optim.Optimizer, *, first: int = 0, save: Callable[[int], None] | None = None,
    log: Path | None = None, after: Callable[[int, Any, dict[str, Tensor]], bool] | None = None,
    bar: bool | None = True,
) -> int:  # fmt: skip
    """Steps `first` to the plan's last, one batch each; how many steps are done at the end.

    save: keeps everything at a number of steps done. after: sees each step with its batch and its terms, and ends the
    run, once it is saved, by answering true. bar: None shows it on a terminal only.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    hidden = None if bar is None else not bar
    started, done = time.monotonic(), first
    shown = tqdm(batches, total=plan.steps, initial=first, desc=name, mininterval=5, disable=hidden)
    for step, data in enumerate(shown, first):
        data = data.to(trained[0].device)
        for group in optimiser.param_groups:
            group["lr"] = group.get("share", 1.0) * plan.peak * cosine(step, plan.steps, plan.warm)
        terms = losses(data)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, plan.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if log and step % plan.log_every == 0:
            seconds = {"seconds": round(time.monotonic() - started, 1)}
            append_row(log, {"step": step} | seconds | {k: round(v.item(), 4) for k, v in terms.items()})
        done = step + 1
        ended = after is not None and after(step, data, terms)
        if save and (ended or done % plan.save_every == 0 or done == plan.steps):
            save(done)
        if ended:
            break
    return done


def append_row(log: Path, row: Mapping[str, Any]) -> None:
    with open(log, "a") as file:
        file.write(json.dumps(row) + "\n")
