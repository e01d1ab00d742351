"""The embedded weights still do their job: a broken head, connector or preprocessing falls far below these bounds.

The bounds lie a little under what `mm eval scenes` measures on many more scenes (`mm/weights/tiny/scores.json`).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mm
from mm.evaluation.scenes import evaluate_scenes
from mm.scenes import mentions
from mm.zoo import EMBEDDED

SEED = 7_000_000
BOUNDS = {
    ("detect", "AP50"): 0.95,
    ("segment", "mIoU"): 0.90,
    ("caption", "object_F1"): 0.93,
    ("caption", "background_accuracy"): 0.96,
    ("classify", "accuracy"): 0.97,
    ("answers", "accuracy"): 0.94,
}


@pytest.fixture(scope="module")
def scores() -> dict:
    return evaluate_scenes(count=120, seed=SEED)


@pytest.mark.parametrize(("task", "figure"), BOUNDS)
def test_held_out_scenes_are_read(scores: dict, task: str, figure: str) -> None:
    assert scores[task][figure] >= BOUNDS[task, figure]


def test_mattes_are_far_better_than_masks(scores: dict) -> None:
    matte = scores["matte"]
    assert matte["MSE"] <= 0.01 and matte["SAD"] <= 0.45 * matte["mask"]["SAD"]


def test_answers_come_from_the_picture(scores: dict) -> None:
    assert scores["answers"]["accuracy"] >= scores["answers"]["blind"] + 0.4
    assert scores["hallucination"]["mentions"] <= 0.04


def test_the_scores_kept_beside_the_weights_are_of_a_full_evaluation() -> None:
    kept = json.loads((EMBEDDED / "tiny" / "scores.json").read_text())
    assert kept["count"] >= 1000 and kept["seed"] != SEED
    assert kept["detect"]["labels"] == 240


def test_a_drawing_that_the_renderer_did_not_make_is_read() -> None:
    picture = Path(__file__).parents[1] / "demos" / "images" / "drawing.png"
    truth = {
        "sun": "yellow",
        "house": "blue",
        "umbrella": "purple",
        "car": "red",
        "fish": "orange",
        "cat": "black",
    }
    found = mm.detect(picture, [f"{colour} {kind}" for kind, colour in truth.items()])
    assert set(found.labels) >= {f"{colour} {kind}" for kind, colour in truth.items()}
    said = mentions(mm.caption(picture).text)
    assert sum(said[("plain", colour, kind)] > 0 for kind, colour in truth.items()) >= 6
