"""What the gate makes of arrays and tensors: types, ranges, orders of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm.errors import ImageInputError, InputError
from mm.images import open_image

PIXELS = np.random.default_rng(7).integers(0, 256, (6, 9, 3), np.uint8)


def refusal(source, kind=InputError, **options):
    with pytest.raises(kind) as caught:
        open_image(source, **options)
    return str(caught.value)


# Arrays and tensors.


def test_numbers_of_every_accepted_type_have_one_reading():
    ramp = np.array([[0, 51, 255]], np.uint8)
    expected = [[0, 0, 0], [51, 51, 51], [255, 255, 255]]
    for array in (ramp, ramp.astype(np.uint16) * 257, ramp / 255, (ramp / 255).astype(np.float32)):
        assert open_image(array).pixels[0].tolist() == expected, array.dtype
    assert open_image((ramp / 255).astype(np.float16)).pixels[0].tolist() == expected
    assert open_image(ramp > 40).pixels[0, :, 0].tolist() == [0, 255, 255]
    assert open_image(np.array([[-1e-4, 1.0001]])).pixels[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[0, 254.0]]), "expected floats 0-1, got 0 to 254. Divide by 255"),
        (np.array([[-1, 1.0]]), "expected floats 0-1, got -1 to 1"),
        (np.array([[0.5, np.nan]]), "finite"),
        (np.array([[0.5, np.inf]]), "finite"),
        (np.array([[1, 2]]), "got int64"),
        (np.array([[1, 2]], np.int32), "got int32"),
        (np.array([[1, 2]], object), "got object"),
        (np.array([[1, 2]], complex), "got complex128"),
        (np.array([["a"]]), "got <U1"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
        (np.zeros((5, 0), np.uint8), "at least one pixel"),
        (np.zeros(5, np.uint8), "expected [H, W], [H, W, C] or [C, H, W], got [5]"),
        (np.zeros((2, 3, 5, 5), np.uint8), "as a list"),
        (np.zeros((5, 5, 2), np.uint8), "expected 1, 3 or 4 channels"),
        (np.ma.masked_array(PIXELS), "masked"),
    ],
)
def test_arrays_without_one_meaning_are_refused(array, words):
    message = refusal(array, ImageInputError)
    assert message.startswith("<array>: ") and words in message


@pytest.mark.parametrize("shape", [(3, 40, 3), (1, 1, 1), (1, 1, 3), (1, 50, 3), (3, 50, 1), (4, 4, 4)])
def test_an_array_that_reads_both_ways_needs_its_order(shape):
    array = np.zeros(shape, np.uint8)
    assert 'channel_order="HWC" or "CHW"' in refusal(array, ImageInputError)
    assert open_image(array, channel_order="HWC").size_hw == shape[:2]
    assert open_image(array, channel_order="CHW").size_hw == shape[1:]


def test_an_order_that_does_not_fit_is_refused():
    assert "channels (CHW)" in refusal(PIXELS, ImageInputError, channel_order="CHW")
    assert "channels (HWC)" in refusal(PIXELS.transpose(2, 0, 1), ImageInputError, channel_order="HWC")
    assert "channel_order" in refusal(PIXELS, ImageInputError, channel_order="hwc")


def test_views_with_any_strides_are_read():
    for view in (
        PIXELS[::-1],
        PIXELS[:, ::-1],
        PIXELS[::2, ::3],
        PIXELS[:, :, ::-1],
        np.asfortranarray(PIXELS),
    ):
        assert np.array_equal(open_image(view, channel_order="HWC").pixels, view)


def test_tensors_are_read_whatever_their_type_and_history():
    unit = torch.tensor(PIXELS).permute(2, 0, 1) / 255
    for tensor in (unit, unit.double(), unit.clone().requires_grad_(), unit.clone().requires_grad_() * 1):
        assert np.array_equal(open_image(tensor).pixels, PIXELS)
    coarse = open_image(unit.to(torch.bfloat16)).pixels.astype(int)
    assert np.abs(coarse - PIXELS).max() <= 1
    assert np.abs(open_image(unit.half()).pixels.astype(int) - PIXELS).max() <= 1
    assert open_image(torch.ones(2, 5, dtype=torch.bool)).pixels.min() == 255
    assert open_image(torch.full((2, 5), 0.2)).pixels.max() == 51


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.full((3, 5, 5), torch.nan, dtype=torch.bfloat16), "finite"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), "got int64"),
        (torch.full((3, 5, 5), 200.0), "Divide by 255"),
        (torch.zeros(1, 3, 5, 5), "as a list"),
        (torch.zeros(3, 5, 5, device="meta"), "dense tensor with data"),
        (torch.zeros(5, 5).to_sparse(), "dense tensor with data"),
        (torch.zeros(3, 0, 5), "at least one pixel"),
        (torch.zeros(1).expand(3, 20_000, 20_000), "max_pixels"),
    ],
)
def test_tensors_without_one_meaning_are_refused(tensor, words):
    assert words in refusal(tensor, InputError)
