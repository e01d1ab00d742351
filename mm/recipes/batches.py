"""Training batches of the drawn world: pictures, the labels asked of them, and the truth for every head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm.recipes.tokenizer import DEFAULT_PROMPT
from mm.scenes.language import caption_of, questions_of
from mm.scenes.render import Scene, render_scene
from mm.scenes.vocabulary import COLOURS, KINDS, SEEN_PAIRS, TEXTURES, plural

TRAIN_SEED = 1_000_000_000  # training scenes take seeds from here up; evaluation stays below
ATTRIBUTE_SIZES = (len(KINDS), len(COLOURS), len(TEXTURES))
_GROUP_SIZES = (len(SEEN_PAIRS), *ATTRIBUTE_SIZES)
# Where pairs, kinds, colours and textures lie among the labels of every batch; each object fits one of each.
LABEL_GROUPS = tuple((sum(_GROUP_SIZES[:i]), sum(_GROUP_SIZES[: i + 1])) for i in range(4))
GRID, MASK_SIDE, ANY, NOTHING = 8, 64, -1, -2

# Words that are not of this world: asked as negatives, so that an unknown label scores low.
_STRANGERS = (
    "dog", "person", "bird", "horse", "bus", "truck", "apple", "banana", "chair", "table", "phone", "book", "bottle",
    "airplane", "train", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "hat", "shoe", "lamp", "clock",
    "knife", "spoon", "bowl", "sofa", "bed", "door", "window", "laptop", "mouse", "keyboard", "guitar", "ball",
    "kite", "ladder", "bridge", "road", "river", "mountain", "beach", "robot", "dragon", "snake", "spider", "bee",
    "butterfly", "leaf", "cactus", "candle", "rocket", "crown", "sword", "anchor", "bell", "drum", "glasses",
)  # fmt: skip
_TEMPLATES = ("a {}", "the {}", "a drawing of a {}", "a picture of a {}")


@dataclass(frozen=True)
class Batch:
    """pixels uint8[B, 3, S, S]; texts: K labels; match bool[n, K]: which labels fit which of the n objects.

    owner int64[n], boxes float32[n, 4] (cxcywh, 0..1), cells: see `_cells`.
    ask_owner int64[Q], ask_label int64[Q], ask_mask float32[Q, 64, 64] in 0..1: mask questions.
    dialogues: (picture, prompt, answer), a caption of every picture and a question about every second one.
    """

    pixels: Tensor
    texts: list[str]
    pair_index: Tensor
    match: Tensor
    owner: Tensor
    boxes: Tensor
    cell_object: Tensor
    cell_index: Tensor
    cell_weight: Tensor
    ask_owner: Tensor
    ask_label: Tensor
    ask_mask: Tensor
    captions: list[str]
    dialogues: list[tuple[int, str, str]]
    step: int

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def _spoken(label: str, rng: np.random.Generator) -> str:
    return label if rng.random() < 0.75 else _TEMPLATES[rng.integers(len(_TEMPLATES))].format(label)


def _labels(scenes: list[Scene], rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """K labels and what each asks for, int[K, 3] of (texture, colour, kind) with ANY and NOTHING."""
    texts, asks = [], []
    for colour, kind in SEEN_PAIRS:
        texts.append(f"{colour} {kind}")
        asks.append((ANY, COLOURS.index(colour), KINDS.index(kind)))
    for i, kind in enumerate(KINDS):
        texts.append(kind if rng.random() < 0.7 else plural(kind))
        asks.append((ANY, ANY, i))
    for i, colour in enumerate(COLOURS):
        texts.append(f"{colour} {('thing', 'object', 'shape')[rng.integers(3)]}")
        asks.append((ANY, i, ANY))
    for i, texture in enumerate(TEXTURES):
        texts.append(f"{texture} thing")
        asks.append((i, ANY, ANY))
    things = [o for scene in scenes for o in scene.objects]
    for _ in range(40):
        if rng.random() < 0.6:
            thing = things[rng.integers(len(things))]
            texture, colour, kind = thing.texture, thing.colour, thing.kind
        else:
            texture, (colour, kind) = TEXTURES[rng.integers(3)], SEEN_PAIRS[rng.integers(len(SEEN_PAIRS))]
        with_colour = rng.random() < 0.7
        texts.append(" ".join([texture, *([colour] if with_colour else []), kind]))
        asks.append((TEXTURES.index(texture), COLOURS.index(colour) if with_colour else ANY, KINDS.index(kind)))
    for _ in range(12):
        word = _STRANGERS[rng.integers(len(_STRANGERS))]
        texts.append(word if rng.random() < 0.5 else f"{COLOURS[rng.integers(len(COLOURS))]} {word}")
        asks.append((NOTHING, NOTHING, NOTHING))
    return [_spoken(text, rng) for text in texts], np.array(asks)


def _cells(boxes: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which grid cells answer for which object: (object[m], cell[m], weight[m]).

    The cell nearest to the box's centre weighs 1 (the next nearest where another object took it), the other cells of
    the 2 x 2 around the centre 0.4 if free and inside the box.
    """
    taken: dict[tuple[int, int], int] = {}
    rows: list[tuple[int, int, float]] = []
    centre = boxes[:, :2] * GRID - 0.5
    near = np.abs(np.indices((GRID, GRID)).reshape(2, -1).T[None, :, ::-1] - centre[:, None])
    distance = np.hypot(near[..., 0], near[..., 1])
    order = np.argsort(distance, 1)
    for i in np.argsort(distance.min(1)):
        cell = next(int(c) for c in order[i] if (int(owner[i]), int(c)) not in taken)
        taken[(int(owner[i]), cell)] = i
        rows.append((int(i), cell, 1.0))
    inside = (near < np.minimum(boxes[:, None, 2:] * GRID / 2, 1.0)).all(-1)
    for i, cell in zip(*np.nonzero(inside), strict=True):
        if (int(owner[i]), int(cell)) not in taken:
            taken[(int(owner[i]), int(cell))] = int(i)
            rows.append((int(i), int(cell), 0.4))
    objects, cells, weights = zip(*rows, strict=True)
    return np.array(objects), np.array(cells), np.array(weights, np.float32)


def _mask_questions(
    scenes: list[Scene],
    asks: np.ndarray,
    match: np.ndarray,
    owner: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` questions, picture after picture: half for pairs that are there, a fifth for what is not."""
    owners, labels, masks = np.arange(count) % len(scenes), [], []
    pairs = len(SEEN_PAIRS)
    for b in owners:
        scene, fits = scenes[b], match[owner == b]
        present = np.asarray(fits.any(0))
        draw = rng.random()
        pool = np.flatnonzero(present[:pairs]) if draw < 0.5 else np.flatnonzero(present)
        if draw > 0.8:
            pool = np.flatnonzero(~present & (_alike(scene, asks) | (rng.random() < 0.3)))
        label = int(pool[rng.integers(len(pool))])
        mask = np.zeros(scene.size_hw, np.float32)
        for thing, fit in zip(scene.objects, fits[:, label], strict=True):
            mask += thing.soft_alpha * fit
        masks.append(np.asarray(Image.fromarray(mask).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX)))
        labels.append(label)
    return owners, np.array(labels), np.clip(np.stack(masks), 0, 1).astype(np.float32)


def _alike(scene: Scene, asks: np.ndarray) -> np.ndarray:
    """bool[K]: the labels that share a colour or a kind with something in the scene."""
    colours = {COLOURS.index(o.colour) for o in scene.objects}
    kinds = {KINDS.index(o.kind) for o in scene.objects}
    return np.isin(asks[:, 1], list(colours)) | np.isin(asks[:, 2], list(kinds))


def draw_frame(side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of a scene that will be squashed to side x side: people's pictures are rarely square."""
    stretch = np.exp(rng.uniform(-0.3, 0.3)) if rng.random() < 0.65 else 1.0
    return round(side * stretch), round(side / stretch)


def squashed_pixels(scenes: list[Scene], side: int) -> Tensor:
    """uint8[B, 3, side, side]."""
    square = [np.asarray(scene.pil().resize((side, side), Image.Resampling.BILINEAR)) for scene in scenes]
    return torch.from_numpy(np.ascontiguousarray(np.stack(square).transpose(0, 3, 1, 2)))


def make_batch(step: int, size: int, *, asks: int = 16, side: int = 128) -> Batch:
    """The batch of this step: a pure function of its arguments."""
    rng = np.random.default_rng((step, 11))
    scenes = [render_scene(TRAIN_SEED + step * size + i, draw_frame(side, rng)) for i in range(size)]
    return batch_of(scenes, rng, step=step, asks=asks, side=side)


def batch_of(scenes: list[Scene], rng: np.random.Generator, *, step: int, asks: int, side: int) -> Batch:
    """The batch of these scenes; `rng` draws what is asked, `step` what is asked in words."""
    texts, meaning = _labels(scenes, rng)
    things = [(b, o) for b, scene in enumerate(scenes) for o in scene.objects]
    owner = np.array([b for b, _ in things])
    what = np.array([(TEXTURES.index(o.texture), COLOURS.index(o.colour), KINDS.index(o.kind)) for _, o in things])
    match = ((meaning[None] == ANY) | (meaning[None] == what[:, None])).all(-1)
    xyxy = np.stack([o.box_xyxy / (*o.size_hw[::-1], *o.size_hw[::-1]) for _, o in things])
    boxes = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)
    cells = _cells(boxes, owner)
    ask = _mask_questions(scenes, meaning, match, owner, asks, rng)
    dialogues = [(i, DEFAULT_PROMPT, caption_of(scene)) for i, scene in enumerate(scenes)]
    dialogues += [(i, *questions_of(scene, step)[0]) for i, scene in enumerate(scenes) if i % 2 == 0]
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (owner, boxes, *cells, *ask)]
    pair = torch.tensor([SEEN_PAIRS.index((o.colour, o.kind)) for _, o in things])
    return Batch(
        squashed_pixels(scenes, side), texts, pair, torch.from_numpy(match), *tensors,
        captions=[caption_of(scene) for scene in scenes], dialogues=dialogues, step=step,
    )  # fmt: skip
