"""A timm image tower beside a transformers CLIP text tower: the layout in which `tiny` is stored.

`vision/` is a folder that `timm.create_model("local-dir:…")` builds (its classifier is the projection into the joint
space); `text/` is one that `CLIPTextModelWithProjection.from_pretrained` loads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.encoders.base import EncoderSpec, ImageFeatures, TextFeatures
from mm.encoders.text import TextRules, fast_rules


class TimmClipEncoder(nn.Module):
    """vision: a timm model with `num_classes = E`; text: a CLIPTextModelWithProjection of the same E."""

    vision: Any
    text: Any

    def __init__(self, vision: nn.Module, text: nn.Module, tokenizer: Any, spec: EncoderSpec) -> None:
        super().__init__()
        assert spec.text is not None
        self.vision, self.text, self.spec = vision, text, spec
        self.rules: TextRules = fast_rules(tokenizer, spec.text)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    def encode_image(self, pixels: Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        wanted = sorted({*layers})
        if wanted:
            final, maps = self.vision.forward_intermediates(pixels, indices=wanted, norm=False)
        else:
            final, maps = self.vision.forward_features(pixels), []
        pooled = self.vision.forward_head(final)
        flat = [m.flatten(2).transpose(1, 2) for m in maps]
        tokens = final.flatten(2).transpose(1, 2)
        return ImageFeatures(
            tokens=tokens,
            grid=(final.shape[2], final.shape[3]),
            prefix=tokens[:, :0],
            pooled=pooled,
            layers=dict(zip(wanted, flat, strict=True)),
            layer_grids={i: (m.shape[2], m.shape[3]) for i, m in zip(wanted, maps, strict=True)},
        )

    def encode_text(self, texts: list[str]) -> TextFeatures:
        ids, mask, cut = self.rules(texts)
        device = self.logit_scale.device
        out = self.text(input_ids=ids.to(device), attention_mask=mask.to(device))
        return TextFeatures(out.text_embeds, out.last_hidden_state, mask, cut)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        logits = self.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        return logits.softmax(-1)
