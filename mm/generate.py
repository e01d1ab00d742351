"""The generation loop: one token a step for every row of a batch, from prefilled prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mm.decoders.causal import CausalDecoder, greedy
from mm.errors import ResourceLimitError
from mm.kernels.cache import KVPrefix


@dataclass
class Row:
    """One answer as it grows. finish_reason: `stop` (the model ended it) or `length`; None while it grows."""

    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


@torch.inference_mode()
def generate(
    decoder: CausalDecoder, prefix: KVPrefix, prompt_ids: list[int], *, max_new_tokens: int
) -> Iterator[list[Row]]:
    """Greedy answers to one prompt for every row of `prefix`; yields the rows after each token.

    Raises:
        ResourceLimitError: prefix, prompt and answer together do not fit the decoder's context.
    """
    needed = prefix.length + len(prompt_ids) + max_new_tokens
    if needed > decoder.context:
        room = decoder.context - prefix.length - len(prompt_ids)
        raise ResourceLimitError(
            f"picture ({prefix.length}), prompt ({len(prompt_ids)}) and answer ({max_new_tokens}) need {needed} "
            f"tokens, the decoder reads {decoder.context}; max_new_tokens may be at most {max(room, 0)} here"
        )
    end = decoder.tokenizer.eos_token_id
    rows = [Row() for _ in range(prefix.batch)]
    ids = torch.tensor([prompt_ids] * prefix.batch)
    logits, cache = decoder.extend(decoder.embed(ids), prefix)
    for count in range(1, max_new_tokens + 1):
        chosen = greedy(logits)
        _append(rows, chosen, end, last=count == max_new_tokens)
        yield rows
        if all(row.finish_reason for row in rows):
            return
        logits, cache = decoder.extend(decoder.embed(chosen[:, None]), cache)


def _append(rows: list[Row], chosen: Tensor, end: int, *, last: bool) -> None:
    for row, token in zip(rows, chosen.tolist(), strict=True):
        if row.finish_reason:
            continue
        if token == end:
            row.finish_reason = "stop"
            continue
        row.ids.append(token)
        if last:
            row.finish_reason = "length"


def deltas(decoder: CausalDecoder, steps: Iterator[list[Row]]) -> Iterator[str]:
    """The text of the first row as it grows; only whole characters are given out."""
    given = ""
    for rows in steps:
        text = decoder.text(rows[0].ids)
        if text.endswith("\ufffd") and not rows[0].finish_reason:
            continue
        if len(text) > len(given):
            yield text[len(given) :]
            given = text
