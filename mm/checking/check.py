"""Holds a checkpoint, as `mm` reads it, against its reference library and against what its family was published with.

The pictures and texts are those on which implementations are known to part: odd sizes and strips, transparency,
grey and 16-bit pixels, orientation by EXIF; long, upper-case and punctuated texts, texts that clean-up empties, and
spellings of special tokens.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm.checking.expectations import differences
from mm.checking.references import Reference, Seen, reference_for
from mm.checkpoints.hub import Located, locate
from mm.checkpoints.loading import load
from mm.checkpoints.names import parse
from mm.encoders.base import Encoder
from mm.encoders.build import load_encoder
from mm.errors import CheckpointError
from mm.images import Picture, open_image
from mm.zoo import MODELS

_FEATURES = 1e-4  # of the largest value of the reference

TEXTS = (
    "a photo of a cat",
    "A PHOTO OF A CAT",
    "Two dogs, one (small) ball & 3.5 cups: what's that?",
    "snow_covered  mountain\troad",
    "x",
    "!?.,",
    "naïve café, 日本語",
    "a very long text about a red car on a green hill " * 12,
)
MARKS = ("<|endoftext|> a cat", "</s> a <pad> cat", "<bos>a cat<eos>")


@dataclass(frozen=True)
class Column:
    """One comparison. difference: the largest, None where nothing was compared or the two have no common measure.
    allowed: the largest that passes. at: the picture or text of the largest difference. said: in words."""

    name: str
    ok: bool
    difference: float | None = None
    allowed: float | None = None
    at: str = ""
    said: str = ""


@dataclass(frozen=True)
class Report:
    """top1: published zero-shot accuracy in percent; reproduce: the command that measures it."""

    model: str
    reference: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    top1: float | None = None
    top1_source: str = ""
    reproduce: str = ""

    @property
    def mismatches(self) -> list[str]:
        return [column.name for column in self.columns if not column.ok]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": not self.mismatches, "mismatches": self.mismatches}


@dataclass(frozen=True)
class _Sides:
    """Both readings of the battery."""

    encoder: Encoder
    reference: Reference
    pictures: dict[str, Picture]
    pixels: dict[str, Tensor]
    seen: dict[str, Seen]
    texts: tuple[str, ...]

    def given(self) -> list[str]:
        """The texts as the reference gets them."""
        rules = self.encoder.rules
        assert rules is not None
        return [rules.canonical(text) for text in self.texts] if self.reference.clean else list(self.texts)


@torch.inference_mode()
def check(name: str) -> Report:
    """Compares the model of this name or folder, in float32, on the CPU.

    Raises:
        CheckpointError: no such model. One whose files do not load gives a report with the mismatch `load`.
    """
    found = locate(name)
    entry = MODELS.get(name)
    name = found.folder.name if parse(name).kind == "folder" else name
    published = (entry.top1, entry.top1_source) if entry else (None, "")
    command = f"mm eval zeroshot --model {name} --data IMAGENET_VAL_FOLDER" if published[0] else ""
    try:
        encoder = _encoder(found)
    except CheckpointError as error:
        broken = Column("load", ok=False, said=str(error))
        return Report(name, "", (broken,), (), *published, command)
    reference = reference_for(found.folder, encoder.spec.embedding, found.form)
    if reference is None:
        raise CheckpointError(f"{found.folder.name}: no reference library reads this folder")
    columns = [*_compared(encoder, reference), _published(found.folder, encoder, entry.family if entry else None)]
    notes = ("both sides get the upright RGB pixels of mm's image gate", *reference.notes)
    return Report(name, reference.library, tuple(columns), notes, *published, command)


def _encoder(found: Located) -> Encoder:
    if (found.folder / "joined.safetensors").is_file():
        return load(found.folder).encoder
    return load_encoder(found.folder, dtype="float32", revision=found.revision, form=found.form).encoder


def _compared(encoder: Encoder, reference: Reference) -> list[Column]:
    pictures = battery()
    texts = TEXTS if reference.marks else (*TEXTS, *MARKS)
    sides = _Sides(
        encoder,
        reference,
        pictures,
        {k: encoder.spec.preprocessing.pixels(p.pixels) for k, p in pictures.items()},
        {k: reference.see(p.pil()) for k, p in pictures.items()},
        texts if encoder.rules is not None else (),
    )
    columns = [_preprocessing(sides), _images(sides)]
    if encoder.rules is None or reference.text is None:
        return columns
    return [columns[0], _ids(sides), columns[1], _texts(sides), _similarity(sides)]


def _preprocessing(sides: _Sides) -> Column:
    spread = torch.tensor(sides.encoder.spec.preprocessing.std)[:, None, None]  # differences of pixels in 0..1
    return _largest(
        "preprocessing",
        sides.pictures,
        lambda k: (sides.pixels[k] * spread, sides.seen[k].pixels.float() * spread),
        sides.reference.tolerance,
        relative=False,
    )


def _images(sides: _Sides) -> Column:
    """Where a grey level is allowed, both towers read the reference's pixels, so that this column is of towers."""
    own = sides.reference.tolerance < 1 / 255

    def pair(k: str) -> tuple[Tensor, Tensor]:
        pixels = sides.pixels[k] if own else sides.seen[k].pixels.float()
        return sides.encoder.encode_image(pixels[None]).pooled, sides.reference.image(sides.seen[k])

    return _largest("image features", sides.pictures, pair, _FEATURES)


def _ids(sides: _Sides) -> Column:
    """Counts texts whose ids differ. Spellings of special tokens may not become one in any case."""
    rules, reference = sides.encoder.rules, sides.reference
    assert rules is not None and reference.ids is not None
    ids, mask, _ = rules(list(sides.texts))
    ours = [(row if rules.spec.fill else row[kept]).tolist() for row, kept in zip(ids, mask, strict=True)]
    theirs = reference.ids(sides.given())
    wrong = [t for t, a, b in zip(sides.texts, ours, theirs, strict=True) if _plain(a, b) != _plain(b, a)]
    marks = {*rules.spec.begin, *rules.spec.end}
    wrong += [t for t in MARKS if marks & set(rules.plain_ids(rules.canonical(t)))]
    return Column("token ids", not wrong, float(len(wrong)), 0.0, _short(wrong[0]) if wrong else "")


def _plain(row: list[int], other: list[int]) -> list[int]:
    """A row without the repeated last id by which it is longer than the other: padding that nobody reads."""
    while len(row) > len(other) and row[-1] == row[-2]:
        row = row[:-1]
    return row


def _texts(sides: _Sides) -> Column:
    assert sides.reference.text is not None
    ours = sides.encoder.encode_text(list(sides.texts)).pooled
    theirs = sides.reference.text(sides.given())
    rows = {text: (ours[i], theirs[i]) for i, text in enumerate(sides.texts)}
    return _largest("text features", rows, lambda k: rows[k], _FEATURES)


def _similarity(sides: _Sides) -> Column:
    assert sides.reference.similarity is not None
    similarity, given = sides.reference.similarity, sides.given()
    texts = sides.encoder.encode_text(list(sides.texts)).pooled

    def pair(k: str) -> tuple[Tensor, Tensor]:
        pixels = sides.pixels[k] if sides.reference.tolerance < 1 / 255 else sides.seen[k].pixels.float()
        image = sides.encoder.encode_image(pixels[None]).pooled
        return sides.encoder.similarity(image, texts), similarity(sides.seen[k], given)

    return _largest("similarity", sides.pictures, pair, _FEATURES, relative=False)


def _published(folder: Path, encoder: Encoder, family: str | None) -> Column:
    found = differences(folder, encoder, family)
    if found is None:
        return Column("published", ok=True, said="nothing is known of this family")
    return Column("published", ok=not found, said="; ".join(found) or "as published")


def _largest(
    name: str,
    items: Sequence[str] | dict[str, Any],
    pair: Callable[[str], tuple[Tensor, Tensor]],
    allowed: float,
    *,
    relative: bool = True,
) -> Column:
    worst, at = 0.0, ""
    for item in items:
        ours, theirs = pair(item)
        if ours.shape != theirs.shape:
            said = f"shape {list(ours.shape)} against {list(theirs.shape)}"
            return Column(name, False, None, allowed, _short(item), said)
        scale = float(theirs.abs().max().clamp_min(1e-12)) if relative else 1.0
        difference = float((ours.float() - theirs.float()).abs().max()) / scale
        if not difference <= worst:  # so that NaN counts as the largest
            worst, at = difference, item
    return Column(name, worst <= allowed, worst, allowed, _short(at))


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"


def battery() -> dict[str, Picture]:
    """The pictures, by what is special about each; the same at every call."""
    drawn = {
        "odd 97x171": _encoded(_drawn(97, 171), "JPEG"),
        "wide 60x301": _encoded(_drawn(60, 301), "PNG"),
        "strip 1x90": _encoded(_drawn(1, 90), "PNG"),
        "strip 90x1": _encoded(_drawn(90, 1), "PNG"),
        "pixel 1x1": _encoded(_drawn(1, 1), "PNG"),
        "large 700x520": _encoded(_drawn(700, 520), "PNG"),
        "rgba": _encoded(_see_through(_drawn(80, 120)), "PNG"),
        "grey": _encoded(_drawn(75, 50).convert("L"), "PNG"),
        "16 bit": _encoded(Image.fromarray(np.linspace(0, 65535, 6400).astype(np.uint16).reshape(64, 100)), "PNG"),
        "exif rotated": _encoded(_drawn(120, 64), "JPEG", orientation=6),
    }
    return {name: open_image(data, name=name) for name, data in drawn.items()}


def _drawn(height: int, width: int) -> Image.Image:
    """Slopes with coarse noise on them: smooth enough for JPEG, busy enough to tell filters apart."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(height * 10_000 + width).integers(0, 120, (height, width, 3))
    slopes = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1)
    return Image.fromarray(((slopes + noise) % 256).astype(np.uint8))


def _see_through(picture: Image.Image) -> Image.Image:
    alpha = np.tile(np.linspace(0, 255, picture.width).astype(np.uint8), (picture.height, 1))
    picture.putalpha(Image.fromarray(alpha))
    return picture


def _encoded(picture: Image.Image, form: str, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, form, exif=exif)
    return file.getvalue()
