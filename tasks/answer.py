"""What `caption`, `ask`, `generate` and `Chat` share: a decoder writes, alone or with a draft that guesses ahead."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mm.checkpoints.hub import locate
from mm.checkpoints.llava import is_llava
from mm.checkpoints.loading import load, written
from mm.decoders.base import Decoder
from mm.decoders.folder import load_decoder
from mm.encoded import Encoded
from mm.encoders.base import Encoder
from mm.errors import InputError
from mm.generation.drafts import Draft, Lookup, check_vocabulary
from mm.generation.loop import Row, deltas, generate
from mm.generation.prompts import Prompt
from mm.generation.sampling import GREEDY, Sampling
from mm.generation.speculative import generate_speculatively
from mm.joined import Joined
from mm.limits import Limits
from mm.tasks.each import provenance, warnings_of
from mm.types import Caption
from mm.vlm import Speaker

Asked = tuple[Prompt, Sequence[Encoded]]  # with the pictures that stand in it
DraftModel = str | os.PathLike[str] | Joined | Decoder | Lookup | None


@dataclass(frozen=True)
class Manner:
    """How answers are written.

    draft: who guesses ahead (speculative decoding), so that the decoder is run less often; the answer stays the
    decoder's own. `lookup` copies from prompt and answer. A language model, by its folder or hub id, guesses from the
    words alone; a joined model, by name or loaded, also sees the picture through its own connector. A draft has to
    have the decoder's vocabulary, and a joined one the encoder of the model that answers.

    Raises:
        InputError: max_new_tokens is not a whole number from 1 to `limits.max_new_tokens`.
    """

    max_new_tokens: int
    limits: Limits
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()
    draft: DraftModel = None

    def __post_init__(self) -> None:
        count = self.max_new_tokens
        whole = isinstance(count, int) and not isinstance(count, bool)
        if not whole or not 1 <= count <= self.limits.max_new_tokens:
            raise InputError(f"max_new_tokens: expected 1 to {self.limits.max_new_tokens}, got {count!r}")


def answers(
    joined: Joined, asked: Sequence[Asked], manner: Manner, cancel: threading.Event | None = None
) -> Iterator[list[Row]]:
    """One row for each prompt, as they grow.

    Raises:
        InputError: a prompt has another number of pictures, or the draft cannot guess for this model.
    """
    speaker = speaker_of(joined)
    begun = [speaker.read(prompt, pictures) for prompt, pictures in asked]
    prefixes, ids = [prefix for prefix, _ in begun], [ids for _, ids in begun]
    how: dict[str, Any] = {"max_new_tokens": manner.max_new_tokens, "sampling": manner.sampling, "stop": manner.stop}
    if manner.draft is None:
        return generate(speaker.decoder, prefixes, ids, cancel=cancel, **how)
    draft = _draft(joined, manner.draft, asked)
    return generate_speculatively(speaker.decoder, prefixes, ids, draft=draft, cancel=cancel, **how)


@torch.inference_mode()
def last_rows(joined: Joined, asked: Sequence[Asked], manner: Manner) -> list[Row]:
    """The finished answers."""
    *_, rows = answers(joined, asked, manner)
    return rows


def captioned(joined: Joined, asked: Asked, row: Row, words: str | None) -> Caption:
    """The result of a finished row. words: what the caller asked for, if anything."""
    prompt, pictures = asked
    said = dict.fromkeys(warning for picture in pictures for warning in warnings_of(joined, picture))
    notes = (*speaker_of(joined).notes, *prompt.notes)
    return Caption(
        text=row.text,
        prompt=words,
        tokens=len(row.ids),
        finish_reason=row.finish_reason or "length",
        size_hw=pictures[0].size_hw if pictures else (1, 1),
        source=provenance(joined, (*said, *notes)),
        stats=row.stats,
    )


class CaptionStream:
    """The text in pieces as it is written; `result` is the whole `Caption` once the pieces are used up."""

    def __init__(self, joined: Joined, asked: Asked, manner: Manner, words: str | None) -> None:
        self._cancel = threading.Event()
        self._rows: list[Row] = []
        steps = self._watched(answers(joined, [asked], manner, self._cancel))
        self._pieces = deltas(speaker_of(joined).decoder, steps, manner.stop)
        self._finish = lambda: captioned(joined, asked, self._rows[0], words)

    def _watched(self, steps: Iterator[list[Row]]) -> Iterator[list[Row]]:
        for rows in steps:
            self._rows = rows
            yield rows

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def cancel(self) -> None:
        """Ends the answer at its next token, from any thread; its finish_reason is then `cancelled`."""
        self._cancel.set()

    @property
    def result(self) -> Caption:
        """Writes what is still unwritten and gives the whole."""
        for _ in self._pieces:
            pass
        return self._finish()


def speaker_of(joined: Joined) -> Speaker:
    """The language half, or an error that says the model has none."""
    speaker = joined.need("speaker")
    assert isinstance(speaker, Speaker)
    return speaker


# Who guesses.


def _draft(joined: Joined, given: Any, asked: Sequence[Asked]) -> Draft | Lookup:
    if given == "lookup":
        return Lookup()
    if isinstance(given, Lookup):
        return given
    guesser = _guesser(given)
    if isinstance(guesser, Decoder):
        check_vocabulary(guesser, speaker_of(joined).decoder)
        return Draft(guesser, [_words_alone(guesser, prompt) for prompt, _ in asked])
    speaker = speaker_of(guesser)
    check_vocabulary(speaker.decoder, speaker_of(joined).decoder)
    if not _same_tower(guesser.encoder, joined.encoder):
        raise InputError(f"draft: {guesser.name!r} sees pictures through another encoder than {joined.name!r} does")
    return Draft(speaker.decoder, [speaker.read(prompt, pictures)[0] for prompt, pictures in asked])


def _guesser(given: Any) -> Decoder | Joined:
    """A language model alone, or a joined one."""
    if isinstance(given, (Decoder, Joined)):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"draft: expected lookup, a model or its name, got {type(given).__name__}")
    folder = locate(given).folder
    if (folder / "joined.safetensors").is_file() or is_llava(folder):
        return load(given)
    return _language_model(folder, written(folder))


@functools.lru_cache(maxsize=2)
def _language_model(folder: Path, written: int) -> Decoder:
    """Kept for the next call. written: when its files were."""
    return load_decoder(folder)


@torch.inference_mode()
def _words_alone(decoder: Decoder, prompt: Prompt) -> Any:
    """What a blind draft has read in front of the words behind the last picture."""
    before = [token for part in prompt.parts[:-1] for token in part]
    return decoder.extend(decoder.embed(torch.tensor([before])))[1] if before else None


def _same_tower(one: Encoder, other: Encoder) -> bool:
    """Whether both make the same features of a picture."""
    if one is other:
        return True
    if one.spec.preprocessing != other.spec.preprocessing:
        return False
    assert isinstance(one, nn.Module) and isinstance(other, nn.Module)
    mine, theirs = one.state_dict(), other.state_dict()  # the statistics of norms are buffers
    return mine.keys() == theirs.keys() and all(
        mine[k].shape == theirs[k].shape and torch.equal(mine[k], theirs[k]) for k in mine
    )
