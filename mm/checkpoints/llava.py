"""Vision-language folders as others published them: LLaVA-1.5, BakLLaVA, LLaVA-Interleave and FastVLM.

LLaVA-1.5: Liu et al. 2024 (arXiv 2310.03744). FastVLM: Vasu et al. 2025 (arXiv 2412.13303). The layout is that of
transformers' `LlavaForConditionalGeneration` and `FastVlmForConditionalGeneration`: one file of weights with the
image tower, the projector and the language model, and a processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mm.checkpoints.reading import check_folder, fingerprint, load_into, load_weights, read_json
from mm.connectors.base import Connector, Grid
from mm.decoders.build import build_decoder
from mm.decoders.folder import causal_class, chat_template, language_model, load_tokenizer, prompts_for, read_config
from mm.encoders.base import Encoder, EncoderSpec
from mm.encoders.build import Dtype
from mm.encoders.preprocess import Preprocessing
from mm.encoders.transformers_files import read_preprocessing
from mm.encoders.transformers_tower import TOKENS, TransformersTower, prefix_tokens
from mm.encoders.transformers_weights import build_model, settle
from mm.errors import CheckpointError, InputError, nearest
from mm.joined import Joined
from mm.pictures.padding import squared
from mm.vlm import Speaker, View

KINDS = ("llava", "fast_vlm")  # model_type of the folders that are read here
Pad = Literal["square"]

_QUESTION = "Describe the picture."
_TOWERS = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "aimv2_vision_model": "Aimv2VisionModel",
}
# The spellings of a part's keys: released, and as transformers 5 holds them in memory; `language` is followed by the
# prefix of its own class.
_PARTS = {
    "tower": ("model.vision_tower.", "vision_tower."),
    "projector": ("model.multi_modal_projector.", "multi_modal_projector."),
    "language": ("model.language_model.", "language_model.model."),
    "head": ("language_model.lm_head.", "lm_head."),
}


class Projector(Connector):
    """LLaVA's two matrices with an activation between them, by the names of its files. M = N."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool = True, activation: str = "gelu") -> None:
        from transformers.activations import ACT2FN

        super().__init__(d_in, d_out)
        if activation not in ACT2FN:
            raise CheckpointError(f"projector_hidden_act: unknown {activation!r}.{nearest(activation, ACT2FN)}")
        self.bias, self.activation = bias, activation
        self.linear_1, self.act = nn.Linear(d_in, d_out, bias=bias), ACT2FN[activation]
        self.linear_2 = nn.Linear(d_out, d_out, bias=bias)

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.linear_2(self.act(self.linear_1(tokens)))


def is_llava(folder: Path) -> bool:
    """Whether this module reads the folder."""
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") in KINDS


def load_llava(name: str, folder: Path, *, revision: str, licence: str, dtype: Dtype, pad: Pad | None) -> Joined:
    """The joined model of a published folder.

    pad: `square` pads pictures to a square with the mean colour before they are resized, as LLaVA's authors do and
    as transformers does only where the folder says so.

    Raises:
        CheckpointError: files are damaged, incomplete or do not fit together.
        InputError: another word for `pad`.
    """
    if pad not in (None, "square"):
        raise InputError(f'pad: expected "square" or None, got {pad!r}')
    check_folder(folder)
    config = read_config(folder)
    parts = _parts(load_weights(folder), folder.name)
    view, notes = _view(config)
    preprocessing = read_preprocessing(folder)
    if pad:
        preprocessing = squared(preprocessing)
    with torch.random.fork_rng(devices=[]):  # building a module draws numbers; the caller's stream is not ours
        build = _fast_tower if config.model_type == "fast_vlm" else _tower
        encoder = build(folder, config.vision_config, parts["tower"], preprocessing, view, dtype)
        projector = _projector(config, encoder.spec.width * max(1, len(view.layers)), parts["projector"])
    lm = language_model(folder, config.text_config, _language(parts, config), dtype=dtype)
    tokenizer = load_tokenizer(folder)
    image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if image_token is None:
        raise CheckpointError(f"{folder.name}: the tokenizer has no token {config.image_token_id}, the picture's")
    decoder = build_decoder(lm, tokenizer).eval().requires_grad_(False)
    projector = projector.to(lm.dtype).eval().requires_grad_(False)
    prompts = prompts_for(tokenizer, chat_template(folder, tokenizer), image_token=image_token)
    speaker = Speaker(projector, decoder, _QUESTION, prompts, view, notes)
    return Joined(
        name, revision, fingerprint(list(folder.glob("*.safetensors"))), licence, encoder,
        detector=None, segmenter=None, speaker=speaker, world=None,
    )  # fmt: skip


def _parts(tensors: dict[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part without what tells the parts apart; every key belongs to one."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for key, value in tensors.items():
        homes = [(part, start) for part, starts in _PARTS.items() for start in starts if key.startswith(start)]
        if not homes:
            raise CheckpointError(f"{name}: {key} belongs to no part of a vision-language model")
        part, start = homes[0]
        if (rest := key[len(start) :]) in found[part]:
            raise CheckpointError(f"{name}: {part}.{rest} is there in two spellings")
        found[part][rest] = value
    return found


def _language(parts: dict[str, dict[str, Tensor]], config: Any) -> dict[str, Tensor]:
    """By the keys of the class with the language head; the head itself may be the table of embeddings."""
    text = config.text_config
    text.tie_word_embeddings = bool(config.tie_word_embeddings)
    prefix = causal_class(text, "text_config").base_model_prefix
    body = {f"{prefix}.{key}": value for key, value in parts["language"].items()}
    return body | {f"lm_head.{key}": value for key, value in parts["head"].items()}


def _view(config: Any) -> tuple[View, tuple[str, ...]]:
    """Which features the projector reads, and what has to be said of it."""
    if config.model_type == "fast_vlm":
        return View(), ()
    given = config.vision_feature_layer
    depth = config.vision_config.num_hidden_layers
    layers = tuple(_block(index, depth) for index in (given if isinstance(given, (list, tuple)) else (given,)))
    if not layers:
        raise CheckpointError("config.json: vision_feature_layer is an empty list")
    # Siglip and Aimv2 have no class token: the first of their sequence is a patch.
    headless = config.vision_config.model_type in ("siglip_vision_model", "aimv2_vision_model")
    registers = getattr(config.vision_config, "num_register_tokens", 0)
    if config.vision_feature_select_strategy == "full":
        return View(layers, None if headless else 0), ()
    if not headless:
        return View(layers, 1 if registers else None), ()
    note = (
        "the checkpoint drops the first token of a tower without a class token, so the top left patch of the picture "
        'is not seen (vision_feature_select_strategy "default")'
    )
    return View(layers, 1), (note,)


def _block(index: int, depth: int) -> int:
    """A place among hidden states, which begin with what goes into the first block, as the number of a block."""
    if not -depth <= index <= depth or index == 0:
        raise CheckpointError(
            f"config.json: vision_feature_layer={index}; expected the output of a block, 1 to {depth} or -{depth} to -1"
        )
    return index if index < 0 else index - 1


def _tower(
    folder: Path, config: Any, tensors: dict[str, Tensor], preprocessing: Preprocessing, view: View, dtype: Dtype
) -> Encoder:
    import transformers

    if config.model_type not in _TOWERS:
        raise CheckpointError(
            f"config.json: no image tower {config.model_type!r} is read here.{nearest(config.model_type, _TOWERS)}"
        )
    model = build_model(folder, getattr(transformers, _TOWERS[config.model_type]), config, tensors, dtype=dtype)
    # A decoder may make another word of a feature's last bit; in narrow dtypes quick layers round otherwise.
    settle(model, train=False, quick=model.dtype == torch.float32)
    width = config.hidden_size
    spec = EncoderSpec(
        preprocessing=preprocessing, text=None, rule=None, width=width, tokens=TOKENS, embedding=width,
        layers=view.layers,
    )  # fmt: skip
    if view.skip == 1 and prefix_tokens(model) == 1:
        raise CheckpointError(f"config.json: {config.model_type} has one class token, which is no patch")
    return TransformersTower(model, None, spec)


def _fast_tower(
    folder: Path, config: Any, tensors: dict[str, Tensor], preprocessing: Preprocessing, view: View, dtype: Dtype
) -> Any:
    """FastViT, as timm builds it with what the folder says of its widths and depths."""
    import timm

    from mm.encoders.timm_tower import TimmTower, built, known_architecture, settled, tokens_in_words, torch_dtype

    known_architecture(config.architecture, folder.name)
    sizes = _plain_arguments(config.model_args or {})
    trunk = built(folder.name, timm.create_model, config.architecture, pretrained=False, num_classes=0, **sizes)
    weights = {key.removeprefix("timm_model."): value for key, value in tensors.items()}
    load_into(trunk, weights, f"{folder.name}, the image tower")
    width = trunk.num_features
    spec = EncoderSpec(
        preprocessing=preprocessing, text=None, rule=None, width=width, tokens=tokens_in_words(trunk), embedding=width,
        layers=(),
    )  # fmt: skip
    tower = TimmTower(trunk, spec, labels=True, channels_last=False)
    return settled(tower, torch_dtype(dtype, tensors), train=False, channels_last=False)


def _plain_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers, flags and lists of them; never a name that timm would look up or fetch."""
    for key, value in values.items():
        inner = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(each, (bool, int, float)) for each in inner):
            raise CheckpointError(f"config.json: model_args {key}={value!r} is not understood; expected numbers")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _projector(config: Any, width: int, tensors: dict[str, Tensor]) -> Projector:
    projector = Projector(
        width, config.text_config.hidden_size,
        bias=config.multimodal_projector_bias, activation=config.projector_hidden_act,
    )  # fmt: skip
    load_into(projector, {key: value.float() for key, value in tensors.items()}, "multi_modal_projector")
    return projector
