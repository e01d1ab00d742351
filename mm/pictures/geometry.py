"""How a picture became model input, and the way back for boxes, points, masks and mattes.

One value, `Geometry`, records the fit as whole numbers: the picture is resized to `resized_hw` and laid into
the input frame with its top-left corner at `offset_yx` (negative where it is cropped, positive where it is
padded). Every map below is that one linear map or its inverse, with a scale of its own for each axis, so
nothing drifts when a side was rounded. No other code of the library resizes or rescales.

Coordinates are continuous: a pixel (row i, column j) covers [i, i+1) x [j, j+1), and a box
`x0, y0, x1, y1` that covers the whole picture is `0, 0, W, H`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mm.errors import InputError, nearest

Policy = Literal["squash", "crop", "letterbox", "pad", "canvas"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]

# Up to this many times the input frame, a crop resizes the whole picture first, as the reference
# preprocessors do; beyond it (a 1 x 30000 strip) only the visible part is resized.
_WHOLE_RESIZE_FACTOR = 16


@dataclass(frozen=True)
class Geometry:
    """One fit of one picture into one input frame. Its fields survive JSON: `Geometry(**asdict(g)) == g`.

    Raises:
        InputError: a size is not positive, the policy is unknown, or no part of the picture is in the frame.
    """

    policy: str
    picture_hw: tuple[int, int]  # the upright original
    input_hw: tuple[int, int]  # what the model sees
    resized_hw: tuple[int, int]  # the whole picture after resizing, before cropping or padding
    offset_yx: tuple[int, int]  # its top-left corner in the input frame
    canvas_hw: tuple[int, int] | None = None  # what was resized, where that is more than the picture

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise InputError(_unknown("policy", self.policy, get_args(Policy)))
        for name in ("picture_hw", "input_hw", "resized_hw"):
            object.__setattr__(self, name, _whole_pair(name, getattr(self, name), least=1))
        object.__setattr__(self, "offset_yx", _whole_pair("offset_yx", self.offset_yx, least=None))
        if self.canvas_hw is not None:
            object.__setattr__(self, "canvas_hw", _whole_pair("canvas_hw", self.canvas_hw, least=1))
        for low, high in self.window_yx:
            if high <= low:
                raise InputError(f"Geometry: no part of the picture lies in the input frame: {self}.")

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Input pixels per picture pixel, for each axis."""
        whole = self.canvas_hw or self.picture_hw
        return self.resized_hw[0] / whole[0], self.resized_hw[1] / whole[1]

    @property
    def window_yx(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The part of the input frame that shows the picture: (top, bottom), (left, right), in its pixels."""
        (top, bottom), (left, right) = (
            (max(0, offset), min(frame, offset + math.ceil(side * scale - 1e-9)))
            for offset, side, scale, frame in zip(
                self.offset_yx, self.picture_hw, self.scale_yx, self.input_hw, strict=True
            )
        )
        return (top, bottom), (left, right)

    def apply(self, pixels: np.ndarray, resample: Resample = "bicubic", fill: Sequence[int] = (0, 0, 0)) -> np.ndarray:
        """The picture as model input: uint8[H, W, 3] of `picture_hw` -> uint8[h, w, 3] of `input_hw`.

        Shrinking is antialiased, as Pillow does it. Where the frame shows no picture it has the colour `fill`
        (RGB, 0-255).

        Raises:
            InputError: the pixels are not uint8[H, W, 3] of `picture_hw`, or a name or colour is not valid.
        """
        if self.canvas_hw is not None:
            raise InputError("a canvas is resized in one go with its padding; see mm.encoders.canvas")
        if pixels.dtype != np.uint8 or pixels.shape != (*self.picture_hw, 3):
            height, width = self.picture_hw
            raise InputError(f"expected uint8[{height}, {width}, 3], got {pixels.dtype}{list(pixels.shape)}.")
        if resample not in get_args(Resample):
            raise InputError(_unknown("resample", resample, get_args(Resample)))
        colour = np.asarray(fill)
        if colour.shape != (3,) or colour.dtype.kind not in "iu" or colour.min() < 0 or colour.max() > 255:
            raise InputError(f"fill: expected three whole numbers 0-255, got {fill!r}.")
        seen = self._resized_window(Image.fromarray(np.ascontiguousarray(pixels)), resample)
        if seen.shape[:2] == self.input_hw:
            return seen
        frame = np.empty((*self.input_hw, 3), np.uint8)
        frame[:] = colour.astype(np.uint8)
        (top, bottom), (left, right) = self.window_yx
        frame[top:bottom, left:right] = seen
        return frame

    def _resized_window(self, picture: Image.Image, resample: Resample) -> np.ndarray:
        """The visible part of the resized picture: uint8[bottom - top, right - left, 3]."""
        (top, bottom), (left, right) = self.window_yx
        offset_y, offset_x = self.offset_yx
        height, width = self.resized_hw
        crop = (left - offset_x, top - offset_y, right - offset_x, bottom - offset_y)
        filter_ = Image.Resampling[resample.upper()]
        if height * width <= _WHOLE_RESIZE_FACTOR * self.input_hw[0] * self.input_hw[1]:
            whole = picture
            if picture.size != (width, height):
                whole = picture.resize((width, height), filter_)
            return np.array(whole.crop(crop))
        per_x, per_y = picture.width / width, picture.height / height
        box = (crop[0] * per_x, crop[1] * per_y, crop[2] * per_x, crop[3] * per_y)
        return np.array(picture.resize((right - left, bottom - top), filter_, box=box))

    def points_to_original(self, points_xy: np.ndarray) -> np.ndarray:
        """float[n, 2] in input pixels -> float32[n, 2] in picture pixels, clipped to the picture.

        Raises:
            InputError: the shape is not [n, 2].
        """
        height, width = self.picture_hw
        scale, offset = np.array(self.scale_yx[::-1]), np.array(self.offset_yx[::-1])
        moved = (_rows("points_xy", points_xy, 2) - offset) / scale
        return np.clip(moved, 0, (width, height)).astype(np.float32)

    def points_to_input(self, points_xy: np.ndarray) -> np.ndarray:
        """float[n, 2] in picture pixels -> float32[n, 2] in input pixels, not clipped: what is cropped away
        lies outside the frame.

        Raises:
            InputError: the shape is not [n, 2].
        """
        scale, offset = np.array(self.scale_yx[::-1]), np.array(self.offset_yx[::-1])
        return (_rows("points_xy", points_xy, 2) * scale + offset).astype(np.float32)

    def boxes_to_original(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """float[n, 4] in input pixels -> float32[n, 4] in picture pixels, clipped to the picture.

        Raises:
            InputError: the shape is not [n, 4].
        """
        return self.points_to_original(_rows("boxes_xyxy", boxes_xyxy, 4).reshape(-1, 2)).reshape(-1, 4)

    def boxes_to_input(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """float[n, 4] in picture pixels -> float32[n, 4] in input pixels, not clipped.

        Raises:
            InputError: the shape is not [n, 4].
        """
        return self.points_to_input(_rows("boxes_xyxy", boxes_xyxy, 4).reshape(-1, 2)).reshape(-1, 4)

    def masks_to_original(self, masks: np.ndarray) -> np.ndarray:
        """float[K, h, w] over the input frame -> float32[K, H, W] over the picture.

        `h, w` may be any grid that covers the frame, such as a head's own stride. Bilinear, antialiased where
        it shrinks; padding never bleeds into the picture, and what the model did not see (outside a crop)
        is 0. The result takes 4·K·H·W bytes.

        Raises:
            InputError: the shape is not [K, h, w] with positive h and w, or a value is not finite.
        """
        values = _mask_stack(masks)
        weights = []
        for axis in (0, 1):
            cells = values.shape[axis + 1] / self.input_hw[axis]  # grid cells per input pixel
            step = self.scale_yx[axis] * cells
            start = self.offset_yx[axis] * cells
            (low, high), size = self.window_yx[axis], self.picture_hw[axis] * self.scale_yx[axis]
            low, high = low * cells, min(high, self.offset_yx[axis] + size) * cells
            weights.append(_axis(self.picture_hw[axis], values.shape[axis + 1], step, start, low, high))
        return weights[0] @ values @ weights[1].T

    def masks_to_input(self, masks: np.ndarray) -> np.ndarray:
        """float or bool [K, H, W] over the picture -> float32[K, h, w] over the input frame; padding is 0.

        Raises:
            InputError: the shape is not [K, H, W] of `picture_hw`, or a value is not finite.
        """
        values = _mask_stack(masks)
        if values.shape[1:] != self.picture_hw:
            raise InputError(f"masks: expected [K, H, W] of {self.picture_hw}, got {list(values.shape)}.")
        weights = []
        for axis in (0, 1):
            step = 1 / self.scale_yx[axis]
            start = -self.offset_yx[axis] * step
            size = self.picture_hw[axis]
            weights.append(_axis(self.input_hw[axis], size, step, start, 0, size))
        return weights[0] @ values @ weights[1].T


def fit(
    picture_hw: tuple[int, int],
    input_hw: tuple[int, int],
    policy: Policy,
    *,
    shortest_edge: int | None = None,
    centre: Literal["floor", "even"] = "floor",
) -> Geometry:
    """Plan how a picture is laid into the input frame.

    - `squash`: both sides to the frame's, the shape is not kept.
    - `crop`: shape kept, shortest edge to the frame's (the frame is covered), the middle is kept. With
      `shortest_edge`, the resize goes there instead (256 before a crop of 224).
    - `letterbox`: shape kept, all visible, padding shared between both sides.
    - `pad`: shape kept, all visible, padding at the bottom and on the right.
    - `canvas`: the picture is laid at the top left of a square as long as its longer side, and that is resized to
      the frame, so that both axes have the exact scale frame / longer side (OWLv2).

    `centre` says how a crop halves an odd margin: `floor` as transformers does, `even` (to the nearest even
    number) as torchvision's CenterCrop, hence open_clip and timm, do. A resized side is never below 1.

    Raises:
        InputError: a size is not positive, or a name is unknown.
    """
    picture = _whole_pair("picture_hw", picture_hw, least=1)
    frame = _whole_pair("input_hw", input_hw, least=1)
    if policy not in get_args(Policy):
        raise InputError(_unknown("policy", policy, get_args(Policy)))
    if centre not in ("floor", "even"):
        raise InputError(_unknown("centre", centre, ("floor", "even")))
    if shortest_edge is not None and (policy != "crop" or shortest_edge < 1):
        raise InputError(f'shortest_edge={shortest_edge}: a positive number, and only with policy "crop".')

    if policy == "canvas":
        longer = max(picture)
        return Geometry(policy, picture, frame, frame, (0, 0), (longer, longer))
    cover = frame if shortest_edge is None else (shortest_edge, shortest_edge)
    resized = frame if policy == "squash" else _resized(picture, cover, policy)
    margins = (resized[0] - frame[0], resized[1] - frame[1])
    if policy == "crop":
        offset = (-_half(margins[0], centre), -_half(margins[1], centre))
    elif policy == "letterbox":
        offset = (-margins[0] // 2, -margins[1] // 2)
    else:
        offset = (0, 0)
    return Geometry(policy, picture, frame, resized, offset)


def _resized(picture_hw: tuple[int, int], target_hw: tuple[int, int], policy: str) -> tuple[int, int]:
    """The size that covers the target (crop; the free side rounds down) or fits in it (to the nearest)."""
    height, width = picture_hw
    target_h, target_w = target_hw
    taller = height * target_w >= width * target_h
    if policy == "crop":
        return (height * target_w // width, target_w) if taller else (target_h, width * target_h // height)
    if taller:
        return target_h, max(1, (2 * width * target_h + height) // (2 * height))
    return max(1, (2 * height * target_w + width) // (2 * width)), target_w


def _half(margin: int, centre: str) -> int:
    """Half of what a crop cuts; a negative margin is padding, whose smaller half goes to the top and left."""
    if margin < 0:
        return -(-margin // 2)
    return round(margin / 2) if centre == "even" else margin // 2


def _axis(size_out: int, size_in: int, step: float, start: float, low: float, high: float) -> np.ndarray:
    """Bilinear weights along one axis: float32[size_out, size_in].

    Output cell i is centred at `(i + 0.5) * step + start` in input cells. Its triangle is as wide as the step
    where that is above 1 (antialiasing), takes only cells whose centre lies in [low, high), and sums to 1;
    a row whose own centre lies outside [low, high) is zero.
    """
    centres = (np.arange(size_out) + 0.5) * step + start
    cells = np.arange(size_in) + 0.5
    reach = max(1.0, step)
    distance = np.abs((centres[:, None] - cells).astype(np.float32))
    weights = np.clip(1 - distance / reach, 0, None)
    usable = (cells >= low) & (cells < high)
    if not usable.any():  # the picture is a strip narrower than a cell
        usable[min(int((low + high) / 2), size_in - 1)] = True
    weights[:, ~usable] = 0
    empty = np.flatnonzero(weights.sum(axis=1) == 0)  # rows with no usable cell in reach take the nearest
    candidates = np.flatnonzero(usable)
    nearest_cell = np.abs(centres[empty, None] - cells[candidates]).argmin(axis=1)
    weights[empty, candidates[nearest_cell]] = 1
    weights /= weights.sum(axis=1, keepdims=True)
    weights[(centres < low) | (centres >= high)] = 0
    return weights


def _rows(name: str, values: np.ndarray, columns: int) -> np.ndarray:
    """float64[n, columns]; an empty list counts as no rows."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.size == 0 and rows.ndim <= 2:
        rows = rows.reshape(0, columns)
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise InputError(f"{name}: expected [n, {columns}], got {list(rows.shape)}.")
    return rows


def _mask_stack(masks: np.ndarray) -> np.ndarray:
    values = np.asarray(masks)
    if values.ndim != 3 or 0 in values.shape[1:] or values.dtype.kind not in "biuf":
        raise InputError(f"masks: expected numbers [K, h, w], got {values.dtype}{list(values.shape)}.")
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise InputError("masks: every value must be finite.")
    return values


def _whole_pair(name: str, pair: Sequence[int], *, least: int | None) -> tuple[int, int]:
    whole = tuple(int(side) for side in pair)
    if len(whole) != 2 or whole != tuple(pair) or (least is not None and min(whole) < least):
        raise InputError(f"{name}: expected two whole numbers (height, width), got {pair!r}.")
    return whole[0], whole[1]


def _unknown(what: str, name: object, known: Sequence[str]) -> str:
    return f"{what}: expected one of {', '.join(known)}, got {name!r}.{nearest(str(name), known)}"
