"""What the parts of a model will be, from their configurations alone: no weight is read.

Towers of timm and language models are built on torch's `meta` device, which holds shapes and no numbers.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mm.checkpoints.reading import read_json
from mm.decoders.base import context_of
from mm.decoders.folder import causal_class, read_config
from mm.encoders.base import Grid
from mm.encoders.transformers_files import read_preprocessing
from mm.encoders.transformers_weights import refusing
from mm.errors import CheckpointError, InputError

_TOWERS_OF_PAIRS = ("clip", "siglip", "siglip2", "aimv2", "owlvit", "owlv2", "clipseg")


@dataclass(frozen=True)
class EncoderOutline:
    """kind: of the architecture. input_hw: pixels. grid: of the last tokens; width: theirs. depth: blocks or stages.
    layers: what asked blocks give, {index: (grid, width)}."""

    kind: str
    input_hw: tuple[int, int]
    grid: Grid
    width: int
    depth: int
    layers: dict[int, tuple[Grid, int]]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class DecoderOutline:
    """kind: transformers' model_type. width: of its input embeddings. context: tokens; a recurrent state has no bound.
    chat: whether the folder has a chat template."""

    kind: str
    width: int
    layers: int
    parameters: int
    context: int
    chat: bool


def encoder_outline(folder: Path, layers: tuple[int, ...]) -> EncoderOutline:
    """The image tower of a folder in any format that `mm.load` reads as an encoder.

    Raises:
        InputError: a layer that the tower lacks. CheckpointError: no image tower, or a damaged configuration.
    """
    if (folder / "open_clip_config.json").is_file():
        return _open_clip(folder, layers)
    config = read_json(folder / "config.json")
    if "encoder" in config:
        return _joined(folder, config["encoder"], layers)
    if "model_type" in config:
        return _transformers(folder, layers)
    if "architecture" in config:
        return _timm(f"local-dir:{folder}", str(config["architecture"]), None, layers)
    raise CheckpointError(f"{folder.name}: no configuration of an image tower")


def _joined(folder: Path, said: dict[str, Any], layers: tuple[int, ...]) -> EncoderOutline:
    """A folder of ours: it names its encoder, or holds a trunk of timm whose stages are counted with the stem."""
    from mm.checkpoints.saved import part_folder

    if "from" in said:
        return encoder_outline(part_folder(folder, said["from"]), layers)
    height, width = said["preprocessing"]["input_hw"]
    architecture = str(read_json(folder / "vision" / "config.json").get("architecture"))
    trunk = _trunk(f"local-dir:{folder / 'vision'}", architecture)
    _check_layers(layers, len(trunk.feature_info), folder.name)
    with torch.inference_mode():
        pixels = torch.empty(1, 3, height, width, device="meta")
        wanted = sorted({*layers})
        final, maps = trunk.forward_intermediates(pixels, indices=wanted or [0], norm=False)
    sizes = {i: ((m.shape[2], m.shape[3]), m.shape[1]) for i, m in zip(wanted, maps[: len(wanted)], strict=True)}
    grid = (final.shape[2], final.shape[3])
    return EncoderOutline(architecture, (height, width), grid, final.shape[1], len(trunk.feature_info), sizes)


def _transformers(folder: Path, layers: tuple[int, ...]) -> EncoderOutline:
    config = read_config(folder)
    kind = config.model_type
    tower = config.vision_config if kind in _TOWERS_OF_PAIRS else config
    patch, width, depth = (getattr(tower, key, None) for key in ("patch_size", "hidden_size", "num_hidden_layers"))
    if not (isinstance(patch, int) and isinstance(width, int) and isinstance(depth, int)) or _writes(config):
        raise CheckpointError(f"{folder.name}: {kind!r} is no image tower that can be an encoder")
    height, side = read_preprocessing(folder).input_hw
    grid = (height // patch, side // patch)
    _check_layers(layers, depth, folder.name)
    return EncoderOutline(kind, (height, side), grid, width, depth, dict.fromkeys(layers, (grid, width)))


def _writes(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def _open_clip(folder: Path, layers: tuple[int, ...]) -> EncoderOutline:
    vision = (read_json(folder / "open_clip_config.json").get("model_cfg") or {}).get("vision_cfg") or {}
    size = vision.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    if vision.get("timm_model_name"):
        name = str(vision["timm_model_name"])
        return _timm(name, name, (height, width), layers)
    if isinstance(vision.get("layers"), list):
        raise CheckpointError(f"{folder.name}: the outline of open_clip's own ResNets is not known before loading")
    depth, patch = int(vision.get("layers", 12)), int(vision.get("patch_size", 16))
    _check_layers(layers, depth, folder.name)
    grid, wide = (height // patch, width // patch), int(vision.get("width", 768))
    return EncoderOutline("open_clip ViT", (height, width), grid, wide, depth, dict.fromkeys(layers, (grid, wide)))


def _timm(source: str, architecture: str, hw: tuple[int, int] | None, layers: tuple[int, ...]) -> EncoderOutline:
    from mm.encoders.timm_tower import resized, trunk_features

    trunk = _trunk(source, architecture)
    with torch.inference_mode(), torch.device("meta"):
        height, width = resized(trunk, hw, architecture)
        found = trunk_features(trunk, torch.empty(1, 3, height, width), layers)
    maps = {i: (found.layer_grids[i], found.layers[i].shape[2]) for i in layers}
    depth = len(trunk.feature_info)
    return EncoderOutline(architecture, (height, width), found.grid, found.tokens.shape[2], depth, maps)


def _trunk(source: str, architecture: str) -> Any:
    """A trunk of timm without weights."""
    import timm

    from mm.encoders.timm_tower import built, known_architecture

    known_architecture(architecture, architecture)
    with torch.device("meta"):
        return built(architecture, timm.create_model, source).eval()


def _check_layers(layers: tuple[int, ...], depth: int, name: str) -> None:
    for layer in layers:
        if not -depth <= layer < depth:
            raise InputError(f"layer: {name} has blocks 0 to {depth - 1} (or -{depth} to -1), got {layer}")


def decoder_outline(folder: Path) -> DecoderOutline:
    """The language model of a folder.

    Raises:
        InputError: it is none, or one that reads no embeddings.
    """
    from mm.decoders.folder import chat_template

    config = read_config(folder)
    try:
        kind = causal_class(config, folder.name)
    except CheckpointError as error:
        raise InputError(f"decoder: {error}") from None
    if "inputs_embeds" not in inspect.signature(kind.forward).parameters:
        raise InputError(f"decoder: {config.model_type!r} reads token numbers only, so it cannot read a picture")
    with refusing(folder), torch.device("meta"):
        lm: Any = kind(config)
    text = config.get_text_config()
    settings = folder / "tokenizer_config.json"
    own = read_json(settings).get("chat_template") if settings.is_file() else None
    return DecoderOutline(
        kind=config.model_type,
        width=lm.get_input_embeddings().weight.shape[1],
        layers=int(getattr(text, "num_hidden_layers", 0)),
        parameters=sum(p.numel() for p in lm.parameters()),
        context=context_of(config),
        chat=chat_template(folder, None) is not None or own is not None,
    )
