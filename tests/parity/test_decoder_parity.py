"""Every decoder family: the cache in any cut equals one full forward of the reference, a batch equals single rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mm.decoders.base import Decoder
from mm.decoders.build import build_decoder
from mm.decoders.causal import CausalDecoder
from mm.errors import ResourceLimitError
from mm.generation.loop import generate
from mm.recipes.tokenizer import train_tokenizer

VOCAB, WIDTH = 512, 32
_SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}
_LLAMA = _SHAPE | {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 96}
_STATE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "vocab_size": VOCAB, "state_size": 8, "conv_kernel": 4}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama, biases and llama3 rotation": (
        "llama",
        _LLAMA
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "mistral": ("mistral", _LLAMA | {"sliding_window": None}),
    "mistral, window": ("mistral", _LLAMA | {"sliding_window": 6}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA | {"head_dim": 16}),
    "gemma": ("gemma", _LLAMA | {"head_dim": 8}),
    "gemma3": ("gemma3_text", _LLAMA | {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention",
                                                                                         "full_attention"]}),
    "phi": ("phi", _LLAMA),
    "gpt2": ("gpt2", {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 96, "vocab_size": VOCAB}),
    "opt": ("opt", _SHAPE | {"ffn_dim": 48, "max_position_embeddings": 96, "word_embed_proj_dim": WIDTH}),
    "gpt_neox": ("gpt_neox", _SHAPE | {"intermediate_size": 48, "max_position_embeddings": 96}),
    "mixtral": ("mixtral", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "dbrx": (
        "dbrx",
        {"d_model": WIDTH, "n_layers": 2, "n_heads": 4, "max_seq_len": 96, "vocab_size": VOCAB,
         "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
         "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH}},
    ),
    "mamba": ("mamba", _STATE),
    "falcon_mamba": ("falcon_mamba", _STATE),
    "mamba2": ("mamba2", _STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}),
    "rwkv": ("rwkv", _SHAPE | {"attention_hidden_size": WIDTH, "context_length": 96}),
    "jamba": (
        "jamba",
        _LLAMA | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
                  "expert_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
}  # fmt: skip
RECURRENT = {"mamba", "falcon_mamba", "mamba2", "rwkv", "jamba"}
LEAN = {"llama", "llama, biases and llama3 rotation", "mistral", "qwen2", "qwen3"}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(scope="module", params=list(FAMILIES))
def decoder(request: pytest.FixtureRequest, tokenizer: Any) -> Decoder:
    return build(request.param, tokenizer)


def build(family: str, tokenizer: Any) -> Decoder:
    kind, values = FAMILIES[family]
    torch.manual_seed(len(family))
    config = AutoConfig.for_model(kind, **values, bos_token_id=1, eos_token_id=3, pad_token_id=0)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=None).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim == 1 and "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.ndim == 2 and "A_log" not in name:
                parameter.mul_(2 if family in RECURRENT else 6)
    made = build_decoder(lm, tokenizer)
    made.family = family  # pyright: ignore[reportAttributeAccessIssue]
    return made


def embeds(batch: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, count, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def reference(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """All logits of one forward of the library's own module, without a cache."""
    return decoder.lm(inputs_embeds=tokens, use_cache=False).logits.float()


@pytest.mark.parametrize("cuts", [(9,), (6, 3), (1,) * 9, (3, 3, 3), (2, 1, 5, 1)], ids=str)
def test_every_cut_equals_one_full_forward(decoder: Decoder, cuts: tuple[int, ...]) -> None:
    tokens = embeds(2, 9)
    full, made = reference(decoder, tokens), []
    cache = decoder.start(2, 9)
    for part in tokens.split(cuts, 1):
        logits, same = decoder.extend(part, cache, keep=part.shape[1])
        assert same is cache
        made.append(logits)
    torch.testing.assert_close(torch.cat(made, 1), full, **CLOSE)
    assert cache.length == 9
    with pytest.raises(ResourceLimitError, match="room for 9"):
        decoder.extend(tokens[:, :1], cache)


def test_continuing_a_prefix_leaves_it_as_it_was(decoder: Decoder) -> None:
    tokens = embeds(1, 9, seed=1)
    first, prefix = decoder.extend(tokens[:, :5])
    full = reference(decoder, tokens)
    torch.testing.assert_close(first, full[:, 4], **CLOSE)
    other, _ = decoder.extend(embeds(1, 3, seed=2), prefix)
    for _ in range(2):
        logits, longer = decoder.extend(tokens[:, 5:], prefix)
        torch.testing.assert_close(logits, full[:, -1], **CLOSE)
        assert (prefix.length, longer.length, longer.batch) == (5, 9, 1)
    assert not torch.allclose(other, logits, atol=1e-3)


def test_forgotten_tokens_leave_no_trace(decoder: Decoder) -> None:
    tokens, wrong = embeds(1, 9, seed=3), embeds(1, 4, seed=4)
    _, prefix = decoder.extend(tokens[:, :3])
    cache = decoder.fork([prefix], 12)
    decoder.extend(tokens[:, 3:6], cache)
    decoder.extend(wrong, cache, keep=4)
    decoder.crop(cache, 4)
    assert cache.length == 6
    logits, _ = decoder.extend(tokens[:, 6:], cache, keep=3)
    torch.testing.assert_close(logits, reference(decoder, tokens)[:, 6:], **CLOSE)
    with pytest.raises(ValueError, match="expected to forget"):
        decoder.crop(cache, 40)


def test_rows_can_be_taken_apart_and_put_together(decoder: Decoder) -> None:
    tokens = embeds(3, 6, seed=5)
    _, three = decoder.extend(tokens[:, :4])
    stacked = type(three).stack([three[2], three[0]])
    logits, _ = decoder.extend(tokens[[2, 0], 4:], stacked)
    torch.testing.assert_close(logits, reference(decoder, tokens)[[2, 0], -1], **CLOSE)


def test_four_unequal_prompts_answer_as_each_alone(decoder: Decoder) -> None:
    prompts = [[1, 260], [1, 270, 280, 290, 300, 310, 13], [1, 300, 13, 265], [1]]
    prefixes = [decoder.extend(embeds(1, length, seed=length))[1] for length in (5, 3, 5, 7)]
    *_, together = generate(decoder, prefixes, prompts, max_new_tokens=8)
    for prefix, prompt, row in zip(prefixes, prompts, together, strict=True):
        *_, (alone,) = generate(decoder, prefix, prompt, max_new_tokens=8)
        assert row.ids == alone.ids and row.finish_reason == alone.finish_reason


def test_without_a_picture_it_equals_the_library_s_own_generation(decoder: Decoder) -> None:
    prompts = [[1, 270, 280, 290, 13], [1, 300]]
    *_, rows = generate(decoder, None, prompts, max_new_tokens=10)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = torch.tensor([prompt])
        theirs = decoder.lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10,
                                     do_sample=False)[0, len(prompt):].tolist()  # fmt: skip
        assert row.ids == (theirs[: theirs.index(3)] if 3 in theirs else theirs)


def test_unequal_rows_of_one_cache_give_the_logits_of_single_rows(decoder: Decoder) -> None:
    if not decoder.ragged:
        with pytest.raises(ValueError, match="for every row"):
            decoder.extend(embeds(2, 3), lengths=[3, 1])
        return
    tokens, lengths = embeds(3, 6, seed=7), [6, 2, 4]
    cache = decoder.start(3, 8)
    last, _ = decoder.extend(tokens, cache, lengths=lengths)
    step = embeds(3, 1, seed=8)
    after, _ = decoder.extend(step, cache)
    for row, own in enumerate(lengths):
        alone = torch.cat([tokens[row : row + 1, -own:], step[row : row + 1]], 1)
        full = reference(decoder, alone)[0]
        torch.testing.assert_close(last[row], full[-2], **CLOSE)
        torch.testing.assert_close(after[row], full[-1], **CLOSE)
        assert cache.row(row).length == own + 1


def test_the_plain_layouts_are_computed_without_the_modules(decoder: Decoder) -> None:
    family: str = decoder.family  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(decoder, CausalDecoder) == (family not in RECURRENT)
    if isinstance(decoder, CausalDecoder):
        assert (decoder.lean is not None) == (family in LEAN)
