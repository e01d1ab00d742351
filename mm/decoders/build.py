"""Which decoder a language model needs."""

from __future__ import annotations

import inspect
from typing import Any

from mm.decoders.base import Decoder
from mm.decoders.causal import CausalDecoder
from mm.decoders.state import StateDecoder


def build_decoder(lm: Any, tokenizer: Any) -> Decoder:
    """The decoder for an AutoModelForCausalLM: by what its layers carry over from token to token."""
    return (StateDecoder if _recurrent(lm) else CausalDecoder)(lm, tokenizer)


def _recurrent(lm: Any) -> bool:
    known = inspect.signature(lm.forward).parameters
    if "cache_params" in known or "state" in known:
        return True
    from transformers import DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    layers = DynamicCache(config=lm.config.get_text_config()).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
