"""Drawn answers follow the decoder's own distribution, whatever a draft guesses."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch

from mm.decoders.base import Decoder
from mm.generation.drafts import Draft, Draws, Guess, Lookup
from mm.generation.loop import generate
from mm.generation.sampling import Sampling, processed
from mm.generation.speculative import generate_speculatively
from tests.speculative_parts import build

VOCAB, ANSWER = 5, 3
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "end": None,
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build("llama", seed=1, scale=12, **SMALL)


@pytest.fixture(scope="module")
def draft() -> Decoder:
    return build("llama", seed=2, scale=12, **SMALL)


def chances(decoder: Decoder, prompt: list[int], sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every answer of three tokens."""
    found = {(): 1.0}
    for _ in range(ANSWER):
        longer = {}
        for answer, chance in found.items():
            seen = [*prompt, *answer]
            logits, _ = decoder.extend(decoder.embed(torch.tensor([seen])))
            each = processed(logits[0], sampling, seen).softmax(-1).tolist()
            longer |= {(*answer, token): chance * part for token, part in enumerate(each)}
        found = longer
    return found


def excess(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """How many of its standard deviations the chi-square statistic lies above its mean; rare answers count as one."""
    total, rare = counts.total(), [0.0, 0.0]
    cells: list[list[float]] = [rare]
    for answer, chance in expected.items():
        if chance * total < 5:
            rare[0] += counts[answer]
            rare[1] += chance * total
        else:
            cells.append([counts[answer], chance * total])
    cells = [cell for cell in cells if cell[1] > 0]
    freedom = len(cells) - 1
    return (sum((seen - due) ** 2 / due for seen, due in cells) - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "how",
    [{"temperature": 1.2}, {"temperature": 1.5, "top_k": 4, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3}],
    ids=["plain", "bounded"],
)
def test_answers_are_as_frequent_as_without_a_draft(decoder: Decoder, draft: Decoder, how: dict[str, Any]) -> None:
    prompt, samplings = [1, 4], [Sampling(**how, seed=seed) for seed in range(1000)]
    *_, rows = generate_speculatively(
        decoder, None, [prompt] * 1000, draft=Draft(draft), tokens_per_step=2, max_new_tokens=ANSWER, sampling=samplings
    )
    counts = Counter(tuple(row.ids) for row in rows)
    accepted, guessed = (sum(getattr(row.stats, name) for row in rows) for name in ("accepted", "guessed"))
    expected = chances(decoder, prompt, samplings[0])
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    assert all(expected[answer] > 0 for answer in counts)
    assert abs(excess(counts, expected)) < 3
    assert excess(counts, chances(draft, prompt, samplings[0])) > 30  # the test would see the draft's distribution
    assert 0.1 < accepted / guessed < 0.9


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"min_p": 0.2}], ids=str)
def test_one_verdict_follows_the_decoder_s_probabilities(how: dict[str, Any]) -> None:
    sampling = Sampling(temperature=1.0, seed=8, **how)
    random = torch.Generator().manual_seed(5)
    ours, guessed = torch.randn(6, generator=random), torch.randn(5, generator=random) * 2
    draws, kept, total = Draws(sampling), 0, 2000
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(total):
        guess = draws.guess(guessed, [])
        token = draws.judge(ours, [], guess)
        counts[(token,)] += 1
        kept += token == guess.token
    p = processed(ours, sampling, []).softmax(-1)
    q = torch.cat([processed(guessed, sampling, []).softmax(-1), torch.zeros(1)])
    assert abs(excess(counts, {(i,): float(chance) for i, chance in enumerate(p)})) < 3
    # Leviathan et al., 2023, corollary 3.6: a guess is kept with probability sum min(p, q).
    assert kept / total == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.025)


def test_equal_distributions_accept_every_guess() -> None:
    draws, logits = Draws(Sampling(temperature=0.7, seed=1)), torch.tensor([0.3, -1.0, 2.0, 0.0])
    guesses = [draws.guess(logits, []) for _ in range(300)]
    assert len({guess.token for guess in guesses}) == 4
    assert all(draws.judge(logits, [], guess) == guess.token for guess in guesses)


def test_a_guess_that_cannot_be_is_never_kept() -> None:
    draws = Draws(Sampling(temperature=1.0, top_k=1))
    certain = torch.tensor([0.0, 1.0, 0.0])
    assert {draws.judge(torch.tensor([5.0, 0.0, 0.0]), [], Guess(1, certain)) for _ in range(50)} == {0}


def test_a_draft_equal_to_the_decoder_is_always_right_when_drawing(decoder: Decoder) -> None:
    how = [Sampling(temperature=1.0, top_p=0.9, seed=seed) for seed in range(10)]
    *_, rows = generate_speculatively(decoder, None, [[1]] * 10, draft=Draft(decoder), max_new_tokens=20, sampling=how)
    assert all((row.stats.acceptance, row.stats.tokens_per_forward) == (1.0, 5.0) for row in rows)
    assert len({tuple(row.ids) for row in rows}) == 10


def test_a_seed_draws_the_same_answer_alone_and_in_a_batch(decoder: Decoder, draft: Decoder) -> None:
    how = [Sampling(temperature=1.5, seed=seed) for seed in (1, 2, 1)]
    *_, rows = generate_speculatively(decoder, None, [[1]] * 3, draft=Draft(draft), max_new_tokens=20, sampling=how)
    assert rows[0].ids == rows[2].ids != rows[1].ids
    *_, (alone,) = generate_speculatively(decoder, None, [1], draft=Draft(draft), max_new_tokens=20, sampling=how[1])
    assert alone == rows[1]


def test_lookup_draws_the_very_answer_of_the_plain_loop(decoder: Decoder) -> None:
    kept = 0
    for seed, (top_k, penalty) in itertools.product(range(3), ((3, 1.0), (None, 0.8))):
        sampling = Sampling(temperature=0.8, seed=seed, top_k=top_k, repetition_penalty=penalty)
        *_, (plain,) = generate(decoder, None, [1, 2, 1], max_new_tokens=25, sampling=sampling)
        *_, (row,) = generate_speculatively(
            decoder, None, [1, 2, 1], draft=Lookup(), max_new_tokens=25, sampling=sampling
        )
        assert row.ids == plain.ids
        kept += row.stats.accepted
    assert kept > 10
