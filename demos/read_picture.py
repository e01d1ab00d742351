"""Draws demos/images/drawing_read.png: what `tiny` reads in demos/images/drawing.png."""

from __future__ import annotations

from pathlib import Path

import mm

IMAGES = Path(__file__).parent / "images"
LABELS = ("yellow sun", "blue house", "purple umbrella", "red car", "orange fish", "black cat")


def main() -> None:
    encoded = mm.encode(IMAGES / "drawing.png")
    boxes = mm.detect(encoded, LABELS).plot(IMAGES / "drawing.png")
    mm.caption(encoded).plot(boxes).save(IMAGES / "drawing_read.png", optimize=True)


if __name__ == "__main__":
    main()
