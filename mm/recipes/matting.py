"""The recipe of a matting head: `python -m mm.recipes.matting --work FOLDER --init MODEL --out FOLDER`.

One stage, `matte`, over the frozen towers of MODEL; it goes on after a kill from its last checkpoint in FOLDER.
The folder written is that of MODEL with the head beside its other parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.checkpoints.hub import locate
from mm.checkpoints.loading import load
from mm.encoders.base import ImageFeatures, TextFeatures
from mm.heads.clipmat import ClipMatConfig, ClipMatHead, MatteLogits
from mm.joined import Joined
from mm.recipes.export import put_matting, replacing
from mm.recipes.fit import fit_stage
from mm.recipes.matting_batches import SoftBatch, make_soft_batch
from mm.recipes.tiny import autocast
from mm.zoo import EMBEDDED

_BAND = 3  # pixels on either side of what is neither nothing nor all that count as unknown
_LEVELS = 5  # of the Laplacian pyramid
_DETAIL_WIDTHS = (16, 24, 32, 48)
_REFINE_WIDTHS = (24, 48, 64)
_SHIFT = 2 * 10**7  # so that no other stage has seen the scenes


def classes_of(alpha: Tensor, band: int = _BAND) -> Tensor:
    """int64[Q, H, W]: 0 background, 2 foreground, 1 whatever lies within `band` pixels of anything between."""
    between = ((alpha > 0.01) & (alpha < 0.99)).float()
    sure = (alpha >= 0.5).float()
    unknown = F.max_pool2d(between[:, None], 2 * band + 1, 1, band)[:, 0]
    # A drawing's edge can pass between two pixels and leave nothing in between.
    low, high = (F.max_pool2d(s * sure[:, None], 2 * band + 1, 1, band)[:, 0] * s for s in (-1, 1))
    unknown = torch.maximum(unknown, (low != high).float())
    return torch.where(unknown > 0, 1, (2 * sure).long())


def matte_losses(out: MatteLogits, alpha: Tensor, foreground: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """The terms of CLIPMat, a quarter each, in the form of the authors' GFM, and that of the refined alpha.

    alpha: float32[Q, H, W]; foreground, pixels: float32[Q, 3, H, W] in 0..255, the picture of each question.
    classes: cross-entropy of the trimap. detail: L1 and Laplacian of the details where unknown. whole: the same of the
    fused alpha everywhere. blend: how far the picture, blended anew, is from the picture. refined, where there is one:
    L1, which counts most, and Laplacian.
    """
    truth, found = classes_of(alpha), out.fused()
    unknown = (truth == 1).float()
    everywhere = torch.ones_like(unknown)
    detail = out.detail.float().sigmoid()
    terms = {
        "classes": F.cross_entropy(out.classes(), truth),
        "detail": _l1(detail, alpha, unknown) + laplacian(detail * unknown, alpha * unknown),
        "whole": _l1(found, alpha, everywhere) + laplacian(found, alpha),
        "blend": _blend(found, alpha, foreground, pixels),
    }
    terms = {name: 0.25 * term for name, term in terms.items()}
    if out.refined is not None:
        terms["refined"] = 3 * _l1(out.refined, alpha, everywhere) + laplacian(out.refined, alpha)
    return terms


def _l1(found: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    return (((found - truth).square() + 1e-12).sqrt() * where).sum() / (where.sum() + 1)


def laplacian(found: Tensor, truth: Tensor) -> Tensor:
    """L1 between the Laplacian pyramids of float32[Q, H, W], summed over the levels (Hou and Liu, ICCV 2019, 3.3)."""
    difference = (found - truth)[:, None]  # the pyramid is linear
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=found.device) / 16
    total = found.new_zeros(())
    for _ in range(_LEVELS):
        padded = F.pad(difference, (2, 2, 2, 2), mode="replicate")
        smooth = F.conv2d(F.conv2d(padded, row.view(1, 1, 1, 5)), row.view(1, 1, 5, 1))
        total = total + (difference - smooth).abs().mean()
        difference = F.avg_pool2d(smooth, 2, ceil_mode=True)
    return total


def _blend(found: Tensor, alpha: Tensor, foreground: Tensor, pixels: Tensor) -> Tensor:
    """The background is what the picture leaves when the true foreground is taken out; black where that is nothing."""
    rest = pixels - alpha[:, None] * foreground
    background = (rest / (1 - alpha[:, None]).clamp(min=0.02)).clamp(0, 255)
    anew = found[:, None] * foreground + (1 - found[:, None]) * background
    return ((anew - pixels).square() + 1e-12).sqrt().mean() / 255


def config_for(joined: Joined, *, guided: bool = False) -> ClipMatConfig:
    """A small head for the features of this model's encoder, whatever their widths. A guided one is asked in the words
    that its segmentation is asked in."""
    spec, template = joined.spec, "{}" if guided else "the {}"
    if len(spec.layers) < 2:
        raise ValueError(f"a matting head reads two earlier maps or more, {joined.name} gives {len(spec.layers)}")
    layers = tuple(sorted(spec.layers))[: len(_DETAIL_WIDTHS) - 1]
    with torch.inference_mode():
        image = joined.encoder.encode_image(torch.zeros(1, 3, *spec.preprocessing.input_hw), layers)
        text = joined.encoder.encode_text(["thing"])
    return ClipMatConfig(
        width=spec.width, text_width=text.tokens.shape[-1], embedding=spec.embedding, dim=96, heads=4, context=8,
        template=template, layers=layers, layer_widths=tuple(image.layers[i].shape[-1] for i in layers),
        detail_widths=_DETAIL_WIDTHS[: len(layers) + 1], semantic_widths=(48, 64), guided=guided,
        refine_widths=_REFINE_WIDTHS,
    )  # fmt: skip


class MatteTraining:
    """The head, the only thing trained, and the towers it stands on."""

    def __init__(self, joined: Joined, head: ClipMatHead) -> None:
        self.joined, self.head = joined, head

    def losses(self, batch: SoftBatch) -> dict[str, Tensor]:
        given = self.joined.spec.preprocessing
        mean, std = (torch.tensor(v, device=batch.pixels.device)[:, None, None] for v in (given.mean, given.std))
        pixels = ((batch.pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with autocast(pixels.device), torch.no_grad():
            image = self.joined.encoder.encode_image(pixels, self.joined.spec.layers)
        return self.losses_of(batch, pixels, image)

    def losses_of(self, batch: SoftBatch, pixels: Tensor, image: ImageFeatures) -> dict[str, Tensor]:
        """pixels: the batch as the tower read it; image: what the tower says of it, where gradients go back to."""
        with autocast(pixels.device):
            with torch.no_grad():
                text = self._text(batch.texts)
            guide = self.head.guide(self.joined.segmenter, image, text, batch.owner)
            out = self.head(pixels, image, text, batch.owner, guide)
        return matte_losses(out, batch.alpha, batch.foreground, batch.pixels.float()[batch.owner])

    def _text(self, texts: list[str]) -> TextFeatures:
        """One row a question; each different text passes the tower once."""
        asked = [self.head.asks(text) for text in texts]
        unique = list(dict.fromkeys(asked))
        made = self.joined.encoder.encode_text(unique)
        rows = torch.tensor([unique.index(text) for text in asked])
        return TextFeatures(made.pooled[rows], made.tokens[rows], made.mask[rows])


def train(
    folder: Path, joined: Joined, config: ClipMatConfig, *, steps: int, batch: int, asks: int, workers: int = 1,
    save_every: int = 100,
) -> MatteTraining:  # fmt: skip
    """Runs the stage as far as `folder` does not hold it complete yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        training = MatteTraining(joined, ClipMatHead(**vars(config)))
    device = next(joined.encoder.parameters()).device  # pyright: ignore[reportAttributeAccessIssue]
    training.head.to(device).to(memory_format=torch.channels_last).train()
    make = functools.partial(make_soft_batch, size=batch, asks=asks, side=joined.spec.preprocessing.input_hw[0])
    fit_stage(
        "matte", folder, training.head, training.losses, make=make, steps=steps, peak=2e-3,
        shift=_SHIFT, workers=workers, save_every=save_every,
    )  # fmt: skip
    return training


def add_matter(folder: Path, head: nn.Module, config: ClipMatConfig, out: Path) -> None:
    """Writes the model of `folder` to `out` with this head as its part `matter`, in float16; replaces `out`, which may
    be `folder`, as a whole."""
    with replacing(out, folder) as partial:
        put_matting(head.state_dict(), dataclasses.asdict(config), partial)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--steps", type=int, default=3000, help="of --batch scenes each (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="scenes a step (default %(default)s)")
    parser.add_argument("--asks", type=int, help="questions a step (default: one a scene)")
    parser.add_argument("--init", metavar="MODEL", default="tiny", help="name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=EMBEDDED / "tiny", help="folder to write (default: the embedded)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    joined = load(args.init, device=device)
    config, asks = config_for(joined, guided=joined.segmenter is not None), args.asks or args.batch
    training = train(args.work, joined, config, steps=args.steps, batch=args.batch, asks=asks)
    add_matter(locate(args.init).folder, training.head, config, args.out)


if __name__ == "__main__":
    main()
