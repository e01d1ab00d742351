"""Reads weights and configurations strictly: safetensors only, every key accounted for, nothing executed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mm.checkpoints.config import check_config
from mm.checkpoints.paths import plain_name
from mm.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".h5", ".msgpack")  # formats never loaded

_MAX_HEADER = 100_000_000  # bytes, the bound of the safetensors format
_MAX_CONFIG = 1_000_000  # bytes of a config.json
_MAX_TOKENIZER_CONFIG = 20_000_000  # bytes; some list every added token
_MAX_DEPTH = 64  # objects and lists inside each other
_SHOWN = 5  # keys listed in a message
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Stored:
    """What the header of a safetensors file says of one tensor. dtype: the format's word, such as `F16`."""

    dtype: str
    shape: tuple[int, ...]


def no_pickles() -> str:
    """Why pickled weights are refused, and what to do about them."""
    return (
        "Pickled weights are never loaded; convert them with "
        "`safetensors.torch.save_file(torch.load(path, weights_only=True), …)` where you trust them."
    )


def check_folder(folder: Path) -> None:
    """Everything that can be said against a folder of weights before any of it is built or run.

    Links may not leave the folder (in a hub's cache: the repository), every safetensors header and shard index has to
    be sound, and every configuration plain and of a size that the tensors beside it bear out.

    Raises:
        CheckpointError: the first fault, by the name of its file.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder.name}: no such folder")
    home, weights, pickles = _home(folder), 0, []
    for at, folders, files in os.walk(folder):
        here = Path(at)
        for name in sorted((*folders, *files)):
            _check_link(here / name, home)
        pickles += [name for name in files if Path(name).suffix in PICKLES]
        weights += sum(name.endswith(".safetensors") for name in files)
        _check_files(here, sorted(files))
    if not weights:
        found = f"only {_some(sorted(pickles))}. {no_pickles()}" if pickles else "there are none"
        raise CheckpointError(f"{folder.name}: expected safetensors weights, {found}")


def _home(folder: Path) -> Path:
    """Where links may point: the folder, or the whole repository in a hub's cache (snapshots link into blobs)."""
    real = folder.resolve()
    return real.parent.parent if real.parent.name == "snapshots" else real


def _check_link(path: Path, home: Path) -> None:
    if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(home)):
        raise CheckpointError(f"{path.name}: a link that leaves its folder or points nowhere")


def _check_files(here: Path, files: list[str]) -> None:
    stored: dict[str, Stored] = {}
    for name in files:
        if name.endswith(".safetensors"):
            stored |= read_header(here / name)
        elif name.endswith(".safetensors.index.json"):
            _shards(here / name)
    shapes = {key: each.shape for key, each in stored.items()}
    for name in files:
        if name.endswith("config.json") or name == "model_index.json":
            check_config(read_json(here / name), name, shapes)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; a key given twice is refused, and so are NaN and infinity.

    Raises:
        CheckpointError: missing, too large, too deep, not JSON, or not an object.
    """
    most = _MAX_CONFIG if path.name == "config.json" else _MAX_TOKENIZER_CONFIG
    with _reading(path, "not valid JSON"):
        if not path.is_file():
            raise CheckpointError(f"{path.name}: no such file")
        if path.stat().st_size > most:
            raise CheckpointError(f"{path.name}: a configuration of more than {most:,} bytes")
        value = _parse(path.read_bytes())
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: expected a JSON object, got {type(value).__name__}")
    return value


@contextmanager
def _reading(path: Path, otherwise: str) -> Iterator[None]:
    """What goes wrong inside is a CheckpointError: the file cannot be read, or is `otherwise`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from None
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: {otherwise} ({error})") from None


def _parse(data: bytes) -> Any:
    value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} levels deep")
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [each for values in inside for each in values]
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def read_header(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds, from its header alone.

    Raises:
        CheckpointError: another format (pickles among them), a key given twice, tensors that overlap, leave gaps,
            or do not fill the file to its last byte.
    """
    with _reading(path, "damaged header"):
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(9)
            length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
            if start[8:] != b"{" or not 2 <= length <= _MAX_HEADER:
                raise CheckpointError(f"{path.name}: not a safetensors file. {no_pickles()}")
            header = _parse(start[8:] + file.read(length - 1))
        return _layout(header, size - 8 - length)


def _layout(header: dict[str, Any], room: int) -> dict[str, Stored]:
    """The entries, if they fill `room` bytes without overlap or gap."""
    stored: dict[str, Stored] = {}
    spans: list[tuple[int, int]] = []
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{key!r} is no tensor")
        dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in _BYTES:
            raise ValueError(f"{key!r} is {dtype!r}; expected one of {', '.join(_BYTES)}")
        if not (_whole(shape) and _whole(span) and len(span) == 2):
            raise ValueError(f"{key!r} has no proper shape or place")
        if span[1] - span[0] != math.prod(shape) * _BYTES[dtype]:
            raise ValueError(f"{key!r} takes {span[1] - span[0]} bytes, which its shape {tuple(shape)} does not")
        stored[key] = Stored(dtype, tuple(shape))
        spans.append((span[0], span[1]))
    spans.sort()
    if any(before[1] != after[0] for before, after in pairwise([(0, 0), *spans])):
        raise ValueError("tensors overlap or leave a gap")
    end = spans[-1][1] if spans else 0
    if end != room:
        raise ValueError(f"the tensors take {end} bytes, the file has {room}")
    return stored


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as stored.

    Raises:
        CheckpointError: what `read_header` refuses, NaN or infinity.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path.name}: damaged safetensors file ({error})") from None
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path.name}: NaN or infinity in {_some(broken)}")
    return tensors


def load_weights(folder: Path, stem: str = "model") -> dict[str, Tensor]:
    """All tensors of `stem.safetensors`, or of the shards that `stem.safetensors.index.json` lists, as stored.

    Raises:
        CheckpointError: neither is there, a shard is missing or lies outside the folder, or index and shards disagree.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if (folder / f"{stem}.safetensors").is_file() or not index.is_file():
        return load_tensors(folder / f"{stem}.safetensors")
    tensors: dict[str, Tensor] = {}
    for shard in _shards(index):
        tensors |= load_tensors(folder / shard)
    return tensors


def _shards(index: Path) -> list[str]:
    """The files of an index, each of which holds exactly the keys that the index says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index.name}: expected a weight_map from keys to files")
    shards = sorted(set(places.values()))
    for shard in shards:
        path = index.parent / plain_name(shard, index.name)
        if not path.is_file():
            raise CheckpointError(f"{index.name}: the shard {shard} is missing")
        _check_link(path, _home(index.parent))
        promised, held = {key for key, name in places.items() if name == shard}, read_header(path).keys()
        if promised != held:
            raise CheckpointError(
                f"{index.name}: {shard} does not hold what it should: {_some(sorted(promised ^ held))}"
            )
    return shards


def load_into(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Fills `module` from `tensors`, all keys and shapes equal, in the module's own dtype (float32 as a rule).

    Raises:
        CheckpointError: a key is missing or left over, a shape differs, or whole numbers stand for fractions (a
            quantised file); the message lists the first few and says what probably happened.
    """
    wanted = module.state_dict()
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(unexpected)}"] * bool(unexpected)
        cause = _cause(wanted.keys(), tensors.keys())
        raise CheckpointError(f"{name}: the weights do not fit the configuration: {'; '.join(parts)}.{cause}")
    for key, value in wanted.items():
        if value.shape != tensors[key].shape:
            raise CheckpointError(
                f"{name}: {key} should be {tuple(value.shape)} by the configuration, is {tuple(tensors[key].shape)}"
            )
        if value.is_floating_point() and not tensors[key].is_floating_point():
            raise CheckpointError(f"{name}: {key} is stored as {tensors[key].dtype}; quantised weights are not read")
    module.load_state_dict(tensors)


def _cause(wanted: Collection[str], given: Collection[str]) -> str:
    """The likely reason that two sets of keys differ."""
    if set(wanted) & set(given):
        return ""
    for start in sorted({key.partition(".")[0] + "." for key in given}):
        if set(wanted) <= {key.removeprefix(start) for key in given if key.startswith(start)}:
            return f" Every key starts with {start!r}, as a wrapper leaves it; save the module inside it."
    return " No key fits: this is another model's file, or another library's format."


def fingerprint(paths: list[Path]) -> str:
    """sha256 over the files' names and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with open(path, "rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _some(keys: list[str]) -> str:
    listed = ", ".join(keys[:_SHOWN])
    return listed if len(keys) <= _SHOWN else f"{listed} and {len(keys) - _SHOWN} more"
