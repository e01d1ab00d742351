"""The recipe of the matting head: its batches, its stage, what it writes, and its figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import mm
from mm.checkpoints.loading import load
from mm.heads.clipmat import ClipMatHead
from mm.recipes.matting import MatteTraining, add_matter, config_for, train
from mm.recipes.matting_batches import SoftBatch, make_soft_batch, question
from mm.scenes.soft import render_soft
from mm.zoo import EMBEDDED


def test_a_batch_is_a_function_of_its_step_and_blends_to_its_pictures() -> None:
    batch, again = make_soft_batch(3, 4, 6), make_soft_batch(3, 4, 6)
    assert all(torch.equal(vars(batch)[k], vars(again)[k]) for k in ("pixels", "alpha", "foreground", "owner"))
    assert batch.texts == again.texts and batch.owner.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.pixels.shape == (4, 3, 128, 128) and batch.alpha.shape == (6, 128, 128)
    solid = batch.alpha > 0.999
    assert solid.sum() > 100
    off = (batch.foreground - batch.pixels[batch.owner].float()).abs().amax(1)[solid]
    assert off.median() <= 4


def test_questions_name_what_they_mark() -> None:
    rng, asked = np.random.default_rng(0), 0
    for seed in range(120):
        scene = render_soft(seed, 48)
        label, chosen = question(scene, rng)
        for thing, named in zip(scene.objects, chosen, strict=True):
            fits = {thing.kind, thing.label, f"{thing.colour} thing", f"{thing.texture} {thing.label}"}
            assert named == (label in fits)
        asked += any(chosen)
    assert 0.75 < asked / 120 < 0.97  # the others ask for what is not there


def test_the_stage_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, settings = load("tiny"), {"steps": 3, "batch": 2, "asks": 2, "save_every": 1}
    config = config_for(tiny, guided=True)
    whole = train(tmp_path / "whole", tiny, config, **settings)
    losses, calls = MatteTraining.losses, []

    def killed(self: MatteTraining, batch: SoftBatch) -> dict[str, torch.Tensor]:
        calls.append(batch.step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return losses(self, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MatteTraining, "losses", killed)
        train(tmp_path / "parts", tiny, config, **settings)
    resumed = train(tmp_path / "parts", tiny, config, **settings)
    assert calls[1] == calls[0] + 1
    for name, value in whole.head.state_dict().items():
        torch.testing.assert_close(resumed.head.state_dict()[name], value)


def test_a_written_head_answers_as_the_trained_one(tmp_path: Path) -> None:
    tiny = load("tiny")
    config = config_for(tiny)
    torch.manual_seed(0)
    head = ClipMatHead(**vars(config)).eval()
    add_matter(EMBEDDED / "tiny", head, config, tmp_path / "out")
    add_matter(tmp_path / "out", head, config, tmp_path / "out")  # over itself
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    written = load(str(tmp_path / "out"))
    scene = render_soft(1)
    got = mm.matte(scene.pixels, "red car", model=written)
    want = mm.matte(scene.pixels, "red car", model=dataclasses.replace(tiny, matter=head))
    np.testing.assert_allclose(got.alpha, want.alpha, atol=5e-3)  # float16 on disk
    before, after = (mm.segment(scene.pixels, "red car", model=m) for m in (tiny, written))
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-5)
