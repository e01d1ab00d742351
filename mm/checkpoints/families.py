"""What the families of encoders were published with: the expectation that a checkpoint's own files are held against.

A loader that believes a damaged `preprocessor_config.json` agrees with every other loader that believes it, so
agreement between libraries cannot find such a fault. These values were written down apart from any folder: from the
papers and released configurations of CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023), SigLIP 2 (Tschannen et
al. 2025), MobileCLIP (Vasu et al. 2024), DINOv2, AIMv2, OWL-ViT, OWLv2 and CLIPSeg.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.checkpoints.reading import read_json

_Triple = tuple[float, float, float]

CLIP_MEAN: _Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: _Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: _Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: _Triple = (0.229, 0.224, 0.225)
HALF: _Triple = (0.5, 0.5, 0.5)
ZERO: _Triple = (0.0, 0.0, 0.0)
ONE: _Triple = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Texts:
    """How a family's text tower was fed. begin: marks in front of a text; one stands behind it. canonical: of
    `mm.encoders.text.canonical_form`. fill: has to be padded to the tower's length, because the last
    place is pooled; elsewhere padding does not matter."""

    begin: int
    canonical: str
    fill: bool


@dataclass(frozen=True)
class Family:
    """resample: filters that a release of this family states. sized: whether the input is the model's image size.
    parity: the file below tests/ that compares the family with its reference library, "" where there is none."""

    mean: _Triple
    std: _Triple
    resample: tuple[str, ...]
    policy: str
    sized: bool
    texts: Texts | None
    parity: str


_TRANSFORMERS = "parity/test_encoder_transformers.py"
_OPEN_CLIP = "parity/test_encoder_open_clip.py"
_CLIP_TEXT = Texts(1, "lower", False)
_SIGLIP_TEXT = Texts(0, "letters", True)

FAMILIES: dict[str, Family] = {
    "clip": Family(CLIP_MEAN, CLIP_STD, ("bicubic",), "crop", True, _CLIP_TEXT, _TRANSFORMERS),
    "clip-half": Family(HALF, HALF, ("bicubic",), "crop", True, _CLIP_TEXT, _OPEN_CLIP),
    "siglip": Family(HALF, HALF, ("bicubic",), "squash", True, _SIGLIP_TEXT, _TRANSFORMERS),
    "siglip2": Family(HALF, HALF, ("bilinear", "bicubic"), "squash", True, _SIGLIP_TEXT, _TRANSFORMERS),
    "siglip2-naflex": Family(HALF, HALF, ("bilinear",), "patches", False, _SIGLIP_TEXT, _TRANSFORMERS),
    "mobileclip": Family(ZERO, ONE, ("bilinear",), "crop", True, _CLIP_TEXT, _OPEN_CLIP),
    "mobileclip2-large": Family(CLIP_MEAN, CLIP_STD, ("bilinear",), "crop", True, _CLIP_TEXT, _OPEN_CLIP),
    "dinov2": Family(IMAGENET_MEAN, IMAGENET_STD, ("bicubic",), "crop", False, None, _TRANSFORMERS),
    "aimv2": Family(CLIP_MEAN, CLIP_STD, ("bicubic",), "crop", True, None, _TRANSFORMERS),
    "owlvit": Family(CLIP_MEAN, CLIP_STD, ("bicubic",), "squash", True, None, _TRANSFORMERS),
    "owlv2": Family(CLIP_MEAN, CLIP_STD, ("bilinear",), "canvas", True, None, _TRANSFORMERS),
    "clipseg": Family(IMAGENET_MEAN, IMAGENET_STD, ("bilinear",), "squash", False, None, _TRANSFORMERS),
}

# model_type of a transformers folder -> family
_BY_MODEL_TYPE = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "siglip2": "siglip2-naflex",
    "siglip2_vision_model": "siglip2-naflex",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "aimv2": "aimv2",
    "aimv2_vision_model": "aimv2",
    "owlvit": "owlvit",
    "owlv2": "owlv2",
    "clipseg": "clipseg",
}
# beginning of a timm model's name inside an open_clip folder -> family
_BY_TOWER = {
    "fastvit_mci3": "mobileclip2-large",
    "fastvit_mci4": "mobileclip2-large",
    "fastvit_mci": "mobileclip",
    "vit_base_mci": "mobileclip",
}
_GEMMA_WORDS = 256_000  # the vocabulary that SigLIP 2 took from Gemma


def family_of(folder: Path) -> str | None:
    """The family that a folder's configuration names, or None where it names none of these."""
    if (folder / "open_clip_config.json").is_file():
        return _open_clip_family(read_json(folder / "open_clip_config.json").get("model_cfg", {}))
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    family = _BY_MODEL_TYPE.get(str(config.get("model_type")))
    return "siglip2" if family == "siglip" and _reads_like_gemma(folder, config) else family


def _open_clip_family(model: dict[str, Any]) -> str | None:
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    tower = str(vision.get("timm_model_name", ""))
    if "siglip" in tower or text.get("pool_type") == "last":
        return "siglip2" if text.get("vocab_size") == _GEMMA_WORDS else "siglip"
    if not tower:
        return "clip"
    return next((family for start, family in _BY_TOWER.items() if tower.startswith(start)), None)


def _reads_like_gemma(folder: Path, config: dict[str, Any]) -> bool:
    """A fixed-size SigLIP 2 says `siglip` as its model type; its vocabulary and tokenizer tell it apart."""
    if (config.get("text_config") or {}).get("vocab_size") == _GEMMA_WORDS:
        return True
    settings = folder / "tokenizer_config.json"
    said = read_json(settings) if settings.is_file() else {}
    name, end = str(said.get("tokenizer_class", "")), said.get("eos_token")
    return "Gemma" in name or "Siglip2" in name or (end.get("content") if isinstance(end, dict) else end) == "<eos>"
