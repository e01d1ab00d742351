"""Reference libraries' own way from pictures and texts to features: what `mm check` holds a checkpoint against.

Each side is the library's processor, tokenizer and model on the same folder, called as its documentation says; no
code of this library's encoders takes part. Both sides start from the upright RGB pixels of the image gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mm.checkpoints.reading import load_tensors, read_json
from mm.encoders.transformers_weights import quiet

_EXACT = 1e-5  # both resize with Pillow
_CLEAN = "texts in the family's canonical form, which transformers' tokenizer does not make"
_SPLIT = "spellings of special tokens are read as letters on both sides (split_special_tokens)"


@dataclass(frozen=True)
class Seen:
    """One picture as the reference prepares it. pixels: float32[3, h, w]; inputs: the model's keyword arguments."""

    pixels: Tensor
    inputs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Reference:
    """library: its name. see, image: from a picture to pixels, from those to float[1, E], as `pooled` is.
    ids: from texts to lists of ids without padding, or with it where the tower reads it; text: to float[K, E];
    similarity: from one picture and all texts to float[1, K]. The last three are None without a text tower.
    clean: whether texts have to be given in the canonical form. marks: whether the tokenizer turns spellings of
    special tokens into them, which `mm` never does. tolerance: of pixels in 0..1, before the division by std.
    """

    library: str
    see: Callable[[Image.Image], Seen]
    image: Callable[[Seen], Tensor]
    ids: Callable[[list[str]], list[list[int]]] | None = None
    text: Callable[[list[str]], Tensor] | None = None
    similarity: Callable[[Seen, list[str]], Tensor] | None = None
    clean: bool = False
    marks: bool = False
    tolerance: float = _EXACT
    notes: tuple[str, ...] = ()


def reference_for(folder: Path, width: int, form: str | None = None) -> Reference | None:
    """The reference side of a folder, or None for a format that no reference library reads.

    width: of the pooled features that are compared. form: whose format to read where the folder holds several.
    """
    if (folder / "joined.safetensors").is_file():
        return _embedded(folder)
    if form == "open_clip" or (form is None and (folder / "open_clip_config.json").is_file()):
        return _open_clip(folder)
    config = read_json(folder / "config.json")
    if "model_type" in config:
        return _transformers(folder, config)
    return _timm(folder, width) if "architecture" in config else None


def _transformers(folder: Path, config: dict[str, Any]) -> Reference:
    from transformers import AutoImageProcessor, AutoModel

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet():  # the heads beside a pair are reported as unexpected keys
        processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
        model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, **local).eval()
    pillow = type(processor).__name__.endswith("Pil")
    notes = [] if pillow else ["no Pillow processor for this family: one grey level is allowed"]

    def see(picture: Image.Image) -> Seen:
        inputs = dict(processor(images=picture, return_tensors="pt"))
        shapes = inputs.get("spatial_shapes")
        pixels = inputs["pixel_values"][0]
        return Seen(pixels if shapes is None else _unpatched(pixels, *shapes[0].tolist()), inputs)

    # OWLv2's Pillow processor smooths with another library than its torchvision one.
    tolerance = _EXACT if pillow and config["model_type"] != "owlv2" else 1 / 255
    if not hasattr(model, "get_text_features"):

        def tower(seen: Seen) -> Tensor:
            out = model(**seen.inputs)
            pooled = getattr(out, "pooler_output", None)
            return out.last_hidden_state.mean(1) if pooled is None else pooled

        return Reference("transformers", see, tower, tolerance=tolerance, notes=tuple(notes))

    encoded, clean, said = _transformers_texts(folder, model)

    def ids(texts: list[str]) -> list[list[int]]:
        rows = encoded(texts)
        masks = rows.get("attention_mask", torch.ones_like(rows["input_ids"])).bool()
        return [row[mask].tolist() for row, mask in zip(rows["input_ids"], masks, strict=True)]

    def similarity(seen: Seen, texts: list[str]) -> Tensor:
        logits = model(**encoded(texts), **seen.inputs).logits_per_image
        return logits.sigmoid() if hasattr(model, "logit_bias") else logits.softmax(-1)

    return Reference(
        "transformers",
        see,
        lambda seen: model.get_image_features(**seen.inputs).pooler_output,
        ids,
        lambda texts: model.get_text_features(**encoded(texts)).pooler_output,
        similarity,
        clean,
        tolerance=tolerance,
        notes=(*notes, *said),
    )


def _transformers_texts(folder: Path, model: Any) -> tuple[Callable[[list[str]], dict[str, Tensor]], bool, list[str]]:
    """The tokenizer as the family's documentation says to call it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    notes = [_SPLIT]
    if (folder / "tokenizer.json").is_file():
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    sigmoid = hasattr(model, "logit_bias")
    length = model.config.text_config.max_position_embeddings
    if sigmoid:
        notes += [_CLEAN, "texts padded on the right to the tower's length and given without a mask, as in training"]

    def encoded(texts: list[str]) -> dict[str, Tensor]:
        made = tokenizer(
            texts,
            padding="max_length" if sigmoid else True,
            truncation=True,
            max_length=min(length, tokenizer.model_max_length),
            padding_side="right",
            return_tensors="pt",
            split_special_tokens=True,
        )
        return {"input_ids": made["input_ids"]} if sigmoid else {k: made[k] for k in ("input_ids", "attention_mask")}

    return encoded, sigmoid, notes


def _unpatched(patches: Tensor, rows: int, columns: int) -> Tensor:
    """float[N, p * p * 3], padding behind the first rows * columns -> float[3, rows * p, columns * p]."""
    side = round((patches.shape[1] / 3) ** 0.5)
    kept = patches[: rows * columns].reshape(rows, columns, side, side, 3)
    return kept.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


def _open_clip(folder: Path) -> Reference:
    import open_clip

    name = f"local-dir:{folder}"
    created: Any = open_clip.create_model_from_pretrained(name, precision="fp32")
    model, transform = created[0].eval(), created[1]
    tokenizer: Any = open_clip.get_tokenizer(name)
    sigmoid = getattr(model, "logit_bias", None) is not None

    def see(picture: Image.Image) -> Seen:
        pixels = transform(picture)
        return Seen(pixels, {"image": pixels[None]})

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts).tolist()

    def similarity(seen: Seen, texts: list[str]) -> Tensor:
        logits = model.get_logits(seen.inputs["image"], tokenizer(texts))[0]
        return logits.sigmoid() if sigmoid else logits.softmax(-1)

    return Reference(
        "open_clip",
        see,
        lambda seen: model.encode_image(seen.inputs["image"]),
        ids,
        lambda texts: model.encode_text(tokenizer(texts)),
        similarity,
        marks=True,
        notes=("spellings of special tokens become marks in open_clip and stay letters in mm: left out here",),
    )


def _timm_side(folder: Path) -> tuple[Any, Callable[[Image.Image], Seen]]:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(net), is_training=False)

    def see(picture: Image.Image) -> Seen:
        pixels = transform(picture)
        return Seen(pixels, {"x": pixels[None]})

    return net, see


def _timm(folder: Path, width: int) -> Reference:
    net, see = _timm_side(folder)

    def pooled(seen: Seen) -> Tensor:
        projects = net.num_classes == width  # the classifier is the projection into a joint space
        return net.forward_head(net.forward_features(seen.inputs["x"]), pre_logits=not projects)

    return Reference("timm", see, pooled)


def _embedded(folder: Path) -> Reference:
    """timm's tower beside transformers' text tower: the layout of `tiny`."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    net, see = _timm_side(folder / "vision")
    with quiet():
        tower: Any = CLIPTextModelWithProjection.from_pretrained(folder / "text", dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "text", local_files_only=True)
    scale = load_tensors(folder / "joined.safetensors")["encoder.logit_scale"].float().exp()
    marks = read_json(folder / "config.json")["encoder"]["text"]  # this layout's own; the tokenizer adds none

    def ids(texts: list[str]) -> list[list[int]]:
        room = marks["length"] - len(marks["begin"]) - len(marks["end"])
        plain = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [[*marks["begin"], *row[:room], *marks["end"]] for row in plain]

    def encoded(texts: list[str]) -> dict[str, Tensor]:
        return tokenizer.pad({"input_ids": ids(texts)}, padding_side="right", return_tensors="pt")

    def text(texts: list[str]) -> Tensor:
        return tower(**encoded(texts)).text_embeds

    def similarity(seen: Seen, texts: list[str]) -> Tensor:
        return (scale * F.normalize(net(**seen.inputs), dim=-1) @ F.normalize(text(texts), dim=-1).T).softmax(-1)

    return Reference(
        "timm + transformers", see, lambda seen: net(**seen.inputs), ids, text, similarity, clean=True,
        notes=(_SPLIT, "texts in lower case, as in training"),
    )  # fmt: skip
