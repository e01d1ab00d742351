"""What `data=` may be, and how some of it is held out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mm.errors import InputError
from mm.training.coco import CocoFolder
from mm.training.examples import Examples, Pairs, Part, Scenes

ENDLESS = 1_000_000  # scenes, where no number is asked for
_VALIDATED = 100  # scenes, where no number is asked for


def open_data(data: Any, *, soft: bool = False, held_out: bool = False) -> Examples:
    """A data set from `"scenes"`, `"scenes:COUNT"`, a COCO folder or its JSON file, or (image, truth) pairs.

    soft: scenes of the materials that matting needs. held_out: scenes that training never draws.

    Raises:
        InputError: none of these, or it shows no picture or no thing.
    """
    if isinstance(data, str) and data.partition(":")[0] == "scenes":
        count = scene_count(data, _VALIDATED if held_out else ENDLESS)
        examples: Examples = Scenes(count, soft=soft, held_out=held_out)
    elif isinstance(data, (str, os.PathLike)):
        examples = CocoFolder(Path(os.path.expanduser(data)))
    elif isinstance(data, Iterable):
        examples = Pairs(data)
    else:
        raise InputError(
            f'data: expected "scenes", a folder in COCO\'s layout, or (image, truth) pairs, got {type(data).__name__}'
        )
    if not len(examples):
        raise InputError(f"data: {examples.name} holds no picture")
    if examples.things == 0:
        raise InputError(f"data: {examples.name} shows {len(examples)} pictures and not one thing in them")
    return examples


def scene_count(data: str, otherwise: int) -> int:
    """COUNT of `scenes:COUNT`; `otherwise` for `scenes` alone. Raises InputError: there are not so many."""
    _, colon, number = data.partition(":")
    if not colon:
        return otherwise
    if not number.isdecimal() or not 1 <= int(number) <= ENDLESS:
        raise InputError(f"data: expected scenes:COUNT with a count from 1 to {ENDLESS:,}, got {data!r}")
    return int(number)


def held_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """The data to train on, and a share of it that training never sees.

    Raises:
        InputError: the share is not between 0 and 1, or leaves one of the two without a picture.
    """
    if isinstance(share, bool) or not 0 < share < 1:
        raise InputError(f"validation: expected a share between 0 and 1, or a data set, got {share!r}")
    if examples.things is None:
        raise InputError('validation: scenes are drawn without end; say validation="scenes:100" for others than these')
    order = np.random.default_rng((seed, 17)).permutation(len(examples))
    count = round(share * len(examples))
    if not 0 < count < len(examples):
        raise InputError(f"validation: {share:g} of {len(examples)} pictures leaves none on one side")
    return Part(examples, sorted(order[count:].tolist())), Part(examples, sorted(order[:count].tolist()))
