"""Cut out the one thing that words name, with soft edges and its own colours."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from mm.checkpoints.photo import for_matte, for_task
from mm.encoded import Encoded, encode_pictures
from mm.errors import InputError, nearest
from mm.heads.clipmat import ClipMatHead
from mm.heads.trimap import trimap_of
from mm.heads.vitmatte import VitMatte, load_vitmatte
from mm.images import Picture
from mm.joined import Joined
from mm.labels import check_text
from mm.limits import DEFAULT_LIMITS, Limits
from mm.pictures.foreground import foreground_of
from mm.pictures.upsampling import along_colours
from mm.tasks.each import Model, OnError, cut_warnings, each, source
from mm.tasks.segment import segment
from mm.types import Matte

Method = Literal["clipmat", "trimap"]


def matte(
    image: Any,
    label: str,
    *,
    model: Model = "tiny",
    method: Method = "clipmat",
    segmenter: Model | None = None,
    matter: str | os.PathLike[str] | VitMatte | None = None,
    tile: int = 768,
    encoded: Encoded | list[Encoded] | None = None,
    on_error: OnError = "raise",
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """The subject that `label` names, at the size of the upright original: `Matte`, or a list of them for a list.

    Everything the label names is one subject; where nothing fits it, alpha is about 0 everywhere.

    method: `clipmat` asks the model's own matting head, which reads the words and the pixels; from the size of the
    model's input to that of the picture its alpha follows the picture's colours. `trimap` goes from coarse to fine,
    for photographs: a segmentation finds the subject, what it doubts becomes the unknown of a trimap, and a ViTMatte
    checkpoint settles that at the picture's full size. The model `photo` always takes this way, with a checkpoint of
    its own where `matter` gives none.
    segmenter: the model of the segmentation, of `trimap` alone; None: `model`.
    matter: the ViTMatte checkpoint, of `trimap` alone: a folder, a hub id, or one that `load_vitmatte` gave.
    tile: pixels; `trimap` reads a larger picture in overlapping squares of this side, a multiple of 32.
    encoded: what `mm.encode` made of these pictures, so that their tower does not run again. An `Encoded` holds no
    pixels and cannot stand for the picture itself here.

    Raises:
        TextInputError: the label is blank or too long. ImageInputError: an image cannot be read.
        InputError: an unknown method, a part that the model or the call lacks, or `encoded` of other pictures.
    """
    asked = check_text(label, "label", limits.max_label_chars)
    if method not in get_args(Method):
        known = get_args(Method)
        raise InputError(f"method: expected one of {', '.join(known)}, got {method!r}.{nearest(str(method), known)}")
    model, method, matter = for_matte(model, method, matter)
    given = [encoded] if isinstance(encoded, Encoded) else encoded
    one = _by_head(asked, segmenter, matter) if method == "clipmat" else _by_trimap(asked, matter, tile)

    def work(joined: Joined, pictures: list[Picture]) -> list[Matte]:
        return [one(joined, p, e) for p, e in zip(pictures, _encoded(joined, pictures, given), strict=True)]

    asks = model if segmenter is None else for_task(segmenter, "segment")
    return each(
        image, work, encoded=False, model=asks, on_error=on_error, limits=limits, allow_urls=allow_urls
    )  # fmt: skip


_One = Callable[[Joined, Picture, Encoded], Matte]


def _encoded(joined: Joined, pictures: list[Picture], given: list[Encoded] | None) -> list[Encoded]:
    """One value for each picture: the given one of the same pixels, or a new one where none are given."""
    if given is None:
        return encode_pictures(joined, pictures)
    known = {e.digest: e for e in given if e.model == joined.name}
    for picture in pictures:
        if picture.digest not in known:
            raise InputError(f"encoded: none of them is of {picture.name}, encoded by model {joined.name!r}")
    return [known[picture.digest] for picture in pictures]


def _by_head(label: str, segmenter: Model | None, matter: str | os.PathLike[str] | VitMatte | None) -> _One:
    for name, value in (("segmenter", segmenter), ("matter", matter)):
        if value is not None:
            raise InputError(f'{name}: only method="trimap" takes one')

    @torch.inference_mode()
    def one(joined: Joined, picture: Picture, encoded: Encoded) -> Matte:
        head = joined.need("matter")
        assert isinstance(head, ClipMatHead)
        at = next(head.parameters())
        text = joined.encoder.encode_text([head.asks(label)])
        pixels = joined.pixels(picture)[None].to(at.device, at.dtype)
        owner = torch.zeros(1, dtype=torch.long, device=at.device)
        segmenter = joined.need("segmenter") if head.guided else None
        assert segmenter is None or isinstance(segmenter, nn.Module)
        logits = head(pixels, encoded.features, text, owner, head.guide(segmenter, encoded.features, text, owner))
        small = joined.spec.preprocessing.coloured(pixels[0])
        alpha = along_colours(logits.alpha()[0], small, picture.pixels, encoded.geometry)
        return _matte(picture, alpha, source(joined, encoded, cut_warnings([label], text.cut)))

    return one


def _by_trimap(label: str, matter: str | os.PathLike[str] | VitMatte | None, tile: int) -> _One:
    if matter is None:
        raise InputError('method="trimap" needs matter=, the folder or hub id of a ViTMatte checkpoint')
    network = matter if isinstance(matter, VitMatte) else load_vitmatte(matter)

    def one(joined: Joined, picture: Picture, encoded: Encoded) -> Matte:
        found = segment(encoded, label, model=joined)
        trimap = trimap_of(found.scores[0])
        alpha = network.alpha(picture.pixels, trimap, tile=tile)
        made = found.source
        nothing = () if trimap.any() else (f"nothing found for {ascii(label[:40])}",)
        return _matte(picture, alpha, dataclasses.replace(
            made,
            model=f"{made.model} + {network.name}",
            revision=f"{made.revision} + {network.revision}",
            sha256=f"{made.sha256} + {network.sha256}",
            licence=f"{made.licence} + see model card",
            warnings=(*made.warnings, *nothing),
        ))  # fmt: skip

    return one


def _matte(picture: Picture, alpha: np.ndarray, made: Any) -> Matte:
    alpha = np.clip(alpha, 0, 1)
    alpha.flags.writeable = False  # what cannot change is not copied
    foreground = foreground_of(picture.pixels, alpha)
    foreground.flags.writeable = False
    return Matte(alpha, foreground, made)
