"""Batches for heads: pictures as the encoder wants them, and their truth in the same frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from mm.encoders.preprocess import Preprocessing
from mm.errors import ImageInputError, InputError, ResourceLimitError
from mm.training.examples import Example, Examples, check_known

_KEPT = 0.25  # a box stays if at least this share of it lies in the frame after a crop
_PRESENT = 0.8  # of the questions ask for what is there
_ATTEMPTS = 100  # broken pictures in a row before the data counts as broken


@dataclass(frozen=True)
class HeadBatch:
    """pixels: float32[B, 3, h, w], normalised. Labels are numbers of the run's label list throughout.

    asked: int64[K], the labels asked of every picture. n things: owner int64[n] (the picture), label int64[n] (the
    place in `asked`), boxes float32[n, 4] (cxcywh, 0..1 of the input). unsure: bool[B, K], where a picture says neither
    yes nor no. Q questions of masks: ask_owner, ask_label int64[Q] (of the label list), ask_alpha float32[Q, h, w],
    ask_colour float32[Q, 3, h, w] in 0..255, the colours of what is meant; empty where the head asks for no masks.
    broken: (name, reason) of pictures that could not be had and were replaced.
    """

    pixels: Tensor
    asked: Tensor
    owner: Tensor
    label: Tensor
    boxes: Tensor
    unsure: Tensor
    ask_owner: Tensor
    ask_label: Tensor
    ask_alpha: Tensor
    ask_colour: Tensor
    step: int
    broken: tuple[tuple[str, str], ...]

    def to(self, device: torch.device) -> HeadBatch:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Rules:
    """size: pictures a step; negatives: labels asked beside those that are there; asks: masks asked of a picture."""

    size: int
    seed: int
    flips: bool
    negatives: int
    asks: int


class HeadBatches(IterableDataset):
    """The batch of a step is a pure function of the data, the rules and the step: a resumed run goes on exactly."""

    def __init__(
        self, examples: Examples, labels: Sequence[str], preprocessing: Preprocessing, rules: Rules,
        steps: range = range(0),
    ) -> None:  # fmt: skip
        self.examples, self.labels, self.preprocessing, self.rules = examples, tuple(labels), preprocessing, rules
        self.steps = steps
        self._places = {label: i for i, label in enumerate(self.labels)}
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    def __iter__(self) -> Iterator[HeadBatch]:
        info = torch.utils.data.get_worker_info()
        shift, stride = (info.id, info.num_workers) if info else (0, 1)
        for step in self.steps[shift::stride]:
            yield self.make(step)

    def make(self, step: int) -> HeadBatch:
        rng = np.random.default_rng((self.rules.seed, step, 31))
        broken: list[tuple[str, str]] = []
        examples = [self._example(step * self.rules.size + i, broken) for i in range(self.rules.size)]
        if self.rules.flips:
            examples = [each.flipped() if rng.random() < 0.5 else each for each in examples]
        pixels = [self.preprocessing.pixels(each.picture.pixels) for each in examples]
        if len({each.shape for each in pixels}) > 1:
            raise InputError("this encoder's inputs differ in size from picture to picture; batches need one size")
        things = [self._things(each) for each in examples]
        labels = np.concatenate([label for label, _ in things])
        asked = self._asked(labels, rng)
        place = {label: i for i, label in enumerate(asked.tolist())}
        unsure = [[self.labels[i] in each.unsure for i in asked] for each in examples]
        questions = self._questions(examples, rng)
        return HeadBatch(
            torch.stack(pixels),
            torch.from_numpy(asked),
            torch.from_numpy(np.repeat(np.arange(len(things)), [len(label) for label, _ in things])),
            torch.tensor([place[label] for label in labels.tolist()], dtype=torch.long),
            torch.from_numpy(np.concatenate([boxes for _, boxes in things])),
            torch.tensor(unsure, dtype=torch.bool),
            *questions,
            step=step,
            broken=tuple(broken),
        )

    def _example(self, position: int, broken: list[tuple[str, str]]) -> Example:
        """The example at a position of the endless stream of shuffled epochs; behind a broken one, the next."""
        count = len(self.examples)
        for behind in range(min(_ATTEMPTS, count) + 1):
            epoch, place = divmod(position + behind, count)
            if self._order[0] != epoch:
                self._order = epoch, np.random.default_rng((self.rules.seed, epoch, 37)).permutation(count)
            chosen = int(self._order[1][place])
            try:
                example = self.examples[chosen]
            except (ImageInputError, ResourceLimitError) as error:
                broken.append((f"picture {chosen}", str(error)))
                continue
            check_known(example.labels, self._places, example.picture.name)
            return example
        raise InputError(f"data: {len(broken)} pictures in a row cannot be read; the first: {broken[0][1]}")

    def _things(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64[n] and boxes float32[n, 4] of what is still to be seen in the input frame."""
        plan = self.preprocessing.geometry(example.picture.size_hw)
        frame = np.array(plan.input_hw[::-1] * 2, np.float32)
        whole = plan.boxes_to_input(example.boxes_xyxy)
        seen = np.clip(whole, 0, frame)
        areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (seen, whole)]
        kept = (areas[0] > 0) & (areas[0] >= _KEPT * areas[1])
        corners = (seen / frame)[kept]
        boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        labels = np.array([self._places[label] for label in example.labels], np.int64).reshape(-1)
        return labels[kept], boxes.astype(np.float32)

    def _asked(self, there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The labels of the batch's things, and some that none of them has."""
        own = np.unique(there)
        others = np.setdiff1d(np.arange(len(self.labels)), own)
        least = 1 if not len(own) else 0
        drawn = rng.permutation(others)[: max(least, self.rules.negatives)]
        return np.concatenate([own, drawn]).astype(np.int64)

    def _questions(self, examples: list[Example], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = [self._question(each, b, rng) for b, each in enumerate(examples) for _ in range(self.rules.asks)]
        if not rows:
            none = torch.zeros(0, dtype=torch.long)
            return none, none, torch.zeros(0, 1, 1), torch.zeros(0, 3, 1, 1)
        owners, labels, alphas, colours = zip(*rows, strict=True)
        whole = [torch.tensor(each, dtype=torch.long) for each in (owners, labels)]
        return whole[0], whole[1], torch.from_numpy(np.stack(alphas)), torch.from_numpy(np.stack(colours))

    def _question(
        self, example: Example, owner: int, rng: np.random.Generator
    ) -> tuple[int, int, np.ndarray, np.ndarray]:
        """A label, the alpha of all it names float32[h, w], and their colours float32[3, h, w]."""
        there = sorted({*example.labels} - example.unsure)
        absent = [label for label in self.labels if label not in {*example.labels} | example.unsure]
        pool = there if there and (not absent or rng.random() < _PRESENT) else absent or list(self.labels)
        label = pool[int(rng.integers(len(pool)))]
        chosen = [i for i, each in enumerate(example.labels) if each == label]
        assert example.masks is not None
        height, width = example.picture.size_hw
        masks = example.masks[chosen].reshape(-1, height, width)
        alpha = np.minimum(masks.sum(0), 1)
        blend = example.picture.pixels * alpha[..., None]
        if example.foregrounds is not None and chosen:
            blend = (example.foregrounds[chosen] * masks[..., None]).sum(0)
        stack = np.concatenate([alpha[None], blend.transpose(2, 0, 1)]).astype(np.float32)
        small = self.preprocessing.geometry((height, width)).masks_to_input(stack)
        colours = small[1:] / np.maximum(small[:1], 1e-3)
        return owner, self._places[label], np.clip(small[0], 0, 1), np.clip(colours, 0, 255)
