"""A joined model as one folder: config.json, the connector in joined.safetensors, and the parts inside or by name.

A part that is kept by name is found again by that name, and has to have the weights that it had.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from torch import Tensor

from mm.checkpoints.hub import locate
from mm.checkpoints.paths import plain_name
from mm.checkpoints.reading import fingerprint, load_into, load_tensors, read_json
from mm.connectors.table import build
from mm.decoders.base import Decoder
from mm.decoders.folder import chat_template, load_decoder, prompts_for
from mm.decoders.int8 import check_whole
from mm.encoders.transformers_weights import quiet
from mm.errors import CheckpointError, InputError, nearest
from mm.generation.prompts import PictureFirst, Plain, Prompts, begin_ids
from mm.vlm import Speaker, View

Parts = Literal["inside", "by name"]

_OLD = {"connector", "d_in", "d_out", "prompt"}  # how `tiny` says it
_KEYS = _OLD | {"settings", "grid", "style", "blocks", "skip", "notes", "decoder"}
_STYLES = ("template", "plain", "picture first")
_UNWANTED = (".", "runs", "onnx", "openvino", "coreml")


def read_speaker(folder: Path, values: dict[str, Any] | None, tensors: dict[str, Tensor]) -> Speaker | None:
    """values: what config.json says of the speaker. tensors: the connector's.

    Raises:
        CheckpointError: a setting is missing or unknown, or the parts do not fit together.
    """
    if values is None:
        return None
    if set(values) not in (_OLD, _KEYS):
        unknown = sorted(set(values) - _KEYS)
        near = nearest(unknown[0], _KEYS) if unknown else ""
        raise CheckpointError(f"config.json, speaker: missing {sorted(_KEYS - set(values))}, unknown {unknown}.{near}")
    grid = values.get("grid")
    try:
        connector = build(
            values["connector"], values["d_in"], values["d_out"], tuple(grid) if grid else None,
            **values.get("settings", {}),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"config.json, speaker: {error}") from None
    load_into(connector, tensors, "joined.safetensors, connector")
    home = decoder_home(part_folder(folder, values.get("decoder", {"inside": "decoder"})))
    decoder = load_decoder(home)
    return Speaker(
        connector.eval().requires_grad_(False),
        decoder,
        str(values["prompt"]),
        _prompts(values.get("style", "picture first"), decoder, home),
        View(tuple(values.get("blocks", ())), values.get("skip")),
        tuple(map(str, values.get("notes", ()))),
    )


def _prompts(style: str, decoder: Decoder, home: Path) -> Prompts:
    if style == "picture first":
        return PictureFirst(decoder)
    if style == "plain":
        return Plain(decoder.tokenizer, begin_ids(decoder.tokenizer))
    if style != "template":
        raise CheckpointError(f"config.json, speaker: unknown style {style!r}.{nearest(style, _STYLES)}")
    template = chat_template(home, decoder.tokenizer)
    if template is None:
        raise CheckpointError("config.json, speaker: the style is template, but the decoder's folder has none")
    return prompts_for(decoder.tokenizer, template)


def decoder_home(folder: Path) -> Path:
    """The folder of the language model itself, which in a joined folder of ours lies inside."""
    return folder / "decoder" if (folder / "joined.safetensors").is_file() else folder


def part_folder(folder: Path, said: dict[str, Any]) -> Path:
    """Where a part lies: inside the folder, or wherever its name leads, with the weights that it was joined with."""
    if set(said) == {"inside"}:
        return folder / plain_name(str(said["inside"]), "config.json")
    if set(said) != {"name", "sha256"}:
        raise CheckpointError(f"config.json: a part has {sorted(said)}; expected inside, or name and sha256")
    home = locate(str(said["name"])).folder
    if weights_of(home) != said["sha256"]:
        raise CheckpointError(f"{said['name']}: these are not the weights that the model was joined with")
    return home


def weights_of(folder: Path) -> str:
    """sha256 over the weight files of a part's folder."""
    return fingerprint(sorted(folder.rglob("*.safetensors")))


def save(
    folder: Path, *, encoder: Path, decoder: Decoder, config: dict[str, Any], tensors: dict[str, Tensor], parts: Parts,
    names: tuple[str, str],
) -> None:  # fmt: skip
    """Writes a folder that `mm.load` reads, whole or not at all.

    encoder: the folder that the encoder came from, copied as it is. decoder: written as it is in memory.
    names: of encoder and decoder, for `by name`.

    Raises:
        InputError: there is something at `folder` already.
    """
    encoder_name, decoder_name = names

    def fill(target: Path) -> None:
        from safetensors.torch import save_file

        told = config
        if parts == "inside":
            _copy_encoder(encoder, target / "encoder")
            write_decoder(decoder, target / "decoder")
            told["encoder"]["from"] = {"inside": "encoder"}
            told["speaker"]["decoder"] = {"inside": "decoder"}
        else:
            told["encoder"]["from"] = {"name": encoder_name, "sha256": weights_of(encoder)}
            told["speaker"]["decoder"] = {"name": decoder_name, "sha256": weights_of(locate(decoder_name).folder)}
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                  target / "joined.safetensors", {"format": "pt"})  # fmt: skip
        (target / "config.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")

    write_folder(folder, fill)


def save_with_connector(source: Path, folder: Path, tensors: dict[str, Tensor]) -> None:
    """A copy of a folder of ours whose connector has these weights; whole or not at all.

    Raises:
        InputError: `source` is of another layout, or there is something at `folder` already.
    """
    if not (source / "joined.safetensors").is_file():
        raise InputError(f"out: {source.name!r} is a published folder; only what mm.join made can be written anew")

    def fill(target: Path) -> None:
        from safetensors.torch import save_file

        shutil.copytree(source, target, dirs_exist_ok=True)
        kept = {k: v for k, v in load_tensors(source / "joined.safetensors").items() if not k.startswith("connector.")}
        mine = {f"connector.{k}": v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(kept | mine, target / "joined.safetensors", {"format": "pt"})
        told = read_json(source / "config.json")
        if "notes" in told["speaker"]:
            told["speaker"]["notes"] = []  # they said that the connector was random
        (target / "config.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")

    write_folder(folder, fill)


def write_decoder(decoder: Decoder, target: Path) -> None:
    check_whole(decoder.lm)
    with quiet():
        decoder.lm.save_pretrained(target)
    decoder.tokenizer.save_pretrained(target)


def _copy_encoder(source: Path, target: Path) -> None:
    """The files of an encoder's folder; of a joined folder of ours the encoder alone."""
    from safetensors.torch import save_file

    if not (source / "joined.safetensors").is_file():
        shutil.copytree(source, target, ignore=_left_out)
        return
    told = read_json(source / "config.json")
    if "from" in told["encoder"]:
        _copy_encoder(part_folder(source, told["encoder"]["from"]), target)
        return
    target.mkdir()
    for part in ("vision", "text"):
        shutil.copytree(source / part, target / part)
    own = {k: v for k, v in load_tensors(source / "joined.safetensors").items() if k.startswith("encoder.")}
    save_file(own, target / "joined.safetensors", {"format": "pt"})
    kept = {key: told[key] for key in ("name", "revision", "licence", "encoder") if key in told}
    kept["encoder"] = told["encoder"] | {"layers": []}  # those were for heads that stay behind
    (target / "config.json").write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


def _left_out(folder: str, names: list[str]) -> list[str]:
    """Anything but the weights that may be loaded, and the texts beside them."""
    kept = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")
    return [
        name for name in names
        if name.startswith(_UNWANTED) or not (name.endswith(kept) or os.path.isdir(os.path.join(folder, name)))
    ]  # fmt: skip


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` writes beside the place; what it wrote is moved there once it is whole.

    Raises:
        InputError: there is something at `folder` already, or it cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder.name}: there is something already; give a folder that does not exist yet")
    partial = folder.with_name(f".{folder.name}.{uuid4().hex}.tmp")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{folder.name}: cannot be made ({error.strerror})") from None
        fill(partial)
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        with suppress(FileNotFoundError):
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if os.name == "posix":
        _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
