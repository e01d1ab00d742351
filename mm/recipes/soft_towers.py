"""The recipe that shows a vision tower what fur, glass and smoke look like:
`python -m mm.recipes.soft_towers --work FOLDER --init MODEL --out FOLDER`.

Two stages, which go on after a kill. In `soft` the vision tower and the matting head learn together from soft scenes,
while detection head, segmentation head and text tower, all frozen, say what the tower should still see in them. On hard
scenes the tower is held to what it said before (self-distillation), so that whatever reads it has little to learn anew.
In `settle` detection and segmentation head learn that little from scenes of both kinds; the decoder may do the same by
`words` of `mm.recipes.tiny`. The folder written is that of MODEL with tower and heads replaced.
"""

from __future__ import annotations

import argparse
import copy
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm.checkpoints.hub import locate
from mm.checkpoints.loading import load
from mm.connectors.regions import Regions
from mm.encoders.base import ImageFeatures
from mm.heads.clipmat import ClipMatHead
from mm.joined import Joined
from mm.recipes.batches import TRAIN_SEED, Batch, batch_of, draw_frame, squashed_pixels
from mm.recipes.export import put_part, put_vision, replacing
from mm.recipes.fit import fit_stage
from mm.recipes.losses import detection_loss, mask_loss, region_loss
from mm.recipes.matting import MatteTraining
from mm.recipes.matting_batches import SoftBatch, draw_soft_scenes, soft_batch_of
from mm.recipes.tiny import autocast
from mm.recipes.tiny_parts import prepare
from mm.scenes.render import render_scene
from mm.zoo import EMBEDDED

_SEEN_WEIGHTS = {"class": 0.05, "object": 0.2, "box": 0.7, "region": 0.3, "mask": 0.5}  # in `soft`
_SETTLE_WEIGHTS = {"region": 0.7}  # in `settle`; the others 1
_SOFT_SHARE = 4  # one scene of so many in `settle`
_HELD = 10.0  # weight of staying as before on hard scenes
_MATTE = 4.0
_TOWER_SHARE = 0.4  # of the learning rate
_SHIFTS = 6 * 10**7, 7 * 10**7  # so that no other stage has seen the scenes


@dataclass(frozen=True)
class SoftLesson:
    """hard uint8[B, 3, S, S]: ordinary scenes; seen and matte: what is asked about soft ones, the same for both."""

    hard: Tensor
    seen: Batch
    matte: SoftBatch

    def to(self, device: torch.device) -> SoftLesson:
        return SoftLesson(self.hard.to(device), self.seen.to(device), self.matte.to(device))


def make_lesson(step: int, size: int, *, side: int = 128) -> SoftLesson:
    """The lesson of this step, `size` scenes of each kind: a pure function of its arguments."""
    rng = np.random.default_rng((step, 31))
    hard = [render_scene(TRAIN_SEED + step * size + i, draw_frame(side, rng)) for i in range(size)]
    soft = draw_soft_scenes(step, size, side, rng)
    return SoftLesson(
        squashed_pixels(hard, side),
        batch_of(soft, rng, step=step, asks=2 * size, side=side),
        soft_batch_of(soft, rng, step=step, asks=size, side=side),
    )


class SoftTraining(nn.Module):
    """What learns, copies of the vision tower and of the matting head, beside what does not: the model as it came."""

    def __init__(self, joined: Joined) -> None:
        super().__init__()
        if not isinstance(joined.matter, ClipMatHead) or joined.detector is None or joined.segmenter is None:
            raise ValueError(f"{joined.name}: expected heads for detection, segmentation and matting")
        encoder: Any = copy.deepcopy(joined.encoder)
        encoder.requires_grad_(False)
        encoder.text.set_attn_implementation("eager")  # quicker on a CPU, at these lengths
        self.vision = encoder.vision.requires_grad_(True)
        self.head = copy.deepcopy(joined.matter).requires_grad_(True)
        matting = MatteTraining(replace(joined, encoder=encoder), self.head)
        self._fixed = encoder, joined, matting  # no parts of this module: its weights are what it learns

    def train(self, mode: bool = True) -> SoftTraining:
        """The tower keeps its statistics."""
        super().train(mode)
        self.vision.eval()
        return self

    def losses(self, lesson: SoftLesson) -> dict[str, Tensor]:
        encoder, joined, matting = self._fixed
        pixels = prepare(torch.cat([lesson.hard, lesson.seen.pixels])).contiguous(memory_format=torch.channels_last)
        count, layers = len(lesson.hard), joined.spec.layers
        with autocast(pixels.device):
            now, soft = _split(encoder.encode_image(pixels, layers), count)
            with torch.no_grad():
                then = joined.encoder.encode_image(pixels[:count], layers)
                text = encoder.encode_text(lesson.seen.texts).pooled.float()
            seen = seen_losses(joined.detector, joined.segmenter, soft, text, lesson.seen)
        terms = {name: _SEEN_WEIGHTS[name] * term for name, term in seen.items()}
        terms["held"] = _HELD * drift(now, then)
        mattes = matting.losses_of(lesson.matte, pixels[count:], soft)
        return terms | {name: _MATTE * term for name, term in mattes.items()}

    @property
    def encoder(self) -> Any:
        """With the tower as it is by now."""
        return self._fixed[0]


class SettleTraining(nn.Module):
    """Copies of the detection and the segmentation head, over the tower as it is after `soft`."""

    def __init__(self, joined: Joined, encoder: Any) -> None:
        super().__init__()
        heads: list[Any] = [joined.detector, joined.segmenter]
        self.detector, self.segmenter = (copy.deepcopy(head) for head in heads)
        self.requires_grad_(True)
        self._fixed = encoder, joined.spec.layers  # no parts of this module: its weights are what it learns

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        encoder, layers = self._fixed
        with autocast(batch.pixels.device):
            with torch.no_grad():
                pixels = prepare(batch.pixels).contiguous(memory_format=torch.channels_last)
                image, text = encoder.encode_image(pixels, layers), encoder.encode_text(batch.texts).pooled.float()
            terms = seen_losses(self.detector, self.segmenter, image, text, batch)
        return {name: _SETTLE_WEIGHTS.get(name, 1.0) * term for name, term in terms.items()}


def make_mixed_batch(step: int, size: int, *, side: int = 128) -> Batch:
    """The batch of this step of `settle`: a pure function of its arguments."""
    rng, soft = np.random.default_rng((step, 37)), size // _SOFT_SHARE
    scenes = [render_scene(TRAIN_SEED + step * size + i, draw_frame(side, rng)) for i in range(size - soft)]
    return batch_of([*scenes, *draw_soft_scenes(step, soft, side, rng)], rng, step=step, asks=size, side=side)


def seen_losses(detector: Any, segmenter: Any, image: ImageFeatures, text: Tensor, batch: Batch) -> dict[str, Tensor]:
    """What the two heads see in a batch: boxes, what is in them, and masks. text: float[K, E], of its labels."""
    boxes = detector(image, text)
    masks = segmenter(image, text[batch.ask_label], batch.ask_owner)
    return {
        **detection_loss(boxes, batch),
        "region": region_loss(boxes, text, batch),
        "mask": mask_loss(masks, batch.ask_mask),
    }


def _split(image: ImageFeatures, count: int) -> tuple[ImageFeatures, ImageFeatures]:
    """The first `count` pictures, and the others."""

    def part(rows: slice) -> ImageFeatures:
        return ImageFeatures(
            image.tokens[rows], image.grid, image.prefix[rows], image.pooled[rows],
            {i: maps[rows] for i, maps in image.layers.items()}, image.layer_grids,
        )  # fmt: skip

    return part(slice(count)), part(slice(count, None))


def drift(now: ImageFeatures, then: ImageFeatures) -> Tensor:
    """Mean over tokens, pooled embedding and earlier maps of the squared change, in units of each one's variance."""
    pairs = [(now.tokens, then.tokens), (now.pooled, then.pooled)]
    pairs += [(now.layers[i], then.layers[i]) for i in then.layers]
    return torch.stack([(a.float() - b.float()).square().mean() / b.float().var() for a, b in pairs]).mean()


def train(
    folder: Path, joined: Joined, *, steps: int, settle_steps: int, batch: int, workers: int = 1
) -> tuple[SoftTraining, SettleTraining]:
    """Runs the stages as far as `folder` does not hold them complete yet."""
    folder.mkdir(parents=True, exist_ok=True)
    soft = SoftTraining(joined).to(memory_format=torch.channels_last).train()
    fit_stage(
        "soft", folder, soft, soft.losses, make=functools.partial(make_lesson, size=batch), steps=steps,
        peak=1e-3, shift=_SHIFTS[0], workers=workers, save_every=100,
        parts=[(soft.vision, _TOWER_SHARE), (soft.head, 1.0)],
    )  # fmt: skip
    settle = SettleTraining(joined, soft.eval().encoder).train()
    fit_stage(
        "settle", folder, settle, settle.losses, make=functools.partial(make_mixed_batch, size=2 * batch),
        steps=settle_steps, peak=6e-4, shift=_SHIFTS[1], workers=workers, save_every=100,
    )  # fmt: skip
    return soft, settle.eval()


def export(folder: Path, joined: Joined, soft: SoftTraining, settle: SettleTraining, out: Path) -> None:
    """Writes `joined`, the model of `folder`, to `out` with what has learned in the place of what was there; replaces
    `out`, which may be `folder`, as a whole."""
    with replacing(out, folder) as partial:
        put_vision(soft.encoder, partial)
        put_part(soft.head, "matter", partial)
        put_part(settle.detector, "detector", partial)
        put_part(settle.segmenter, "segmenter", partial)
        if joined.speaker is not None and isinstance(joined.speaker.connector, Regions):
            connector = copy.deepcopy(joined.speaker.connector)
            connector.find_as(settle.detector)
            put_part(connector, "connector", partial)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--steps", type=int, default=2400, help="of --batch scenes of each kind (default %(default)s)")
    parser.add_argument("--settle-steps", type=int, default=500, help="of twice --batch scenes (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="scenes of each kind a step (default %(default)s)")
    parser.add_argument("--init", metavar="MODEL", default="tiny", help="name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=EMBEDDED / "tiny", help="folder to write (default: the embedded)")
    args = parser.parse_args()
    joined = load(args.init, device="cuda" if torch.cuda.is_available() else "cpu")
    trained = train(args.work, joined, steps=args.steps, settle_steps=args.settle_steps, batch=args.batch)
    export(locate(args.init).folder, joined, *trained, args.out)


if __name__ == "__main__":
    main()
