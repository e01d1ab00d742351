"""From a model's name to a folder on this machine; only a hub id ever touches the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm.zoo import find


@dataclass(frozen=True)
class Located:
    """revision: the resolved commit of a hub id, "local" for a folder."""

    folder: Path
    revision: str


def locate(name: str) -> Located:
    """The folder that a name stands for.

    Raises:
        CheckpointError: no such model.
    """
    return Located(find(name), "local")
