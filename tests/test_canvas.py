"""OWLv2's preprocessing against its own processor, and its geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from mm.encoders.preprocess import Preprocessing
from mm.errors import InputError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OWLV2 = Preprocessing((96, 96), "canvas", "bilinear", MEAN, STD, None, "floor", (0, 0, 0), None, None)


@pytest.mark.parametrize("size_hw", [(37, 91), (91, 37), (50, 50), (96, 96), (8, 5), (1, 40), (200, 133), (641, 480)])
def test_pixels_equal_the_reference(size_hw: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    processor = Owlv2ImageProcessorPil(size={"height": 96, "width": 96})
    wanted = processor(Image.fromarray(pixels), return_tensors="pt", input_data_format="channels_last").pixel_values[0]
    torch.testing.assert_close(OWLV2.pixels(pixels), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size_hw", [(480, 640), (640, 480), (37, 911)])
def test_both_axes_scale_by_the_longer_side(size_hw: tuple[int, int]) -> None:
    geometry = OWLV2.geometry(size_hw)
    box = np.array([[48.0, 12.0, 96.0, 24.0]])
    back = geometry.boxes_to_original(box)[0]
    whole = box[0] * max(size_hw) / 96
    np.testing.assert_allclose(back, np.minimum(whole, [size_hw[1], size_hw[0]] * 2), rtol=1e-6)


def test_a_mask_on_the_black_part_does_not_come_back() -> None:
    geometry = OWLV2.geometry((50, 100))
    mask = np.zeros((1, 96, 96))
    mask[0, 48:] = 1
    assert geometry.masks_to_original(mask).max() == 0
    mask[0, :48] = 1
    assert geometry.masks_to_original(mask).min() == pytest.approx(1)


def test_a_canvas_is_not_resized_step_by_step() -> None:
    with pytest.raises(InputError, match="canvas"):
        OWLV2.geometry((5, 9)).apply(np.zeros((5, 9, 3), np.uint8))
