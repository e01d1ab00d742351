"""A linear layer, with GELU behind it in the same pass, through oneDNN where a processor computes it.

For float32 torch itself takes MKL, which oneDNN outran on the one AMD processor that was tried, the more the fewer
rows there were; others were not. In bfloat16 torch takes oneDNN too, and only GELU makes a difference: the widest
activation of a block is not written and read once more.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Gelu = Literal["none", "tanh"]  # as torch spells it: exact, or by its approximation with tanh

_WORTH, _LARGE = 2**25, 2**19  # products, elements of a weight; with fewer of both the call costs more than it saves
_SLOW = (577, 578)  # rows; on that processor they take longer than 580, of the sizes around them these two alone


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: Gelu | None = None) -> Tensor:
    """float[..., I], float[O, I], float[O] -> float[..., O]; gelu: the form of the activation behind, or no activation.

    For few products, on other devices, in other dtypes and where gradients are recorded it is what torch does; the
    results differ by rounding.
    """
    worth = x.numel() * len(weight) >= _WORTH or weight.numel() >= _LARGE
    if worth and x.numel() and has_onednn() and _suits(x, weight, bias, gelu):
        name, form = ("none", "") if gelu is None else ("gelu", gelu)
        made = [torch.ops.mkldnn._linear_pointwise(rows, weight, bias, name, [], form) for rows in _cut(x)]
        return (made[0] if len(made) == 1 else torch.cat(made)).view(*x.shape[:-1], len(weight))
    made = F.linear(x, weight, bias)
    return made if gelu is None else F.gelu(made, approximate=gelu)


def _cut(x: Tensor) -> tuple[Tensor, ...]:
    """The rows of x, in halves where the whole is slow. A picture of 24 x 24 patches and a class token has 577."""
    rows = x.reshape(-1, x.shape[-1])
    return rows.tensor_split(2) if len(rows) in _SLOW else (rows,)


def has_onednn() -> bool:
    """Whether this build of torch has the operator, which is not part of its documented face."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: Gelu | None) -> bool:
    """The operator knows no gradients and no other dtypes."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and gelu is not None)
