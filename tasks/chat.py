"""A conversation about a picture, which is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mm.checkpoints.loading import as_model
from mm.checkpoints.photo import for_task
from mm.encoded import Encoded
from mm.generation.prompts import Turn
from mm.generation.sampling import GREEDY, Sampling
from mm.limits import DEFAULT_LIMITS, Limits
from mm.tasks.answer import Asked, CaptionStream, DraftModel, Manner, speaker_of
from mm.tasks.caption import check_prompt
from mm.tasks.each import Cache, Model
from mm.tasks.encode import encode
from mm.types import Caption
from mm.vlm import Speaker


class Chat:
    """Questions and answers about one picture, each in the light of those before.

    turns: what was said so far; a model that was trained on single questions alone, as `tiny` was, is asked each of
    them alone. The oldest are left out once the decoder's context is full; the picture never is, and answers get as
    many tokens as are left, at most `max_new_tokens`. The arguments are those of `mm.ask`.
    """

    def __init__(
        self,
        image: Any,
        *,
        model: Model = "tiny",
        cache: Cache = None,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        draft: DraftModel = None,
        limits: Limits = DEFAULT_LIMITS,
        allow_urls: bool = False,
    ) -> None:
        self._manner = Manner(max_new_tokens, limits, sampling, stop, draft)
        self._joined, self._cache, self._allow_urls = as_model(for_task(model, "ask")), cache, allow_urls
        self._speaker = speaker_of(self._joined)
        self.turns: list[tuple[str, str]] = []
        self.show(image)

    def show(self, image: Any) -> None:
        """Begins anew with another picture; where it cannot be read everything stays as it was."""
        self.picture: Encoded = encode(
            image, model=self._joined, cache=self._cache, limits=self._manner.limits, allow_urls=self._allow_urls
        )
        self.turns = []

    def say(self, text: str) -> ChatStream:
        """The answer in pieces as it is written; it is one of the `turns` once the pieces are used up.

        Raises:
            TextInputError: the text is blank or too long.
            ResourceLimitError: it does not fit the decoder's context even without what was said before.
        """
        said = check_prompt(text, "text", self._manner.limits)
        speaker = self._speaker
        before = [] if speaker.prompts.style == "picture first" else list(self.turns)
        wanted = min(self._manner.max_new_tokens, speaker.decoder.context // 4)
        while True:
            asked = speaker.prompts(_turns(before, said)), [self.picture]
            room = speaker.decoder.context - _read(speaker, asked)
            if room >= wanted or not before:
                break
            del before[0]
        manner = replace(self._manner, max_new_tokens=max(1, min(self._manner.max_new_tokens, room)))
        return ChatStream(self, said, CaptionStream(self._joined, asked, manner, said))


class ChatStream:
    """As `CaptionStream`; what was written joins the conversation at the end, also where it was cancelled."""

    def __init__(self, chat: Chat, said: str, stream: CaptionStream) -> None:
        self._chat, self._said, self._stream = chat, said, stream
        self._kept = False

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> str:
        try:
            return next(iter(self._stream))
        except StopIteration:
            self._keep()
            raise

    def cancel(self) -> None:
        """Ends the answer at its next token."""
        self._stream.cancel()

    @property
    def result(self) -> Caption:
        """Writes what is still unwritten and gives the whole."""
        result = self._stream.result
        self._keep()
        return result

    def _keep(self) -> None:
        if not self._kept:
            self._kept = True
            self._chat.turns.append((self._said, self._stream.result.text))


def _read(speaker: Speaker, asked: Asked) -> int:
    """How many tokens picture and words are."""
    prefix, ids = speaker.read(*asked)
    return (prefix.length if prefix is not None else 0) + len(ids)


def _turns(before: Sequence[tuple[str, str]], said: str) -> tuple[Turn, ...]:
    """The picture stands in front of the first words."""
    turns: list[Turn] = []
    for question, answer in before:
        turns += [Turn("user", (question,)), Turn("assistant", (answer,))]
    turns.append(Turn("user", (said,)))
    return (Turn("user", (None, *turns[0].content)), *turns[1:])
