"""What all tasks share: one picture or many in, one result or many out, and a bad one costs only itself."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from mm.checkpoints.loading import as_model
from mm.decoders.int8 import is_int8
from mm.encoded import Encoded, encode_pictures
from mm.errors import InputError, MMError, nearest
from mm.images import Picture, open_image
from mm.joined import Joined
from mm.limits import DEFAULT_LIMITS, Limits
from mm.pictures.side_by_side import side_by_side
from mm.store import FeatureStore, as_store
from mm.types import ErrorRecord, Source
from mm.version import __version__
from mm.world import describe

Model = str | os.PathLike[str] | Joined  # a name (`mm.checkpoints.names`), a folder, or what `mm.load` gave
Cache = str | os.PathLike[str] | FeatureStore | None
OnError = Literal["raise", "record", "skip"]
_ON_ERROR = ("raise", "record", "skip")
_AT_ONCE = 16  # pictures in one encoder pass


def each(
    images: Any,
    work: Callable[[Joined, list[Any]], Sequence[Any]],
    *,
    encoded: bool = True,
    model: Model,
    cache: Cache = None,
    on_error: OnError,
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """Encodes what is not encoded yet and hands it to `work` in small batches.

    images: one image, or a list or tuple of them; each is anything `open_image` takes, or an `Encoded`.
    work: from a model and some `Encoded` to as many results; with `encoded=False` from some `Picture`, none of which
    has passed the encoder, and an `Encoded` is then refused.
    cache: a folder (or `mm.store.FeatureStore`) where features of pictures and their tiles are kept from run to run.
    Returns one result for one image, a list in the same order for many. With `on_error="record"` an
    `ErrorRecord` stands in the place of a bad item, with `"skip"` nothing does.
    """
    if on_error not in _ON_ERROR:
        raise InputError(
            f"on_error: expected one of {', '.join(_ON_ERROR)}, got {on_error!r}.{nearest(str(on_error), _ON_ERROR)}"
        )
    many = isinstance(images, (list, tuple))
    items = list(images) if many else [images]
    joined, store = as_model(model), as_store(cache)
    results: list[Any] = []
    for start in range(0, len(items), _AT_ONCE):
        part = items[start : start + _AT_ONCE]
        judge = joined if encoded else None
        opened = side_by_side(
            lambda at, judge=judge: _open(at[1], at[0], judge, on_error, limits, allow_urls), enumerate(part, start)
        )
        results += _answers(opened, work, joined, encoded, store)
    if on_error == "skip":
        results = [r for r in results if not isinstance(r, ErrorRecord)]
        return results if many else (results[0] if results else None)
    return results if many else results[0]


def _open(item: Any, place: int, joined: Joined | None, on_error: str, limits: Limits, allow_urls: bool) -> Any:
    try:
        if isinstance(item, Encoded):
            if joined is None:
                raise InputError(f"{item.name} is encoded already; this call needs the picture itself")
            if item.model != joined.name:
                raise InputError(f"{item.name} was encoded by model {item.model!r}, this call asks {joined.name!r}")
            return item
        return open_image(item, limits=limits, allow_urls=allow_urls)
    except MMError as error:
        if on_error == "raise":
            raise
        name = item if isinstance(item, str) else f"item {place}"
        return ErrorRecord(name=name, type=type(error).__name__, message=str(error), stage="read")


def _answers(opened: list[Any], work: Callable, joined: Joined, encoded: bool, store: FeatureStore | None) -> list[Any]:
    pictures = [o for o in opened if isinstance(o, Picture)]
    if not encoded:
        plain = iter(work(joined, pictures) if pictures else [])
        return [next(plain) if isinstance(o, Picture) else o for o in opened]
    fresh = iter(encode_pictures(joined, pictures, store) if pictures else [])
    ready = [next(fresh) if isinstance(o, Picture) else o for o in opened]
    values = [r for r in ready if isinstance(r, Encoded)]
    answers = iter(work(joined, values) if values else [])
    return [next(answers) if isinstance(r, Encoded) else r for r in ready]


@functools.cache
def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"mm": __version__} | {name: version(name) for name in ("torch", "transformers", "timm", "pillow")}


def source(joined: Joined, encoded: Encoded, warnings: Sequence[str] = ()) -> Source:
    """What produced a result about `encoded`, and what has to be warned of."""
    return provenance(joined, (*warnings_of(joined, encoded), *warnings))


def warnings_of(joined: Joined, encoded: Encoded) -> tuple[str, ...]:
    """What every result about this picture warns of: that it is far from what the model knows, and the gate's notes."""
    far = None
    if joined.world is not None:
        far = joined.world.warning(float(joined.world.distance(describe(encoded.features))[0]))
    return (far, *encoded.notes) if far else encoded.notes


def provenance(joined: Joined, warnings: tuple[str, ...]) -> Source:
    """Weights, preprocessing, kernel, versions and licence of a model."""
    encoder: Any = joined.encoder
    speaker = joined.speaker
    at = next(encoder.parameters())
    return Source(
        model=joined.name,
        revision=joined.revision,
        sha256=joined.sha256,
        preprocessing=joined.spec.preprocessing.to_dict(),
        kernel="sdpa" + ", decoder compiled" * (speaker is not None and speaker.decoder.compiled),
        dtype=str(at.dtype).removeprefix("torch.")
        + ", decoder in int8" * (speaker is not None and is_int8(speaker.decoder.lm)),
        device=str(at.device),
        versions=_versions(),
        licence=joined.licence,
        warnings=warnings,
    )


def unit(name: str, value: float) -> float:
    """A number in 0..1, or an `InputError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return float(value)


def cut_warnings(labels: Sequence[str], cut: Sequence[bool]) -> list[str]:
    """One warning for each label that the text tower read only in part."""
    return [
        f"label {ascii(label[:40])} is longer than the model reads and was cut"
        for label, c in zip(labels, cut, strict=True)
        if c
    ]
