"""Keeps what image towers found in pictures, so that the next run need not look again.

One safetensors file a picture, under the digest of everything that its content depends on. Any number of processes
may share a folder: files appear whole or not at all, and a damaged one counts as absent.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mm.encoders.base import ImageFeatures
from mm.errors import InputError
from mm.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mm.images import Picture
    from mm.joined import Joined

FORMAT = 1  # of the files; raised whenever their meaning changes

_SUFFIX = ".safetensors"
_ORPHAN_S = 3600.0  # after which an unfinished file belongs to a process that died
_FULL = 0.9  # of the bound is left once room had to be made, so that not every write has to make some
_WRITERS = 8  # processes that may share what is free before each of them looks again


@dataclass(frozen=True)
class StoreLimits:
    """How much a store may hold. max_bytes: of all its files together; while more than eight processes write at once,
    it may be a few files more."""

    max_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        if type(self.max_bytes) is not int or self.max_bytes < 1:
            raise InputError(f"StoreLimits.max_bytes: expected a positive whole number, got {self.max_bytes!r}")


class FeatureStore:
    """Features by content, in one folder. The least recently used go first where the bound is reached.

    Raises:
        InputError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], limits: StoreLimits | None = None) -> None:
        self.folder, self.limits = Path(folder), limits or StoreLimits()
        self._unseen = 0  # bytes that may be written before the folder has to be looked through
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cache: cannot make the folder {self.folder.name!r} ({error.strerror})") from None
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise InputError(f"cache: cannot write into the folder {self.folder.name!r}")

    def get(self, key: str, device: torch.device | str = "cpu") -> ImageFeatures | None:
        """The features under this key, on `device`; None where there are none, or not whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._path(key)
        try:
            data = path.read_bytes()
            tensors = load(data)
            said = json.loads(_metadata(data)["features"])
            if said["key"] != key or said["sha256"] != _content(tensors):
                return None
            found = _features({name: each.to(device) for name, each in tensors.items()}, said["grids"])
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None
        return found

    def put(self, key: str, features: ImageFeatures) -> str:
        """Keeps the features of one picture, then makes room. What could not be kept, in words; "" where all is well.

        A store that is full or broken never costs the caller the features themselves.
        """
        from safetensors.torch import save

        tensors = {name: each.detach().cpu().contiguous().clone() for name, each in _tensors(features).items()}
        grids = {str(i): list(grid) for i, grid in features.layer_grids.items()} | {"": list(features.grid)}
        said = {"key": key, "sha256": _content(tensors), "grids": grids}
        data = save(tensors, {"features": json.dumps(said)})
        if len(data) > self.limits.max_bytes:
            return f"not kept in the cache: {len(data):,} bytes, which may hold {self.limits.max_bytes:,}"
        try:
            _write(self._path(key), data)
            self._unseen -= len(data)
            if self._unseen < 0:
                self._unseen = self._make_room() // _WRITERS
        except OSError as error:
            return f"not kept in the cache ({error.strerror})"
        return ""

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / (key + _SUFFIX)

    def _make_room(self) -> int:
        """The bytes that are free, once the least recently used files of a store over its bound are gone.

        Another process may be removing the same ones.
        """
        files: list[tuple[int, int, str]] = []
        now = time.time()
        for folder in _scan(self.folder):
            for entry in _scan(Path(folder.path)) if folder.is_dir(follow_symlinks=False) else []:
                try:
                    state = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.name.endswith(_SUFFIX):
                    files.append((state.st_mtime_ns, state.st_size, entry.path))
                elif entry.name.endswith(".tmp") and now - state.st_mtime > _ORPHAN_S:
                    Path(entry.path).unlink(missing_ok=True)
        held, most = sum(size for _, size, _ in files), self.limits.max_bytes
        for _, size, path in sorted(files) if held > most else []:
            if held <= _FULL * most:
                break
            Path(path).unlink(missing_ok=True)
            held -= size
        return most - held


def as_store(cache: str | os.PathLike[str] | FeatureStore | None) -> FeatureStore | None:
    """A store from what a caller may give as `cache=`: a folder, a store, or None."""
    return cache if cache is None or isinstance(cache, FeatureStore) else _opened(os.path.abspath(cache))


@functools.lru_cache(maxsize=16)
def _opened(folder: str) -> FeatureStore:
    """One store for each folder of this process, so that calls share what they know of its size."""
    return FeatureStore(folder)


def feature_key(joined: Joined, picture: Picture) -> str:
    """sha256, in hex, over everything that the features of `picture` depend on.

    Raises:
        InputError: the model's weights have no fingerprint, or are in training, so nothing says which they are.
    """
    encoder: Any = joined.encoder
    training = getattr(encoder, "training", False) or any(p.requires_grad for p in encoder.parameters())
    if training or not joined.sha256:
        state = "is in training" if training else "has no fingerprint of its weights"
        raise InputError(f"cache: model {joined.name!r} {state}, so its features cannot be told from another's")
    at = next(iter(encoder.parameters()))
    ingredients = {
        "format": FORMAT,
        "library": __version__,
        "picture": picture.digest,
        "weights": joined.sha256,
        # Two architectures may share a file of weights: the same tower with another activation, for one.
        "architecture": hashlib.sha256(repr(encoder).encode()).hexdigest(),
        "preprocessing": joined.spec.preprocessing.to_dict(),
        "tokens": joined.spec.tokens,
        "layers": list(joined.spec.layers),
        "dtype": str(at.dtype),
        "device": at.device.type,
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _tensors(features: ImageFeatures) -> dict[str, Tensor]:
    parts = {"tokens": features.tokens, "prefix": features.prefix, "pooled": features.pooled}
    layers = {f"layers.{i}": each for i, each in features.layers.items()}
    return parts | layers | {f"layer_prefix.{i}": each for i, each in features.layer_prefix.items()}


def _features(tensors: dict[str, Tensor], grids: dict[str, list[int]]) -> ImageFeatures:
    def numbered(part: str) -> dict[int, Tensor]:
        return {int(key.partition(".")[2]): each for key, each in tensors.items() if key.startswith(part + ".")}

    places = {int(i): (h, w) for i, (h, w) in grids.items() if i}
    h, w = grids[""]
    return ImageFeatures(
        tensors["tokens"], (h, w), tensors["prefix"], tensors["pooled"],
        numbered("layers"), places, numbered("layer_prefix"),
    )  # fmt: skip


def _content(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes, types and bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        each = tensors[name]
        digest.update(f"{name} {each.dtype} {tuple(each.shape)}\n".encode())
        digest.update(each.reshape(-1).view(torch.uint8).numpy().tobytes() if each.numel() else b"")
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _write(path: Path, data: bytes) -> None:
    """The whole file or none, with the rights that the caller's umask gives to new files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
