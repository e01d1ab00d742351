"""From an encoded file or a Pillow image to an upright 8-bit image in sRGB, for the image gate.

The size is checked in the header, before anything is decoded, and Pillow's globals stay as the caller left
them. Conversions are linear and over the full scale of the type: 16-bit and 32-bit integer grey loses its
low byte (`>> 8`, so 65535 is white), floats run from 0 to 1, a bool is black or white. An embedded colour
profile is converted to sRGB; other colour metadata (gamma, chromaticities) is not used.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mm.errors import ImageInputError, MMError, ResourceLimitError
from mm.limits import Limits

# The only decoders that bytes from outside ever reach; importing a plugin registers its `format`.
FORMATS = tuple(
    str(plugin.format)
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)
# What Pillow's parsers and decoders raise on damaged files.
_DAMAGE = (
    SyntaxError, OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError,
    AttributeError, AssertionError, RuntimeError, struct.error, zlib.error, ImageCms.PyCMSError,
)  # fmt: skip
_OTHER_FORMATS = {
    b"%PDF": "PDF", b"%!PS": "EPS", b"8BPS": "PSD", b"<svg": "SVG", b"SIMPLE": "FITS", b"<?xml": "XML or SVG",
    b"<!DOCTYPE": "HTML", b"<html": "HTML", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\0\0\1\0": "ICO", b"PK": "ZIP",
}  # fmt: skip
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
# Pillow spreads grey of 2 or 4 bits over 0-255, but leaves the transparent grey of a PNG as it was.
_GREY_STEP = {"L;2": 85, "L;4": 17}


def decode(data: bytes, name: str, limits: Limits, notes: list[str]) -> Image.Image:
    if not data:
        raise ImageInputError(f"{name}: empty (0 bytes to read).")
    format_name = _sniff(data, name)
    try:
        return _decode_as(format_name, data, name, limits, notes)
    except ImageInputError as exc:
        # Pillow refuses a PNG whose text or profile unpacks to more than its cap; the pixels are still good.
        if format_name != "PNG" or "MAX_TEXT" not in str(exc.__cause__):
            raise
        notes[:] = ["oversized text or colour profile ignored"]
        return _decode_as(format_name, _without_text(data), name, limits, notes)


def _sniff(data: bytes, name: str) -> str:
    for format_name in FORMATS:
        accept = Image.OPEN[format_name][1]
        verdict = accept is not None and accept(data[:16])
        if verdict is True:
            return format_name
        if verdict:  # Pillow's word for a codec it was built without
            raise ImageInputError(f"{name}: this Pillow was built without {format_name}.")
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    looks = next((kind for magic, kind in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    found = f"it looks like {looks}" if looks else "its content is none of them"
    raise ImageInputError(f"{name}: expected {', '.join(FORMATS)}; {found}.")


def _decode_as(format_name: str, data: bytes, name: str, limits: Limits, notes: list[str]) -> Image.Image:
    with _damage_named(name, format_name):
        # The factory itself, not Image.open: our own check comes next, and it says what the limit is.
        image = Image.OPEN[format_name][0](io.BytesIO(data), "")
        check_size(image.width, image.height, name, limits)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiles(image, name, limits)
        if getattr(image, "is_animated", False):
            notes.append("only the first of several frames is read")
        return normalised(image, name, limits, notes)


def _check_tiles(image: TiffImagePlugin.TiffImageFile, name: str, limits: Limits) -> None:
    """A tile is decoded whole, however small the picture cut from it."""
    width, height = (image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    if width * height > limits.max_pixels:
        raise ResourceLimitError(f"{name}: TIFF tiles of {width} x {height} exceed {limits.max_pixels} pixels.")


def _without_text(data: bytes) -> bytes:
    """A PNG without its text chunks and colour profile."""
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[at : at + length + 12])
        at += length + 12
    return b"".join(kept)


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise ImageInputError(f"{name}: expected at least one pixel, got {width} x {height}.")
    if width * height > limits.max_pixels:
        raise ResourceLimitError(f"{name}: {width} x {height} is above max_pixels={limits.max_pixels}.")
    if max(width, height) > limits.max_side:
        raise ResourceLimitError(f"{name}: {width} x {height} is above max_side={limits.max_side}.")


def normalised(image: Image.Image, name: str, limits: Limits, notes: list[str]) -> Image.Image:
    """A Pillow image, lazily opened or not, as an upright L, LA, RGB or RGBA image in sRGB."""
    check_size(image.width, image.height, name, limits)
    tiles = getattr(image, "tile", [])
    if tiles and image.format not in (*FORMATS, "MPO"):
        raise ImageInputError(f"{name}: expected {', '.join(FORMATS)}; it is {image.format}.")
    with _damage_named(name, image.format or "image"):
        raw_mode = str(tiles[0][3]) if tiles else ""
        image.load()
        orientation = _orientation(image.info, notes)
        profile = image.info.get("icc_profile")
        plain = _srgb(_eight_bit_mode(image, raw_mode, notes), profile, limits, notes)
        return plain.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else plain


def _eight_bit_mode(image: Image.Image, raw_mode: str, notes: list[str]) -> Image.Image:
    """L, LA, RGB, RGBA or CMYK, 8 bits each; a transparent colour or palette entry becomes alpha."""
    key = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = Image.fromarray(eight_bits(_sixteen_bits(values) if image.mode == "I" else values, notes))
        if isinstance(key, int):
            grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return grey
    if isinstance(key, tuple) and "16" in raw_mode:
        # The key of a 16-bit RGB PNG has 16 bits, the pixels that Pillow unpacked only the upper 8.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif isinstance(key, int) and raw_mode in _GREY_STEP:
        image = image.copy()
        image.info["transparency"] = key * _GREY_STEP[raw_mode]
    if image.mode in ("P", "PA", "La", "RGBa") or (key is not None and image.mode in ("1", "L", "RGB")):
        return image.convert("RGBA")
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _srgb(image: Image.Image, profile: bytes | None, limits: Limits, notes: list[str]) -> Image.Image:
    """To sRGB by the embedded profile; one that is broken, oversized or for other channels is ignored."""
    if not profile:
        return image.convert("RGB") if image.mode == "CMYK" else image
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    try:
        if len(profile) > limits.max_icc_bytes:
            raise ValueError("oversized")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image
        grey = profile[16:20] == b"GRAY"  # the header's colour space
        base = image if image.mode == "CMYK" else image.convert("L" if grey and image.mode[0] == "L" else "RGB")
        to_srgb = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), base.mode, "RGB")
        converted = to_srgb.apply(base)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as exc:
        notes.append(f"{'oversized' if str(exc) == 'oversized' else 'unusable'} colour profile ignored")
        return image.convert("RGB") if image.mode == "CMYK" else image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _orientation(info: dict[Any, Any], notes: list[str]) -> int:
    """EXIF orientation 1-8, from EXIF or else XMP. Pillow has already turned a TIFF upright."""
    orientation = 1
    if exif := info.get("exif"):
        try:
            orientation = _exif_orientation(exif)
        except (struct.error, LookupError, TypeError, AttributeError):
            notes.append("broken EXIF ignored")
    if orientation is None or not exif:
        xmp = info.get("xmp") or b""
        found = re.search(rb'tiff:Orientation(?:="|>)(\d{1,3})', xmp.encode() if isinstance(xmp, str) else xmp)
        orientation = int(found[1]) if found else 1
    if not 1 <= orientation <= 8:
        notes.append(f"EXIF orientation {orientation} ignored: expected 1-8")
        return 1
    return orientation


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation entry of the first directory, read without Pillow's parser and its warnings."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
        if tag == _ORIENTATION_TAG:
            return struct.unpack_from(order + {3: "H", 4: "I"}[kind], tiff, entry + 8)[0]
    return None


def eight_bits(values: np.ndarray, notes: list[str]) -> np.ndarray:
    """Numbers of any accepted type -> uint8, over the full scale of the type.

    Raises:
        ValueError: the type is not accepted, or a value lies outside its scale.
    """
    kind = values.dtype
    if kind == np.uint8:
        return values
    if kind == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if kind.newbyteorder("=") == np.uint16:
        if 0 < (high := int(values.max())) < 256:
            notes.append(f"read as 16-bit, but no value is above {high}: the picture is black")
        return (values >> 8).astype(np.uint8)
    if kind.kind == "f":
        return _unit_floats(values)
    raise ValueError(f"expected uint8, bool, uint16 or floats 0-1, got {kind}.")


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    """int32 -> uint16, for grey that a file stores in 32 bits."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"expected integers 0-65535, got {low} to {high}")
    return values.astype(np.uint16)


def _unit_floats(values: np.ndarray) -> np.ndarray:
    """Floats 0-1 -> uint8, rounded. Up to half a grey level outside counts as the end of the scale."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():  # min and max carry a NaN on
        raise ValueError("every value must be finite, got NaN or infinity.")
    if low < -1 / 512 or high > 1 + 1 / 512:
        hint = " Divide by 255, or convert to uint8." if low >= 0 and high <= 256 else ""
        raise ValueError(f"expected floats 0-1, got {low:.6g} to {high:.6g}.{hint}")
    return np.rint(np.clip(values, 0, 1).astype(np.float32) * 255).astype(np.uint8)


# Pillow's errors and warnings, kept at the gate.


@contextmanager
def _damage_named(name: str, format_name: str) -> Iterator[None]:
    """Turn what Pillow raises into an error that names the image."""
    try:
        with _QUIET:
            yield
    except MMError:
        raise
    except (MemoryError, Image.DecompressionBombError) as exc:
        raise ResourceLimitError(f"{name}: this {format_name} needs more memory than is allowed.") from exc
    except _DAMAGE as exc:
        detail = str(exc)
        if not detail or len(detail) > 200 or re.search(r"0x|[/\\<>]", detail):
            detail = type(exc).__name__  # never an address or a path of this machine
        raise ImageInputError(f"{name}: truncated or damaged {format_name} ({detail}).") from exc


class _Quiet:
    """Ignore Pillow's warnings, and no others, while at least one thread is at the gate.

    `warnings.catch_warnings` alone is not safe when two threads overlap: the later one to leave would
    restore the filters that the other had set. Here the first to come sets them, the last to go restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_QUIET = _Quiet()
