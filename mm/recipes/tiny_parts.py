"""The parts of `tiny` before training: what `mm.recipes.tiny` fits and exports."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

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

    speaker: `connector` and `decoder`; each dialogue is (picture, prompt, answer). A decoder reads
    `picture <s> prompt newline answer </s>`, the order in which `mm.generate` feeds them; all dialogues of a picture
    share one row, in which each sees the picture and itself alone.
    """
    lm = speaker["decoder"]
    asked = list(dict.fromkeys(picture for picture, _, _ in dialogues))
    pictures = speaker["connector"](image.tokens, image.grid)[0][asked]
    rows = [_packed([d[1:] for d in dialogues if d[0] == picture], tokenizer) for picture in asked]
    ids, part, place, answer = (pad_sequence(list(each), True).to(pictures.device) for each in zip(*rows, strict=True))
    embeds = lm.get_input_embeddings()(ids)
    seen = pictures.shape[1]
    place = torch.cat([torch.arange(seen, device=place.device).expand(len(ids), -1), seen + place], 1)
    hidden = lm.model(
        inputs_embeds=torch.cat([pictures.to(embeds.dtype), embeds], 1), position_ids=place,
        attention_mask=_own_part(F.pad(part, (seen, 0)), embeds.dtype),
    ).last_hidden_state  # fmt: skip
    before = F.pad(answer[:, 1:], (seen, 1))  # what stands in front of an answer's token foretells it
    return F.cross_entropy(lm.lm_head(hidden[before]).float(), ids[answer])


def _packed(dialogues: list[tuple[str, str]], tokenizer: Any) -> tuple[torch.Tensor, ...]:
    """One picture's dialogues behind each other: ids, which dialogue (from 1 on), place in it, all int64[W], and
    whether a token is of the answer, bool[W]."""
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    ids, part, place, answer = [], [], [], []
    for number, (prompt, reply) in enumerate(dialogues, start=1):
        asked, said = tokenizer([prompt, reply], add_special_tokens=False)["input_ids"]
        row = [tokenizer.bos_token_id, *asked, newline, *said, tokenizer.eos_token_id]
        ids += row
        part += [number] * len(row)
        place += range(len(row))
        answer += [False] * (len(asked) + 2) + [True] * (len(said) + 1)
    return torch.tensor(ids), torch.tensor(part), torch.tensor(place), torch.tensor(answer)


def _own_part(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the attention of int64[B, T] parts, [B, 1, T, T]: a token sees what came before it of part 0
    and of its own part."""
    allowed = (part[:, None] == part[:, :, None]) | (part[:, None] == 0)
    hidden = ~allowed.tril()
    return torch.zeros(hidden.shape, dtype=dtype, device=part.device).masked_fill(
        hidden, torch.finfo(dtype).min
    )[:, None]  # fmt: skip
