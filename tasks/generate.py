"""Continue pictures and words in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mm.checkpoints.loading import as_model
from mm.encoded import Encoded, encode_pictures
from mm.errors import InputError
from mm.generation.prompts import Plain, Turn, begin_ids
from mm.generation.sampling import GREEDY, Sampling
from mm.images import Picture, open_image
from mm.joined import Joined
from mm.limits import DEFAULT_LIMITS, Limits
from mm.store import as_store
from mm.tasks.answer import Asked, DraftModel, Manner, captioned, last_rows, speaker_of
from mm.tasks.caption import check_prompt
from mm.tasks.each import Cache, Model


def generate(
    prompt: Any,
    *,
    model: Model = "tiny",
    examples: Sequence[tuple[Any, str, str]] = (),
    system: str | None = None,
    chat: bool = True,
    max_new_tokens: int = 96,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    draft: DraftModel = None,
    cache: Cache = None,
    limits: Limits = DEFAULT_LIMITS,
    allow_urls: bool = False,
) -> Any:
    """What the decoder writes after pictures and words in the order given: a `Caption`.

    prompt: a list of texts and pictures, `["compare", first, "with", second]`, or one of either. A string is a text
    here; a picture's path is a `pathlib.Path`. Pictures may be `Encoded`. A list of lists is a batch, whose results
    come as a list; its prompts may differ in length and in the number of pictures.
    examples: answered prompts that go in front, each (picture or pictures, text, answer) (McKinzie et al. 2024, MM1).
    system: what a chat model is told before everything else. chat: False leaves the decoder's chat template aside.
    sampling, stop, draft: as for `mm.caption`.

    `Caption.size_hw` is that of the first picture, (1, 1) where there is none.

    Raises:
        TextInputError: a text is blank or too long. ImageInputError: an image cannot be read.
        InputError: an item is neither, the model has no decoder, or its chat template has no place for these turns.
    """
    manner = Manner(max_new_tokens, limits, sampling, stop, draft)
    many = isinstance(prompt, (list, tuple)) and bool(prompt) and all(isinstance(p, (list, tuple)) for p in prompt)
    asked = [list(each) for each in prompt] if many else [_as_list(prompt)]
    joined = as_model(model)
    gate = _Gate(joined, limits, allow_urls)
    led = _leading(gate, examples, system)
    requests = [_request(gate, led, each) for each in asked]
    encoded = gate.encoded(cache)
    speaker = speaker_of(joined)
    prompts = speaker.prompts if chat else Plain(speaker.decoder.tokenizer, begin_ids(speaker.decoder.tokenizer))
    questions: list[Asked] = [(prompts(turns), [encoded[i] for i in places]) for turns, places in requests]
    rows = last_rows(joined, questions, manner)
    results = [captioned(joined, *pair, None) for pair in zip(questions, rows, strict=True)]
    return results if many else results[0]


@dataclass
class _Gate:
    """Opens what is given and keeps the pictures in the order in which they came."""

    joined: Joined
    limits: Limits
    allow_urls: bool
    pictures: list[Picture | Encoded] = field(default_factory=list)

    def text(self, value: str, name: str) -> str:
        return check_prompt(value, name, self.limits)

    def picture(self, value: Any) -> int:
        """The picture's number."""
        if isinstance(value, Encoded):
            if value.model != self.joined.name:
                raise InputError(
                    f"{value.name} was encoded by model {value.model!r}, this call asks {self.joined.name!r}"
                )
            self.pictures.append(value)
        else:
            self.pictures.append(open_image(value, limits=self.limits, allow_urls=self.allow_urls))
        return len(self.pictures) - 1

    def encoded(self, cache: Cache) -> list[Encoded]:
        """All pictures that are not encoded yet in one pass."""
        fresh = [p for p in self.pictures if isinstance(p, Picture)]
        made = iter(encode_pictures(self.joined, fresh, as_store(cache)) if fresh else [])
        return [next(made) if isinstance(p, Picture) else p for p in self.pictures]


_Request = tuple[list[Turn], list[int]]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _leading(gate: _Gate, examples: Sequence[tuple[Any, str, str]], system: str | None) -> _Request:
    """The turns in front of every prompt, and their pictures."""
    turns = [] if system is None else [Turn("system", (gate.text(system, "system"),))]
    places: list[int] = []
    for number, example in enumerate(examples, 1):
        if not isinstance(example, (list, tuple)) or len(example) != 3:
            raise InputError(f"example {number}: expected (pictures, text, answer), got {type(example).__name__}")
        pictures, text, answer = example
        asked, own = _turn(gate, [*_as_list(pictures), text], f"example {number}")
        turns += [asked, Turn("assistant", (gate.text(answer, f"example {number}, answer"),))]
        places += own
    return turns, places


def _request(gate: _Gate, led: _Request, items: list[Any]) -> _Request:
    turn, own = _turn(gate, items, "prompt")
    return [*led[0], turn], [*led[1], *own]


def _turn(gate: _Gate, items: list[Any], name: str) -> tuple[Turn, list[int]]:
    content: list[str | None] = []
    places: list[int] = []
    for item in items:
        if isinstance(item, str):
            content.append(gate.text(item, name))
        else:
            places.append(gate.picture(item))
            content.append(None)
    if not content:
        raise InputError(f"{name}: expected texts and pictures, got none")
    return Turn("user", tuple(content)), places
