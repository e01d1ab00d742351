"""The plain Llama layout: which models have it, and the parts of one of its layers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.decoders.int8 import Int8Linear
from mm.kernels.cache import KVCache
from mm.kernels.row import rms_norm

# Llama, and those that differ from it by a bias or by a norm of queries and keys.
LAYOUTS = ("llama", "mistral", "qwen2", "qwen3")
NARROW = (torch.bfloat16, torch.float16)
_STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")


def fits(lm: Any) -> bool:
    """Whether the model is of this layout, down to the kind of each part."""
    config = getattr(lm, "config", None)
    if getattr(config, "model_type", None) not in LAYOUTS:
        return False
    window = getattr(config, "sliding_window", None)
    full = window is None or {"full_attention"} == set(getattr(config, "layer_types", None) or ["windowed"])
    static = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") in _STATIC_ROTATIONS
    plain = all(type(p) in (nn.Linear, Int8Linear) for m in lm.model.layers for p in Layer(m).linears)
    return full and static and plain and type(lm.lm_head) is nn.Linear


class Layer:
    """The parts of one transformer layer."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.gate_up, self.down = attention.o_proj, (mlp.gate_proj, mlp.up_proj), mlp.down_proj
        self.act, self.before, self.between = mlp.act_fn, module.input_layernorm, module.post_attention_layernorm
        self.head_width, self.scale = attention.head_dim, attention.scaling
        self.heads = self.qkv[0].out_features // self.head_width
        self.shared = self.qkv[1].out_features // self.head_width
        self.norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self.quick_act = F.silu if type(self.act).__name__ in ("SiLU", "SiLUActivation") else self.act

    @property
    def linears(self) -> list[Any]:
        return [*self.qkv, self.out, *self.gate_up, self.down]


class Rows(Protocol):
    """All layers for one row with one new token, on a CPU."""

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor:
        """float[D] -> float[V]; writes the token's keys and values."""
        ...


class Kept:
    """What a cache needs beside its tokens.

    turns: float[capacity, 2, 1, Dh], cosine and signed sine of each place. turned, straight: how many rows of a
    token's queries, keys and values are rotated, and how many are not.
    """

    def __init__(self, turns: Tensor, rows: Rows | None, turned: int, straight: int) -> None:
        self.turns, self.rows = turns, rows
        one, zero = turns.new_ones(straight, turns.shape[-1]), turns.new_zeros(straight, turns.shape[-1])
        self._turn = torch.stack([F.pad(side, (0, 0, turned, 0)) for side in (one, zero)])
        self._rotated = self._turn[:, :turned]

    def at(self, place: int) -> tuple[Tensor, Tensor]:
        """float[H + 2 Hk, Dh] each, of one place; valid until the next call."""
        self._rotated.copy_(self.turns[place])
        return self._turn[0], self._turn[1]


def rms(x: Tensor, norm: Any) -> Tensor:
    """`rms_norm` by a module of transformers."""
    return rms_norm(x, norm.weight, norm.variance_epsilon)
