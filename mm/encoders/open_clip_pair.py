"""Image and text towers of open_clip: a folder with open_clip_config.json, or a name of open_clip's own list.

Native ViTs and ResNets, towers of timm (SigLIP, MobileCLIP, EVA, ConvNeXt, ViTamin …), CoCa's two contrastive towers,
and text towers of transformers where their files lie in the folder.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from mm.checkpoints.reading import load_into, load_tensors, read_json
from mm.encoders.base import EncoderSpec, ImageFeatures, TextFeatures
from mm.encoders.build import Dtype
from mm.encoders.fuse import fused, likes_channels_last
from mm.encoders.open_clip_hub import WEIGHTS, named_config, trained_with
from mm.encoders.open_clip_text import open_clip_rules
from mm.encoders.preprocess import Preprocessing
from mm.encoders.text import TextRules
from mm.encoders.timm_tower import (
    built,
    check_pixels,
    fixed_hw,
    known_architecture,
    layer_indices,
    placed,
    probe_hw,
    resized,
    settled,
    tokens_in_words,
    torch_dtype,
    triple,
    trunk_features,
    weights_in,
)
from mm.errors import CheckpointError

_TEMPERATURE = ("logit_scale", "logit_bias")
_POLICIES: dict[str, Any] = {"shortest": "crop", "longest": "letterbox", "squash": "squash"}


class OpenClipEncoder(nn.Module):
    """model: a CLIP, CustomTextCLIP or CoCa of open_clip, whole: its methods do the work."""

    model: Any
    rules: TextRules

    def __init__(self, model: nn.Module, rules: TextRules, spec: EncoderSpec, *, channels_last: bool) -> None:
        super().__init__()
        self.model, self.rules, self.spec, self.channels_last = model, rules, spec, channels_last

    def encode_image(self, pixels: Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        visual: Any = self.model.visual
        pixels = placed(pixels, next(visual.parameters()), channels_last=self.channels_last)
        if isinstance(visual, TimmModel):
            return _timm(visual, pixels, layers)
        check_pixels(pixels, _hw(visual.image_size))
        return _resnet(visual, pixels, layers) if isinstance(visual, ModifiedResNet) else _vit(visual, pixels, layers)

    def encode_text(self, texts: list[str]) -> TextFeatures:
        ids, mask, cut = self.rules(texts)
        ids = ids.to(self.model.logit_scale.device)
        tower: Any = getattr(self.model, "text", None)
        if isinstance(tower, HFTextEncoder):
            return TextFeatures(*_transformers_text(tower, ids), mask, cut)
        if tower is None:
            out = self.model.forward_intermediates(
                text=ids, text_indices=[-1], normalize=False, normalize_intermediates=True
            )
        else:
            out = tower.forward_intermediates(ids, indices=[-1], normalize_intermediates=True, output_fmt="NLC")
        return TextFeatures(out["text_features"], out["text_intermediates"][-1], mask, cut)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = self.model.logit_scale.exp() * image @ text.T
        if self.model.logit_bias is None:
            return logits.softmax(-1)
        return (logits + self.model.logit_bias).sigmoid()


def _transformers_text(tower: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """pooled, tokens."""
    real = (ids != tower.config.pad_token_id).long()
    out = tower.transformer(input_ids=ids, attention_mask=real)
    return tower.proj(tower.pooler(out, real)), out.last_hidden_state


def _timm(visual: Any, pixels: Tensor, layers: tuple[int, ...]) -> ImageFeatures:
    out = trunk_features(visual.trunk, pixels, layers)
    return out.with_pooled(visual.head(visual.trunk.forward_head(out.final)))


def _vit(visual: Any, pixels: Tensor, layers: tuple[int, ...]) -> ImageFeatures:
    """A native ViT: always one class token in front."""
    count = len(visual.transformer.resblocks)
    chosen = layer_indices(layers, count)
    wanted = sorted({*chosen.values(), count - 1})
    out = visual.forward_intermediates(pixels, indices=wanted, output_fmt="NLC", output_extra_tokens=True)
    maps = dict(zip(wanted, out["image_intermediates"], strict=True))
    tokens, prefix = maps[count - 1], out["image_intermediates_prefix"][-1]
    if _norms_tokens(visual):
        tokens, prefix = visual.ln_post(tokens), visual.ln_post(prefix)
    grid = (pixels.shape[2] // visual.patch_size[0], pixels.shape[3] // visual.patch_size[1])
    return ImageFeatures(
        tokens,
        grid,
        prefix,
        out["image_features"],
        {asked: maps[i] for asked, i in chosen.items()},
        dict.fromkeys(chosen, grid),
    )


def _norms_tokens(visual: Any) -> bool:
    """Whether the last norm is for tokens: with CoCa's pooling or CLIPA's it is for what was pooled alone."""
    if visual.attn_pool is not None:
        return visual.attn_pool_contrastive is not None
    return not visual.final_ln_after_pool


def _resnet(visual: ModifiedResNet, pixels: Tensor, layers: tuple[int, ...]) -> ImageFeatures:
    """A native ResNet: four stages behind a stem, which open_clip counts as the first."""
    chosen = layer_indices(layers, 4)
    wanted = sorted({*(i + 1 for i in chosen.values()), 4})
    out: dict[str, Any] = visual.forward_intermediates(pixels, indices=wanted)
    maps = {i - 1: m for i, m in zip(wanted, out["image_intermediates"], strict=True)}
    flat = {i: m.flatten(2).transpose(1, 2) for i, m in maps.items()}
    height, width = maps[3].shape[2:]
    return ImageFeatures(
        flat[3],
        (height, width),
        flat[3][:, :0],
        out["image_features"],
        {asked: flat[i] for asked, i in chosen.items()},
        {asked: (maps[i].shape[2], maps[i].shape[3]) for asked, i in chosen.items()},
    )


def load(folder: Path, *, dtype: Dtype, train: bool, image_hw: tuple[int, int] | None = None) -> OpenClipEncoder:
    """The pair of a folder in open_clip's format: open_clip_config.json beside a safetensors file.

    image_hw: another input size than the checkpoint's; position embeddings are resampled as the library does it.

    Raises:
        CheckpointError: files that are missing, pickled, damaged or do not fit together, or an unknown part.
    """
    config = read_json(folder / "open_clip_config.json")
    model_cfg = config.get("model_cfg")
    if not isinstance(model_cfg, dict):
        raise CheckpointError(f"{folder.name}: open_clip_config.json has no model_cfg")
    return _encoder(
        model_cfg,
        config.get("preprocess_cfg") or {},
        folder.name,
        weights=weights_in(folder, WEIGHTS),
        text_files=folder,
        dtype=dtype,
        train=train,
        image_hw=image_hw,
    )


def load_named(
    name: str,
    weights: Path | None,
    *,
    tag: str | None = None,
    text_files: Path | None = None,
    dtype: Dtype = "float32",
    train: bool = False,
    image_hw: tuple[int, int] | None = None,
) -> OpenClipEncoder:
    """The pair that open_clip calls `name`, such as `MobileCLIP2-S0`.

    weights: a safetensors file with open_clip's keys; None leaves the towers as open_clip initialises them.
    tag: which published weights they are; it decides preprocessing and activation. It may be left out where all
    published weights of the name agree on these, and where there are none.
    text_files: a folder with the tokenizer (`open_clip_hub.tokenizer_repo`) and, for text towers of transformers,
    their config.json.

    Raises:
        CheckpointError: as `load`, and where the tag is missing.
    """
    model_cfg = named_config(name)
    quick_gelu, preprocess = trained_with(name, tag)
    if quick_gelu:
        model_cfg["quick_gelu"] = True
    return _encoder(
        model_cfg,
        preprocess,
        name,
        weights=weights,
        text_files=text_files,
        dtype=dtype,
        train=train,
        image_hw=image_hw,
    )


def _encoder(
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    name: str,
    *,
    weights: Path | None,
    text_files: Path | None,
    dtype: Dtype,
    train: bool,
    image_hw: tuple[int, int] | None,
) -> OpenClipEncoder:
    rules = open_clip_rules(model_cfg.get("text_cfg") or {}, text_files, name)
    model = open_clip_model(model_cfg, name, text_files=text_files, image_hw=image_hw)
    tensors = load_tensors(weights) if weights else {}
    if weights:
        load_into(model, _fitted(tensors, model, resize=image_hw is not None), f"{name}, {weights.name}")
    hw = _input_hw(model.visual, image_hw, name)
    if isinstance(model.visual, TimmModel) and not train:
        trunk = model.visual.trunk
        model.visual.trunk = fused(trunk.eval(), probe_hw(trunk, hw), name)
    channels_last = not train and _on_maps(model.visual)
    spec = EncoderSpec(
        preprocessing=open_clip_preprocessing(preprocess_cfg, hw, name),
        text=rules.spec,
        rule="softmax" if model.logit_bias is None else "sigmoid",
        width=_width(model.visual),
        tokens=_in_words(model.visual),
        embedding=int(model_cfg["embed_dim"]),
        layers=(),
    )
    temperature = {key: getattr(model, key).data.clone() for key in _TEMPERATURE if getattr(model, key) is not None}
    encoder = OpenClipEncoder(model, rules, spec, channels_last=channels_last)
    settled(encoder, torch_dtype(dtype, tensors), train=train, channels_last=channels_last)
    for key, value in temperature.items():  # in half precision a temperature of 100 would be off by one per cent
        getattr(model, key).data = value
    return encoder


def open_clip_model(
    model_cfg: dict[str, Any], name: str, *, text_files: Path | None, image_hw: tuple[int, int] | None = None
) -> Any:
    """The CLIP, CustomTextCLIP or CoCa of a `model_cfg`, with random weights. Nothing is fetched.

    Raises:
        CheckpointError: the configuration is incomplete or names something unknown.
    """
    config = copy.deepcopy(model_cfg)
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(config.get(part), dict):
            raise CheckpointError(f"{name}: the model's configuration has no {part}")
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name"):
        known_architecture(str(vision["timm_model_name"]), name)
        vision["timm_model_pretrained"] = False
    elif image_hw:
        vision["image_size"] = image_hw
    custom = config.pop("custom_text", False)
    if text.get("hf_model_name"):
        text["hf_model_name"], text["hf_model_pretrained"] = _text_model(text, text_files, name), False
        custom = True
    kind: Any = CLIP if not custom else CoCa if "multimodal_cfg" in config else CustomTextCLIP
    return built(name, kind, **config)


def _text_model(text_cfg: dict[str, Any], folder: Path | None, name: str) -> str:
    """The folder itself, where it has the configuration of the text tower that transformers is to build."""
    wanted, path = text_cfg["hf_model_name"], folder / "config.json" if folder else None
    kind = read_json(path).get("model_type") if path and path.is_file() else None
    if kind not in arch_dict:
        raise CheckpointError(
            f"{name}: the text tower is {wanted!r} of transformers, and there is no config.json of it beside the "
            f"weights (model_type {kind!r}, expected one of {', '.join(arch_dict)})"
        )
    return str(folder)


def _fitted(tensors: dict[str, Tensor], model: Any, *, resize: bool) -> dict[str, Tensor]:
    """The checkpoint under the names and shapes of today's open_clip; everything else must fit as it is."""
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    wanted = model.state_dict()
    # transformers once kept this running number, which is no weight, among the weights
    tensors = {k: v for k, v in tensors.items() if k in wanted or not k.endswith("embeddings.position_ids")}
    for key in _TEMPERATURE:
        if key in tensors and key in wanted and tensors[key].numel() == 1:
            tensors[key] = tensors[key].reshape(wanted[key].shape)
    if resize:
        resize_pos_embed(tensors, model)
    return tensors


def open_clip_preprocessing(config: dict[str, Any], hw: tuple[int, int], name: str) -> Preprocessing:
    """open_clip's own evaluation transform of a `preprocess_cfg`, for an input of `hw`."""
    data = merge_preprocess_dict(asdict(PreprocessCfg()), config)
    mode, resample = data["resize_mode"] or "shortest", data["interpolation"] or "bicubic"
    if mode not in _POLICIES or resample not in ("bicubic", "bilinear", "random"):
        raise CheckpointError(f"{name}: resize_mode {mode!r} with interpolation {resample!r} is unknown")
    colour = int(data["fill_color"] or 0)
    return Preprocessing(
        input_hw=hw,
        policy=_POLICIES[mode],
        resample="bilinear" if resample == "bilinear" else "bicubic",
        mean=triple(data["mean"]),
        std=triple(data["std"]),
        shortest_edge=None,
        centre="even",
        fill=(colour, colour, colour),
        patch=None,
        max_patches=None,
    )


def _hw(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _input_hw(visual: Any, image_hw: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """What the tower reads from now on. A timm trunk keeps its own size, whatever the configuration around it says."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        return _hw(visual.image_size)
    return resized(trunk, image_hw, name) if image_hw else fixed_hw(trunk) or _hw(visual.image_size)


def _on_maps(visual: Any) -> bool:
    return likes_channels_last(visual.trunk) if hasattr(visual, "trunk") else isinstance(visual, ModifiedResNet)


def _width(visual: Any) -> int:
    if hasattr(visual, "trunk"):
        return visual.trunk.num_features
    return visual.attnpool.c_proj.in_features if hasattr(visual, "attnpool") else visual.conv1.out_channels


def _in_words(visual: Any) -> str:
    if hasattr(visual, "trunk"):
        return tokens_in_words(visual.trunk)
    if hasattr(visual, "attnpool"):
        return "the last stage's map, in front of the attention pooling"
    return "patch tokens after the last norm" if _norms_tokens(visual) else "patch tokens after the last block"
