"""Tiny random language models of every decoder family, all of one vocabulary, for the tests of speculation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mm.decoders.base import Decoder
from mm.decoders.build import build_decoder

VOCAB, WIDTH, END = 40, 32, 3
_SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = _SHAPE | {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 96}
_STATE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8, "conv_kernel": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 6},
    "mixtral": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "mamba": _STATE,
    "mamba2": _STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "rwkv": _SHAPE | {"attention_hidden_size": WIDTH, "context_length": 96},
    "jamba": _LLAMA | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
                       "expert_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
}  # fmt: skip
RECURRENT = {"mamba", "mamba2", "rwkv", "jamba"}


class Words:
    """A tokenizer whose token n is the word `wn`."""

    def __init__(self, size: int = VOCAB, end: int | None = END) -> None:
        self.size, self.eos_token_id = size, end

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {f"w{i}": i for i in range(self.size)}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"w{i} " for i in ids)


def build(family: str, seed: int = 0, *, end: int | None = END, scale: float | None = None, **changes: Any) -> Decoder:
    """scale: by which the matrices are made larger, so that answers vary."""
    torch.manual_seed(seed)
    values = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": end, "pad_token_id": 0} | FAMILIES[family]
    config = AutoConfig.for_model(family, **values | changes)
    lm = AutoModelForCausalLM.from_config(config).eval()
    scale = scale or (4 if family in RECURRENT else 6)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim == 2 and "A_log" not in name:
                parameter.mul_(scale)
    return build_decoder(lm, Words(config.vocab_size, end))


def blurred(decoder: Decoder, amount: float, seed: int = 0) -> Decoder:
    """A copy with noise on its matrices, relative to their spread: it guesses often, but not always, right."""
    lm, random = copy.deepcopy(decoder.lm), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=random) * parameter.std() * amount)
    return build_decoder(lm, decoder.tokenizer)


def picture(decoder: Decoder, length: int = 5, seed: int = 0) -> Any:
    """What a decoder keeps of random picture tokens."""
    tokens = torch.randn(1, length, decoder.lm.get_input_embeddings().weight.shape[1],
                         generator=torch.Generator().manual_seed(seed))  # fmt: skip
    return decoder.extend(tokens)[1]
