"""`mm.fit(model, data, stage="align")`: trains the connector of a joined model, and nothing else of it.

The first stage of LLaVA (Liu et al., "Visual Instruction Tuning", NeurIPS 2023, section 4.2): encoder and language
model stay as they were published; the connector learns to say in the decoder's words what the encoder sees.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mm.checkpoints.headed import combined
from mm.checkpoints.hub import locate
from mm.checkpoints.loading import as_model, load
from mm.checkpoints.saved import save_with_connector
from mm.connectors.base import Connector
from mm.encoded import encode_pictures
from mm.errors import ImageInputError, InputError, ResourceLimitError
from mm.images import Picture
from mm.joined import Joined
from mm.joining import save_joined
from mm.recipes.fit import adamw, run_steps
from mm.training.chance import own_chance
from mm.training.checks import weights_digest
from mm.training.dialogues import Dialogue, Dialogues
from mm.training.interrupt import stop_on_signal
from mm.training.run import Run, warn_of
from mm.training.settings import Settings
from mm.version import __version__
from mm.vlm import Speaker

_NOTHING = -100  # targets that cost nothing
_OF_HEADS = ("encoder_rate", "negatives", "flips", "workers")  # settings that this stage has no use for


def align(
    model: str | os.PathLike[str] | Joined, data: Any, *, out: str | os.PathLike[str] | None, force: bool,
    device: str | None, progress: bool | None, settings: Settings,
) -> Joined:  # fmt: skip
    """The model with its connector trained; arguments and errors as of `mm.fit`."""
    _check_settings(settings)
    joined = load(model, device=device) if device and not isinstance(model, Joined) else as_model(model)
    speaker = joined.need("speaker")
    assert isinstance(speaker, Speaker)
    dialogues = Dialogues(data, speaker.prompt)
    training = AlignTraining(joined, speaker, bf16=settings.bf16)
    target = None if out is None else Path(os.path.expanduser(out))
    with own_chance(settings.seed):
        run = None
        if target is not None:
            asked = {"stage": "align", "base": joined.sha256, "data": dialogues.digest(), "mm": __version__}
            before = {"connector": weights_digest(speaker.connector)}
            run = Run(_beside(target), asked | before | dataclasses.asdict(settings))
        _work(training, dialogues, settings, run, force=force, bar=progress)
    trained = training.speaker()
    sha256 = combined({"base": joined.sha256, "connector": weights_digest(trained.connector)})
    name = target.name if target else f"{joined.name}, aligned"
    made = replace(joined, speaker=trained, name=name, sha256=sha256)
    if target is not None and joined.plan is not None:
        save_joined(made, target)
    elif target is not None:
        source = locate(joined.name if isinstance(model, Joined) else model).folder
        save_with_connector(source, target, trained.connector.state_dict())
    return made


def _check_settings(settings: Settings) -> None:
    """Refuses what would change nothing."""
    usual = Settings()
    for name in _OF_HEADS:
        if getattr(settings, name) != getattr(usual, name):
            raise InputError(f'{name}: stage="align" has no use for it; it is a setting of stage="head"')


def _beside(out: Path) -> Path:
    """The folder of the run: `out` itself is written at the end, as a whole."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out: there is something at {out.name!r} already; give a folder that does not exist yet")
    return out.with_name(f"{out.name}.fit")


@dataclass
class Batch:
    """Dialogues whose pictures could be read, each with its picture."""

    rows: list[tuple[Dialogue, Picture]]

    def to(self, device: torch.device) -> Batch:
        return self


class _Batches:
    """The batches of some steps: a pure function of the seed and the step. broken: what was left out, and why."""

    def __init__(self, dialogues: Dialogues, settings: Settings, steps: range, broken: dict[str, str]) -> None:
        self.dialogues, self.settings, self.steps, self.broken = dialogues, settings, steps, broken
        self._order = functools.lru_cache(maxsize=2)(self._drawn_order)  # a batch may reach into the next epoch

    def __iter__(self) -> Iterator[Batch]:
        for step in self.steps:
            yield self.make(step)

    def make(self, step: int) -> Batch:
        size = self.settings.batch
        rows: list[tuple[Dialogue, Picture]] = []
        for number in range(step * size, (step + 1) * size):
            epoch, place = divmod(number, len(self.dialogues))
            # Scenes are drawn by chance as they are.
            dialogue = self.dialogues[place if self.dialogues.drawn else int(self._order(epoch)[place])]
            try:
                rows.append((dialogue, dialogue.picture()))
            except (ImageInputError, ResourceLimitError) as error:
                self.broken[dialogue.name] = str(error)
        _some(rows, self.broken)
        return Batch(rows)

    def _drawn_order(self, epoch: int) -> np.ndarray:
        """Every epoch in an order of its own."""
        return np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.dialogues))


def _some(rows: Sequence[Any], broken: dict[str, str]) -> None:
    """Raises InputError where nothing is left of a batch."""
    if not rows:
        raise InputError(f"data: nothing of a batch can be used; the last: {list(broken.values())[-1]}")


class AlignTraining:
    """A connector of its own in float32, over the frozen halves of a model.

    broken: dialogues that were left out, and why.
    """

    def __init__(self, joined: Joined, speaker: Speaker, *, bf16: bool = False) -> None:
        self.joined, self.given, self.bf16 = joined, speaker, bf16
        self.connector = copy.deepcopy(speaker.connector).float().train()
        if isinstance(self.connector, Connector):
            self.connector.learnable()
        else:
            self.connector.requires_grad_(True)
        self.broken: dict[str, str] = {}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the answers' tokens, each with its end."""
        lm = self.given.decoder.lm
        encoded = encode_pictures(self.joined, [picture for _, picture in batch.rows])
        rows, targets = [], []
        with torch.autocast(lm.device.type, torch.bfloat16, enabled=self.bf16):
            for (dialogue, _), each in zip(batch.rows, encoded, strict=True):
                try:
                    embeds, said = self._row(dialogue, each.features)
                except ResourceLimitError as error:
                    self.broken[dialogue.name] = str(error)
                    continue
                rows.append(embeds)
                targets.append(F.pad(said, (len(embeds) - len(said), 0), value=_NOTHING))
            _some(rows, self.broken)
            embeds = pad_sequence(rows, batch_first=True)
            truth = pad_sequence(targets, batch_first=True, padding_value=_NOTHING)
            mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=embeds.device) for row in rows], True)
            logits = lm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits[:, :-1]
        wanted = truth[:, 1:] != _NOTHING
        return {"words": F.cross_entropy(logits[wanted].float(), truth[:, 1:][wanted])}

    def _row(self, dialogue: Dialogue, features: Any) -> tuple[Tensor, Tensor]:
        """float[T, D] of picture, words and answer, and the answer's numbers int64[A], which are the last of them."""
        speaker = self.given
        before, after = speaker.prompts(dialogue.turns).parts
        tokenizer = speaker.decoder.tokenizer
        said = [*tokenizer(dialogue.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        tokens, grid = speaker.view(features)
        weight = next(self.connector.parameters())
        tokens = tokens.clone()  # what inference mode made can be no part of a graph
        picture, _ = self.connector(tokens.to(weight.device, weight.dtype), grid)
        words = speaker.decoder.embed(torch.tensor([[*before, *after, *said]]))
        parts = [words[:, : len(before)], picture.to(words), words[:, len(before) :]]
        row = torch.cat(parts, 1)[0]
        if len(row) > speaker.decoder.context:
            raise ResourceLimitError(
                f"{len(row)} tokens with the picture, and the decoder reads {speaker.decoder.context}"
            )
        return row, torch.tensor(said, device=row.device)

    def speaker(self) -> Speaker:
        """The language half with the trained connector, in the precision that it had."""
        like = next(self.given.connector.parameters())
        connector = self.connector.eval().requires_grad_(False).to(like.dtype)
        return replace(self.given, connector=connector, notes=())


def _work(
    training: AlignTraining, dialogues: Dialogues, settings: Settings, run: Run | None, *, force: bool,
    bar: bool | None,
) -> None:  # fmt: skip
    optimiser = adamw([(training.connector, 1.0)], decay=settings.decay)
    first = run.resume(training.connector, optimiser, force=force) if run else 0
    batches = _Batches(dialogues, settings, range(first, settings.steps), training.broken)
    with stop_on_signal() as stop:
        done = run_steps(
            "fit align", settings.plan, batches, training.losses, optimiser, first=first,
            save=run.save if run else None, log=run.log if run else None, after=lambda *_: bool(stop), bar=bar,
        )  # fmt: skip
    warn_of(training.broken, stacklevel=4)
    stop.check(done, settings.steps)
