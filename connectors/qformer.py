"""The querying transformer of BLIP-2: learned queries talk to each other and, in every other layer, to the picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm.connectors.attend import attend
from mm.connectors.base import Connector, Grid


class Attention(nn.Module):
    """Attention, then the sum with its input is normalised (post-norm, as in BERT)."""

    def __init__(self, width: int, d_kv: int, *, heads: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(d_kv, width), nn.Linear(d_kv, width)
        self.o = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        rate = self.dropout if self.training else 0.0
        out = self.o(attend(self.q(queries), self.k(seen), self.v(seen), self.heads, dropout=rate))
        return self.norm(F.dropout(out, rate) + queries)


class FeedForward(nn.Module):
    """Linear, GELU, Linear, then the sum with its input is normalised."""

    def __init__(self, width: int, hidden: int, *, eps: float, dropout: float) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(self.dropout(self.down(F.gelu(self.up(queries)))) + queries)


class QFormerLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the picture where this layer has it, feed-forward."""

    def __init__(self, width: int, d_kv: int | None, hidden: int, *, heads: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, width, heads=heads, eps=eps, dropout=dropout)
        self.cross = None if d_kv is None else Attention(width, d_kv, heads=heads, eps=eps, dropout=dropout)
        self.feed = FeedForward(width, hidden, eps=eps, dropout=dropout)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = self.attention(queries, queries)
        if self.cross is not None:
            queries = self.cross(queries, tokens)
        return self.feed(queries)


class QFormer(Connector):
    """The Q-Former of BLIP-2 and the matrix after it (Li et al. 2023, arXiv 2301.12597, sections 3.1 and 3.3).

    M = `queries`, whatever the grid: the order of the tokens does not change the answer.
    The published weights were trained on the last hidden state of the image tower *after* its final LayerNorm, with the
    class token in front: hand those over as a row, grid (1, 1 + N). The reference keeps this part in float32.
    dropout: in training only, on attention weights and on the outputs of attention and feed-forward.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        queries: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        cross_every: int = 2,
        eps: float = 1e-12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(d_in, d_out, queries=queries, depth=depth, heads=heads, hidden=hidden, cross_every=cross_every)
        if width < 1 or width % heads:
            raise ValueError(f"QFormer: expected a width divisible by its {heads} heads, got {width}")
        # Random, not the zeros of the reference: queries that start equal have equal gradients and stay equal.
        self.queries = nn.Parameter(0.02 * torch.randn(1, queries, width))
        self.norm, self.dropout = nn.LayerNorm(width, eps), nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(width, None if i % cross_every else d_in, hidden, heads=heads, eps=eps, dropout=dropout)
            for i in range(depth)
        )
        self.proj = nn.Linear(width, d_out)

    def out_grid(self, grid: Grid) -> Grid:
        return 1, self.queries.shape[1]

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        queries = self.dropout(self.norm(self.queries.expand(tokens.shape[0], -1, -1)))
        for layer in self.layers:
            queries = layer(queries, tokens)
        return self.proj(queries)
