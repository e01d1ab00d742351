"""Image and text towers of one transformers checkpoint: CLIP, SigLIP (1, and 2 of fixed size), AIMv2, and the pairs
inside OWL-ViT, OWLv2 and CLIPSeg, whose heads stand elsewhere. TinyCLIP and MetaCLIP folders are CLIP folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mm.checkpoints.reading import load_weights
from mm.encoders.base import EncoderSpec, ImageFeatures, TextFeatures
from mm.encoders.build import Dtype
from mm.encoders.text import TextRules
from mm.encoders.transformers_files import TextHabits, read_preprocessing, read_text_rules
from mm.encoders.transformers_tower import TOKENS, read_tower
from mm.encoders.transformers_weights import build_model, refusing, settle


@dataclass(frozen=True)
class Family:
    """model: the class of transformers. unused: the keys of heads that such a folder may hold beside the pair."""

    model: str
    rule: Literal["softmax", "sigmoid"]
    text: TextHabits
    unused: tuple[str, ...] = ()


_CLIP_TEXT = TextHabits("as is", fill=False, pools="clip", mask="padding")
_OWL_TEXT = TextHabits("as is", fill=False, pools="highest", mask="padding")
_OWL_HEADS = ("class_head.", "box_head.", "objectness_head.", "layer_norm.", "box_bias")
# The authors of SigLIP 2 canonicalise as for SigLIP; its tokenizer in transformers only lower-cases.
_SIGLIP_TEXT = TextHabits("letters", fill=True, pools="last", mask="none")

FAMILIES: dict[str, Family] = {
    "clip": Family("CLIPModel", "softmax", _CLIP_TEXT),
    "siglip": Family("SiglipModel", "sigmoid", _SIGLIP_TEXT),
    "siglip2": Family("Siglip2Model", "sigmoid", _SIGLIP_TEXT),
    "aimv2": Family("Aimv2Model", "softmax", TextHabits("as is", fill=False, pools="end", mask="causal")),
    "owlvit": Family("OwlViTModel", "softmax", _OWL_TEXT, _OWL_HEADS),
    "owlv2": Family("Owlv2Model", "softmax", _OWL_TEXT, _OWL_HEADS),
    "clipseg": Family("CLIPSegModel", "softmax", _CLIP_TEXT, ("decoder.",)),
}


class TransformersPair(nn.Module):
    """model: with `vision_model`, `text_model`, `get_text_features` and `logit_scale`, as all of these have."""

    model: Any

    def __init__(self, model: Any, rules: TextRules, spec: EncoderSpec, family: Family) -> None:
        super().__init__()
        self.model, self.spec, self.family = model, spec, family
        self.rules: TextRules = rules

    def encode_image(self, pixels: Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        found = read_tower(self.model.vision_model, pixels, layers)
        project = getattr(self.model, "visual_projection", None)  # SigLIP pools into the joint space at once
        return replace(found, pooled=project(found.pooled)) if project else found

    def encode_text(self, texts: list[str]) -> TextFeatures:
        ids, mask, cut = self.rules(texts)
        device = self.model.logit_scale.device
        attended = attention_mask(mask, self.family.text.mask)
        out = self.model.get_text_features(
            input_ids=ids.to(device), attention_mask=None if attended is None else attended.to(device)
        )
        return TextFeatures(out.pooler_output, out.last_hidden_state, mask, cut)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        scale = self.model.logit_scale
        if hasattr(self.model, "max_log_logit_scale"):  # AIMv2
            scale = scale.clamp(0.0, self.model.max_log_logit_scale)
        logits = scale.exp() * (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T)
        return logits.softmax(-1) if self.spec.rule == "softmax" else (logits + self.model.logit_bias).sigmoid()


def attention_mask(mask: Tensor, told: Literal["none", "padding", "causal"]) -> Tensor | None:
    """bool[K, L], true on real tokens -> what the text tower is told of it, see `TextHabits`."""
    if told == "none":
        return None
    return mask.long() if told == "padding" else mask[:, None, None] & mask.new_ones(2 * mask.shape[1:]).tril()


def load(folder: Path, *, dtype: Dtype, train: bool) -> TransformersPair:
    """The pair of a folder.

    Raises:
        CheckpointError: the files are damaged, incomplete or do not fit together.
    """
    return TransformersPair(*load_parts(folder, dtype=dtype, train=train))


def load_parts(folder: Path, *, dtype: Dtype, train: bool) -> tuple[Any, TextRules, EncoderSpec, Family]:
    """What a pair is made of, from a folder of any of `FAMILIES`."""
    import transformers

    with refusing(folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    family = FAMILIES[config.model_type]
    preprocessing = read_preprocessing(folder)
    rules = read_text_rules(folder, family.text, config.text_config)
    kind = getattr(transformers, family.model)
    model = build_model(folder, kind, config, load_weights(folder), dtype=dtype, unused=family.unused)
    settle(model, train)
    width = config.vision_config.hidden_size
    spec = EncoderSpec(
        preprocessing=preprocessing,
        text=rules.spec,
        rule=family.rule,
        width=width,
        tokens=TOKENS,
        embedding=config.projection_dim if hasattr(model, "visual_projection") else width,
        layers=tuple(getattr(config, "extract_layers", ())),
    )
    return model, rules, spec, family
