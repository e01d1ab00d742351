"""Pictures side by side, each under its title."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mm.results.draw import INK, PAPER
from mm.results.lettering import Lettering


def panels(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """RGB; the pictures are of one size."""
    width, height = parts[0][1].size
    letters = Lettering(round(min(max(math.sqrt(width * height) / 34, 11), 96)))
    gap, band = letters.line_height // 2, letters.line_height * 2
    canvas = Image.new("RGB", (len(parts) * (width + gap) - gap, height + band), PAPER)
    pen = ImageDraw.Draw(canvas)
    for place, (title, picture) in enumerate(parts):
        left = place * (width + gap)
        words = letters.shortened(letters.shown(title), width)
        pen.text((left, band // 2), words, fill=INK, font=letters.font, anchor="lm")
        canvas.paste(picture.convert("RGB"), (left, band))
    return canvas


def grey(alpha: np.ndarray) -> Image.Image:
    """float[H, W] in 0..1 as a grey picture."""
    return Image.fromarray(np.round(alpha * 255).astype(np.uint8))
