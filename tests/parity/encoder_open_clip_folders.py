"""Tiny checkpoints of random numbers in the formats of open_clip and timm, made by these libraries themselves."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

TEXTS = ["cat", "two red cats, on the mat", "A photo of a very SMALL dog &amp; a blue hat!", "x", "naïve café ☃"]
MOBILE = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear", "resize_mode": "shortest"}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
SIMPLE: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {
    "context_length": 64, "vocab_size": 64, "hf_tokenizer_name": "org/letters",
    "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True,
    "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip
VIT: dict[str, Any] = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "vit gelu": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": SIMPLE},
    "vit quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": SIMPLE},
    "vit oblong": {"embed_dim": 24, "vision_cfg": VIT | {"image_size": [32, 48]}, "text_cfg": SIMPLE},
    "vit average": {
        "embed_dim": 24,
        "vision_cfg": VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": SIMPLE,
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 16},
        "text_cfg": SIMPLE,
    },
    "siglip": {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "tiny_siglip", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": SIGLIP_TEXT,
    },
    "mobile fastvit": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "timm_model_name": "tiny_fastvit", "timm_pool": "avg", "timm_proj": None},
        "text_cfg": SIMPLE | {"no_causal_mask": True},
    },
    "mobile vit": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "tiny_vit", "timm_pool": "token", "timm_proj": None},
        "text_cfg": SIMPLE | {"no_causal_mask": False},
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": SIMPLE | {"context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": SIMPLE | {"context_length": 76, "attn_pooler_heads": 4},
    },
}
PREPROCESS = {"siglip": HALF, "mobile fastvit": MOBILE, "mobile vit": MOBILE}

FASTVIT: dict[str, Any] = {"layers": (1, 1, 2, 1), "embed_dims": (8, 16, 32, 64), "mlp_ratios": (2, 2, 2, 2)}


def _own(given: dict[str, Any]) -> dict[str, Any]:
    """What is meant for the model itself of all that timm hands to an entry of its list."""
    return {k: v for k, v in given.items() if k not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}


def _vit(name: str, options: dict[str, Any]) -> nn.Module:
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    model: Any = VisionTransformer(**(shape | options))
    model.pretrained_cfg = model.default_cfg = {"architecture": name, "input_size": (3, 32, 32)}
    return model


@register_model
def tiny_siglip(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _vit("tiny_siglip", {"class_token": False} | _own(kwargs))


@register_model
def tiny_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _vit("tiny_vit", {"no_embed_class": True} | _own(kwargs))


@register_model
def tiny_fastvit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    mixers = ("repmixer", "repmixer", "repmixer", "attention")
    own: dict[str, Any] = {"token_mixers": mixers, "se_downsamples": (False, False, True, True), "lkc_use_act": True}
    return timm.create_model("fastvit_t8", pretrained=False, **(FASTVIT | own | _own(kwargs)))


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """Weights and running means large enough that every part of the model shows in its outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and not name.startswith("logit_"):
                tensor.nan_to_num_(0).clamp_(-2, 2).add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def open_clip_reference(config: dict[str, Any]) -> Any:
    """open_clip's own model of this configuration, shaken."""
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    kind: Any = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
    return shaken(kind(**config))


def open_clip_folder(folder: Path, case: str, file: str = "open_clip_model.safetensors") -> Any:
    """Writes the checkpoint `case` and returns the model it was made from."""
    folder.mkdir(exist_ok=True)
    model = open_clip_reference(CONFIGS[case])
    settings = {"model_cfg": CONFIGS[case], "preprocess_cfg": PREPROCESS.get(case, {})}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / file)
    if case == "siglip":
        letters_tokenizer(folder)
    return model


def letters_tokenizer(folder: Path) -> None:
    """Letters and a few words, `</s>` behind every text, `<pad>` to fill, as SigLIP's SentencePiece."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz</>"] + [("▁cat", -1.0), ("▁red", -1.0)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks: dict[str, Any] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **marks).save_pretrained(folder)


TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit", {"img_size": 64, "dynamic_img_size": False, "num_classes": 24}),
    "vit registers": ("test_vit2", {"img_size": 64, "reg_tokens": 3, "num_classes": 0}),
    "eva": (
        "eva02_tiny_patch14_224",
        {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0},
    ),
    "convnext": ("test_convnext", {"num_classes": 1000}),
    "resnet": ("test_resnet", {"num_classes": 24}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "num_classes": 0},
    ),
    "fastvit": ("fastvit_t8", FASTVIT | {"num_classes": 24, "se_downsamples": (False, False, True, True)}),
}


def timm_folder(folder: Path, case: str, **said: Any) -> Any:
    """Writes the tower `case` as timm does for the hub and returns it."""
    folder.mkdir(exist_ok=True)
    name, options = TIMM[case]
    model = shaken(timm.create_model(name, **options))
    side = options.get("img_size", 64)
    pretrained = {k: v for k, v in model.pretrained_cfg.items() if v is not None and k not in ("hf_hub_id", "url")}
    config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": options,
        "pretrained_cfg": pretrained | {"input_size": [3, side, side]} | said,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return model


@functools.cache
def open_clip_tokenizer(folder: Path) -> Any:
    """open_clip's own tokenizer of the folder."""
    return open_clip.get_tokenizer(f"local-dir:{folder}")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
