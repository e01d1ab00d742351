"""The words of the drawn world, the pairs that no training scene shows, and the colours' values."""

from __future__ import annotations

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "white", "black", "brown")
KINDS = (
    "circle", "square", "triangle", "star", "diamond", "hexagon", "heart", "moon",
    "ring", "cross", "house", "tree", "car", "fish", "cup", "flower",
    "arrow", "boat", "key", "umbrella", "mushroom", "cloud", "sun", "cat",
)  # fmt: skip
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = ("one", "two", "three", "four", "five")

# Held out of all training, to measure whether colour and kind are composed or memorised.
# Every kind loses one colour, every colour two or three kinds.
HELD_OUT_PAIRS = frozenset({
    ("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "star"),
    ("purple", "diamond"), ("orange", "hexagon"), ("pink", "heart"), ("white", "moon"),
    ("black", "ring"), ("brown", "cross"), ("red", "house"), ("green", "tree"),
    ("blue", "car"), ("yellow", "fish"), ("purple", "cup"), ("orange", "flower"),
    ("pink", "arrow"), ("white", "boat"), ("black", "key"), ("brown", "umbrella"),
    ("purple", "mushroom"), ("orange", "cloud"), ("green", "sun"), ("blue", "cat"),
})  # fmt: skip

PAIRS = tuple((colour, kind) for colour in COLOURS for kind in KINDS)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
PAIR_LABELS = tuple(f"{colour} {kind}" for colour, kind in PAIRS)

# Several centres a colour: the named web colours among them, since people draw with those.
COLOUR_VALUES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (220, 40, 45), (200, 20, 30), (235, 64, 52)),
    "green": ((0, 128, 0), (0, 200, 0), (60, 170, 75), (34, 139, 34), (90, 190, 80), (0, 255, 0)),
    "blue": ((0, 0, 255), (50, 90, 215), (30, 100, 200), (65, 105, 225), (70, 150, 235), (20, 40, 160)),
    "yellow": ((255, 255, 0), (250, 215, 50), (255, 225, 0), (245, 230, 90)),
    "purple": ((128, 0, 128), (130, 60, 175), (148, 50, 200), (100, 40, 150), (155, 89, 182)),
    "orange": ((255, 165, 0), (245, 140, 35), (255, 127, 14), (250, 120, 0)),
    "pink": ((255, 192, 203), (250, 150, 185), (255, 105, 180), (245, 170, 200), (255, 130, 170)),
    "white": ((255, 255, 255), (245, 245, 245), (250, 248, 242)),
    "black": ((0, 0, 0), (25, 25, 28), (40, 40, 42)),
    "brown": ((139, 69, 19), (130, 85, 50), (110, 65, 35), (150, 95, 55), (101, 67, 33)),
}

_IRREGULAR = {"fish": "fish", "cross": "crosses"}


def plural(kind: str) -> str:
    """The plural of one of `KINDS`."""
    return _IRREGULAR.get(kind, kind + "s")


def is_held_out(colour: str, kind: str) -> bool:
    """Whether no training scene shows this colour on this kind."""
    return (colour, kind) in HELD_OUT_PAIRS
