"""The outlines of the 24 kinds, as polygons in a unit frame.

Every kind is a function `(rng) -> list[Part]`. Points lie roughly in [-1, 1] x [-1, 1], x to the right and
y down, before rotation and scaling; each call draws new proportions. Parts are painted in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # float64[n, 2]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Part:
    """One polygon of a drawing. tone: base | dark | light | white | black | wood | leaf | gold | hole."""

    points: Points
    tone: str = "base"


_UNIT_CIRCLES = {
    n: np.stack([np.cos(a := np.linspace(0, 2 * math.pi, n, endpoint=False)), np.sin(a)], 1) for n in (10, 16, 32)
}


def _oval(cx: float, cy: float, rx: float, ry: float | None = None, n: int = 32) -> Points:
    return _UNIT_CIRCLES[n] * (rx, rx if ry is None else ry) + (cx, cy)


def _rect(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def _poly(*points: tuple[float, float]) -> Points:
    return np.array(points, float)


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, n: int = 20) -> Points:
    a = np.radians(np.linspace(start, stop, n))
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], 1)


def _circle(rng: Rng) -> list[Part]:
    return [Part(_oval(0, 0, 1, rng.uniform(0.9, 1)))]


def _square(rng: Rng) -> list[Part]:
    h = rng.uniform(0.88, 1)
    if rng.random() < 0.75:
        return [Part(_rect(-0.9, -0.9 * h, 0.9, 0.9 * h))]
    r, x, y = rng.uniform(0.08, 0.25), 0.9, 0.9 * h
    corners = ((x - r, y - r, 0), (-x + r, y - r, 90), (-x + r, -y + r, 180), (x - r, -y + r, 270))
    return [Part(np.concatenate([_arc(cx, cy, r, r, a, a + 90, 5) for cx, cy, a in corners]))]


def _triangle(rng: Rng) -> list[Part]:
    apex, h = rng.uniform(-0.35, 0.35), rng.uniform(0.75, 1)
    return [Part(_poly((apex, -h), (1, h * 0.85), (-1, h * 0.85)))]


def _star(rng: Rng) -> list[Part]:
    n, inner = int(rng.choice((5, 5, 5, 6))), rng.uniform(0.38, 0.55)
    a = np.arange(2 * n) * math.pi / n - math.pi / 2
    r = np.where(np.arange(2 * n) % 2 == 0, 1.0, inner)
    return [Part(np.stack([r * np.cos(a), r * np.sin(a)], 1))]


def _diamond(rng: Rng) -> list[Part]:
    w = rng.uniform(0.55, 0.85)
    return [Part(_poly((0, -1), (w, 0), (0, 1), (-w, 0)))]


def _hexagon(rng: Rng) -> list[Part]:
    a = np.arange(6) * math.pi / 3
    return [Part(np.stack([np.cos(a), np.sin(a) * rng.uniform(0.9, 1.05)], 1))]


def _heart(rng: Rng) -> list[Part]:
    t = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    x = 16 * np.sin(t) ** 3 / 16
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    return [Part(np.stack([x, y * rng.uniform(0.9, 1.1)], 1))]


def _moon(rng: Rng) -> list[Part]:
    start = rng.uniform(48, 72)
    outer = _arc(0, 0, 1, 1, start, 360 - start, 28)
    x, y = math.cos(math.radians(start)), math.sin(math.radians(start))
    depth = rng.uniform(0.35, 0.75)
    inner = np.stack([x - depth * np.cos(u := np.linspace(-math.pi / 2, math.pi / 2, 20)), y * np.sin(u)], 1)
    return [Part(np.concatenate([outer, inner]) + (0.2, 0))]


def _ring(rng: Rng) -> list[Part]:
    ry, inner = rng.uniform(0.9, 1), rng.uniform(0.48, 0.7)
    return [Part(_oval(0, 0, 1, ry)), Part(_oval(0, 0, inner, inner * ry), "hole")]


def _cross(rng: Rng) -> list[Part]:
    w = rng.uniform(0.22, 0.4)
    pts = (
        (-w, -1),
        (w, -1),
        (w, -w),
        (1, -w),
        (1, w),
        (w, w),
        (w, 1),
        (-w, 1),
        (-w, w),
        (-1, w),
        (-1, -w),
        (-w, -w),
    )
    return [Part(_poly(*pts))]


def _house(rng: Rng) -> list[Part]:
    w, eave = rng.uniform(0.65, 0.85), rng.uniform(-0.3, 0.0)
    over = w + rng.uniform(0, 0.2)
    roof = str(rng.choice(("base", "dark", "light")))
    detail = str(rng.choice(("white", "light", "dark", "black")))
    parts = [Part(_rect(-w, eave, w, 0.95)), Part(_poly((0, -1), (over, eave), (-over, eave)), roof)]
    dw, dx = rng.uniform(0.14, 0.22), rng.uniform(-0.35, 0.35)
    parts.append(Part(_rect(dx - dw, 0.4, dx + dw, 0.95), detail))
    if rng.random() < 0.7:
        wx = dx + (0.5 if dx < 0 else -0.5)
        parts.append(Part(_rect(wx - 0.15, eave + 0.25, wx + 0.15, eave + 0.55), detail))
    return parts


def _tree(rng: Rng) -> list[Part]:
    t = rng.uniform(0.1, 0.2)
    trunk = Part(_rect(-t, 0.2, t, 1), str(rng.choice(("wood", "wood", "dark", "base"))))
    style = rng.integers(3)
    if style == 0:
        crown = [Part(_oval(0, -0.3, rng.uniform(0.6, 0.8), 0.7))]
    elif style == 1:
        crown = [Part(_poly((0, -1), (0.75, 0.5), (-0.75, 0.5)))]
        if rng.random() < 0.5:
            crown = [
                Part(_poly((0, -0.5), (0.8, 0.55), (-0.8, 0.55))),
                Part(_poly((0, -1), (0.6, 0), (-0.6, 0))),
            ]
    else:
        crown = [Part(_oval(x, y, 0.45, n=16)) for x, y in ((-0.4, -0.15), (0.4, -0.15), (0, -0.5), (0, -0.1))]
    return [trunk, *crown]


def _car(rng: Rng) -> list[Part]:
    top, x0, x1 = rng.uniform(-0.6, -0.4), rng.uniform(-0.65, -0.4), rng.uniform(0.4, 0.6)
    r = rng.uniform(0.2, 0.27)
    glass = str(rng.choice(("white", "light", "dark")))
    cabin = _poly((x0 + 0.2, top), (x1 - 0.15, top), (x1 + 0.1, 0), (x0 - 0.05, 0))
    window = _poly((x0 + 0.25, top + 0.12), (x1 - 0.2, top + 0.12), (x1 - 0.05, -0.04), (x0 + 0.12, -0.04))
    tyre = str(rng.choice(("black", "black", "dark")))
    parts = [Part(cabin), Part(window, glass), Part(_rect(-1, -0.05, 1, 0.42))]
    parts += [Part(_oval(x, 0.42, r, n=16), tyre) for x in (-0.52, 0.52)]
    if rng.random() < 0.5:
        parts += [Part(_oval(x, 0.42, r * 0.45, n=10), "light") for x in (-0.52, 0.52)]
    return parts


def _fish(rng: Rng) -> list[Part]:
    h, tail = rng.uniform(0.42, 0.62), rng.uniform(0.35, 0.55)
    parts = [Part(_poly((-0.45, 0), (-1, -tail), (-0.85, 0), (-1, tail))), Part(_oval(0.2, 0, 0.78, h))]
    if rng.random() < 0.5:
        parts.append(Part(_poly((0.3, -h * 0.9), (-0.1, -h - 0.25), (-0.15, -h * 0.8)), "dark"))
    eye = str(rng.choice(("black", "white")))
    parts.append(Part(_oval(0.62, -0.12, 0.09, n=10), eye))
    return parts


def _cup(rng: Rng) -> list[Part]:
    h, taper, r = rng.uniform(0.65, 0.9), rng.uniform(0, 0.2), rng.uniform(0.28, 0.4)
    parts = [Part(_oval(0.5, -0.05, r + 0.05)), Part(_oval(0.52, -0.05, r * 0.58), "hole")]
    parts.append(Part(_poly((-0.85, -h), (0.5, -h), (0.5 - taper, h), (-0.85 + taper, h))))
    if rng.random() < 0.5:
        parts.append(Part(_oval(-0.175, -h, 0.675, 0.16), str(rng.choice(("dark", "light")))))
    return parts


def _flower(rng: Rng) -> list[Part]:
    n, parts = int(rng.integers(5, 9)), []
    lift = 0.0
    if rng.random() < 0.5:
        lift = -0.35
        parts.append(Part(_rect(-0.06, -0.2, 0.06, 1), "leaf"))
        if rng.random() < 0.5:
            parts.append(Part(_oval(0.22, 0.6, 0.22, 0.1, n=16), "leaf"))
    scale, petal = (0.62 if lift else 1.0), rng.uniform(0.3, 0.38)
    for k in range(n):
        a = 2 * math.pi * k / n
        parts.append(Part(_oval(0.6 * math.cos(a), 0.6 * math.sin(a), petal, n=16) * scale + (0, lift)))
    heart = str(rng.choice(("gold", "white", "dark", "light")))
    parts.append(Part(_oval(0, 0, rng.uniform(0.26, 0.36), n=16) * scale + (0, lift), heart))
    return parts


def _arrow(rng: Rng) -> list[Part]:
    w, head, wing = rng.uniform(0.13, 0.26), rng.uniform(0.0, 0.35), rng.uniform(0.5, 0.75)
    return [Part(_poly((-1, -w), (head, -w), (head, -wing), (1, 0), (head, wing), (head, w), (-1, w)))]


def _boat(rng: Rng) -> list[Part]:
    deck = rng.uniform(0.3, 0.45)
    sail = str(rng.choice(("base", "white", "light")))
    parts = [Part(_rect(-0.05, -0.95, 0.05, deck), str(rng.choice(("wood", "dark", "black"))))]
    parts.append(Part(_poly((0.08, -0.95), (rng.uniform(0.6, 0.8), deck - 0.1), (0.08, deck - 0.1)), sail))
    if rng.random() < 0.6:
        parts.append(Part(_poly((-0.08, -0.75), (-0.08, deck - 0.1), (-rng.uniform(0.4, 0.6), deck - 0.1)), sail))
    parts.append(Part(_poly((-1, deck), (1, deck), (0.65, 0.95), (-0.65, 0.95))))
    return parts


def _key(rng: Rng) -> list[Part]:
    r, w = rng.uniform(0.32, 0.42), rng.uniform(0.08, 0.13)
    parts = [
        Part(_rect(-0.4, -w, 1, w)),
        Part(_oval(-0.6, 0, r)),
        Part(_oval(-0.6, 0, r * 0.5, n=16), "hole"),
    ]
    tooth = rng.uniform(0.25, 0.4)
    parts += [Part(_rect(x, 0, x + 0.14, tooth * k)) for x, k in ((0.82, 1.0), (0.54, rng.uniform(0.7, 1)))]
    return parts


def _umbrella(rng: Rng) -> list[Part]:
    wood = str(rng.choice(("wood", "black", "dark")))
    dome = [_arc(0, 0, 1, rng.uniform(0.8, 0.95), 180, 360, 24)]
    if rng.random() < 0.6:
        dome += [_arc(x, 0, 1 / 3, 0.16, 0, -180, 7) for x in (2 / 3, 0, -2 / 3)]
    parts = [Part(_rect(-0.05, -0.1, 0.05, 0.85), wood)]
    hook = np.concatenate([_arc(-0.17, 0.78, 0.22, 0.2, 0, 180, 10), _arc(-0.17, 0.78, 0.12, 0.1, 180, 0, 10)])
    parts.append(Part(hook, wood))
    parts.append(Part(np.concatenate(dome)))
    return parts


def _mushroom(rng: Rng) -> list[Part]:
    w, brim = rng.uniform(0.24, 0.36), rng.uniform(0.0, 0.15)
    stem = _poly((-w, brim), (w, brim), (w * 1.25, 0.95), (-w * 1.25, 0.95))
    parts = [Part(stem, str(rng.choice(("white", "light", "light", "base"))))]
    parts.append(Part(_arc(0, brim, rng.uniform(0.85, 1), rng.uniform(0.85, 1), 180, 360, 24)))
    if rng.random() < 0.5:
        spots = ((-0.4, -0.35, 0.14), (0.15, -0.55, 0.15), (0.5, -0.2, 0.12))
        parts += [Part(_oval(x, y + brim, r, n=10), "white") for x, y, r in spots]
    return parts


def _cloud(rng: Rng) -> list[Part]:
    r = rng.uniform(0.36, 0.48, 4)
    places = ((-0.55, 0.12, r[0] * 0.95), (-0.15, -0.2, r[1]), (0.3, -0.12, r[2]), (0.62, 0.15, r[3] * 0.85))
    return [Part(_oval(x, y, k, n=16)) for x, y, k in places] + [Part(_rect(-0.6, 0.05, 0.65, 0.5))]


def _sun(rng: Rng) -> list[Part]:
    n, r = int(rng.integers(8, 13)), rng.uniform(0.48, 0.6)
    wide = rng.uniform(0.35, 0.75) * math.pi / n
    parts = []
    thin = rng.random() < 0.4
    for k in range(n):
        a = 2 * math.pi * k / n
        if thin:
            d, s = np.array([math.cos(a), math.sin(a)]), np.array([-math.sin(a), math.cos(a)]) * 0.055
            parts.append(Part(np.array([d * (r + 0.1) + s, d + s, d - s, d * (r + 0.1) - s])))
        else:
            ends = (a - wide, r * 0.95), (a, 1.0), (a + wide, r * 0.95)
            parts.append(Part(_poly(*((q * math.cos(b), q * math.sin(b)) for b, q in ends))))
    return [*parts, Part(_oval(0, 0, r))]


def _cat(rng: Rng) -> list[Part]:
    eye = str(rng.choice(("black", "white", "leaf", "dark")))
    if rng.random() < 0.55:  # the head alone
        head, tall = 0.78, rng.uniform(0.62, 0.74)
        c, parts = 0.2, []
    else:  # sitting, with a tail
        head, tall, c = 0.46, 0.42, -0.42
        parts = [Part(_oval(0, 0.45, rng.uniform(0.4, 0.5), 0.55))]
        tail = np.concatenate([_arc(0.55, 0.5, 0.4, 0.45, 90, -30, 10), _arc(0.55, 0.5, 0.27, 0.32, -30, 90, 10)])
        parts.append(Part(tail))
    for side in (-1, 1):
        ear = _poly(
            (side * head * 0.95, c - tall * 0.25),
            (side * head * 0.85, c - tall * 1.6),
            (side * head * 0.15, c - tall * 0.85),
        )
        parts.append(Part(ear))
    parts.append(Part(_oval(0, c, head, tall)))
    parts += [Part(_oval(side * head * 0.4, c - 0.1 * tall, head * 0.13, n=10), eye) for side in (-1, 1)]
    parts.append(Part(_poly((-head * 0.1, c + 0.2 * tall), (head * 0.1, c + 0.2 * tall), (0, c + 0.36 * tall)), "dark"))
    return parts


SHAPES: dict[str, Callable[[Rng], list[Part]]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star,
    "diamond": _diamond, "hexagon": _hexagon, "heart": _heart, "moon": _moon,
    "ring": _ring, "cross": _cross, "house": _house, "tree": _tree,
    "car": _car, "fish": _fish, "cup": _cup, "flower": _flower,
    "arrow": _arrow, "boat": _boat, "key": _key, "umbrella": _umbrella,
    "mushroom": _mushroom, "cloud": _cloud, "sun": _sun, "cat": _cat,
}  # fmt: skip

# How far each kind may turn, in degrees to either side: a turned square is a diamond, a turned house lies.
TURNS: dict[str, float] = {
    "circle": 180, "triangle": 180, "star": 180, "hexagon": 180, "moon": 180, "ring": 180, "arrow": 180,
    "key": 180, "sun": 180, "square": 18, "diamond": 14, "cross": 20, "heart": 30, "flower": 25, "fish": 30,
    "umbrella": 30, "cup": 18, "house": 14, "tree": 14, "car": 18, "boat": 18, "mushroom": 20, "cloud": 14, "cat": 18,
}  # fmt: skip
