"""The loop under every stage of a recipe: schedule, log, progress, checkpoints that survive a kill."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mm.recipes.batches import Batch, Batches


def cosine(step: int, total: int, warm: int = 200, floor: float = 0.01) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine."""
    if step < warm:
        return (step + 1) / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class Checkpoint:
    """Weights, optimiser state and the step, in one safetensors file that is replaced as a whole."""

    def __init__(self, path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.path, self.module, self.optimiser = path, module, optimiser

    def save(self, step: int) -> None:
        tensors = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
        unique = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        save_file(unique, temporary, metadata={"step": str(step)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def load(self) -> int:
        """The step to go on from; 0 where there is no checkpoint."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no mapping)
            step = int(file.metadata()["step"])
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


def fit_stage(
    name: str, folder: Path, module: nn.Module, losses: Callable[[Batch], dict[str, Tensor]], *,
    steps: int, batch: int, peak: float, asks: int = 16, shift: int = 0, workers: int = 1, save_every: int = 250,
) -> None:  # fmt: skip
    """Trains what of `module` requires gradients; goes on from `folder/name.safetensors` where that exists.

    shift: added to the step that draws a batch, so that stages see different scenes.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    flat = [p for p in trained if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": [p for p in trained if p.ndim > 1]}, {"params": flat, "weight_decay": 0.0}],
        lr=peak, weight_decay=0.03, betas=(0.9, 0.98),
    )  # fmt: skip
    checkpoint = Checkpoint(folder / f"{name}.safetensors", module, optimiser)
    first = checkpoint.load()
    stream = Batches(first + shift, steps + shift, batch, asks)
    loader = DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=4)
    started, log = time.monotonic(), folder / f"{name}.jsonl"
    for step, data in enumerate(tqdm(loader, total=steps, initial=first, desc=name, mininterval=5), first):
        data = data.to(next(module.parameters()).device)
        for group in optimiser.param_groups:
            group["lr"] = peak * cosine(step, steps)
        terms = losses(data)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 20 == 0:
            row = {"step": step, "seconds": round(time.monotonic() - started, 1)} | {
                k: round(v.item(), 4) for k, v in terms.items()
            }
            with open(log, "a") as file:
                file.write(json.dumps(row) + "\n")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            checkpoint.save(step + 1)
