"""Names that mean the same file below the same folder on every operating system."""

from __future__ import annotations

from mm.errors import CheckpointError

_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))})
_MOST_BYTES = 255  # of one part of a path, on every common file system


def plain_name(name: str, what: str) -> str:
    """`name`, if it is a relative path that stays below its folder on every operating system.

    Raises:
        CheckpointError: it climbs (`..`), is absolute, names a drive, a host or a device, or holds characters that
            some file system reads otherwise.
    """
    for part in name.split("/"):
        odd = any(ord(c) < 32 or ord(c) == 127 or c in '\\:*?"<>|' for c in part)
        climbs = part in ("", ".", "..") or part != part.strip() or part.endswith(".")
        if odd or climbs or is_device(part) or len(part.encode("utf-8", "replace")) > _MOST_BYTES:
            raise CheckpointError(f"{what}: {name!r} is no plain name below its folder")
    return name


def is_device(part: str) -> bool:
    """Whether Windows takes one part of a path for a device, whatever its suffix."""
    return part.partition(".")[0].rstrip().casefold() in _DEVICES
