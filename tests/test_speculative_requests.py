"""A drafted answer ends, streams, is cancelled and is refused as a plain one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mm.decoders.base import Decoder
from mm.errors import InputError, ResourceLimitError
from mm.generation import walks
from mm.generation.drafts import Draft, Lookup
from mm.generation.loop import Row, deltas, generate
from mm.generation.sampling import Sampling
from mm.generation.speculative import generate_speculatively
from mm.types import Stats
from tests.speculative_parts import VOCAB, Words, blurred, build, picture

PROMPT = [1, 7, 12, 7]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build("llama", seed=4, end=None)


@pytest.fixture(scope="module")
def near(decoder: Decoder) -> Decoder:
    return blurred(decoder, 0.05)


def ending(decoder: Decoder, end: int) -> Decoder:
    """The same model, to which a token means the end."""
    other = type(decoder)(decoder.lm, Words(VOCAB, end))
    assert end in other.ends
    return other


def last(steps: Any) -> Any:
    *_, rows = steps
    return rows


def test_an_end_token_inside_an_accepted_run_ends_the_answer(decoder: Decoder) -> None:
    (whole,) = last(generate(decoder, None, PROMPT, max_new_tokens=12))
    place = next(i for i in range(2, 12) if whole.ids[i] not in whole.ids[:i] and i % 5 not in (0, 4))
    ended = ending(decoder, whole.ids[place])
    for draft in (Draft(ended), Draft(decoder, None)):
        (row,) = last(generate_speculatively(ended, None, PROMPT, draft=draft, max_new_tokens=30))
        assert (row.ids, row.finish_reason) == (whole.ids[:place], "stop")
        assert row.text == ended.text(row.ids)
        # A draft proposes nothing behind an end.
        assert row.stats == Stats(place // 5 + 1, place + 1, place + 1 - place // 5, place + 1 - place // 5)


@pytest.mark.parametrize("spelled", ["w{}", "w{} w"])
def test_a_stop_string_inside_an_accepted_run_ends_the_text_before_it(decoder: Decoder, spelled: str) -> None:
    (whole,) = last(generate(decoder, None, PROMPT, max_new_tokens=12))
    stop = [spelled.format(whole.ids[6])]
    (plain,) = last(generate(decoder, None, PROMPT, max_new_tokens=12, stop=stop))
    steps = generate_speculatively(decoder, None, PROMPT, draft=Draft(decoder), max_new_tokens=12, stop=stop)
    (row,) = last(steps)
    assert (row.ids, row.text, row.finish_reason) == (plain.ids, plain.text, "stop")
    assert stop[0] not in row.text and len(row.ids) < 12


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_last_allowed_token_says_length(decoder: Decoder, near: Decoder, count: int) -> None:
    (plain,) = last(generate(decoder, None, PROMPT, max_new_tokens=count))
    for draft in (Draft(near), Draft(decoder), Lookup()):
        (row,) = last(generate_speculatively(decoder, None, PROMPT, draft=draft, max_new_tokens=count))
        assert (row.ids, row.text, row.finish_reason) == (plain.ids, plain.text, "length")


@pytest.mark.parametrize("stop", [(), ("w18 w18",)], ids=str)
def test_pieces_joined_are_the_text(decoder: Decoder, near: Decoder, stop: tuple[str, ...]) -> None:
    rows: list[Row] = []

    def steps() -> Iterator[list[Row]]:
        for each in generate_speculatively(decoder, None, PROMPT, draft=Draft(near), max_new_tokens=20, stop=stop):
            rows[:] = each
            yield each

    pieces = list(deltas(decoder, steps(), stop))
    assert "".join(pieces) == rows[0].text and len(pieces) > 1


def test_rows_grow_by_what_was_accepted(decoder: Decoder) -> None:
    lengths = [
        len(row.ids)
        for (row,) in generate_speculatively(
            decoder, None, PROMPT, draft=Draft(decoder), tokens_per_step=3, max_new_tokens=10
        )
    ]
    assert lengths == [4, 8, 10]


def test_a_set_event_cancels_at_the_next_step(decoder: Decoder) -> None:
    event = threading.Event()
    steps = generate_speculatively(decoder, None, [PROMPT, [1]], draft=Draft(decoder), max_new_tokens=50, cancel=event)
    next(steps)
    event.set()
    (rows,) = list(steps)
    assert [(row.finish_reason, len(row.ids)) for row in rows] == [("cancelled", 5)] * 2
    assert [row.text for row in rows] == [decoder.text(row.ids) for row in rows]


def test_rows_of_one_cache_take_their_holes_along_when_it_is_packed(
    decoder: Decoder, near: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "_SLACK", 0)
    packed: list[int] = []
    pack = walks.Walk._pack

    def counted(walk: walks.Walk) -> None:
        packed.append(walk.forwards)
        pack(walk)

    monkeypatch.setattr(walks.Walk, "_pack", counted)
    prompts = [[1, 26], [1, 27, 28, 29, 30, 31, 13], [1, 30, 13, 26], [1]]
    prefixes = [picture(decoder, length, seed=length) for length in (5, 3, 5, 7)]
    seen = [picture(near, length, seed=length) for length in (5, 3, 5, 7)]
    far = blurred(decoder, 0.3)
    for draft in (Draft(near, seen), Draft(far, seen), Lookup()):
        together = last(generate_speculatively(decoder, prefixes, prompts, draft=draft, max_new_tokens=40))
        plain = last(generate(decoder, prefixes, prompts, max_new_tokens=40))
        assert [row.ids for row in together] == [row.ids for row in plain]
    assert len(packed) > 2


@pytest.mark.parametrize("family", ["mamba2", "gpt2"])
def test_rows_in_one_forward_may_have_drafts_that_walk_alone(decoder: Decoder, family: str) -> None:
    prompts = [[1, 26], [1, 27, 28], [5]]
    draft = Draft(build(family, end=None))
    together = last(generate_speculatively(decoder, None, prompts, draft=draft, max_new_tokens=10))
    for prompt, row in zip(prompts, together, strict=True):
        assert row == last(generate_speculatively(decoder, None, prompt, draft=draft, max_new_tokens=10))[0]


def test_rows_with_and_without_a_picture_answer_in_one_call(decoder: Decoder, near: Decoder) -> None:
    prefixes = [None, picture(decoder), None]
    draft = Draft(near, [picture(near), None, None])
    rows = last(generate_speculatively(decoder, prefixes, PROMPT, draft=draft, max_new_tokens=10))
    for prefix, row in zip(prefixes, rows, strict=True):
        assert row.ids == last(generate(decoder, prefix, PROMPT, max_new_tokens=10))[0].ids


@pytest.mark.parametrize("count", [0, -1, 65, 1.5, True, None, "4"])
def test_guesses_of_a_step_are_a_whole_number_in_range(decoder: Decoder, count: Any) -> None:
    with pytest.raises(InputError, match="tokens_per_step: expected a whole number from 1 to 64"):
        next(generate_speculatively(decoder, None, [1], draft=Lookup(), tokens_per_step=count, max_new_tokens=3))


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None, "9"])
def test_a_lookup_s_length_is_a_whole_number(count: Any) -> None:
    with pytest.raises(InputError, match="longest"):
        Lookup(count)


def other_words(decoder: Decoder) -> dict[str, Any]:
    return {"draft": Draft(build("llama", vocab_size=VOCAB - 1))}


REFUSED: dict[str, tuple[Callable[[Decoder], dict[str, Any]], str]] = {
    "vocabulary": (other_words, r"draft: expected the vocabulary.*\(39 and 40 tokens\)"),
    "kind": (lambda decoder: {"draft": decoder}, "draft: expected a Draft or a Lookup, got CausalDecoder"),
    "prefixes": (lambda decoder: {"draft": Draft(decoder, [None] * 2)}, "draft: expected 1 or 3 prefixes"),
    "samplings": (lambda decoder: {"sampling": [Sampling()] * 2}, "samplings"),
    "stop": (lambda decoder: {"stop": "red"}, "stop"),
    "length": (lambda decoder: {"max_new_tokens": 0}, "max_new_tokens"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_requests_that_do_not_fit_together_are_refused(decoder: Decoder, name: str) -> None:
    values, said = REFUSED[name]
    given: dict[str, Any] = {"draft": Lookup(), "max_new_tokens": 3, **values(decoder)}
    with pytest.raises(InputError, match=said):
        next(generate_speculatively(decoder, None, [[1], [1], [1]], **given))


def test_what_neither_the_decoder_nor_the_draft_can_read_is_refused_before_anything_is_read(decoder: Decoder) -> None:
    short = build("llama", end=None, max_position_embeddings=30)
    assert (decoder.context, short.context) == (96, 30)
    for reader, draft, most in ((decoder, short, "draft reads 30.*at most 21"), (short, decoder, "decoder reads 30")):
        steps = generate_speculatively(
            reader, picture(reader), PROMPT, draft=Draft(draft, picture(draft)), max_new_tokens=22
        )
        with pytest.raises(ResourceLimitError, match=most):
            next(steps)
    for reader, draft in ((decoder, short), (short, decoder)):
        steps = generate_speculatively(
            reader, picture(reader), PROMPT, draft=Draft(draft, picture(draft)), max_new_tokens=21
        )
        assert len(last(steps)[0].ids) == 21
