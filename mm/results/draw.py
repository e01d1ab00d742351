"""Results drawn into pictures with Pillow: boxes with tags, masks, captions, bars and mattes.

Every function takes the picture as anything that `mm.images.open_image` takes, leaves it as it is, and
returns a new RGB `PIL.Image`. A label has the same colour in every picture.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from mm.errors import InputError
from mm.images import Picture, open_image
from mm.results.base import Colors
from mm.results.lettering import Lettering

if TYPE_CHECKING:
    from mm.types import Caption, Classification, Detections, Matte, Segmentation

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
PAPER, INK, FAINT = (250, 250, 247), (28, 28, 30), (112, 112, 116)
_MASK_OPACITY = 0.45
_COLOR_START = 19_819  # Chosen so that car, tree, house, person, dog, cat, boat … differ by 30 degrees of hue.
_MOST_LINES = 200  # of a caption; more would make a picture of any height
_TONES = ((0.82, 0.95), (0.95, 0.72), (0.5, 1.0))  # saturation and value


def color_of(label: str) -> Color:
    """The colour that `label` has in every picture: one of 24 hues in one of 3 tones, by a checksum."""
    number = zlib.crc32(label.encode("utf-8", "surrogatepass"), _COLOR_START)
    saturation, value = _TONES[number // 24 % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(number % 24 / 24, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color_on(color: Color) -> Color:
    """Black or white, whichever stands out more (relative luminance as in WCAG 2)."""
    linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in np.array(color) / 255]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if luminance > 0.179 else WHITE


def open_for(image: Any, result: Any) -> Picture:
    """The picture behind `image`.

    Raises:
        InputError: it has not the size of the result.
    """
    picture = open_image(image)
    if picture.size_hw != result.size_hw:
        expected, got = ("{} x {}".format(*size) for size in (result.size_hw, picture.size_hw))
        name = type(result).__name__
        raise InputError(f"image: expected the picture of the {name}, {expected} (height x width), got {got}.")
    return picture


def draw_detections(
    image: Any, detections: Detections, *, colors: Colors | None = None, font: Any = None
) -> Image.Image:
    """Boxes, the best on top, each with a tag that says label and score."""
    canvas = open_for(image, detections).pil()
    sheet = _Sheet(canvas, colors, font)
    best_first = np.argsort(-detections.scores, kind="stable")
    for place in best_first[::-1]:
        sheet.box(detections.boxes_xyxy[place].tolist(), detections.labels[place])
    for place in best_first:
        left, top, right, bottom = (round(side) for side in detections.boxes_xyxy[place].tolist())
        words = f"{detections.labels[place]}", f" {detections.scores[place]:.2f}"
        width, height = sheet.tag_size(*words)
        outside = [(left, top - height), (left, bottom), (right - width, top - height), (right, top)]
        inside = [(left, top), (left, bottom - height), (right - width, bottom - height)]
        sheet.tag(*words, detections.labels[place], outside[:1] + inside[:1] + outside[1:] + inside[1:])
    return canvas


def draw_segmentation(
    image: Any, segmentation: Segmentation, *, colors: Colors | None = None, font: Any = None
) -> Image.Image:
    """Translucent masks with a contour, small ones over large ones, and a tag on each that is not empty."""
    pixels = open_for(image, segmentation).pixels.copy()
    order = np.argsort(-segmentation.masks.sum(axis=(1, 2)), kind="stable")
    for place in order:
        _blend(pixels, segmentation.masks[place], _color(segmentation.labels[place], colors))
    canvas = Image.fromarray(pixels)
    sheet = _Sheet(canvas, colors, font)
    for place in order[::-1]:
        mask, label = segmentation.masks[place], segmentation.labels[place]
        if mask.any():
            x, y = _middle(mask)
            width, height = sheet.tag_size(label, "")
            sheet.tag(label, "", label, [(x - width // 2, y - height // 2)])
    return canvas


def draw_caption(image: Any, caption: Caption, *, font: Any = None) -> Image.Image:
    """The picture over a band with the prompt, if there was one, and the text."""
    picture = open_image(image).pil()
    letters = Lettering(_letter_size(picture.size), font)
    width, margin = _band_width(picture.width, letters), letters.line_height // 2
    lines: list[tuple[str, Color]] = []
    for words, color in ((caption.prompt or "", FAINT), (caption.text, INK)):
        if words:
            wrapped = letters.wrapped(words, width - 2 * margin, most=_MOST_LINES)
            lines += [(line, color) for line in wrapped]
    step = round(letters.line_height * 1.15)
    canvas, top = _with_band(picture, width, len(lines) * step + 2 * margin if lines else 0)
    pen = ImageDraw.Draw(canvas)
    for row, (line, color) in enumerate(lines):
        pen.text((margin, top + margin + row * step), line, fill=color, font=letters.font)
    return canvas


def draw_classification(
    image: Any,
    classification: Classification,
    *,
    best: int = 5,
    colors: Colors | None = None,
    font: Any = None,
) -> Image.Image:
    """The picture over a list of bars for the `best` labels, best first.

    A full bar is 1, or the largest score where one is larger; a score below 0 has no bar.
    """
    picture = open_image(image).pil()
    shown = classification.top(best)
    letters = Lettering(_letter_size(picture.size), font)
    width, margin = _band_width(picture.width, letters), letters.line_height // 2
    step = round(letters.line_height * 1.5)
    canvas, top = _with_band(picture, width, len(shown) * step + 2 * margin if len(shown) else 0)
    names = [letters.shown(label) for label in shown.labels]
    numbers = [f"{score:.2f}" for score in shown.scores]
    name_width = min(max(map(letters.width, names), default=0), width * 2 // 5)
    number_width = max(map(letters.width, numbers), default=0)
    left, right = 2 * margin + name_width, width - 2 * margin - number_width
    full = max(1.0, *shown.scores.tolist()) if len(shown) else 1.0
    pen = ImageDraw.Draw(canvas)
    for row, (name, number) in enumerate(zip(names, numbers, strict=True)):
        y = top + margin + row * step
        line = y + step // 2
        pen.text((margin, line), letters.shortened(name, name_width), fill=INK, font=letters.font, anchor="lm")
        pen.text((width - margin, line), number, fill=INK, font=letters.font, anchor="rm")
        bar = (left, y + step // 5, right, y + step - step // 5)
        pen.rectangle(bar, fill=(228, 228, 224))
        length = round((right - left) * max(0.0, float(shown.scores[row])) / full)
        if length > 0:
            pen.rectangle((left, bar[1], left + length, bar[3]), fill=_color(shown.labels[row], colors))
    return canvas


def checkerboard(size_hw: tuple[int, int]) -> np.ndarray:
    """uint8[H, W, 3]: light grey squares, about 24 along the longer side."""
    side = max(2, round(max(size_hw) / 24))
    rows, columns = (np.arange(length) // side % 2 for length in size_hw)
    grey = np.where(rows[:, None] ^ columns[None], 204, 244).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def backdrop(background: Any, matte: Matte) -> np.ndarray:
    """uint8[H, W, 3] of the size of `matte`: a colour (r, g, b), or a picture of that size."""
    if isinstance(background, (tuple, list)):
        return np.broadcast_to(np.array(_checked(background), np.uint8), (*matte.size_hw, 3))
    return open_for(background, matte).pixels


def _checked(color: Sequence[int]) -> Color:
    whole = [c for c in color if isinstance(c, (int, np.integer)) and not isinstance(c, bool) and 0 <= c <= 255]
    if len(color) != 3 or len(whole) != 3:
        raise InputError(f"colour: expected (r, g, b), each from 0 to 255, got {color!r}.")
    return int(whole[0]), int(whole[1]), int(whole[2])


def _color(label: str, colors: Colors | None) -> Color:
    return _checked(colors[label]) if colors and label in colors else color_of(label)


def _letter_size(size: tuple[int, int]) -> int:
    """The height of letters in pixels for a picture of `size`: legible, and small beside what it shows."""
    return round(min(max(math.sqrt(size[0] * size[1]) / 34, 11), 96))


def _band_width(picture_width: int, letters: Lettering) -> int:
    """A band under a narrow picture is wider than the picture, so that words have room."""
    return max(picture_width, letters.line_height * 16)


def _with_band(picture: Image.Image, width: int, height: int) -> tuple[Image.Image, int]:
    """`picture` in the middle above an empty band, and where the band begins."""
    if not height:
        return picture, picture.height
    canvas = Image.new("RGB", (width, picture.height + height), PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    return canvas, picture.height


def _blend(pixels: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Lays a translucent `mask` with a contour on `pixels`, in place."""
    if not mask.any():
        return
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    width = _line_width(mask.shape[1], mask.shape[0])
    window = tuple(slice(max(run[0] - 1, 0), run[-1] + 2) for run in (rows, columns))
    pixels, mask = pixels[window], mask[window]
    tint = np.array(color, np.float32) * _MASK_OPACITY
    pixels[mask] = np.round(pixels[mask] * np.float32(1 - _MASK_OPACITY) + tint).astype(np.uint8)
    pixels[mask & _grown(~mask, width)] = color
    pixels[_grown(mask, 1) & ~mask] = text_color_on(color)


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """`mask` with all that is at most `radius` pixels away, along rows and columns."""
    for axis in (0, 1):
        grown = np.moveaxis(mask.copy(), axis, 0)
        lines = np.moveaxis(mask, axis, 0)
        for step in range(1, radius + 1):
            grown[step:] |= lines[:-step]
            grown[:-step] |= lines[step:]
        mask = np.moveaxis(grown, 0, axis)
    return mask


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of `mask` that is nearest to its centre of gravity."""
    ys, xs = np.nonzero(mask)
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return int(xs[nearest]), int(ys[nearest])


def _line_width(width: int, height: int) -> int:
    return max(2, round(math.sqrt(width * height) / 200))


class _Sheet:
    """A picture being drawn on, and where its tags already are."""

    def __init__(self, canvas: Image.Image, colors: Colors | None, font: Any) -> None:
        self.pen = ImageDraw.Draw(canvas)
        self.width, self.height = canvas.size
        self.line = _line_width(*canvas.size)
        self.letters = Lettering(_letter_size(canvas.size), font)
        self.pad = max(2, self.letters.line_height // 6)
        self.colors = colors
        self.taken: list[Rectangle] = []

    def box(self, box_xyxy: Sequence[float], label: str) -> None:
        """A line along the edges, with a black or white rim so that it shows on any ground."""
        left, top, right, bottom = (round(side) for side in box_xyxy)
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        color = _color(label, self.colors)
        rim = (left - 1, top - 1, right + 1, bottom + 1)
        self.pen.rectangle(rim, outline=text_color_on(color))
        self.pen.rectangle((left, top, right, bottom), outline=color, width=self.line)

    def tag_size(self, name: str, number: str) -> tuple[int, int]:
        words = self._words(name, number)
        return self.letters.width(words) + 2 * self.pad, self.letters.line_height + self.pad

    def tag(self, name: str, number: str, label: str, wishes: list[tuple[int, int]]) -> None:
        """Filled, at the first of `wishes` (left, top) that is free, or as near to it as there is room."""
        width, height = self.tag_size(name, number)
        left, top = self._free(width, height, wishes)
        color = _color(label, self.colors)
        edges = (left, top, left + width - 1, top + height - 1)
        self.pen.rectangle(edges, fill=color)
        words, middle = self._words(name, number), top + height // 2
        ink = text_color_on(color)
        self.pen.text((left + self.pad, middle), words, fill=ink, font=self.letters.font, anchor="lm")
        self.taken.append((left, top, left + width, top + height))

    def _words(self, name: str, number: str) -> str:
        room = self.width - 2 * self.pad - self.letters.width(number)
        return self.letters.shortened(self.letters.shown(name), max(room, 0)) + number

    def _free(self, width: int, height: int, wishes: list[tuple[int, int]]) -> tuple[int, int]:
        most_left, most_top = max(self.width - width, 0), max(self.height - height, 0)
        first_left, first_top = wishes[0]
        tops = [first_top + sign * row * height for row in range(1, 40) for sign in (1, -1)]
        lefts = [first_left, first_left - width, first_left + width, 0, most_left]
        steps = sorted(
            ((left, top) for top in [first_top, *tops] for left in lefts),
            key=lambda spot: abs(spot[0] - first_left) + abs(spot[1] - first_top),
        )
        spots = np.array(wishes + steps)
        spots = np.clip(spots, 0, (most_left, most_top))
        if not self.taken:
            return int(spots[0, 0]), int(spots[0, 1])
        taken = np.array(self.taken)
        across = np.minimum(spots[:, None, 0] + width, taken[:, 2]) - np.maximum(spots[:, None, 0], taken[:, 0])
        down = np.minimum(spots[:, None, 1] + height, taken[:, 3]) - np.maximum(spots[:, None, 1], taken[:, 1])
        covered = (np.clip(across, 0, None) * np.clip(down, 0, None)).sum(axis=1)
        best = int(np.argmin(covered))  # The first among equals: a free spot wherever there is one.
        return int(spots[best, 0]), int(spots[best, 1])
