"""Segmentation through our loader against transformers' CLIPSeg, on tiny random released-format folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mm.checkpoints.loading import load
from mm.tasks.encode import encode
from mm.tasks.segment import segment
from tests.parity import encoder_transformers_folders as make

LABELS = ["cat", "two red cats", "a mat"]
STATS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# The refined variant enlarges 16 times whatever the patch is, so its patch is 16.
CASES = [(False, 40, 3, [0, 1, 2]), (True, 112, 3, [0, 2]), (True, 80, 11, [3, 6, 9])]


def released(folder: Path, refined: bool, side: int, depth: int, layers: list[int]) -> tuple[Any, Any]:
    text = make.TEXT | {"max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    vision = make.VISION | {"image_size": side, "num_hidden_layers": depth, "patch_size": 16 if refined else 8}
    config = transformers.CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=20, extract_layers=layers, reduce_dim=16,
        decoder_num_attention_heads=4, decoder_intermediate_size=24, use_complex_transposed_convolution=refined,
    )  # fmt: skip
    model = make.shaken(transformers.CLIPSegForImageSegmentation(config))
    with torch.no_grad():  # logits of the size that trained ones have, so that float32 noise stays below a difference
        for parameter in model.decoder.transposed_convolution.parameters():
            parameter.mul_(0.1 if refined else 0.02)
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessorPil(size={"height": side, "width": side}, **STATS)
    processor.save_pretrained(folder)
    make.clip_tokenizer(folder)
    return model, processor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Any, Any]]:
    found = []
    for case in CASES:
        folder = tmp_path_factory.mktemp("clipseg")
        found.append((folder, *released(folder, *case)))
    return found


def picture(size_wh: tuple[int, int]) -> Image.Image:
    width, height = size_wh
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


def reference_logits(folder: Path, model: Any, pixels: torch.Tensor, labels: list[str]) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(labels, padding=True, return_tensors="pt")
    out = model(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        pixel_values=pixels.expand(len(labels), -1, -1, -1),
    ).logits
    return out.reshape(len(labels), *pixels.shape[2:])


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]])
@torch.inference_mode()
def test_mask_logits_equal_the_reference(made, case: int, labels: list[str]) -> None:
    folder, model, processor = made[case]
    image = picture((91, 64))
    wanted = reference_logits(folder, model, processor(image, return_tensors="pt")["pixel_values"], labels)
    ours = load(str(folder))
    features = encode(image, model=str(folder)).features
    owner = torch.zeros(len(labels), dtype=torch.long)
    out = ours.segmenter(features, ours.encoder.encode_text(labels).pooled, owner)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", range(len(CASES)))
@torch.inference_mode()
def test_an_example_picture_prompts_like_the_reference(made, case: int) -> None:
    folder, model, processor = made[case]
    image, example = picture((64, 64)), picture((30, 40))
    pixels, prompt = (processor(p, return_tensors="pt")["pixel_values"] for p in (image, example))
    wanted = model(pixel_values=pixels, conditional_pixel_values=prompt).logits.reshape(pixels.shape[2:])
    found = segment(image, like=example, model=str(folder))
    ours = encode(image, model=str(folder)).geometry.masks_to_original(wanted.sigmoid().numpy()[None])
    np.testing.assert_allclose(found.scores, ours, atol=1e-5)
    assert found.labels == ("example",)


@torch.inference_mode()
def test_trap_17_a_grid_that_is_not_square_is_not_scrambled(made) -> None:
    """The reference takes the root of the token count for both sides: 4 x 9 patches come back as 6 x 6."""
    folder, model, _ = made[0]
    ours = load(str(folder))
    pixels = torch.randn(1, 3, 32, 72)
    text = ours.encoder.encode_text(LABELS[:1]).pooled
    head: Any = ours.segmenter
    image = ours.encoder.encode_image(pixels, head.layers)
    out = head(image, text, torch.zeros(1, dtype=torch.long))
    assert out.shape == (1, 32, 72)
    # Each token of the plain head fills its own patch, so the true order of patches can be read off.
    scrambled = model(pixel_values=pixels, conditional_embeddings=text).logits.reshape(6, 8, 6, 8)
    wanted = scrambled.transpose(1, 2).reshape(4, 9, 8, 8).transpose(1, 2).reshape(32, 72)
    torch.testing.assert_close(out[0], wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tiles_read_a_large_picture_in_its_own_size(made) -> None:
    folder = made[1][0]
    image = picture((200, 120))
    found = segment(image, LABELS, model=str(folder), tile=80)
    assert found.masks.shape == (3, 120, 200) and np.isfinite(found.scores).all()
    small = segment(image.crop((0, 0, 60, 60)), LABELS, model=str(folder), tile=80)
    whole = segment(image.crop((0, 0, 60, 60)), LABELS, model=str(folder))
    np.testing.assert_allclose(small.scores, whole.scores, atol=1e-6)
