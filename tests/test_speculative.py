"""Speculation changes how fast an answer comes, never the greedy answer: every family, every kind of draft."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mm.decoders.base import Decoder
from mm.generation.drafts import Draft, Draws, Lookup, guesser
from mm.generation.loop import Row, generate
from mm.generation.sampling import Sampling
from mm.generation.speculative import generate_speculatively
from tests.speculative_parts import END, FAMILIES, RECURRENT, VOCAB, WIDTH, blurred, build, picture

PROMPT = [1, 7, 12, 7, 12, 9]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def decoder(family: str) -> Decoder:
    return build(family, seed=3)


@pytest.fixture(scope="module")
def stranger() -> Decoder:
    """A random model: it knows nothing of what the others write."""
    return build("llama", seed=99, num_hidden_layers=1)


def plain(decoder: Decoder, prefix: Any, prompt: list[int] = PROMPT, count: int = 12, **how: Any) -> list[int]:
    *_, (row,) = generate(decoder, prefix, prompt, max_new_tokens=count, **how)
    return row.ids


def drafted(decoder: Decoder, prefix: Any, draft: Draft | Lookup, count: int = 12, **how: Any) -> Row:
    *_, (row,) = generate_speculatively(decoder, prefix, PROMPT, draft=draft, max_new_tokens=count, **how)
    assert row.stats.tokens == len(row.ids) + (row.finish_reason == "stop" and not how.get("stop"))
    return row


def test_the_answer_is_the_greedy_one(decoder: Decoder, stranger: Decoder) -> None:
    near, prefix = blurred(decoder, 0.1), picture(decoder)
    drafts = {
        "stranger": (Draft(stranger), 1),
        "blind": (Draft(near), 3),
        "sighted": (Draft(near, picture(near)), 3),
        "lookup": (Lookup(), 4),
    }
    expected = plain(decoder, prefix)
    assert len(set(expected)) > 2
    for name, (draft, at_once) in drafts.items():
        row = drafted(decoder, prefix, draft, tokens_per_step=at_once)
        assert row.ids == expected, name
        assert row.finish_reason == ("stop" if len(expected) < 12 else "length")


def test_a_draft_equal_to_the_decoder_is_always_right(family: str) -> None:
    decoder = build(family, seed=3, end=None)
    prefix = picture(decoder)
    row = drafted(decoder, prefix, Draft(decoder, prefix), 15, tokens_per_step=4)
    assert row.ids == plain(decoder, prefix, count=15)
    assert (row.stats.acceptance, row.stats.tokens_per_forward, row.stats.forwards) == (1.0, 5.0, 3)


def test_a_wrong_guess_costs_a_recurrent_decoder_a_second_reading(
    family: str, decoder: Decoder, stranger: Decoder
) -> None:
    steps = list(generate_speculatively(decoder, None, PROMPT, draft=Draft(stranger), max_new_tokens=6))
    stats = steps[-1][0].stats
    assert stats.acceptance < 0.5
    assert (stats.forwards > len(steps)) if family in RECURRENT else (stats.forwards == len(steps))


def test_a_penalty_is_kept() -> None:
    decoder = build("qwen2", seed=5)
    how = Sampling(repetition_penalty=1.5)
    expected = plain(decoder, None, sampling=how)
    assert expected != plain(decoder, None)
    assert drafted(decoder, None, Draft(blurred(decoder, 0.1)), sampling=how).ids == expected


@pytest.mark.parametrize("kind", ["llama", "mamba2"])
def test_four_rows_at_their_own_pace_answer_as_each_alone(kind: str) -> None:
    decoder = build(kind, seed=len(kind))
    near = blurred(decoder, 0.2)
    prompts = [[1, 26], [1, 27, 28, 29, 30, 31, 13], [1, 30, 13, 26], [1]]
    prefixes = [picture(decoder, length, seed=length) for length in (5, 3, 5, 7)]
    draft = Draft(near, [picture(near, length, seed=length) for length in (5, 3, 5, 7)])
    *_, together = generate_speculatively(decoder, prefixes, prompts, draft=draft, max_new_tokens=12)
    assert isinstance(draft.prefix, list)
    for prefix, seen, prompt, row in zip(prefixes, draft.prefix, prompts, together, strict=True):
        how: Any = {"draft": Draft(near, seen), "max_new_tokens": 12}
        *_, (alone,) = generate_speculatively(decoder, prefix, prompt, **how)
        assert row == alone and row.ids == plain(decoder, prefix, prompt, 12)
    assert len({row.stats.accepted for row in together}) > 1


@pytest.mark.parametrize("kind", ["llama", "rwkv"])
def test_prefixes_are_left_as_they_were(kind: str) -> None:
    decoder = build(kind, seed=len(kind))
    prefix = picture(decoder)
    before = plain(decoder, prefix)
    draft = Draft(blurred(decoder, 0.1), prefix)
    assert drafted(decoder, prefix, draft) == drafted(decoder, prefix, draft)
    assert plain(decoder, prefix) == before


def test_trap_16_a_draft_that_sees_the_picture_guesses_better_than_a_blind_one() -> None:
    torch.manual_seed(0)
    decoder = build("llama", seed=4, end=None)
    connector = torch.nn.Linear(6, WIDTH, bias=False)
    near, its_own = blurred(decoder, 0.05), torch.nn.Linear(6, WIDTH, bias=False)
    accepted = {"sighted": 0, "blind": 0}
    with torch.no_grad():
        its_own.weight.copy_(connector.weight + torch.randn_like(connector.weight) * 0.01)
        for seed in range(2):
            features = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(seed)) * 3
            prefix = decoder.extend(connector(features))[1]
            for name, draft in (("sighted", Draft(near, near.extend(its_own(features))[1])), ("blind", Draft(near))):
                row = drafted(decoder, prefix, draft, 24)
                accepted[name] += row.stats.accepted
                assert row.ids == plain(decoder, prefix, count=24)
    assert accepted["sighted"] > 1.5 * accepted["blind"] > 0


def test_lookup_goes_on_where_the_same_words_stood_before() -> None:
    guess = guesser(Lookup(2), build("gpt2"), [None], 20, 4)

    def found(tokens: list[int]) -> list[int]:
        (guesses,) = guess([tokens], [4], [Draws(Sampling())])
        return [each.token for each in guesses]

    assert found([5, 6, 7, 8, 9, 4, 6, 7]) == [8, 9, 4, 6]
    assert found([5, 6, 7, 8, 2, 7, 1, 6, 7]) == [8, 2, 7, 1]  # two words tell more than one that stood nearer
    assert found([9, 6, 1, 2, 6, 3, 5, 6]) == [3, 5, 6, 3]  # the latest place, and the copy goes on with itself
    assert found([4, 8, 8]) == [8] * 4
    assert found([1, 2, 3]) == found([1]) == []


def test_a_draft_may_have_a_shorter_or_longer_table_behind_the_same_words() -> None:
    words = build("llama").tokenizer
    for own, other in ((VOCAB + 8, VOCAB), (VOCAB, VOCAB + 8)):
        decoder, draft = build("llama", seed=1, vocab_size=own), build("llama", seed=2, vocab_size=other)
        decoder.tokenizer = draft.tokenizer = words
        for how in (Sampling(), Sampling(repetition_penalty=1.4), Sampling(temperature=3.0, top_p=0.95)):
            prompt = [1, 7, own - 1]
            steps = generate_speculatively(decoder, None, prompt, draft=Draft(draft), max_new_tokens=20, sampling=how)
            *_, (row,) = steps
            if how.temperature is None:
                assert row.ids == plain(decoder, None, prompt, 20, sampling=how)
            assert row.stats.guessed > 0 and END not in row.ids and max(row.ids) < own
