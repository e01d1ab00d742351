"""Makes a network's linear layers quick at inference, by `kernels.linear`, with GELU where it follows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from mm.kernels.linear import Gelu, has_onednn, linear

# Blocks whose layer `fc1` is read by an activation alone -> what they call the activation.
_ACTIVATIONS = {
    "timm.layers.mlp.Mlp": "act",
    "timm.models.fastvit.ConvMlp": "act",
    "transformers.models.clip.modeling_clip.CLIPMLP": "activation_fn",
    "transformers.models.owlvit.modeling_owlvit.OwlViTMLP": "activation_fn",
    "transformers.models.siglip.modeling_siglip.SiglipMLP": "activation_fn",
    "transformers.models.siglip2.modeling_siglip2.Siglip2MLP": "activation_fn",
}
_FORMS: dict[str, Gelu] = {"GELU": "none", "GELUActivation": "none", "GELUTanh": "tanh"}


class QuickLinear(nn.Linear):
    """The same weights under the same names."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class LinearGelu(nn.Module):
    """A linear layer and its activation, under the layer's names. It is no `nn.Linear`, so what looks for those to
    adapt or to replace them passes it by."""

    form: Gelu

    def __init__(self, layer: nn.Linear | nn.Conv2d, form: Gelu) -> None:
        super().__init__()
        self.weight, self.bias, self.form = layer.weight, layer.bias, form
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.form)


class PointwiseGelu(LinearGelu):
    """The same of a convolution of single pixels, for maps whose channels lie last."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.permute(0, 2, 3, 1)
        return linear(rows, self.weight.flatten(1), self.bias, self.form).permute(0, 3, 1, 2)


def quicken(network: nn.Module) -> None:
    """Replaces layers of a tower or a language model in place; weights, their names and results stay."""
    if not has_onednn():
        return
    for block in list(network.modules()):
        for layer, activation in _pairs(block):
            _join(block, layer, activation)
    for block in list(network.modules()):
        for name, layer in list(block.named_children()):
            if type(layer) is nn.Linear:
                setattr(block, name, QuickLinear(layer))


def _pairs(block: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of a layer and of the activation that alone reads it."""
    if type(block) is nn.Sequential:
        yield from pairwise(name for name, _ in block.named_children())
    elif (kind := f"{type(block).__module__}.{type(block).__name__}") in _ACTIVATIONS:
        yield "fc1", _ACTIVATIONS[kind]


def _join(block: Any, layer: str, activation: str) -> None:
    """The layer takes over its activation, where both are of a kind that can."""
    first, form = getattr(block, layer), _form(getattr(block, activation))
    if type(first) is nn.Linear and form:
        setattr(block, layer, LinearGelu(first, form))
    elif type(first) is nn.Conv2d and type(block) is not nn.Sequential and form:  # `ConvMlp`: single pixels
        setattr(block, layer, PointwiseGelu(first, form))
    else:
        return
    setattr(block, activation, nn.Identity())


def _form(activation: nn.Module) -> Gelu | None:
    if isinstance(activation, nn.GELU):
        return "tanh" if activation.approximate == "tanh" else "none"
    return _FORMS.get(type(activation).__name__)
