"""A coarse map that follows a finer picture: the kernel beside plain loops, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm.encoders.preprocess import squashed
from mm.kernels.guided import colour_model
from mm.pictures.geometry import fit
from mm.pictures.upsampling import along_colours


def plainly(picture: np.ndarray, values: np.ndarray, radius: int, flat: float) -> np.ndarray:
    """The same in float64, a window at a time. picture: [h, w, 3]; values: [h, w] -> [4, h, w]."""
    height, width = values.shape

    def window(y: int, x: int) -> tuple[slice, slice]:
        return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)

    found = np.zeros((4, height, width))
    for y in range(height):
        for x in range(width):
            colours, inside = picture[window(y, x)].reshape(-1, 3), values[window(y, x)].ravel()
            apart = colours - colours.mean(0)
            slope = np.linalg.solve(apart.T @ apart / len(apart) + flat * np.eye(3), apart.T @ inside / len(apart))
            found[:, y, x] = *slope, inside.mean() - slope @ colours.mean(0)
    smooth = np.zeros_like(found)
    for y in range(height):
        for x in range(width):
            smooth[:, y, x] = found[(slice(None), *window(y, x))].mean((1, 2))
    return smooth


@pytest.mark.parametrize(("size_hw", "radius"), [((9, 13), 1), ((5, 6), 3), ((1, 4), 2)])
def test_the_kernel_is_what_plain_loops_give(size_hw: tuple[int, int], radius: int) -> None:
    chance = np.random.default_rng(0)
    picture, values = chance.random((*size_hw, 3)), chance.random(size_hw)
    made = colour_model(
        torch.from_numpy(picture).permute(2, 0, 1).float(), torch.from_numpy(values).float(), radius=radius, flat=1e-3
    )
    np.testing.assert_allclose(made.numpy(), plainly(picture, values, radius, 1e-3), atol=2e-3)


def disc(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc with a soft rim on a blue slope: pixels uint8[side, side, 3], alpha float32[side, side]."""
    axis = (np.arange(side) + 0.5) / side - 0.5
    alpha = np.clip((0.3 - np.hypot(axis[:, None], axis[None])) * 40 + 0.5, 0, 1).astype(np.float32)
    behind = np.zeros((side, side, 3))
    behind[..., 2], behind[..., 1] = 200, 60 + 100 * (axis[None] + 0.5)
    pixels = behind + (np.array([220, 40, 30]) - behind) * alpha[..., None]
    return np.round(pixels).astype(np.uint8), alpha


def test_edges_are_those_of_the_picture_and_not_of_the_models_input() -> None:
    pixels, alpha = disc(256)
    geometry = fit((256, 256), (32, 32), "squash")
    small = torch.from_numpy(geometry.apply(pixels, "bilinear", (0, 0, 0)).copy()).permute(2, 0, 1) / 255
    coarse = torch.from_numpy(geometry.masks_to_input(alpha[None])[0])
    plain = geometry.masks_to_original(coarse[None].numpy())[0]
    followed = along_colours(coarse, small, pixels, geometry)
    assert followed.shape == (256, 256) and followed.dtype == np.float32
    assert np.abs(followed - alpha).mean() < 0.25 * np.abs(plain - alpha).mean()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_is_the_same_everywhere_stays_so(value: float) -> None:
    pixels, _ = disc(90)
    geometry = fit((90, 90), (32, 32), "squash")
    small = torch.rand(3, 32, 32)
    np.testing.assert_allclose(along_colours(torch.full((32, 32), value), small, pixels, geometry), value, atol=1e-4)


def test_what_a_crop_left_out_is_nothing() -> None:
    pixels = disc(120)[0][:60]
    geometry = fit((60, 120), (32, 32), "crop")
    full = along_colours(torch.ones(32, 32), torch.rand(3, 32, 32), pixels, geometry)
    assert not full[:, :20].any() and full[:, 40:80].min() > 0.99


def test_normalised_pixels_are_coloured_again() -> None:
    pixels, _ = disc(32)
    settings = squashed(32, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    again = settings.coloured(settings.pixels(pixels)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(again, pixels / 255, atol=1e-6)
