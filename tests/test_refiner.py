"""Alpha from the colours around each pixel: what they tell where the truth is known, and the network that reads it."""

from __future__ import annotations

import pytest
import torch

from mm.heads.refiner import SHOWN, Refiner, colour_maps, colours_around

FRONT, BEHIND = torch.tensor([0.3, -0.3, -0.35]), torch.tensor([-0.4, 0.0, 0.35])


def disc(height: int = 64, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A soft disc of one colour on another: pixels float32[1, 3, H, W] and its alpha float32[1, 1, H, W]."""
    y, x = torch.arange(height) - height / 2 + 0.5, torch.arange(width) - width / 2 + 0.5
    alpha = ((18 - torch.hypot(y[:, None], x[None])) / 8 + 0.5).clamp(0, 1)[None, None]
    return alpha * FRONT[None, :, None, None] + (1 - alpha) * BEHIND[None, :, None, None], alpha


def test_the_true_alpha_tells_both_colours_and_they_tell_it_again() -> None:
    pixels, alpha = disc()
    for front, behind in colours_around(pixels, alpha):
        assert front.shape == behind.shape == (1, 3, 16, 16)
        torch.testing.assert_close(front[0, :, 8, 8], FRONT, atol=0.02, rtol=0)
        torch.testing.assert_close(behind[0, :, 0, 0], BEHIND, atol=0.02, rtol=0)
    maps = colour_maps(pixels, alpha)
    assert maps.shape == (1, SHOWN, 64, 64)
    wide, left = maps[:, 6], maps[:, 7]
    assert (wide - alpha[:, 0]).abs().mean() < 0.01 and left.mean() < 0.01


def test_a_hard_guess_comes_out_soft() -> None:
    pixels, alpha = disc()
    guess = (alpha > 0.5).float()
    narrow = colour_maps(pixels, guess)[:, 14:15]
    assert (narrow - alpha).abs().mean() < 0.8 * (guess - alpha).abs().mean()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_picture_of_one_kind_has_finite_colours_and_slopes(value: float) -> None:
    alpha = torch.full((1, 1, 9, 14), value, requires_grad=True)
    maps = colour_maps(torch.full((1, 3, 9, 14), 0.25), alpha)
    maps.sum().backward()
    assert maps.isfinite().all() and alpha.grad is not None and alpha.grad.isfinite().all()


def test_a_new_refiner_gives_what_it_is_given() -> None:
    alpha = torch.rand(2, 33, 47)
    alpha[0] = 0
    made = Refiner(3 + 5, (4, 6, 8))(
        torch.randn(2, 3, 33, 47), alpha, torch.rand(2, 3, 33, 47), torch.randn(2, 5, 33, 47)
    )
    torch.testing.assert_close(made, alpha, atol=0.003, rtol=0)
    assert made[0].max() < 1e-6


def test_it_learns_what_the_colours_say() -> None:
    torch.manual_seed(0)
    pixels, alpha = disc()
    guess, nothing = (alpha > 0.5).float()[:, 0], torch.zeros(1, 1, 64, 64)
    refiner = Refiner(2, (4, 4, 4))
    optimiser = torch.optim.Adam(refiner.parameters(), lr=0.02)

    def error() -> torch.Tensor:
        return (refiner(4 * pixels, guess, nothing, nothing) - alpha[:, 0]).abs().mean()

    before = error().item()
    for _ in range(60):
        optimiser.zero_grad()
        error().backward()
        optimiser.step()
    assert error() < 0.6 * before
