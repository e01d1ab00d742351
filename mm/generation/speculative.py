"""Speculative decoding: several tokens of an answer from one forward of its decoder.

A draft guesses the next tokens, the decoder reads all the guesses at once and keeps those that it would have written
itself. The answer is the decoder's own: the greedy one, or one drawn from the same distribution (Leviathan et al.,
2023; Chen et al., 2023). Logits of several tokens at once are those of one at a time up to rounding, so two tokens
that are equally likely to the last digits may change places.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mm.decoders.base import Decoder
from mm.errors import InputError
from mm.generation.drafts import Draft, Draws, Guess, Guesser, Lookup, draft_prefixes, guesser
from mm.generation.loop import Request, Row, cancel_all, open_requests, settle
from mm.generation.sampling import GREEDY, Sampling
from mm.generation.walks import Walk, walking_together

MOST_A_STEP = 64


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
) -> Iterator[list[Row]]:
    """As `mm.generation.loop.generate`, which explains the other arguments; yields the rows after each step.

    A greedy answer is that of `generate`. A drawn one follows the same distribution; equal seeds draw equal answers,
    and with `Lookup` those of `generate`. Every row goes at its own pace, attention with all rows in one forward, a
    recurrent state or a sliding window row by row. Mamba and Jamba read token after token, so they gain nothing.

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
    settle(decoder, requests)
    begins = draft_prefixes(draft, decoder, requests, max_new_tokens)
    rows = [request.row for request in requests]
    groups = []
    for places in walking_together(decoder, [request.prefix for request in requests]):
        own, longest = [requests[i] for i in places], max(len(requests[i].prompt) for i in places)
        guess = guesser(draft, decoder, [begins[i] for i in places], longest + max_new_tokens, tokens_per_step)
        group = _Group(decoder, own, [rows[i] for i in places], guess, at_once=tokens_per_step, answer=max_new_tokens)
        groups.append(group)
    while any(row.finish_reason is None for row in rows):
        if cancel is not None and cancel.is_set():
            cancel_all(decoder, requests)
        for group in groups:
            group.step()
        yield rows


class _Group:
    """Rows of a decoder that walk together, and who guesses for them."""

    def __init__(
        self,
        decoder: Decoder,
        requests: list[Request],
        rows: list[Row],
        guess: Guesser,
        *,
        at_once: int,
        answer: int,
    ) -> None:
        self.decoder, self.requests, self.rows, self.guess = decoder, requests, rows, guess
        self.at_once, self.answer = at_once, answer
        self.draws = [Draws(request.choose.sampling) for request in requests]
        prompt = max(len(request.prompt) for request in requests)
        begun = max(request.length - len(request.prompt) for request in requests)
        self.walk = Walk(decoder, [r.prefix for r in requests], begun + prompt + answer, at_once + 1)

    def step(self) -> None:
        """One forward, in which every row that still grows has its guesses judged."""
        tokens = [r.prompt + r.row.ids if r.row.finish_reason is None else None for r in self.requests]
        growing = [i for i, own in enumerate(tokens) if own is not None]
        if not growing:
            return
        most = [min(self.at_once, self.answer - len(row.ids) - 1) for row in self.rows]
        guesses = self.guess(tokens, most, self.draws)
        unread = self.walk.follow(tokens)
        self.walk.mark()
        ids = [own + [guess.token for guess in each] for own, each in zip(unread, guesses, strict=True)]
        logits = self.walk.read(ids, max(map(len, guesses)) + 1)
        for i in growing:
            self.rows[i].forwards = self.walk.forwards
            self._judge(i, logits[i, -len(guesses[i]) - 1 :], guesses[i])

    def _judge(self, i: int, logits: Tensor, guesses: list[Guess]) -> None:
        """Takes the guesses in their order, up to the first that the decoder would not write, and one token more."""
        request, row = self.requests[i], self.rows[i]
        row.guessed += len(guesses)
        seen = request.prompt + row.ids
        for scores, guess in zip(logits, [*guesses, None], strict=True):
            token = self.draws[i].judge(scores, seen, guess)
            request.append(self.decoder, token, last=len(row.ids) + 1 == self.answer)
            seen.append(token)
            agreed = guess is not None and token == guess.token
            row.accepted += agreed
            if not agreed or row.finish_reason is not None:
                return
