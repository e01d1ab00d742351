"""Draws one object or a whole scene, with the exact truth of what is visible.

Everything is drawn at three times its size with Pillow and reduced by box filter, so alpha is soft at edges.
A scene is a pure function of `(seed, size, pairs)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mm.errors import InputError
from mm.scenes.shapes import SHAPES, TURNS, Part, Rng
from mm.scenes.vocabulary import COLOUR_VALUES, COLOURS, HELD_OUT_PAIRS, KINDS, PAIRS, SEEN_PAIRS, TEXTURES

SUPERSAMPLE = 3
_MIN_VISIBLE = 0.5  # an object hidden further than this is left out of the scene
_UNSEEN_PAIRS = tuple(sorted(HELD_OUT_PAIRS))
_FIXED_TONES = {
    "white": (250, 250, 250), "black": (25, 25, 25), "wood": (125, 82, 45),
    "leaf": (60, 145, 65), "gold": (245, 200, 55),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One drawn thing: what it is, and where it can be seen.

    box_xyxy: float32[4], pixels, tight around the visible mask. size: small | large.
    patch: the object's own rgb uint8[h, w, 3] and alpha float32[h, w], placed at `corner_xy`.
    visible: float32[h, w], the alpha that remains after nearer objects have covered it.
    """

    kind: str
    colour: str
    texture: str
    size: str
    size_hw: tuple[int, int]
    corner_xy: tuple[int, int] = field(repr=False)
    rgb: np.ndarray = field(repr=False)
    alpha: np.ndarray = field(repr=False)
    visible: np.ndarray = field(repr=False)

    def _place(self, patch: np.ndarray) -> np.ndarray:
        canvas = np.zeros((*self.size_hw, *patch.shape[2:]), patch.dtype)
        x, y = self.corner_xy
        canvas[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        return canvas

    @cached_property
    def mask(self) -> np.ndarray:
        """bool[H, W]: the pixels this object owns in the picture."""
        return self._place(self.visible > 0.5)

    @cached_property
    def soft_alpha(self) -> np.ndarray:
        """float32[H, W] in 0..1: how much of each pixel's colour is this object's."""
        return self._place(self.visible)

    @cached_property
    def foreground(self) -> np.ndarray:
        """uint8[H, W, 3]: the object's own colour, before blending; black outside its patch."""
        return self._place(self.rgb)

    @cached_property
    def box_xyxy(self) -> np.ndarray:
        seen = self.visible > 0.5
        ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        x, y = self.corner_xy
        return np.array([x + xs[0], y + ys[0], x + xs[-1] + 1, y + ys[-1] + 1], np.float32)

    @property
    def centre_xy(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box_xyxy
        return float(x0 + x1) / 2, float(y0 + y1) / 2

    @property
    def label(self) -> str:
        """`"red car"`: colour and kind, the label the benchmarks ask for."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn picture and its truth. pixels: uint8[H, W, 3]; objects from the farthest to the nearest."""

    pixels: np.ndarray = field(repr=False)
    objects: tuple[SceneObject, ...]
    background: str
    seed: int

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def has_held_out(self) -> bool:
        return any((o.colour, o.kind) in HELD_OUT_PAIRS for o in self.objects)

    def pil(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def _mix(colour: np.ndarray, other: float, share: float) -> np.ndarray:
    return colour + (other - colour) * share


def _base_colour(name: str, rng: Rng) -> np.ndarray:
    values = COLOUR_VALUES[name]
    colour = np.array(values[rng.integers(len(values))], float)
    return np.clip(colour + rng.normal(0, 6, 3) + rng.normal(0, 5), 0, 255)


def _tone(tone: str, base: np.ndarray, rng: Rng) -> tuple[int, int, int]:
    if tone == "base":
        rgb = base
    elif tone in _FIXED_TONES:
        rgb = np.array(_FIXED_TONES[tone], float) + rng.normal(0, 8)
    elif base.max() < 70:  # black things are told apart by lighter parts
        rgb = _mix(base, 255, 0.25 if tone == "dark" else 0.55)
    elif tone == "dark":
        rgb = base * rng.uniform(0.5, 0.75)
    else:
        rgb = _mix(base, 255, rng.uniform(0.45, 0.7)) if base.min() < 225 else base * 0.82
    r, g, b = np.clip(rgb, 0, 255).astype(int).tolist()
    return r, g, b


def _pattern(texture: str, side: int, period: float, angle: float, rng: Rng) -> np.ndarray:
    """float32[side, side] in 0..1: how much of each pixel the second tone of a texture covers."""
    axis = np.arange(side, dtype=np.float32) / period
    c, s = math.cos(angle), math.sin(angle)
    u = (axis[None] * c + axis[:, None] * s + rng.random(dtype=np.float32)) % 1 - 0.5
    if texture == "striped":
        inside = rng.uniform(0.17, 0.25) - np.abs(u)
    else:
        v = (axis[:, None] * c - axis[None] * s + rng.random(dtype=np.float32)) % 1 - 0.5
        inside = rng.uniform(0.24, 0.33) - np.sqrt(u * u + v * v)
    return np.clip(inside * period + 0.5, 0, 1)


def _textured(
    low: np.ndarray, where: np.ndarray, base: np.ndarray, texture: str, radius: float, rng: Rng
) -> np.ndarray:
    """Stripes or dots over the part of `low` float32[p, p, 3] that `where` float32[p, p] says is of the base colour."""
    if base.min() > 190:
        second = base * rng.uniform(0.35, 0.7)
    elif base.max() < 80 or rng.random() < 0.6:
        second = _mix(base, 255, rng.uniform(0.7, 1.0))
    else:
        second = base * rng.uniform(0.3, 0.55)
    period = max(4.5, radius * rng.uniform(0.28, 0.5))
    share = where * _pattern(texture, low.shape[0], period, rng.uniform(0, math.pi), rng)
    return low + (second.astype(np.float32) - low) * share[..., None]


def _placed(parts: list[Part], radius: float, side: int, kind: str, rng: Rng) -> list[tuple[list, str]]:
    """The parts' polygons in the coordinates of a supersampled patch of `side` pixels."""
    turn = TURNS[kind]
    angle = math.radians(rng.uniform(-turn, turn) if turn >= 180 else np.clip(rng.normal(0, turn / 2), -turn, turn))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    squeeze = rng.uniform(0.84, 1.0, 2) if kind not in ("circle", "square", "ring") else np.ones(2)
    c, s = math.cos(angle), math.sin(angle)
    matrix = (np.diag(squeeze * (flip, 1.0)) @ np.array([[c, s], [-s, c]])) * radius * SUPERSAMPLE
    return [((part.points @ matrix + side / 2).ravel().tolist(), part.tone) for part in parts]


def _draw_parts(
    placed: list[tuple[list, str]], base: np.ndarray, side: int, radius: float, rng: Rng
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Paints the polygons in order: their colours (RGB), their cover (L), and where the base colour shows (L)."""
    fill = _tone("base", base, rng)
    rgb, alpha, own = (
        Image.new("RGB", (side, side), fill),
        Image.new("L", (side, side)),
        Image.new("L", (side, side)),
    )
    paint, cover, mark = ImageDraw.Draw(rgb), ImageDraw.Draw(alpha), ImageDraw.Draw(own)
    style = rng.choice(("none", "silhouette", "each"), p=(0.5, 0.3, 0.2))
    width = max(1, round(SUPERSAMPLE * radius * rng.uniform(0.03, 0.12)))
    ink = np.full(3, 235) if base.max() < 90 and rng.random() < 0.5 else base * rng.choice((0.0, 0.25, 0.5))
    line = tuple(ink.astype(int).tolist())

    def stroke(xy: list, w: int) -> None:
        joint = "curve" if len(xy) <= 24 else None  # rounds have no corners to fill
        for brush, value in ((paint, line), (cover, 255), (mark, 0)):
            brush.line(xy + xy[:4], fill=value, width=w, joint=joint)

    if style == "silhouette":
        for xy, tone in placed:
            if tone != "hole":
                stroke(xy, 2 * width)
    for xy, tone in placed:
        if tone == "hole":
            cover.polygon(xy, fill=0)
        else:
            paint.polygon(xy, fill=fill if tone == "base" else _tone(tone, base, rng))
            cover.polygon(xy, fill=255)
            mark.polygon(xy, fill=255 if tone == "base" else 0)
        if style == "each" or (style == "silhouette" and tone == "hole"):
            stroke(xy, width)
    return rgb, alpha, own


def draw_object(kind: str, colour: str, texture: str, radius: float, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """One object alone: rgb uint8[p, p, 3] and alpha float32[p, p], p about 2.8 * radius pixels."""
    p = 2 * math.ceil(radius * 1.4) + 2
    base = _base_colour(colour, rng)
    placed = _placed(SHAPES[kind](rng), radius, p * SUPERSAMPLE, kind, rng)
    rgb, alpha, own = (image.reduce(SUPERSAMPLE) for image in _draw_parts(placed, base, p * SUPERSAMPLE, radius, rng))
    low = np.asarray(rgb, np.float32)
    if texture != "plain":
        low = _textured(low, np.asarray(own, np.float32) / 255, base, texture, radius, rng)
    if rng.random() < 0.35:  # light from one side
        a, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.22)
        axis = np.linspace(-1, 1, p, dtype=np.float32)
        low = low * (1 + depth * (axis[None] * math.cos(a) + axis[:, None] * math.sin(a)))[..., None]
    return np.clip(low, 0, 255).astype(np.uint8), np.asarray(alpha, np.float32) / 255


Draw = Callable[[str, str, str, float, Rng], tuple[np.ndarray, np.ndarray]]  # as `draw_object`


def _background(colour: str, w: int, h: int, rng: Rng) -> np.ndarray:
    """float32[h, w, 3]: flat, graded, faintly striped, or cloudy."""
    base = _base_colour(colour, rng).astype(np.float32)
    style, depth = rng.random(), rng.uniform(0.05, 0.28)
    if style < 0.45:
        return np.broadcast_to(base, (h, w, 3)).copy()
    if style < 0.7:
        a = rng.uniform(0, 2 * math.pi)
        x, y = np.linspace(-0.5, 0.5, w, dtype=np.float32), np.linspace(-0.5, 0.5, h, dtype=np.float32)
        field_ = x[None] * math.cos(a) + y[:, None] * math.sin(a) + 0.5
    elif style < 0.8:
        a, period = rng.uniform(0, math.pi), min(w, h) * rng.uniform(0.06, 0.2)
        u = (np.arange(w)[None] * math.cos(a) + np.arange(h)[:, None] * math.sin(a)) / period
        field_, depth = (u % 1 < 0.5).astype(np.float32), depth * 0.4
    else:
        coarse = Image.fromarray(rng.random((int(rng.integers(3, 8)),) * 2).astype(np.float32))
        field_ = np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))
    towards = 255.0 if base.max() < 110 or (rng.random() < 0.5 and base.min() < 200) else 0.0
    share = depth * (0.5 if towards == 0 else 1.0)
    return base + (towards - base) * (share * field_)[..., None].astype(np.float32)


def _specs(rng: Rng, background: str, pairs: str) -> list[tuple[str, str, str]]:
    """What to draw, (texture, colour, kind) each: some things come several times, five at most."""
    pool = SEEN_PAIRS if pairs in ("seen", "unseen") else PAIRS
    wanted, specs = int(rng.choice(6, p=(0.16, 0.2, 0.2, 0.18, 0.14, 0.12))) + 1, []
    while len(specs) < wanted:
        if specs and rng.random() < 0.3:
            again = specs[rng.integers(len(specs))]
            if specs.count(again) < 5:
                specs.append(again)
            continue
        forced = pairs == "unseen" and not specs
        candidates = _UNSEEN_PAIRS if forced else pool
        colour, kind = candidates[rng.integers(len(candidates))]
        if colour != background:
            specs.append((str(TEXTURES[rng.choice(3, p=(0.6, 0.2, 0.2))]), colour, kind))
    return specs


def _places(count: int, w: int, h: int, rng: Rng) -> list[tuple[float, float, float, str]]:
    """(x, y, radius, size word) for `count` objects that overlap only in part."""
    short, placed = min(w, h), []
    for _ in range(count):
        large = rng.random() < (0.6 if count <= 3 else 0.35)
        radius = short * (rng.uniform(0.19, 0.3 if count <= 3 else 0.24) if large else rng.uniform(0.095, 0.15))
        closeness = 0.62 if rng.random() < 0.3 else 0.95
        for attempt in range(40):
            x, y = (
                rng.uniform(radius * 0.85, w - radius * 0.85),
                rng.uniform(radius * 0.85, h - radius * 0.85),
            )
            if all(math.hypot(x - a, y - b) > closeness * (radius + r) for a, b, r, _ in placed):
                placed.append((x, y, radius, "large" if large else "small"))
                break
            if attempt == 20 and large:
                large, radius = False, short * rng.uniform(0.1, 0.14)
    return placed


def _draw_all(specs, places, w: int, h: int, rng: Rng, draw: Draw = draw_object) -> list[SceneObject]:
    objects = []
    for (texture, colour, kind), (x, y, radius, size) in zip(specs, places, strict=False):
        rgb, alpha = draw(kind, colour, texture, radius, rng)
        x0, y0 = round(x - rgb.shape[1] / 2), round(y - rgb.shape[0] / 2)
        left, top = max(0, -x0), max(0, -y0)
        right, bottom = min(rgb.shape[1], w - x0), min(rgb.shape[0], h - y0)
        rgb, alpha = rgb[top:bottom, left:right], alpha[top:bottom, left:right]
        objects.append(SceneObject(kind, colour, texture, size, (h, w), (x0 + left, y0 + top), rgb, alpha, alpha))
    return objects


def _occlude(objects: list[SceneObject], w: int, h: int) -> list[SceneObject]:
    """Walks from the nearest to the farthest, leaving out what is mostly hidden."""
    free, kept = np.ones((h, w), np.float32), []
    for thing in reversed(objects):
        x, y = thing.corner_xy
        window = free[y : y + thing.alpha.shape[0], x : x + thing.alpha.shape[1]]
        visible = thing.alpha * window
        whole = (thing.alpha > 0.5).sum()
        if whole >= 12 and (visible > 0.5).sum() >= _MIN_VISIBLE * whole:
            window *= 1 - thing.alpha
            kept.append(replace(thing, visible=visible))
    return kept[::-1]


def _compose(canvas: np.ndarray, objects: list[SceneObject]) -> None:
    """Blends the objects into `canvas` float32[h, w, 3], in place, the farthest first."""
    for thing in objects:
        x, y = thing.corner_xy
        window = canvas[y : y + thing.alpha.shape[0], x : x + thing.alpha.shape[1]]
        window += (thing.rgb - window) * thing.alpha[..., None]


def _weather(pixels: np.ndarray, rng: Rng) -> np.ndarray:
    """What a camera or a scan adds: brightness, blur, noise."""
    if rng.random() < 0.25:
        pixels = (pixels - 128) * rng.uniform(0.88, 1.08) + 128 + rng.uniform(-10, 10)
    if rng.random() < 0.3:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * rng.uniform(1, 7)
    out = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        radius = rng.uniform(0.3, 0.9) * min(out.shape[:2]) / 128
        out = np.asarray(Image.fromarray(out).filter(ImageFilter.GaussianBlur(radius)))
    return out


def render_scene(
    seed: int,
    size: int | tuple[int, int] = 128,
    *,
    pairs: str = "seen",
    draw: Draw = draw_object,
    weather: bool = True,
    most: int | None = None,
) -> Scene:
    """Draws the scene of this seed.

    size: side, or (width, height), in pixels; from 32 up.
    pairs: which colour-kind pairs may appear: `seen` (all but the held-out ones), `all`, or `unseen`
    (the first object is of a held-out pair, the others are seen ones).
    draw: what draws each object. weather: whether the finished picture may be dimmed, blurred or noisy.
    most: no more things than so many.
    """
    w, h = (size, size) if isinstance(size, int) else size
    if min(w, h) < 32:
        raise InputError(f"a scene needs at least 32 x 32 pixels, got {w} x {h}")
    if pairs not in ("seen", "all", "unseen"):
        raise InputError(f'pairs must be "seen", "all" or "unseen", got {pairs!r}')
    rng = np.random.default_rng((seed, ("seen", "all", "unseen").index(pairs)))
    background = "white" if rng.random() < 0.25 else COLOURS[rng.integers(len(COLOURS))]
    objects: list[SceneObject] = []
    while not objects or (pairs == "unseen" and not any((o.colour, o.kind) in HELD_OUT_PAIRS for o in objects)):
        specs = _specs(rng, background, pairs)[:most]
        order = rng.permutation(len(specs))
        places = _places(len(specs), w, h, rng)
        objects = _occlude(_draw_all([specs[i] for i in order], places, w, h, rng, draw), w, h)
    canvas = _background(background, w, h, rng)
    _compose(canvas, objects)
    pixels = _weather(canvas, rng) if weather else np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return Scene(pixels, tuple(objects), background, seed)


def render_single(seed: int, kind: str, colour: str, size: int = 128, *, background: str | None = None) -> Scene:
    """One plain or textured object about the middle of a square picture: the classification benchmark."""
    rng = np.random.default_rng((seed, KINDS.index(kind), COLOURS.index(colour)))
    others = [c for c in COLOURS if c != colour]
    ground = background or ("white" if colour != "white" and rng.random() < 0.4 else others[rng.integers(len(others))])
    texture = str(TEXTURES[rng.choice(3, p=(0.7, 0.15, 0.15))])
    radius = size * rng.uniform(0.2, 0.34)
    x, y = rng.uniform(radius, size - radius, 2)
    things = _draw_all([(texture, colour, kind)], [(x, y, radius, "large")], size, size, rng)
    canvas = _background(ground, size, size, rng)
    _compose(canvas, things)
    return Scene(_weather(canvas, rng), tuple(things), ground, seed)
