"""Tiny random vision-language folders in the released formats, saved by transformers itself."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from mm.recipes.tokenizer import train_tokenizer

IMAGE = "<image>"
SIDE, PATCH, WIDTH = 24, 6, 32

# What the released folders hold, in their own words: all pictures of a turn first, then its words.
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>' }}{% else %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXTS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256,
                "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256},
}  # fmt: skip
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": SIDE, "patch_size": PATCH}  # fmt: skip
TOWERS: dict[str, dict[str, Any]] = {
    "clip_vision_model": _TOWER,
    "siglip_vision_model": _TOWER | {"vision_use_head": False},
    "timm_wrapper": {
        "architecture": "fastvit_mci3",
        "hidden_size": 256,
        "model_args": {"inference_mode": True, "embed_dims": [16, 16, 32, 64, 128], "layers": [1, 1, 1, 1, 1]},
    },
}


@functools.cache
def _trained() -> Any:
    return train_tokenizer()


def tokenizer(template: str | None = None) -> Any:
    """Byte-fallback BPE that puts `<s>` in front, with the marks of both templates."""
    import copy

    from tokenizers import processors

    made = copy.deepcopy(_trained())
    made.add_special_tokens({"additional_special_tokens": [IMAGE, "<|im_start|>", "<|im_end|>"]})
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.bos_token_id)]
    )
    made.chat_template = template
    return made


def shaken(model: Any, seed: int = 0) -> Any:
    """Larger weights than at the start of training, so that pictures and words matter."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=chance) * 0.1)
            elif parameter.ndim == 2:
                parameter.mul_(5)
    return model.eval()


def reference(tower: str = "clip_vision_model", text: str = "llama", **settings: Any) -> Any:
    """A LlavaForConditionalGeneration or, over timm's tower, a FastVlmForConditionalGeneration."""
    from transformers import (
        AutoConfig,
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    words = tokenizer()
    vision = AutoConfig.for_model(tower, **TOWERS[tower])
    language = AutoConfig.for_model(
        text, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(words) + 3,
        bos_token_id=1, eos_token_id=3, pad_token_id=0, **TEXTS[text],
    )  # fmt: skip
    fast = tower == "timm_wrapper"
    config = (FastVlmConfig if fast else LlavaConfig)(
        vision_config=vision, text_config=language, image_token_index=words.convert_tokens_to_ids(IMAGE), **settings
    )
    torch.manual_seed(0)
    return shaken((FastVlmForConditionalGeneration if fast else LlavaForConditionalGeneration)(config))


def processor(tower: str, config: Any, template: str | None = VICUNA, **pictures: Any) -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor, SiglipImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    square = {"height": SIDE, "width": SIDE}
    shortest = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    if tower == "siglip_vision_model":
        images = SiglipImageProcessorPil(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3, **pictures)
    elif tower == "timm_wrapper":
        side = {"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}}
        images = LlavaImageProcessorPil(**side, image_mean=[0.0] * 3, image_std=[1.0] * 3, **pictures)
    else:
        images = (LlavaImageProcessorPil if pictures else CLIPImageProcessorPil)(**shortest, **pictures)
    return LlavaProcessor(
        images,
        tokenizer(template),
        patch_size=64 if tower == "timm_wrapper" else PATCH,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1 if tower == "clip_vision_model" else 0,
        chat_template=template,
    )


def saved(folder: Path, model: Any, reader: Any, *, released: bool = True) -> Path:
    """released: also the preprocessor_config.json that released folders have."""
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    if released:
        reader.image_processor.save_pretrained(folder)
    return folder
