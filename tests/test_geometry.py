"""The fit of a picture into model input is undone exactly, whatever the sizes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as torchvision_functional
from transformers import CLIPImageProcessor

from mm.errors import InputError
from mm.pictures.geometry import Geometry, fit

POLICIES = ("squash", "crop", "letterbox", "pad")
SIZES = [(7, 5), (480, 641), (1, 1), (1, 300), (300, 1), (33, 32), (129, 1023), (1, 32_768), (31_999, 3)]
INPUTS = [(128, 128), (97, 224), (1, 1), (336, 13)]
random = np.random.default_rng(3)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("picture_hw", SIZES)
@pytest.mark.parametrize("input_hw", INPUTS)
def test_sizes_are_what_the_policy_promises(policy, picture_hw, input_hw):
    geometry = fit(picture_hw, input_hw, policy)
    resized, offset = np.array(geometry.resized_hw), np.array(geometry.offset_yx)
    assert resized.min() >= 1
    if policy == "squash":
        assert geometry.resized_hw == input_hw
    elif policy == "crop":
        assert (resized >= input_hw).all() and (resized == input_hw).any()
        assert (offset <= 0).all() and (offset + resized >= input_hw).all()
    else:
        assert (resized <= input_hw).all() and (resized == input_hw).any()
        assert (offset >= 0).all() and (offset + resized <= input_hw).all()
        assert policy == "letterbox" or not offset.any()
    if policy != "squash":
        ratios = np.array(input_hw) / picture_hw
        exact = np.array(picture_hw) * (ratios.max() if policy == "crop" else ratios.min())
        assert (np.abs(resized - np.maximum(exact, 1)) < 1).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("picture_hw", SIZES)
@pytest.mark.parametrize("input_hw", INPUTS)
def test_boxes_and_points_return_to_the_upright_original(policy, picture_hw, input_hw):
    geometry = fit(picture_hw, input_hw, policy)
    height, width = picture_hw
    corners = np.sort(random.random((20, 2, 2)), axis=1) * (width, height)
    boxes = np.concatenate([corners.reshape(20, 4), [[0, 0, width, height]]])
    there = geometry.boxes_to_input(boxes)
    back = geometry.boxes_to_original(there)
    assert there.dtype == back.dtype == np.float32
    # float32 holds the input coordinate to one part in 2**24; the way back scales that error with it.
    scale = np.array(geometry.scale_yx)[[1, 0, 1, 0]]
    assert (np.abs(back - boxes) <= 2**-22 * (np.abs(there).max() / scale + max(picture_hw))).all()
    points = boxes[:, :2]
    assert np.array_equal(geometry.points_to_original(geometry.points_to_input(points)), back[:, :2])


def test_boxes_are_mapped_where_the_pixels_went():
    letterbox = fit((50, 100), (128, 128), "letterbox")
    assert (letterbox.resized_hw, letterbox.offset_yx) == ((64, 128), (32, 0))
    assert letterbox.boxes_to_input(np.array([[0, 0, 100, 50]])).tolist() == [[0, 32, 128, 96]]
    assert letterbox.boxes_to_original(np.array([[64, 64, 128, 96]])).tolist() == [[50, 25, 100, 50]]
    crop = fit((50, 100), (128, 128), "crop")
    assert (crop.resized_hw, crop.offset_yx) == ((128, 256), (0, -64))
    assert crop.boxes_to_original(np.array([[0, 0, 128, 128]])).tolist() == [[25, 0, 75, 50]]
    assert crop.boxes_to_input(np.array([[0, 0, 100, 50]])).tolist() == [[-64, 0, 192, 128]]
    pad = fit((100, 50), (128, 128), "pad")
    assert pad.boxes_to_original(np.array([[32, 64, 64, 128]])).tolist() == [[25, 50, 50, 100]]
    squash = fit((50, 100), (128, 128), "squash")
    assert squash.boxes_to_original(np.array([[64, 64, 128, 128]])).tolist() == [[50, 25, 100, 50]]


def test_boxes_in_the_padding_are_clipped_to_the_picture():
    letterbox = fit((50, 100), (128, 128), "letterbox")
    assert letterbox.boxes_to_original(np.array([[-9, 0, 999, 128]])).tolist() == [[0, 0, 100, 50]]


def test_no_boxes_are_still_boxes():
    geometry = fit((5, 7), (8, 8), "pad")
    assert geometry.boxes_to_original(np.array([])).shape == (0, 4)
    assert geometry.boxes_to_input(np.zeros((0, 4))).shape == (0, 4)
    assert geometry.points_to_original(np.zeros((0, 2))).shape == (0, 2)
    assert geometry.masks_to_original(np.zeros((0, 8, 8))).shape == (0, 5, 7)


# Pixels.


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("picture_hw", SIZES)
def test_every_picture_fills_its_frame(policy, picture_hw):
    geometry = fit(picture_hw, (96, 128), policy)
    pixels = np.full((*picture_hw, 3), 200, np.uint8)
    frame = geometry.apply(pixels, "bilinear", fill=(1, 2, 3))
    assert frame.shape == (96, 128, 3) and frame.dtype == np.uint8
    (top, bottom), (left, right) = geometry.window_yx
    assert (frame[top:bottom, left:right] == 200).all()
    outside = np.ones((96, 128), bool)
    outside[top:bottom, left:right] = False
    assert (frame[outside] == (1, 2, 3)).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_marked_pixel_lands_where_the_map_says(policy):
    pixels = np.zeros((41, 60, 3), np.uint8)
    pixels[20, 30] = 255
    geometry = fit((41, 60), (410, 410), policy)
    frame = geometry.apply(pixels, "bilinear")
    y, x = np.argwhere(frame[:, :, 0] == frame.max()).mean(axis=0) + 0.5
    there = geometry.points_to_input(np.array([[30.5, 20.5]]))[0]
    assert np.abs(there - (x, y)).max() <= 0.5


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = random.integers(0, 256, (33, 47, 3), np.uint8)
    for policy in POLICIES:
        for resample in ("nearest", "bilinear", "bicubic", "lanczos"):
            assert np.array_equal(fit((33, 47), (33, 47), policy).apply(pixels, resample), pixels)


@pytest.mark.parametrize("picture_hw", [(77, 131), (131, 77), (224, 227), (225, 224), (1000, 333)])
def test_crop_equals_the_reference_preprocessors(picture_hw):
    image = Image.fromarray(random.integers(0, 256, (*picture_hw, 3), np.uint8))
    resized = torchvision_functional.resize(image, 64, torchvision_functional.InterpolationMode.BICUBIC)
    expected = np.array(torchvision_functional.center_crop(resized, [64, 64]))
    ours = fit(picture_hw, (64, 64), "crop", centre="even").apply(np.array(image), "bicubic")
    assert np.array_equal(ours, expected)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 72},
        crop_size={"height": 64, "width": 64},
        do_rescale=False,
        do_normalize=False,
    )
    reference = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
    ours = fit(picture_hw, (64, 64), "crop", shortest_edge=72).apply(np.array(image), "bicubic")
    # The reference resizes uint8 tensors, whose kernel weights are rounded otherwise than Pillow's.
    assert np.abs(reference.permute(1, 2, 0).numpy().astype(int) - ours).max() <= 1


def test_a_crop_larger_than_the_resized_picture_is_padded_around():
    geometry = fit((10, 10), (9, 9), "crop", shortest_edge=4)
    assert (geometry.resized_hw, geometry.offset_yx) == ((4, 4), (2, 2))
    frame = geometry.apply(np.full((10, 10, 3), 255, np.uint8))
    assert frame[2:6, 2:6].min() == 255 and frame.sum() == 16 * 3 * 255


def test_a_long_strip_is_cropped_without_resizing_all_of_it():
    strip = np.zeros((1, 32_768, 3), np.uint8)
    strip[0, 16_384:] = 255
    frame = fit((1, 32_768), (224, 224), "crop").apply(strip, "bilinear")
    assert frame[:, 0].max() < frame[:, -1].min()


# Masks.


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("picture_hw", [(7, 5), (48, 65), (1, 1), (1, 30), (30, 1), (33, 32)])
def test_masks_return_to_the_upright_original(policy, picture_hw):
    geometry = fit(picture_hw, (256, 256), policy)
    rows, columns = np.indices(picture_hw)
    masks = np.stack([rows >= picture_hw[0] // 2, columns < (picture_hw[1] + 1) // 2])
    there = geometry.masks_to_input(masks)
    assert there.shape == (2, 256, 256) and there.dtype == np.float32
    back = geometry.masks_to_original(there)
    assert back.shape == (2, *picture_hw) and back.dtype == np.float32
    seen = geometry.masks_to_original(np.ones((1, 256, 256)))[0] > 0.5
    assert np.array_equal(back[:, seen] > 0.5, masks[:, seen])
    assert (back[:, ~seen] == 0).all()
    assert policy == "crop" or seen.all()


@pytest.mark.parametrize("policy", POLICIES)
def test_masks_of_the_same_size_are_not_touched(policy):
    masks = random.random((3, 9, 14)).astype(np.float32)
    geometry = fit((9, 14), (9, 14), policy)
    assert np.array_equal(geometry.masks_to_original(masks), masks)
    assert np.array_equal(geometry.masks_to_input(masks), masks)


def test_what_the_crop_cut_away_is_zero():
    geometry = fit((50, 100), (128, 128), "crop")
    back = geometry.masks_to_original(np.ones((1, 128, 128)))
    assert np.allclose(back[0, :, 25:75], 1, atol=1e-6)
    assert not back[0, :, :25].any() and not back[0, :, 75:].any()


def test_padding_never_bleeds_into_the_picture():
    for policy in ("letterbox", "pad"):
        geometry = fit((50, 100), (128, 128), policy)
        (top, bottom), (left, right) = geometry.window_yx
        masks = np.full((1, 128, 128), 9.0)
        masks[:, top:bottom, left:right] = 0.25
        assert np.allclose(geometry.masks_to_original(masks), 0.25, atol=1e-6)
        coarse = masks[:, ::8, ::8]
        assert np.allclose(geometry.masks_to_original(coarse), 0.25, atol=1e-6)
        assert geometry.masks_to_input(np.ones((1, 50, 100))).sum() == (bottom - top) * (right - left)


@pytest.mark.parametrize("size", [(20, 31), (64, 64), (200, 150)])
def test_mask_resizing_is_bilinear_as_pillow_does_it(size):
    masks = random.random((1, 64, 64)).astype(np.float32)
    expected = np.array(Image.fromarray(masks[0]).resize(size[::-1], Image.Resampling.BILINEAR))
    ours = fit(size, (64, 64), "squash").masks_to_original(masks)[0]
    assert np.abs(ours - expected).max() < 1e-5


def test_a_coarse_grid_covers_the_same_frame():
    geometry = fit((90, 160), (128, 128), "letterbox")
    rows = np.broadcast_to(np.linspace(0, 1, 128)[:, None], (128, 128))
    fine = geometry.masks_to_original(rows[None])
    coarse = geometry.masks_to_original(rows.reshape(16, 8, 16, 8).mean(axis=(1, 3))[None])
    assert np.abs(fine - coarse)[:, 8:-8].max() < 0.01


def test_a_strip_of_one_row_has_a_mask():
    geometry = fit((1, 3000), (128, 128), "letterbox")
    masks = np.zeros((1, 16, 16))
    masks[0, geometry.window_yx[0][0] // 8, 8:] = 1
    back = geometry.masks_to_original(masks)
    assert back.shape == (1, 1, 3000)
    assert back[0, 0, 100] == 0 and back[0, 0, 2900] == 1


# The value itself.


@pytest.mark.parametrize("policy", POLICIES)
def test_a_geometry_survives_json(policy):
    geometry = fit((480, 641), (128, 96), policy)
    assert Geometry(**json.loads(json.dumps(asdict(geometry)))) == geometry
    assert hash(geometry) == hash(replace(geometry))


def test_wrong_requests_are_refused_with_the_nearest_name():
    with pytest.raises(InputError, match='Did you mean "letterbox"'):
        fit((5, 5), (8, 8), "leterbox")
    with pytest.raises(InputError, match="centre"):
        fit((5, 5), (8, 8), "crop", centre="round")
    with pytest.raises(InputError, match="picture_hw"):
        fit((0, 5), (8, 8), "pad")
    with pytest.raises(InputError, match="input_hw"):
        fit((5, 5), (8.5, 8), "pad")
    with pytest.raises(InputError, match="shortest_edge"):
        fit((5, 5), (8, 8), "pad", shortest_edge=9)
    with pytest.raises(InputError, match="no part of the picture"):
        Geometry("pad", (5, 5), (8, 8), (8, 8), (9, 0))


def test_wrong_arrays_are_refused_with_what_came():
    geometry = fit((5, 7), (8, 8), "pad")
    good = np.zeros((5, 7, 3), np.uint8)
    for pixels in (good.astype(float), good.transpose(1, 0, 2), good[:, :, 0]):
        with pytest.raises(InputError, match=r"expected uint8\[5, 7, 3\]"):
            geometry.apply(pixels)
    with pytest.raises(InputError, match='Did you mean "bicubic"'):
        geometry.apply(good, "bicubik")
    for fill in ((1, 2), (0, 0, 256), (0.5, 0, 0)):
        with pytest.raises(InputError, match="fill"):
            geometry.apply(good, fill=fill)
    with pytest.raises(InputError, match=r"\[n, 4\]"):
        geometry.boxes_to_original(np.zeros((3, 2)))
    for masks in (np.zeros((8, 8)), np.zeros((1, 0, 8)), np.full((1, 8, 8), np.nan), np.array([[["a"]]])):
        with pytest.raises(InputError, match="masks"):
            geometry.masks_to_original(masks)
    with pytest.raises(InputError, match=r"\(5, 7\)"):
        geometry.masks_to_input(np.zeros((1, 7, 5)))
