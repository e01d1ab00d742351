"""Decoders whose weights are rounded to 8 bits: near the whole ones, smaller, and never taken for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

import mm
from mm.checkpoints.saved import write_decoder
from mm.decoders.causal import CausalDecoder
from mm.decoders.int8 import Int8Linear, is_int8, to_int8
from mm.decoders.rows import SingleRows
from mm.errors import InputError
from mm.kernels import int8
from mm.kernels.int8 import linear_int8, rounded
from tests.parity.llava_folders import CHATML, processor, reference, saved

SIZE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 130, "intermediate_size": 70, "max_position_embeddings": 64}  # fmt: skip


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    lm: Any = LlamaForCausalLM(LlamaConfig(**SIZE | changes)).eval().requires_grad_(False)
    for parameter in lm.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return lm.to(torch.bfloat16)


def test_weights_are_rounded_to_the_nearest_step_of_their_row() -> None:
    weight = torch.randn(5, 33) * torch.tensor([1e-3, 1, 0, 40, 1])[:, None]
    whole, scale = rounded(weight)
    assert whole.dtype == torch.int8 and whole.abs().amax(1).tolist() == [127, 127, 0, 127, 127]
    assert ((whole * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all()


@pytest.mark.parametrize("rows", [(), (1,), (16,), (17,), (2, 3)])
@pytest.mark.parametrize("inside", [15, 48, 70, 96])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_that_of_its_rounded_weights(rows: tuple[int, ...], inside: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(inside, 33, bias=bias).to(torch.bfloat16)
    small, x = Int8Linear(layer), torch.randn(*rows, inside).to(torch.bfloat16)
    with torch.inference_mode():
        wide = small.weight.float() * small.scale.float()[:, None]
        want = F.linear(x.float(), wide, None if small.bias is None else small.bias.float())
        found = small(x)
        assert found.dtype == torch.bfloat16 and found.shape == want.shape
        torch.testing.assert_close(found.float(), want, atol=0.02, rtol=0.02)
        assert (found - layer(x)).float().norm() < 0.03 * want.norm()


def test_few_rows_and_many_and_other_builds_of_torch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(64, 32).to(torch.bfloat16), torch.randn(2, 32).to(torch.bfloat16)
    quick = linear_int8(x, *rounded(weight))
    monkeypatch.setattr(int8, "_FEW", 0)
    torch.testing.assert_close(linear_int8(x, *rounded(weight)), quick, atol=0.1, rtol=0.02)


def test_gradients_reach_what_stands_in_front() -> None:
    x = torch.randn(1, 32, dtype=torch.bfloat16, requires_grad=True)
    linear_int8(x, *rounded(torch.randn(8, 32).to(torch.bfloat16))).sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0


@pytest.mark.parametrize("kind", ["llama", "with biases"])
def test_single_steps_equal_all_tokens_at_once_and_nothing_is_kept_twice(kind: str) -> None:
    lm = llama(attention_bias=kind == "with biases")
    to_int8(lm, "small")
    decoder = CausalDecoder(lm, SimpleNamespace(eos_token_id=None))
    tokens = torch.randn(1, 8, 64).to(torch.bfloat16)
    with torch.inference_mode():
        full = lm(inputs_embeds=tokens).logits.float()
    cache = decoder.start(1, 8)
    found = torch.cat([decoder.extend(part, cache, keep=part.shape[1])[0] for part in tokens.split((5, 1, 1, 1), 1)], 1)
    assert (found - full).abs().max() <= 0.03 * full.abs().max()
    assert decoder.lean is not None
    prepared = decoder.lean._prepared()
    assert isinstance(prepared, SingleRows) and prepared is decoder.lean._prepared()
    attention, x = lm.model.layers[0].self_attn, torch.randn(1, 64, dtype=torch.bfloat16, requires_grad=True)
    attention.q_proj(x).sum().backward()  # a connector can still be trained in front of it
    assert x.grad is not None
    places = {part.weight.untyped_storage().data_ptr() for part in (attention.q_proj, attention.k_proj)}
    assert len(places) == 1 and prepared.layers[0].qkv.weight.untyped_storage().data_ptr() in places


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = reference("clip_vision_model", "qwen2")
    reader = processor("clip_vision_model", made.config, CHATML)
    return saved(tmp_path_factory.mktemp("int8") / "folder", made, reader)


def test_a_model_loads_in_8_bits_beside_the_whole_one(folder: Path, tmp_path: Path) -> None:
    small, whole = mm.load(folder, dtype="bfloat16", int8=True), mm.load(folder, dtype="bfloat16")
    assert small.speaker is not None and whole.speaker is not None
    assert is_int8(small.speaker.decoder.lm) and not is_int8(whole.speaker.decoder.lm)
    assert small is mm.load(folder, dtype="bfloat16", int8=True)
    picture = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    said = mm.ask(picture, "what is it?", model=small, max_new_tokens=4)
    assert said.source.dtype == "bfloat16, decoder in int8"
    assert mm.ask(picture, "what is it?", model=whole, max_new_tokens=4).source.dtype == "bfloat16"
    with pytest.raises(InputError, match="without int8"):
        write_decoder(small.speaker.decoder, tmp_path / "out")


def test_what_cannot_be_rounded_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match='dtype="bfloat16"'):
        mm.load(folder, int8=True)
    mamba: Any = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(InputError, match="that of small is mamba"):
        to_int8(mamba.to(torch.bfloat16), "small")
