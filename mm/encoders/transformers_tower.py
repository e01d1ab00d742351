"""Image towers of transformers: how each is called, and which of its features are tokens, prefix and layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mm.checkpoints.reading import load_weights
from mm.encoders.base import EncoderSpec, ImageFeatures, TextFeatures
from mm.encoders.build import Dtype
from mm.encoders.text import TextRules
from mm.encoders.transformers_files import read_preprocessing
from mm.encoders.transformers_weights import build_model, refusing, settle
from mm.errors import InputError


@dataclass(frozen=True)
class Habits:
    """How a tower behaves, by its model_type.

    norm: the last norm where the tower gives it only to the pooled token; here all tokens pass it.
    resizes: its position embeddings for inputs of another size when `asked`, by `itself`, or `never`.
    """

    norm: str | None
    resizes: Literal["asked", "itself", "never"]


_CLIP = Habits("post_layernorm", "asked")
TOWERS: dict[str, Habits] = {
    "clip_vision_model": _CLIP,
    "owlvit_vision_model": _CLIP,
    "owlv2_vision_model": _CLIP,
    "clipseg_vision_model": _CLIP,
    "siglip_vision_model": Habits(None, "asked"),
    "dinov2": Habits(None, "itself"),
    "dinov2_with_registers": Habits(None, "itself"),
    "aimv2_vision_model": Habits(None, "never"),
}

# The image-only towers: the model class, and the beginnings of keys that a larger checkpoint may hold beside it
_PAIR_KEYS = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "clip_vision_model": ("CLIPVisionModel", _PAIR_KEYS),
    "siglip_vision_model": ("SiglipVisionModel", _PAIR_KEYS),
    "dinov2": ("Dinov2Model", ("classifier.",)),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", ("classifier.",)),
    "aimv2_vision_model": ("Aimv2VisionModel", ()),
}

TOKENS = "patch tokens of the last block, after the tower's last norm"  # what the spec of these encoders says


def prefix_tokens(tower: Any) -> int:
    """How many class and register tokens stand before the patches, by the tower's own parts."""
    classes = any(hasattr(tower.embeddings, name) for name in ("class_embedding", "cls_token"))
    return int(classes) + getattr(tower.config, "num_register_tokens", 0)


def check_pixels(pixels: Tensor, patch: int) -> tuple[int, int]:
    """Height and width of pixels float[B, 3, H, W] that hold at least one patch."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < patch:
        raise InputError(f"pixels: expected [B, 3, H, W] with sides of {patch} or more, got {list(pixels.shape)}")
    return pixels.shape[2], pixels.shape[3]


def check_layers(layers: tuple[int, ...], depth: int) -> None:
    for layer in layers:
        if not -depth <= layer < depth:
            raise InputError(f"layers: the tower has blocks 0 to {depth - 1}, got {layer}")


def block_outputs(hidden: Any, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """What the asked blocks gave out; `hidden` begins with what went into the first block."""
    return {i: hidden[i + 1 if i >= 0 else i] for i in layers}


def read_tower(tower: Any, pixels: Tensor, layers: tuple[int, ...]) -> ImageFeatures:
    """One pass; `pooled` is the tower's own, or the mean of the tokens where the tower has no pooling.

    Raises:
        InputError: the pixels' size is one that the tower cannot take, or a layer is not there.
    """
    config, habits = tower.config, TOWERS[tower.config.model_type]
    height, width = check_pixels(pixels, config.patch_size)
    check_layers(layers, config.num_hidden_layers)
    trained = (height, width) == (config.image_size, config.image_size)
    extra = {}
    if habits.resizes == "asked":
        extra["interpolate_pos_encoding"] = not trained
    elif habits.resizes == "never" and not trained and not config.is_native:
        side = config.image_size
        raise InputError(f"pixels: this tower takes {side} x {side} and no other size, got {height} x {width}")
    out = tower(pixels, output_hidden_states=bool(layers), **extra)
    grid = (height // config.patch_size, width // config.patch_size)
    prefix = prefix_tokens(tower)
    tokens = getattr(tower, habits.norm)(out.last_hidden_state) if habits.norm else out.last_hidden_state
    assert tokens.shape[1] == prefix + grid[0] * grid[1]
    patches = tokens[:, prefix:]
    blocks = block_outputs(out.hidden_states, layers)
    return ImageFeatures(
        tokens=patches,
        grid=grid,
        prefix=tokens[:, :prefix],
        pooled=patches.mean(1) if out.pooler_output is None else out.pooler_output,
        layers={i: block[:, prefix:] for i, block in blocks.items()},
        layer_grids=dict.fromkeys(layers, grid),
        layer_prefix={i: block[:, :prefix] for i, block in blocks.items()} if prefix else {},
    )


class TransformersTower(nn.Module):
    """An image tower alone. projection: into the joint space, where the checkpoint holds one."""

    rules: TextRules | None = None

    def __init__(self, tower: Any, projection: nn.Module | None, spec: EncoderSpec) -> None:
        super().__init__()
        self.tower, self.projection, self.spec = tower, projection, spec

    def encode_image(self, pixels: Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        found = read_tower(self.tower, pixels, layers)
        if self.projection is None:
            return found
        return replace(found, pooled=self.projection(found.pooled))

    def encode_text(self, texts: list[str]) -> TextFeatures:
        raise InputError("this encoder is an image tower without a text tower")

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        raise InputError("this encoder is an image tower without a text tower, so it has no similarity")


def load(folder: Path, *, dtype: Dtype, train: bool) -> TransformersTower:
    """The image tower of a folder, without or with its projection into a joint space.

    Raises:
        CheckpointError: the files are damaged, incomplete or do not fit together.
    """
    import transformers

    with refusing(folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    preprocessing = read_preprocessing(folder)
    name, unused = _CLASSES[config.model_type]
    tensors = load_weights(folder)
    projected = "visual_projection.weight" in tensors
    kind = getattr(transformers, f"{name}WithProjection" if projected else name)
    model = build_model(folder, kind, config, tensors, dtype=dtype, unused=unused)
    settle(model, train)
    tower, projection = (model.vision_model, model.visual_projection) if projected else (model, None)
    spec = EncoderSpec(
        preprocessing=preprocessing,
        text=None,
        rule=None,
        width=config.hidden_size,
        tokens=TOKENS,
        embedding=config.projection_dim if projected else config.hidden_size,
        layers=(),
    )
    return TransformersTower(tower, projection, spec)
