"""SigLIP's pooling attention, computed on tokens as they lie in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PoolingAttention(nn.Module):
    """The weights of an `nn.MultiheadAttention`, under the same names, for one query a picture.

    torch's module turns the tokens round first, and the projection of a turned tensor copies its weight matrix once a
    token: a quarter of the whole tower's time in bfloat16 (ViT-B/16 on a CPU).
    """

    def __init__(self, plain: nn.MultiheadAttention) -> None:
        super().__init__()
        assert isinstance(plain.in_proj_weight, nn.Parameter)
        self.heads = plain.num_heads
        self.in_proj_weight, self.in_proj_bias, self.out_proj = plain.in_proj_weight, plain.in_proj_bias, plain.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        """query: float[B, Q, D]; key and value: the same float[B, N, D]."""
        width = query.shape[-1]
        (to_q, to_kv), (q_bias, kv_bias) = (
            w.split([width, 2 * width]) for w in (self.in_proj_weight, self.in_proj_bias)
        )
        q, kv = F.linear(query, to_q, q_bias), F.linear(key, to_kv, kv_bias)
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, *kv.chunk(2, -1)))
        seen = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(seen.transpose(1, 2).flatten(2)), None


def settle_pooling(model: nn.Module) -> None:
    """Puts it in the place of torch's attention in every pooling head of SigLIP's kind; for inference."""
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    for head in model.modules():
        if isinstance(head, SiglipMultiheadAttentionPoolingHead):
            head.register_module("attention", PoolingAttention(head.attention))
