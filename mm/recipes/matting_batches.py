"""Training batches for matting: soft scenes, one thing asked for in words, and its true alpha and colour."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm.recipes.batches import TRAIN_SEED
from mm.scenes.render import Scene
from mm.scenes.soft import matte_of, render_soft
from mm.scenes.vocabulary import SEEN_PAIRS

_STRANGERS = ("dog", "person", "bird", "horse", "bus", "apple", "chair", "bottle", "train", "lamp", "ball", "robot")
_ABSENT = 0.15  # of the questions ask for what is not there
_STRETCH = 0.3  # of the logarithm of a frame's sides: people's pictures are rarely square


@dataclass(frozen=True)
class SoftBatch:
    """pixels uint8[B, 3, S, S]; texts: Q labels; owner int64[Q]: the picture of each.

    alpha float32[Q, S, S] in 0..1; foreground float32[Q, 3, S, S] in 0..255, not multiplied by alpha.
    """

    pixels: Tensor
    texts: list[str]
    owner: Tensor
    alpha: Tensor
    foreground: Tensor
    step: int

    def to(self, device: torch.device) -> SoftBatch:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


def question(scene: Scene, rng: np.random.Generator) -> tuple[str, list[bool]]:
    """A label, and which of the scene's objects it names."""
    thing = scene.objects[rng.integers(len(scene.objects))]
    draw = rng.random()
    if draw < _ABSENT:
        return _absent(scene, rng), [False] * len(scene.objects)
    if draw < 0.25:
        return thing.kind, [o.kind == thing.kind for o in scene.objects]
    if draw < 0.33:
        return f"{thing.colour} thing", [o.colour == thing.colour for o in scene.objects]
    if draw < 0.43:
        alike = [(o.texture, o.label) == (thing.texture, thing.label) for o in scene.objects]
        return f"{thing.texture} {thing.label}", alike
    return thing.label, [o.label == thing.label for o in scene.objects]


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """A pair that shares its colour or kind with something that is there, or a word of another world."""
    if rng.random() < 0.2:
        return _STRANGERS[rng.integers(len(_STRANGERS))]
    colours, kinds = {o.colour for o in scene.objects}, {o.kind for o in scene.objects}
    there = {(o.colour, o.kind) for o in scene.objects}
    alike = [p for p in SEEN_PAIRS if p not in there and (p[0] in colours or p[1] in kinds)]
    colour, kind = alike[rng.integers(len(alike))]
    return f"{colour} {kind}"


def _squashed(values: np.ndarray, side: int) -> np.ndarray:
    """float32[H, W] or uint8[H, W, 3] to side x side, as the picture itself is made smaller."""
    if values.shape[:2] == (side, side):
        return values
    return np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BILINEAR))


def _truth(scene: Scene, chosen: list[bool], side: int) -> tuple[np.ndarray, np.ndarray]:
    """alpha float32[S, S] and foreground float32[S, S, 3]; what is resized is the colour times alpha."""
    alpha, foreground = matte_of(scene, chosen)
    if alpha.shape == (side, side):
        return alpha, foreground.astype(np.float32)
    small = _squashed(alpha, side)
    blend = [_squashed(alpha * foreground[..., c], side) for c in range(3)]
    return small, np.stack(blend, -1) / np.maximum(small, 1e-3)[..., None]


def make_soft_batch(step: int, size: int, asks: int, side: int = 128) -> SoftBatch:
    """The batch of this step: a pure function of its arguments. Questions go round the pictures."""
    rng = np.random.default_rng((step, 29))
    return soft_batch_of(draw_soft_scenes(step, size, side, rng), rng, step=step, asks=asks, side=side)


def draw_soft_scenes(step: int, size: int, side: int, rng: np.random.Generator) -> list[Scene]:
    """`size` training scenes, of frames that are rarely square."""
    stretches = np.exp(rng.uniform(-_STRETCH, _STRETCH, size) * (rng.random(size) < 0.6))
    frames = [(round(side * s), round(side / s)) for s in stretches]
    return [render_soft(TRAIN_SEED + step * size + i, frame) for i, frame in enumerate(frames)]


def soft_batch_of(scenes: list[Scene], rng: np.random.Generator, *, step: int, asks: int, side: int) -> SoftBatch:
    """The batch of these scenes; `rng` draws what is asked."""
    owner = np.arange(asks) % len(scenes)
    asked = [question(scenes[b], rng) for b in owner]
    truths = [_truth(scenes[b], chosen, side) for b, (_, chosen) in zip(owner, asked, strict=True)]
    pixels = np.stack([_squashed(scene.pixels, side) for scene in scenes]).transpose(0, 3, 1, 2)
    foreground = np.stack([f for _, f in truths]).transpose(0, 3, 1, 2)
    return SoftBatch(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        [text if rng.random() < 0.8 else f"a {text}" for text, _ in asked],
        torch.from_numpy(owner),
        torch.from_numpy(np.clip(np.stack([a for a, _ in truths]), 0, 1)),
        torch.from_numpy(np.ascontiguousarray(foreground)),
        step,
    )
