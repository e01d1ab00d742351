"""SigLIP 2 NaFlex: one tower for pictures of any shape (Tschannen et al. 2025, arXiv 2502.14786).

transformers pads every picture to the largest number of patches and masks the padding; here a batch has pictures of
one size, so nothing is padded and the features are the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mm.encoders.base import ImageFeatures
from mm.encoders.build import Dtype
from mm.encoders.transformers_pair import TransformersPair, load_parts
from mm.encoders.transformers_tower import block_outputs, check_layers, check_pixels
from mm.errors import InputError


class NaflexEncoder(TransformersPair):
    def encode_image(self, pixels: Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        """pixels: float[B, 3, H, W], sides multiples of the patch.

        Raises:
            InputError: they are not, or a layer is not there.
        """
        tower = self.model.vision_model
        patch = tower.config.patch_size
        height, width = check_pixels(pixels, patch)
        check_layers(layers, tower.config.num_hidden_layers)
        if height % patch or width % patch:
            raise InputError(f"pixels: expected sides that are multiples of {patch}, got {height} x {width}")
        grid = (height // patch, width // patch)
        patches = patchified(pixels, patch)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device)
        shapes = torch.tensor([grid] * len(patches), device=pixels.device).reshape(-1, 2)
        out = tower(patches, mask, shapes, output_hidden_states=bool(layers))
        tokens = out.last_hidden_state
        return ImageFeatures(
            tokens=tokens,
            grid=grid,
            prefix=tokens[:, :0],
            pooled=tokens.mean(1) if out.pooler_output is None else out.pooler_output,
            layers=block_outputs(out.hidden_states, layers),
            layer_grids=dict.fromkeys(layers, grid),
        )


def patchified(pixels: Tensor, patch: int) -> Tensor:
    """float[B, 3, H, W] -> float[B, N, patch * patch * 3]: patches row by row, in each the channel runs fastest."""
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def load(folder: Path, *, dtype: Dtype, train: bool) -> NaflexEncoder:
    """The pair of a NaFlex folder.

    Raises:
        CheckpointError: the files are damaged, incomplete or do not fit together.
    """
    return NaflexEncoder(*load_parts(folder, dtype=dtype, train=train))
