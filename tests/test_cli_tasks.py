"""Each command with the model that ships in the package, on a drawn picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mm import types
from mm.bench.library import scene
from mm.cli.app import app


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(scene()).save(path)
    return path


RESULTS = {
    ("caption",): types.Caption,
    ("ask",): types.Caption,
    ("detect", "-l", "car", "-l", "tree"): types.Detections,
    ("segment", "-l", "car", "-l", "tree"): types.Segmentation,
    ("classify", "-l", "a car", "-l", "a boat"): types.Classification,
    ("embed",): types.Embeddings,
}


@pytest.mark.parametrize("command", RESULTS, ids=lambda command: command[0])
def test_a_command_prints_one_line_and_json_that_becomes_the_result_again(command: Any, picture: Path):
    name, *options = command
    arguments = [name, str(picture), *(["What is there?"] if name == "ask" else []), *options]
    text = CliRunner().invoke(app, arguments)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith(f"{picture}\t") and text.stdout.count("\n") == 1
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    result = json.loads(answer.stdout)["result"]
    assert RESULTS[command].from_dict(result).to_dict() == result


@pytest.mark.parametrize("command", [c for c in RESULTS if c != ("embed",)], ids=lambda command: command[0])
def test_saved_pictures_keep_the_size_of_the_original_in_width(command: Any, picture: Path, tmp_path: Path):
    name, *options = command
    arguments = [name, str(picture), *(["What is there?"] if name == "ask" else []), *options]
    answer = CliRunner().invoke(app, [*arguments, "--save", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    with Image.open(tmp_path / f"scene_{name}.png") as saved:
        assert saved.mode == "RGB" and saved.width >= 320


def test_an_unknown_model_is_exit_code_2_and_names_what_was_asked(picture: Path):
    answer = CliRunner().invoke(app, ["caption", str(picture), "--model", "tinny"])
    assert answer.exit_code == 2
    assert "tinny" in answer.stderr and "Traceback" not in answer.stderr
