"""From a model's folder to a `Joined`: the parts by their own libraries' formats, every weight accounted for."""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from mm.checkpoints.headed import is_headed, load_headed
from mm.checkpoints.hub import Located, locate
from mm.checkpoints.llava import Pad, is_llava, load_llava
from mm.checkpoints.published import head_parts
from mm.checkpoints.reading import check_folder, fingerprint, load_into, load_tensors, read_json
from mm.checkpoints.saved import part_folder, read_speaker
from mm.decoders.base import Decoder
from mm.decoders.int8 import to_int8
from mm.encoders.base import Encoder, EncoderSpec
from mm.encoders.build import Dtype, licence_of, load_encoder
from mm.encoders.timm_clip import TimmClipEncoder
from mm.errors import CheckpointError, InputError, nearest
from mm.heads.clipmat import ClipMatConfig, ClipMatHead
from mm.heads.clipseg_style import ClipSegStyleConfig, ClipSegStyleHead
from mm.heads.owlvit import OwlConfig, OwlHead
from mm.joined import Joined
from mm.kernels.row import NotCompiled
from mm.vlm import Speaker, seen
from mm.world import World
from mm.zoo import MODELS

_Key = tuple[Path | str | None, ...]
_loaded: dict[_Key, tuple[int, Joined]] = {}  # with when its files were written last
_locks: dict[_Key, threading.Lock] = {}
_guard = threading.Lock()


def load(
    name: str | os.PathLike[str] = "tiny", *, dtype: Dtype = "float32", device: str = "cpu", pad: Pad | None = None,
    int8: bool = False, compile: bool = False,
) -> Joined:  # fmt: skip
    """The model of this name or folder, loaded once a process; threads that ask at once wait for the one load.

    name: `tiny`, a known name, `hf:org/name@revision`, `open_clip:…`, `timm:…`, or a folder (`mm.checkpoints.names`).
    dtype: of encoders in memory, whatever their files hold; `auto` follows the file. The embedded default, and every
    other folder with heads of ours, is float32. device: `cpu`, `cuda`, `cuda:1`, `mps`; nothing is chosen for you.
    pad: `square` pads pictures with the mean colour before they are resized, as the authors of LLaVA do; for
    vision-language folders as others publish them.
    int8: once loaded, the layers of the decoder keep their weights in 8 bits, one scale an output: half the memory of
    bfloat16, and a single answer is written sooner on a processor. For decoders of the Llama layout, with
    dtype="bfloat16". Answers may change: what a layer gives is off by about 1 %. With the decoder of `tiny` so rounded,
    96 scenes scored what they score without.
    compile: on a processor, the decoder writes each token of a single answer through routines that the system's C++
    compiler builds in about a second: sooner, and in bfloat16, on a processor with AVX512-BF16, with the bits of
    transformers, so in the same words. Where there is no compiler, or nothing is compiled for this decoder or
    processor, a warning says so and all goes on without.

    Raises:
        CheckpointError: no such model, or its files are damaged or do not fit together.
        InputError: no such dtype, or this machine has no such device.
    """
    if dtype not in get_args(Dtype):
        known = get_args(Dtype)
        raise InputError(f"dtype: expected one of {', '.join(known)}, got {dtype!r}.{nearest(str(dtype), known)}")
    at = _device(device)
    found = locate(name)
    options = (pad, "int8" * int8, "compile" * compile)
    key = (found.folder.resolve(), found.form, dtype, at, *filter(None, options))
    with _guard:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        stamp = written(found.folder)
        if key not in _loaded or _loaded[key][0] != stamp:
            made = _load(os.fspath(name), found, dtype, pad)
            made = (_with_int8(made) if int8 else made).to(at)
            _loaded[key] = (stamp, _with_compiled(made) if compile else made)
        return _loaded[key][1]


def _with_int8(joined: Joined) -> Joined:
    """Its decoder in int8, in place."""
    to_int8(_decoder(joined).lm, joined.name)
    return joined


def _with_compiled(joined: Joined) -> Joined:
    """Its decoder with compiled routines where that can be, in place."""
    decoder = _decoder(joined)
    try:
        decoder.compile_rows()
    except NotCompiled as error:
        warnings.warn(f"compile: {error}; {joined.name} goes on without", stacklevel=3)
    return joined


def _decoder(joined: Joined) -> Decoder:
    speaker = joined.need("speaker")
    assert isinstance(speaker, Speaker)
    return speaker.decoder


def written(folder: Path) -> int:
    """Nanoseconds: a folder that was trained on or exported again is another model."""
    return max(path.stat().st_mtime_ns for path in (folder, *folder.iterdir()))


def as_model(model: str | os.PathLike[str] | Joined) -> Joined:
    """A model that is loaded already as it is; anything else by its name, in float32 on the processor."""
    return model if isinstance(model, Joined) else load(model)


def _device(name: str) -> str:
    """The device in torch's full spelling, if this machine has it."""
    kinds = ("cpu", "cuda", "mps")
    try:
        wanted = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(
            f"device: expected cpu, cuda, cuda:1, mps …, got {name!r}.{nearest(str(name), kinds)}"
        ) from None
    if wanted.type == "cuda":
        there, count = torch.cuda.is_available(), torch.cuda.device_count()
        if not there or (wanted.index or 0) >= count:
            raise InputError(
                f"device: {name!r} is asked for, this machine has {count if there else 'no'} CUDA device(s)"
            )
        return f"cuda:{wanted.index or 0}"
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device: {name!r} is asked for, this machine has none")
    if wanted.type not in kinds:
        raise InputError(f"device: expected one of {', '.join(kinds)}, got {name!r}.{nearest(wanted.type, kinds)}")
    return wanted.type


def _load(name: str, found: Located, dtype: Dtype, pad: Pad | None = None) -> Joined:
    """A joined folder of ours, a published vision-language model, or an encoder with the heads of its folder."""
    folder = found.folder
    if is_headed(folder):
        return load_headed(name, folder, load)
    if is_llava(folder):
        return load_llava(name, folder, revision=found.revision, licence=licence_of(folder), dtype=dtype, pad=pad)
    if pad is not None:
        raise InputError(f"pad: {name} is no vision-language model as others publish them; say it to mm.join")
    if (folder / "joined.safetensors").is_file():
        if dtype not in ("float32", "auto"):
            raise InputError(f"{name}: a joined model runs in float32, {dtype} was asked for")
        return _load_joined(name, found, dtype)
    loaded = load_encoder(folder, dtype=dtype, revision=found.revision, form=found.form)
    parts = head_parts(folder, loaded.encoder.spec)
    licence = MODELS[name].licence if loaded.licence == "unknown" and name in MODELS else loaded.licence
    return Joined(
        name, loaded.revision, loaded.sha256, licence, loaded.encoder,
        detector=parts.get("detector"), segmenter=parts.get("segmenter"), speaker=None, world=None,
    )  # fmt: skip


def _load_joined(name: str, found: Located, dtype: Dtype) -> Joined:
    folder = found.folder
    check_folder(folder)
    config = read_json(folder / "config.json")
    for key in ("revision", "licence", "encoder"):
        if key not in config:
            raise CheckpointError(f"config.json: {key} is missing")
    joined = load_tensors(folder / "joined.safetensors")
    with torch.random.fork_rng(devices=[]):  # building a module draws numbers; the caller's stream is not ours
        encoder: Any = _joined_encoder(folder, config["encoder"], dtype) or _encoder(folder, config, joined)
        detector = _head(OwlHead, OwlConfig, config, "detector", joined)
        segmenter = _head(ClipSegStyleHead, ClipSegStyleConfig, config, "segmenter", joined)
        matter = _head(ClipMatHead, ClipMatConfig, config, "matter", joined)
        speaker = read_speaker(folder, config.get("speaker"), _take(joined, "connector"))
    world = _world(config, joined)
    if joined:
        raise CheckpointError(f"joined.safetensors: keys that no part asked for: {', '.join(sorted(joined)[:5])}")
    weights = fingerprint(list(folder.rglob("*.safetensors")))
    return Joined(
        name,
        found.revision if found.revision != "local" else str(config["revision"]),
        weights,
        str(config["licence"]),
        encoder,
        detector,
        segmenter,
        speaker,
        world,
        matter,
    )


def _joined_encoder(folder: Path, said: dict[str, Any], dtype: Dtype) -> Encoder | None:
    """The encoder that `mm.join` put in or named; None for a folder that holds its towers itself."""
    if "from" not in said:
        return None
    if set(said) != {"from", "blocks", "pad"}:
        raise CheckpointError(f"config.json, encoder: expected from, blocks and pad, got {sorted(said)}")
    found = Located(part_folder(folder, said["from"]), "local")
    return seen(_load(folder.name, found, dtype).encoder, tuple(said["blocks"]), said["pad"])


def _take(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Removes and returns the tensors of one part, without its prefix, in float32."""
    keys = [key for key in tensors if key.startswith(part + ".")]
    return {key[len(part) + 1 :]: _plain(tensors.pop(key)) for key in keys}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _build(kind: type, values: Any, where: str) -> Any:
    """A config dataclass from JSON: every field given, none unknown."""
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, dict) or set(values) != names:
        got = set(values) if isinstance(values, dict) else set()
        unknown = next(iter(sorted(got - names)), "")
        raise CheckpointError(
            f"config.json, {where}: missing {sorted(names - got)}, unknown {sorted(got - names)}."
            + nearest(unknown, names)
        )
    types = get_type_hints(kind)
    return kind(**{k: _value(types[k], v, f"{where}.{k}") for k, v in values.items()})


def _value(wanted: Any, value: Any, where: str) -> Any:
    """Lists become tuples, objects the dataclass that the field is annotated with."""
    if isinstance(value, list):
        return tuple(value)
    inner = [t for t in (wanted, *get_args(wanted)) if dataclasses.is_dataclass(t)]
    return _build(inner[0], value, where) if isinstance(value, dict) and inner else value  # type: ignore[arg-type]


def _encoder(folder: Path, config: dict[str, Any], joined: dict[str, Tensor]) -> TimmClipEncoder:
    import timm
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

    spec = _build(EncoderSpec, config["encoder"], "encoder")
    vision = timm.create_model(f"local-dir:{folder / 'vision'}")
    load_into(vision, _floats(load_tensors(folder / "vision" / "model.safetensors")), "vision/model.safetensors")
    text = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text", local_files_only=True))
    load_into(text, _floats(load_tensors(folder / "text" / "model.safetensors")), "text/model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder / "text", local_files_only=True, trust_remote_code=False)
    encoder = TimmClipEncoder(vision, text, tokenizer, spec)
    encoder.logit_scale.data.copy_(_take(joined, "encoder")["logit_scale"])
    return encoder.eval().requires_grad_(False)


def _floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: _plain(value) for key, value in tensors.items()}


def _head(kind: type, config_kind: type, config: dict[str, Any], part: str, joined: dict[str, Tensor]) -> Any:
    if part not in config:
        return None
    head = kind(**vars(_build(config_kind, config[part], part)))
    load_into(head, _take(joined, part), f"joined.safetensors, {part}")
    return head.eval().requires_grad_(False)


def _world(config: dict[str, Any], joined: dict[str, Tensor]) -> World | None:
    if "world" not in config:
        return None
    tensors = _take(joined, "world")
    return World(str(config["world"]["name"]), tensors["mean"], tensors["whiten"], float(config["world"]["threshold"]))
