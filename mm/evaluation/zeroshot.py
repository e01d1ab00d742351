"""Zero-shot accuracy on a folder of class folders, as ImageNet's validation set is usually unpacked."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mm.checkpoints.loading import as_model
from mm.encoded import encode_pictures, stacked
from mm.errors import InputError, MMError
from mm.images import open_image
from mm.joined import Joined
from mm.templates import AS_IS, PHOTO, chosen

_AT_ONCE = 32
_WORDNET = re.compile(r"n\d{8}")
_IMAGENET = 1000
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


@torch.inference_mode()
def evaluate_zeroshot(
    model: str | Joined,
    data: str | os.PathLike[str],
    *,
    templates: str | Sequence[str] | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Top-1 and top-5 in percent over all pictures of the class folders below `data`.

    A folder is named by its label, underscores as spaces; a full set of ImageNet's 1000 WordNet numbers gets the
    names that open_clip uses. templates: as in `mm.classify`. limit: pictures of each class, the first by name.
    Pictures that cannot be read are counted, and left out of the accuracy.

    Raises:
        InputError: no class folders, or WordNet numbers of an incomplete set.
    """
    folders = sorted(path for path in Path(data).iterdir() if path.is_dir()) if Path(data).is_dir() else []
    if len(folders) < 2:
        raise InputError(f"{Path(data).name}: expected a folder of class folders, found {len(folders)} folder(s)")
    labels = class_names([folder.name for folder in folders])
    joined = as_model(model)
    sentences = chosen(templates, AS_IS if joined.world else PHOTO)
    texts, _ = joined.texts.embed(joined.encoder, labels, sentences)
    files = [
        (path, place)
        for place, folder in enumerate(folders)
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)[:limit]
    ]
    first = fifth = seen = 0
    for start in tqdm(range(0, len(files), _AT_ONCE), disable=not progress, leave=False, unit="batch"):
        pictures, places = [], []
        for path, place in files[start : start + _AT_ONCE]:
            try:
                pictures.append(open_image(path))
                places.append(place)
            except MMError:
                continue  # counted below as unreadable
        if pictures:
            pooled = stacked(encode_pictures(joined, pictures)).pooled
            best = joined.encoder.similarity(pooled, texts).topk(min(5, len(labels))).indices.cpu()
            hits = best == torch.tensor(places)[:, None]
            first, fifth, seen = first + int(hits[:, 0].sum()), fifth + int(hits.any(1).sum()), seen + len(places)
    if not seen:
        raise InputError(f"{Path(data).name}: none of its {len(files)} pictures can be read")
    return {
        "model": joined.name,
        "classes": len(labels),
        "pictures": seen,
        "unreadable": len(files) - seen,
        "templates": len(sentences),
        "top1": 100 * first / seen,
        "top5": 100 * fifth / seen,
    }


def class_names(folders: list[str]) -> list[str]:
    """The label of each folder, in their order.

    Raises:
        InputError: WordNet numbers, but not ImageNet's whole set, so that their names cannot be told.
    """
    numbered = [bool(_WORDNET.fullmatch(name)) for name in folders]
    if not any(numbered):
        return [name.replace("_", " ") for name in folders]
    if all(numbered) and len(folders) == _IMAGENET:
        from open_clip import IMAGENET_CLASSNAMES

        return list(IMAGENET_CLASSNAMES)  # in the order of the sorted numbers
    raise InputError(
        f"{sum(numbered)} of {len(folders)} class folders are WordNet numbers; their names are known for ImageNet's "
        f"whole {_IMAGENET} only. Rename them to their labels."
    )
