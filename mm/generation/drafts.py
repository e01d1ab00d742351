"""Who guesses the next tokens of an answer: a smaller language model, sighted or blind, or the text itself.

A guess costs little and may be wrong; `mm.generation.speculative` lets the decoder judge all guesses of a step in one
forward.
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
from mm.generation.loop import Request, check_room, prefix_rows
from mm.generation.sampling import Sampling, processed
from mm.generation.walks import Walk, walking_together


@dataclass(frozen=True, eq=False)
class Draft:
    """A language model with the vocabulary of the one that answers; it guesses by the sampling of each row.

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


# (each row's prompt and answer so far, or None; how many guesses at most; each row's draws) -> the guesses, maybe none
Guesser = Callable[[Sequence[list[int] | None], Sequence[int], Sequence[Draws]], list[list[Guess]]]


def draft_prefixes(draft: Draft | Lookup, decoder: Decoder, requests: Sequence[Request], answer: int) -> list[Any]:
    """What the draft of each row begins with, once it is known to fit `answer` tokens of this decoder.

    Raises:
        InputError: the draft has another vocabulary, or prefixes for another number of rows.
        ResourceLimitError: prefix, prompt and answer do not fit the draft's context.
    """
    if isinstance(draft, Lookup):
        return [None] * len(requests)
    if not isinstance(draft, Draft):
        raise InputError(f"draft: expected a Draft or a Lookup, got {type(draft).__name__}")
    check_vocabulary(draft.decoder, decoder)
    prefixes = prefix_rows(draft.prefix)
    if len(prefixes) not in (1, len(requests)):
        raise InputError(f"draft: expected 1 or {len(requests)} prefixes, one for each row, got {len(prefixes)}")
    prefixes = prefixes * len(requests) if len(prefixes) == 1 else prefixes
    for prefix, request in zip(prefixes, requests, strict=True):
        check_room(draft.decoder, prefix.length if prefix is not None else 0, len(request.prompt), answer, "draft")
    return [draft.decoder.settled(prefix) for prefix in prefixes]


def guesser(draft: Draft | Lookup, decoder: Decoder, prefixes: Sequence[Any], tokens: int, at_once: int) -> Guesser:
    """Who guesses for some rows. tokens: of the longest of them, without its prefix."""
    if isinstance(draft, Lookup):
        return _Copying(draft.longest)
    walks = []
    for rows in walking_together(draft.decoder, prefixes):
        own = [prefixes[i] for i in rows]
        begun = max(p.length if p is not None else 0 for p in own)
        walks.append((rows, Walk(draft.decoder, own, begun + tokens, at_once + 1)))
    return _Drafting(walks, draft.decoder, decoder)


class _Drafting:
    """A draft that guesses for the rows of `decoder`; some of them walk together."""

    def __init__(self, walks: list[tuple[list[int], Walk]], draft: Decoder, decoder: Decoder) -> None:
        self.walks, self.ends = walks, decoder.ends
        self.shared = min(_width(draft), _width(decoder))  # the longer table is padded behind the vocabulary

    def __call__(
        self, tokens: Sequence[list[int] | None], most: Sequence[int], draws: Sequence[Draws]
    ) -> list[list[Guess]]:
        guesses: list[list[Guess]] = [[] for _ in tokens]
        for rows, walk in self.walks:
            # A guess may be made from anything, so a number that the draft does not have is read as its last.
            seen = {i: [min(t, self.shared - 1) for t in own] for i in rows if (own := tokens[i]) and most[i]}
            if not seen:
                continue
            logits = walk.read(walk.follow([seen.get(i) for i in rows]))
            walk.mark()
            growing = set(seen)
            while growing:
                for i in growing:
                    guess = draws[i].guess(logits[rows.index(i), -1, : self.shared], seen[i])
                    guesses[i].append(guess)
                    seen[i].append(guess.token)
                growing = {i for i in growing if len(guesses[i]) < most[i] and seen[i][-1] not in self.ends}
                if growing:
                    logits = walk.read([seen[i][-1:] if i in growing else [] for i in rows])
        return guesses


@dataclass(frozen=True)
class _Copying:
    longest: int

    def __call__(
        self, tokens: Sequence[list[int] | None], most: Sequence[int], draws: Sequence[Draws]
    ) -> list[list[Guess]]:
        return [self._copied(own, count) if own else [] for own, count in zip(tokens, most, strict=True)]

    def _copied(self, tokens: list[int], count: int) -> list[Guess]:
        """What stood behind the last tokens before; a copy that reaches their end goes on with itself."""
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            tail = tokens[-length:]
            for start in range(len(tokens) - length - 1, -1, -1):
                if tokens[start : start + length] == tail:
                    period = tokens[start + length :]
                    return [Guess(period[i % len(period)]) for i in range(count)]
        return []


def _width(decoder: Decoder) -> int:
    return decoder.lm.get_input_embeddings().weight.shape[0]


def check_vocabulary(draft: Decoder, decoder: Decoder) -> None:
    """Raises InputError unless both read and write the same tokens."""
    if draft.tokenizer is decoder.tokenizer or _same_words(draft.tokenizer, decoder.tokenizer):
        return
    sizes = f"{len(draft.tokenizer)} and {len(decoder.tokenizer)} tokens"
    raise InputError(f"draft: expected the vocabulary of the decoder it guesses for, got another one ({sizes})")


@lru_cache(maxsize=4)
def _same_words(one: Any, other: Any) -> bool:
    """Cached because a large vocabulary takes longer to list than a token takes to write."""
    return one.get_vocab() == other.get_vocab()
