"""Resamplers: M learned latents ask the picture's tokens through cross-attention. M is fixed, N is free.

In both forms the keys and values are the tokens *and* the latents. The tokens carry no position of their own here:
their order does not change the answer, so any grid is taken and the encoder's position embeddings must do the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm.connectors.attend import attend
from mm.connectors.base import Connector, Grid

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "squared_relu": lambda x: F.relu(x).square()}


class FlamingoLayer(nn.Module):
    """Cross-attention and a feed-forward network, each on normalised latents and added to them."""

    def __init__(self, width: int, heads: int, head_dim: int, activation: str, qk_norm: bool) -> None:
        super().__init__()
        inner, self.heads, self.act = heads * head_dim, heads, ACTIVATIONS[activation]
        self.norm_tokens, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.norm_q, self.norm_k = (nn.LayerNorm(head_dim) if qk_norm else None for _ in range(2))
        self.o = nn.Linear(inner, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        both = torch.cat([self.norm_tokens(tokens), normed], dim=1)
        q, k = self.q(normed), self.k(both)
        if self.norm_q is not None and self.norm_k is not None:
            q = self.norm_q(q.unflatten(-1, (self.heads, -1))).flatten(-2)
            k = self.norm_k(k.unflatten(-1, (self.heads, -1))).flatten(-2)
        latents = latents + self.o(attend(q, k, self.v(both), self.heads))
        return latents + self.down(self.act(self.up(self.norm(latents))))


class Resampler(Connector):
    """The Perceiver resampler of Flamingo (Alayrac et al. 2022, arXiv 2204.14198, appendix A.1.1). M = `latents`.

    It works at the tokens' width and ends with a LayerNorm. Flamingo's decoder attends to that directly; for a decoder
    of another width a matrix follows, which published weights lack: with d_out = d_in there is none.
    activation: "gelu" (OpenFlamingo), "relu" (Idefics) or "squared_relu" (the paper).
    qk_norm: LayerNorm on each head's queries and keys (Idefics, optional).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        activation: str = "gelu",
        qk_norm: bool = False,
    ) -> None:
        super().__init__(d_in, d_out, latents=latents, depth=depth, heads=heads, head_dim=head_dim)
        if activation not in ACTIVATIONS:
            raise ValueError(f"Resampler: unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.latents = nn.Parameter(torch.randn(latents, d_in))
        self.layers = nn.ModuleList(FlamingoLayer(d_in, heads, head_dim, activation, qk_norm) for _ in range(depth))
        self.norm = nn.LayerNorm(d_in)
        self.proj = nn.Linear(d_in, d_out) if d_in != d_out else None

    def out_grid(self, grid: Grid) -> Grid:
        return 1, self.latents.shape[0]

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens)
        latents = self.norm(latents)
        return latents if self.proj is None else self.proj(latents)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, d_in: int, hidden: int, d_out: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d_in, hidden, bias=False), nn.Linear(d_in, hidden, bias=False)
        self.down = nn.Linear(hidden, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PerceiverLayer(nn.Module):
    """As in Flamingo, with RMSNorm, grouped heads and a gated MLP."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.norm_tokens, self.norm_latents = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        self.norm = nn.RMSNorm(width, eps)
        self.mlp = GatedMLP(width, 4 * width, width)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        both = torch.cat([self.norm_tokens(tokens), normed], dim=1)
        latents = latents + self.o(attend(self.q(normed), self.k(both), self.v(both), self.heads, self.kv_heads))
        return latents + self.mlp(self.norm(latents))


class PerceiverResampler(Connector):
    """The resampler of Idefics2 (Laurençon et al. 2024, arXiv 2405.02246). M = `latents`.

    A gated MLP brings the tokens to the decoder's width, then the latents ask at that width.
    hidden: width inside the first MLP; Idefics2 takes its decoder's (14336 for 4096), the default is 4 * d_out.
    eps: of every RMSNorm; the checkpoint's configuration decides.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        hidden: int | None = None,
        latents: int = 64,
        depth: int = 3,
        heads: int = 16,
        kv_heads: int = 4,
        head_dim: int = 96,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(d_in, d_out, latents=latents, depth=depth, kv_heads=kv_heads, head_dim=head_dim)
        if heads < 1 or heads % kv_heads:
            raise ValueError(f"PerceiverResampler: expected heads in groups of {kv_heads} kv_heads, got {heads}")
        self.widen = GatedMLP(d_in, hidden or 4 * d_out, d_out)
        # Random, not the ones of the reference: latents that start equal have equal gradients and stay equal.
        self.latents = nn.Parameter(torch.randn(latents, d_out))
        self.layers = nn.ModuleList(PerceiverLayer(d_out, heads, kv_heads, head_dim, eps) for _ in range(depth))
        self.norm = nn.RMSNorm(d_out, eps)

    def out_grid(self, grid: Grid) -> Grid:
        return 1, self.latents.shape[0]

    def connect(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = self.widen(tokens)
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens)
        return self.norm(latents)
