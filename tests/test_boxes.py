"""Boxes of tokens on a grid."""

from __future__ import annotations

import torch

from mm.kernels.boxes import box_bias, overlaps


def test_box_bias_is_the_published_one() -> None:
    bias = box_bias((4, 4))
    torch.testing.assert_close(bias[0], torch.full((4,), -1.0982), atol=1e-3, rtol=0)
    torch.testing.assert_close(bias[-1], torch.tensor([9.2103, 9.2103, -1.0982, -1.0982]), atol=2e-3, rtol=0)


def test_box_bias_of_a_wide_grid_counts_columns_along_x() -> None:
    middle = box_bias((2, 4)).sigmoid().reshape(2, 4, 4)
    torch.testing.assert_close(middle[0, :, 0], torch.tensor([0.25, 0.5, 0.75, 1.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(middle[:, 0, 1], torch.tensor([0.5, 1.0]), atol=1e-3, rtol=0)


def test_overlaps_by_hand():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.6, 0.5, 0.2, 0.4], [0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0]])
    expected = torch.eye(4)
    expected[0, 1] = expected[1, 0] = 0.08 / 0.16  # the second lies inside the first
    expected[3, 3] = 0.0  # of nothing
    torch.testing.assert_close(overlaps(boxes), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(overlaps(boxes.expand(2, 4, 4))[1], expected, atol=1e-6, rtol=0)
