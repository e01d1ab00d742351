"""Attention between two sets of tokens, as the connectors with learned queries use it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int | None = None, *, dropout: float = 0.0) -> Tensor:
    """Every query sees every key; scores are scaled by head width ** -0.5.

    q: float[B, M, heads * d]; k, v: float[B, N, kv_heads * d]; each key head serves heads / kv_heads query heads.
    Returns float[B, M, heads * d]. dropout: probability that a weight is dropped, in any mode.
    """
    kv_heads = kv_heads or heads
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = (x.unflatten(-1, (kv_heads, -1)).transpose(1, 2) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=kv_heads != heads)
    return out.transpose(1, 2).flatten(-2)
