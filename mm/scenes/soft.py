"""Drawn scenes whose things are furry, of glass, of smoke, smeared by motion or trailing thin strands.

Matting needs what hard-edged drawings lack: pixels that belong to a thing in part. Here every material gives its
true cover and its true colour, so that a picture is exactly the blend of the two (and a little grain): no blur and
no change of brightness comes after the blending.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from mm.scenes.render import SUPERSAMPLE, Scene, draw_object, render_scene
from mm.scenes.shapes import Rng

Patch = tuple[np.ndarray, np.ndarray]  # rgb uint8[p, p, 3], alpha float32[p, p]


def render_soft(seed: int, size: int | tuple[int, int] = 128, *, pairs: str = "seen") -> Scene:
    """The scene of this seed, each thing of a material of its own; arguments and errors as for `render_scene`.

    An object's `soft_alpha` and `foreground` are the truth of matting.
    """
    scene = render_scene(seed, size, pairs=pairs, draw=draw_soft, weather=False)
    rng = np.random.default_rng((seed, 23))
    if rng.random() < 0.6:
        return scene
    grain = rng.standard_normal(scene.pixels.shape, np.float32) * rng.uniform(0.5, 3)
    return replace(scene, pixels=np.clip(scene.pixels + grain + 0.5, 0, 255).astype(np.uint8))


def matte_of(scene: Scene, chosen: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """The truth for some of a scene's objects together: alpha float32[H, W] and foreground uint8[H, W, 3].

    Where several share a pixel its colour is theirs in the shares that are seen; where none is, it is black.
    """
    alpha = np.zeros(scene.size_hw, np.float32)
    colour = np.zeros((*scene.size_hw, 3), np.float32)
    for thing, wanted in zip(scene.objects, chosen, strict=True):
        if wanted:
            alpha += thing.soft_alpha
            colour += thing.soft_alpha[..., None] * thing.foreground
    foreground = colour / np.maximum(alpha, 1e-6)[..., None]
    return np.minimum(alpha, 1), np.clip(foreground + 0.5, 0, 255).astype(np.uint8)


def draw_soft(kind: str, colour: str, texture: str, radius: float, rng: Rng) -> Patch:
    """One object alone, as `draw_object` draws it, then of a material drawn from `rng`."""
    drawn = draw_object(kind, colour, texture, radius, rng)
    names = list(MATERIALS)
    material = names[int(rng.choice(len(names), p=[share for share, _ in MATERIALS.values()]))]
    return MATERIALS[material][1](drawn, radius, rng)


def _solid(patch: Patch, radius: float, rng: Rng) -> Patch:
    return patch


def _fur(patch: Patch, radius: float, rng: Rng) -> Patch:
    """Short hairs all around, dense and a little combed."""
    rgb, alpha = _padded(patch, math.ceil(radius * 0.25))
    hairs = _hairs(alpha, max(2.5, radius * rng.uniform(0.12, 0.3)), int(radius * rng.uniform(8, 14)), 0.5, rng)
    return rgb, np.maximum(alpha, hairs)


def _strands(patch: Patch, radius: float, rng: Rng) -> Patch:
    """A few long curved threads, thinner than a pixel."""
    rgb, alpha = _padded(patch, math.ceil(radius * 0.6))
    threads = _hairs(alpha, radius * rng.uniform(0.4, 0.7), int(rng.integers(14, 40)), 0.9, rng)
    return rgb, np.maximum(alpha, threads)


def _glass(patch: Patch, radius: float, rng: Rng) -> Patch:
    """Clear inside, firmer towards the rim, with a highlight."""
    rgb, alpha = patch
    depth = np.clip(2 * _blurred(alpha, radius * 0.16) - 1, 0, 1)
    rim, inside = rng.uniform(0.7, 0.95), rng.uniform(0.25, 0.6)
    clear = alpha * (rim + (inside - rim) * np.sqrt(depth))
    side = alpha.shape[0]
    x, y = side / 2 + rng.uniform(-0.4, 0.4, 2) * radius
    axis = np.arange(side, dtype=np.float32)
    shine = np.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (0.16 * radius) ** 2)
    shine *= rng.uniform(0, 0.8) * alpha
    light = rgb + (255 - rgb.astype(np.float32)) * shine[..., None]
    return light.astype(np.uint8), clear + (alpha - clear) * shine


def _smoke(patch: Patch, radius: float, rng: Rng) -> Patch:
    """Wide soft edges, and a cloudy density that lets the background through."""
    rgb, alpha = _padded(patch, math.ceil(radius * 0.3))
    cells = int(rng.integers(4, 8))
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    cloud = np.clip(np.asarray(coarse.resize(alpha.shape[::-1], Image.Resampling.BICUBIC)), 0, 1)
    low = rng.uniform(0.55, 0.8)
    return rgb, _blurred(alpha, radius * rng.uniform(0.08, 0.2)) * (low + (1 - low) * cloud)


def _motion(patch: Patch, radius: float, rng: Rng) -> Patch:
    """Smeared along a line, as in a long exposure: cover and colour are the means along the path."""
    length, angle = radius * rng.uniform(0.3, 0.9), rng.uniform(0, math.pi)
    rgb, alpha = _padded(patch, math.ceil(length / 2))
    steps = max(3, math.ceil(length))
    colour, cover = np.zeros(rgb.shape, np.float32), np.zeros(alpha.shape, np.float32)
    weighted = rgb * alpha[..., None]
    for place in np.linspace(-length / 2, length / 2, steps):
        shift = round(place * math.sin(angle)), round(place * math.cos(angle))
        cover += np.roll(alpha, shift, (0, 1))
        colour += np.roll(weighted, shift, (0, 1))
    mean = np.where(cover[..., None] > 1e-3, colour / np.maximum(cover, 1e-3)[..., None], rgb)
    return np.clip(mean + 0.5, 0, 255).astype(np.uint8), cover / steps


# How often each comes, and how it changes a drawn patch of a given radius.
MATERIALS: dict[str, tuple[float, Callable[[Patch, float, Rng], Patch]]] = {
    "solid": (0.2, _solid),
    "fur": (0.2, _fur),
    "glass": (0.2, _glass),
    "smoke": (0.15, _smoke),
    "motion": (0.15, _motion),
    "strands": (0.1, _strands),
}


def _padded(patch: Patch, margin: int) -> Patch:
    """Room for what reaches beyond the drawing; the colour at its edge, the base colour, goes on."""
    rgb, alpha = patch
    return np.pad(rgb, ((margin, margin), (margin, margin), (0, 0)), mode="edge"), np.pad(alpha, margin)


def _blurred(alpha: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(alpha, sigma, mode="constant")


def _hairs(alpha: np.ndarray, length: float, count: int, curl: float, rng: Rng) -> np.ndarray:
    """float32 of the shape of `alpha`: the cover of hairs that leave its edge outwards and thin out.

    curl: how far, in radians, a hair leans off the edge's normal and bends on its way.
    """
    slope_y, slope_x = np.gradient(_blurred(alpha, 1.2))
    steep = np.hypot(slope_x, slope_y)
    rows, columns = np.nonzero((steep > 0.5 * steep.max()) & (alpha > 0.4))
    canvas = Image.new("L", (alpha.shape[1] * SUPERSAMPLE, alpha.shape[0] * SUPERSAMPLE))
    if not rows.size:
        return np.zeros_like(alpha)
    pen, comb = ImageDraw.Draw(canvas), rng.normal(0, curl / 2)
    picked = rng.integers(rows.size, size=count)
    lean, bend = comb + rng.normal(0, curl / 2, count), rng.normal(0, curl / 2, count)
    reach = length * rng.uniform(0.5, 1, count) / 3
    for i, (y, x) in enumerate(zip(rows[picked], columns[picked], strict=True)):
        angle = math.atan2(-slope_y[y, x], -slope_x[y, x]) + lean[i]
        at = ((x + 0.5) * SUPERSAMPLE, (y + 0.5) * SUPERSAMPLE)
        for width, value in ((2, 255), (1, 255), (1, 150)):
            to = (at[0] + math.cos(angle) * reach[i] * SUPERSAMPLE, at[1] + math.sin(angle) * reach[i] * SUPERSAMPLE)
            pen.line([at, to], fill=value, width=width)
            at, angle = to, angle + bend[i]
    return np.asarray(canvas.reduce(SUPERSAMPLE), np.float32) / 255
