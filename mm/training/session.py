"""One training of one head, from the checks before the first step to the figures after the last."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mm.joined import Joined, TextCache
from mm.recipes.fit import adamw, run_steps
from mm.training.batches import HeadBatch, HeadBatches, Rules
from mm.training.checks import check_step, check_targets, frozen_digest
from mm.training.examples import Examples, Scenes
from mm.training.heads import HeadTraining
from mm.training.interrupt import Stop, stop_on_signal
from mm.training.run import Run, warn_of
from mm.training.settings import Settings
from mm.training.validate import validated


@dataclass
class Session:
    """word: of the head. shown: what it learns from; seen: what it is measured on. run: None keeps nothing.

    figures: of the last validation. broken: pictures that could not be had, and why.
    """

    training: HeadTraining
    word: str
    shown: Examples
    seen: Examples | None
    labels: tuple[str, ...]
    settings: Settings
    run: Run | None
    figures: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def work(self, *, force: bool, bar: bool | None) -> None:
        """All steps that are still to do.

        Raises:
            InputError: a check before or after the first step fails. Interrupted: a signal asked for the end.
        """
        settings, training = self.settings, self.training
        encoder = training.joined.encoder
        assert isinstance(encoder, nn.Module)
        device = next(encoder.parameters()).device
        rules = Rules(settings.batch, settings.seed, settings.flips, settings.negatives, training.kind.asks)
        batches = HeadBatches(self.shown, self.labels, training.joined.spec.preprocessing, rules, range(1))
        first_batch = batches.make(0).to(device)
        check_targets(first_batch, training.kind.needs)
        check_step(training, first_batch)
        parts = {"head": (training.head, 1.0)}
        if training.encoder_trained:
            parts["encoder"] = (encoder, settings.encoder_rate)
        optimiser = adamw(parts.values(), decay=settings.decay)
        module = nn.ModuleDict({name: part for name, (part, _) in parts.items()})
        first = self.run.resume(module, optimiser, force=force) if self.run else 0
        batches.steps = range(first, settings.steps)
        loader = DataLoader(
            batches, batch_size=None, num_workers=settings.workers, worker_init_fn=_deaf,
            generator=torch.Generator(),  # so that the loader draws nothing from the run's own stream
        )  # fmt: skip
        with stop_on_signal() as stop:
            done = run_steps(
                f"fit {self.word}", settings.plan, loader, training.losses, optimiser, first=first,
                save=self.run.save if self.run else None, log=self.run.log if self.run else None,
                after=_After(self, stop, frozen_digest(training)), bar=bar,
            )  # fmt: skip
        warn_of(self.broken, stacklevel=3)
        stop.check(done, settings.steps)
        if self.seen and not self.figures:  # all steps were done in an earlier call
            self.figures = self.measured()

    def measured(self) -> dict[str, float]:
        """The figures of the held-out examples as the head stands."""
        assert self.seen is not None
        head = self.training.head
        whole = replace(self.training.joined, texts=TextCache(), **{self.training.kind.part: head})
        head.eval()
        try:
            return validated(whole, self.word, self.seen, self.labels)
        finally:
            head.train()

    def model(self) -> Joined:
        """The model with its head, nothing of which requires gradients any more."""
        head, joined = self.training.head, self.training.joined
        assert isinstance(joined.encoder, nn.Module)
        if self.training.encoder_trained:
            joined.encoder.requires_grad_(False)
        world = joined.world if isinstance(self.shown, Scenes) else None  # its warning is of pictures unlike scenes
        made = {self.training.kind.part: head.eval().requires_grad_(False), "world": world}
        return replace(joined, texts=TextCache(), **made)


@dataclass
class _After:
    """What follows a step. frozen: the digest of what must not change."""

    session: Session
    stop: Stop
    frozen: str
    checked: bool = False

    def __call__(self, step: int, batch: HeadBatch, terms: dict[str, Tensor]) -> bool:
        session, settings = self.session, self.session.settings
        if not self.checked and frozen_digest(session.training) != self.frozen:
            raise RuntimeError("frozen weights changed in a step; nothing was saved of it")
        self.checked = True
        for name, reason in batch.broken:
            if name not in session.broken:
                session.broken[name] = reason
                self._note({"step": step, "left_out": name, "reason": reason})
        count = len(session.shown)
        epochs = [done * settings.batch // count for done in (step, step + 1)]
        last = step + 1 == settings.steps
        if session.seen and (last or epochs[1] > epochs[0]):
            session.figures = session.measured()
            self._note({"step": step, "epoch": epochs[1], "validation": session.figures})
        return bool(self.stop)

    def _note(self, row: dict[str, object]) -> None:
        if self.session.run:
            self.session.run.note(row)


def _deaf(_: int) -> None:
    """A worker leaves Ctrl-C to the process that it works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
