"""Tiny checkpoints of random numbers in transformers' own format: weights, image processor and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 600,
}  # fmt: skip
CLIP_STATS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF_STATS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TEXTS = ["cat", "two red cats on the mat", "a photo of a very small dog in a blue hat", "x", "mat"]


def shaken(model: Any, seed: int = 0) -> Any:
    """Weights large enough that every part of the model shows in its outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def clip_tokenizer(folder: Path, *, end_first: bool = False, length: int = 16) -> None:
    """Bytes and a few merges, lower-cased, as CLIP's; the end mark has the highest id or, `end_first`, the lowest."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"), ("m", "a"), ("ma", "t</w>")]
    words = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    words = [marks[1], marks[0], *words] if end_first else [*words, *marks]
    vocabulary = {word: i for i, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length).save_pretrained(folder)


def siglip_tokenizer(folder: Path, **said: Any) -> None:
    """Whole words and letters, as SentencePiece has them; `</s>` ends and pads."""
    words = ["▁cat", "▁red", "▁a", "▁the", "▁mat"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyzABC.,!?_'</>"] + [(word, -1.0) for word in words]
    inner = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>", "model_max_length": 64}
    PreTrainedTokenizerFast(tokenizer_object=inner, **(marks | said)).save_pretrained(folder)


def gemma_tokenizer(folder: Path, **said: Any) -> None:
    """Letters with bytes to fall back on, as Gemma's; `<eos>` ends, `<pad>` pads."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz.,!?"]
    vocabulary = {word: i for i, word in enumerate(words + [f"<0x{i:02X}>" for i in range(256)])}
    inner = Tokenizer(models.BPE(vocabulary, [], fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    marks = {"eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **(marks | said)).save_pretrained(folder)


def clip(folder: Path, *, end_first: bool = False, eos: int = 2, seed: int = 0, **vision: Any) -> Path:
    text = TEXT | {"max_position_embeddings": 16, "eos_token_id": eos, "bos_token_id": 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION | vision, projection_dim=20)
    shaken(transformers.CLIPModel(config), seed).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessorPil(**crop).save_pretrained(folder)
    clip_tokenizer(folder, end_first=end_first)
    return folder


def siglip(folder: Path, *, second: bool = False, **vision: Any) -> Path:
    text = TEXT | {"max_position_embeddings": 64, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION | vision)
    shaken(transformers.SiglipModel(config)).save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    (gemma_tokenizer if second else siglip_tokenizer)(folder)
    return folder


def naflex(folder: Path) -> Path:
    text = TEXT | {"max_position_embeddings": 64, "projection_size": 32}
    vision = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    shaken(transformers.Siglip2Model(config)).save_pretrained(folder)
    transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24).save_pretrained(folder)
    gemma_tokenizer(folder)
    return folder


def aimv2(folder: Path, **vision: Any) -> Path:
    text = TEXT | {"max_position_embeddings": 16, "eos_token_id": 519}
    config = transformers.Aimv2Config(text_config=text, vision_config=VISION | vision, projection_dim=20)
    shaken(transformers.Aimv2Model(config)).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessorPil(**crop).save_pretrained(folder)
    clip_tokenizer(folder)
    return folder


def owl(folder: Path, kind: str) -> Path:
    """The whole detector, as released, `kind` being OwlViT or Owlv2."""
    text = TEXT | {"max_position_embeddings": 16}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=VISION, projection_dim=24)
    shaken(getattr(transformers, f"{kind}ForObjectDetection")(config)).save_pretrained(folder)
    getattr(transformers, f"{kind}ImageProcessorPil")(size={"height": 32, "width": 32}).save_pretrained(folder)
    clip_tokenizer(folder)
    return folder


def clipseg(folder: Path) -> Path:
    """The whole segmenter, as released."""
    text = TEXT | {"max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    config = transformers.CLIPSegConfig(
        text_config=text, vision_config=VISION, projection_dim=20, extract_layers=[0, 1, 2], reduce_dim=16,
        decoder_num_attention_heads=4, decoder_intermediate_size=24,
    )  # fmt: skip
    shaken(transformers.CLIPSegForImageSegmentation(config)).save_pretrained(folder)
    stats = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    transformers.ViTImageProcessorPil(size={"height": 48, "width": 48}, **stats).save_pretrained(folder)
    clip_tokenizer(folder)
    return folder


def tower(folder: Path, kind: str, **said: Any) -> Path:
    """An image tower alone; kind: the model's class in transformers without its ending `Model`."""
    ending = "WithProjection" if kind.endswith("WithProjection") else ""
    stem = kind.removesuffix(ending).removesuffix("Model") if ending else kind
    config = getattr(transformers, f"{stem}Config")(**(VISION | said))
    shaken(getattr(transformers, f"{stem}Model{ending}")(config)).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    transformers.BitImageProcessorPil(**crop).save_pretrained(folder)
    return folder
