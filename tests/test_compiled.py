"""Compiled rows: torch's own numbers where bits count, near them elsewhere, and never in the way of an answer.

On a machine without a C++ compiler, or whose torch sums in another order, most of this shows that all goes on without.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import mm
from mm.checkpoints import loading
from mm.decoders.causal import CausalDecoder
from mm.decoders.compiled import CompiledRows
from mm.decoders.int8 import to_int8
from mm.decoders.layout import rms
from mm.generation.loop import generate
from mm.kernels import row
from mm.kernels.int8 import rounded
from mm.kernels.row import NotCompiled, Projection, Rotation
from tests.parity.llava_folders import CHATML, processor, reference, saved

SIZE: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 131, "intermediate_size": 96, "max_position_embeddings": 64}  # fmt: skip
KINDS: dict[str, Any] = {
    "llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config,
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
NEAR: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 0.02, "rtol": 0.02},
}


def there() -> bool:
    """Whether this machine has the routines at all."""
    with contextlib.suppress(NotCompiled):
        return row.library() is not None
    return False


HERE = [pytest.param(..., id="here")] * there()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a routine leaves as it was is seen."""
    empty = torch.empty
    monkeypatch.setattr(
        row,
        "torch",
        SimpleNamespace(**vars(torch) | {"empty": lambda *size, **kind: empty(*size, **kind).fill_(float("nan"))}),
    )


def decoder(kind: str, dtype: torch.dtype, **changes: Any) -> CausalDecoder:
    torch.manual_seed(0)
    lm: Any = AutoModelForCausalLM.from_config(KINDS[kind](**SIZE | changes)).eval().requires_grad_(False)
    for parameter in lm.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return CausalDecoder(lm.to(dtype), SimpleNamespace(eos_token_id=None, decode=lambda ids, **_: ""))


def compiled(made: CausalDecoder) -> bool:
    """Compiles where this machine can."""
    with contextlib.suppress(NotCompiled):
        made.compile_rows()
    return made.compiled


def steps(made: CausalDecoder, tokens: Tensor) -> Tensor:
    cache = made.start(1, tokens.shape[1])
    return torch.cat([made.extend(part, cache, keep=part.shape[1])[0] for part in tokens.split((5, 1, 1, 1), 1)], 1)


@pytest.mark.parametrize("_", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [32, 96, 576])
@pytest.mark.parametrize("norm", [False, True])
def test_layers_side_by_side_give_what_torch_gives(_: Any, dtype: torch.dtype, inputs: int, norm: bool) -> None:
    torch.manual_seed(inputs)
    weights = [torch.randn(width, inputs).to(dtype) for width in (7, 1, 300)]
    biases = [torch.randn(7).to(dtype), None, torch.randn(300).to(dtype)]
    x, weight, onto = torch.randn(inputs).to(dtype), torch.randn(inputs).to(dtype), torch.randn(308).to(dtype)
    given = rms(x, SimpleNamespace(weight=weight, variance_epsilon=0.1)) if norm else x
    expected = torch.cat([F.linear(given, w, b) for w, b in zip(weights, biases, strict=True)])
    made = Projection(weights, biases, [None] * 3, weight if norm else None, 0.1, dtype=dtype)
    scale = expected.abs().max().item()
    torch.testing.assert_close(made(x) / scale, expected / scale, **NEAR[dtype])
    torch.testing.assert_close(made(x, onto), onto + made(x))
    if dtype == torch.bfloat16:
        with contextlib.suppress(NotCompiled):  # else no decoder would use it
            made.check()
            assert torch.equal(made(x), expected)


@pytest.mark.parametrize("_", HERE)
@pytest.mark.parametrize("bias", [False, True])
def test_layers_of_whole_numbers_are_those_of_their_rounded_weights(_: Any, bias: bool) -> None:
    torch.manual_seed(0)
    whole, scale = rounded(torch.randn(45, 96).to(torch.bfloat16))
    biases = [torch.randn(45).to(torch.bfloat16) if bias else None]
    x = torch.randn(96).to(torch.bfloat16)
    expected = (whole.float() @ x.float()) * scale.float() + (biases[0].float() if biases[0] is not None else 0)
    made = Projection([whole], biases, [scale], dtype=torch.bfloat16)
    torch.testing.assert_close(made(x).float(), expected, **NEAR[torch.bfloat16])


@pytest.mark.parametrize("_", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norms", [False, True])
def test_a_token_is_turned_and_put_in_its_place_alone(_: Any, dtype: torch.dtype, norms: bool) -> None:
    torch.manual_seed(0)
    heads, shared, width, place = 3, 2, 6, 4
    mixed, turns = torch.randn(heads + 2 * shared, width).to(dtype), torch.randn(2, 1, width).to(dtype)
    weights = [torch.randn(width).to(dtype) for _ in range(2)]
    query, key, value = mixed.split((heads, shared, shared))
    if norms:
        query, key = (
            rms(x, SimpleNamespace(weight=w, variance_epsilon=0.1)) for x, w in zip((query, key), weights, strict=True)
        )
    query, key = (x * turns[0] + x.roll(width // 2, -1) * turns[1] for x in (query, key))
    keys, values = torch.full((2, 1, shared, 9, width), 7.0, dtype=dtype)
    rotation = Rotation(heads, shared, width, tuple(weights) if norms else None, 0.1, dtype=dtype)  # pyright: ignore[reportArgumentType]
    found = rotation(mixed.flatten(), turns, keys, values, place)
    torch.testing.assert_close(found, query, **NEAR[dtype])
    torch.testing.assert_close(keys[0, :, place], key, **NEAR[dtype])
    assert torch.equal(values[0, :, place], value)
    others = [i for i in range(9) if i != place]
    assert (keys[:, :, others] == 7).all() and (values[:, :, others] == 7).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_equal_the_module(kind: str, dtype: torch.dtype) -> None:
    made, tokens = decoder(kind, dtype), torch.randn(1, 8, 128).to(dtype)
    with torch.inference_mode():
        full = made.lm(inputs_embeds=tokens).logits.float()
    compiled(made)
    near = 0.02 if dtype is torch.bfloat16 else 1e-5
    assert (steps(made, tokens) - full).abs().max() <= near * full.abs().max()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_stay_the_same_with_one_thread_and_with_several_answers_at_once(kind: str, dtype: torch.dtype) -> None:
    plain, made = decoder(kind, dtype), decoder(kind, dtype)
    compiled(made)
    prefix = torch.randn(1, 3, 128).to(dtype)

    def answer(by: CausalDecoder, prompt: list[int]) -> list[int]:
        *_, rows = generate(by, by.extend(prefix)[1], [prompt], max_new_tokens=12)
        return rows[0].ids

    prompts = [[1, 5, i] for i in range(6)]
    expected = [answer(made, prompt) for prompt in prompts]
    if dtype == torch.float32:  # in bfloat16 it is transformers that they agree with
        assert [answer(plain, prompt) for prompt in prompts] == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: answer(made, prompt), prompts)) == expected
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert [answer(made, prompt) for prompt in prompts] == expected
    finally:
        torch.set_num_threads(threads)


def test_an_answer_may_begin_with_a_single_token() -> None:
    plain, made = decoder("llama", torch.float32), decoder("llama", torch.float32)
    compiled(made)
    token = torch.randn(1, 1, 128)
    torch.testing.assert_close(made.extend(token)[0], plain.extend(token)[0])


def test_weights_in_8_bits_are_compiled_too() -> None:
    plain, made = decoder("llama", torch.bfloat16), decoder("llama", torch.bfloat16)
    for each in (plain, made):
        to_int8(each.lm, "small")
    compiled(made)
    tokens = torch.randn(1, 8, 128).to(torch.bfloat16)
    expected = steps(plain, tokens)
    assert (steps(made, tokens) - expected).abs().max() <= 0.02 * expected.abs().max()


def test_training_shows_in_the_next_answer_and_copies_use_their_own_weights() -> None:
    made, tokens = decoder("llama", torch.float32), torch.randn(1, 8, 128)
    was = compiled(made)
    before = steps(made, tokens)
    other = copy.deepcopy(made)
    assert other.compiled == was
    other.lm.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    other.lm.lm_head.weight = torch.nn.Parameter(other.lm.lm_head.weight * 2, requires_grad=False)
    with torch.inference_mode():
        full = other.lm(inputs_embeds=tokens).logits
    torch.testing.assert_close(steps(other, tokens), full, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steps(made, tokens), before)


@pytest.mark.parametrize("_", HERE)
def test_sums_in_another_order_are_found_out(_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row.F, "linear", lambda x, w, b: torch.linalg.vecdot(w.float(), x.float()).to(x.dtype))
    with pytest.raises(NotCompiled, match="another order"):
        Projection([torch.randn(300, 96).to(torch.bfloat16)], [None], [None], dtype=torch.bfloat16).check()


@pytest.mark.parametrize("_", HERE)
def test_a_nan_stays_one(_: Any) -> None:
    for dtype in DTYPES:
        made = Projection([torch.ones(3, 32, dtype=dtype)], [None], [None], dtype=dtype)
        assert made(torch.full((32,), float("nan"), dtype=dtype)).isnan().all()
        assert made(torch.full((32,), float("inf"), dtype=dtype)).isposinf().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: decoder("llama", torch.float16),
        lambda: decoder("llama", torch.float32, intermediate_size=90),
        lambda: CausalDecoder(
            AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=1, n_head=2)), SimpleNamespace()
        ),
    ],
    ids=["float16", "uneven width", "other layout"],
)
def test_what_is_not_known_is_said_and_left_to_torch(make: Any) -> None:
    made = make()
    with pytest.raises(NotCompiled):
        made.compile_rows()
    assert not made.compiled
    made.extend(torch.randn(1, 2, made.lm.config.hidden_size))


@pytest.mark.parametrize(("compiler", "said"), [("no-such-compiler", "no C++ compiler"), ("false", "does not build")])
def test_without_a_compiler_answers_come_as_before(monkeypatch: pytest.MonkeyPatch, compiler: str, said: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr(row, "library", functools.cache(row.library.__wrapped__))
    with pytest.warns(UserWarning, match=f"compile: .*{re.escape(said)}.*; tiny goes on without"):
        model = mm.load("tiny", compile=True)
    drawing = Path(__file__).parent.parent / "demos/images/drawing.png"
    answer = mm.caption(drawing, model=model)
    assert answer.text == mm.caption(drawing).text and answer.source.kernel == "sdpa"


@pytest.mark.parametrize("_", HERE)
def test_the_compiler_is_called_with_the_options_that_cxx_names(_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ -include no-such-header.h")
    with pytest.raises(NotCompiled, match="no-such-header"):
        row.library.__wrapped__()


def test_weights_that_can_no_longer_be_compiled_are_left_to_torch() -> None:
    made, tokens = decoder("llama", torch.float32), torch.randn(1, 8, 128)
    compiled(made)
    made.lm.to(torch.float64)
    with torch.inference_mode():
        full = made.lm(inputs_embeds=tokens.double()).logits.float()
    torch.testing.assert_close(steps(made, tokens), full, atol=1e-5, rtol=1e-5)
    assert not made.compiled


def test_a_model_loads_compiled_beside_the_plain_one(tmp_path: Path) -> None:
    drawing = Path(__file__).parent.parent / "demos/images/drawing.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mm.load("tiny", compile=True)
        assert model is mm.load("tiny", compile=True) and model is not mm.load("tiny")
    answer, plain = mm.caption(drawing, model=model), mm.caption(drawing)
    assert answer.text == plain.text and plain.source.kernel == "sdpa"
    assert answer.source.kernel == ("sdpa, decoder compiled" if there() else "sdpa")
    made = reference("clip_vision_model", "qwen2")  # whose layers have 48 inputs
    folder = saved(tmp_path / "folder", made, processor("clip_vision_model", made.config, CHATML))
    with pytest.warns(UserWarning, match="48 inputs" if there() else "compile: "):
        mm.load(folder, compile=True)


@pytest.mark.parametrize("_", HERE)
def test_rows_are_made_of_the_model_where_it_lies(_: Any) -> None:
    made = decoder("qwen2", torch.float32)
    assert made.lean is not None and compiled(made)
    rows = made.lean._prepared()
    assert isinstance(rows, CompiledRows) and rows is made.lean._prepared()
    kept = rows.layers[0].qkv._kept[0]
    assert kept[0].data_ptr() == made.lm.model.layers[0].self_attn.q_proj.weight.data_ptr()
