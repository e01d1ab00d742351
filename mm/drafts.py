"""Who guesses the next tokens of an answer: a smaller language model, with eyes of its own or blind, or the text itself.

A guess costs little and may be wrong; `mm.speculative` lets the decoder judge all guesses of a step in one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.decoders.base import Decoder
from mm.errors import InputError
from mm.generate import Request, check_room, prefix_rows
from mm.kernels.states import StateCache
from mm.sampling import Sampling, processed


@dataclass(frozen=True, eq=False)
class Draft:
    """A language model with the vocabulary of the one that answers.

    prefix: what it has read of the picture, through a connector of its own (`Speaker.prefix`): one for all rows, one
        for each, or a list, as `generate` takes them. None: it guesses from the words alone.
    """

    decoder: Decoder
    prefix: Any = None


@dataclass(frozen=True)
class Lookup:
    """Guesses that the answer goes on as it did where its last tokens stood before, in the prompt or in the answer
    (prompt lookup, Saxena 2023). longest: so many last tokens are looked for first, then fewer, at last one.

    Raises:
        InputError: longest is not a whole number above 0.
    """

    longest: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.longest, int) or isinstance(self.longest, bool) or self.longest < 1:
            raise InputError(f"longest: expected a whole number from 1, got {self.longest!r}")


class Guess(NamedTuple):
    """chances: float32[V], the distribution that the token was drawn from; None where no chance was involved."""

    token: int
    chances: Tensor | None = None


class Draws:
    """The choices of one row, all from one random stream: what its draft guesses, and what becomes of the guesses."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def guess(self, logits: Tensor, seen: Sequence[int]) -> Guess:
        """logits: float32[V] of the draft. seen: prompt and answer so far, with the guesses."""
        scores = processed(logits, self.sampling, seen)
        if self.sampling.temperature is None:
            return Guess(int(scores.argmax()))
        chances = scores.softmax(-1).cpu()
        return Guess(self._drawn(chances), chances)

    def judge(self, logits: Tensor, seen: Sequence[int], guess: Guess | None) -> int:
        """The token that stands where a draft has guessed one: that one, or another.

        A guess that was drawn from q is kept with probability min(1, p / q), and a rejected one is replaced by a draw
        from what p has more than q, so the token follows p (Leviathan et al., 2023, section 2.3; Chen et al., 2023).
        A guess without chance agrees with a draw from p just as often.

        logits: float32[V] of the decoder, before that token. seen: prompt and answer in front of it.
        """
        scores = processed(logits, self.sampling, seen)
        if self.sampling.temperature is None:
            return int(scores.argmax())
        chances = scores.softmax(-1).cpu()
        if guess is None or guess.chances is None:
            return self._drawn(chances)
        guessed = F.pad(guess.chances, (0, len(chances) - len(guess.chances)))
        if float(torch.rand((), generator=self._random)) * guessed[guess.token] < chances[guess.token]:
            return guess.token
        rest = (chances - guessed).clamp(min=0)
        return self._drawn(rest if rest.any() else chances)  # nothing is left where they differ by rounding alone

    def _drawn(self, chances: Tensor) -> int:
        return int(torch.multinomial(chances, 1, generator=self._random))


class Walk:
    """One row's way through a decoder behind its prefix, which goes back where it has read what did not come true.

    forwards: how often the decoder was run.
    """

    def __init__(self, decoder: Decoder, prefix: Any, capacity: int) -> None:
        self.decoder, self.forwards = decoder, 0
        self._cache = decoder.start(1, capacity) if prefix is None else decoder.fork([prefix], capacity)
        self._ids: list[int] = []
        self._sure = 0  # so many of them came true

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """Forgets what differs from the tokens; which of them, at least the last, are still to be read."""
        agreed, most = self._sure, min(len(self._ids), len(tokens) - 1)
        while agreed < most and self._ids[agreed] == tokens[agreed]:
            agreed += 1
        if agreed < len(self._ids):
            self.decoder.crop(self._cache, len(self._ids) - agreed)
            self.forwards += isinstance(self._cache, StateCache) and bool(self._cache.fed)  # it has read again
            del self._ids[agreed:]
        self._sure = agreed
        return list(tokens[agreed:])

    def mark(self) -> None:
        """What was read so far will not be forgotten."""
        if isinstance(self._cache, StateCache):
            self._cache.mark()
        self._sure = len(self._ids)

    def read(self, ids: Sequence[int], keep: int = 1) -> Tensor:
        """float32[keep, V]: the logits behind each of the last `keep` tokens."""
        logits, _ = self.decoder.extend(self.decoder.embed(torch.tensor([list(ids)])), self._cache, keep=keep)
        self._ids += ids
        self.forwards += 1
        return logits[0]


# (prompt and answer so far, how many guesses at most, the row's draws) -> the guesses, maybe none
Guesser = Callable[[list[int], int, Draws], list[Guess]]


def guessers(draft: Draft | Lookup, decoder: Decoder, requests: Sequence[Request], answer: int) -> list[Guesser]:
    """Who guesses for each row of a decoder's answers, of `answer` tokens at most.

    Raises:
        InputError: the draft has another vocabulary, or prefixes for another number of rows.
        ResourceLimitError: prefix, prompt and answer do not fit the draft's context.
    """
    if isinstance(draft, Lookup):
        return [_LookupRow(draft.longest)] * len(requests)
    if not isinstance(draft, Draft):
        raise InputError(f"draft: expected a Draft or a Lookup, got {type(draft).__name__}")
    _check_vocabulary(draft.decoder, decoder)
    prefixes = prefix_rows(draft.prefix)
    if len(prefixes) not in (1, len(requests)):
        raise InputError(f"draft: expected 1 or {len(requests)} prefixes, one for each row, got {len(prefixes)}")
    prefixes = prefixes * len(requests) if len(prefixes) == 1 else prefixes
    made: list[Guesser] = []
    for prefix, request in zip(prefixes, requests, strict=True):
        picture, prompt = prefix.length if prefix is not None else 0, len(request.prompt)
        check_room(draft.decoder, picture, prompt, answer, "draft")
        made.append(_DraftRow(Walk(draft.decoder, prefix, picture + prompt + answer), decoder))
    return made


class _DraftRow:
    """A draft that guesses for one row of `decoder`."""

    def __init__(self, walk: Walk, decoder: Decoder) -> None:
        self.walk, self.ends = walk, decoder.ends
        self.shared = min(_width(walk.decoder), _width(decoder))  # the longer table is padded behind the vocabulary

    def __call__(self, tokens: list[int], count: int, draws: Draws) -> list[Guess]:
        # A guess may be made from anything, so a number that the draft does not have is read as its last.
        seen = [min(token, self.shared - 1) for token in tokens]
        logits = self.walk.read(self.walk.follow(seen))
        self.walk.mark()
        guesses: list[Guess] = []
        while True:
            guess = draws.guess(logits[-1, : self.shared], seen)
            guesses.append(guess)
            seen.append(guess.token)
            if len(guesses) == count or guess.token in self.ends:
                return guesses
            logits = self.walk.read([guess.token])


@dataclass(frozen=True)
class _LookupRow:
    longest: int

    def __call__(self, tokens: list[int], count: int, draws: Draws) -> list[Guess]:
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            tail = tokens[-length:]
            for start in range(len(tokens) - length - 1, -1, -1):
                if tokens[start : start + length] == tail:
                    return _copied(tokens, start + length, count)
        return []


def _copied(tokens: list[int], start: int, count: int) -> list[Guess]:
    """What stands from `start` on; a copy that reaches the end of the tokens goes on with what it has copied."""
    period = tokens[start:]
    return [Guess(period[i % len(period)]) for i in range(count)]


def _width(decoder: Decoder) -> int:
    return decoder.lm.get_input_embeddings().weight.shape[0]


def _check_vocabulary(draft: Decoder, decoder: Decoder) -> None:
    if draft.tokenizer is decoder.tokenizer or _same_words(draft.tokenizer, decoder.tokenizer):
        return
    sizes = f"{len(draft.tokenizer)} and {len(decoder.tokenizer)} tokens"
    raise InputError(f"draft: expected the vocabulary of the decoder it guesses for, got another one ({sizes})")


@lru_cache(maxsize=4)
def _same_words(one: Any, other: Any) -> bool:
    """Cached because a large vocabulary takes longer to list than a token takes to write."""
    return one.get_vocab() == other.get_vocab()
