"""`mm.fit`: trains the new part of a model, a head or a connector, and gives back the model that has it."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import nn

from mm.checkpoints.headed import PARTS, WORK, Base, base_of, combined, described, save_headed
from mm.checkpoints.loading import as_model, load
from mm.errors import InputError, ResourceLimitError, nearest
from mm.joined import Joined
from mm.labels import check_labels
from mm.training.align import align
from mm.training.chance import own_chance
from mm.training.checks import weights_digest
from mm.training.data import held_out, open_data
from mm.training.examples import Examples, check_known
from mm.training.heads import KINDS, HeadTraining, Kind, Word, ready, text_table
from mm.training.run import Run, reason
from mm.training.session import Session
from mm.training.settings import Settings
from mm.version import __version__

EncoderWord = Literal["frozen", "trained"]

_STAGES = ("head", "align")
_LABELS_KEPT = 1000  # in the settings of a saved folder


def fit(
    model: str | os.PathLike[str] | Joined,
    data: Any,
    *,
    head: Word | None = None,
    stage: Literal["head", "align"] = "head",
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
    """Trains the new part of a model on your data; gives the model with it, for every task.

    model: a name that `mm.load` takes, a folder, or a loaded model, which stays as it is.

    stage "head" trains a head over the encoder of an image-text model.
    data: a folder in COCO's layout (or its JSON file), "scenes" or "scenes:COUNT" of the drawn world, or pairs of an
    image and its truth: {"labels": n texts, "boxes_xyxy": float[n, 4], "masks": [n, H, W]}, `Detections` or
    `Segmentation`, in pixels of the upright image. Crowds are left out; a broken picture costs only itself.
    head: "detect" (boxes), "segment" (masks) or "matte" (masks in 0..1). A head that the model has is trained on,
    unless `fresh`; otherwise a new one is made for the encoder's widths.
    encoder: "frozen", or "trained" along, but for its text tower. Heads that stood on the encoder as it was are then
    not in the result.
    out: the folder to write: the run in `fit/` (checkpoint and log), from which the same call goes on after an
    interruption, and at the end the model that `mm.load` reads. None keeps nothing.
    labels: all that may be asked for; None: those of the data.
    validation: a share of the data between 0 and 1, or data of its own. Figures are logged after each epoch and at
    the end: AP50 and AP, mIoU, or MAD.
    force: go on in `out` though settings or data have changed. progress: a bar on stderr; None: on a terminal only.
    settings: the fields of `mm.training.settings.Settings`: steps, batch, rate, seed, flips, bf16 …

    stage "align" trains the connector of what `mm.join` made, so that its decoder can read what its encoder sees; both
    stay as they are. It takes `out`, `force`, `device`, `progress` and settings, but for those that only heads have
    (encoder_rate, negatives, flips, workers), and none of the words on heads.
    data: a JSON file in LLaVA's layout with pictures beside it or in images/, "scenes" or "scenes:COUNT", or
    (image, answer) and (image, question, answer) pairs. The run lies beside `out`, in `out`.fit.

    Raises:
        InputError: the data, a setting or the model cannot be used so, or `out` holds another run.
        FloatingPointError: the loss is not finite. ResourceLimitError: the disk is full; the last checkpoint is whole.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM; the step was finished and saved first.
    """
    _one_of("stage", stage, _STAGES)
    if stage == "align":
        _without_head(head=head, fresh=fresh, labels=labels, validation=validation, encoder=encoder)
        chosen = Settings.of(settings)
        return align(model, data, out=out, force=force, device=device, progress=progress, settings=chosen)
    if head is None:
        raise InputError(f"head: expected one of {', '.join(KINDS)}, got none")
    _one_of("head", head, tuple(KINDS))
    _one_of("encoder", encoder, get_args(EncoderWord))
    chosen, kind = Settings.of(settings), KINDS[head]
    shown, seen = _data(data, validation, head, chosen.seed)
    known = _labels(shown, seen, labels)
    joined = load(model, device=device) if device and not isinstance(model, Joined) else as_model(model)
    base = None if out is None else base_of(model, joined)
    target = None if out is None else _target(Path(os.path.expanduser(out)), base)
    trained = encoder == "trained"
    with own_chance(chosen.seed):
        training = _training(joined, kind, known, fresh=fresh, trained=trained, bf16=chosen.bf16)
        run = None
        if target is not None:
            asked = {"base": joined.sha256, "head": head, "encoder": encoder, "fresh": fresh, "labels": list(known)}
            asked |= {"design": described(training.head), "data": shown.digest(), "mm": __version__}
            asked |= {"validation": seen.digest() if seen else None}
            run = Run(target / WORK, asked | dataclasses.asdict(chosen))
        session = Session(training, head, shown, seen, known, chosen, run)
        session.work(force=force, bar=progress)
    made = replace(session.model(), name=target.name if target else f"{joined.name}+{head}")
    if target is None or base is None:
        parts = [training.head, *([made.encoder] if trained else [])]
        files = {str(i): weights_digest(part) for i, part in enumerate(parts) if isinstance(part, nn.Module)}
        return replace(made, sha256=combined({"base": joined.sha256} | files))
    about = {"head": head, "encoder": encoder, "data": shown.name, "pictures": len(shown), "mm": __version__}
    about |= {"labels": list(known)[:_LABELS_KEPT], "figures": session.figures, **dataclasses.asdict(chosen)}
    try:
        files = save_headed(made, target, part=kind.part, base=base, encoder_trained=trained, fitted=about)
    except (OSError, SafetensorError) as error:
        raise ResourceLimitError(
            f"{target.name}: the model could not be written ({reason(error)}); its run is kept"
        ) from None
    return replace(made, sha256=combined(files))


def _data(data: Any, validation: Any, head: str, seed: int) -> tuple[Examples, Examples | None]:
    """What to train on, and what to measure on."""
    soft = head == "matte"
    shown, seen = open_data(data, soft=soft), None
    if isinstance(validation, float):
        shown, seen = held_out(shown, validation, seed)
    elif validation is not None:
        seen = open_data(validation, soft=soft, held_out=True)
    for each in (shown, seen):
        if each is not None and KINDS[head].needs not in each.has:
            raise InputError(f"data: {each.name} has no {KINDS[head].needs}, which the head {head!r} learns from")
    return shown, seen


def _labels(shown: Examples, seen: Examples | None, given: Sequence[str] | None) -> tuple[str, ...]:
    """All labels of the run; those of the data have to be among those given."""
    found: Iterable[str] = dict.fromkeys((*shown.labels, *(seen.labels if seen else ())))
    if given is None:
        return tuple(found)
    known = tuple(dict.fromkeys(check_labels(given).given))
    check_known(found, known, "data")
    return known


def _target(out: Path, base: Base | None) -> Path:
    """The folder to write, if it is not the model itself or something else than such a folder."""
    if base is not None and base.folder is not None and base.folder.resolve() == out.resolve():
        raise InputError(f"out: {out.name!r} is the model that is trained on; write to another folder")
    others = [path.name for path in out.iterdir() if path.name != WORK] if os.path.isdir(out) else []
    if others and not {"head.safetensors", "base"} & {*others}:
        raise InputError(f"out: {out.name!r} holds other files ({', '.join(sorted(others)[:3])}); use a new folder")
    return out


def _training(
    joined: Joined, kind: Kind, labels: tuple[str, ...], *, fresh: bool, trained: bool, bf16: bool
) -> HeadTraining:
    grown, head = ready(joined, kind, fresh=fresh)
    assert isinstance(grown.encoder, nn.Module)
    at = next(grown.encoder.parameters())
    if at.dtype != torch.float32:
        raise InputError(f"model {joined.name!r} is in {at.dtype}; training wants float32 weights (and bf16=True)")
    if trained and getattr(head, "guided", False):
        raise InputError(
            f"the matting head of {joined.name!r} is guided by its segmentation, which a trained encoder leaves "
            "behind; keep the encoder frozen, or begin with fresh=True"
        )
    table = text_table(grown, head, labels, at.device)
    if trained:
        encoder: Any = copy.deepcopy(grown.encoder).requires_grad_(True)
        grown = replace(grown, encoder=encoder, speaker=None, world=None, **dict.fromkeys(PARTS))
    training = HeadTraining(grown, kind, head, table, bf16=bf16)
    training.encoder_trained = trained
    return training


def _without_head(**words: Any) -> None:
    """Refuses what only makes sense for a head."""
    given = [name for name, value in words.items() if value not in (None, False, "frozen")]
    if given:
        raise InputError(f'{given[0]}: stage="align" trains the connector alone, and takes no such word')


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, got {value!r}.{nearest(str(value), known)}")
