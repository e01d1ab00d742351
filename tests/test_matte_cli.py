"""`mm matte` on drawn pictures, with a model whose matting head knows nothing yet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mm.checkpoints.loading import load
from mm.cli.app import app
from mm.heads.clipmat import ClipMatHead
from mm.recipes.matting import add_matter, config_for
from mm.scenes.soft import render_soft
from mm.tasks.matte import matte
from mm.types import Matte
from mm.zoo import EMBEDDED


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("model") / "matting"
    config = config_for(load("tiny"))
    torch.manual_seed(0)
    add_matter(EMBEDDED / "tiny", ClipMatHead(**vars(config)), config, out)
    return str(out)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    render_soft(2, (150, 100)).pil().save(path)
    return path


def run(*arguments: object) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["matte", *map(str, arguments)])
    return answer.exit_code, answer.output


def test_a_cut_out_is_saved_with_transparency(model: str, picture: Path, tmp_path: Path) -> None:
    code, said = run(picture, "-l", "red car", "-m", model, "--save", tmp_path)
    assert code == 0 and said.splitlines()[-1].startswith(f"{picture}\t") and said.rstrip().endswith("% opaque")
    with Image.open(tmp_path / "scene_matte.png") as saved:
        assert saved.mode == "RGBA" and saved.size == (150, 100)


def test_json_becomes_the_result_again(model: str, picture: Path) -> None:
    code, said = run(picture, "-l", "red car", "-m", model, "--json")
    line = json.loads(said.splitlines()[-1])
    made = Matte.from_dict(line["result"])
    assert code == 0 and line["ok"] and made.size_hw == (100, 150)


@pytest.mark.parametrize("colour", ["lime", "#00ff00"])
def test_a_colour_lies_behind_the_subject(model: str, picture: Path, tmp_path: Path, colour: str) -> None:
    assert run(picture, "-l", "red car", "-m", model, "--save", tmp_path, "--over", colour)[0] == 0
    made = matte(picture, "red car", model=model)
    with Image.open(tmp_path / "scene_matte.png") as saved:
        assert saved.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(made.over((0, 255, 0))))


@pytest.mark.parametrize("size", [(150, 100), (80, 300)])
def test_a_picture_lies_behind_the_subject_whatever_its_size(model: str, picture: Path, tmp_path: Path, size) -> None:
    behind = tmp_path / "behind.png"
    Image.new("RGB", size, (9, 60, 200)).save(behind)
    out = tmp_path / "out"
    assert run(picture, "-l", "red car", "-m", model, "--save", out, "--over", behind)[0] == 0
    made = matte(picture, "red car", model=model)
    with Image.open(out / "scene_matte.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(made.over((9, 60, 200))))


def test_what_is_neither_a_colour_nor_a_picture_is_refused(model: str, picture: Path) -> None:
    code, said = run(picture, "-l", "red car", "-m", model, "--over", "no such thing")
    assert code == 2 and "neither a colour nor a picture" in " ".join(said.replace("│", " ").split())


def test_a_model_without_the_head_ends_the_run(picture: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(EMBEDDED / "tiny", bare)
    config = json.loads((bare / "config.json").read_text("utf-8"))
    config.pop("matter", None)
    (bare / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {k: v for k, v in load_file(bare / "joined.safetensors").items() if not k.startswith("matter.")}
    save_file(tensors, bare / "joined.safetensors")
    code, said = run(picture, "-l", "red car", "-m", bare)
    assert code == 2 and "has no matter" in said
