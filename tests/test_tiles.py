"""Overlapping squares cover a picture and are put together without seams."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mm.pictures.tiles import blended, tiles


@pytest.mark.parametrize(("size_hw", "side"), [((100, 100), 40), ((37, 911), 64), ((64, 64), 64), ((20, 30), 64)])
def test_tiles_cover_the_picture_and_stay_inside(size_hw: tuple[int, int], side: int) -> None:
    seen = np.zeros(size_hw, int)
    for tile in tiles(size_hw, side):
        assert 0 <= tile.top < tile.bottom <= size_hw[0] and 0 <= tile.left < tile.right <= size_hw[1]
        assert tile.bottom - tile.top == min(side, size_hw[0]) and tile.right - tile.left == min(side, size_hw[1])
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert seen.min() >= 1


def test_neighbours_share_a_quarter() -> None:
    lefts = sorted({tile.left for tile in tiles((64, 1000), 64)})
    assert max(b - a for a, b in pairwise(lefts)) <= 48


def test_maps_that_agree_are_put_together_unchanged() -> None:
    whole = np.random.default_rng(0).random((2, 70, 151)).astype(np.float32)
    parts = ((t, whole[:, t.top : t.bottom, t.left : t.right]) for t in tiles((70, 151), 48))
    np.testing.assert_allclose(blended((70, 151), parts), whole, atol=1e-6)
