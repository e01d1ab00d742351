"""Trimaps out of masks, and the subject's colours out of the blend."""

from __future__ import annotations

import numpy as np
import pytest

from mm.errors import InputError
from mm.heads.trimap import BACKGROUND, FOREGROUND, UNKNOWN, trimap_of
from mm.pictures.foreground import foreground_of
from mm.scenes.soft import matte_of, render_soft


def ramp(width: float, size: int = 200) -> np.ndarray:
    """A probability that rises from 0 to 1 over `width` pixels about the middle column."""
    place = np.arange(size) + 0.5 - size / 2
    return np.broadcast_to(np.clip(place / width + 0.5, 0, 1), (size, size)).astype(np.float32)


@pytest.mark.parametrize("width", [4, 10, 16])
def test_the_unknown_band_grows_with_the_masks_own_doubt(width: int) -> None:
    trimap = trimap_of(ramp(width))
    unknown = (trimap == UNKNOWN).sum(1)
    assert (unknown == unknown[0]).all()
    assert 1.5 * width <= unknown[0] <= 2.2 * width + 2
    assert (trimap[:, :40] == BACKGROUND).all() and (trimap[:, -40:] == FOREGROUND).all()


def test_a_hard_mask_gets_a_narrow_band() -> None:
    trimap = trimap_of(ramp(0.001))
    assert (trimap == UNKNOWN).sum(1).max() == 5  # the edge pixel and two on either side
    assert trimap.dtype == np.uint8 and set(np.unique(trimap)) == {0, 128, 255}


def test_the_band_is_bounded_by_the_picture() -> None:
    doubtful = np.full((100, 100), 0.3, np.float32)
    doubtful[40:60, 40:60] = 0.95
    assert (trimap_of(doubtful) == UNKNOWN)[~(doubtful > 0.9)].all()
    assert trimap_of(doubtful)[50, 50] == FOREGROUND  # 6 pixels at most, though all around is in doubt


def test_masks_that_doubt_nothing_are_taken_at_their_word() -> None:
    assert (trimap_of(np.zeros((30, 40))) == BACKGROUND).all()
    assert (trimap_of(np.full((30, 40), 0.02)) == BACKGROUND).all()
    whole = trimap_of(np.ones((30, 40)))
    assert (whole == FOREGROUND).all()


def test_probabilities_beyond_their_range_are_refused() -> None:
    with pytest.raises(InputError, match="probability"):
        trimap_of(np.full((4, 4), 1.5))
    with pytest.raises(InputError, match="probability"):
        trimap_of(np.zeros((2, 4, 4)))


def test_colours_of_a_blend_are_found_again() -> None:
    place = np.indices((96, 120)) - np.array([48, 60])[:, None, None]
    alpha = np.clip((30 - np.hypot(*place)) / 12 + 0.5, 0, 1).astype(np.float32)
    front, behind = np.array([210, 50, 40.0]), np.array([20, 130, 220.0])
    picture = (alpha[..., None] * front + (1 - alpha[..., None]) * behind + 0.5).astype(np.uint8)
    found = foreground_of(picture, alpha)
    seen = alpha > 0.1
    assert np.abs(found[seen] - front).max() <= 6
    assert np.abs(picture[seen] - front).max() > 100  # the picture itself would carry the old background along


def test_where_alpha_is_one_the_colours_are_the_pictures_own() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 50, 3), np.uint8)
    alpha = np.ones((40, 50), np.float32)
    alpha[:, :20] = 0.4
    found = foreground_of(picture, alpha)
    assert np.abs(found[:, 20:].astype(int) - picture[:, 20:]).max() <= 1
    assert foreground_of(picture, np.zeros((40, 50))).shape == picture.shape


def test_colours_of_soft_scenes_are_nearer_to_the_truth_than_the_picture() -> None:
    ours, theirs = [], []
    for seed in range(12):
        scene = render_soft(seed)
        alpha, truth = matte_of(scene, [True] * len(scene.objects))
        shared = (alpha > 0.1) & (alpha < 0.9)
        ours.append(np.abs(foreground_of(scene.pixels, alpha).astype(int) - truth)[shared].mean())
        theirs.append(np.abs(scene.pixels.astype(int) - truth)[shared].mean())
    assert np.mean(ours) < 0.5 * np.mean(theirs)


def test_colours_need_pixels_of_the_same_size() -> None:
    with pytest.raises(InputError, match=r"expected uint8\[4, 5, 3\]"):
        foreground_of(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 5)))
