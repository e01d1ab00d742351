"""The language half of a joined model: pictures become tokens of the decoder, between the tokens of the words."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mm.decoders.base import Decoder, Unread
from mm.encoders.base import Encoder, Grid, ImageFeatures
from mm.errors import InputError
from mm.generation.prompts import Prompt, Prompts
from mm.pictures.padding import squared


@dataclass(frozen=True)
class View:
    """Which of the tower's features a connector reads.

    layers: blocks, side by side in the channels; none means the tower's last tokens, after its last norm.
    skip: None for the patch tokens alone; a number for the tower's whole sequence, class and register tokens in
    front, without so many at its beginning.
    """

    layers: tuple[int, ...] = ()
    skip: int | None = None

    def __call__(self, features: ImageFeatures) -> tuple[Tensor, Grid]:
        """float[B, N, D], and their grid; a sequence that is no grid of patches lies in one row.

        Raises:
            InputError: the features lack a layer, or its prefix tokens.
        """
        missing = [layer for layer in self.layers if layer not in features.layers]
        if missing:
            raise InputError(f"the picture was encoded without layer {missing[0]}, which the connector reads")
        sequences = [self._sequence(features, layer) for layer in self.layers or (None,)]
        tokens = torch.cat(sequences, -1)
        grid = features.layer_grids[self.layers[0]] if self.layers else features.grid
        return tokens, grid if tokens.shape[1] == grid[0] * grid[1] else (1, tokens.shape[1])

    def _sequence(self, features: ImageFeatures, layer: int | None) -> Tensor:
        tokens = features.tokens if layer is None else features.layers[layer]
        if self.skip is None:
            return tokens
        prefix = features.prefix if layer is None else features.layer_prefix.get(layer, tokens[:, :0])
        if prefix.shape[1] != features.prefix.shape[1]:
            raise InputError(f"the encoder gives no class tokens for layer {layer}, which the connector reads")
        return torch.cat([prefix, tokens], 1)[:, self.skip :]


@dataclass(frozen=True, eq=False)
class Speaker:
    """connector: from the view's tokens into the decoder's width. prompts: how the decoder is asked. prompt: what
    `caption` asks when the caller asks nothing. notes: what a result of this model has to warn of."""

    connector: nn.Module
    decoder: Decoder
    prompt: str
    prompts: Prompts
    view: View = View()
    notes: tuple[str, ...] = ()

    @torch.inference_mode()
    def connected(self, features: ImageFeatures) -> Tensor:
        """float[B, M, D_t]: the picture as tokens of the decoder."""
        tokens, grid = self.view(features)
        weight = next(self.connector.parameters(), tokens)
        return self.connector(tokens.to(weight.device, weight.dtype), grid)[0]

    @torch.inference_mode()
    def prefix(self, features: ImageFeatures, before: tuple[int, ...] = ()) -> Any:
        """What the decoder keeps after the words in front of a picture and the picture itself, B = 1."""
        return self.decoder.extend(self._joined([before], [features]))[1]

    @torch.inference_mode()
    def embeds(self, prompt: Prompt, pictures: Sequence[ImageFeatures]) -> Tensor:
        """float[1, T, D_t]: one whole prompt with its own pictures.

        Raises:
            InputError: this prompt has places for another number of pictures.
        """
        check_pictures(prompt, len(pictures))
        return torch.cat([self._joined(prompt.parts[:-1], pictures), self._words(prompt.parts[-1])], 1)

    def logits(self, prompt: Prompt, pictures: Sequence[ImageFeatures]) -> Tensor:
        """float32[T, V]: at every token of one prompt, pictures included."""
        embeds = self.embeds(prompt, pictures)
        return self.decoder.extend(embeds, keep=embeds.shape[1])[0][0]

    def _joined(self, parts: Sequence[tuple[int, ...]], pictures: Sequence[ImageFeatures]) -> Tensor:
        """Words and pictures in turns, float[1, T, D_t]."""
        pieces = [self._words(())]
        for part, features in zip(parts, pictures, strict=True):
            pieces += [self._words(part), self.connected(features).to(pieces[0])]
        return torch.cat(pieces, 1)

    def _words(self, ids: tuple[int, ...]) -> Tensor:
        return self.decoder.embed(torch.tensor([ids], dtype=torch.long))

    @property
    def stamp(self) -> tuple[int, ...]:
        """Changes whenever training has changed a weight in place."""
        parts = (self.connector, self.decoder)
        weights = [weight for part in parts for weight in part.parameters() if not weight.is_inference()]
        return tuple(weight._version for weight in weights)

    @torch.inference_mode()
    def read(self, prompt: Prompt, pictures: Sequence[Any]) -> tuple[Any, list[int]]:
        """What stands in front of the last words, as `generate` takes it, and the numbers of these words.

        pictures: `Encoded`. Of the first, if it may be asked again, what was read up to its end is kept; all else is
        left to be read.

        Raises:
            InputError: the prompt has places for another number of pictures, or ends with one.
        """
        check_pictures(prompt, len(pictures))
        *parts, words = prompt.parts
        if not words:
            raise InputError("prompt: expected words or a mark behind the last picture, got none")
        prefix = None
        if pictures and pictures[0].reused:
            prefix, parts, pictures = pictures[0].prefix(self, parts[0]), parts[1:], pictures[1:]
        if pictures:
            prefix = Unread(self._joined(parts, [each.features for each in pictures]), prefix)
        return prefix, list(words)


def seen(encoder: Encoder, layers: tuple[int, ...], pad: str | None) -> Encoder:
    """The same encoder, which also gives these layers and, with `square`, pads pictures before it resizes them."""
    spec = encoder.spec
    prepared = squared(spec.preprocessing) if pad == "square" else spec.preprocessing
    every = tuple(dict.fromkeys((*spec.layers, *layers)))
    other: Any = copy.copy(encoder)
    other.spec = dataclasses.replace(spec, layers=every, preprocessing=prepared)
    return other


def check_pictures(prompt: Prompt, pictures: int) -> None:
    """Each prompt by itself: over a batch, one picture too many would hide one too few."""
    if prompt.pictures != pictures:
        raise InputError(f"prompt: it has places for {prompt.pictures} pictures, {pictures} were given")
