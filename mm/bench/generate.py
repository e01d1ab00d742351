"""Times generation beside transformers' own `generate()`, on the same random weights and in turns with it.

A ratio above 1 means that `mm` is faster. Both read a picture of `PICTURE` tokens and a prompt of `PROMPT` tokens, and
write `NEW` tokens, ours with and without compiled routines; or they answer `QUESTIONS` questions of `QUESTION` tokens
about one picture in `ANSWER` tokens each. Rows of `int8` are ours with rounded weights beside transformers in bfloat16.
Random weights find most words about equally likely, so that there the tokens soon part; it says nothing of what
rounding costs a trained model.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from mm.bench.timing import Step, times_of

PICTURE, PROMPT, NEW = 64, 96, 64
QUESTIONS, QUESTION, ANSWER = 8, 12, 16

_TINY = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6,
         "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 256}  # fmt: skip
_SMOL = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
         "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192}  # fmt: skip
SHAPES = {"tiny": _TINY, "135M": _SMOL}
DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Case:
    """One comparison: the two ways to the same tokens. Each call gives the answers' token numbers."""

    name: str
    ours: Callable[[], list[list[int]]]
    theirs: Callable[[], list[list[int]]]


def run(repeats: int = 5, shapes: tuple[str, ...] = tuple(SHAPES), progress: bool = False) -> list[dict[str, Any]]:
    """Rows ``step, dtype, ms, peer, peer_ms, ratio, same_tokens``; medians of alternating turns in milliseconds.

    same_tokens: the part of the greedy tokens, up to the first that differs, that both ways agree on.
    """
    rows: list[dict[str, Any]] = []
    plan = [(shape, dtype) for shape in shapes for dtype in DTYPES]
    for shape, dtype in tqdm(plan, disable=not progress, leave=False, unit="model"):
        for case in cases(shape, dtype):
            agreed = _agreement(case.ours(), case.theirs())
            times = times_of(Step(case.name, case.ours, theirs=case.theirs), repeats)
            rows.append({
                "step": case.name, "dtype": dtype, "ms": times.ms, "peer": "transformers generate",
                "peer_ms": times.peer_ms, "ratio": times.ratio, "same_tokens": agreed,
            })  # fmt: skip
    return rows


def cases(shape: str, dtype: str) -> list[Case]:
    """One answer, the same by compiled routines where this machine has them, and several questions about one picture,
    with random weights of that shape."""
    import torch

    from mm.decoders.causal import CausalDecoder
    from mm.decoders.int8 import to_int8
    from mm.generation.loop import generate
    from mm.kernels.row import NotCompiled

    lm = mine = random_llama(SHAPES[shape], torch.float32 if dtype == "float32" else torch.bfloat16)
    if dtype == "int8":
        mine = copy.deepcopy(lm)
        to_int8(mine, shape)
    tokenizer: Any = SimpleNamespace(eos_token_id=None, decode=lambda ids, **_: "")
    decoder, compiled = CausalDecoder(mine, tokenizer), CausalDecoder(mine, tokenizer)
    chance = torch.Generator().manual_seed(1)
    vocabulary, width = lm.config.vocab_size, lm.config.hidden_size
    prompt = torch.randint(3, vocabulary, (PROMPT,), generator=chance).tolist()
    questions = torch.randint(3, vocabulary, (QUESTIONS, QUESTION), generator=chance).tolist()
    picture = torch.randn(1, PICTURE, width, generator=chance).to(lm.dtype)

    def ours(asked: list[list[int]], count: int, by: CausalDecoder = decoder) -> list[list[int]]:
        prefix = by.extend(picture)[1]
        *_, rows = generate(by, prefix, asked, max_new_tokens=count)
        return [row.ids for row in rows]

    @torch.inference_mode()
    def theirs(asked: list[list[int]], count: int) -> list[list[int]]:
        answers = []
        for ids in asked:
            embeds = torch.cat([picture, decoder.embed(torch.tensor([ids]))], 1)
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
            made = lm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=count, do_sample=False)
            answers.append(made[0].tolist())
        return answers

    found = [
        Case(f"{NEW} tokens, {shape}", lambda: ours([prompt], NEW), lambda: theirs([prompt], NEW)),
        Case(
            f"{QUESTIONS} questions about one picture, {shape}",
            lambda: ours(questions, ANSWER),
            lambda: theirs(questions, ANSWER),
        ),
    ]
    with contextlib.suppress(NotCompiled):
        compiled.compile_rows()
        quick = Case(
            f"{NEW} tokens, {shape}, compiled", lambda: ours([prompt], NEW, compiled), lambda: theirs([prompt], NEW)
        )
        found.insert(1, quick)
    return found


def random_llama(shape: dict[str, int], dtype: Any) -> Any:
    """A Llama of that shape with seeded weights that never ends an answer by itself."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=1, eos_token_id=None, pad_token_id=0)  # pyright: ignore[reportArgumentType]
        return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def _agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    same = 0
    for mine, other in zip(ours, theirs, strict=True):
        same += next((i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(other))
    return same / sum(map(len, theirs))
