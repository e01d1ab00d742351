"""From a name or a folder to an encoder: which adapter reads which checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mm.checkpoints.reading import check_folder, fingerprint, read_json
from mm.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from mm.encoders.base import Encoder

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Form = Literal["open_clip", "timm"]

# model_type of a transformers folder -> the module whose `load(folder, dtype=, train=)` reads it
TRANSFORMERS: dict[str, str] = {
    "clip": "transformers_pair",
    "siglip": "transformers_pair",
    "siglip2": "naflex",
    "clip_vision_model": "transformers_tower",
    "siglip_vision_model": "transformers_tower",
    "dinov2": "transformers_tower",
    "dinov2_with_registers": "transformers_tower",
    "aimv2": "transformers_pair",
    "aimv2_vision_model": "transformers_tower",
    "owlvit": "transformers_pair",
    "owlv2": "transformers_pair",
    "clipseg": "transformers_pair",
}


@dataclass(frozen=True, eq=False)
class Loaded:
    """An encoder and where it came from. sha256: of the weight files; revision: a commit, or "local"."""

    encoder: Encoder
    revision: str
    sha256: str
    licence: str


def is_encoder_folder(folder: Path) -> bool:
    """Whether an adapter of this package reads the folder."""
    return _adapter(folder) is not None


def load_encoder(
    folder: Path,
    *,
    dtype: Dtype = "float32",
    train: bool = False,
    revision: str = "local",
    form: Form | None = None,
) -> Loaded:
    """The encoder of a local folder in the format of transformers, open_clip or timm. Nothing touches the network.

    dtype: of the weights in memory, whatever the file holds; `auto` follows the file.
    train: branches of a reparameterisable tower are kept, and the modules are left in training mode.
    revision: what is said of where the folder came from. form: whose files to read where a folder holds several.

    Raises:
        CheckpointError: no adapter knows the format, or the files are damaged or do not fit together.
    """
    check_folder(folder)
    adapter = _adapter(folder, form)
    if adapter is None:
        raise CheckpointError(_unknown(folder))
    encoder = import_module(f"mm.encoders.{adapter}").load(folder, dtype=dtype, train=train)
    weights = [p for pattern in ("*.safetensors", "*/*.safetensors") for p in folder.glob(pattern)]
    return Loaded(encoder, revision, fingerprint(weights), licence_of(folder))


def _adapter(folder: Path, form: Form | None = None) -> str | None:
    if form != "timm" and (folder / "open_clip_config.json").is_file():
        return "open_clip_pair"
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    if "model_type" in config:
        return TRANSFORMERS.get(str(config["model_type"]))
    return "timm_tower" if "architecture" in config else None


def _unknown(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        return f"{folder.name}: no config.json and no open_clip_config.json, so no known format"
    kind = read_json(folder / "config.json").get("model_type")
    return f"{folder.name}: no adapter for model_type {kind!r}.{nearest(str(kind), TRANSFORMERS)}"


def licence_of(folder: Path) -> str:
    """What the model card's head says, or "unknown"."""
    card = folder / "README.md"
    lines = card.read_text("utf-8", "replace").splitlines()[:40] if card.is_file() else []
    found: list[Any] = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    return found[0] if found else "unknown"
