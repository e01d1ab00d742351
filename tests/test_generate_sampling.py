"""How tokens are chosen: equal to transformers' logits processors, checked ranges, one random stream a row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mm.errors import InputError
from mm.generation.sampling import Chooser, Sampling, processed

SEEN = [5, 9, 9, 40, 77]


def logits(seed: int = 0, size: int = 101) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def theirs(values: Sampling, scores: torch.Tensor) -> torch.Tensor:
    chain = LogitsProcessorList()
    if values.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(values.repetition_penalty))
    if values.temperature is not None:
        chain.append(TemperatureLogitsWarper(values.temperature))
    if values.top_k is not None:
        chain.append(TopKLogitsWarper(values.top_k))
    if values.top_p is not None:
        chain.append(TopPLogitsWarper(values.top_p))
    if values.min_p is not None:
        chain.append(MinPLogitsWarper(values.min_p))
    return chain(torch.tensor([SEEN]), scores[None].clone())[0]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_k": 5000},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 2.5, "top_p": 0.3},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "top_p": 1.0},
        {"temperature": 0.8, "min_p": 0.1},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1.0, "min_p": 0.0},
        {"repetition_penalty": 1.7},
        {"temperature": 1.5, "repetition_penalty": 0.6},
        {"temperature": 0.9, "top_k": 30, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers(values: dict[str, Any]) -> None:
    sampling = Sampling(**values)
    for seed in range(20):
        scores = logits(seed)
        torch.testing.assert_close(processed(scores, sampling, SEEN), theirs(sampling, scores), atol=1e-6, rtol=1e-6)


def test_ties_at_the_edge_of_top_k_stay() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0, 2.0, 0.0])
    sampling = Sampling(temperature=1.0, top_k=3)
    assert torch.equal(processed(scores, sampling, []), theirs(sampling, scores))
    assert processed(scores, sampling, []).isfinite().sum() == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", bad) for bad in (0, -1, math.nan, math.inf, "1", True)]
    + [("top_p", bad) for bad in (0, 2, -0.1, math.nan)]
    + [("top_k", bad) for bad in (0, -3, 1.5, True)]
    + [("min_p", bad) for bad in (-0.1, 1.1, math.nan)]
    + [("repetition_penalty", bad) for bad in (0, -1, math.nan, None)]
    + [("seed", bad) for bad in (-1, 2**63, 1.0, None)],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Sampling(**{"temperature": 1.0, name: value})


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_a_greedy_choice_takes_no_bounds(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: expected with a temperature"):
        Sampling(**{name: 1})


def test_a_seed_names_one_stream() -> None:
    def drawn(seed: int) -> list[int]:
        choose = Chooser(Sampling(temperature=2.0, seed=seed), [1])
        return [choose(logits(step)) for step in range(30)]

    assert drawn(4) == drawn(4) != drawn(5)


def test_draws_follow_the_probabilities() -> None:
    choose = Chooser(Sampling(temperature=1.0, top_k=2, seed=3), [1])
    scores = torch.tensor([0.0, math.log(3.0), -9.0, 0.0 - 1e-3])
    counts = torch.bincount(torch.tensor([choose(scores) for _ in range(2000)]), minlength=4)
    assert counts[2] == counts[3] == 0
    assert abs(counts[1].item() / 2000 - 0.75) < 0.04


def test_the_penalty_counts_the_prompt_and_what_was_chosen() -> None:
    choose = Chooser(Sampling(repetition_penalty=10.0), [2])
    scores = torch.tensor([2.0, 3.0, 4.0])
    assert [choose(scores) for _ in range(4)] == [1, 0, 2, 2]
