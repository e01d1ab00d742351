"""Pictures, what was asked of them and the answers: a file in LLaVA's layout, drawn scenes, or a caller's own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.errors import InputError
from mm.generation.prompts import Turn
from mm.images import Picture, open_image
from mm.recipes.batches import TRAIN_SEED
from mm.results.fields import wrong
from mm.scenes.language import caption_of, questions_of
from mm.scenes.render import render_scene
from mm.training.data import ENDLESS, scene_count

_SEED = 2 * TRAIN_SEED  # scenes of this stage, apart from those that `tiny` was trained on
_MARK = "<image>"  # where LLaVA's files say that the picture stands
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, eq=False)
class Dialogue:
    """name: of the picture, to be shown. image: whatever the image gate takes. turns: without the last answer."""

    name: str
    image: Any
    turns: tuple[Turn, ...]
    answer: str

    def picture(self) -> Picture:
        """Raises ImageInputError or ResourceLimitError where it cannot be had."""
        return open_image(self.image)


class Dialogues:
    """A data set of dialogues about one picture each.

    question: what is asked where only an answer is given.

    Raises:
        InputError: it is none, holds nothing, or an item is malformed; the message says which.
    """

    def __init__(self, data: Any, question: str) -> None:
        self._question, self._scenes = question, 0
        self._items: list[Dialogue] = []
        if isinstance(data, str) and data.partition(":")[0] == "scenes":
            self.name, self._scenes = data, scene_count(data, ENDLESS)
        elif isinstance(data, (str, os.PathLike)):
            self.name = Path(data).name
            self._items = list(_read(Path(os.path.expanduser(data))))
        elif isinstance(data, Iterable):
            self.name = "the given pairs"
            self._items = [self._pair(item, f"item {place}") for place, item in enumerate(data)]
        else:
            wrong("data", 'a JSON file in LLaVA\'s layout, "scenes", or (image, answer) pairs', type(data).__name__)
        if not len(self):
            raise InputError(f"data: {self.name} holds no dialogue")

    def __len__(self) -> int:
        return self._scenes or len(self._items)

    def __getitem__(self, place: int) -> Dialogue:
        if not self._scenes:
            return self._items[place]
        scene = render_scene(_SEED + place, 128)
        questions = [(self._question, caption_of(scene)), *questions_of(scene)]
        question, answer = questions[place // 2 % len(questions) if place % 2 else 0]  # at least every second describes
        return Dialogue(f"scene {place}", scene.pixels, (Turn("user", (None, question)),), answer)

    @property
    def drawn(self) -> bool:
        """Whether these are scenes, each drawn when it is needed."""
        return self._scenes > 0

    def digest(self) -> str:
        """What changes when the data does; pictures count by their names."""
        running = hashlib.sha256(f"{self.name} {len(self)}".encode())
        for item in self._items:
            image = item.image if isinstance(item.image, (str, os.PathLike)) else ""
            running.update(repr((os.path.basename(image), item.turns, item.answer)).encode("utf-8", "backslashreplace"))
        return running.hexdigest()

    def _pair(self, item: Any, where: str) -> Dialogue:
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            wrong(where, "(image, answer) or (image, question, answer)", type(item).__name__)
        image, *asked, answer = item
        for text in (*asked, answer):
            if not isinstance(text, str) or not text.strip():
                wrong(where, "words", repr(text)[:40])
        name = os.path.basename(image)[:80] if isinstance(image, (str, os.PathLike)) else where
        return Dialogue(name, image, (Turn("user", (None, asked[0] if asked else self._question)),), answer.strip())


def _read(path: Path) -> Iterable[Dialogue]:
    """One dialogue for each answer of each record: what stood before the answer is its turns."""
    if not path.is_file():
        raise InputError(f"data: there is no file {path.name!r}")
    try:
        records = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {path.name} is no JSON ({str(error)[:80]})") from None
    if not isinstance(records, list):
        wrong(f"data, {path.name}", "a list of records", type(records).__name__)
    for place, record in enumerate(records):
        where = f"data, {path.name}, record {place}"
        if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
            wrong(where, '{"image": …, "conversations": [{"from": …, "value": …}, …]}', type(record).__name__)
        if not isinstance(record.get("image"), str):
            continue  # words alone have nothing to align
        yield from _dialogues(_found(path.parent, record["image"]), record["conversations"], where)


def _found(folder: Path, name: str) -> Path:
    """Beside the file, or in its folder of pictures."""
    inside = folder / "images" / name
    return inside if inside.is_file() else folder / name


def _dialogues(image: Path, said: list[Any], where: str) -> Iterable[Dialogue]:
    turns: list[Turn] = []
    for number, each in enumerate(said):
        role = _ROLES.get(each.get("from", "")) if isinstance(each, dict) else None
        text = each.get("value") if isinstance(each, dict) else None
        if role is None or not isinstance(text, str):
            wrong(f"{where}, turn {number}", '"from" human or gpt, and a "value" of words', repr(each)[:60])
        text = text.replace(_MARK, "").strip()
        if role == "assistant":
            if turns and turns[-1].role == "user" and text:
                yield Dialogue(image.name[:80], image, tuple(turns), text)
            turns.append(Turn("assistant", (text,)))
        else:
            shown = any(turn.role == "user" for turn in turns)
            turns.append(Turn("user", (text,) if shown else (None, text)))
