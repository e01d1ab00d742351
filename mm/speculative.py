"""Speculative decoding: several tokens of an answer from one forward of its decoder.

A draft guesses the next tokens, the decoder reads all the guesses at once and keeps those that it would have written
itself. The answer is the decoder's own: the greedy one, or one drawn from the same distribution (Leviathan et al.,
2023; Chen et al., 2023). Logits of several tokens at once are those of one at a time up to rounding, so two tokens
that are equally likely to the last digits may change places.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mm.decoders.base import Decoder
from mm.drafts import Draft, Draws, Guesser, Lookup, Walk, guessers
from mm.errors import InputError
from mm.generate import Request, Row, cancel_all, open_requests
from mm.sampling import GREEDY, Sampling

MOST_A_STEP = 64


@dataclass
class Stats:
    """What an answer has cost.

    forwards: of the decoder, a recurrent one's second readings of what was kept included. tokens: decided, an end
    token included. guessed, accepted: tokens of the draft.
    """

    forwards: int = 0
    tokens: int = 0
    guessed: int = 0
    accepted: int = 0

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.forwards if self.forwards else 0.0

    @property
    def acceptance(self) -> float:
        """0-1, of all that was guessed."""
        return self.accepted / self.guessed if self.guessed else 0.0


@dataclass
class DraftedRow(Row):
    """An answer as it grows, by several tokens a step."""

    stats: Stats = field(default_factory=Stats)


@torch.inference_mode()
def generate_speculatively(
    decoder: Decoder,
    prefix: Any,
    prompt_ids: Sequence[int] | Sequence[Sequence[int]],
    *,
    draft: Draft | Lookup,
    tokens_per_step: int = 4,
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    stop: Sequence[str] = (),
    cancel: threading.Event | None = None,
) -> Iterator[list[DraftedRow]]:
    """As `mm.generate.generate`, which explains the other arguments; yields the rows after each step.

    A greedy answer is that of `generate`. A drawn one follows the same distribution; equal seeds draw equal answers,
    and with `Lookup` those of `generate`. Every row goes at its own pace in a cache of its own. Mamba and Jamba read
    token after token, so they gain nothing; attention, Mamba-2 and RWKV do.

    draft: who guesses.
    tokens_per_step: how many guesses at most in one forward, 1 to 64.

    Raises:
        InputError: as `generate`; tokens_per_step is out of its range; the draft has another vocabulary, or prefixes
            for another number of rows.
        ResourceLimitError: prefix, prompt and answer together do not fit the decoder's context, or the draft's.
    """
    whole = isinstance(tokens_per_step, int) and not isinstance(tokens_per_step, bool)
    if not whole or not 1 <= tokens_per_step <= MOST_A_STEP:
        raise InputError(f"tokens_per_step: expected a whole number from 1 to {MOST_A_STEP}, got {tokens_per_step!r}")
    requests = open_requests(decoder, prefix, prompt_ids, max_new_tokens, sampling, stop)
    every = guessers(draft, decoder, requests, max_new_tokens)
    pairs = [_Pair(decoder, *each, tokens_per_step, max_new_tokens) for each in zip(requests, every, strict=True)]
    rows = [pair.row for pair in pairs]
    while any(row.finish_reason is None for row in rows):
        if cancel is not None and cancel.is_set():
            cancel_all(decoder, requests)
        for pair in pairs:
            if pair.row.finish_reason is None:
                pair.step()
        yield rows


class _Pair:
    """A row of the decoder and who guesses for it."""

    def __init__(self, decoder: Decoder, request: Request, guess: Guesser, at_once: int, answer: int) -> None:
        self.decoder, self.request, self.guess = decoder, request, guess
        self.at_once, self.answer = at_once, answer
        self.draws = Draws(request.choose.sampling)
        self.walk = Walk(decoder, request.prefix, request.length + answer - 1)
        self.row = request.row = DraftedRow()

    def step(self) -> None:
        """One forward: the guesses are judged in their order, up to the first that the decoder would not write."""
        row, stats = self.row, self.row.stats
        tokens = self.request.prompt + row.ids
        most = min(self.at_once, self.answer - len(row.ids) - 1)
        guesses = self.guess(tokens, most, self.draws) if most else []
        unread = self.walk.follow(tokens)
        self.walk.mark()
        logits = self.walk.read([*unread, *(guess.token for guess in guesses)], len(guesses) + 1)
        stats.forwards, stats.guessed = self.walk.forwards, stats.guessed + len(guesses)
        for scores, guess in zip(logits, [*guesses, None], strict=True):
            token = self.draws.judge(scores, tokens, guess)
            self.request.append(self.decoder, token, last=len(row.ids) + 1 == self.answer)
            tokens.append(token)
            agreed = guess is not None and token == guess.token
            stats.tokens, stats.accepted = stats.tokens + 1, stats.accepted + agreed
            if not agreed or row.finish_reason is not None:
                return
