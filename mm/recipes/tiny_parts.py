"""The parts of `tiny` before training: what `mm.recipes.tiny` fits and exports."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mm.connectors.table import build
from mm.encoders.base import EncoderSpec, ImageFeatures
from mm.encoders.preprocess import squashed
from mm.encoders.text import TextSpec
from mm.encoders.timm_clip import TimmClipEncoder
from mm.heads.clipseg_style import ClipSegStyleConfig, ClipSegStyleHead
from mm.heads.owlvit import OwlConfig, OwlHead
from mm.recipes.tokenizer import train_tokenizer

EMBEDDING, WIDTH, DECODER_WIDTH = 256, 256, 192
CONNECTOR = "regions"
VISION_ARCHITECTURE = "coatnet_bn_0_rw_224"
VISION_ARGS: dict[str, Any] = {
    "img_size": 128, "embed_dim": (48, 96, WIDTH), "depths": (2, 2, 5),
    "block_type": ("C", "C", ("C", "T", "T", "T", "T")), "stem_width": (24, 48),
    "conv_expand_ratio": 1, "conv_expand_output": True, "conv_group_size": 0,
}  # fmt: skip
PIXELS = squashed(128, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
TEXT = TextSpec(length=64, canonical="lower", fill=False, begin=(1,), end=(3,), pad=0)
SPEC = EncoderSpec(
    preprocessing=PIXELS, text=TEXT, rule="softmax", width=WIDTH, tokens="the last stage",
    embedding=EMBEDDING, layers=(0, 1, 2),
)  # fmt: skip
DETECT = OwlConfig(
    width=WIDTH, embedding=EMBEDDING, merge_class_token=False, objectness=True, score="label x objectness",
    norm_eps=1e-5, vote=True,
)  # fmt: skip
SEGMENT = ClipSegStyleConfig(
    width=WIDTH, embedding=EMBEDDING, reduced=96, depth=1, layers=SPEC.layers,
    layer_widths=(48, 48, 96), widths=(16, 32, 64),
)  # fmt: skip


def build_encoder() -> TimmClipEncoder:
    import timm
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vision = timm.create_model(VISION_ARCHITECTURE, num_classes=EMBEDDING, **VISION_ARGS)
    tokenizer: Any = train_tokenizer()
    text = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=EMBEDDING, max_position_embeddings=TEXT.length, hidden_act="gelu",
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ))  # fmt: skip
    return TimmClipEncoder(vision, text, tokenizer, SPEC)


def build_heads() -> nn.ModuleDict:
    return nn.ModuleDict({
        "detect": OwlHead(**vars(DETECT)),
        "segment": ClipSegStyleHead(**vars(SEGMENT)),
    })  # fmt: skip


def build_decoder(tokenizer: Any) -> nn.ModuleDict:
    from transformers import LlamaConfig, LlamaForCausalLM

    decoder = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=DECODER_WIDTH, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ))  # fmt: skip
    return nn.ModuleDict({"connector": build(CONNECTOR, WIDTH, DECODER_WIDTH), "decoder": decoder})


def prepare(pixels: torch.Tensor) -> torch.Tensor:
    """uint8[B, 3, S, S] -> float32, normalised as `SPEC` says."""
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (PIXELS.mean, PIXELS.std))
    return (pixels.float() / 255 - mean) / std


def dialogue_loss(
    speaker: Any, tokenizer: Any, image: ImageFeatures, dialogues: list[tuple[int, str, str]]
) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens.

    speaker: `connector` and `decoder`; each dialogue is (picture, prompt, answer). A row reads
    `picture <s> prompt newline answer </s>`, the order in which `mm.generate` feeds them.
    """
    lm = speaker["decoder"]
    pictures, _ = speaker["connector"](image.tokens, image.grid)
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    rows, starts = [], []
    for _, prompt, answer in dialogues:
        asked, said = tokenizer([prompt, answer], add_special_tokens=False)["input_ids"]
        rows.append([tokenizer.bos_token_id, *asked, newline, *said, tokenizer.eos_token_id])
        starts.append(len(asked) + 2)
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows], device=pictures.device)
    place = torch.arange(width)[None]
    answer = (place >= torch.tensor(starts)[:, None]) & (place < torch.tensor([len(r) for r in rows])[:, None])
    embeds = lm.get_input_embeddings()(ids)
    owner = torch.tensor([d[0] for d in dialogues], device=pictures.device)
    inputs = torch.cat([pictures[owner].to(embeds.dtype), embeds], 1)
    logits = lm(inputs_embeds=inputs, logits_to_keep=width + 1).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits[answer].float(), ids[answer.to(ids.device)])
