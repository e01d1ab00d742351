"""Text-driven matting after CLIPMat: which thing is meant comes from the words, its edges from the pixels.

Li, Zhang and Tao, "Referring Image Matting" (CVPR 2023, arXiv 2206.05149), sections 4.1 to 4.3, describe it; neither
code nor weights were ever released, so this is our own network from that description, and no published checkpoint
fits it. Its parts keep the paper's names: context prompt, text-driven semantic pop-up, multi-level details extractor.
Five things are ours, so that a small network learns quickly: the pop-up keeps the vision tokens beside what the text
adds to them, the text also modulates each decoder step (FiLM), the pooled embedding is one more text token, a `guided`
head reads where the model's segmentation sees the thing, so that it learns edges and not places, and the fused alpha is
refined by the colours around each pixel (`mm.heads.refiner`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.encoders.base import ImageFeatures, TextFeatures
from mm.heads.clipseg_style import Film
from mm.heads.refiner import Refiner, block

_SURE = 6.0  # a segmentation's logits beyond it say no more
_ENDS = 0.015  # how near is nearly


@dataclass(frozen=True)
class ClipMatConfig:
    """width: of the image tokens; text_width: of the text tokens; embedding: of the pooled ones.

    dim: of the pop-up. context: learnable vectors behind the text. template: what a label is put into, with one {}.
    layer_widths: of the earlier maps that the details extractor reads, finest first; detail_widths: of the decoder
    at the pixels and at each of those maps; semantic_widths: of the other decoder, at the two coarsest maps.
    guided: every decoder step also reads the logits of the model's segmentation. refine_widths: of the refiner, at the
    pixels, at half and at a quarter of them; none: the fused alpha is the last.
    """

    width: int
    text_width: int
    embedding: int
    dim: int
    heads: int
    context: int
    template: str
    layers: tuple[int, ...]
    layer_widths: tuple[int, ...]
    detail_widths: tuple[int, ...]
    semantic_widths: tuple[int, int]
    guided: bool
    refine_widths: tuple[int, ...]


@dataclass(frozen=True)
class MatteLogits:
    """semantic: float[Q, 3, h, w], background, unknown, foreground; detail: float[Q, H, W] at the pixels; refined:
    float32[Q, H, W], the alpha of a head with a refiner."""

    semantic: Tensor
    detail: Tensor
    refined: Tensor | None = None

    def classes(self) -> Tensor:
        """float32[Q, 3, H, W]: the semantic logits at the pixels."""
        return F.interpolate(self.semantic.float(), self.detail.shape[-2:], mode="bilinear", align_corners=False)

    @cached_property
    def shares(self) -> Tensor:
        """float32[Q, 3, H, W]: their probabilities."""
        return self.classes().softmax(1)

    def alpha(self) -> Tensor:
        """float32[Q, H, W] in 0..1: the refined alpha, or else the fused one; nearly nothing is nothing, nearly all is
        all, where no sigmoid gets to."""
        alpha = self.fused() if self.refined is None else self.refined
        return ((alpha - _ENDS) / (1 - 2 * _ENDS)).clamp(0, 1)

    def fused(self) -> Tensor:
        """float32[Q, H, W] in 0..1: the details where unknown, 1 where foreground.

        As the authors' fusion (GFM, "Bridging Composite and Real", IJCV 2022), with the probabilities in the place of
        the most likely class, so that a doubtful class costs only its share and the loss reaches both decoders.
        """
        _, unknown, foreground = self.shares.unbind(1)
        return foreground + unknown * self.detail.float().sigmoid()


class ContextPrompt(nn.Module):
    """The words as keys: the text tower's tokens, its pooled embedding, and vectors that are learnt."""

    def __init__(self, text_width: int, embedding: int, dim: int, context: int) -> None:
        super().__init__()
        self.norm, self.tokens = nn.LayerNorm(text_width), nn.Linear(text_width, dim)
        self.pooled = nn.Linear(embedding, dim)
        self.context = nn.Parameter(torch.randn(context, dim) * 0.02)

    def forward(self, text: TextFeatures, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """pooled: float[Q, E], of one length -> keys float[Q, L + 1 + C, dim], and bool of those to leave out."""
        tokens = self.tokens(self.norm(text.tokens))
        context = self.context.expand(len(tokens), -1, -1)
        keys = torch.cat([tokens, self.pooled(pooled)[:, None], context.to(tokens.dtype)], 1)
        absent = ~text.mask.to(keys.device)
        return keys, F.pad(absent, (0, keys.shape[1] - absent.shape[1]), value=False)


class PopUp(nn.Module):
    """Text-driven semantic pop-up: vision tokens ask the words, then each other (section 4.2)."""

    def __init__(self, width: int, dim: int, heads: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(width), nn.Linear(width, dim)
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.self_norm, self.self_attention = nn.LayerNorm(dim), nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, keys: Tensor, absent: Tensor, owner: Tensor) -> Tensor:
        """tokens: float[B, N, D] -> float[Q, N, dim]."""
        x = self.reduce(self.norm(tokens))[owner]
        x = x + self.cross(x, keys, keys, key_padding_mask=absent, need_weights=False)[0]
        y = self.self_norm(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class DetailsExtractor(nn.Module):
    """Multi-level details: at each step an earlier map beside the picture pooled to its size (section 4.3)."""

    def __init__(self, layers: Sequence[int], layer_widths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in layer_widths)
        # An earlier map has looked around itself already; only the pixels have not.
        blocks = [block(3, widths[0]), *(block(w + 3, o, 1) for w, o in zip(layer_widths, widths[1:], strict=True))]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels: Tensor, image: ImageFeatures) -> list[Tensor]:
        """float[B, C_i, H / 2^i, W / 2^i] for i = 0, 1, …, sides rounded up."""
        maps = [self.blocks[0](pixels)]
        size = pixels.shape[-2:]
        for layer, norm, mix in zip(self.layers, self.norms, self.blocks[1:], strict=True):
            size = (-(-size[0] // 2), -(-size[1] // 2))
            earlier = norm(image.layers[layer]).transpose(1, 2).unflatten(2, image.layer_grids[layer])
            if earlier.shape[-2:] != size:
                earlier = F.interpolate(earlier, size, mode="bilinear", align_corners=False)
            small = F.adaptive_avg_pool2d(pixels, size)
            maps.append(mix(torch.cat([earlier, small.to(earlier.dtype)], 1)))
        return maps


class _Step(nn.Module):
    """Up to a finer map, joined with its details and with the guide, modulated by the text and smoothed."""

    def __init__(self, above: int, detail: int, channels: int, embedding: int, guided: bool) -> None:
        super().__init__()
        self.guide = nn.Conv2d(1, channels, 1) if guided else None
        self.reduce, self.detail = nn.Conv2d(above, channels, 1), nn.Conv2d(detail, channels, 1)
        self.film, self.block = Film(embedding, channels), block(channels, channels)

    def forward(self, above: Tensor, detail: Tensor, text: Tensor, owner: Tensor, guide: Tensor | None) -> Tensor:
        size = detail.shape[-2:]
        up = F.interpolate(self.reduce(above), size, mode="bilinear", align_corners=False)
        seen = up + self.detail(detail)[owner]
        if self.guide is not None:
            assert guide is not None
            seen = seen + self.guide(F.interpolate(guide, size, mode="bilinear", align_corners=False))
        return up + self.block(self.film(seen, text))


class ClipMatHead(nn.Module):
    """(picture, text) pairs to trimap classes and alpha, for the features of any encoder that read the pixels."""

    def __init__(
        self, *, width: int, text_width: int, embedding: int, dim: int, heads: int, context: int, template: str,
        layers: Sequence[int], layer_widths: Sequence[int], detail_widths: Sequence[int],
        semantic_widths: Sequence[int], guided: bool, refine_widths: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.template, self.guided = template, guided
        self.prompt = ContextPrompt(text_width, embedding, dim, context)
        self.pop_up = PopUp(width, dim, heads)
        self.details = DetailsExtractor(layers, layer_widths, detail_widths)
        self.semantic_steps = self._steps(dim, detail_widths[-2:], semantic_widths, embedding, guided)
        self.detail_steps = self._steps(dim, detail_widths, detail_widths, embedding, guided)
        self.semantic_out = nn.Conv2d(semantic_widths[0], 3, 1)
        last = detail_widths[0]
        self.detail_out = nn.Sequential(block(last, last), nn.Conv2d(last, 1, 3, padding=1))
        self.refiner = Refiner(2 + guided + last, refine_widths) if refine_widths else None
        assert self.semantic_out.bias is not None
        with torch.no_grad():
            self.semantic_out.bias[0] += 2.0  # most of a picture is not what is asked for

    @staticmethod
    def _steps(dim: int, details: Sequence[int], widths: Sequence[int], embedding: int, guided: bool) -> nn.ModuleList:
        above = zip([*widths[1:], dim], details, widths, strict=True)
        return nn.ModuleList(_Step(a, d, w, embedding, guided) for a, d, w in above)

    def asks(self, label: str) -> str:
        """The label in the template that the head was trained with."""
        return self.template.format(label)

    def guide(
        self, segmenter: nn.Module | None, image: ImageFeatures, text: TextFeatures, owner: Tensor
    ) -> Tensor | None:
        """What a guided head reads of the segmentation of the same model, float[Q, 1, h, w]; None for any other."""
        if not self.guided:
            return None
        assert segmenter is not None
        with torch.no_grad():
            return segmenter(image, text.pooled.float(), owner)[:, None].clamp(-_SURE, _SURE) / _SURE

    def forward(
        self, pixels: Tensor, image: ImageFeatures, text: TextFeatures, owner: Tensor, guide: Tensor | None = None
    ) -> MatteLogits:
        """pixels: float[B, 3, H, W], those `image` was made from; text: one row for each of the Q questions; owner:
        int64[Q], the picture of each; guide: of a guided head. What depends on the picture alone is computed once a
        picture."""
        if self.guided != (guide is not None):
            raise ValueError(f"guide: expected {'one' if self.guided else 'none'} for this head")
        pooled = F.normalize(text.pooled.float(), dim=-1) * text.pooled.shape[-1] ** 0.5
        keys, absent = self.prompt(text, pooled)
        tokens = self.pop_up(image.tokens, keys, absent, owner)
        coarse = tokens.transpose(1, 2).unflatten(2, image.grid)
        details = self.details(pixels, image)
        semantic = self._decode(self.semantic_steps, coarse, details[-2:], pooled, owner, guide)
        fine = self._decode(self.detail_steps, coarse, details, pooled, owner, guide)
        out = MatteLogits(self.semantic_out(semantic), self.detail_out(fine)[:, 0])
        return out if self.refiner is None else self._refined(self.refiner, out, pixels[owner], fine, guide)

    @staticmethod
    def _refined(
        refiner: nn.Module, out: MatteLogits, pixels: Tensor, fine: Tensor, guide: Tensor | None
    ) -> MatteLogits:
        beside = [out.shares[:, 1:]]
        if guide is not None:
            beside.append(F.interpolate(guide.float(), pixels.shape[-2:], mode="bilinear", align_corners=False))
        return replace(out, refined=refiner(pixels, out.fused(), torch.cat(beside, 1), fine))

    @staticmethod
    def _decode(
        steps: nn.ModuleList, x: Tensor, details: list[Tensor], text: Tensor, owner: Tensor, guide: Tensor | None
    ) -> Tensor:
        for step, detail in zip(reversed(steps), reversed(details), strict=True):
            x = step(x, detail, text, owner, guide)
        return x
