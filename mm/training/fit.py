"""`mm.fit`: trains a head over a model's encoder and gives back a model that has it."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader

from mm.errors import InputError, nearest
from mm.headed import WORK, Base, base_of, described, headed, save_headed, with_encoder
from mm.joined import Joined
from mm.loading import as_model, load
from mm.recipes.fit import Plan, adamw, run_steps
from mm.training.batches import HeadBatch, HeadBatches, Rules
from mm.training.chance import own_chance
from mm.training.checks import check_step, check_targets, frozen_digest, weights_digest
from mm.training.data import held_out, open_data
from mm.training.examples import Examples, check_known
from mm.training.heads import KINDS, HeadTraining, Kind, Word, ready, text_table
from mm.training.interrupt import Interrupted, Stop, stop_on_signal
from mm.training.run import Run
from mm.training.validate import validated
from mm.version import __version__

EncoderWord = Literal["frozen", "trained"]
STAGES = ("head",)

_SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """How a head is trained.

    steps: of `batch` pictures each. rate: the head's highest learning rate; encoder_rate: the share of it that a
    trained encoder learns at. warm: steps until the highest rate; None: a tenth of all. decay: of weights, not of
    biases. clip: the gradient's greatest norm. negatives: labels asked beside those that a batch shows. bf16: mixed
    precision. flips: whether half of the pictures are mirrored. workers: processes that prepare batches.
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
        least = {"steps": 1, "batch": 1, "negatives": 0, "seed": 0, "workers": 0, "save_every": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise InputError(f"{name}: expected a whole number from {low}, got {value!r}")
        if self.warm is not None and (type(self.warm) is not int or self.warm < 0):
            raise InputError(f"warm: expected a whole number of steps or None, got {self.warm!r}")
        for name in ("rate", "encoder_rate", "decay", "clip"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise InputError(f"{name}: expected a number from 0 up, got {value!r}")

    @property
    def plan(self) -> Plan:
        warm = max(1, self.steps // 10) if self.warm is None else self.warm
        return Plan(self.steps, self.rate, warm, self.clip, self.save_every, log_every=1)


def fit(
    model: str | os.PathLike[str] | Joined,
    data: Any,
    *,
    stage: str = "head",
    head: Word,
    encoder: EncoderWord = "frozen",
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    labels: Sequence[str] | None = None,
    validation: Any = None,
    force: bool = False,
    device: str | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Joined:
    """Trains a head on your data over the encoder of any image-text model; the model with that head, for every task.

    model: a name that `mm.load` takes, a folder, or a loaded model, which stays as it is.
    data: a folder in COCO's layout (its JSON file, where it holds several), "scenes" or "scenes:COUNT" of the drawn
    world, or pairs of an image and its truth: {"labels": n texts, "boxes_xyxy": float[n, 4], "masks": [n, H, W]},
    `Detections` or `Segmentation`, in pixels of the upright image.
    head: "detect" (boxes), "segment" (masks) or "matte" (masks 0..1). A head that the model has is trained on, unless
    `fresh`; otherwise a new one is made for the encoder's widths.
    encoder: "frozen", or "trained" along; its text tower never is. Heads that stood on an encoder as it was before are
    left out of the result then.
    out: the folder to write. It holds the run in `fit/` (checkpoint, log), from which the same call goes on after an
    interruption, and at the end the model that `mm.load` reads.
    labels: all that may be asked for; None: those of the data.
    validation: a share of the data between 0 and 1, or data of its own; figures are logged after each epoch and at the
    end: AP50 and AP, mIoU, or MAD.
    force: go on in `out` though settings or data have changed. progress: a bar on stderr; None: on a terminal only.
    settings: the fields of `mm.training.fit.Settings`.

    Raises:
        InputError: the data, a setting or the model cannot be used so; the folder holds another run.
        FloatingPointError: the loss is not finite. KeyboardInterrupt: stopped, after the step was saved.
        ResourceLimitError: the disk is full; the checkpoint before is whole.
    """
    _one_of("stage", stage, STAGES)
    _one_of("head", head, tuple(KINDS))
    _one_of("encoder", encoder, get_args(EncoderWord))
    chosen = _settings(settings)
    kind = KINDS[head]
    shown, seen = _data(data, head, validation, chosen.seed)
    known = _labels(shown, seen, labels, kind)
    joined = as_model(model) if device is None or isinstance(model, Joined) else load(model, device=device)
    base = base_of(model, joined) if out is not None else None
    target = None if out is None else _target(Path(os.path.expanduser(out)), base)
    with own_chance(chosen.seed):
        grown, module = ready(joined, kind, fresh=fresh)
        trained = encoder == "trained"
        if trained:
            grown = _unfrozen(grown)
        training = _training(grown, kind, module, known, chosen, trained)
        words = {"model": joined.name, "base": joined.sha256, "head": head, "encoder": encoder, "fresh": fresh}
        run = None
        if target is not None:
            words |= {"settings": described(module)[1], "labels": list(known), "data": shown.digest()}
            words |= {"validation": seen.digest() if seen else None, "mm": __version__}
            run = Run(target / WORK, words | dataclasses.asdict(chosen))
        session = _Session(training, head, shown, seen, known, chosen, run, joined)
        session.steps(force=force, bar=progress)
        result = session.result(Path(os.fspath(target)).name if target else f"{joined.name}+{head}")
    if target is not None and base is not None:
        about = {"head": head, "encoder": encoder, "data": shown.name, "pictures": len(shown)}
        about |= {"labels": list(known)[:1000], "figures": session.figures, "mm": __version__}
        about |= dataclasses.asdict(chosen)
        save_headed(result, target, part=kind.part, base=base, encoder_trained=trained, fitted=about)
        return load(target, device=str(next(module.parameters()).device))
    return result
