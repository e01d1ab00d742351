"""Zero-shot accuracy over class folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import mm
from mm.cli.app import app
from mm.errors import InputError
from mm.evaluation.zeroshot import class_names, evaluate_zeroshot
from mm.scenes import render_scene

LABELS = ["red_car", "blue_star", "tree"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each scene lies in the folder of the label that the model itself finds best, save one; one file is broken."""
    home = tmp_path_factory.mktemp("val")
    for label in LABELS:
        (home / label).mkdir()
    for seed in range(6):
        pixels = render_scene(seed).pixels
        best = int(np.argmax(mm.classify(pixels, [label.replace("_", " ") for label in LABELS]).scores))
        place = (best + 1) % 3 if seed == 5 else best
        Image.fromarray(pixels).save(home / LABELS[place] / f"{seed}.png")
    (home / "tree" / "broken.jpg").write_bytes(b"no picture")
    (home / "tree" / "notes.txt").write_text("no picture either")
    return home


def test_accuracy_counts_what_the_model_finds(data: Path) -> None:
    scores = evaluate_zeroshot("tiny", data)
    assert (scores["classes"], scores["pictures"], scores["unreadable"], scores["templates"]) == (3, 6, 1, 1)
    assert scores["top1"] == pytest.approx(500 / 6) and scores["top5"] == 100


def test_the_command_prints_the_scores(data: Path) -> None:
    run = ["eval", "zeroshot", "--data", str(data), "--templates", "simple", "--limit", "1", "--json"]
    answer = CliRunner().invoke(app, run)
    assert answer.exit_code == 0, answer.output
    scores = json.loads(answer.stdout)
    assert scores["templates"] == 7 and scores["pictures"] + scores["unreadable"] <= 3
    assert "top1" in CliRunner().invoke(app, run[:-1]).stdout


def test_what_is_no_folder_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 folder"):
        evaluate_zeroshot("tiny", tmp_path / "nowhere")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="none of its 0 pictures"):
        evaluate_zeroshot("tiny", tmp_path)
    answer = CliRunner().invoke(app, ["eval", "zeroshot", "--data", str(tmp_path)])
    assert answer.exit_code == 2 and "error:" in answer.output


def test_imagenets_numbers_get_their_names_only_as_a_whole() -> None:
    numbers = [f"n{i:08d}" for i in range(1000)]
    names = class_names(numbers)
    assert names[0] == "tench" and len(names) == 1000
    with pytest.raises(InputError, match="2 of 3"):
        class_names([*numbers[:2], "cat"])
    assert class_names(["red_car", "cat"]) == ["red car", "cat"]
