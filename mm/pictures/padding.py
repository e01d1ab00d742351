"""Pictures padded to a square before they are resized, as the authors of LLaVA prepare them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mm.encoders.preprocess import Preprocessing
from mm.pictures.geometry import Geometry, fit


@dataclass(frozen=True)
class SquarePreprocessing(Preprocessing):
    """The picture in the middle of a square of colour `fill`, and that resized to `input_hw`."""

    def geometry(self, picture_hw: tuple[int, int]) -> Geometry:
        """Where the picture lies in the input, to the nearest pixel of the input."""
        return fit(picture_hw, self.input_hw, "letterbox")

    def pixels(self, picture: np.ndarray) -> Tensor:
        height, width = picture.shape[:2]
        side = max(height, width)
        square = np.empty((side, side, 3), np.uint8)
        square[:] = np.array(self.fill, np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = picture
        return self._within.pixels(square)

    @property
    def _within(self) -> Preprocessing:
        """How the square itself is resized."""
        return Preprocessing(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Preprocessing)})

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"pad": "square"}


def squared(plain: Preprocessing) -> SquarePreprocessing:
    """The same, after padding to a square with the mean colour (LLaVA-1.5's `expand2square`)."""
    red, green, blue = (int(m * 255) for m in plain.mean)
    values: dict[str, Any] = {field.name: getattr(plain, field.name) for field in dataclasses.fields(Preprocessing)}
    values["fill"] = (red, green, blue)
    return SquarePreprocessing(**values)
