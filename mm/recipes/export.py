"""Writes a trained `tiny`, or one part of it anew, as the folder that `mm.load` reads: each part in its own library's
format."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mm.checkpoints.reading import load_tensors, read_json
from mm.recipes.tiny_parts import (
    CONNECTOR,
    DECODER_WIDTH,
    DETECT,
    EMBEDDING,
    PIXELS,
    SEGMENT,
    SPEC,
    VISION_ARCHITECTURE,
    VISION_ARGS,
    WIDTH,
    prepare,
)  # fmt: skip
from mm.recipes.tokenizer import DEFAULT_PROMPT
from mm.scenes.render import render_scene
from mm.world import describe

if TYPE_CHECKING:
    from mm.recipes.tiny import WordsTraining

_WORLD_SCENES, _WORLD_SEED = 3000, 900_000_000
_FLOOR = 1e-3  # of the whitening's variances, in units of a channel's own spread


@contextmanager
def replacing(out: Path, start: Path | None = None) -> Iterator[Path]:
    """An empty folder, or a copy of `start`, to be filled; it takes the place of `out` as a whole at the end, so that
    a reader never sees half of it. `start` may be `out`."""
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    shutil.rmtree(partial, ignore_errors=True)
    if start is None:
        partial.mkdir(parents=True)
    else:
        shutil.copytree(start, partial)
    yield partial
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def export(training: WordsTraining, out: Path, *, matting_of: Path | None = None) -> None:
    """Replaces `out` as a whole. Weights are stored as float16.

    matting_of: a folder over the same vision tower, whose matting head is taken over where it has one.
    """
    with replacing(out) as partial:
        _write(training, partial)
        settings = read_json(matting_of / "config.json") if matting_of else {}
        if matting_of and "matter" in settings:
            theirs = load_tensors(matting_of / "joined.safetensors")
            head = {k.removeprefix("matter."): v for k, v in theirs.items() if k.startswith("matter.")}
            put_matting(head, settings["matter"], partial)
        for kept in ("scores.json", "scores_unseen.json", "README.md"):
            if (out / kept).exists():
                shutil.copy(out / kept, partial / kept)


def put_vision(encoder: Any, folder: Path) -> None:
    """Replaces the vision tower of an exported folder, and what was measured of the drawn world through it."""
    shutil.rmtree(folder / "vision")
    _vision(encoder.vision, folder / "vision")
    world, threshold = _world(encoder)
    _put_tensors(world, "world.", folder)
    settings = read_json(folder / "config.json")
    settings["world"]["threshold"] = round(threshold, 4)
    _write_json(folder / "config.json", settings)


def put_part(part: nn.Module, name: str, folder: Path) -> None:
    """Replaces the weights of a head in an exported folder."""
    _put_tensors({f"{name}.{k}": v for k, v in part.state_dict().items()}, f"{name}.", folder)


def _put_tensors(tensors: dict[str, Tensor], prefix: str, folder: Path) -> None:
    path = folder / "joined.safetensors"
    others = {k: v for k, v in load_tensors(path).items() if not k.startswith(prefix)}
    _save(others | tensors, path)


def put_matting(weights: dict[str, Tensor], settings: dict[str, Any], folder: Path) -> None:
    """Replaces the matting head of an exported folder, or gives it one. weights: by the head's own names."""
    _put_tensors({f"matter.{k}": v for k, v in weights.items()}, "matter.", folder)
    _write_json(folder / "config.json", read_json(folder / "config.json") | {"matter": settings})


def _write(training: WordsTraining, partial: Path) -> None:
    _vision(training.encoder.vision, partial / "vision")
    _text(training, partial / "text")
    _decoder(training, partial / "decoder")
    world, threshold = _world(training.encoder)
    heads = training.heads
    connector: Any = training.speaker["connector"]
    connector.find_as(heads["detect"])
    parts: dict[str, nn.Module] = {
        "detector": heads["detect"],
        "segmenter": heads["segment"],
        "connector": connector,
    }
    joined = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    joined["encoder.logit_scale"] = training.encoder.logit_scale.detach()
    _save(joined | world, partial / "joined.safetensors")
    _write_json(partial / "config.json", _config(threshold))


def _config(threshold: float) -> dict[str, Any]:
    return {
        "name": "tiny",
        "revision": "1",
        "licence": "Apache-2.0",
        "encoder": dataclasses.asdict(SPEC),
        "detector": dataclasses.asdict(DETECT),
        "segmenter": dataclasses.asdict(SEGMENT),
        "speaker": {"connector": CONNECTOR, "d_in": WIDTH, "d_out": DECODER_WIDTH, "prompt": DEFAULT_PROMPT},
        "world": {"name": "drawn scenes", "threshold": round(threshold, 4)},
    }


def _vision(vision: nn.Module, folder: Path) -> None:
    folder.mkdir()
    _save(vision.state_dict(), folder / "model.safetensors")
    _write_json(folder / "config.json", {
        "architecture": VISION_ARCHITECTURE,
        "num_classes": EMBEDDING,
        "num_features": WIDTH,
        "model_args": VISION_ARGS,
        "pretrained_cfg": {
            "tag": "mm_tiny", "custom_load": False, "input_size": [3, *PIXELS.input_hw], "fixed_input_size": True,
            "interpolation": PIXELS.resample, "crop_pct": 1.0, "crop_mode": "squash",
            "mean": PIXELS.mean, "std": PIXELS.std, "num_classes": EMBEDDING,
            "pool_size": [8, 8], "first_conv": "stem.conv1", "classifier": "head.fc",
        },
    })  # fmt: skip


def _text(training: WordsTraining, folder: Path) -> None:
    text: Any = training.encoder.text
    text.config.save_pretrained(folder)
    training.encoder.rules.tokenizer.save_pretrained(folder)
    _save(text.state_dict(), folder / "model.safetensors")
    mean, std = list(PIXELS.mean), list(PIXELS.std)
    _write_json(folder.parent / "preprocessor_config.json", {
        "do_resize": True, "size": {"height": PIXELS.input_hw[0], "width": PIXELS.input_hw[1]}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": std,
    })  # fmt: skip


def _decoder(training: WordsTraining, folder: Path) -> None:
    lm: Any = training.speaker["decoder"]
    lm.config.save_pretrained(folder)
    training.encoder.rules.tokenizer.save_pretrained(folder)
    _save({k: v for k, v in lm.state_dict().items() if k != "lm_head.weight"}, folder / "model.safetensors")


@torch.inference_mode()
def _world(encoder: Any) -> tuple[dict[str, Tensor], float]:
    """Mean and whitening of what fresh seen scenes look like; the threshold lets 99 % of others pass."""
    found = torch.cat([_described(encoder, range(s, s + 50)) for s in range(0, _WORLD_SCENES, 50)]).double()
    fitted, held = found[: len(found) * 2 // 3], found[len(found) * 2 // 3 :]
    mean, spread = fitted.mean(0), fitted.std(0) + 1e-6
    values, vectors = torch.linalg.eigh(torch.cov(((fitted - mean) / spread).T))
    whiten = vectors / (values.clamp(min=0) + _FLOOR).sqrt() / spread[:, None]
    distance = ((held - mean) @ whiten).square().mean(-1).sqrt()
    return {"world.mean": mean.float(), "world.whiten": whiten.float()}, float(distance.quantile(0.99))


def _described(encoder: Any, seeds: range) -> Tensor:
    sizes = ((128, 128), (160, 112), (112, 160))
    scenes = [
        render_scene(_WORLD_SEED + s, sizes[s % 3]).pil().resize(PIXELS.input_hw, Image.Resampling.BILINEAR)
        for s in seeds
    ]
    pixels = torch.stack([torch.from_numpy(np.array(scene)).permute(2, 0, 1) for scene in scenes])
    return describe(encoder.encode_image(prepare(pixels), SPEC.layers))


def _save(tensors: dict[str, Tensor], path: Path, keep: tuple[str, ...] = ("world.", "encoder.")) -> None:
    """float16, but integers and what `keep` names stay as they are. Readable like any other file."""
    half = {k: v.half() if v.is_floating_point() and not k.startswith(keep) else v for k, v in tensors.items()}
    save_file({k: v.detach().clone().contiguous() for k, v in half.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
