"""ViTMatte: from a picture and its trimap to alpha, with released weights, for photographs of any size.

Yao et al., "ViTMatte: Boosting Image Matting with Pretrained Plain Vision Transformers" (2023). The network is
transformers' `VitMatteForImageMatting`; what surrounds it is ours: strict weights, the preprocessing, and overlapping
tiles, of which only those with unknown pixels are run, so that memory depends on the tile and not on the picture.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mm.checkpoints.hub import locate
from mm.checkpoints.reading import check_folder, fingerprint, load_into, load_tensors, read_json
from mm.errors import CheckpointError, InputError
from mm.pictures.tiles import Tile, blended, tiles

UNKNOWN = 128  # in a trimap; 0 is known background, 255 known foreground
_DIVISOR = 32  # sides of the network's input
_LEAST_TILE = 64

_loaded: dict[Path, VitMatte] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class VitMatteConfig:
    """How a checkpoint wants its pictures: mean and std of pixels in 0..1. The trimap is only divided by 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class VitMatte:
    """A loaded checkpoint. revision: a commit, or "local"; sha256: of its weight files."""

    network: Any
    config: VitMatteConfig
    name: str
    revision: str
    sha256: str

    @torch.inference_mode()
    def alpha(self, pixels: np.ndarray, trimap: np.ndarray, *, tile: int = 768) -> np.ndarray:
        """float32[H, W] in 0..1; exactly 0 and 1 where the trimap knows.

        pixels: uint8[H, W, 3], RGB. trimap: uint8[H, W] of 0, 128 and 255. tile: side in pixels of the squares that a
        larger picture is read in; neighbours share a quarter.

        Raises:
            InputError: the trimap is not of the picture's size or has other values, or the tile is too small.
        """
        _check(pixels, trimap, tile)
        unknown = trimap == UNKNOWN
        known = (trimap == 255).astype(np.float32)
        if not unknown.any():
            return known

        def parts() -> Iterator[tuple[Tile, np.ndarray]]:
            for at in tiles(trimap.shape, tile):
                window = np.s_[at.top : at.bottom, at.left : at.right]
                found = self._run(pixels[window], trimap[window]) if unknown[window].any() else known[window]
                yield at, found[None]

        return np.where(unknown, np.clip(blended(trimap.shape, parts())[0], 0, 1), known)

    def inputs(self, pixels: np.ndarray, trimap: np.ndarray) -> torch.Tensor:
        """float32[1, 4, h, w]: the normalised picture and the trimap over 255, padded with 0 below and on the right."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.config.mean, self.config.std))
        picture = (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std
        guide = torch.tensor(trimap)[None] / 255
        height, width = trimap.shape
        return F.pad(torch.cat([picture, guide]), (0, -width % _DIVISOR, 0, -height % _DIVISOR))[None]

    def _run(self, pixels: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        height, width = trimap.shape
        values = self.inputs(pixels, trimap).to(next(self.network.parameters()).device)
        return self.network(values).alphas[0, 0, :height, :width].float().cpu().numpy()


def _check(pixels: np.ndarray, trimap: np.ndarray, tile: int) -> None:
    if trimap.dtype != np.uint8 or trimap.shape != pixels.shape[:2]:
        raise InputError(f"trimap: expected uint8{list(pixels.shape[:2])}, got {trimap.dtype}{list(trimap.shape)}")
    other = trimap[~np.isin(trimap, (0, UNKNOWN, 255))]
    if other.size:
        raise InputError(f"trimap: expected only 0, {UNKNOWN} and 255, got {int(other[0])}")
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < _LEAST_TILE or tile % _DIVISOR:
        raise InputError(f"tile: expected a multiple of {_DIVISOR} from {_LEAST_TILE}, got {tile!r}")


def load_vitmatte(name: str | os.PathLike[str]) -> VitMatte:
    """The checkpoint of a hub id or a folder (`mm.checkpoints.names`), in float32, loaded once a process.

    Raises:
        CheckpointError: there is none, it is of another model, or its files are damaged or do not fit together.
    """
    found = locate(name)
    key = found.folder.resolve()
    with _lock:
        if key not in _loaded:
            _loaded[key] = _load(found.folder, os.path.basename(os.fspath(name)) or "vitmatte", found.revision)
        return _loaded[key]


def _load(folder: Path, name: str, revision: str) -> VitMatte:
    from transformers import VitMatteConfig as Settings
    from transformers import VitMatteForImageMatting

    check_folder(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "vitmatte":
        raise CheckpointError(f'{folder.name}: expected model_type "vitmatte" in config.json, got {kind!r}')
    weights = sorted(folder.glob("*.safetensors"))
    tensors = {k: v for path in weights for k, v in load_tensors(path).items()}
    with torch.random.fork_rng(devices=[]):  # building a module draws numbers; the caller's stream is not ours
        network = VitMatteForImageMatting(Settings.from_pretrained(folder, local_files_only=True))
    load_into(network, tensors, f"{folder.name}/model.safetensors")
    network.eval().requires_grad_(False)
    return VitMatte(network, _preprocessing(folder), name, revision, fingerprint(weights))


def _preprocessing(folder: Path) -> VitMatteConfig:
    said = read_json(folder / "preprocessor_config.json")
    for key in ("do_rescale", "do_normalize", "do_pad"):
        if said.get(key, True) is not True:
            raise CheckpointError(f"preprocessor_config.json: {key}={said[key]!r} is not done here, expected true")
    mean, std = said.get("image_mean"), said.get("image_std")
    if not all(isinstance(v, list) and len(v) == 3 for v in (mean, std)):
        raise CheckpointError("preprocessor_config.json: expected image_mean and image_std of three numbers each")
    assert isinstance(mean, list) and isinstance(std, list)
    return VitMatteConfig((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
