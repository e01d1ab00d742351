"""`mm.fit(model, data, stage="align")`: trains the connector of a joined model, and nothing else of it.

The first stage of LLaVA (Liu et al., "Visual Instruction Tuning", NeurIPS 2023, section 4.2): encoder and language
model stay as they were published; the connector learns to say in the decoder's words what the encoder sees.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mm.checkpoints.hub import locate
from mm.checkpoints.loading import as_model, load
from mm.checkpoints.saved import save_with_connector
from mm.encoded import encode_pictures
from mm.errors import ImageInputError, InputError, ResourceLimitError
from mm.images import Picture
from mm.joined import Joined
from mm.joining import save_joined
from mm.recipes.fit import adamw, run_steps
from mm.training.chance import own_chance
from mm.training.checks import weights_digest
from mm.training.dialogues import Dialogue, Dialogues
from mm.training.interrupt import Interrupted, stop_on_signal
from mm.training.run import Run
from mm.training.settings import Settings
from mm.version import __version__
from mm.vlm import Speaker

_NOTHING = -100  # targets that cost nothing
_SHOWN = 5


def align(
    model: str | os.PathLike[str] | Joined, data: Any, *, out: str | os.PathLike[str] | None, force: bool,
    device: str | None, progress: bool | None, settings: Settings,
) -> Joined:  # fmt: skip
    """The model with its connector trained; arguments and errors as of `mm.fit`."""
    joined = load(model, device=device) if device and not isinstance(model, Joined) else as_model(model)
    speaker = joined.need("speaker")
    assert isinstance(speaker, Speaker)
    dialogues = Dialogues(data, speaker.prompt)
    training = AlignTraining(joined, speaker)
    with own_chance(settings.seed):
        run = None
        if out is not None:
            asked = {"stage": "align", "base": joined.sha256, "data": dialogues.digest(), "mm": __version__}
            before = {"connector": weights_digest(speaker.connector)}
            run = Run(_beside(Path(os.path.expanduser(out))), asked | before | dataclasses.asdict(settings))
        _work(training, dialogues, settings, run, force=force, bar=progress)
    made = replace(joined, speaker=training.speaker(), name=Path(out).name if out else f"{joined.name}, aligned")
    if out is not None and joined.plan is not None:
        save_joined(made, Path(os.path.expanduser(out)))
    elif out is not None:
        source = locate(joined.name if isinstance(model, Joined) else model).folder
        save_with_connector(source, Path(os.path.expanduser(out)), training.speaker().connector.state_dict())
    return made


def _beside(out: Path) -> Path:
    """The folder of the run: `out` itself is written at the end, as a whole."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out: there is something at {out.name!r} already; give a folder that does not exist yet")
    return out.with_name(f"{out.name}.fit")


@dataclass
class _Batch:
    """Dialogues whose pictures could be read, each with its picture."""

    rows: list[tuple[Dialogue, Picture]]

    def to(self, device: torch.device) -> _Batch:
        return self


class _Batches:
    """The batches of some steps: a pure function of the seed and the step. broken: pictures that could not be had."""

    def __init__(self, dialogues: Dialogues, settings: Settings, steps: range) -> None:
        self.dialogues, self.settings, self.steps = dialogues, settings, steps
        self.broken: dict[str, str] = {}

    def __iter__(self) -> Iterator[_Batch]:
        for step in self.steps:
            yield self.make(step)

    def make(self, step: int) -> _Batch:
        count, size = len(self.dialogues), self.settings.batch
        rows: list[tuple[Dialogue, Picture]] = []
        for number in range(step * size, (step + 1) * size):
            epoch, place = divmod(number, count)
            order = self._order(epoch)
            dialogue = self.dialogues[int(order[place]) if order is not None else place]
            try:
                rows.append((dialogue, dialogue.picture()))
            except (ImageInputError, ResourceLimitError) as error:
                self.broken[str(getattr(dialogue.image, "name", dialogue.image))[:80]] = str(error)
        if not rows:
            raise InputError(f"data: not one of the {size} pictures of step {step} can be read; the last: "
                             f"{list(self.broken.values())[-1]}")  # fmt: skip
        return _Batch(rows)

    def _order(self, epoch: int) -> np.ndarray | None:
        """Every epoch in an order of its own; scenes are drawn by chance as they are."""
        if self.dialogues.drawn:
            return None
        return np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.dialogues))


class AlignTraining:
    """A connector of its own in float32, over the frozen halves of a model."""

    def __init__(self, joined: Joined, speaker: Speaker) -> None:
        self.joined, self.given = joined, speaker
        self.connector = copy.deepcopy(speaker.connector).float().requires_grad_(True).train()
        finder = getattr(self.connector, "finder", None)
        if isinstance(finder, nn.Module):  # how `regions` finds things comes from a detection head
            finder.requires_grad_(False)

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the answers' tokens, each with its end."""
        lm = self.given.decoder.lm
        encoded = encode_pictures(self.joined, [picture for _, picture in batch.rows])
        rows, targets = [], []
        for (dialogue, _), each in zip(batch.rows, encoded, strict=True):
            embeds, said = self._row(dialogue, each.features)
            rows.append(embeds)
            targets.append(F.pad(said, (len(embeds) - len(said), 0), value=_NOTHING))
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
        picture, _ = self.connector(tokens.clone().to(weight.device, weight.dtype), grid)
        words = speaker.decoder.embed(torch.tensor([[*before, *after, *said]]))
        parts = [words[:, : len(before)], picture.to(words), words[:, len(before) :]]
        row = torch.cat(parts, 1)[0]
        if len(row) > speaker.decoder.context:
            raise ResourceLimitError(
                f"data: a dialogue of {len(row)} tokens with its picture; the decoder reads {speaker.decoder.context}"
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
    for part in (training.joined.encoder, training.given.decoder):
        assert isinstance(part, nn.Module)
        part.requires_grad_(False).eval()
    optimiser = adamw([(training.connector, 1.0)], decay=settings.decay)
    first = run.resume(training.connector, optimiser, force=force) if run else 0
    batches = _Batches(dialogues, settings, range(first, settings.steps))
    with stop_on_signal() as stop:
        done = run_steps(
            "fit align", settings.plan, batches, training.losses, optimiser, first=first,
            save=run.save if run else None, log=run.log if run else None, after=lambda *_: bool(stop), bar=bar,
        )  # fmt: skip
    if batches.broken:
        names = "; ".join(f"{name}: {why}" for name, why in list(batches.broken.items())[:_SHOWN])
        warnings.warn(f"{len(batches.broken)} pictures were left out: {names}", stacklevel=4)
    if stop and done < settings.steps:
        raise Interrupted(f"stopped after step {done} of {settings.steps}")
