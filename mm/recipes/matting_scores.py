"""How good mattes are on soft scenes that no training has shown, asked through the public tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mm.errors import InputError
from mm.metrics.matting import MattingScore
from mm.recipes.batches import TRAIN_SEED
from mm.scenes.render import Scene
from mm.scenes.soft import matte_of, render_soft
from mm.tasks.each import Model
from mm.tasks.matte import matte
from mm.tasks.segment import segment

_SIZES = (128, 128, (160, 112), 128, 128, (112, 160))  # width, height


def matte_figures(model: Model = "tiny", count: int = 200, seed: int = 0) -> dict[str, Any]:
    """SAD, MSE, MAD, Grad and Conn (units: `mm.metrics.matting`), means over `count` pictures of about 128 x 128.

    head: of the model's matting head. mask: of its segmentation mask taken for an alpha, 0 or 1. nothing: of an alpha
    of 0 everywhere. colours: the mean absolute difference of the subject's colour, 0..255, each pixel counted by
    alpha. ratio: SAD of the mask over SAD of the head.

    Raises:
        InputError: no pictures, seeds that belong to training, or a model without a matting or segmentation head.
    """
    if count < 1:
        raise InputError(f"count: expected 1 or more, got {count}")
    if seed < 0 or seed + count > TRAIN_SEED:
        raise InputError(f"seed: expected 0 to {TRAIN_SEED - count:,} for {count} pictures, got {seed:,}")
    scores = {name: MattingScore() for name in ("head", "mask", "nothing")}
    colours = []
    for i in range(count):
        scene = render_soft(seed + i, _SIZES[i % len(_SIZES)])
        label, chosen = _asked(scene, i)
        alpha, foreground = matte_of(scene, chosen)
        found = matte(scene.pixels, label, model=model)
        scores["head"].add(found.alpha, alpha)
        scores["mask"].add(segment(scene.pixels, label, model=model).masks[0].astype(np.float32), alpha)
        scores["nothing"].add(np.zeros_like(alpha), alpha)
        off = np.abs(found.foreground.astype(np.float32) - foreground).mean(-1)
        colours.append(float((off * alpha).sum() / alpha.sum()))
    figures: dict[str, Any] = {name: _rounded(score.figures()) for name, score in scores.items()}
    ratio = figures["mask"]["SAD"] / max(figures["head"]["SAD"], 1e-9)
    return figures | {"colours": round(float(np.mean(colours)), 2), "ratio": round(ratio, 2), "seed": seed}


def _asked(scene: Scene, i: int) -> tuple[str, list[bool]]:
    """The label of one of the scene's things, and which things it names."""
    thing = scene.objects[i % len(scene.objects)]
    return thing.label, [o.label == thing.label for o in scene.objects]


def _rounded(figures: dict[str, float | int | None]) -> dict[str, float | int | None]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
