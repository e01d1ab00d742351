"""The recipe that shows the vision tower soft scenes: its lessons, its stage, and what it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from mm.checkpoints.hub import locate
from mm.checkpoints.loading import load
from mm.encoders.base import ImageFeatures
from mm.joined import Joined
from mm.recipes import tiny as recipe
from mm.recipes.soft_towers import SoftTraining, drift, export, make_lesson, make_mixed_batch, train
from mm.recipes.tiny_parts import SPEC, prepare


@pytest.fixture
def tiny() -> Joined:
    return load("tiny")


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_lesson_is_a_function_of_its_step() -> None:
    lesson, again, other = make_lesson(3, 2), make_lesson(3, 2), make_lesson(4, 2)
    for one, two in ((lesson.hard, again.hard), (lesson.matte.alpha, again.matte.alpha)):
        assert torch.equal(one, two)
    assert lesson.seen.texts == again.seen.texts and not torch.equal(lesson.hard, other.hard)
    assert lesson.hard.shape == lesson.seen.pixels.shape == (2, 3, 128, 128)
    assert not torch.equal(lesson.hard, lesson.seen.pixels)
    assert torch.equal(lesson.seen.pixels, lesson.matte.pixels)  # one pass of the tower serves both


def test_scenes_of_both_kinds_settle_the_heads() -> None:
    batch, again = make_mixed_batch(3, 8), make_mixed_batch(3, 8)
    assert torch.equal(batch.pixels, again.pixels) and batch.pixels.shape == (8, 3, 128, 128)
    assert batch.ask_mask.shape[0] == 8 and set(batch.owner.tolist()) == set(range(8))


def test_drift_is_the_squared_change_in_units_of_variance() -> None:
    torch.manual_seed(0)
    flat = torch.randn(1, 4, 8)
    then = ImageFeatures(flat, (2, 2), flat[:, :0], flat[:, 0], {0: flat}, {0: (2, 2)})
    moved = ImageFeatures(flat + 3, (2, 2), flat[:, :0], flat[:, 0], {0: flat}, {0: (2, 2)})
    assert drift(then, then) == 0
    torch.testing.assert_close(drift(moved, then), 9 / flat.var() / 3)


def test_the_stage_moves_tower_and_head_alone_and_goes_on_where_it_stopped(tmp_path: Path, tiny: Joined) -> None:
    parts = [tiny.encoder, tiny.detector, tiny.segmenter, tiny.matter]
    fixed = [part for part in parts if isinstance(part, nn.Module)]
    before = [weights(part) for part in fixed]
    learnt, settled = train(tmp_path, tiny, steps=2, settle_steps=1, batch=2)
    assert len(fixed) == 4 and all(same(weights(part), was) for part, was in zip(fixed, before, strict=True))
    now = weights(learnt.encoder)
    moved = {name for name in now if not torch.equal(now[name], before[0][name])}
    assert moved and all(name.startswith("vision.") and "running" not in name for name in moved)
    assert not same(weights(learnt.head), before[3])
    heads = [weights(settled.detector), weights(settled.segmenter)]
    assert not same(heads[0], before[1]) and not same(heads[1], before[2])
    again = train(tmp_path, tiny, steps=2, settle_steps=1, batch=2)  # nothing is left to do
    assert same(weights(again[0]), weights(learnt)) and same(weights(again[1]), weights(settled))


def test_on_hard_scenes_the_tower_is_held_to_what_it_said(tiny: Joined) -> None:
    training = SoftTraining(tiny).train()
    lesson = make_lesson(0, 2)
    assert training.losses(lesson)["held"] < 0.01  # rounding of another batch
    with torch.no_grad():
        for value in training.vision.parameters():
            value.mul_(1.02)
    terms = training.losses(lesson)
    assert terms["held"] > 0.01
    terms["held"].backward()
    moved = [p.grad for p in training.vision.parameters()]
    assert sum(grad is not None and bool(grad.any()) for grad in moved) > 20
    assert all(p.grad is None for p in training.head.parameters())


def test_a_model_without_the_three_heads_is_refused(tiny: Joined) -> None:
    with pytest.raises(ValueError, match="matting"):
        SoftTraining(dataclasses.replace(tiny, matter=None))


def test_what_is_written_loads_and_says_what_was_trained(
    tmp_path: Path, tiny: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm.recipes.export._WORLD_SCENES", 150)
    soft, settled = train(tmp_path / "work", tiny, steps=1, settle_steps=1, batch=2)
    export(locate("tiny").folder, tiny, soft, settled, tmp_path / "out")
    written = load(str(tmp_path / "out"))
    pixels = prepare(make_lesson(1, 2).hard)
    with torch.inference_mode():
        want = soft.vision(pixels)
        got = written.encoder.encode_image(pixels, SPEC.layers).pooled
    torch.testing.assert_close(got, want, atol=0.02, rtol=0.02)  # float16 on disk
    for mine, theirs in ((settled.detector, written.detector), (settled.segmenter, written.segmenter)):
        assert isinstance(theirs, nn.Module)
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert written.speaker is not None and isinstance(written.detector, nn.Module)
    found, detects = written.speaker.connector.finder.state_dict(), written.detector.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(value, detects[name]) for name, value in found.items())
    assert written.world is not None and tiny.world is not None
    assert not torch.equal(written.world.mean, tiny.world.mean)
    assert written.world.threshold > 0


def test_a_recipe_that_leaves_the_tower_as_it_was_keeps_the_matting_head(
    tmp_path: Path, tiny: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm.recipes.export._WORLD_SCENES", 150)
    steps = ("pair", "heads", "names", "counts", "words")
    given = ["tiny", "--work", str(tmp_path / "work"), "--init", "tiny", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*given, *(word for name in steps for word in (f"--{name}-steps", "0"))])
    recipe.main()
    written = load(str(tmp_path / "out"))
    assert isinstance(written.matter, nn.Module) and isinstance(tiny.matter, nn.Module)
    assert same(weights(written.matter), weights(tiny.matter))
