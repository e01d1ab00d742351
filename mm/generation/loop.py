"""The generation loop: one token a step for every row of a batch, from prefilled prefixes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mm.decoders.base import Decoder, Unread
from mm.errors import InputError, ResourceLimitError
from mm.generation.sampling import GREEDY, Chooser, Sampling
from mm.generation.writing import Writing, whole_text
from mm.types import Stats


@dataclass
class Row:
    """One answer as it grows.

    finish_reason: None while it grows; `stop` (the model ended it, or a stop string came), `length` or `cancelled`.
    text: without the stop string; there once there is a finish_reason. `deltas` gives it as it grows.
    forwards, decided, guessed, accepted: as `stats` tells them.
    """

    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    text: str = ""
    forwards: int = 0
    decided: int = 0
    guessed: int = 0
    accepted: int = 0

    @property
    def stats(self) -> Stats:
        """What it has cost so far."""
        return Stats(self.forwards, self.decided, self.guessed, self.accepted)


@dataclass
class Request:
    """What one row asks for, and its answer so far."""

    prefix: Any
    prompt: list[int]
    choose: Chooser
    writing: Writing | None
    row: Row = field(default_factory=Row)

    @property
    def length(self) -> int:
        return len(self.prompt) + (self.prefix.length if self.prefix is not None else 0)

    def append(self, decoder: Decoder, token: int, *, last: bool) -> None:
        """The next token; the answer ends at an end token, at a stop string, or where this is the last token."""
        self.row.decided += 1
        if token in decoder.ends:
            self.finish(decoder, "stop")
            return
        self.row.ids.append(token)
        if self.writing is not None:
            self.writing.add([token])
            if self.writing.stopped:
                self.finish(decoder, "stop")
                return
        if last:
            self.finish(decoder, "length")

    def finish(self, decoder: Decoder, reason: str) -> None:
        if self.writing is None:
            self.row.text = whole_text(decoder, self.row.ids)
        else:
            self.writing.add([], last=True)
            self.row.text = self.writing.text
        self.row.finish_reason = reason


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prefix: Any,
    prompt_ids: Sequence[int] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    stop: Sequence[str] = (),
    cancel: threading.Event | None = None,
) -> Iterator[list[Row]]:
    """Answers that begin after a prefix and a prompt; yields the rows after each token, the same list every time.

    prefix: what the decoder has read, for every row of it or, with one row, for every prompt; a list of such prefixes,
        which may differ in length; `Unread`, which one row alone reads at once with its prompt; or None. It is left as
        it was.
    prompt_ids: one prompt for all rows, or one for each. In float32 rows answer in a batch what they answer alone.
    sampling: one for all rows, or one for each.
    stop: strings that end an answer; the text ends before them.
    cancel: once it is set, unfinished rows end as `cancelled` at their next token. Closing the iterator ends it too.

    Raises:
        InputError: max_new_tokens is not a whole number above 0, or rows, prompts and samplings differ in number.
        ResourceLimitError: prefix, prompt and answer together do not fit the decoder's context.
    """
    requests = open_requests(decoder, prefix, prompt_ids, max_new_tokens, sampling, stop)
    if len(requests) > 1:
        settle(decoder, requests)
    rows = [request.row for request in requests]
    groups = [_Group(decoder, group, max_new_tokens) for group in _grouped(decoder, requests)]
    for count in range(1, max_new_tokens + 1):
        if cancel is not None and cancel.is_set():
            cancel_all(decoder, requests)
            yield rows
            return
        for group in groups:
            group.step(last=count == max_new_tokens)
        yield rows
        groups = [group for group in groups if group.growing]
        if not groups:
            return


class _Group:
    """Rows that share a cache."""

    def __init__(self, decoder: Decoder, requests: list[Request], max_new_tokens: int) -> None:
        self.decoder, self.requests = decoder, requests
        longest = max(len(r.prompt) for r in requests)
        begun = max(r.length - len(r.prompt) for r in requests)
        capacity = begun + longest + max_new_tokens - 1
        prefixes, unread = [r.prefix for r in requests if r.prefix is not None], None
        if isinstance(first := requests[0].prefix, Unread):
            prefixes, unread = [first.prefix] if first.prefix is not None else [], first.embeds
        self.cache = decoder.fork(prefixes, capacity) if prefixes else decoder.start(len(requests), capacity)
        filler = requests[0].prompt[0]
        ids = [[filler] * (longest - len(r.prompt)) + r.prompt for r in requests]
        self._lengths = None if len(requests) == 1 else [len(r.prompt) for r in requests]
        self._next = decoder.embed(torch.tensor(ids))
        if unread is not None:
            self._next = torch.cat([unread, self._next], 1)

    @property
    def growing(self) -> bool:
        return any(r.row.finish_reason is None for r in self.requests)

    def step(self, *, last: bool) -> None:
        """Reads what is new, the prompts first, and gives every row that still grows its next token."""
        logits, _ = self.decoder.extend(self._next, self.cache, lengths=self._lengths)
        chosen = self._chosen(logits)
        for request, token in zip(self.requests, chosen, strict=True):
            if request.row.finish_reason is None:
                request.row.forwards += 1
                request.append(self.decoder, token, last=last)
        self._next, self._lengths = self.decoder.embed(torch.tensor(chosen)[:, None]), None

    def _chosen(self, logits: Tensor) -> list[int]:
        if all(r.choose.sampling.plain for r in self.requests):
            return logits.argmax(-1).tolist()
        return [r.choose(row) for r, row in zip(self.requests, logits, strict=True)]


def open_requests(
    decoder: Decoder, prefix: Any, prompt_ids: Any, max_new_tokens: int, sampling: Any, stop: Sequence[str]
) -> list[Request]:
    """One request for each row that the arguments of `generate` ask for; raises what it raises."""
    whole = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool)
    if not whole or max_new_tokens < 1:
        raise InputError(f"max_new_tokens: expected a whole number from 1, got {max_new_tokens!r}")
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise InputError(f"stop: expected a list of texts that are not empty, got {stop!r}")
    many = bool(len(prompt_ids)) and not isinstance(prompt_ids[0], int)
    prompts = [list(prompt) for prompt in prompt_ids] if many else [list(prompt_ids)]
    if not all(prompts):
        raise InputError("prompt_ids: expected at least one token in every prompt, got none")
    prefixes = prefix_rows(prefix)
    samplings = [sampling] if isinstance(sampling, Sampling) else list(sampling)
    count = max(len(prompts), len(prefixes))
    for name, values in (("prefixes", prefixes), ("prompts", prompts), ("samplings", samplings)):
        if len(values) not in (1, count):
            raise InputError(f"{name}: expected 1 or {count}, one for each row, got {len(values)}")
    every = (values * count if len(values) == 1 else values for values in (prefixes, prompts, samplings))
    requests = [
        Request(prefix, prompt, Chooser(how, prompt), Writing(decoder, stop) if stop else None)
        for prefix, prompt, how in zip(*every, strict=True)
    ]
    for request in requests:
        check_room(decoder, request.length - len(request.prompt), len(request.prompt), max_new_tokens)
    return requests


def settle(decoder: Decoder, requests: Sequence[Request]) -> None:
    """Reads what is unread in front of their prompts, each once."""
    read = {id(each): decoder.settled(each) for each in {id(r.prefix): r.prefix for r in requests}.values()}
    for request in requests:
        request.prefix = read[id(request.prefix)]


def prefix_rows(prefix: Any) -> list[Any]:
    """One prefix for each row, of what `generate` takes as its prefix."""
    given = list(prefix) if isinstance(prefix, (list, tuple)) else [prefix]
    return [p if p is None or p.batch == 1 else p[i] for p in given for i in range(1 if p is None else p.batch)]


def check_room(decoder: Decoder, picture: int, prompt: int, answer: int, name: str = "decoder") -> None:
    """Whether a decoder, called `name`, can read so many tokens."""
    needed = picture + prompt + answer
    if needed > decoder.context:
        raise ResourceLimitError(
            f"picture ({picture}), prompt ({prompt}) and answer ({answer}) need {needed} "
            f"tokens, the {name} reads {decoder.context}; "
            f"max_new_tokens may be at most {max(decoder.context - picture - prompt, 0)} here"
        )


def _grouped(decoder: Decoder, requests: list[Request]) -> list[list[Request]]:
    """All rows with a prefix, and all without, together where a cache may be ragged; otherwise those whose prefixes
    and prompts are equally long."""
    groups: dict[Any, list[Request]] = {}
    for request in requests:
        lengths = () if decoder.ragged else (request.length, len(request.prompt))
        shape = (request.prefix is None, *lengths)
        groups.setdefault(shape, []).append(request)
    return list(groups.values())


def cancel_all(decoder: Decoder, requests: Sequence[Request]) -> None:
    """Ends every answer that still grows."""
    for request in requests:
        if request.row.finish_reason is None:
            request.finish(decoder, "cancelled")


def deltas(decoder: Decoder, steps: Iterator[Sequence[Row]], stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of the first row as it grows, in whole characters; the pieces joined are its final text.

    stop: the strings that `generate` was given.
    """
    writing, read = Writing(decoder, stop), 0
    for rows in steps:
        new, read = rows[0].ids[read:], len(rows[0].ids)
        piece = "".join(writing.add([token]) for token in new)
        piece += writing.add([], last=True) if rows[0].finish_reason is not None else ""
        if piece:
            yield piece
