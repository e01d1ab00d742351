"""The linear layer with its activation: what torch computes, whichever way it is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from mm import quick
from mm.kernels import linear as kernel
from mm.kernels.linear import Gelu, linear
from mm.quick import LinearGelu, PointwiseGelu, QuickLinear, quicken


@pytest.fixture(autouse=True)
def worth_it_at_any_size_and_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_WORTH", 1)
    monkeypatch.setattr(quick, "has_onednn", lambda: True)


def parts(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype), torch.randn(7, shape[-1]).to(dtype), torch.randn(7).to(dtype)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: Gelu | None) -> Tensor:
    made = F.linear(x, weight, bias)
    return made if gelu is None else F.gelu(made, approximate=gelu)


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (2, 0, 5), (193, 5), (1, 577, 5)])
def test_the_two_ways_agree(shape: tuple[int, ...], gelu: Gelu | None):
    x, weight, bias = parts(shape)
    for given in (bias, None):
        assert torch.allclose(linear(x, weight, given, gelu), plain(x, weight, given, gelu), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_what_they_are(dtype: torch.dtype):
    x, weight, bias = parts((4, 5), dtype)
    made = linear(x, weight, bias, "tanh")
    assert made.dtype == dtype
    assert torch.allclose(made, plain(x, weight, bias, "tanh"), atol=0.05)


def test_rows_that_do_not_lie_side_by_side():
    x, weight, bias = parts((6, 4, 5))
    turned = x.transpose(0, 1)
    assert torch.allclose(linear(turned, weight, bias), F.linear(turned, weight, bias), atol=1e-5)


@pytest.mark.parametrize("learned", [0, 1, 2])
def test_gradients_are_those_of_torch(learned: int):
    ours, theirs = parts((3, 5)), parts((3, 5))
    for given in (ours, theirs):
        given[learned].requires_grad_()
    linear(*ours, "none").square().sum().backward()
    plain(*theirs, "none").square().sum().backward()
    mine, reference = ours[learned].grad, theirs[learned].grad
    assert mine is not None and reference is not None
    assert torch.allclose(mine, reference, atol=1e-4)


def test_autocast_decides_the_dtype():
    x, weight, bias = parts((3, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_quickened_tower_keeps_its_weights_and_results(family: str):
    small: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 32, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    tower: nn.Module = (
        CLIPVisionModel(CLIPVisionConfig(**small, hidden_act="quick_gelu")) if family == "clip"
        else SiglipVisionModel(SiglipVisionConfig(**small))
    ).eval()  # fmt: skip
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, weights = tower(pixels).pooler_output, dict(tower.named_parameters())
        quicken(tower)
        after = tower(pixels).pooler_output
    assert torch.allclose(before, after, atol=1e-5)
    assert all(weights[name] is given for name, given in tower.named_parameters())
    assert sum(isinstance(layer, QuickLinear) for layer in tower.modules()) >= 10
    forms = [layer.form for layer in tower.modules() if isinstance(layer, LinearGelu)]
    assert forms == ([] if family == "clip" else ["tanh"] * 3)  # CLIP's activation is QuickGELU; SigLIP pools by an MLP


def test_an_activation_goes_into_the_layer_before_it():
    torch.manual_seed(0)
    for activation, form in ((nn.GELU(), "none"), (nn.GELU("tanh"), "tanh"), (nn.ReLU(), None)):
        block = nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 2)).eval()
        x = torch.randn(3, 5)
        with torch.no_grad():
            before = block(x)
            quicken(block)
            assert torch.allclose(block(x), before, atol=1e-6)
        first, last = block[0], block[2]
        assert getattr(first, "form", None) == form and isinstance(first, nn.Linear) == (form is None)
        assert isinstance(block[1], nn.ReLU if form is None else nn.Identity) and isinstance(last, QuickLinear)


def test_a_fastvit_block_lets_its_first_layer_activate():
    import timm

    torch.manual_seed(0)
    tower = timm.create_model("fastvit_t8", num_classes=0).eval().to(memory_format=torch.channels_last)
    pixels = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        before = tower(pixels)
        quicken(tower)
        assert any(isinstance(layer, PointwiseGelu) for layer in tower.modules())
        assert torch.allclose(tower(pixels), before, atol=1e-4 * float(before.abs().max()))


def test_few_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(kernel, "_suits", lambda x, *_: asked.append(len(x)) or False)
    monkeypatch.setattr(kernel, "_WORTH", 100)
    x, weight, bias = parts((3, 5))
    assert torch.equal(linear(x[:2], weight, bias), F.linear(x[:2], weight, bias)) and asked == []
    linear(x, weight, bias)  # 3 x 5 x 7 products
    monkeypatch.setattr(kernel, "_LARGE", 35)
    linear(x[:1], weight, bias)
    assert asked == [3, 1]
