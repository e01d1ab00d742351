"""Our cache as transformers' modules want to see it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from mm.kernels.cache import KVCache


class _Slots(CacheLayerMixin):
    """One layer of a `KVCache`. Every layer keeps all tokens; windows are left to the model's masks."""

    is_sliding = False

    def __init__(self, cache: KVCache, layer: int) -> None:
        super().__init__()
        self.cache, self.layer, self.is_initialized = cache, layer, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are the cache's own."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.cache.write(self.layer, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.length

    def get_max_length(self) -> int:
        return -1


def slot_cache(cache: KVCache, layers: int) -> Cache:
    """A view of `cache` for one forward pass of a model with so many layers."""
    return Cache(layers=[_Slots(cache, layer) for layer in range(layers)])
