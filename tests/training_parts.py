"""What the tests of training share: a tiny CLIP of random numbers, and coloured squares in COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import pre_tokenizers

COLOURS = {"red square": (220, 30, 30), "blue square": (40, 60, 220), "green square": (30, 190, 60)}
SIDE = 48


def clip_folder(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP of 6 x 6 patches, so small that a step takes milliseconds."""
    torch.manual_seed(seed)
    text = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 600, "max_position_embeddings": 24, "eos_token_id": 2, "bos_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    with torch.no_grad():  # as initialised, every picture looks the same
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=24)
    tokenizer.save_pretrained(folder)
    return folder


def tower_folder(folder: Path) -> Path:
    """An image tower without words."""
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=48, patch_size=8
    )
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(folder)
    return folder


def drawing(seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """One or two squares, apart from each other, and their truth."""
    rng = np.random.default_rng((seed, 5))
    pixels = np.full((SIDE, SIDE, 3), 235, np.uint8)
    labels, boxes, masks = [], [], []
    for half in range(int(rng.integers(1, 3))):
        label = list(COLOURS)[int(rng.integers(3))]
        side = int(rng.integers(12, 20))
        x, y = int(rng.integers(0, 24 - side)) + 24 * half, int(rng.integers(0, SIDE - side))
        pixels[y : y + side, x : x + side] = COLOURS[label]
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y : y + side, x : x + side] = True
        labels.append(label)
        boxes.append([x, y, x + side, y + side])
        masks.append(mask)
    return pixels, {"labels": labels, "boxes_xyxy": boxes, "masks": masks}


def pairs(count: int) -> list[tuple[np.ndarray, dict[str, Any]]]:
    return [drawing(seed) for seed in range(count)]


def coco_folder(folder: Path, count: int) -> Path:
    """The drawings as files, with polygons, under `images/` and `annotations/instances_train.json`."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    names = {label: number for number, label in enumerate(COLOURS, start=3)}
    for seed in range(count):
        pixels, truth = drawing(seed)
        name = f"drawing {seed}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": seed + 10, "file_name": name, "height": SIDE, "width": SIDE})
        for label, (left, top, right, bottom) in zip(truth["labels"], truth["boxes_xyxy"], strict=True):
            polygon = [left, top, right, top, right, bottom, left, bottom]
            annotations.append({
                "id": len(annotations) + 1, "image_id": seed + 10, "category_id": names[label], "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                "segmentation": [polygon],
            })  # fmt: skip
    dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for label, number in names.items()],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(dataset))
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    """The log of a run."""
    return [json.loads(line) for line in (out / "fit" / "log.jsonl").read_text().splitlines()]


def total(row: dict[str, Any]) -> float:
    """The loss of a row that is of a step."""
    return sum(value for key, value in row.items() if key not in ("step", "seconds"))
