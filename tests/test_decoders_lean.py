"""The lean layers: near the modules in every precision and size, and never older than the weights."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mm.decoders import lean, rows
from mm.decoders.causal import CausalDecoder
from mm.decoders.layout import fits
from mm.decoders.rows import Matrix

SIZE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "vocab_size": 130, "intermediate_size": 70, "max_position_embeddings": 64}  # fmt: skip
TOKENIZER = SimpleNamespace(eos_token_id=None)


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**SIZE | changes)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return lm


def steps(decoder: CausalDecoder, tokens: torch.Tensor) -> torch.Tensor:
    cache = decoder.start(len(tokens), tokens.shape[1])
    return torch.cat([decoder.extend(part, cache, keep=part.shape[1])[0] for part in tokens.split((5, 1, 1, 1), 1)], 1)


@pytest.mark.parametrize("small", [1, 2**18], ids=["in blocks", "in rows"])
@pytest.mark.parametrize("bias", [False, True])
def test_matrices_side_by_side_equal_their_layers(monkeypatch: pytest.MonkeyPatch, small: int, bias: bool) -> None:
    monkeypatch.setattr(rows, "_SMALL", small)
    layers = [torch.nn.Linear(24, width, bias=bias) for width in (32, 7, 50)]
    row, before = torch.randn(24), torch.randn(89)
    with torch.inference_mode():
        made = torch.cat([layer(row) for layer in layers], -1)
        torch.testing.assert_close(Matrix(*layers)(row), made)
        torch.testing.assert_close(Matrix(*layers)(row, onto=before), before + made)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_large_narrow_matrices_give_what_torch_gives(
    monkeypatch: pytest.MonkeyPatch, bias: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(rows, "_WIDE", 1)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(192, width, bias=bias).to(dtype) for width in (256, 64)]
    row = torch.randn(192).to(dtype)
    with torch.inference_mode():
        made = torch.cat([layer(row[None, None])[0, 0] for layer in layers])
        assert torch.equal(Matrix(*layers)(row), made)


@pytest.mark.parametrize("small", [1, 2**18], ids=["in blocks", "in rows"])
@pytest.mark.parametrize("width", [64, 50], ids=["whole blocks", "padded blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_takes_in_the_norm_the_scale_and_the_sum(
    monkeypatch: pytest.MonkeyPatch, small: int, width: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(rows, "_SMALL", small)
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, width, bias=False).to(dtype)
    row, norm, before = (torch.randn(count).to(dtype) for count in (24, 24, width))
    with torch.inference_mode():
        made = Matrix(layer, norm=norm)(row, 0.3, before)
        expected = before + layer(norm * row * 0.3)
    torch.testing.assert_close(made, expected, **({} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}))


@pytest.mark.parametrize("small", [1, 2**18], ids=["in blocks", "in rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_steps_equal_the_module(monkeypatch: pytest.MonkeyPatch, small: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(rows, "_SMALL", small)
    lm = llama().to(dtype)
    decoder = CausalDecoder(lm, TOKENIZER)
    tokens = torch.randn(1, 8, 48).to(dtype)
    with torch.inference_mode():
        full = lm(inputs_embeds=tokens).logits.float()
    near = 0.02 if dtype is torch.bfloat16 else 1e-5
    found = steps(decoder, tokens)
    assert decoder.lean is not None and found.dtype == torch.float32
    assert (found - full).abs().max() <= near * full.abs().max()


@pytest.mark.parametrize("begun", [0, 5])
@pytest.mark.parametrize("lengths", [None, [9, 6]], ids=["even", "with holes"])
@pytest.mark.parametrize("keep", [1, 3, 6])
def test_the_last_tokens_alone_get_what_they_get_among_all(begun: int, lengths: list[int] | None, keep: int) -> None:
    """Of the last layer only as many rows are computed as are asked for; keys and values are those of all tokens."""
    decoder = CausalDecoder(llama(), TOKENIZER)
    embeds = decoder.embed(torch.arange(2 * (begun + 9)).view(2, -1))

    def read(keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        cache = decoder.start(2, begun + 10)
        if begun:
            decoder.extend(embeds[:, :begun], cache)
        logits = decoder.extend(embeds[:, begun:], cache, lengths=lengths, keep=keep)[0]
        return logits, decoder.extend(embeds[:, :1], cache)[0]

    (some, after), (every, after_every) = read(keep), read(9)
    torch.testing.assert_close(some.view(2, keep, -1), every[:, -keep:])
    torch.testing.assert_close(after, after_every)


def test_training_shows_in_the_next_answer() -> None:
    lm = llama()
    decoder, tokens = CausalDecoder(lm, TOKENIZER), torch.randn(1, 8, 48)
    before = steps(decoder, tokens)
    with torch.no_grad():
        lm.model.layers[1].mlp.down_proj.weight.mul_(1.5)
        lm.model.norm.weight.add_(0.1)
        full = lm(inputs_embeds=tokens).logits
    after = steps(decoder, tokens)
    torch.testing.assert_close(after, full, atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 0.1


def test_a_copied_decoder_uses_its_own_weights() -> None:
    decoder, tokens = CausalDecoder(llama(), TOKENIZER), torch.randn(1, 8, 48)
    before = steps(decoder, tokens)
    other = copy.deepcopy(decoder)
    with torch.no_grad():
        other.lm.lm_head.weight.mul_(2)
    torch.testing.assert_close(steps(other, tokens), before * 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steps(decoder, tokens), before)


def test_a_model_too_large_to_copy_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_COPIED_AT_MOST", 1000)
    decoder, tokens = CausalDecoder(llama(), TOKENIZER), torch.randn(1, 8, 48)
    found = steps(decoder, tokens)
    assert decoder.lean is not None and decoder.lean._rows is None
    with torch.inference_mode():
        torch.testing.assert_close(found, decoder.lm(inputs_embeds=tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "lm",
    [
        lambda: llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        lambda: Qwen3ForCausalLM(
            Qwen3Config(**SIZE, use_sliding_window=True, sliding_window=4, max_window_layers=1)
        ).eval(),
    ],
    ids=["growing rotation", "window"],
)
def test_what_the_lean_layers_do_not_know_goes_through_the_module(lm: Any) -> None:
    model = lm()
    assert not fits(model)
    tokens = torch.randn(1, 8, 48)
    with torch.inference_mode():
        full = model(inputs_embeds=tokens).logits
    torch.testing.assert_close(steps(CausalDecoder(model, TOKENIZER), tokens), full, atol=1e-5, rtol=1e-5)


def test_a_replaced_layer_is_not_overlooked() -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    lm = llama()
    lm.model.layers[0].self_attn.v_proj = Adapted(48, 16)
    assert not fits(lm)
