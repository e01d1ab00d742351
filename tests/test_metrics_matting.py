"""The errors of alpha mattes, worked out by hand or from a Gaussian's derivative written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mm.errors import InputError
from mm.metrics.matting import MattingScore, matting_figures

ZERO = dict.fromkeys(("SAD", "MSE", "MAD", "Grad", "Conn"), 0.0)


def matte(*parts: tuple[slice, slice, float]) -> np.ndarray:
    alpha = np.zeros((20, 20), np.float32)
    for rows, columns, value in parts:
        alpha[rows, columns] = value
    return alpha


SUBJECT = (slice(2, 8), slice(2, 8), 1.0)  # 36 pixels


def conn(found: np.ndarray, truth: np.ndarray) -> float:
    return matting_figures(found, truth)["Conn"]


def soft(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((31, 17)).astype(np.float32)


def test_equal_mattes_have_no_error():
    assert matting_figures(soft(0), soft(0)) == ZERO
    assert matting_figures(matte(), matte()) == ZERO


def test_a_constant_offset_is_counted_in_thousands_and_as_a_mean():
    figures = matting_figures(np.full((100, 100), 0.6), np.full((100, 100), 0.5))
    assert figures["SAD"] == pytest.approx(1.0, rel=1e-6)
    assert figures["MSE"] == pytest.approx(0.01, rel=1e-6) and figures["MAD"] == pytest.approx(0.1, rel=1e-6)
    assert figures["Grad"] == pytest.approx(0, abs=1e-12)
    assert figures["Conn"] == 0  # Both are connected up to 0.5, and 0.1 beyond that is slack.


def test_means_do_not_depend_on_the_size_but_sums_do():
    small, large = (matting_figures(np.ones(shape), np.zeros(shape)) for shape in ((10, 20), (100, 20)))
    assert (small["MSE"], small["MAD"], small["SAD"]) == (1, 1, 0.2)
    assert (large["MSE"], large["MAD"], large["SAD"]) == (1, 1, 2)


def gradient(alpha: np.ndarray) -> np.ndarray:
    """Length of the gradient by plain sums over a Gaussian of 1.4 pixels, cut after 6, edges mirrored."""
    x = np.arange(-6, 7)
    bell = np.exp(-(x**2) / (2 * 1.4**2))
    bell /= bell.sum()
    slope = -x / 1.4**2 * bell
    padded = np.pad(alpha.astype(float), 6, mode="symmetric")

    def filtered(down: np.ndarray, across: np.ndarray) -> np.ndarray:
        rows = np.stack([np.convolve(row, across, "valid") for row in padded])
        return np.stack([np.convolve(column, down, "valid") for column in rows.T]).T

    return np.sqrt(filtered(slope, bell) ** 2 + filtered(bell, slope) ** 2)


def test_grad_compares_the_lengths_of_smoothed_gradients():
    found, truth = soft(1), soft(2)
    expected = ((gradient(found) - gradient(truth)) ** 2).sum() / 10
    assert matting_figures(found, truth)["Grad"] == pytest.approx(expected, rel=1e-6)
    lengths = [
        np.hypot(*(gaussian_filter(alpha.astype(float), 1.4, order=order) for order in ((1, 0), (0, 1))))
        for alpha in (found, truth)
    ]
    assert matting_figures(found, truth)["Grad"] == pytest.approx(((lengths[0] - lengths[1]) ** 2).sum() / 10)


def test_grad_of_a_slope_twice_as_steep():
    # Away from the ends the gradients are 0.002 and 0.004 long; the ends of so long a slope hardly matter.
    slope = np.tile(np.arange(200) * 0.002, (50, 1))
    assert matting_figures(2 * slope, slope)["Grad"] == pytest.approx(200 * 50 * 0.002**2 / 10, rel=0.03)


def test_conn_of_a_detached_blob_is_all_of_it():
    blob = (slice(12, 14), slice(12, 15))  # 6 pixels
    assert conn(matte(SUBJECT, (*blob, 1)), matte(SUBJECT)) == pytest.approx(0.006)
    assert conn(matte(SUBJECT, (*blob, 0.8)), matte(SUBJECT, (*blob, 0.25))) == pytest.approx(6 * 0.55 / 1000)
    assert conn(matte(SUBJECT, (*blob, 0.14)), matte(SUBJECT)) == 0  # within the slack
    assert conn(matte(SUBJECT, (*blob, 0.16)), matte(SUBJECT)) == pytest.approx(6 * 0.16 / 1000)


def test_conn_of_a_blob_on_a_bridge_counts_what_rises_above_the_bridge():
    # The bridge holds up to the level 0.3; beyond that the blob has 0.6 in one matte and 0.3 in the other.
    bridge, blob = (slice(4, 5), slice(8, 12), 0.35), (slice(3, 6), slice(12, 15))
    found, truth = (matte(SUBJECT, bridge, (*blob, alpha)) for alpha in (0.9, 0.6))
    assert conn(found, truth) == pytest.approx(9 * 0.3 / 1000)
    assert conn(truth, found) == pytest.approx(9 * 0.3 / 1000)


def test_pixels_that_touch_at_a_corner_are_not_connected():
    corner = (slice(8, 10), slice(8, 10))  # 4 pixels
    edge = (slice(8, 10), slice(6, 8))
    assert conn(matte(SUBJECT, (*corner, 0.9)), matte(SUBJECT, (*corner, 0.4))) == pytest.approx(4 * 0.5 / 1000)
    # Along an edge it is connected up to 0.4, and what is beyond that is 0.5 in one matte and nothing in the other.
    assert conn(matte(SUBJECT, (*edge, 0.9)), matte(SUBJECT, (*edge, 0.4))) == pytest.approx(4 * 0.5 / 1000)
    assert conn(matte(SUBJECT, (*corner, 0.9)), matte(SUBJECT, (*corner, 0.8))) == pytest.approx(4 * 0.1 / 1000)
    assert conn(matte(SUBJECT, (*edge, 0.9)), matte(SUBJECT, (*edge, 0.8))) == 0


def test_an_empty_matte_has_all_of_the_subject_as_its_conn():
    assert conn(matte(), matte(SUBJECT)) == conn(matte(SUBJECT), matte()) == pytest.approx(0.036)


def test_a_see_through_subject_is_connected_as_far_as_both_mattes_reach():
    found, truth = (matte((slice(2, 8), slice(2, 8), alpha)) for alpha in (0.95, 0.52))
    assert conn(found, truth) == pytest.approx(36 * 0.45 / 1000)


def test_a_trimap_gives_what_is_known_and_divides_by_what_is_not():
    trimap = np.full((20, 20), 255, np.uint8)
    trimap[:10], trimap[10] = 0, 128  # 20 unknown pixels
    truth = (trimap == 255).astype(np.float32)
    truth[10] = 0.5
    found = soft(3).ravel()[:400].reshape(20, 20).copy()
    found[10] = 0.75
    figures = matting_figures(found, truth, trimap=trimap)
    assert figures["SAD"] == pytest.approx(0.005)
    assert figures["MSE"] == pytest.approx(0.0625) and figures["MAD"] == pytest.approx(0.25)
    # The row lies along the opaque half: both are connected up to 0.5, and one has 0.25 beyond.
    assert figures["Conn"] == pytest.approx(20 * 0.25 / 1000)
    known = np.where(trimap == 128, found, truth)
    expected = ((gradient(known) - gradient(truth))[10] ** 2).sum() / 10
    assert figures["Grad"] == pytest.approx(expected, rel=1e-6)


def test_a_truth_that_contradicts_its_trimap_still_counts_in_the_sums():
    trimap = np.full((20, 20), 255, np.uint8)
    trimap[0] = 128
    truth = np.ones((20, 20), np.float32)
    truth[5] = 0.5
    figures = matting_figures(np.ones((20, 20)), truth, trimap=trimap)
    assert (figures["SAD"], figures["MSE"], figures["MAD"]) == (0.01, 0.25, 0.5)


def test_a_data_set_is_the_mean_over_its_pictures():
    score = MattingScore()
    score.add(np.ones((10, 10)), np.zeros((10, 10)))
    score.add(np.ones((20, 20)), np.ones((20, 20)))
    figures = score.figures()
    assert (figures["SAD"], figures["MSE"], figures["MAD"], figures["pictures"]) == (0.05, 0.5, 0.5, 2)
    assert MattingScore().figures() == dict.fromkeys(ZERO) | {"pictures": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"found": np.full((4, 4), 1.2)}, "found: expected numbers from 0 to 1, got 1.2"),
        ({"truth": np.full((4, 4), 255, np.uint8)}, "truth: expected numbers from 0 to 1, got 255"),
        ({"truth": np.full((4, 4), np.nan)}, "truth: expected finite numbers"),
        ({"truth": np.zeros((4, 5))}, r"truth: expected the shape of what was found, \(4, 4\), got \(4, 5\)"),
        ({"found": np.zeros((4, 4, 1))}, r"found: expected float32\[H, W\]"),
        ({"trimap": np.full((4, 4), 128)}, r"trimap: expected uint8\[4, 4\], got int64"),
        ({"trimap": np.full((4, 5), 128, np.uint8)}, r"trimap: expected uint8\[4, 4\], got uint8\[4, 5\]"),
        ({"trimap": np.full((4, 4), 127, np.uint8)}, "trimap: expected only 0, 128 and 255, got 127"),
        ({"trimap": np.full((4, 4), 255, np.uint8)}, r"expected some pixels to be unknown \(128\), got none"),
    ],
)
def test_mattes_are_checked(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        matting_figures(**({"found": np.zeros((4, 4)), "truth": np.zeros((4, 4))} | changes))


def test_figures_need_no_torch():
    code = """
import sys
import numpy as np
from mm.metrics.lvis import LvisScore
from mm.metrics.matting import matting_figures
from mm.metrics.segmentation import mask_iou
from mm.metrics.truth import BoxTruth
from mm.types import Detections

score = LvisScore({"cup": "r"})
score.add(Detections([[0, 0, 9, 9]], [1], ("cup",), (9, 9)), BoxTruth([[0, 0, 9, 9]], ("cup",)))
print(round(score.figures()["AP"], 6), matting_figures(np.ones((9, 9)), np.ones((9, 9)))["SAD"], "torch" in sys.modules)
"""
    root = Path(__file__).resolve().parents[1]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert answer.stdout.split() == ["1.0", "0.0", "False"], answer.stderr
