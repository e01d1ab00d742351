"""From turns of words and pictures to token numbers, by the decoder's own chat template.

What a user wrote never becomes a mark: `<image>`, `</s>` and their like stay letters there, and the places of pictures
come from the turns alone. Where a text spells no mark, its numbers are those of the reference: the whole rendered
text in one pass of the tokenizer.

A template comes from the decoder's own folder and runs in transformers' sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, Protocol

from mm.errors import CheckpointError, InputError, TextInputError

Role = Literal["system", "user", "assistant"]

_PRIVATE = range(0xE000, 0xF900)  # characters that mean nothing: brackets around what a user wrote


@dataclass(frozen=True)
class Turn:
    """content: texts, and None where a picture stands."""

    role: Role
    content: tuple[str | None, ...]


@dataclass(frozen=True)
class Prompt:
    """parts: token numbers; `parts[k]` stands before picture k, the last after all pictures. notes: for the caller."""

    parts: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> int:
        return len(self.parts) - 1

    @staticmethod
    def collapsed(ids: Sequence[int], image_token: int, counts: Sequence[int]) -> Prompt:
        """From a reference processor's numbers of one sample, in which every picture is a run of `image_token`.

        counts: how many tokens each picture of this sample has.

        Raises:
            InputError: this sample's placeholders are not as many as its pictures' tokens, whatever the others have.
        """
        found = sum(i == image_token for i in ids)
        if found != sum(counts):
            raise InputError(
                f"prompt: {found} image tokens for {len(counts)} pictures of {sum(counts)} tokens together"
            )
        parts: list[tuple[int, ...]] = []
        part: list[int] = []
        left, rest = 0, list(counts)
        for i in ids:
            if i != image_token:
                if left:
                    raise InputError(f"prompt: the image tokens of picture {len(parts)} are not in one run")
                part.append(i)
                continue
            if not left:
                left = rest.pop(0)
                parts.append(tuple(part))
                part = []
            left -= 1
        return Prompt((*parts, tuple(part)))


class Prompts(Protocol):
    """How one decoder is asked. `style` is its name in a saved model."""

    @property
    def style(self) -> str: ...

    def __call__(self, turns: Sequence[Turn]) -> Prompt: ...


def asked(question: str, pictures: int = 1) -> tuple[Turn, ...]:
    """One question about pictures that stand before it."""
    return (Turn("user", (*[None] * pictures, question)),)


@dataclass(frozen=True, eq=False)
class Templated:
    """Chat models: the template of the folder, or of the tokenizer in it.

    image_token: how the template spells a picture; None for a decoder that was made for words alone. begin: numbers
    in front of a rendered text that does not begin with the first mark itself.
    """

    tokenizer: Any
    template: str
    image_token: str | None = None
    begin: tuple[int, ...] = ()
    style: str = "template"

    @cached_property
    def takes_pictures(self) -> bool:
        """Whether the template itself places pictures: lists of contents, one mark for each picture."""
        if self.image_token is None:
            return False
        try:
            text = self._rendered([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "probe"}]}])
        except InputError:
            return False
        return text.count(self.image_token) == 1 and text.count("probe") == 1 and "'type'" not in text

    def __call__(self, turns: Sequence[Turn]) -> Prompt:
        marks = _Marks.unused_in((*_texts(turns), self.template))
        if self.takes_pictures:
            messages = [{"role": turn.role, "content": _contents(turn, marks)} for turn in turns]
        else:
            messages = [{"role": turn.role, "content": _one_text(turn, marks)} for turn in turns]
        rendered = marks.read(self._rendered(messages))
        wanted = [piece is None for turn in turns for piece in turn.content if piece is None or piece.strip()]
        _check_whole(rendered, wanted, self.image_token)
        starts = rendered.text.startswith(self.tokenizer.bos_token or "\0") and not rendered.own[0]
        parts = tokenised(self.tokenizer, rendered, self.image_token)
        if self.begin and not starts:
            parts = ((*self.begin, *parts[0]), *parts[1:])
        moved = rendered.order(self.image_token) != _merged(wanted)
        return Prompt(parts, ("the model's own chat template moved pictures away from their words",) if moved else ())

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
            roles = ", ".join(message["role"] for message in messages)
            said = " ".join(str(error).split())[:200]
            raise InputError(f"the decoder's chat template takes no such turns ({roles}): {said}") from None
        assert isinstance(text, str)
        return text


@dataclass(frozen=True, eq=False)
class Plain:
    """Base models, which have no template: the pieces in their order, a line each, an empty line after an answer."""

    tokenizer: Any
    begin: tuple[int, ...] = ()
    image_token: str | None = None
    style: str = "plain"

    def __call__(self, turns: Sequence[Turn]) -> Prompt:
        marks = _Marks.unused_in(_texts(turns))
        gaps = {"user": "\n", "assistant": "\n\n", "system": "\n\n"}
        text = "".join(_one_text(turn, marks) + gaps[turn.role] for turn in turns)
        parts = tokenised(self.tokenizer, marks.read(text), self.image_token)
        return Prompt(((*self.begin, *parts[0]), *parts[1:]))


@dataclass(frozen=True, eq=False)
class PictureFirst:
    """How `tiny` was trained: picture, `<s>`, words in lower case, a new line, and an answer up to `</s>`."""

    decoder: Any
    style: str = "picture first"

    def __call__(self, turns: Sequence[Turn]) -> Prompt:
        parts: list[list[int]] = [[]]
        for turn in turns:
            begun = False
            for piece in turn.content:
                if piece is None:
                    parts.append([])
                    continue
                begin, *words, _ = self.decoder.prompt_ids(" ".join(_valid(piece).split()))
                parts[-1] += words if begun or turn.role == "assistant" else [begin, *words]
                begun = True
            parts[-1].append(self.decoder.tokenizer.eos_token_id if turn.role == "assistant" else self.decoder.newline)
        return Prompt(tuple(map(tuple, parts)))


# What the template made, and which of it a user wrote.


@dataclass(frozen=True)
class Rendered:
    """text: without brackets. own: for each character, whether a user wrote it. slots: places of pictures in it."""

    text: str
    own: tuple[bool, ...]
    slots: tuple[int, ...]

    def order(self, image_token: str | None) -> list[bool]:
        """Pictures and what a user wrote between them, in their order; True for a picture."""
        starts = [i for i, own in enumerate(self.own) if own and not (i and self.own[i - 1])]
        at = sorted([(place, True) for place in self.places(image_token)] + [(start, False) for start in starts])
        return _merged([picture for _, picture in at])

    def places(self, image_token: str | None) -> list[int]:
        """Where pictures stand: the slots, and where the template itself wrote the image token."""
        written = [] if image_token is None else [m.start() for m in re.finditer(re.escape(image_token), self.text)]
        width = len(image_token or "")
        return sorted([*self.slots, *(at for at in written if not any(self.own[at : at + width]))])


def _merged(order: Iterable[bool]) -> list[bool]:
    """Texts without a picture between them count as one."""
    merged: list[bool] = []
    for picture in order:
        if picture or merged[-1:] != [False]:
            merged.append(picture)
    return merged


@dataclass(frozen=True)
class _Marks:
    """Three characters that no text holds: they open and close what a user wrote, and stand for a picture."""

    open: str
    close: str
    slot: str

    @staticmethod
    def unused_in(texts: Iterable[str]) -> _Marks:
        used = {c for text in texts for c in text if ord(c) in _PRIVATE}
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        found = list(islice(free, 3))
        if len(found) < 3:
            raise TextInputError("prompt: it holds every character of the private use area")
        return _Marks(*found)

    def around(self, text: str) -> str:
        """Inside the outer white space, which a template may strip."""
        core = _valid(text).strip()
        lead, _, tail = _valid(text).partition(core) if core else (text, "", "")
        return f"{lead}{self.open}{core}{self.close}{tail}" if core else lead

    def read(self, text: str) -> Rendered:
        plain: list[str] = []
        own: list[bool] = []
        slots: list[int] = []
        inside = False
        for c in text:
            if c == self.open or c == self.close:
                inside = c == self.open
            elif c == self.slot:
                slots.append(len(plain))
            else:
                plain.append(c)
                own.append(inside)
        return Rendered("".join(plain), tuple(own), tuple(slots))


def _texts(turns: Sequence[Turn]) -> list[str]:
    return [piece for turn in turns for piece in turn.content if piece is not None]


def _valid(text: str) -> str:
    """Lone surrogates, which no tokenizer reads, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _contents(turn: Turn, marks: _Marks) -> list[dict[str, str]]:
    return [{"type": "image"} if p is None else {"type": "text", "text": marks.around(p)} for p in turn.content]


def _one_text(turn: Turn, marks: _Marks) -> str:
    return "\n".join(marks.slot if piece is None else marks.around(piece) for piece in turn.content)


def _check_whole(rendered: Rendered, wanted: list[bool], image_token: str | None) -> None:
    pictures, texts = sum(wanted), len(wanted) - sum(wanted)
    got = len(rendered.places(image_token))
    if got != pictures:
        raise InputError(f"the decoder's chat template placed {got} pictures, {pictures} were given")
    if texts and not any(rendered.own):
        raise InputError("the decoder's chat template left the words out")


# The one pass of the tokenizer.


def guarded(tokenizer: Any, image_token: str | None) -> dict[str, int]:
    """Spellings that are marks of this tokenizer, by their numbers: special tokens, and what looks like one."""
    found: dict[str, int] = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        text = str(token.content)
        looks = text.startswith("<") and text.endswith(">")
        if text.strip() and (token.special or looks or text == image_token):
            found[text] = number
    return found


def tokenised(tokenizer: Any, rendered: Rendered, image_token: str | None) -> tuple[tuple[int, ...], ...]:
    """The numbers between the pictures, without marks that only the tokenizer would add.

    Marks spelled by a user are cut in two: between the halves stands, for the tokenizer alone, a mark of its own that
    is then taken out again, so that the text around them is read as it would be.

    Raises:
        TextInputError: what a user wrote becomes a mark in spite of that, by a rewriting of the tokenizer's.
        CheckpointError: the tokenizer has no mark to put there.
    """
    marks = guarded(tokenizer, image_token)
    slots = set(rendered.places(image_token))
    events, cuts = _events(rendered, marks, image_token)
    anchor = _anchor(tokenizer, marks, image_token) if cuts or rendered.slots else ""
    inserted = [(at, anchor, "slot") for at in rendered.slots] + [(at, anchor, "cut") for at in cuts]
    text, last = [], 0
    for at, mark, _ in sorted(inserted):
        text += [rendered.text[last:at], mark]
        last = at
    text.append(rendered.text[last:])
    every = [(at, marks[mark], kind) for at, mark, kind in inserted]
    every += [(at, number, "slot" if at in slots and marks.get(image_token or "") == number else "mark")
              for at, number in events]  # fmt: skip
    every.sort(key=lambda event: (event[0], event[2] == "mark"))
    ids = tokenizer("".join(text), add_special_tokens=False)["input_ids"]
    return _split(ids, every, _told_apart(tokenizer, marks))


def _events(
    rendered: Rendered, marks: dict[str, int], image_token: str | None
) -> tuple[list[tuple[int, int]], list[int]]:
    """Where the template wrote marks, and where a user's spelling of one has to be cut."""
    events: list[tuple[int, int]] = []
    cuts: list[int] = []
    if not marks:
        return events, cuts
    longest_first = sorted(marks, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    at = 0
    while match := pattern.search(rendered.text, at):
        start, stop = match.span()
        if any(rendered.own[start:stop]) or any(start < slot < stop for slot in rendered.slots):
            cuts.append(start + 1)
            at = start + 1
        else:
            events.append((start, marks[match[0]]))
            at = stop
    return events, cuts


def _told_apart(tokenizer: Any, marks: dict[str, int]) -> set[int]:
    """Numbers that only a spelled mark gives: that of the unknown character is not one, unless it is an end as well."""
    unknown = tokenizer.unk_token_id
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return set(marks.values()) - ({unknown} if unknown not in ends else set())


def _anchor(tokenizer: Any, marks: dict[str, int], image_token: str | None) -> str:
    """A mark that leaves the text on both its sides alone."""
    apart = _told_apart(tokenizer, marks)
    calm = {
        str(token.content)
        for number, token in tokenizer.added_tokens_decoder.items()
        if number in apart and not (token.lstrip or token.rstrip)
    }
    for mark in (image_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, *marks):
        if mark in marks and mark in calm:
            return str(mark)
    raise CheckpointError("the decoder's tokenizer has no special token, so pictures cannot be placed among words")


def _split(ids: Sequence[int], events: list[tuple[int, int, str]], numbers: set[int]) -> tuple[tuple[int, ...], ...]:
    parts: list[list[int]] = [[]]
    waiting = [event for event in events if event[1] in numbers]
    for number in ids:
        if number not in numbers:
            parts[-1].append(number)
            continue
        if not waiting or waiting[0][1] != number:
            raise TextInputError("prompt: a text of it spells a special token of this decoder in another form")
        kind = waiting.pop(0)[2]
        if kind == "slot":
            parts.append([])
        elif kind == "mark":
            parts[-1].append(number)
    if waiting:
        raise TextInputError("prompt: its words and the decoder's marks run into each other")
    return tuple(map(tuple, parts))


def begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer by itself puts in front of a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return next((tuple(whole[:i]) for i in range(len(whole)) if whole[i : i + len(plain)] == plain), ())
