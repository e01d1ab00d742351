"""Every connector by one contract: it says its M, keeps rows of a batch apart, knows rows from columns, and trains."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm.connectors.base import Connector, Grid, as_map, pooled_grid
from mm.connectors.projections import MLP
from mm.connectors.resampler import PerceiverResampler
from mm.connectors.table import CONNECTORS, SETTINGS, build

TINY: dict[str, dict[str, Any]] = {
    "compression": {"out": 5},
    "resampler": {"latents": 5, "depth": 2, "heads": 2, "head_dim": 4},
    "perceiver": {"latents": 5, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 6},
    "q-former": {"queries": 5, "width": 24, "depth": 3, "heads": 3, "hidden": 40},
    "c-abstractor": {"width": 20, "depth": 1, "out": 6, "end_tokens": 1},
    "ldpv2": {"out": 6},
    "regions": {"regions": 30, "coarse": 2},  # more than there are tokens, so that some places stay empty
}
QUERIES = ["resampler", "perceiver", "q-former"]
GRID = (4, 6)
ROOT = Path(__file__).resolve().parents[1]


def tiny(name: str, grid: Grid = GRID, d_in: int = 13, d_out: int = 17) -> Connector:
    torch.manual_seed(0)
    return build(name, d_in, d_out, grid, **TINY.get(name, {})).eval()


def row_by_row(tokens: Tensor, grid: Grid) -> Tensor:
    """float[B, D, h, w], one token at a time."""
    out = torch.empty(tokens.shape[0], tokens.shape[2], *grid)
    for y in range(grid[0]):
        for x in range(grid[1]):
            out[:, :, y, x] = tokens[:, y * grid[1] + x]
    return out


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (2, 8), (6, 6)])
@pytest.mark.parametrize("name", CONNECTORS)
def test_what_comes_out_is_what_tokens_says(name: str, grid: Grid):
    connector = tiny(name, grid)
    out, (h, w) = connector(torch.randn(2, grid[0] * grid[1], 13), grid)
    assert out.shape == (2, connector.tokens(grid), 17) and h * w == connector.tokens(grid)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("name", "grid", "expected"),
    [
        ("linear", (3, 5), (3, 5)),
        ("mlp4x_gelu", (3, 5), (3, 5)),
        ("compression", (3, 5), (1, 5)),
        ("pool", (3, 5), (2, 3)),
        ("pool", (1, 1), (1, 1)),
        ("pixel-shuffle", (2, 6), (1, 3)),
        ("resampler", (3, 5), (1, 5)),
        ("perceiver", (1, 1), (1, 5)),
        ("q-former", (3, 5), (1, 5)),
        ("c-abstractor", (3, 5), (1, 4)),
        ("ldp", (3, 5), (2, 3)),
        ("ldpv2", (3, 5), (1, 3)),
        ("regions", (3, 5), (1, 34)),
    ],
)
def test_the_grid_that_comes_out(name: str, grid: Grid, expected: Grid):
    connector = tiny(name, grid)
    assert connector(torch.randn(1, grid[0] * grid[1], 13), grid)[1] == expected


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_row_alone_equals_the_row_in_a_batch(name: str):
    connector, tokens = tiny(name), torch.randn(3, 24, 13)
    together, _ = connector(tokens, GRID)
    for i in range(3):
        torch.testing.assert_close(connector(tokens[i : i + 1], GRID)[0], together[i : i + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONNECTORS)
def test_memory_layout_does_not_matter(name: str):
    connector, map_ = tiny(name), torch.randn(2, 13, 24)
    strided = map_.transpose(1, 2)
    assert not strided.is_contiguous()
    torch.testing.assert_close(connector(strided, GRID)[0], connector(strided.contiguous(), GRID)[0])


@pytest.mark.parametrize("name", CONNECTORS)
def test_half_precision_stays_half_and_near(name: str):
    connector, tokens = tiny(name), torch.randn(2, 24, 13)
    full, _ = connector(tokens, GRID)
    half, _ = connector.bfloat16()(tokens.bfloat16(), GRID)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("name", CONNECTORS)
def test_one_backward_reaches_every_parameter_and_the_tokens(name: str):
    connector = tiny(name).train()
    tokens = torch.randn(2, 24, 13, requires_grad=True)
    out, _ = connector(tokens, GRID)
    (out * torch.randn_like(out)).sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().max() > 0
    for key, parameter in connector.named_parameters():
        if not parameter.requires_grad:  # how `regions` finds things is taught elsewhere
            continue
        # A bias of the keys adds the same to every score of a query: softmax cancels it, its gradient is rounding.
        if not key.endswith(".k.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, key


@pytest.mark.parametrize("name", CONNECTORS)
def test_tokens_of_another_shape_are_refused(name: str):
    connector = tiny(name)
    with pytest.raises(ValueError, match=r"expected tokens of shape \[batch, 24, 13\] .* 4 x 6, got \[1, 25, 13\]"):
        connector(torch.randn(1, 25, 13), GRID)
    with pytest.raises(ValueError, match=r"got \[1, 24, 12\]"):
        connector(torch.randn(1, 24, 12), GRID)


@pytest.mark.parametrize(
    ("name", "factor"), [("linear", 1), ("mlp", 1), ("pool", 2), ("pixel-shuffle", 2), ("internvl", 2)]
)
def test_a_token_moves_only_the_output_at_its_place(name: str, factor: int):
    connector, tokens = tiny(name), torch.randn(1, 24, 13)
    before, (_, w) = connector(tokens, GRID)
    for y, x in [(0, 5), (3, 0), (2, 3)]:
        changed = tokens.clone()
        changed[0, y * 6 + x] += 1
        moved = (connector(changed, GRID)[0] - before).abs().amax(-1)[0].nonzero().flatten()
        assert moved.tolist() == [(y // factor) * w + x // factor]


def test_ldpv2_moves_the_neighbours_of_a_token_on_a_grid_that_is_no_square():
    connector, tokens = build("ldpv2", 13, 17, out=GRID).eval(), torch.randn(1, 24, 13)
    changed = tokens.clone()
    changed[0, 1 * 6 + 5] += 1
    moved = (connector(changed, GRID)[0] - connector(tokens, GRID)[0]).abs().amax(-1)[0].nonzero().flatten()
    assert moved.tolist() == [y * 6 + x for y in (0, 1, 2) for x in (4, 5)]


@pytest.mark.parametrize("name", QUERIES)
def test_queries_do_not_mind_the_order_of_tokens_or_the_shape_of_the_grid(name: str):
    connector, tokens = tiny(name), torch.randn(2, 24, 13)
    out, _ = connector(tokens, GRID)
    shuffled, _ = connector(tokens[:, torch.randperm(24)], (2, 12))
    torch.testing.assert_close(shuffled, out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", QUERIES)
def test_queries_differ_from_the_start(name: str):
    out, _ = tiny(name)(torch.randn(1, 24, 13), GRID)
    assert torch.pdist(out[0]).min() > 1e-3


def test_the_abstractor_reads_a_map_that_is_no_square_by_rows():
    connector = build("c-abstractor", 13, 17, width=20, depth=1, out=(2, 3)).eval()
    tokens = torch.randn(2, 24, 13)
    out, grid = connector(tokens, GRID)
    before = connector.get_submodule("before")(row_by_row(tokens, GRID))
    pooled = before.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5))
    after = connector.get_submodule("after")(pooled)
    expected = torch.stack(
        [connector.get_submodule("readout")(after[:, :, y, x]) for y in (0, 1) for x in (0, 1, 2)], 1
    )
    assert grid == (2, 3)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_the_abstractor_ends_with_its_learned_tokens_and_adds_its_positions():
    connector, tokens = tiny("c-abstractor"), torch.randn(2, 24, 13)
    out, grid = connector(tokens, GRID)
    assert grid == (1, 7) and torch.equal(out[:, -1], connector.get_parameter("ends")[0].expand(2, -1))
    positions = connector.get_parameter("positions").clone()
    connector.get_parameter("positions").data.zero_()
    torch.testing.assert_close(connector(tokens + positions, GRID)[0], out, atol=1e-5, rtol=1e-5)


def test_pool_averages_the_tokens_that_are_there():
    connector = build("pool", 4, 4)
    connector.load_state_dict({"proj.weight": torch.eye(4), "proj.bias": torch.zeros(4)})
    map_ = torch.randn(1, 4, 3, 5)
    out, grid = connector(map_.flatten(2).mT, (3, 5))
    assert grid == (2, 3)
    torch.testing.assert_close(out[0, 0], map_[0, :, :2, :2].mean((1, 2)))
    torch.testing.assert_close(out[0, 2], map_[0, :, :2, 4].mean(1))
    torch.testing.assert_close(out[0, 5], map_[0, :, 2, 4])


def test_compression_mixes_tokens_and_then_channels():
    connector, tokens = tiny("compression"), torch.randn(2, 24, 13)
    weight, bias, mix = (connector.get_parameter(key) for key in ("proj.weight", "proj.bias", "mix"))
    expected = torch.einsum("mn,bnd,ed->bme", mix, tokens, weight) + bias
    torch.testing.assert_close(connector(tokens, GRID)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("compression", "LinearCompression"), ("c-abstractor", "CAbstractor")])
def test_a_connector_made_for_one_grid_refuses_its_transpose(name: str, kind: str):
    connector = tiny(name)
    message = rf"{kind}: built for a grid of 4 x 6 \(24 tokens\), got 6 x 4 \(24 tokens\)"
    with pytest.raises(ValueError, match=message):
        connector.tokens((6, 4))
    with pytest.raises(ValueError, match=message):
        connector(torch.randn(1, 24, 13), (6, 4))


@pytest.mark.parametrize("name", ["pixel-shuffle", "internvl"])
@pytest.mark.parametrize("grid", [(3, 8), (8, 3), (4, 9)])
def test_pixel_shuffle_refuses_a_side_it_does_not_divide(name: str, grid: Grid):
    with pytest.raises(ValueError, match=f"sides divisible by 2, got {grid[0]} x {grid[1]}"):
        tiny(name).tokens(grid)


def test_pixel_shuffle_orders_channels_by_row_column_channel():
    connector = build("pixel-shuffle", 2, 18, factor=3)
    connector.get_parameter("proj.weight").data = torch.eye(18)
    map_ = torch.arange(2.0 * 3 * 6).reshape(1, 2, 3, 6)
    out, grid = connector(map_.flatten(2).mT, (3, 6))
    assert grid == (1, 2)
    for x in (0, 1):
        block = map_[0, :, :, 3 * x : 3 * x + 3]
        assert torch.equal(out[0, x], torch.stack([block[:, dy, dx] for dy in range(3) for dx in range(3)]).flatten())


@pytest.mark.parametrize(
    ("out", "grid", "expected"),
    [
        (144, (24, 24), (12, 12)),
        (144, (27, 27), (12, 12)),
        (144, (16, 32), (8, 16)),
        (144, (32, 16), (16, 8)),
        (144, (8, 8), (8, 8)),
        (10, (2, 50), (1, 10)),
        (1, (7, 3), (1, 1)),
        (6, (3, 5), (1, 3)),
        ((5, 2), (24, 24), (5, 2)),
    ],
)
def test_a_number_of_tokens_keeps_the_proportions_and_is_never_exceeded(out: Grid | int, grid: Grid, expected: Grid):
    assert pooled_grid(out, grid) == expected


def test_as_map_lies_row_by_row():
    tokens = torch.randn(2, 15, 3)
    assert torch.equal(as_map(tokens, (3, 5)), row_by_row(tokens, (3, 5)))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_mlp_has_a_gelu_between_each_two_matrices(depth: int):
    connector, tokens = MLP(13, 17, depth=depth), torch.randn(2, 24, 13)
    expected = tokens
    for i in range(1, depth + 1):
        weight, bias = connector.get_parameter(f"linear_{i}.weight"), connector.get_parameter(f"linear_{i}.bias")
        expected = expected @ weight.mT + bias
        expected = expected * (1 + torch.erf(expected / 2**0.5)) / 2 if i < depth else expected
    torch.testing.assert_close(connector(tokens, GRID)[0], expected, atol=1e-5, rtol=1e-5)


def test_names_with_a_number_mean_that_depth():
    for name, settings in SETTINGS.items():
        assert f"mlp{settings['depth']}x_gelu" == name
        assert len(build(name, 3, 5).state_dict()) == 2 * settings["depth"]


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_connector_names_its_source_and_its_m(name: str):
    text = CONNECTORS[name].__doc__ or ""
    assert "M = " in text or "M is" in text
    assert "20" in text


def test_a_wrong_name_or_setting_gets_the_nearest_one():
    with pytest.raises(ValueError, match="unknown connector 'qformer'; known: linear, .* Did you mean \"q-former\""):
        build("qformer", 3, 5)
    with pytest.raises(ValueError, match="'perceiver' has no setting 'latent'; its .* Did you mean \"latents\""):
        build("perceiver", 3, 5, latent=4)
    with pytest.raises(ValueError, match="'mlp4x_gelu' has no setting 'depth'; its settings: none"):
        build("mlp4x_gelu", 3, 5, depth=2)
    with pytest.raises(ValueError, match="'compression' is made for one grid: expected grid="):
        build("compression", 3, 5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pool", {"window": 0}, "AveragePool: expected window of at least 1, got 0"),
        ("ldpv2", {"out": (3, 0)}, r"LDPv2: expected out of at least 1, got \(3, 0\)"),
        ("perceiver", {"heads": 6, "kv_heads": 4}, "heads in groups of 4 kv_heads, got 6"),
        ("q-former", {"heads": 7}, "width divisible by its 7 heads, got 768"),
        ("resampler", {"activation": "swish"}, "unknown activation 'swish'; known: gelu, relu, squared_relu"),
    ],
)
def test_settings_that_make_no_connector_are_refused(name: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(name, 3, 5, **settings)


def test_a_connector_is_known_without_loading_a_model_library():
    for path in sorted((ROOT / "connectors").glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in names}
            assert tops <= {"torch", "mm"} | sys.stdlib_module_names, path.name


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", 1024 * 4096 + 4096),
        ("mlp", 20_979_712),
        ("mlp4x_gelu", 20_979_712 + 2 * (4096 * 4096 + 4096)),
        ("pool", 1024 * 4096 + 4096),
        ("pixel-shuffle", 16_777_216),
        ("internvl", 33_570_816),
        ("ldpv2", 21_020_672),
        ("c-abstractor", 15_828_480 + 20_979_712),
        ("q-former", 101_598_720 + 32 * 768 + 768 * 4096 + 4096),
    ],
)
def test_published_sizes(name: str, expected: int):
    with torch.device("meta"):
        assert count(build(name, 1024, 4096)) == expected


def test_published_size_of_the_perceiver_without_the_mlp_before_it():
    with torch.device("meta"):
        connector = PerceiverResampler(1152, 4096, hidden=14336)
    assert count(connector.widen) == 2 * 1152 * 14336 + 14336 * 4096
    assert count(connector) - count(connector.widen) == 651_468_800


def test_published_size_of_the_mobile_blocks():
    with torch.device("meta"):
        connector = build("ldp", 1024, 2048)
    squeezed, d = 512, 2048
    block = 9 * d + 2 * d + (d * squeezed + squeezed) + (squeezed * d + d) + d * d + 2 * d
    assert count(connector) == (1024 * d + d) + (d * d + d) + 2 * block
