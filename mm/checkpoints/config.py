"""What a stranger's configuration may say: nothing that runs code, and no size that its tensors do not bear out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mm.errors import CheckpointError

# Keys that ask a library to fetch or run code. `auto_map` only offers it: no reader here ever takes it up.
_CODE = frozenset({"trust_remote_code", "_attn_implementation_internal", "custom_pipeline", "custom_pipelines"})
_ATTENTION = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")

# Sizes that are the width of some tensor, that count tensors, and the others; how far those reach is a matter of room.
_WIDTHS = frozenset({"hidden_size", "intermediate_size"})
_COUNTS = frozenset({"num_hidden_layers", "num_layers", "depth", "layers", "n_layer"})
_OTHERS = frozenset(
    {
        "vocab_size", "projection_dim", "embed_dim", "embedding", "width", "d_model", "image_size", "patch_size",
        "num_channels", "num_attention_heads", "num_key_value_heads", "head_dim", "heads", "head_width", "num_heads",
        "context_length", "num_features", "reduced", "d_in", "d_out", "height", "shortest_edge",
    }
)  # fmt: skip
_POSITIONS = "max_position_embeddings"
_MOST_POSITIONS = 1 << 24  # where no tensor holds them
_ROOM = 16  # how many times the longest side of any tensor one of the others may be
_ALWAYS = 4096  # allowed whatever the tensors: defaults that a configuration spells out and nothing uses


def check_config(config: Mapping[str, Any], name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a configuration that asks for code, or for more memory than `shapes` of the file's tensors explain.

    Raises:
        CheckpointError: the message names the file and the key.
    """
    longest = max((side for shape in shapes.values() for side in shape), default=0)
    placed = any(("position_embedding" in key or "embed_positions" in key) and "vision" not in key for key in shapes)
    for key, value in _entries(config):
        if key in _CODE and value:
            raise CheckpointError(f"{name}: {key} asks to run code that came with the weights; that is never done")
        if key in _ATTENTION and isinstance(value, str) and not value.replace("_", "").isalnum():
            raise CheckpointError(f"{name}: {key} names code on a hub, {value!r}; that is never fetched")
        if key in _WIDTHS:
            most = longest or 1 << 20
        elif key in _COUNTS:
            most = len(shapes) or 1 << 12
        elif key in _OTHERS:
            most = max(_ROOM * longest, _ALWAYS) if shapes else 1 << 20
        elif key == _POSITIONS:
            most = max(longest, _ALWAYS) if placed else _MOST_POSITIONS
        else:
            continue
        for each in value if isinstance(value, list) else [value]:
            # A list of layers may also be places, counted from either end.
            least = (-most if isinstance(value, list) else 0) if key in _COUNTS else 1
            _check_size(each, least, most, f"{name}: {key}")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key at every depth, with its value."""
    waiting: list[Any] = [config]
    while waiting:
        here = waiting.pop()
        if isinstance(here, Mapping):
            yield from here.items()
            waiting += here.values()
        elif isinstance(here, list):
            waiting += here


def _check_size(value: Any, least: int, most: int, where: str) -> None:
    if value is None or isinstance(value, (dict, list)):
        return
    if type(value) is not int:
        raise CheckpointError(f"{where}: expected a whole number, got {value!r:.40}")
    if not least <= value <= most:
        raise CheckpointError(f"{where}: {value:,} is not from {least:,} to {most:,}, which the tensors bear out")
