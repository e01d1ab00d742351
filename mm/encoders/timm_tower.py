"""Image towers of timm: a folder with config.json and model.safetensors, or a name of timm's own list.

The functions over a bare trunk serve open_clip as well, whose newer image towers are timm's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from mm.checkpoints.reading import load_into, load_tensors, no_pickles, read_json
from mm.encoders.base import EncoderSpec, Grid, ImageFeatures, TextFeatures
from mm.encoders.build import Dtype
from mm.encoders.fuse import fused, likes_channels_last
from mm.encoders.preprocess import Preprocessing
from mm.errors import CheckpointError, InputError, nearest
from mm.quick import quicken

Module = TypeVar("Module", bound=nn.Module)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STEM = re.compile(r"(^|\.)(stem|act1$|conv|bn1$|layer0$|norm0$)")  # timm lists some stems as a first feature
_LABELS = (1000, 10450, 11221, 11821, 12000, 18291, 19167, 21841, 21843)  # classes of the ImageNets and their parts
_BUILD_ERRORS = (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError)


@dataclass(frozen=True)
class TrunkFeatures:
    """One pass of a trunk. final: what `forward_features` gave, for the head. The rest as in `ImageFeatures`."""

    final: Tensor
    tokens: Tensor
    prefix: Tensor
    grid: Grid
    layers: dict[int, Tensor]
    layer_grids: dict[int, Grid]

    def with_pooled(self, pooled: Tensor) -> ImageFeatures:
        return ImageFeatures(self.tokens, self.grid, self.prefix, pooled, self.layers, self.layer_grids)


class TimmTower(nn.Module):
    """An image tower alone.

    `pooled` is the classifier's output where that is a projection into a joint space (CLIP towers: `num_classes` is
    the embedding's width), and the pooled features in front of the classifier where it tells labels apart or is
    missing. It tells labels apart if the configuration names them or their number is that of an ImageNet.
    """

    trunk: Any

    def __init__(self, trunk: nn.Module, spec: EncoderSpec, *, labels: bool, channels_last: bool) -> None:
        super().__init__()
        self.trunk, self.spec, self.rules = trunk, spec, None
        self.labels, self.channels_last = labels, channels_last

    def encode_image(self, pixels: Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        pixels = placed(pixels, next(self.parameters()), channels_last=self.channels_last)
        out = trunk_features(self.trunk, pixels, layers)
        return out.with_pooled(self.trunk.forward_head(out.final, pre_logits=self.labels))

    def encode_text(self, texts: list[str]) -> TextFeatures:
        raise InputError("this encoder is an image tower of timm and has no text tower")

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        raise InputError("this encoder is an image tower of timm and has no text tower to be similar to")


def load(folder: Path, *, dtype: Dtype, train: bool, image_hw: tuple[int, int] | None = None) -> TimmTower:
    """The tower of a folder in timm's format.

    image_hw: another input size than the checkpoint's; position embeddings are resampled as timm does it.

    Raises:
        CheckpointError: unknown architecture, files that are missing, pickled, damaged or do not fit together.
    """
    config = read_json(folder / "config.json")
    known_architecture(str(config.get("architecture")), folder.name)
    weights = weights_in(folder, ("model.safetensors",))
    trunk = built(folder.name, timm.create_model, f"local-dir:{folder}")
    return _tower(trunk, folder.name, weights, dtype=dtype, train=train, image_hw=image_hw)


def load_named(
    name: str,
    weights: Path | None,
    *,
    dtype: Dtype = "float32",
    train: bool = False,
    image_hw: tuple[int, int] | None = None,
) -> TimmTower:
    """The tower that timm calls `name` (`fastvit_mci2`, or with a tag, `fastvit_mci2.apple_mclip`).

    weights: a safetensors file with timm's keys; None leaves the tower as timm initialises it, to train from scratch.

    Raises:
        CheckpointError: as `load`.
    """
    known_architecture(name, "timm")
    trunk = built(name, timm.create_model, name)
    return _tower(trunk, name, weights, dtype=dtype, train=train, image_hw=image_hw)


def _tower(
    trunk: Any, name: str, weights: Path | None, *, dtype: Dtype, train: bool, image_hw: tuple[int, int] | None
) -> TimmTower:
    tensors = load_tensors(weights) if weights else {}
    if weights:
        load_into(trunk, tensors, f"{name}, {weights.name}")
    hw = resized(trunk, image_hw, name)
    if not train:
        trunk = fused(trunk.eval(), probe_hw(trunk, hw), name)
    channels_last = not train and likes_channels_last(trunk)
    config = trunk.pretrained_cfg
    labels = trunk.num_classes == 0 or trunk.num_classes in _LABELS or bool(config.get("label_names"))
    spec = EncoderSpec(
        preprocessing=timm_preprocessing(config, hw, name),
        text=None,
        rule=None,
        width=trunk.num_features,
        tokens=tokens_in_words(trunk),
        embedding=trunk.head_hidden_size if labels else trunk.num_classes,
        layers=(),
    )
    tower = TimmTower(trunk, spec, labels=labels, channels_last=channels_last)
    return settled(tower, torch_dtype(dtype, tensors), train=train, channels_last=channels_last)


def trunk_features(trunk: Any, pixels: Tensor, layers: tuple[int, ...]) -> TrunkFeatures:
    """One pass of a timm trunk over pixels that `placed` has made ready.

    Raises:
        InputError: pixels of a size that the trunk cannot read, or a layer that it lacks.
        CheckpointError: the trunk's features are not a map, nor tokens on a grid.
    """
    check_pixels(pixels, fixed_hw(trunk))
    stems = int(_is_stem(trunk))
    chosen = layer_indices(layers, len(trunk.feature_info) - stems)
    wanted = sorted({i + stems for i in chosen.values()})
    if wanted:
        final, found = trunk.forward_intermediates(pixels, indices=wanted, norm=False)
    else:
        final, found = trunk.forward_features(pixels), []
    maps = {i - stems: m for i, m in zip(wanted, found, strict=True)}
    tokens, prefix, grid = _split(trunk, final, pixels.shape[2:])
    return TrunkFeatures(
        final,
        tokens,
        prefix,
        grid,
        {asked: maps[i].flatten(2).transpose(1, 2) for asked, i in chosen.items()},
        {asked: (maps[i].shape[2], maps[i].shape[3]) for asked, i in chosen.items()},
    )


def _is_stem(trunk: Any) -> bool:
    return bool(_STEM.search(trunk.feature_info[0]["module"]))


def _split(trunk: Any, final: Any, hw: torch.Size) -> tuple[Tensor, Tensor, Grid]:
    """Patch tokens, prefix tokens and grid of what `forward_features` gave."""
    if not isinstance(final, Tensor) or final.ndim not in (3, 4):
        raise CheckpointError(f"{type(trunk).__name__}: its features are not one map, so it cannot be an encoder")
    if final.ndim == 4:
        last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        height, width = final.shape[1:3] if last else final.shape[2:]
        tokens = final.flatten(1, 2) if last else final.flatten(2).transpose(1, 2)
        return tokens, tokens[:, :0], (height, width)
    count = getattr(trunk, "num_prefix_tokens", 0)
    tokens, stride = final[:, count:], trunk.feature_info[-1]["reduction"]
    grid = (hw[0] // stride, hw[1] // stride)
    if grid[0] * grid[1] != tokens.shape[1]:
        raise CheckpointError(
            f"{type(trunk).__name__}: {tokens.shape[1]} tokens of a {hw[0]} x {hw[1]} picture are no "
            f"{grid[0]} x {grid[1]} grid, so it cannot be an encoder"
        )
    return tokens, final[:, :count], grid


def tokens_in_words(trunk: Any) -> str:
    """For `EncoderSpec.tokens`."""
    if hasattr(trunk, "final_conv") and isinstance(trunk.final_conv, nn.Module):
        return "the grid after the final convolution, which the head pools; the last stage is a layer of its own"
    if getattr(trunk, "num_prefix_tokens", None) is not None:
        return "patch tokens after the last norm"
    return "the last stage's map, as forward_features gives it"


def layer_indices(asked: tuple[int, ...], count: int) -> dict[int, int]:
    """What was asked, counted from 0: {-1: 11} in a tower of 12 blocks."""
    for index in asked:
        if not -count <= index < count:
            raise InputError(f"layers: expected {-count} … {count - 1} of this tower's {count} blocks, got {index}")
    return {index: index % count for index in asked}


def check_pixels(pixels: Tensor, hw: tuple[int, int] | None) -> None:
    """Raises InputError unless the pixels are float[B, 3, H, W], of `hw` where that is given."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or (hw and tuple(pixels.shape[2:]) != hw):
        height, width = hw or ("H", "W")
        raise InputError(f"pixels: expected [B, 3, {height}, {width}], got {list(pixels.shape)}")


def placed(pixels: Tensor, like: Tensor, *, channels_last: bool) -> Tensor:
    """float[B, 3, H, W] on the tower's device, in its dtype and memory format."""
    check_pixels(pixels, None)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return pixels.to(device=like.device, dtype=like.dtype, memory_format=layout)


def fixed_hw(trunk: Any) -> tuple[int, int] | None:
    """The one input size of a trunk with position embeddings; None where any size will do."""
    embed = getattr(trunk, "patch_embed", None)
    strict = getattr(embed, "strict_img_size", False) or trunk.pretrained_cfg.get("fixed_input_size", False)
    if getattr(trunk, "dynamic_img_size", False) or not strict:
        return None
    height, width = getattr(embed, "img_size", None) or trunk.pretrained_cfg["input_size"][1:]
    return height, width


def resized(trunk: Any, image_hw: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """The input size from now on: `image_hw`, for which a fixed trunk is changed, or the trunk's own."""
    own = fixed_hw(trunk)
    height, width = own or trunk.pretrained_cfg["input_size"][1:]
    if image_hw is None or image_hw == own:
        return height, width
    if own is not None:
        if not hasattr(trunk, "set_input_size"):
            raise CheckpointError(f"{name}: reads {height} x {width} pixels only, not {image_hw[0]} x {image_hw[1]}")
        built(name, trunk.set_input_size, img_size=image_hw)
    return image_hw


def probe_hw(trunk: Any, hw: tuple[int, int]) -> tuple[int, int]:
    """A size that is cheap to read: two cells of the coarsest grid where any size will do."""
    side = 2 * trunk.feature_info[-1]["reduction"]
    return hw if fixed_hw(trunk) else (min(side, hw[0]), min(side, hw[1]))


def timm_preprocessing(config: dict[str, Any], hw: tuple[int, int], name: str) -> Preprocessing:
    """timm's own evaluation transform of a `pretrained_cfg`, for an input of `hw`.

    A frame that is not square is covered as it is, without the margin of `crop_pct`.
    """
    data = resolve_data_config(pretrained_cfg=config)
    if data["interpolation"] not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise CheckpointError(f"{name}: interpolation {data['interpolation']!r} is none of this library's filters")
    edge = math.floor(hw[0] / data["crop_pct"])
    whole = edge == hw[0] or hw[0] != hw[1]
    policies: dict[str, Any] = {"center": "crop", "squash": "squash", "border": "letterbox"}
    mode = data["crop_mode"] or "center"
    if mode not in policies or (mode == "border" and not whole):
        raise CheckpointError(f"{name}: crop_mode {mode!r} with crop_pct {data['crop_pct']} is not supported")
    red, green, blue = (float(v) for v in data["mean"])
    return Preprocessing(
        input_hw=hw,
        policy=policies[mode],
        resample=data["interpolation"],
        mean=(red, green, blue),
        std=triple(data["std"]),
        shortest_edge=None if whole else edge,
        centre="even",
        fill=(round(255 * red), round(255 * green), round(255 * blue)) if mode == "border" else (0, 0, 0),
        patch=None,
        max_patches=None,
    )


def triple(values: Any) -> tuple[float, float, float]:
    """Three numbers, from three or from one."""
    red, green, blue = values if isinstance(values, (tuple, list)) else (values,) * 3
    return float(red), float(green), float(blue)


def known_architecture(architecture: str, where: str) -> None:
    """Raises CheckpointError unless timm itself knows the name; prefixes that would fetch it are not names."""
    if ":" in architecture or "/" in architecture or not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise CheckpointError(f"{where}: timm has no model {architecture!r}.{near}")


def built(name: str, build: Any, *args: Any, **kwargs: Any) -> Any:
    """`build(*args)`, whose refusals become CheckpointErrors; the caller's random stream is left as it was."""
    try:
        with torch.random.fork_rng(devices=[]):
            return build(*args, **kwargs)
    except _BUILD_ERRORS as error:
        raise CheckpointError(f"{name}: cannot be built from its configuration ({error})") from error


def weights_in(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these safetensors files that the folder has; CheckpointError where it has none."""
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder.name}: no weights; expected {' or '.join(names)}. {no_pickles()}")
    return found[0]


def torch_dtype(dtype: Dtype, tensors: dict[str, Tensor]) -> torch.dtype:
    """`auto` is what most weights of the file are in."""
    if dtype != "auto":
        return _DTYPES[dtype]
    kinds = Counter({kind: 0 for kind in [torch.float32]})
    for tensor in tensors.values():
        if tensor.is_floating_point():
            kinds[tensor.dtype] += tensor.numel()
    return kinds.most_common(1)[0][0]


def settled(module: Module, dtype: torch.dtype, *, train: bool, channels_last: bool) -> Module:
    """The module in its final dtype and mode, frozen unless it is to be trained."""
    module.to(dtype)
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not train:
        quicken(module)
    return module.train(train).requires_grad_(train)
