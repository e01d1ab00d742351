"""Training batches for the language half alone: pictures, and everything that can be asked about each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mm.recipes.batches import TRAIN_SEED, draw_frame, squashed_pixels
from mm.recipes.tokenizer import DEFAULT_PROMPT
from mm.scenes.language import caption_of, questions_of
from mm.scenes.render import Scene, render_scene

_DRAWS = 2  # of the questions of a scene; each draws other things to relate and other things that are not there
_EACH = 9  # questions about a scene, so that rows are of about one length; where things lie is asked first


@dataclass(frozen=True)
class DialogueBatch:
    """pixels uint8[B, 3, S, S]; dialogues: (picture, prompt, answer), a caption and some questions of every picture."""

    pixels: Tensor
    dialogues: list[tuple[int, str, str]]

    def to(self, device: torch.device) -> DialogueBatch:
        return replace(self, pixels=self.pixels.to(device))


def make_dialogue_batch(step: int, size: int, *, most: int | None = None, side: int = 128) -> DialogueBatch:
    """The batch of this step: a pure function of its arguments.

    most: pictures show no more things than so many, and all that is asked is what one of them is like,
    or whether it is there.
    """
    rng = np.random.default_rng((step, 31))
    scenes = [render_scene(TRAIN_SEED + step * size + i, draw_frame(side, rng), most=most) for i in range(size)]
    dialogues = []
    for picture, scene in enumerate(scenes):
        asked = [(DEFAULT_PROMPT, caption_of(scene)), *_questions(scene)] if most is None else _of_one(scene)
        dialogues += [(picture, prompt, answer) for prompt, answer in asked]
    return DialogueBatch(squashed_pixels(scenes, side), dialogues)


def _questions(scene: Scene) -> list[tuple[str, str]]:
    unique = dict.fromkeys(each for draw in range(_DRAWS) for each in questions_of(scene, draw))
    return sorted(unique, key=lambda each: not each[0].startswith("where"))[:_EACH]


def _of_one(scene: Scene) -> list[tuple[str, str]]:
    """Questions that name one thing: its colour, texture, size, or whether it is there."""
    return [each for each in questions_of(scene) if not each[0].startswith(("how", "where", "what colour is the back"))]
