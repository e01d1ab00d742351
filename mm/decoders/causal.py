"""Any causal language model of transformers, fed by embeddings and continued from a `KVPrefix`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mm.kernels.cache import KVPrefix


class CausalDecoder(nn.Module):
    """lm: an AutoModelForCausalLM of the attention kind; tokenizer: its own fast tokenizer."""

    def __init__(self, lm: Any, tokenizer: Any) -> None:
        super().__init__()
        self.lm, self.tokenizer = lm, tokenizer

    @property
    def context(self) -> int:
        """How many tokens fit, pictures included."""
        return int(self.lm.config.max_position_embeddings)

    def embed(self, ids: Tensor) -> Tensor:
        """int64[B, T] -> float[B, T, D]."""
        return self.lm.get_input_embeddings()(ids)

    def extend(self, embeds: Tensor, prefix: KVPrefix | None = None) -> tuple[Tensor, KVPrefix]:
        """Reads embeds float[B, T, D] after `prefix`; the last token's logits float32[B, V], and the longer prefix.

        `prefix` itself is left as it was, so several continuations may start from it at once.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        if prefix is not None:
            for layer, (k, v) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                cache.update(k, v, layer)
        out = self.lm(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers: list[Any] = cache.layers
        longer = KVPrefix(tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers))
        return out.logits[:, -1].float(), longer

    def prompt_ids(self, prompt: str) -> list[int]:
        """`<s> prompt newline`; whatever a user wrote stays ordinary text."""
        words = self.tokenizer(prompt.lower(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [self.tokenizer.bos_token_id, *words, self.newline]

    @property
    def newline(self) -> int:
        return self.tokenizer.convert_tokens_to_ids("<0x0A>")

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row, int64[B]."""
    return torch.argmax(logits, dim=-1)
