"""`mm check` on tiny checkpoints: sound ones pass every column, spoilt ones fail the column that says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mm.checking.check import battery, check
from mm.checking.expectations import differences
from mm.checkpoints.families import CLIP_MEAN, CLIP_STD, FAMILIES
from mm.cli.app import app
from mm.encoders.build import load_encoder
from mm.zoo import MODELS
from tests.parity import encoder_transformers_folders as make

COLUMNS = ["preprocessing", "token ids", "image features", "text features", "similarity", "published"]


def open_clip_folder(folder: Path) -> Path:
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model: dict[str, Any] = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    pictures = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": pictures | {"size": [32, 32]}})
    )
    torch.manual_seed(0)
    weights = make.shaken(open_clip.CLIP(**model)).state_dict()
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, folder / "open_clip_model.safetensors")
    return folder


MAKERS: dict[str, Callable[[Path], Any]] = {
    "clip": make.clip,
    "siglip": make.siglip,
    "siglip2": lambda folder: make.siglip(folder, second=True),
    "naflex": make.naflex,
    "open_clip": open_clip_folder,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            MAKERS[kind](made[kind])
        return made[kind]

    return get


@pytest.fixture
def spoilt(sound: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a sound folder, in whose file some values are others."""

    def get(kind: str, file: str, **values: Any) -> Path:
        folder = shutil.copytree(sound(kind), tmp_path / kind)
        said = json.loads((folder / file).read_text())
        inner = said.get("preprocess_cfg", said)
        inner |= values
        (folder / file).write_text(json.dumps(said))
        return folder

    return get


@pytest.mark.parametrize("kind", MAKERS)
def test_a_sound_checkpoint_passes_every_column(sound: Callable[[str], Path], kind: str) -> None:
    report = check(str(sound(kind)))
    assert [column.name for column in report.columns] == COLUMNS
    assert report.mismatches == [], report
    assert report.columns[-1].said == "as published"
    assert report.reference == ("open_clip" if kind == "open_clip" else "transformers")
    differences = [column.difference for column in report.columns[:-1]]
    assert all(d is not None and d < 1e-5 for d in differences)


def test_the_embedded_model_passes() -> None:
    report = check("tiny")
    assert report.mismatches == [] and report.reference == "timm + transformers"
    assert "nothing is known" in report.columns[-1].said and report.reproduce == ""


def test_an_image_tower_alone_is_compared_without_texts(tmp_path: Path) -> None:
    make.tower(tmp_path, "Dinov2")
    report = check(str(tmp_path))
    assert [column.name for column in report.columns] == ["preprocessing", "image features", "published"]
    assert report.mismatches == ["published"] and "mean 0.481" in report.columns[-1].said


@pytest.mark.parametrize(
    ("kind", "file", "values", "said"),
    [
        ("clip", "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, "mean 0.5 0.5 0.5, published 0.481455"),
        ("clip", "preprocessor_config.json", {"resample": 2}, "resample bilinear, published bicubic"),
        ("clip", "preprocessor_config.json", {"size": {"shortest_edge": 40}}, "shortest edge 40, published 32"),
        ("siglip", "preprocessor_config.json", {"image_std": [0.25] * 3}, "std 0.25"),
        ("siglip", "preprocessor_config.json", {"resample": 2}, "resample bilinear"),
        ("siglip", "preprocessor_config.json", {"do_rescale": False}, "mean"),
        ("siglip", "tokenizer_config.json", {"model_max_length": 16}, "text length 16, the tower's is 64"),
        ("siglip", "tokenizer_config.json", {"padding_side": "left"}, "padding_side left"),
        ("siglip", "tokenizer_config.json", {"do_lower_case": False}, "do_lower_case false"),
        ("naflex", "preprocessor_config.json", {"resample": 3}, "resample bicubic, published bilinear"),
        ("open_clip", "open_clip_config.json", {"mean": [0.4, 0.4, 0.4]}, "mean 0.4"),
        ("open_clip", "open_clip_config.json", {"resize_mode": "squash"}, "policy squash, published crop"),
    ],
)
def test_a_spoilt_setting_is_named(
    spoilt: Callable[..., Path], kind: str, file: str, values: dict[str, Any], said: str
) -> None:
    folder = spoilt(kind, file, **values)
    found = differences(folder, load_encoder(folder).encoder)
    assert found and said in "; ".join(found)


@pytest.mark.parametrize(
    ("kind", "file", "values", "said"),
    [
        ("clip", "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, "mean 0.5 0.5 0.5"),
        ("siglip", "tokenizer_config.json", {"model_max_length": 16}, "text length 16"),
    ],
)
def test_a_spoilt_setting_makes_the_command_fail_with_the_columns_name(
    spoilt: Callable[..., Path], kind: str, file: str, values: dict[str, Any], said: str
) -> None:
    answer = CliRunner().invoke(app, ["check", str(spoilt(kind, file, **values))])
    assert answer.exit_code == 1, answer.output
    assert "published" in answer.stderr.splitlines()[-1] and said in answer.stdout


def test_a_known_name_is_held_against_its_own_family(
    sound: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm.checking import check as module
    from mm.checkpoints.hub import Located

    monkeypatch.setattr(module, "locate", lambda _: Located(sound("open_clip"), "abc", "open_clip"))
    report = check("mobileclip-s1")
    assert report.mismatches == ["published"] and "resample bicubic, published bilinear" in report.columns[-1].said
    assert report.top1 == MODELS["mobileclip-s1"].top1 == 72.6
    assert report.reproduce == "mm eval zeroshot --model mobileclip-s1 --data IMAGENET_VAL_FOLDER"
    answer = CliRunner().invoke(app, ["check", "clip-vit-base-patch32"])
    assert answer.exit_code == 0, answer.output
    assert "top-1 on ImageNet: 63.3 %" in answer.stdout and "mm eval zeroshot --model clip-vit" in answer.stdout


def test_an_encoder_that_computes_something_else_fails_its_columns(
    sound: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm.encoders.transformers_pair import TransformersPair

    real = TransformersPair.encode_text
    monkeypatch.setattr(TransformersPair, "encode_text", lambda self, texts: real(self, [t + " x" for t in texts]))
    assert check(str(sound("clip"))).mismatches == ["text features", "similarity"]


def test_files_that_do_not_load_are_a_mismatch_of_their_own(sound: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sound("clip"), tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("logit_scale")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    answer = CliRunner().invoke(app, ["check", str(folder), "--json"])
    assert answer.exit_code == 1 and json.loads(answer.stdout)["mismatches"] == ["load"]
    assert "logit_scale" in json.loads(answer.stdout)["columns"][0]["said"]


def test_json_holds_the_whole_report_and_no_path(sound: Callable[[str], Path]) -> None:
    answer = CliRunner().invoke(app, ["check", str(sound("clip")), "--json"])
    report = json.loads(answer.stdout)
    assert answer.exit_code == 0 and report["ok"] is True
    assert [column["name"] for column in report["columns"]] == COLUMNS
    assert "/" not in report["model"] and any("image gate" in note for note in report["notes"])


def test_an_unknown_name_is_no_mismatch_but_a_request_that_cannot_be_met() -> None:
    answer = CliRunner().invoke(app, ["check", "siglip2-base-patch16-22"])
    assert answer.exit_code == 2 and 'Did you mean "siglip2-base-patch16-224"' in answer.stderr


def test_the_battery_holds_the_traps() -> None:
    pictures = battery()
    assert pictures["exif rotated"].size_hw == (64, 120)  # stored as 120 x 64
    assert pictures["strip 1x90"].size_hw == (1, 90)
    assert len(np.unique(pictures["16 bit"].pixels)) > 200  # not clipped to white
    assert pictures["rgba"].pixels[:, 0].min() > 250  # transparent at the left: white
    assert (np.ptp(pictures["grey"].pixels, axis=2) == 0).all()


def test_every_family_has_plausible_numbers() -> None:
    for family in FAMILIES.values():
        assert all(0 <= m < 1 for m in family.mean) and all(0 < s <= 1 for s in family.std)
        assert family.resample and family.policy in ("crop", "squash", "patches", "canvas")
