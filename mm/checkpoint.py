"""Reads weights and configurations strictly: safetensors only, every key accounted for, nothing executed."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_HEADER = 100_000_000  # bytes, the bound of the safetensors format
_MAX_CONFIG = 1_000_000  # bytes of a config.json
_SHOWN = 5  # keys listed in a message


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; a key given twice is refused.

    Raises:
        CheckpointError: missing, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise CheckpointError(f"{path.name}: a configuration of more than {_MAX_CONFIG:,} bytes")
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: expected a JSON object, got {type(value).__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as stored.

    Raises:
        CheckpointError: not safetensors (pickles among them), truncated, a key given twice, NaN or infinity.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path.name}: damaged safetensors file ({error})") from None
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path.name}: NaN or infinity in {_some(broken)}")
    return tensors


def _check_header(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start[:2] in (b"\x80\x02", b"\x80\x04", b"PK") or not 2 <= size <= _MAX_HEADER:
                raise CheckpointError(
                    f"{path.name}: not a safetensors file. Pickled weights are never loaded; convert them with "
                    "`safetensors.torch.save_file(torch.load(path, weights_only=True), …)` where you trust them."
                )
            json.loads(file.read(size), object_pairs_hook=_once)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name}: damaged header ({error})") from None


def load_into(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Fills `module` from `tensors`, all keys and shapes equal, in the module's own dtype (float32 as a rule).

    Raises:
        CheckpointError: a key is missing or left over, or a shape differs; the message lists the first few.
    """
    wanted = module.state_dict()
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(unexpected)}"] * bool(unexpected)
        raise CheckpointError(f"{name}: the weights do not fit the configuration: {'; '.join(parts)}")
    for key, value in wanted.items():
        if value.shape != tensors[key].shape:
            raise CheckpointError(
                f"{name}: {key} should be {tuple(value.shape)} by the configuration, is {tuple(tensors[key].shape)}"
            )
    module.load_state_dict(tensors)


def fingerprint(paths: list[Path]) -> str:
    """sha256 over the files' names and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _some(keys: list[str]) -> str:
    listed = ", ".join(keys[:_SHOWN])
    return listed if len(keys) <= _SHOWN else f"{listed} and {len(keys) - _SHOWN} more"
