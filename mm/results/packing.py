"""Arrays as JSON and back: dense arrays as deflated bytes, masks as COCO run lengths.

What is read is checked before it is decoded: a few bytes of JSON can declare a mask of any size.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mm.errors import InputError, ResourceLimitError, nearest
from mm.limits import DEFAULT_LIMITS, Limits
from mm.results.fields import bools, size, text, whole, wrong

# All masks of one result together may hold this many times the pixels of the largest picture allowed.
_MASKS_PER_PICTURE = 16


def record(what: str, value: Any, known: Iterable[str]) -> dict[str, Any]:
    """`value`, a mapping read from JSON, as a dictionary with exactly the keys `known`."""
    if not isinstance(value, Mapping):
        wrong(what, "a dictionary", type(value).__name__)
    known = list(known)
    for key in value:
        if key not in known:
            raise InputError(f"{what}: no field is called {key!r}.{nearest(str(key), known)}")
    if missing := [key for key in known if key not in value]:
        wrong(what, f"the fields {', '.join(known)}", f"none called {', '.join(missing)}")
    return dict(value)


def pack(array: np.ndarray) -> dict[str, Any]:
    """A dense array as JSON: its dtype, its shape, and its little-endian bytes deflated in base64."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    packed = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "deflated": packed}


def unpack(field: str, value: Any, dtypes: tuple[str, ...], *, max_bytes: int) -> np.ndarray:
    """The array of `pack`. Its declared size is checked before anything is inflated, and then kept to."""
    packed = record(field, value, ("dtype", "shape", "deflated"))
    if packed["dtype"] not in dtypes:
        wrong(f"{field}.dtype", " or ".join(dtypes), repr(packed["dtype"]))
    if not isinstance(packed["shape"], (list, tuple)):
        wrong(f"{field}.shape", "a list of whole numbers", repr(packed["shape"]))
    dtype = np.dtype(packed["dtype"]).newbyteorder("<")
    shape = [whole(f"{field}.shape", side) for side in packed["shape"]]
    count = dtype.itemsize
    for side in shape:
        count *= side
    if count > max_bytes:
        raise ResourceLimitError(f"{field}: expected at most {max_bytes} bytes, got a shape of {count}.")
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(base64.b64decode(text(field, packed["deflated"]), validate=True), count + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InputError(f"{field}: the packed bytes are damaged ({error}).") from error
    if len(raw) != count or not inflate.eof or inflate.unused_data:
        got = "more" if len(raw) > count or inflate.unused_data else f"{len(raw)} and no end"
        wrong(field, f"{count} bytes for the shape {shape}", got)
    return np.frombuffer(raw, dtype).reshape(shape).astype(packed["dtype"])


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """bool[H, W] as a COCO compressed run-length code: {"size": [H, W], "counts": str}."""
    from faster_coco_eval.core import mask as coco

    code = coco.encode(np.asfortranarray(bools("mask", mask, ("H", "W")), dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_rle(field: str, value: Any, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """bool[H, W] from a COCO run-length code, compressed (str, bytes) or not (a list of run lengths).

    Raises:
        InputError: the code is malformed, or its runs do not add up to H x W.
        ResourceLimitError: H x W is larger than `limits.max_pixels`.
    """
    from faster_coco_eval.core import mask as coco

    code = record(field, value, ("size", "counts"))
    height, width = rle_size(f"{field}.size", code["size"], limits)
    counts = code["counts"]
    if isinstance(counts, (list, tuple)):
        runs = [whole(f"{field}.counts[{place}]", run) for place, run in enumerate(counts)]
        if sum(runs) != height * width:
            wrong(f"{field}.counts", f"runs over {height} x {width} = {height * width} pixels", str(sum(runs)))
        values = np.arange(len(runs)) % 2 == 1
        return np.repeat(values, runs).reshape(width, height).T.copy()
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "replace")
    if not isinstance(counts, bytes):
        wrong(f"{field}.counts", "a string or a list of run lengths", type(code["counts"]).__name__)
    if any(not 48 <= byte < 112 for byte in counts):
        wrong(f"{field}.counts", "the characters of COCO's code, 0 to o", repr(counts[:20]))
    try:
        mask = coco.decode({"size": [height, width], "counts": counts})
    except (ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise InputError(f"{field}: malformed run lengths for {height} x {width} pixels ({error}).") from error
    return np.ascontiguousarray(mask).astype(bool)


def rle_size(field: str, value: Any, limits: Limits) -> tuple[int, int]:
    """(height, width) of a mask to be decoded, both at least 1 and not too many pixels."""
    height, width = size(field, value)
    if height * width > limits.max_pixels:
        raise ResourceLimitError(f"{field}: expected at most {limits.max_pixels} pixels, got {height} x {width}.")
    return height, width


def decode_rles(field: str, values: Any, size_hw: tuple[int, int], limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """bool[K, H, W] from K run-length codes that all have the size `size_hw`."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        wrong(field, "a list of run-length codes", type(values).__name__)
    height, width = rle_size(f"{field}.size", size_hw, limits)
    budget = _MASKS_PER_PICTURE * limits.max_pixels
    if len(values) * height * width > budget:
        raise ResourceLimitError(
            f"{field}: expected at most {budget} pixels, got {len(values)} masks of {height} x {width}."
        )
    masks = np.zeros((len(values), height, width), bool)
    for place, value in enumerate(values):
        mask = decode_rle(f"{field}[{place}]", value, limits)
        if mask.shape != (height, width):
            wrong(f"{field}[{place}]", f"the size {height} x {width}", " x ".join(map(str, mask.shape)))
        masks[place] = mask
    return masks
