"""Pictures far from the drawn world carry a warning; drawn scenes do not."""

from __future__ import annotations

import numpy as np
import torch

import mm
from mm.scenes import render_scene
from mm.world import World


def test_distance_is_mahalanobis() -> None:
    world = World("w", torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([2.0, 0.5])), 1.0)
    assert world.distance(torch.tensor([[2.0, 4.0]])).item() == np.sqrt((2.0**2 + 1.0**2) / 2).astype(np.float32)
    assert world.warning(1.0) is None
    assert "model=" in str(world.warning(1.1))


def test_nearly_all_held_out_scenes_pass_in_silence() -> None:
    scenes = [render_scene(50_000 + i).pixels for i in range(100)]
    warned = sum(bool(r.source.warnings) for r in mm.classify(scenes, ["car", "star"]))
    assert warned <= 5


def test_what_no_drawing_looks_like_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (128, 128, 3), np.uint8)
    walk = rng.normal(0, 1, (160, 200, 3)).cumsum(0).cumsum(1)
    fractal = ((walk - walk.min()) / (walk.max() - walk.min()) * 255).astype(np.uint8)
    mixed = np.clip(fractal * 0.7 + rng.normal(0, 25, fractal.shape), 0, 255).astype(np.uint8)
    for picture in (noise, mixed):
        warnings = mm.caption(picture).source.warnings
        assert any("far from what the model was trained on" in w for w in warnings)
