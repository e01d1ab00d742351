"""Folders of detectors and segmenters as others published them, read as joined models.

The towers come through their encoder adapter; the head's tensors through the key table beside the head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from mm.checkpoints.reading import load_into, read_json
from mm.encoders.base import EncoderSpec
from mm.errors import CheckpointError
from mm.heads import clipseg, owlvit

_TOWERS = ("owlvit.", "owlv2.", "clip.")
HEADS = ("owlvit", "owlv2", "clipseg")  # model_type of folders that hold a head beside an encoder


def head_parts(folder: Path, spec: EncoderSpec) -> dict[str, nn.Module]:
    """`detector` or `segmenter` of a released folder; empty for an encoder alone.

    Raises:
        CheckpointError: the folder's tensors do not fit its configuration.
    """
    if not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in HEADS:
        return {}
    tensors = _head_tensors(folder)
    if kind == "clipseg":
        return {"segmenter": _clipseg(config, tensors, spec)} if tensors else {}
    return {"detector": _owl(config, tensors, spec)} if tensors else {}


def _head_tensors(folder: Path) -> dict[str, Tensor]:
    """What the files hold beside the towers, in float32. The adapter has checked the files themselves."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            keys = [k for k in file.keys() if not k.startswith(_TOWERS)]  # noqa: SIM118  (no mapping)
            found |= {k: file.get_tensor(k).float() for k in keys}
    broken = [k for k, v in found.items() if not v.isfinite().all()]
    if broken:
        raise CheckpointError(f"{folder.name}: NaN or infinity in {', '.join(broken[:5])}")
    return found


def _owl(config: dict[str, Any], tensors: dict[str, Tensor], spec: EncoderSpec) -> owlvit.OwlHead:
    settings = owlvit.OwlConfig(
        width=spec.width,
        embedding=spec.embedding,
        merge_class_token=True,
        objectness=config["model_type"] == "owlv2",
        score="label",
        norm_eps=config.get("vision_config", {}).get("layer_norm_eps", 1e-5),
        vote=False,
    )
    head = owlvit.OwlHead(**vars(settings))
    known = tuple(f"{key}." for key in owlvit.RELEASED_KEYS)
    left = {k: v for k, v in tensors.items() if not k.startswith(known) and k != "box_bias"}
    load_into(head, owlvit.released_weights(tensors) | left, "detection head")
    return head.eval().requires_grad_(False)


def _clipseg(config: dict[str, Any], tensors: dict[str, Tensor], spec: EncoderSpec) -> clipseg.ClipSegHead:
    vision = config.get("vision_config", {})
    settings = clipseg.ClipSegConfig(
        width=spec.width,
        embedding=spec.embedding,
        reduced=config.get("reduce_dim", 64),
        layers=tuple(config.get("extract_layers", (3, 6, 9))),
        conditional=config.get("conditional_layer", 0),
        heads=config.get("decoder_num_attention_heads", 4),
        hidden=config.get("decoder_intermediate_size", 2048),
        patch=vision.get("patch_size", 32),
        refined=bool(config.get("use_complex_transposed_convolution", False)),
        norm_eps=vision.get("layer_norm_eps", 1e-5),
    )
    head = clipseg.ClipSegHead(**vars(settings))
    left = {k: v for k, v in tensors.items() if not k.startswith("decoder.")}
    load_into(head, clipseg.released_weights(tensors) | left, "segmentation decoder")
    return head.eval().requires_grad_(False)
