"""A model with a head of its own as one folder: the model it stands on, by reference or inside, and the head.

    config.json           the layout, the base (name and sha256, or the folder `base/`), the head and its settings
    head.safetensors      the head's weights
    encoder.safetensors   the encoder's, only where it was trained along
    base/                 a copy of the base, only where that was a folder and no published name

`config.json` is written last and names the sha256 of the other files, so that half a folder is never taken for whole.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoints.names import parse
from mm.checkpoints.paths import plain_name
from mm.checkpoints.reading import check_folder, fingerprint, load_into, load_tensors, read_json
from mm.errors import CheckpointError, InputError, nearest
from mm.files import replace_text, replacing
from mm.heads.clipmat import ClipMatConfig, ClipMatHead
from mm.heads.clipseg import ClipSegConfig, ClipSegHead
from mm.heads.clipseg_style import ClipSegStyleConfig, ClipSegStyleHead
from mm.heads.owlvit import OwlConfig, OwlHead
from mm.joined import Joined, TextCache

LAYOUT = "mm head 1"
PARTS = ("detector", "segmenter", "matter")
WORK = "fit"  # the folder of a run inside, which is no part of the model

_KEYS = ("layout", "name", "revision", "licence", "base", "layers", "world", "head", "sha256", "fitted")
_HEAD_KEYS = ("part", "kind", "settings")


@dataclass(frozen=True)
class HeadKind:
    """settings: the dataclass of the constructor's arguments; read: those of a head that is built."""

    module: type[nn.Module]
    settings: type
    read: Callable[[Any], dict[str, Any]]


def _owl(head: OwlHead) -> dict[str, Any]:
    return {
        "width": head.norm.normalized_shape[0],
        "embedding": head.class_head.dense0.out_features,
        "merge_class_token": head.merge_class_token,
        "objectness": head.objectness_head is not None,
        "score": head.score,
        "norm_eps": head.norm.eps,
        "vote": head.vote,
    }


def _clipseg(head: Any) -> dict[str, Any]:
    refined = isinstance(head.to_mask, nn.Sequential)
    return {
        "width": head.reduces[0].in_features,
        "embedding": head.film_mul.in_features,
        "reduced": head.film_mul.out_features,
        "layers": head.layers,
        "conditional": head.conditional,
        "heads": head.blocks[0].heads,
        "hidden": head.blocks[0].linear_1.out_features,
        "patch": head.to_mask[2].kernel_size[0] * 4 if refined else head.to_mask.kernel_size[0],
        "refined": refined,
        "norm_eps": head.blocks[0].norm_1.eps,
    }


def _clipseg_style(head: Any) -> dict[str, Any]:
    return {
        "width": head.reduce.in_features,
        "embedding": head.film.mul.in_features,
        "reduced": head.reduce.out_features,
        "depth": len(head.blocks.layers),
        "layers": head.layers,
        "layer_widths": tuple(step.lateral.in_features for step in head.steps),
        "widths": tuple(step.lateral.out_features for step in head.steps),
    }


def _clipmat(head: Any) -> dict[str, Any]:
    return {
        "width": head.pop_up.norm.normalized_shape[0],
        "text_width": head.prompt.norm.normalized_shape[0],
        "embedding": head.prompt.pooled.in_features,
        "dim": head.pop_up.reduce.out_features,
        "heads": head.pop_up.cross.num_heads,
        "context": len(head.prompt.context),
        "template": head.template,
        "layers": head.details.layers,
        "layer_widths": tuple(norm.normalized_shape[0] for norm in head.details.norms),
        "detail_widths": tuple(block[0].out_channels for block in head.details.blocks),
        "semantic_widths": tuple(step.reduce.out_channels for step in head.semantic_steps),
        "guided": head.guided,
        "refine_widths": () if head.refiner is None else head.refiner.widths,
    }


KINDS: dict[str, HeadKind] = {
    "owlvit": HeadKind(OwlHead, OwlConfig, _owl),
    "clipseg": HeadKind(ClipSegHead, ClipSegConfig, _clipseg),
    "clipseg_style": HeadKind(ClipSegStyleHead, ClipSegStyleConfig, _clipseg_style),
    "clipmat": HeadKind(ClipMatHead, ClipMatConfig, _clipmat),
}


def described(head: nn.Module) -> tuple[str, dict[str, Any]]:
    """The kind of a head and the settings that build another like it."""
    for name, kind in KINDS.items():
        if type(head) is kind.module:
            return name, kind.read(head)
    raise InputError(f"a {type(head).__name__} is none of the heads that can be saved: {', '.join(KINDS)}")


@dataclass(frozen=True)
class Base:
    """What a head stands on. model: a name that `mm.load` takes anywhere; folder: what has no such name, to be copied
    into the folder that is written. sha256: of its weights."""

    model: str | None
    folder: Path | None
    sha256: str


def base_of(model: str | os.PathLike[str] | Joined, joined: Joined) -> Base:
    """How a saved folder refers to the model that `fit` was given.

    Raises:
        InputError: a model in memory that no name loads again.
    """
    if isinstance(model, Joined):
        model = model.name
    try:
        found = parse(model)
    except CheckpointError:
        raise InputError(f"model {joined.name!r} lives in memory alone; save it first, and pass its folder") from None
    if found.kind == "folder":
        if not Path(found.name).is_dir():
            raise InputError(f"model {joined.name!r} lives in memory alone; save it first, and pass its folder")
        return Base(None, Path(found.name), joined.sha256)
    pinned = f"hf:{found.name}@{joined.revision}" if found.kind == "hub" else os.fspath(model)
    return Base(pinned, None, joined.sha256)


def save_headed(
    joined: Joined, folder: Path, *, part: str, base: Base, encoder_trained: bool, fitted: Mapping[str, Any]
) -> dict[str, str]:
    """Writes the folder that `mm.load` reads, every file whole or not at all; the sha256 of the base and of each file.

    part: of `PARTS`, the head that the base has not, or not so. fitted: how it was trained, for whoever reads it.

    Raises:
        InputError: the part is missing, or of a kind that has no layout.
    """
    head = joined.need(part)
    assert isinstance(head, nn.Module) and isinstance(joined.encoder, nn.Module)
    kind, settings = described(head)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    if base.folder is not None:
        _copy(base.folder, folder / "base")
    files = {"base": base.sha256, "head.safetensors": _save(head, folder / "head.safetensors")}
    if encoder_trained:
        files["encoder.safetensors"] = _save(joined.encoder, folder / "encoder.safetensors")
    config = {
        "layout": LAYOUT,
        "name": joined.name,
        "revision": joined.revision,
        "licence": joined.licence,
        "base": {"name": base.model, "sha256": base.sha256} if base.model else {"inside": "base"},
        "layers": list(joined.spec.layers),
        "world": joined.world is not None,
        "head": {"part": part, "kind": kind, "settings": settings},
        "sha256": files,
        "fitted": dict(fitted),
    }
    replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return files


def is_headed(folder: Path) -> bool:
    """Whether `save_headed` wrote the folder."""
    path = folder / "config.json"
    return path.is_file() and "layout" in read_json(path)


def load_headed(name: str, folder: Path, load: Callable[[str | Path], Joined]) -> Joined:
    """The model of a folder that `save_headed` wrote. load: `mm.load`, for the base.

    Raises:
        CheckpointError: a file is missing, damaged, or not the one that the configuration names; the base is another
            than the head was trained on.
    """
    check_folder(folder)
    config = _exact(read_json(folder / "config.json"), _KEYS, "config.json")
    if config["layout"] != LAYOUT:
        raise CheckpointError(f"config.json: layout {config['layout']!r} is not known; expected {LAYOUT!r}")
    said, part = config["base"], _exact(config["head"], _HEAD_KEYS, "head")
    inside = isinstance(said, dict) and "inside" in said
    _exact(said, ("inside",) if inside else ("name", "sha256"), "base")
    if part["part"] not in PARTS:
        raise CheckpointError(f"config.json, head: no part {part['part']!r}.{nearest(str(part['part']), PARTS)}")
    digests = dict(config["sha256"])
    wanted = str(digests.pop("base", ""))
    tensors = {file: _load(folder / file, sha256) for file, sha256 in digests.items()}
    base = load(folder / plain_name(str(said["inside"]), "config.json, base") if inside else str(said["name"]))
    if base.sha256 != wanted:
        name = folder.name if inside else said["name"]
        raise CheckpointError(f"{name}: has weights {base.sha256[:12]}, the head was trained on {wanted[:12]}")
    head = _built(part, tensors.pop("head.safetensors", {}))
    joined = with_encoder(base, tuple(config["layers"]), tensors.pop("encoder.safetensors", None))
    if tensors:
        raise CheckpointError(f"config.json: {', '.join(tensors)} belongs to no part")
    made: dict[str, Any] = {part["part"]: head.eval().requires_grad_(False), "licence": str(config["licence"])}
    sha256 = combined(config["sha256"])
    made["world"] = joined.world if config["world"] is True else None
    return replace(
        joined, name=name, revision=str(config["revision"]), sha256=sha256, texts=TextCache(), **made
    )  # fmt: skip


def combined(files: Mapping[str, str]) -> str:
    """One sha256 for a base and what was trained over it."""
    return hashlib.sha256("+".join(files[name] for name in sorted(files)).encode()).hexdigest()


def with_encoder(base: Joined, layers: tuple[int, ...], weights: dict[str, Tensor] | None) -> Joined:
    """The base with an encoder that gives these maps, and, where there are weights, has these; what was trained on
    the old encoder is left out then. The base itself stays as it is."""
    if weights is None and layers == base.spec.layers:
        return base
    encoder: Any = copy.copy(base.encoder) if weights is None else copy.deepcopy(base.encoder)
    encoder.spec = replace(base.spec, layers=layers)
    if weights is None:
        return replace(base, encoder=encoder, world=None)
    load_into(encoder, weights, "encoder.safetensors")
    return replace(base, encoder=encoder, world=None, speaker=None, **dict.fromkeys(PARTS))


def _save(module: nn.Module, path: Path) -> str:
    """Writes all weights in their own dtype; the file's sha256."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in module.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(0o644)
    return fingerprint([path])


def _load(path: Path, sha256: Any) -> dict[str, Tensor]:
    if path.name not in ("head.safetensors", "encoder.safetensors"):
        raise CheckpointError(f"config.json: {path.name!r} is no file of this layout")
    tensors = load_tensors(path)
    if fingerprint([path]) != sha256:
        raise CheckpointError(f"{path.name}: not the file that config.json names")
    return tensors


def _built(part: Mapping[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    if part["kind"] not in KINDS:
        raise CheckpointError(f"config.json, head: no kind {part['kind']!r}.{nearest(str(part['kind']), KINDS)}")
    kind = KINDS[part["kind"]]
    names = tuple(field.name for field in dataclasses.fields(kind.settings))
    given = _exact(part["settings"], names, "head.settings")
    settings = kind.settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    with torch.random.fork_rng(devices=[]):  # building a module draws numbers; the caller's stream is not ours
        head = kind.module(**vars(settings))
    load_into(head, tensors, "head.safetensors")
    return head


def _exact(value: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    """The object, if it has these keys and no other."""
    got = set(value) if isinstance(value, dict) else set()
    if got != set(keys):
        unknown = sorted(got - set(keys))
        raise CheckpointError(
            f"config.json, {where}: missing {sorted(set(keys) - got)}, unknown {unknown}."
            + nearest(unknown[0] if unknown else "", keys)
        )
    return value


def _copy(source: Path, target: Path) -> None:
    """The base's own files; not the runs that made it."""
    partial = target.with_name(target.name + ".partial")
    for old in (partial, target):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(WORK, ".*", "*.tmp", "*.partial"))
    os.replace(partial, target)
