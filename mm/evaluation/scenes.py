"""Quality on the drawn world: scenes that no training has shown, asked through the public tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from mm.checkpoints.loading import load
from mm.errors import InputError
from mm.evaluation.scene_scores import (
    AnswerScore,
    CaptionScore,
    DetectScore,
    HallucinationScore,
    MatteScore,
    SegmentScore,
    asked_of,
    labels_of,
    share,
)  # fmt: skip
from mm.recipes.batches import TRAIN_SEED
from mm.scenes.render import Scene, render_scene, render_single
from mm.scenes.soft import matte_of, render_soft
from mm.scenes.vocabulary import HELD_OUT_PAIRS, PAIR_LABELS, SEEN_PAIRS
from mm.types import Detections, Matte, Segmentation

WORLD = "drawn scenes (mm.scenes)"
_SIDE, _OTHER_SIZES = 128, ((160, 112), (112, 160))  # width, height
_AT_ONCE = 16


@dataclass(frozen=True)
class Said:
    """What a model says of one scene. segmentation: of `labels_of(scene)`; answers: to `asked_of(scene)`, guesses: to
    the same questions about a grey picture."""

    detections: Detections
    segmentation: Segmentation
    caption: str
    answers: tuple[str, ...]
    guesses: tuple[str, ...]


Respond = Callable[[list[Scene]], list[Said]]
Name = Callable[[list[Scene]], list[str]]  # one of PAIR_LABELS for each picture
Cut = Callable[[Scene, str], tuple[Matte, Segmentation]]  # what a label names


def evaluate_scenes(
    model: str = "tiny", count: int = 1000, seed: int = 0, unseen: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Figures of `count` scenes drawn from `seed` on, rounded to 4 places; see `mm.evaluation.scene_scores`.

    A model with a matting head is also asked for mattes, of a fifth as many scenes of fur, glass, smoke and the like.

    unseen: each scene holds a thing in a colour that training never showed on it. The figures of `detect` and
    `segment` are then of such pairs alone, with those of all pairs under "all".
    progress: a bar on standard error.

    Raises:
        InputError: no scenes, or seeds that are negative or belong to training.
    """
    pictures, soft = _rounds(count, unseen) * len(_asked_pairs(unseen)), -(-count // 5) * _has_matter(model)
    if count < 1:
        raise InputError(f"count: expected 1 or more, got {count}")
    if seed < 0 or seed + max(count, pictures) > TRAIN_SEED:
        raise InputError(f"seed: expected 0 to {TRAIN_SEED - max(count, pictures):,} for {count} scenes, got {seed:,}")
    with tqdm(total=count + pictures + soft, desc="scenes", unit="picture", disable=not progress) as bar:
        scores = scene_figures(_drawn(count, seed, unseen, bar), lambda scenes: _respond(model, scenes), unseen)
        singles = _singles(count, seed, unseen, bar)
        scores["classify"] = classify_figures(singles, lambda scenes: _name(model, scenes))
        if soft:
            scores["matte"] = matte_figures(_soft(soft, seed, unseen, bar), lambda *asked: _cut(model, *asked))
    head = {"model": model, "world": WORLD, "count": count, "seed": seed, "unseen": unseen}
    order = ("detect", "segment", "matte", "caption", "hallucination", "answers", "classify")
    return head | {task: _rounded(scores[task]) for task in order if task in scores}


def scene_figures(scenes: Iterator[Scene], respond: Respond, unseen: bool) -> dict[str, dict[str, Any]]:
    """The figures of detection, segmentation, captions and answers, from what `respond` says of each scene."""
    detect, segment, caption = DetectScore(unseen), SegmentScore(unseen), CaptionScore(unseen)
    hallucination, answers = HallucinationScore(), AnswerScore()
    for part in _parts(scenes):
        for scene, said in zip(part, respond(part), strict=True):
            detect.add(scene, said.detections)
            segment.add(scene, said.segmentation)
            caption.add(scene, said.caption)
            hallucination.add(scene, said.caption)
            answers.add(scene, said.answers, said.guesses)
    scores = {
        "detect": detect, "segment": segment, "caption": caption, "hallucination": hallucination, "answers": answers
    }  # fmt: skip
    return {task: score.figures() for task, score in scores.items()}


def matte_figures(scenes: Iterator[Scene], cut: Cut) -> dict[str, Any]:
    """The figures of mattes, from what `cut` makes of one label of each soft scene, of its things in turn."""
    score = MatteScore()
    for i, scene in enumerate(scenes):
        label = scene.objects[i % len(scene.objects)].label
        matte, mask = cut(scene, label)
        score.add(matte_of(scene, [thing.label == label for thing in scene.objects]), matte, mask.masks[0])
    return score.figures()


def classify_figures(scenes: Iterator[Scene], name: Name) -> dict[str, Any]:
    """accuracy: the share of single-object pictures whose best of the 240 labels is the object's."""
    right = [
        best == scene.objects[0].label for part in _parts(scenes) for scene, best in zip(part, name(part), strict=True)
    ]
    return {"accuracy": share(sum(right), len(right)), "pictures": len(right), "labels": len(PAIR_LABELS)}


def _respond(model: str, scenes: list[Scene]) -> list[Said]:
    """Each scene passes the image tower once."""
    from mm.tasks.ask import ask
    from mm.tasks.caption import caption
    from mm.tasks.detect import detect
    from mm.tasks.encode import encode
    from mm.tasks.segment import segment

    encoded = encode([scene.pil() for scene in scenes], model=model)
    found = detect(encoded, PAIR_LABELS, model=model, threshold=0.0)
    captions = caption(encoded, model=model)
    grey = encode(np.full((_SIDE, _SIDE, 3), 128, np.uint8), model=model)
    return [
        Said(
            detections=detections,
            segmentation=segment(picture, labels_of(scene), model=model),
            caption=text.text,
            answers=tuple(ask(picture, question, model=model).text for question, _ in asked_of(scene)),
            guesses=tuple(ask(grey, question, model=model).text for question, _ in asked_of(scene)),
        )
        for scene, picture, detections, text in zip(scenes, encoded, found, captions, strict=True)
    ]


def _name(model: str, scenes: list[Scene]) -> list[str]:
    from mm.tasks.classify import classify

    return [each.best for each in classify([scene.pil() for scene in scenes], PAIR_LABELS, model=model)]


def _has_matter(model: str) -> bool:
    return load(model).matter is not None


def _cut(model: str, scene: Scene, label: str) -> tuple[Matte, Segmentation]:
    from mm.tasks.matte import matte
    from mm.tasks.segment import segment

    return matte(scene.pixels, label, model=model), segment(scene.pixels, label, model=model)


def _soft(count: int, seed: int, unseen: bool, bar: tqdm) -> Iterator[Scene]:
    for i in range(count):
        yield render_soft(seed + i, _size(i), pairs="unseen" if unseen else "seen")
        bar.update()


def _drawn(count: int, seed: int, unseen: bool, bar: tqdm) -> Iterator[Scene]:
    for i in range(count):
        yield render_scene(seed + i, _size(i), pairs="unseen" if unseen else "seen")
        bar.update()


def _size(i: int) -> int | tuple[int, int]:
    """Scenes are square, but every third lies or stands."""
    return _OTHER_SIZES[i // 3 % 2] if i % 3 == 2 else _SIDE


def _asked_pairs(unseen: bool) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(HELD_OUT_PAIRS)) if unseen else SEEN_PAIRS


def _rounds(count: int, unseen: bool) -> int:
    """How many pictures of each pair classification is asked, so that there are `count` or a little more."""
    return -(-count // len(_asked_pairs(unseen)))


def _singles(count: int, seed: int, unseen: bool, bar: tqdm) -> Iterator[Scene]:
    pairs = _asked_pairs(unseen) * _rounds(count, unseen)
    for i, (colour, kind) in enumerate(pairs):
        yield render_single(seed + i, kind, colour)
        bar.update()


def _parts(scenes: Iterator[Scene]) -> Iterator[list[Scene]]:
    part: list[Scene] = []
    for scene in scenes:
        part.append(scene)
        if len(part) == _AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of one task, those under "all" included, to 4 places."""

    def place(value: Any) -> Any:
        if isinstance(value, dict):
            return _rounded(value)
        return round(value, 4) if isinstance(value, float) else value

    return {name: place(value) for name, value in figures.items()}
