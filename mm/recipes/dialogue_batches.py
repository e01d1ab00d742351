"""Training batches for the language half alone: pictures, and everything that can be asked about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mm.recipes.batches import TRAIN_SEED, draw_frame, squashed_pixels
from mm.recipes.tokenizer import DEFAULT_PROMPT
from mm.scenes.language import caption_of, questions_of, reworded
from mm.scenes.render import Scene, render_scene
from mm.scenes.vocabulary import SIZES, plural

Asked = tuple[str, str]  # a question and its answer

_EACH = 9  # questions about a scene, so that rows are of about one length


@dataclass(frozen=True)
class DialogueBatch:
    """pixels uint8[B, 3, S, S]; dialogues: (picture, prompt, answer), a caption and some questions of every picture."""

    pixels: Tensor
    dialogues: list[tuple[int, str, str]]

    def to(self, device: torch.device) -> DialogueBatch:
        return replace(self, pixels=self.pixels.to(device))


@dataclass(frozen=True)
class Lesson:
    """asks: what is asked about a scene. most: how many things it shows at most. others: how often, of 1, a question
    comes in other words than those of `questions_of`."""

    asks: Callable[[Scene], list[Asked]]
    most: int | None
    others: float


def make_dialogue_batch(step: int, size: int, *, lesson: str = "all", side: int = 128) -> DialogueBatch:
    """The batch of this step: a pure function of its arguments. lesson: one of `LESSONS`."""
    taught, rng = LESSONS[lesson], np.random.default_rng((step, 31))
    first = TRAIN_SEED + step * size
    scenes = [render_scene(first + i, draw_frame(side, rng), most=taught.most) for i in range(size)]
    dialogues = []
    for picture, scene in enumerate(scenes):
        for prompt, answer in taught.asks(scene):
            other = prompt != DEFAULT_PROMPT and rng.random() < taught.others
            dialogues.append((picture, reworded(prompt, rng) if other else prompt, answer))
    return DialogueBatch(squashed_pixels(scenes, side), dialogues)


def _of_one(scene: Scene) -> list[Asked]:
    """Questions that name one thing: its colour, texture, size, or whether it is there."""
    return [each for each in questions_of(scene) if not each[0].startswith(("how", "where", "what colour is the back"))]


def _of_some(scene: Scene) -> list[Asked]:
    """How many there are of a kind, how large a thing is, where it lies from another; and colours, without which the
    decoder unlearns to look for what is named. Most counts would be one, so one of those has to do."""
    asked = _drawn(scene, 6)
    counts = [each for each in asked if each[0].startswith("how")]
    ones, more = ([each for each in counts if (each[1] == "one") == one] for one in (True, False))
    sizes = [each for each in asked if each[1] in SIZES]
    colours = [each for each in asked if each[0].startswith("what colour") and "background" not in each[0]]
    places = [each for each in asked if each[0].startswith("where")]
    return [*ones[:1], *more, *_of_several(scene), *sizes, *places[:2], *colours][:_EACH]


def _of_several(scene: Scene) -> list[Asked]:
    """The colour of things of one kind that share it: who can count them can find them."""
    found: dict[str, list[str]] = {}
    for thing in scene.objects:
        found.setdefault(thing.kind, []).append(thing.colour)
    shared = {kind: colours[0] for kind, colours in found.items() if len(colours) > 1 and len(set(colours)) == 1}
    return [(f"what colour are the {plural(kind)}?", colour) for kind, colour in shared.items()]


def _of_all(scene: Scene) -> list[Asked]:
    """Its caption and a mixture of questions, first those that are learned last."""
    asked = [*_drawn(scene, 2), *_of_several(scene)]
    asked.sort(key=lambda each: not each[0].startswith(("how", "where")))
    return [(DEFAULT_PROMPT, caption_of(scene)), *asked[:_EACH]]


def _drawn(scene: Scene, draws: int) -> list[Asked]:
    """Its questions; each draw relates other things, and asks for others that are not there."""
    return list(dict.fromkeys(each for draw in range(draws) for each in questions_of(scene, draw)))


LESSONS = {
    "names": Lesson(_of_one, most=2, others=0.5),
    "counts": Lesson(_of_some, most=3, others=0.6),
    "all": Lesson(_of_all, most=None, others=0.3),
}
