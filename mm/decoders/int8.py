"""Language models whose layers keep their weights in int8: half the memory of bfloat16, and half the bytes to read for
each token. Embeddings, norms and the head stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mm.errors import InputError
from mm.kernels.int8 import linear_int8, rounded


class Int8Linear(nn.Module):
    """A linear layer from rounded weights, for inference. weight: int8[O, I]; scale, bias: [O]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = rounded(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        return linear_int8(input, self.weight, self.scale, self.bias)


def to_int8(lm: Any, name: str) -> None:
    """Rounds the linear layers of a language model, in place; not its head.

    Raises:
        InputError: the model, called `name`, is not in bfloat16 or not of the Llama layout.
    """
    from mm.decoders.layout import LAYOUTS, fits

    if lm.dtype != torch.bfloat16:
        kept = str(lm.dtype).removeprefix("torch.")
        raise InputError(f'int8: {name} is in {kept}; weights of 8 bits go with dtype="bfloat16"')
    if not fits(lm):
        raise InputError(
            f"int8: expected a decoder of the layout of {', '.join(LAYOUTS)}; that of {name} is {lm.config.model_type}"
        )
    for module in lm.model.layers.modules():
        for child, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, child, Int8Linear(layer))


def is_int8(lm: Any) -> bool:
    """Whether `to_int8` was here; it takes all layers or none."""
    layers = getattr(getattr(lm, "model", None), "layers", None)
    return bool(layers) and any(isinstance(part, Int8Linear) for part in layers[0].modules())


def check_whole(lm: Any) -> None:
    """Raises an InputError for a model whose weights were rounded: it is not to be written."""
    if is_int8(lm):
        raise InputError("the decoder's weights are rounded to 8 bits; load the model without int8")
