"""Makes a convolutional tower quick at inference: branches and norms become one convolution, maps lie channels last.

MobileOne, RepVGG and RepMixer blocks train with parallel branches whose sum is one convolution (Vasu et al. 2023,
MobileOne section 3.2; FastViT section 3.1). Fused keys differ from those of the checkpoint, so the weights go in first.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.conv_bn_act import ConvNormAct
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mm.errors import CheckpointError

_TOLERANCE = 1e-4  # of the largest value; float32 rounding stays near 1e-6
_FUSING = ("fuse", "reparameterize", "switch_to_deploy")  # what timm calls on a block that knows how


def has_branches(tower: nn.Module) -> bool:
    """Whether any block of the tower can still be fused."""
    return any(callable(getattr(type(m), name, None)) for m in tower.modules() for name in _FUSING)


@torch.no_grad()
def fused(tower: Any, input_hw: tuple[int, int], name: str) -> Any:
    """A copy of a timm tower (float32, evaluation mode) with its branches fused, or the tower itself if it has none.

    Both read one fixed picture of `input_hw` first.

    Raises:
        CheckpointError: the two differ, as they do where weights are extreme or normalisation was never trained.
    """
    if not has_branches(tower):
        return tower
    quick = reparameterize_model(tower, inplace=False)
    _fold_norms(quick)
    pixels = _fixed_picture(input_hw)
    for branches, single in zip(_outputs(tower, pixels), _outputs(quick, pixels), strict=True):
        difference = float((branches - single).abs().max() / branches.abs().max().clamp_min(1e-12))
        if not difference <= _TOLERANCE:
            raise CheckpointError(
                f"{name}: the fused tower differs from its branches by {difference:.1e} of the largest value, "
                f"more than {_TOLERANCE:.0e}; load it with train=True, which keeps the branches"
            )
    return quick


def _fold_norms(tower: nn.Module) -> None:
    """Each convolution takes over the batch norm behind it; only its activation stays."""
    for block in tower.modules():
        if not isinstance(block, ConvNormAct):
            continue
        if isinstance(block.conv, nn.Conv2d) and isinstance(block.bn, nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.bn = getattr(block.bn, "act", nn.Identity())


def _outputs(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    final = tower.forward_features(pixels)
    return final, tower.forward_head(final)


def _fixed_picture(hw: tuple[int, int]) -> Tensor:
    """float32[1, 3, h, w] in -1..1; no random stream is touched."""
    return torch.arange(3 * hw[0] * hw[1]).mul(0.7).sin().reshape(1, 3, *hw)


def likes_channels_last(tower: nn.Module) -> bool:
    """Whether the tower is convolutional from end to end: it has convolutions and no one embedding of patches.

    On a processor such towers (FastViT, ResNet, ConvNeXt) are quicker with their channels last, FastViT most.
    """
    return not hasattr(tower, "patch_embed") and any(isinstance(m, nn.Conv2d) for m in tower.modules())
