"""Our connectors against the reference libraries on the same random weights, through our own key tables.

Weights of whole models go through a saved folder, so that the keys are those of released files.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mm.connectors import keys
from mm.connectors.pixel_shuffle import shuffle
from mm.connectors.qformer import QFormer
from mm.connectors.resampler import PerceiverResampler
from mm.connectors.table import build

VISION: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 24, "patch_size": 4}
TEXT: dict[str, Any] = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 64, "head_dim": 10}
SAME = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
GRID = (6, 6)


def spread(module: Any) -> Any:
    """The same module with every weight random: norms, biases and latents start at 0 or 1 and would hide faults."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def saved(model: Any, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def tokens(n: int = 36, width: int = 24) -> Tensor:
    return torch.randn(3, n, width)


def test_mlp_equals_llavas_projector(tmp_path: Path):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT))
    reference = spread(LlavaForConditionalGeneration(config))
    x, connector = tokens(), build("mlp", 24, 20)
    for tensors in (saved(reference, tmp_path), reference.state_dict()):
        connector.load_state_dict(keys.llava(tensors))
        SAME(connector(x, GRID)[0], reference.model.multi_modal_projector(x))


def test_mlp_equals_the_original_spelling_of_its_depth():
    reference = spread(nn.Sequential(nn.Linear(24, 20), nn.GELU(), nn.Linear(20, 20), nn.GELU(), nn.Linear(20, 20)))
    connector = build("mlp3x_gelu", 24, 20)
    connector.load_state_dict(keys.llava({f"model.mm_projector.{k}": v for k, v in reference.state_dict().items()}))
    x = tokens()
    SAME(connector(x, GRID)[0], reference(x))


def test_perceiver_equals_idefics2(tmp_path: Path):
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration, MistralConfig

    perceiver: dict[str, Any] = {
        "resampler_n_latents": 5,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 6,
    }
    perceiver |= {"num_key_value_heads": 2, "hidden_size": 20, "rms_norm_eps": 1e-3}
    config = Idefics2Config(
        vision_config=VISION, perceiver_config=perceiver, text_config=MistralConfig(**TEXT, pad_token_id=0).to_dict()
    )
    reference = spread(Idefics2ForConditionalGeneration(config))
    sizes: dict[str, Any] = {
        "hidden": 28,
        "latents": 5,
        "depth": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 6,
        "eps": 1e-3,
    }
    connector = build("perceiver", 24, 20, **sizes).eval()
    for tensors in (saved(reference, tmp_path), reference.state_dict()):
        connector.load_state_dict(keys.idefics2(tensors))
        for grid in (GRID, (3, 7), (1, 1)):
            x = tokens(grid[0] * grid[1])
            expected = reference.model.connector(x, torch.ones(x.shape[:2], dtype=torch.long))
            SAME(connector(x, grid)[0], expected)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_resampler_equals_idefics_and_with_gelu_flamingo(qk_norm: bool, activation: str):
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=qk_norm), vision_config=SimpleNamespace(embed_dim=24)
    )
    reference = spread(IdeficsPerceiverResampler(config, 24, 2, 3, 6, 5))
    if activation == "gelu":
        for _, feed in reference.blocks:
            feed.act = nn.GELU()
    sizes: dict[str, Any] = {"latents": 5, "depth": 2, "heads": 3, "head_dim": 6}
    connector = build("resampler", 24, 24, activation=activation, qk_norm=qk_norm, **sizes).eval()
    connector.load_state_dict(
        keys.idefics({f"model.perceiver_resampler.{key}": value for key, value in reference.state_dict().items()})
    )
    for grid in (GRID, (3, 7)):
        x = tokens(grid[0] * grid[1])
        SAME(connector(x, grid)[0], reference(x))


def test_q_former_equals_blip2(tmp_path: Path):
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    qformer: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 36,
    }
    qformer |= {"encoder_hidden_size": 24, "vocab_size": 50}
    text = OPTConfig(
        hidden_size=20,
        ffn_dim=28,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        word_embed_proj_dim=20,
        max_position_embeddings=64,
    )
    vision = VISION | {"qkv_bias": True}
    config = Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text.to_dict(), num_query_tokens=5)
    reference = spread(Blip2ForConditionalGeneration(config))
    connector = build("q-former", 24, 20, queries=5, width=16, depth=3, heads=2, hidden=36).eval()
    pixels = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        features = reference.get_image_features(pixels, return_dict=True)
        hidden = reference.vision_model(pixels).last_hidden_state
    for tensors in (saved(reference, tmp_path), reference.state_dict()):
        connector.load_state_dict(keys.blip2(tensors))
        # The class token comes along, in a row with the patches.
        SAME(connector(hidden, (1, 37))[0], features.pooler_output)


def test_defaults_are_those_of_the_published_configurations():
    from transformers import Blip2Config, Blip2QFormerConfig
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig

    perceiver, qformer = Idefics2PerceiverConfig(), Blip2QFormerConfig()
    ours = {name: each.default for name, each in inspect.signature(PerceiverResampler).parameters.items()}
    assert (ours["latents"], ours["depth"]) == (perceiver.resampler_n_latents, perceiver.resampler_depth)
    assert (ours["heads"], ours["kv_heads"]) == (perceiver.resampler_n_heads, perceiver.num_key_value_heads)
    assert (ours["head_dim"], ours["eps"]) == (perceiver.resampler_head_dim, perceiver.rms_norm_eps)
    ours = {name: each.default for name, each in inspect.signature(QFormer).parameters.items()}
    assert (ours["queries"], ours["width"]) == (Blip2Config().num_query_tokens, qformer.hidden_size)
    assert (ours["depth"], ours["heads"]) == (qformer.num_hidden_layers, qformer.num_attention_heads)
    assert (ours["hidden"], ours["cross_every"]) == (qformer.intermediate_size, qformer.cross_attention_frequency)
    assert (ours["eps"], ours["dropout"]) == (qformer.layer_norm_eps, qformer.hidden_dropout_prob)


def test_pixel_shuffle_equals_idefics3(tmp_path: Path):
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    text = LlamaConfig(**TEXT, pad_token_id=0)
    config = Idefics3Config(vision_config=VISION, text_config=text.to_dict(), scale_factor=3)
    reference = spread(Idefics3ForConditionalGeneration(config))
    x, connector = tokens(), build("pixel-shuffle", 24, 20, factor=3)
    for tensors in (saved(reference, tmp_path), reference.state_dict()):
        connector.load_state_dict(keys.idefics3(tensors))
        out, grid = connector(x, GRID)
        assert grid == (2, 2)
        SAME(out, reference.model.connector(x))


def test_internvl_projector_equals_the_reference_from_the_map_on(tmp_path: Path):
    from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig

    vision = VISION | {"image_size": (24, 24), "patch_size": (4, 4)}
    config = InternVLConfig(vision_config=vision, text_config=LlamaConfig(**TEXT).to_dict())
    reference = spread(InternVLForConditionalGeneration(config))
    x, connector = tokens(), build("internvl", 24, 20)
    shuffled = reference.model.pixel_shuffle(x.reshape(3, 6, 6, 24)).flatten(1, 2)
    assert torch.equal(shuffle(x, GRID, 2), shuffled)
    for tensors in (saved(reference, tmp_path), reference.state_dict()):
        connector.load_state_dict(keys.internvl(tensors))
        out, grid = connector(x, GRID)
        assert grid == (3, 3)
        SAME(out, reference.model.multi_modal_projector(shuffled))


@pytest.mark.parametrize("grid", [(2, 6), (6, 2), (4, 10)])
def test_pixel_shuffle_of_any_grid_equals_space_to_depth(grid: tuple[int, int]):
    x = tokens(grid[0] * grid[1], 5)
    # torch gives (c, dy, dx) and the released weights want (dy, dx, c).
    unshuffled = nn.functional.pixel_unshuffle(x.mT.reshape(3, 5, *grid), 2)
    expected = unshuffled.unflatten(1, (5, 2, 2)).permute(0, 4, 5, 2, 3, 1).flatten(3).flatten(1, 2)
    assert torch.equal(shuffle(x, grid, 2), expected)


@pytest.mark.parametrize("grid", [GRID, (4, 7)])
@pytest.mark.parametrize("width", [24, 16])
def test_c_abstractor_equals_honeybees_layers(grid: tuple[int, int], width: int):
    from timm.layers.norm import LayerNorm2d
    from timm.models.regnet import RegStage

    stage = partial(RegStage, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
    net = nn.Sequential(stage(2, 24, width), nn.AdaptiveAvgPool2d((2, 3)), stage(2, width, width))
    reference = nn.ModuleDict(
        {"net": net, "readout": nn.Sequential(nn.Linear(width, 20), nn.SiLU(), nn.Linear(20, 20))}
    )
    spread(reference)
    n = grid[0] * grid[1]
    tensors = {f"abstractor.{key}": value for key, value in reference.state_dict().items()}
    tensors |= {"abstractor.pos_emb": torch.randn(1, n, 24), "abstractor.eos_tokens": torch.randn(1, 1, 20)}
    connector = build("c-abstractor", 24, 20, grid, out=(2, 3), width=width, depth=2, end_tokens=1).eval()
    connector.load_state_dict(keys.honeybee(tensors))

    x = tokens(n)
    map_ = (x + tensors["abstractor.pos_emb"]).mT.reshape(3, 24, *grid)
    expected = reference["readout"](net(map_).flatten(2).mT)
    out, out_grid = connector(x, grid)
    assert out_grid == (1, 7)
    SAME(out[:, :6], expected)
    SAME(out[:, 6:], tensors["abstractor.eos_tokens"].expand(3, -1, -1))


@pytest.mark.parametrize("grid", [GRID, (3, 7), (1, 2)])
@pytest.mark.parametrize("width", [16, 40, 176])
def test_ldp_equals_mobilenets_blocks(grid: tuple[int, int], width: int):
    from timm.layers.norm_act import LayerNormAct2d
    from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
    from torchvision.ops.misc import SqueezeExcitation

    norm = partial(LayerNormAct2d, act_layer=None)
    squeeze = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)

    def block(stride: int) -> nn.Module:
        return InvertedResidual(InvertedResidualConfig(width, 3, width, width, True, "HS", stride, 1, 1), norm, squeeze)

    mlp = nn.Sequential(nn.Identity(), nn.Linear(24, width), nn.GELU(), nn.Linear(width, width))
    blocks = nn.Sequential(nn.Identity(), block(1), block(2))
    reference = spread(nn.ModuleDict({"mlp": mlp, "mb_block": blocks}))
    connector = build("ldp", 24, width).eval()
    connector.load_state_dict(
        keys.mobilevlm({f"model.mm_projector.model.{key}": value for key, value in reference.state_dict().items()})
    )
    x = tokens(grid[0] * grid[1])
    expected = blocks(mlp(x).mT.reshape(3, width, *grid))
    out, out_grid = connector(x, grid)
    assert out_grid == tuple(expected.shape[2:])
    SAME(out, expected.flatten(2).mT)


@pytest.mark.parametrize(("grid", "out"), [((24, 24), (12, 12)), ((5, 9), (2, 3))])
def test_ldpv2_equals_its_published_layers(grid: tuple[int, int], out: tuple[int, int]):
    mlp = spread(nn.Sequential(nn.Linear(24, 20), nn.GELU(), nn.Linear(20, 20)))
    place = spread(nn.Conv2d(20, 20, 3, 1, 1, groups=20))
    tensors = {f"model.mm_projector.mlp.mlp.{key}": value for key, value in mlp.state_dict().items()}
    tensors |= {f"model.mm_projector.peg.peg.0.{key}": value for key, value in place.state_dict().items()}
    connector = build("ldpv2", 24, 20, out=144 if grid == (24, 24) else out).eval()
    connector.load_state_dict(keys.mobilevlm_v2(tensors))
    x = tokens(grid[0] * grid[1])
    pooled = nn.AdaptiveAvgPool2d(out)(mlp(x).mT.reshape(3, 20, *grid))
    answer, answer_grid = connector(x, grid)
    assert answer_grid == out
    SAME(answer, (place(pooled) + pooled).flatten(2).mT)
