"""What every encoder gives, whatever library it came from.

Letters: B pictures, N patch tokens on an h x w grid, D their width, P prefix tokens, K texts, L text tokens,
E the joint embedding's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from mm.encoders.preprocess import Preprocessing
from mm.encoders.text import TextRules, TextSpec

Grid = tuple[int, int]


@dataclass(frozen=True)
class ImageFeatures:
    """One pass of an image tower.

    tokens: float[B, N, D], patch tokens only, row by row; N = h * w of `grid`.
    prefix: float[B, P, D], class and register tokens; P may be 0.
    pooled: float[B, E], the joint embedding, not normalised.
    layers: earlier maps that were asked for, {index: float[B, N_i, D_i]}, each on `layer_grids[index]`.
    layer_prefix: the prefix tokens of those layers, {index: float[B, P, D_i]}, where the tower has any.
    """

    tokens: Tensor
    grid: Grid
    prefix: Tensor
    pooled: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)
    layer_grids: dict[int, Grid] = field(default_factory=dict)
    layer_prefix: dict[int, Tensor] = field(default_factory=dict)

    def map(self, layer: int | None = None) -> Tensor:
        """float[B, D, h, w]: the tokens, or those of an earlier layer, as a picture."""
        tokens, (h, w) = (self.tokens, self.grid) if layer is None else (self.layers[layer], self.layer_grids[layer])
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], h, w)


@dataclass(frozen=True)
class TextFeatures:
    """One pass of a text tower.

    pooled: float[K, E], the joint embedding, not normalised. tokens: float[K, L, D_t]; mask: bool[K, L], true on
    real tokens. cut: which texts were longer than the tower reads and lost their end.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    cut: tuple[bool, ...] = ()


@dataclass(frozen=True)
class EncoderSpec:
    """What a checkpoint decides about its own inputs; nothing here has a default on purpose.

    text: None where the tower has no text tower. rule: how similarity becomes a score, `softmax` (temperature) or
    `sigmoid` (temperature and bias); None without a text tower. width: D of `tokens`. tokens: which of the tower's
    features they are, in words. embedding: E of `pooled`.
    layers: the earlier maps that the heads of this encoder read.
    """

    preprocessing: Preprocessing
    text: TextSpec | None
    rule: Literal["softmax", "sigmoid"] | None
    width: int
    tokens: str
    embedding: int
    layers: tuple[int, ...]


@runtime_checkable
class Encoder(Protocol):
    """An image tower, mostly with a text tower, and all that goes with their checkpoint.

    Layers mean the same in every library: `layers=(i,)` is what block i gives out, counted from 0, or from the end
    with -1, before any last norm; a tower of stages counts its stages. `tokens` are after the tower's last norm.
    """

    @property
    def spec(self) -> EncoderSpec: ...

    @property
    def rules(self) -> TextRules | None: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def encode_image(self, pixels: Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        """pixels: float[B, 3, H, W], as `spec.preprocessing` prepares them."""
        ...

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """Raises InputError where the encoder has no text tower."""
        ...

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """image float[B, E], text float[K, E] -> probability or score, float[B, K], by the checkpoint's own rule."""
        ...
