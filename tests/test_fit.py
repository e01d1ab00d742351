"""`mm.fit` as a caller sees it: heads that learn, encoders that stay, folders that load, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mm
from mm.checkpoints.headed import KINDS, described
from mm.checkpoints.loading import load
from mm.cli.app import app
from mm.errors import CheckpointError, InputError
from mm.heads.clipmat import ClipMatHead
from mm.heads.clipseg import ClipSegHead
from mm.heads.owlvit import OwlHead
from mm.joined import Joined
from mm.scenes.soft import render_soft
from mm.training.data import open_data
from mm.training.fit import fit
from mm.training.validate import validated
from tests.training_parts import clip_folder, coco_folder, drawing, pairs, rows, total, tower_folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("encoders") / "tiny-clip")


@pytest.fixture(scope="module")
def boxes(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Joined, Path]:
    """A detector after a few steps, and its folder."""
    out = tmp_path_factory.mktemp("fitted") / "boxes"
    return mm.fit(clip, pairs(8), head="detect", out=out, steps=4, batch=4, rate=3e-3), out


def bits(module: Any) -> dict[str, bytes]:
    assert isinstance(module, nn.Module)
    return {name: value.contiguous().numpy().tobytes() for name, value in module.state_dict().items()}


def test_a_fresh_detector_overfits_a_few_pictures_and_leaves_the_encoder_as_it_was(clip: Path, tmp_path: Path):
    joined = load(clip)
    before = bits(joined.encoder)
    out = tmp_path / "boxes"
    examples = open_data(pairs(16))
    chosen = {"head": "detect", "out": out, "batch": 8, "rate": 4e-3, "save_every": 1000}
    made = fit(clip, pairs(16), steps=70, **chosen)
    log = rows(out)
    assert len(log) == 70 and total(log[-1]) < total(log[1]) / 2
    assert validated(made, "detect", examples, examples.labels)["AP50"] > 0.25
    assert bits(joined.encoder) == before == bits(made.encoder)
    assert joined.detector is None and isinstance(made.detector, OwlHead)
    found = mm.detect(drawing(0)[0], list(examples.labels), model=made, threshold=0.0)
    assert len(found) and found.source.model == "boxes" and found.source.sha256 == made.sha256


def test_a_fresh_segmenter_reads_blocks_of_the_encoder_and_learns(clip: Path, tmp_path: Path):
    made = fit(clip, pairs(8), head="segment", out=tmp_path / "m", steps=40, batch=4, rate=4e-3, validation=pairs(8))
    figures = [row["validation"]["mIoU"] for row in rows(tmp_path / "m") if "validation" in row]
    assert isinstance(made.segmenter, ClipSegHead) and made.spec.layers == (2, 3, 4)
    assert figures[-1] > 0.3 > figures[0]
    steps = [total(row) for row in rows(tmp_path / "m") if "mask" in row]
    assert steps[-1] < steps[0] / 2
    assert load(clip).spec.layers == ()
    assert mm.segment(drawing(1)[0], "red square", model=made).masks.shape == (1, 48, 48)


def test_a_fresh_matter_learns_and_is_asked_by_its_task(clip: Path, tmp_path: Path):
    made = fit(clip, pairs(4), head="matte", out=tmp_path / "m", steps=6, batch=2, rate=3e-3)
    steps = [total(row) for row in rows(tmp_path / "m")]
    assert isinstance(made.matter, ClipMatHead) and steps[-1] < steps[0]
    assert mm.matte(drawing(1)[0], "red square", model=made).alpha.shape == (48, 48)
    again = load(tmp_path / "m")
    assert bits(again.matter) == bits(made.matter) and described(again.matter) == described(made.matter)


def test_a_guided_matter_goes_on_over_its_segmentation(tmp_path: Path):
    before = load("tiny")
    made = fit("tiny", "scenes:4", head="matte", out=tmp_path / "m", steps=2, batch=2, rate=1e-4)
    assert isinstance(made.matter, ClipMatHead) and made.matter.guided
    assert bits(made.matter) != bits(before.matter) and bits(made.segmenter) == bits(before.segmenter)
    scene = render_soft(5)
    one, other = (mm.matte(scene.pixels, scene.objects[0].label, model=each).alpha for each in (made, before))
    assert np.abs(one - other).max() > 0 and np.abs(one - other).mean() < 0.05
    with pytest.raises(InputError, match="guided by its segmentation, which a trained encoder leaves behind"):
        fit("tiny", "scenes:4", head="matte", encoder="trained", steps=1)


def test_a_model_in_memory_is_trained_on_and_stays_as_it_is(boxes: tuple[Joined, Path]):
    made, _ = boxes
    before = bits(made.detector)
    more = fit(made, pairs(8), head="detect", steps=1, batch=2)
    new = fit(made, pairs(8), head="detect", steps=1, batch=2, fresh=True)
    assert bits(made.detector) == before and len({made.sha256, more.sha256, new.sha256}) == 3
    assert isinstance(made.detector, OwlHead)
    start = made.detector.class_head.dense0.weight
    shift = [float((each.detector.class_head.dense0.weight - start).abs().max()) for each in (more, new)]  # type: ignore[union-attr]
    assert shift[0] < 0.002 < shift[1]


def test_a_trained_encoder_moves_and_its_words_do_not(clip: Path, tmp_path: Path):
    out = tmp_path / "along"
    made = fit(clip, pairs(8), head="detect", encoder="trained", out=out, steps=2, batch=4, rate=1e-2, warm=0)
    then, now = bits(load(clip).encoder), bits(made.encoder)
    moved = {name for name in then if then[name] != now[name]}
    assert any("vision_model.encoder" in name for name in moved)
    assert not any("text" in name or "logit_scale" in name for name in moved)
    again = load(out)
    assert bits(again.encoder) == now and again.sha256 == made.sha256
    asked = ["red square", "blue square"]
    found = [mm.detect(drawing(0)[0], asked, model=each, threshold=0.0).boxes_xyxy for each in (made, again)]
    assert np.array_equal(*found)


def test_a_saved_folder_answers_as_the_model_did(boxes: tuple[Joined, Path]):
    made, out = boxes
    again = mm.load(out)
    assert again.sha256 == made.sha256 and bits(again.detector) == bits(made.detector)
    found = [mm.detect(drawing(2)[0], "red square", model=each, threshold=0.0) for each in (made, again, str(out))]
    assert np.array_equal(found[0].boxes_xyxy, found[1].boxes_xyxy)
    assert np.array_equal(found[1].scores, found[2].scores)
    config = json.loads((out / "config.json").read_text())
    assert config["base"] == {"inside": "base"} and config["fitted"]["steps"] == 4
    assert str(out.parent) not in (out / "config.json").read_text()


def test_a_head_of_another_kind_goes_on_top_and_the_first_stays(boxes: tuple[Joined, Path], tmp_path: Path):
    made, out = boxes
    both = fit(out, pairs(4), head="segment", out=tmp_path / "both", steps=1, batch=2)
    again = load(tmp_path / "both")
    assert isinstance(again.segmenter, ClipSegHead)
    assert bits(again.detector) == bits(made.detector) == bits(both.detector)
    assert not (tmp_path / "both" / "base" / "fit").exists()


@pytest.mark.parametrize("fault", ["head", "base", "key", "kind", "setting", "layout", "config"])
def test_a_folder_that_was_tampered_with_is_refused(boxes: tuple[Joined, Path], tmp_path: Path, fault: str):
    folder = shutil.copytree(boxes[1], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    if fault == "head":
        shutil.copy(folder / "base" / "model.safetensors", folder / "head.safetensors")
    elif fault == "base":
        clip_folder(folder / "base", seed=1)
    elif fault == "key":
        config["extra"] = 1
    elif fault == "kind":
        config["head"]["kind"] = "owlvitt"
    elif fault == "setting":
        config["head"]["settings"]["width"] = 64
    elif fault == "layout":
        config["layout"] = "mm head 9"
    (folder / "config.json").write_text(json.dumps(config))
    if fault == "config":
        (folder / "config.json").unlink()
    message = {
        "head": "not the file that config.json names", "base": "the head was trained on", "key": "unknown",
        "kind": 'Did you mean "owlvit"', "setting": "should be", "layout": "not known", "config": "no config",
    }[fault]  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_an_embedded_model_is_kept_by_name(tmp_path: Path):
    before = bits(load("tiny").encoder)
    made = fit("tiny", "scenes:2", head="detect", out=tmp_path / "t", steps=1, batch=1)
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    assert config["base"] == {"name": "tiny", "sha256": load("tiny").sha256}
    again = load(tmp_path / "t")
    assert bits(again.detector) == bits(made.detector) != bits(load("tiny").detector)
    assert again.speaker is not None and again.world is made.world is not None and bits(load("tiny").encoder) == before


@pytest.mark.parametrize("part", ["detector", "segmenter"])
def test_the_settings_of_a_head_build_another_like_it(part: str):
    head = getattr(load("tiny"), part)
    kind, settings = described(head)
    other = KINDS[kind].module(**settings)
    assert described(other) == (kind, settings)
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in head.state_dict().items()}


def test_workers_and_mixed_precision_train_too(clip: Path):
    chosen = {"head": "segment", "steps": 3, "batch": 2}
    alone, helped, mixed = (fit(clip, pairs(4), **chosen, **more) for more in ({}, {"workers": 2}, {"bf16": True}))
    assert bits(helped.segmenter) == bits(alone.segmenter) != bits(mixed.segmenter)


def test_an_encoder_without_words_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no text tower"):
        fit(tower_folder(tmp_path / "tower"), pairs(2), head="detect", steps=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"head": "detekt"}, 'Did you mean "detect"'),
        ({"stage": "heads"}, 'Did you mean "head"'),
        ({"encoder": "frozn"}, 'Did you mean "frozen"'),
        ({"step": 3}, 'Did you mean "steps"'),
        ({"steps": 0}, "steps: expected a whole number from 1"),
        ({"rate": float("nan")}, "rate"),
        ({"labels": ["red square"]}, "none of the 1 labels"),
        ({"head": "segment", "data": [(drawing(0)[0], {"labels": ["a"], "boxes_xyxy": [[0, 0, 5, 5]]})]}, "no masks"),
        ({"validation": 2.0}, "between 0 and 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(clip: Path, words: dict[str, Any], message: str):
    chosen = {"head": "detect", "steps": 1, "data": pairs(2)} | words
    with pytest.raises(InputError, match=message):
        fit(clip, chosen.pop("data"), **chosen)


def test_folders_that_cannot_be_written_are_refused_before_anything_is_trained(clip: Path, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    for out, message in (
        (tmp_path / "file" / "inside", "cannot write"),
        (tmp_path / ("n" * 300), "cannot write"),
        (tmp_path / "full", "thesis.txt"),
        (clip, "the model that is trained on"),
    ):
        with pytest.raises(InputError, match=message):
            fit(clip, pairs(2), head="detect", steps=1, out=out)


def test_a_loss_that_is_not_finite_is_an_error_before_the_first_step(clip: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(self: OwlHead, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[..., 0] * float("nan")

    monkeypatch.setattr(OwlHead, "_objectness", broken)
    with pytest.raises(FloatingPointError, match="object loss of the first batch is nan"):
        fit(clip, pairs(2), head="detect", steps=1, batch=2)


def test_a_weight_that_no_gradient_reaches_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OwlHead, "_objectness", lambda self, tokens: None)
    with pytest.raises(InputError, match=r"no gradient reaches objectness_head.0.weight"):
        fit(clip, pairs(2), head="detect", steps=1, batch=2)


def test_the_caller_keeps_its_random_numbers(clip: Path):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist()
    torch.manual_seed(5)
    np.random.seed(5)
    fit(clip, pairs(2), head="detect", steps=1, batch=2)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == expected


def test_the_command_trains_from_a_folder_and_its_help_teaches(clip: Path, tmp_path: Path):
    data, out = coco_folder(tmp_path / "data", 4), tmp_path / "out"
    (data / "images" / "drawing 1.png").write_bytes(b"no picture")
    words = ["fit", clip, "--data", data, "--head", "detect", "--out", out, "--steps", "2", "--batch", "2"]
    with pytest.warns(UserWarning, match=r"1 pictures were left out: picture 1: drawing 1.png"):
        answer = CliRunner().invoke(app, [str(word) for word in [*words, "--validation", data, "--flips"]])
    assert answer.exit_code == 0 and str(out) in answer.stdout
    assert load(out).detector is not None
    assert [row["left_out"] for row in rows(out) if "left_out" in row] == ["picture 1"]
    refused = CliRunner().invoke(app, [str(word) for word in [*words, "--seed", "9"]])
    assert refused.exit_code == 2 and "seed: 0 -> 9" in refused.stderr and "--force" in refused.stderr
    shown = CliRunner().invoke(app, ["fit", "--help"]).stdout
    assert all(word in shown for word in ("COCO", "--encoder trained", "mm detect", "--force"))
