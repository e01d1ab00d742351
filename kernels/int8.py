"""A linear layer whose weights are whole numbers of 8 bits, with one scale for each output.

A row at a time is bound by reading the weights, and these are half as large as in bfloat16. Sums are those of the
rounded weights in the precision of `x`: activations are not rounded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW = 16  # rows; for more it is quicker to make the weights whole again
_AT_ONCE = 32  # inputs that torch's routine reads at once, past the end of a row where they are no multiple of it


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float[O, I] -> int8[O, I] and its scale, [O] in the dtype of `weight`, so that the largest of a row is 127."""
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp(min=1e-12).to(weight.dtype)
    whole = (wide / scale.float()[:, None]).round().clamp(-127, 127)
    return whole.to(torch.int8), scale


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """bfloat16[..., I], int8[O, I], bfloat16[O], bfloat16[O] -> bfloat16[..., O]. Gradients reach `x`."""
    if x.numel() > _FEW * x.shape[-1] or not _suits(x):
        return F.linear(x, weight.to(x.dtype) * scale[:, None], bias)
    made = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), weight, scale).view(
        *x.shape[:-1], len(weight)
    )
    return made if bias is None else made + bias


def _suits(x: Tensor) -> bool:
    """Whether torch has a routine; it knows no gradients, and no documentation names it."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.shape[-1] % _AT_ONCE:
        return False
    return hasattr(torch.ops.aten, "_weight_int8pack_mm") and not (x.requires_grad and torch.is_grad_enabled())
