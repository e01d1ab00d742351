"""`model="photo"`: for each task the published checkpoint that suits photographs, fetched at its first use."""

from __future__ import annotations

import sys
import threading
from typing import Any

from mm.checkpoints.names import parse
from mm.zoo import MODELS, PHOTO, PHOTO_MATTER, PHOTO_NAME, Entry, no_photo

_WEIGHTS = "model.safetensors"  # of every repository that the tables of the alias name

_told: set[str] = set()
_guard = threading.Lock()


def for_task(model: Any, task: str) -> Any:
    """The model that `photo` stands for in this task; every other model as it is.

    Licence and size are written to standard error before what is not in the hub's cache is fetched.

    Raises:
        CheckpointError: `photo`, for a task that has none.
    """
    if not _is_photo(model):
        return model
    if task not in PHOTO:
        raise no_photo(task)
    _tell(MODELS[PHOTO[task]])
    return PHOTO[task]


def for_matte(model: Any, method: Any, matter: Any) -> tuple[Any, Any, Any]:
    """As `for_task`, for matting, which `photo` does by trimap: its segmentation, the method, and the matter.

    A matter that is given stays.
    """
    if not _is_photo(model):
        return model, method, matter
    name = for_task(model, "matte")
    if matter is None:
        _tell(PHOTO_MATTER)
        matter = PHOTO_MATTER.reference
    return name, "trimap", matter


def _is_photo(model: Any) -> bool:
    return isinstance(model, str) and model == PHOTO_NAME


def _tell(entry: Entry) -> None:
    """One line on standard error, once a process, where the weights have yet to be fetched."""
    from huggingface_hub import constants, try_to_load_from_cache

    with _guard:
        if entry.name in _told or constants.HF_HUB_OFFLINE:
            return
        if isinstance(try_to_load_from_cache(parse(entry.reference).name, _WEIGHTS), str):
            return
        _told.add(entry.name)
    size = f"{entry.parameters * entry.stored:,.0f} MB"
    print(f"photo: fetching {entry.reference}, about {size}; licence: {entry.licence}", file=sys.stderr)
