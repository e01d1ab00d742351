"""Draws demos/images/drawing.png with a few lines of Pillow: not by the renderer that `tiny` was trained on."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

INK = (30, 30, 30)


def draw() -> Image.Image:
    """Six things on white paper, 640 x 400, drawn at twice the size for smooth edges."""
    picture = Image.new("RGB", (1280, 800), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    _sun(pen, 180, 170)
    _house(pen, 430, 90)
    _umbrella(pen, 1040, 200)
    _car(pen, 90, 510)
    _fish(pen, 620, 610)
    _cat(pen, 1050, 590)
    return picture.resize((640, 400), Image.Resampling.LANCZOS)


def _sun(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    for k in range(10):
        a = k * math.pi / 5
        start, end = (
            (x + 95 * math.cos(a), y + 95 * math.sin(a)),
            (x + 140 * math.cos(a), y + 140 * math.sin(a)),
        )
        pen.line([start, end], fill=(255, 215, 0), width=14)
    pen.ellipse([x - 80, y - 80, x + 80, y + 80], fill=(255, 215, 0))


def _house(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.rectangle([x, y + 120, x + 240, y + 300], fill=(40, 90, 220), outline=INK, width=5)
    pen.polygon([(x - 25, y + 120), (x + 120, y), (x + 265, y + 120)], fill=(30, 70, 180), outline=INK, width=5)
    pen.rectangle([x + 95, y + 200, x + 145, y + 300], fill=(255, 255, 255), outline=INK, width=5)
    pen.rectangle([x + 175, y + 160, x + 215, y + 200], fill=(255, 255, 255), outline=INK, width=5)


def _umbrella(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.line([(x, y), (x, y + 170)], fill=(120, 80, 40), width=12)
    pen.arc([x - 50, y + 140, x + 6, y + 200], 0, 180, fill=(120, 80, 40), width=12)
    pen.pieslice([x - 150, y - 130, x + 150, y + 130], 180, 360, fill=(128, 0, 128))


def _car(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.polygon([(x + 75, y + 80), (x + 115, y), (x + 245, y), (x + 290, y + 80)], fill=(225, 30, 30))
    pen.polygon([(x + 105, y + 75), (x + 130, y + 18), (x + 232, y + 18), (x + 262, y + 75)], fill=(235, 240, 245))
    pen.rounded_rectangle([x, y + 75, x + 360, y + 155], 25, fill=(225, 30, 30))
    for wheel in (x + 85, x + 275):
        pen.ellipse([wheel - 42, y + 112, wheel + 42, y + 196], fill=INK)
        pen.ellipse([wheel - 16, y + 138, wheel + 16, y + 170], fill=(200, 200, 200))


def _fish(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.polygon([(x + 40, y + 55), (x - 45, y - 5), (x - 45, y + 115)], fill=(255, 140, 0))
    pen.ellipse([x, y, x + 215, y + 110], fill=(255, 140, 0))
    pen.ellipse([x + 160, y + 32, x + 180, y + 52], fill=INK)


def _cat(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    for side in (-1, 1):
        pen.polygon([(x + side * 90, y - 10), (x + side * 80, y - 120), (x + side * 15, y - 62)], fill=INK)
    pen.ellipse([x - 95, y - 75, x + 95, y + 85], fill=INK)
    for side in (-1, 1):
        pen.ellipse([x + side * 40 - 14, y - 22, x + side * 40 + 14, y + 6], fill=(250, 250, 250))
    pen.polygon([(x - 12, y + 22), (x + 12, y + 22), (x, y + 38)], fill=(235, 150, 170))


if __name__ == "__main__":
    draw().save(Path(__file__).parent / "images" / "drawing.png", optimize=True)
