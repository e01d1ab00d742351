"""What a loaded checkpoint differs in from the published values of its family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm.checkpoints.families import FAMILIES, Family, Texts, family_of
from mm.checkpoints.reading import read_json
from mm.encoders.base import Encoder
from mm.encoders.preprocess import Preprocessing
from mm.encoders.text import TextRules, canonical_form

_NEAR = 1e-6
_PROBE = "Some_Text,  HERE & there!"


def differences(folder: Path, encoder: Encoder, family: str | None = None) -> list[str] | None:
    """One phrase for each value that is not the family's, none where all are; None where no family is known.

    family: of a known name; a folder's is told by its configuration. Sizes are held against the model's own.
    """
    family = family if family in FAMILIES else family_of(folder)
    if family is None:
        return None
    expected = FAMILIES[family]
    model = _model_settings(folder)
    found = list(_pictures(encoder.spec.preprocessing, expected, model.get("image_size")))
    if encoder.rules is not None and expected.texts is not None:
        found += _texts(encoder.rules, expected.texts, model.get("text_length"))
        found += _tokenizer(folder, right=not family.startswith("siglip2"))
    return found


def _model_settings(folder: Path) -> dict[str, Any]:
    """image_size and text_length that the towers were built for, where the configuration says them."""
    if (folder / "open_clip_config.json").is_file():
        model = read_json(folder / "open_clip_config.json").get("model_cfg", {})
        vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
        return {"image_size": vision.get("image_size"), "text_length": text.get("context_length", 77)}
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vision, text = getattr(config, "vision_config", config), getattr(config, "text_config", None)
    return {
        "image_size": getattr(vision, "image_size", None),
        "text_length": getattr(text, "max_position_embeddings", None),
    }


def _pictures(got: Preprocessing, expected: Family, image_size: Any) -> Iterator[str]:
    for name in ("mean", "std"):
        ours, theirs = getattr(got, name), getattr(expected, name)
        if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > _NEAR:
            yield f"{name} {_numbers(ours)}, published {_numbers(theirs)}"
    if got.resample not in expected.resample:
        yield f"resample {got.resample}, published {' or '.join(expected.resample)}"
    if got.policy != expected.policy:
        yield f"policy {got.policy}, published {expected.policy}"
    if expected.sized and image_size is not None:
        pair = tuple(image_size) if isinstance(image_size, (list, tuple)) else (image_size, image_size)
        if got.input_hw != pair:
            yield f"size {_by(got.input_hw)}, the tower's is {_by(pair)}"
        elif got.policy == "crop" and got.shortest_edge not in (None, min(pair)):
            yield f"shortest edge {got.shortest_edge}, published {min(pair)} (no margin around the crop)"


def _texts(rules: TextRules, expected: Texts, length: int | None) -> Iterator[str]:
    spec = rules.spec
    if length is not None and spec.length != length:
        yield f"text length {spec.length}, the tower's is {length}"
    if expected.fill and not spec.fill:
        yield "texts padded to the longest, published to the full length"
    if len(spec.end) != 1:
        yield f"{len(spec.end)} end marks, published 1"
    if len(spec.begin) != expected.begin:
        yield f"{len(spec.begin)} begin marks, published {expected.begin}"
    clean = canonical_form(_PROBE, "letters" if expected.canonical == "letters" else "lower")
    if rules.plain_ids(rules.canonical(_PROBE)) != rules.plain_ids(clean):
        yield f"{ascii(_PROBE)} is not read as {ascii(clean)}, the published canonical form"


def _tokenizer(folder: Path, *, right: bool) -> Iterator[str]:
    """Settings that mm does not need, but a reference tokenizer of the same folder obeys.

    right: whether padding stands on the right by the tokenizer itself; that of SigLIP 2 has to be told.
    """
    file = folder / "tokenizer_config.json"
    said = read_json(file) if file.is_file() else {}
    if said.get("do_lower_case") is False:
        yield "tokenizer_config.json: do_lower_case false, published true"
    if right and said.get("padding_side") == "left":
        yield "tokenizer_config.json: padding_side left, published right"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
