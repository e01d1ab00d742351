"""What the library knows of models by name. Reading this table imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm.errors import CheckpointError, nearest


@dataclass(frozen=True)
class Entry:
    """One model. parameters: in millions. input: pixels. world: what its training pictures were."""

    name: str
    tasks: tuple[str, ...]
    architecture: str
    parameters: float
    input: str
    world: str
    licence: str
    note: str


MODELS: dict[str, Entry] = {
    "tiny": Entry(
        name="tiny",
        tasks=("caption", "ask", "detect", "segment", "classify", "embed"),
        architecture="CoAtNet + CLIP text tower, OWL head, CLIPSeg-style head, MLP into a 4-layer Llama",
        parameters=7.9,
        input="128x128",
        world="drawn scenes (mm.scenes)",
        licence="Apache-2.0",
        note="embedded; trained by this project on drawings, not on photographs",
    ),
}

EMBEDDED = Path(__file__).resolve().parent / "weights"


def find(name: str) -> Path:
    """The folder of a model: an embedded one by its name, or a folder of yours by its path.

    Raises:
        CheckpointError: neither.
    """
    if name in MODELS:
        return EMBEDDED / name
    if (Path(name) / "config.json").is_file():
        return Path(name)
    raise CheckpointError(
        f"no model {name!r}: neither a known name ({', '.join(MODELS)}) nor a folder with a config.json."
        + nearest(name, MODELS)
    )
