"""A transformers model from its weights, strictly: every key accounted for.

The library itself only warns of missing keys and fills them with random numbers; here they are an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.encoders.pooling import settle_pooling
from mm.errors import CheckpointError
from mm.quick import quicken

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mm.encoders.build import Dtype

_SHOWN = 5  # keys listed in a message


def build_model(
    folder: Path, kind: type, config: Any, tensors: dict[str, Tensor], *, dtype: Dtype, unused: Iterable[str] = ()
) -> Any:
    """`kind` with these weights, in evaluation mode, its attention (if it has any) on torch's own kernels.

    kind: a model class of transformers, whose own table renames the keys of older files. unused: beginnings of keys
    that belong to parts which this model does not have, such as a head.

    Raises:
        CheckpointError: a key is missing or left over, or a shape differs; the message lists the first few.
    """
    import torch

    prefixes = tuple(unused)
    wanted = {key: value for key, value in tensors.items() if not key.startswith(prefixes)}
    whole = [key for key, value in wanted.items() if not (value.is_floating_point() or key.endswith("position_ids"))]
    if whole:
        raise CheckpointError(f"{folder.name}: quantised weights are not read: whole numbers in {_some(whole)}")
    with quiet(), torch.random.fork_rng(devices=[]), refusing(folder):
        model, info = kind.from_pretrained(  # type: ignore[attr-defined]
            None, config=config, state_dict=wanted, dtype=_torch_dtype(dtype, wanted), output_loading_info=True,
            attn_implementation="sdpa" if getattr(kind, "_supports_sdpa", False) else None,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    found = [
        f"{what} {_some(info[key])}"
        for what, key in (("missing", "missing_keys"), ("unexpected", "unexpected_keys"))
        if info[key]
    ] + [
        f"{name} should be {tuple(expected)} by the configuration, is {tuple(got)}"
        for name, got, expected in sorted(info["mismatched_keys"])[:_SHOWN]
    ]
    if found or info["error_msgs"]:
        raise CheckpointError(
            f"{folder.name}: the weights do not fit the configuration: {'; '.join(found or info['error_msgs'])}"
        )
    return model


def settle(model: Any, train: bool, *, quick: bool = True) -> None:
    """Training mode with gradients, or evaluation without. quick: the latter may round otherwise than transformers."""
    model.train(train)
    model.requires_grad_(train)
    if not train and quick:
        settle_pooling(model)
        quicken(model)


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """What transformers raises over a folder's files becomes a CheckpointError without the machine's paths."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StrictDataclassError) as error:
        if isinstance(error, CheckpointError):
            raise
        said = " ".join(str(error).replace(str(folder), folder.name).split())[:300]
        raise CheckpointError(f"{folder.name}: transformers cannot read it ({said})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no load reports: what a report says is raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _torch_dtype(dtype: Dtype, tensors: dict[str, Tensor]) -> torch.dtype:
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    return next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
