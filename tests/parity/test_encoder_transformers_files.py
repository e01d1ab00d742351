"""Preprocessing read from a transformers folder against transformers' own processors, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mm.encoders.preprocess import patches_hw
from mm.encoders.transformers_files import read_preprocessing
from mm.errors import CheckpointError
from tests.parity.encoder_transformers_folders import CLIP_STATS, HALF_STATS

SIZES = [(32, 32), (97, 171), (211, 64), (33, 300), (5, 3), (1, 1), (1, 9), (224, 223)]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"size": {"height": 48, "width": 48}}

# As their folders say it, of old and new spelling
FILES: dict[str, dict[str, Any]] = {
    "clip_old": {
        "feature_extractor_type": "CLIPFeatureExtractor", "do_resize": True, "size": 48, "resample": 3,
        "do_center_crop": True, "crop_size": 48, "do_normalize": True, **CLIP_STATS,
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}, "resample": 3,
        "crop_size": {"height": 48, "width": 48}, "rescale_factor": 1 / 255, **CLIP_STATS,
    },
    "clip_crops_less": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 57}, "resample": 2,
        "crop_size": {"height": 48, "width": 41}, **CLIP_STATS,
    },
    "siglip": {
        "image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None, "resample": 3, **SQUARE, **HALF_STATS,
    },
    "siglip_raw": {"image_processor_type": "SiglipImageProcessor", "do_normalize": False, "resample": 1, **SQUARE},
    "siglip_flat": {
        "image_processor_type": "SiglipImageProcessor", "do_rescale": False, "resample": 2,
        "image_mean": [127.5] * 3, "image_std": [127.5] * 3, "size": {"height": 40, "width": 56},
    },
    "siglip_halved": {
        "image_processor_type": "SiglipImageProcessor", "rescale_factor": 1 / 127.5, "resample": 0,
        "image_mean": [1.0] * 3, "image_std": [1.0] * 3, **SQUARE,
    },
    "clipseg_old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 48, "resample": 2, **IMAGENET},
    "owlvit": {
        "image_processor_type": "OwlViTImageProcessor", "do_center_crop": False, "resample": 3,
        "crop_size": {"height": 48, "width": 48}, **SQUARE, **CLIP_STATS,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 55}, "resample": 3,
        "crop_size": {"height": 48, "width": 48}, "do_center_crop": True, **IMAGENET,
    },
}  # fmt: skip
CLASSES = {
    "clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "clipseg": "ViTImageProcessor",
    "owlvit": "OwlViTImageProcessor", "dinov2": "BitImageProcessor",
}  # fmt: skip


def picture(size: tuple[int, int]) -> np.ndarray:
    """Smooth colours with some grain, as the filters meet them: uint8[H, W, 3]."""
    generator = np.random.default_rng(sum(size))
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + columns) / 11)], axis=-1)
    return np.clip(127 + 90 * waves + generator.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def written(folder: Path, said: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(said))
    return folder


def theirs(case: str, folder: Path, backend: str, pixels: np.ndarray) -> torch.Tensor:
    kind = CLASSES[case.partition("_")[0]] + ("Pil" if backend == "pil" else "")
    processor = getattr(transformers, kind).from_pretrained(folder)
    return processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("case", FILES)
def test_pixels_equal_the_processor_of_pillow_kind(tmp_path: Path, case: str) -> None:
    ours = read_preprocessing(written(tmp_path, FILES[case]))
    for size in SIZES:
        pixels = picture(size)
        expected = theirs(case, tmp_path, "pil", pixels).float()
        torch.testing.assert_close(ours.pixels(pixels), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", ["clip", "siglip", "clipseg_old", "owlvit", "dinov2"])
def test_pixels_are_within_a_grey_level_of_the_processor_of_torchvision_kind(tmp_path: Path, case: str) -> None:
    ours = read_preprocessing(written(tmp_path, FILES[case]))
    level = torch.tensor([1 / (255 * s) for s in FILES[case]["image_std"]])[:, None, None]
    for size in SIZES:
        pixels = picture(size)
        difference = (ours.pixels(pixels) - theirs(case, tmp_path, "torchvision", pixels)).abs() / level
        assert difference.max() <= 1.01


def test_a_processor_inside_processor_config_counts(tmp_path: Path) -> None:
    nested = {"image_processor": FILES["siglip"], "processor_class": "SiglipProcessor"}
    assert read_preprocessing(written(tmp_path, nested, "processor_config.json")).input_hw == (48, 48)


@pytest.mark.parametrize("case", FILES)
def test_what_transformers_saves_again_reads_the_same(tmp_path: Path, case: str) -> None:
    before = read_preprocessing(written(tmp_path, FILES[case]))
    getattr(transformers, CLASSES[case.partition("_")[0]]).from_pretrained(tmp_path).save_pretrained(tmp_path)
    after = read_preprocessing(tmp_path)
    if case == "siglip_raw":  # the class adds its own mean and spread, which stay unused
        assert after.mean == (0.0, 0.0, 0.0)
    assert after == before


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (64, 64), (480, 640), (31, 999), (2000, 3), (256, 255), (17, 33)]
)
@pytest.mark.parametrize(("patch", "most"), [(16, 256), (16, 1024), (14, 196), (8, 1)])
def test_naflex_sizes_equal_the_reference(height: int, width: int, patch: int, most: int) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    assert patches_hw((height, width), patch, most) == get_image_size_for_max_num_patches(height, width, patch, most)


@pytest.mark.parametrize("size", [(90, 31), (7, 200), (333, 250), (1, 1)])
def test_naflex_pixels_equal_the_reference(tmp_path: Path, size: tuple[int, int]) -> None:
    transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=30).save_pretrained(tmp_path)
    ours = read_preprocessing(tmp_path)
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(tmp_path)
    pixels = picture(size)
    given = processor(Image.fromarray(pixels), return_tensors="pt")
    h, w = given["spatial_shapes"][0].tolist()
    flat = given["pixel_values"][0, : h * w].reshape(h, w, 8, 8, 3)
    expected = flat.permute(4, 0, 2, 1, 3).reshape(3, 8 * h, 8 * w)
    torch.testing.assert_close(ours.pixels(pixels), expected.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(90, 31), (7, 200), (333, 250), (48, 48), (1, 1)])
def test_owlv2_pixels_equal_the_reference(tmp_path: Path, size: tuple[int, int]) -> None:
    transformers.Owlv2ImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    ours = read_preprocessing(tmp_path)
    processor = transformers.Owlv2ImageProcessorPil.from_pretrained(tmp_path)
    pixels = picture(size)
    expected = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0].float()
    torch.testing.assert_close(ours.pixels(pixels), expected, atol=1e-5, rtol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "flip": ({"do_flip_channel_order": True}, "do_flip_channel_order"),
    "misspelt": ({"image_means": [0.5] * 3}, 'Did you mean "image_mean"'),
    "pads": ({"do_pad": True}, "do_pad"),
    "divisor": ({"size_divisor": 32}, "size_divisor"),
    "box": ({"resample": 4}, "resample=4"),
    "no filter": ({"resample": None}, "resample is missing"),
    "no size": ({"size": None}, "size is missing"),
    "no mean": ({"image_mean": None}, "image_mean is missing"),
    "two means": ({"image_mean": [0.5, 0.5]}, "image_mean"),
    "no spread": ({"image_std": [0.0, 0.5, 0.5]}, "image_std"),
    "as it is": ({"do_resize": False}, "do_resize"),
    "longest": ({"size": {"longest_edge": 48}}, "longest_edge"),
    "uncropped": ({"do_center_crop": False}, "crop"),
    "no crop size": ({"crop_size": None}, "crop_size is missing"),
    "larger crop": ({"crop_size": 64}, "larger than the shortest edge"),
    "crop of a square": ({"size": {"height": 60, "width": 60}}, "squashed"),
    "negative": ({"size": {"shortest_edge": -3}}, "size=-3"),
    "factor": ({"rescale_factor": 0}, "rescale_factor"),
    "stranger": ({"image_processor_type": "OddImageProcessor", "size": 48}, "depends on 'Odd'"),
    "does not pad": ({"image_processor_type": "Owlv2ImageProcessor"}, "do_pad=None of an Owlv2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_its_name(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(CheckpointError, match="preprocessor_config.json") as caught:
        read_preprocessing(written(tmp_path, FILES["clip"] | change))
    assert message in str(caught.value)


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no preprocessor_config.json") as caught:
        read_preprocessing(tmp_path)
    assert str(tmp_path) not in str(caught.value)
