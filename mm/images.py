"""The image gate: everything that takes an image takes it through `open_image`, and gets a `Picture`.

A picture is uint8[H, W, 3]: sRGB, upright by EXIF, transparency laid on one stated background, the first
frame of an animation. What a file holds is told by its content, never by its name, and its size is checked
in the header, before anything is decoded. How pixels are converted stands in `mm.pictures.pixels`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from PIL import Image

from mm.errors import ImageInputError, MMError, ResourceLimitError
from mm.limits import DEFAULT_LIMITS, Limits
from mm.pictures.fetch import fetch, is_url, printable, public_name
from mm.pictures.pixels import check_size, decode, eight_bits, normalised


@dataclass(frozen=True, eq=False)
class Picture:
    """An image past the gate. Equal and hashed by content.

    Raises:
        ImageInputError: the pixels are not uint8[H, W, 3] with at least one pixel.
    """

    pixels: np.ndarray  # uint8[H, W, 3], RGB, 0-255, upright, read-only
    notes: tuple[str, ...] = ()  # what a careful reader would want to know: broken EXIF, first of many frames
    name: str = "<array>"  # as the caller gave it

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise ImageInputError(f"expected uint8[H, W, 3], got {pixels.dtype}{list(pixels.shape)}.")
        if pixels.flags.writeable or not pixels.flags.c_contiguous:
            pixels = pixels.copy(order="C")
            pixels.flags.writeable = False
            object.__setattr__(self, "pixels", pixels)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels of the upright original."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, over mode, size and bytes: the same bytes in another shape have another digest."""
        running = hashlib.sha256(b"RGB %d %d " % self.size_hw)
        running.update(self.pixels.data)
        return running.hexdigest()

    def pil(self) -> Image.Image:
        """A Pillow image (RGB) of its own: writing to it leaves the picture as it is."""
        return Image.fromarray(self.pixels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def open_image(
    source: Any,
    *,
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
    background: tuple[int, int, int] = (255, 255, 255),
    channel_order: Literal["HWC", "CHW"] | None = None,
    name: str | None = None,
) -> Picture:
    """Read one image from a path, encoded bytes, a binary file object, a Pillow image, a NumPy array, a torch
    tensor, a `Picture` (returned as it is) or, with `allow_urls`, an http, https or data URL.

    Arrays are [H, W], [H, W, C] or [C, H, W] with C of 1, 3 (RGB) or 4 (RGBA), and hold uint8, bool, uint16
    or floats 0-1; `channel_order` is needed where both ends could be the channels, as in [3, 40, 3].
    A Pillow image of many frames gives the frame it stands at, every other source the first.
    `background` is the RGB colour under transparent pixels. `name` stands for the image in messages.

    Raises:
        ImageInputError: not readable as a picture: missing, damaged, of another format, ambiguous.
        ResourceLimitError: larger than `limits` allow.
    """
    if isinstance(source, Picture):
        return source
    if len(background) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in background):
        raise ImageInputError(f"background: expected three whole numbers 0-255, got {background!r}.")
    notes: list[str] = []
    torch = sys.modules.get("torch")  # another thread may be half way through its import
    if isinstance(source, getattr(torch, "Tensor", ())):
        name = name or "<tensor>"
        image = _array_image(_tensor_values(source, torch, name, limits), channel_order, name, limits, notes)
    elif isinstance(source, np.ndarray):
        name = name or "<array>"
        image = _array_image(source, channel_order, name, limits, notes)
    elif isinstance(source, Image.Image):
        name = name or "<image>"
        image = normalised(source, name, limits, notes)
    else:
        data, name = _read(source, limits, allow_urls, name)
        image = decode(data, name, limits, notes)
    pixels = np.array(_opaque(image, background))
    pixels.flags.writeable = False
    return Picture(pixels, tuple(notes), name)


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode not in ("LA", "RGBA"):
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, tuple(background))
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


# Sources: where bytes come from.


def _read(source: Any, limits: Limits, allow_urls: bool, name: str | None) -> tuple[bytes, str]:
    """The encoded bytes of a path, URL, bytes or file object, and the name to call them by."""
    if isinstance(source, str) and is_url(source):
        name = name or public_name(source)
        if not allow_urls:
            raise ImageInputError(f"{name}: URLs are refused unless allow_urls=True.")
        return fetch(source, limits=limits), name
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = name or printable(path)
        return _read_file(path, name, limits), name
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = name or "<bytes>"
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        _check_bytes(size, name, limits)
        return bytes(source), name
    if callable(getattr(source, "read", None)):
        given = getattr(source, "name", None)
        name = name or (printable(os.path.basename(given)) if isinstance(given, str) and given else "<file>")
        return _read_stream(source, name, limits), name
    raise ImageInputError(
        f"{name or '<image>'}: expected one image (path, bytes, file object, Pillow image, array, tensor or "
        f"URL), got {type(source).__name__}."
    )


def _read_file(path: str, name: str, limits: Limits) -> bytes:
    """A regular file whole. Anything else (directory, pipe, device) is refused without waiting on it."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_regular(os.stat(path), name, limits)
        with os.fdopen(os.open(path, flags), "rb") as file:
            _check_regular(os.fstat(file.fileno()), name, limits)  # it may have been exchanged since
            return _read_stream(file, name, limits)
    except FileNotFoundError as exc:
        raise ImageInputError(f"{name}: no such file.") from exc
    except OSError as exc:
        raise ImageInputError(f"{name}: cannot be read: {exc.strerror or 'input/output error'}.") from exc
    except ValueError as exc:
        if isinstance(exc, MMError):
            raise
        raise ImageInputError(f"{name}: not a path: it holds a NUL or an unpaired surrogate.") from exc


def _check_regular(info: os.stat_result, name: str, limits: Limits) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise ImageInputError(f"{name}: is a directory, expected an image file.")
    if not stat.S_ISREG(info.st_mode):
        raise ImageInputError(f"{name}: is a pipe, device or socket, expected an image file.")
    _check_bytes(info.st_size, name, limits)


def _read_stream(file: Any, name: str, limits: Limits) -> bytes:
    """Read to the end, never more than one byte above the limit."""
    parts, left = [], limits.max_file_bytes + 1
    while left > 0:
        try:
            part = file.read(min(left, 1 << 20))
        except (OSError, ValueError) as exc:
            raise ImageInputError(f"{name}: the file object cannot be read.") from exc
        if not isinstance(part, (bytes, bytearray)):
            raise ImageInputError(f"{name}: read() gave {type(part).__name__}; open the file in binary mode.")
        if not part:
            break
        parts.append(part)
        left -= len(part)
    _check_bytes(sum(map(len, parts)), name, limits)
    return b"".join(parts)


def _check_bytes(size: int, name: str, limits: Limits) -> None:
    if size > limits.max_file_bytes:
        raise ResourceLimitError(f"{name}: more than max_file_bytes={limits.max_file_bytes} bytes.")


# Arrays and tensors.


def _tensor_values(tensor: Any, torch: Any, name: str, limits: Limits) -> np.ndarray:
    """A torch tensor of any device as an array; gradients are left behind, half floats widened."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ImageInputError(f"{name}: expected a dense tensor with data.")
    if tensor.numel() > 4 * limits.max_pixels:
        raise ResourceLimitError(f"{name}: {list(tensor.shape)} is above max_pixels={limits.max_pixels}.")
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.dtype != torch.float64:
        values = values.float()
    return values.resolve_conj().resolve_neg().numpy()


def _array_image(
    array: np.ndarray, channel_order: str | None, name: str, limits: Limits, notes: list[str]
) -> Image.Image:
    """An array as an L, RGB or RGBA image."""
    if isinstance(array, np.ma.MaskedArray):
        raise ImageInputError(f"{name}: a masked array hides pixels; fill it first.")
    array = _channels_last(np.asarray(array), channel_order, name)
    check_size(array.shape[1], array.shape[0], name, limits)
    try:
        values = eight_bits(array, notes)
    except ValueError as exc:
        raise ImageInputError(f"{name}: {exc}") from None
    return Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values))


def _channels_last(array: np.ndarray, channel_order: str | None, name: str) -> np.ndarray:
    """[H, W], [H, W, C] or [C, H, W] -> [H, W, C]."""
    if channel_order not in (None, "HWC", "CHW"):
        raise ImageInputError(f'{name}: channel_order: expected "HWC" or "CHW", got {channel_order!r}.')
    shape = list(array.shape)
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        hint = " Pass the images of a batch one by one, as a list." if array.ndim == 4 else ""
        raise ImageInputError(f"{name}: expected [H, W], [H, W, C] or [C, H, W], got {shape}.{hint}")
    last, first = shape[2] in (1, 3, 4), shape[0] in (1, 3, 4)
    if channel_order is None and last and first:
        raise ImageInputError(f'{name}: {shape} can be read both ways; say channel_order="HWC" or "CHW".')
    if not (last if channel_order == "HWC" else first if channel_order == "CHW" else last or first):
        raise ImageInputError(f"{name}: expected 1, 3 or 4 channels ({channel_order or 'at an end'}), got {shape}.")
    return array if channel_order == "HWC" or (channel_order is None and last) else array.transpose(1, 2, 0)
