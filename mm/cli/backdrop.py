"""What a cut-out is laid on: the colour or the picture that `mm matte --over` names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer
from PIL import Image, ImageColor

from mm.errors import MMError
from mm.images import open_image
from mm.pictures.geometry import fit

if TYPE_CHECKING:
    from mm.types import Matte


def backdrop(said: str | None, allow_urls: bool) -> Callable[[Matte], Image.Image]:
    """From a matte to the picture that is saved: with transparency where `said` is None, else RGB on what it names.

    A picture of another size is scaled to cover the matte and cropped about its middle.
    """
    if said is None:
        return lambda matte: matte.rgba()
    try:
        red, green, blue = ImageColor.getrgb(said)[:3]
    except ValueError:
        return _on_picture(said, allow_urls)
    return lambda matte: matte.over((red, green, blue))


def _on_picture(name: str, allow_urls: bool) -> Callable[[Matte], Image.Image]:
    try:
        picture = open_image(name, allow_urls=allow_urls)
    except MMError as error:
        raise typer.BadParameter(f"--over is neither a colour nor a picture: {error}") from error

    def over(matte: Matte) -> Image.Image:
        if picture.size_hw == matte.size_hw:
            return matte.over(picture)
        return matte.over(fit(picture.size_hw, matte.size_hw, "crop").apply(picture.pixels))

    return over
