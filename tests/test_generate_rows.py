"""Requests and their rows: streams, stop strings, cancelling, prompts and prefixes of any number."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mm.decoders.base import Decoder
from mm.decoders.build import build_decoder
from mm.errors import InputError, ResourceLimitError
from mm.generation.loop import Row, deltas, generate
from mm.generation.sampling import Sampling
from mm.generation.writing import Writing, whole_text
from mm.recipes.tokenizer import train_tokenizer
from mm.zoo import EMBEDDED


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = EMBEDDED / "tiny" / "decoder"
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return build_decoder(lm, AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def prefix(decoder: Decoder) -> Any:
    return decoder.extend(torch.randn(1, 6, 192, generator=torch.Generator().manual_seed(2)))[1]


class Scripted:
    """A decoder that says what the test wants: row b writes `scripts[b]`, token after token."""

    ragged, context, ends = True, 500, frozenset({3})

    def __init__(self, scripts: list[list[int]], tokenizer: Any) -> None:
        self.scripts, self.tokenizer, self.said = scripts, tokenizer, 0
        self.text = Decoder.text.__get__(self)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return ids[..., None].float()

    def start(self, batch: int, capacity: int) -> Any:
        return SimpleNamespace(batch=batch, capacity=capacity)

    def extend(self, embeds: torch.Tensor, cache: Any, *, lengths: Any = None) -> tuple[torch.Tensor, Any]:
        tokens = [script[min(self.said, len(script) - 1)] for script in self.scripts]
        self.said += 1
        return torch.nn.functional.one_hot(torch.tensor(tokens), 600).float(), cache


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


TEXTS = [
    "two red cats",
    "naïve café, 日本語の文",
    "a 👩‍🚀 flies 🚀",
    "x\u0301 é",
    "<s> </s> <0x0A>",
    "  two  spaces ",
    "ß\nß",
]


def spelled(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_whole_text(tokenizer: Any, text: str) -> None:
    scripted: Any = Scripted([[*spelled(tokenizer, text), 3]], tokenizer)
    pieces = list(deltas(scripted, generate(scripted, None, [1], max_new_tokens=200)))
    assert "".join(pieces) == scripted.text(scripted.scripts[0])
    assert len(pieces) > 1 and not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_character_come_out_at_the_end(tokenizer: Any) -> None:
    byte = [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "é".encode()]
    scripted: Any = Scripted([[*byte, byte[0], 3]], tokenizer)
    steps = generate(scripted, None, [1], max_new_tokens=9)
    rows: list[Row] = []

    def watched() -> Any:
        for each in steps:
            rows[:] = each
            yield each

    pieces = list(deltas(scripted, watched()))
    assert pieces[0] == "é" and "".join(pieces) == rows[0].text == whole_text(scripted, rows[0].ids)


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [(["cats"], "two red ", "stop"), (["d c"], "two re", "stop"), (["cats", "red"], "two ", "stop"),
     (["catsx"], "two red cats and", "length"), (["tw"], "", "stop"), (["zebra"], "two red cats and", "length")],
)  # fmt: skip
def test_a_stop_string_ends_the_text_before_it(tokenizer: Any, stop: list[str], text: str, reason: str) -> None:
    ids = spelled(tokenizer, "two red cats and")
    for run in ("whole", "streamed"):
        scripted: Any = Scripted([ids], tokenizer)
        steps = generate(scripted, None, [1], max_new_tokens=len(ids), stop=stop)
        if run == "whole":
            *_, (row,) = steps
            assert (row.text, row.finish_reason) == (text, reason)
        else:
            assert "".join(deltas(scripted, steps, stop)) == text


def test_the_beginning_of_a_stop_string_is_held_back(tokenizer: Any) -> None:
    scripted: Any = Scripted([[]], tokenizer)
    writing = Writing(scripted, ["red cats"])
    first, *rest = spelled(tokenizer, "two red")
    given = writing.add([first]) + "".join(writing.add([token]) for token in rest)
    assert given == "two "
    assert writing.add([], last=True) == "red"


def test_eight_questions_of_one_prefix_answer_as_each_alone(decoder: Decoder, prefix: Any) -> None:
    prompts = [decoder.prompt_ids("describe the picture"[: n + 4]) for n in range(8)]
    assert len({len(prompt) for prompt in prompts}) > 1
    *_, together = generate(decoder, prefix, prompts, max_new_tokens=12)
    for prompt, row in zip(prompts, together, strict=True):
        *_, (alone,) = generate(decoder, prefix, prompt, max_new_tokens=12)
        assert (row.ids, row.text, row.finish_reason) == (alone.ids, alone.text, alone.finish_reason)
        assert row.text == decoder.text(row.ids)


def test_a_seed_draws_the_same_answer_alone_and_in_a_batch(decoder: Decoder, prefix: Any) -> None:
    how = [Sampling(temperature=1.5, top_k=50, seed=seed) for seed in (1, 2, 1)]
    prompt = decoder.prompt_ids("describe")
    *_, rows = generate(decoder, prefix, [prompt] * 3, max_new_tokens=10, sampling=how)
    assert rows[0].ids == rows[2].ids != rows[1].ids
    *_, (alone,) = generate(decoder, prefix, prompt, max_new_tokens=10, sampling=how[1])
    assert alone.ids == rows[1].ids


def test_a_set_event_cancels_at_the_next_token(decoder: Decoder, prefix: Any) -> None:
    event, prompts = threading.Event(), [decoder.prompt_ids("describe"), decoder.prompt_ids("what is it?")]
    steps = generate(decoder, prefix, prompts, max_new_tokens=50, cancel=event)
    next(steps)
    event.set()
    (rows,) = list(steps)
    assert [row.finish_reason for row in rows] == ["cancelled"] * 2
    assert [row.text for row in rows] == [decoder.text(row.ids) for row in rows] and len(rows[0].ids) == 1


def test_closing_the_iterator_stops_reading(tokenizer: Any) -> None:
    scripted: Any = Scripted([[5] * 90], tokenizer)
    steps = generate(scripted, None, [1], max_new_tokens=90)
    for _ in range(2):
        next(steps)
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert scripted.said == 2 and list(steps) == []


def test_threads_answering_from_one_prefix_do_not_disturb_each_other(decoder: Decoder, prefix: Any) -> None:
    prompts = [decoder.prompt_ids(text) for text in ("describe", "how many stars?", "what colour?")] * 2
    alone = [list(generate(decoder, prefix, prompt, max_new_tokens=10))[-1][0].ids for prompt in prompts]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        found[i] = list(generate(decoder, prefix, prompts[i], max_new_tokens=10))[-1][0].ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(prompts))] == alone


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None, "9"])
def test_an_answer_s_length_is_a_whole_number(decoder: Decoder, prefix: Any, count: Any) -> None:
    with pytest.raises(InputError, match="max_new_tokens"):
        next(generate(decoder, prefix, [1], max_new_tokens=count))


@pytest.mark.parametrize(
    ("values", "named"),
    [({"stop": "red"}, "stop"), ({"stop": [""]}, "stop"), ({"sampling": [Sampling()] * 2}, "samplings"),
     ({"prompt_ids": []}, "prompt_ids"), ({"prompt_ids": [[1], []]}, "prompt_ids")],
)  # fmt: skip
def test_requests_that_do_not_fit_together_are_refused(decoder: Decoder, prefix: Any, values: Any, named: str) -> None:
    given = {"prompt_ids": [[1], [1], [1]], "max_new_tokens": 3, **values}
    with pytest.raises(InputError, match=named):
        next(generate(decoder, prefix, **given))


def test_too_long_an_answer_is_refused_before_anything_is_read(decoder: Decoder, prefix: Any) -> None:
    with pytest.raises(ResourceLimitError, match="at most 249 here"):
        next(generate(decoder, prefix, [[1], [1, 2]], max_new_tokens=10**9))
    with pytest.raises(ResourceLimitError, match="room for 256"):
        decoder.extend(torch.zeros(1, 257, 192))
