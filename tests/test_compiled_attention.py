"""Compiled attention in bfloat16: torch's own bits, or torch itself; and what a whole decoder makes of it."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from mm.decoders.causal import CausalDecoder
from mm.kernels import row
from mm.kernels.row import Attention, NotCompiled
from tests.test_compiled import HERE, KINDS, SIZE

SHAPES = [(9, 3, 64), (4, 4, 16), (6, 1, 32), (2, 1, 128)]
LENGTHS = [1, 2, 15, 16, 31, 33, 64, 100, 511, 512, 513, 1100]


def exact(made: Attention) -> bool:
    """Whether this machine's torch sums as the routine does."""
    with contextlib.suppress(NotCompiled):
        made.check()
        return True
    return False


def asked(heads: int, shared: int, width: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and a cache with room for more than `length` tokens, whose rest is nothing that may be read."""
    chance = torch.Generator().manual_seed(length)
    keys, values = torch.randn(2, 1, shared, length + 7, width, generator=chance).bfloat16()
    keys[:, :, length:], values[:, :, length:] = float("nan"), float("nan")
    return 3 * torch.randn(heads, width, generator=chance).bfloat16(), keys, values


@pytest.mark.parametrize("_", HERE)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("heads", "shared", "width"), SHAPES)
def test_it_is_torch_s_to_the_last_bit(_: Any, heads: int, shared: int, width: int, threads: int) -> None:
    made = Attention(heads, shared, width, 0.2)
    same, before = exact(made), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for length in LENGTHS:
            query, keys, values = asked(heads, shared, width, length)
            each_key, each_value = (s[:, :, :length].repeat_interleave(heads // shared, 1) for s in (keys, values))
            theirs = F.scaled_dot_product_attention(query[None, :, None], each_key, each_value, scale=0.2).flatten()
            found = made(query, keys, values, length)
            torch.testing.assert_close(found, theirs, atol=0.02, rtol=0.02)
            assert not same or torch.equal(found, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("_", HERE)
def test_another_order_is_found_out(_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = F.scaled_dot_product_attention

    def backwards(query: Tensor, keys: Tensor, values: Tensor, **how: Any) -> Tensor:
        """The same numbers, added up from the other end."""
        return theirs(query.flip(-1), keys.flip(-1, -2), values.flip(-2), **how)

    made = Attention(4, 2, 32, 0.2)
    monkeypatch.setattr(row.F, "scaled_dot_product_attention", backwards)
    with pytest.raises(NotCompiled, match="another order"):
        made.check()
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(NotCompiled, match="another order"):
        made.check()


@pytest.mark.parametrize("_", HERE)
def test_heads_of_an_uneven_width_are_left_to_torch(_: Any) -> None:
    with pytest.raises(NotCompiled, match="heads of 24 numbers"):
        Attention(2, 2, 24, 0.2)


def decoder(kind: str, spread: float) -> tuple[CausalDecoder, bool]:
    """Compiled where this machine can, and whether it then has to give the same bits. spread: of the weights; with
    large ones the next word hangs on every bit."""
    torch.manual_seed(0)
    config = KINDS[kind](**SIZE | {"initializer_range": spread})
    lm = AutoModelForCausalLM.from_config(config).bfloat16().eval().requires_grad_(False)
    made = CausalDecoder(lm, SimpleNamespace(eos_token_id=None))
    with contextlib.suppress(NotCompiled):
        made.compile_rows()
    return made, made.compiled and exact(Attention(4, 2, 32, 32**-0.5))


@pytest.mark.parametrize("_", HERE)
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_a_decoder_gives_the_bits_of_transformers(_: Any, kind: str) -> None:
    made, same = decoder(kind, 0.3)
    if not same:
        made, _ = decoder(kind, 0.05)
    lm, tokens = made.lm, []
    chance = torch.Generator().manual_seed(1)
    begun = torch.randn(1, 37, 128, generator=chance).bfloat16()
    with torch.inference_mode():
        theirs = lm(inputs_embeds=begun, past_key_values=DynamicCache(config=lm.config), use_cache=True)
        cache = made.start(1, 100)
        logits, _ = made.extend(begun, cache)
        for _ in range(20):
            expected = theirs.logits[0, -1].float()
            assert not same or torch.equal(logits[0], expected)
            torch.testing.assert_close(logits[0], expected, atol=0.05 * expected.abs().max().item(), rtol=0)
            tokens.append(int(expected.argmax()))
            one = torch.tensor([[tokens[-1]]])
            theirs = lm(input_ids=one, past_key_values=theirs.past_key_values, use_cache=True)
            logits, _ = made.extend(made.embed(one), cache)
    assert not same or len(set(tokens)) > 5
