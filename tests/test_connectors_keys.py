"""Published keys become ours, all of them or an error: what is missing, unknown or there twice is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mm.connectors import keys
from mm.connectors.base import Connector
from mm.connectors.projections import MLP, Linear
from mm.connectors.resampler import Resampler
from mm.connectors.table import build

LLAVA = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (8, 8), "2.bias": (8,)}
HF = {"linear_1.weight": (8, 6), "linear_1.bias": (8,), "linear_2.weight": (8, 8), "linear_2.bias": (8,)}
OTHER = {"model.layers.0.self_attn.q_proj.weight": torch.ones(3), "vision_tower.layernorm.bias": torch.ones(2)}


def spelled(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {prefix + key: torch.randn(shape) for key, shape in shapes.items()} | OTHER


@pytest.mark.parametrize(
    ("prefix", "shapes"),
    [
        ("mm_projector.", LLAVA),
        ("model.mm_projector.", LLAVA),
        ("multi_modal_projector.", HF),
        ("model.multi_modal_projector.", HF),
    ],
)
def test_llava_in_every_spelling(prefix: str, shapes: dict[str, tuple[int, ...]]):
    tensors = spelled(prefix, shapes)
    before = dict(tensors)
    converted = keys.llava(tensors)
    MLP(6, 8).load_state_dict(converted)
    for theirs, ours in zip(shapes, HF, strict=True):
        assert converted[ours] is tensors[prefix + theirs]
    assert tensors == before


def test_llava_with_four_matrices():
    shapes = LLAVA | {"4.weight": (8, 8), "4.bias": (8,), "6.weight": (8, 8), "6.bias": (8,)}
    MLP(6, 8, depth=4).load_state_dict(keys.llava(spelled("model.mm_projector.", shapes)))


def test_llava_with_one_matrix():
    tensors = spelled("model.mm_projector.", {"weight": (8, 6), "bias": (8,)})
    Linear(6, 8).load_state_dict(keys.llava_linear(tensors))


def test_a_missing_key_is_named():
    tensors = spelled("mm_projector.", LLAVA)
    del tensors["mm_projector.2.bias"]
    with pytest.raises(
        ValueError, match="LLaVA, original: missing keys: 1, unknown keys: 0; first missing mm_projector.2.bias"
    ):
        keys.llava(tensors)


def test_an_unknown_key_is_named_with_the_nearest():
    tensors = spelled("multi_modal_projector.", HF) | {"multi_modal_projector.linear_1.wight": torch.ones(1)}
    with pytest.raises(
        ValueError, match=r'unknown multi_modal_projector.linear_1.wight. Did you mean "linear_1.weight"'
    ):
        keys.llava(tensors)


def test_a_misspelled_key_is_missing_and_unknown():
    tensors = spelled("multi_modal_projector.", HF)
    tensors["multi_modal_projector.linear_3.bias"] = tensors.pop("multi_modal_projector.linear_2.bias")
    with pytest.raises(
        ValueError, match=r"missing keys: 1, unknown keys: 1; first missing .*linear_2.bias.*linear_2.bias\""
    ):
        keys.llava(tensors)


def test_two_projectors_in_one_file_are_refused():
    tensors = spelled("mm_projector.", LLAVA) | spelled("model.mm_projector.", LLAVA)
    with pytest.raises(
        ValueError, match="expected one connector .*; got mm_projector.0.bias, model.mm_projector.0.bias"
    ):
        keys.llava(tensors)


@pytest.mark.parametrize(
    "convert",
    [
        keys.llava,
        keys.llava_linear,
        keys.idefics,
        keys.open_flamingo,
        keys.idefics2,
        keys.blip2,
        keys.idefics3,
        keys.internvl,
        keys.honeybee,
        keys.mobilevlm,
        keys.mobilevlm_v2,
    ],
)
def test_a_checkpoint_without_the_connector_is_refused(convert):
    with pytest.raises(ValueError, match="expected one connector with keys that begin with .*; got model.layers.0"):
        convert(OTHER)
    with pytest.raises(ValueError, match="got no tensors"):
        convert({})


def theirs(layout: keys.Layout, connector: Connector, prefix: str) -> dict[str, Tensor]:
    """The connector's tensors under the published keys, by the layout read backwards."""
    ours = connector.state_dict()
    names = {**layout.table, **layout.optional}
    found = {}
    for their_key, our_key in names.items():
        for leaf in ("weight", "bias"):
            for i in range(10):
                key = our_key.replace("*", leaf).replace("{i}", str(i)).replace("{some}", str(i))
                if key in ours:
                    published = their_key.replace("*", leaf).replace("{i}", str(i)).replace("{some}", str(i))
                    found[prefix + published] = ours[key]
    assert len(found) == len(ours)
    return found


TINY: dict[str, Any] = {"latents": 3, "depth": 3, "heads": 2, "head_dim": 4}
PAIRS = [
    (keys.idefics, keys.IDEFICS, ("resampler", 8, 8), TINY),
    (keys.idefics, keys.IDEFICS, ("resampler", 8, 8), TINY | {"qk_norm": True}),
    (keys.idefics2, keys.IDEFICS2, ("perceiver", 6, 8), TINY | {"kv_heads": 1}),
    (keys.blip2, keys.BLIP2, ("q-former", 6, 8), {"width": 8, "heads": 2, "depth": 5, "hidden": 12}),
    (keys.idefics3, keys.IDEFICS3, ("pixel-shuffle", 6, 8), {}),
    (keys.internvl, keys.INTERNVL, ("internvl", 6, 8), {}),
    (keys.internvl, keys.INTERNVL_HF, ("internvl", 6, 8), {}),
    (keys.honeybee, keys.HONEYBEE, ("c-abstractor", 6, 8, (3, 3)), {"width": 8, "end_tokens": 1, "prenorm": True}),
    (keys.honeybee, keys.HONEYBEE, ("c-abstractor", 8, 8), {"width": 8, "depth": 2, "readout_depth": 1}),
    (keys.mobilevlm, keys.MOBILEVLM, ("ldp", 6, 8), {}),
    (keys.mobilevlm_v2, keys.MOBILEVLM_V2, ("ldpv2", 6, 8), {}),
]


@pytest.mark.parametrize(("convert", "layout", "sizes", "settings"), PAIRS)
def test_every_published_key_has_its_place_and_none_can_go(convert, layout: keys.Layout, sizes: tuple, settings: dict):
    connector = build(*sizes, **settings)
    for prefix in layout.prefixes:
        tensors = theirs(layout, connector, prefix)
        converted = convert(tensors | OTHER)
        ours = connector.state_dict()
        assert converted.keys() == ours.keys()
        assert all(torch.equal(converted[key], ours[key]) for key in ours)
        optional = {key for key in tensors if convert_without(convert, tensors, key)}
        for key in optional:
            with pytest.raises(RuntimeError, match="Missing key"):
                connector.load_state_dict(convert({k: v for k, v in tensors.items() if k != key}))


def convert_without(convert, tensors: dict[str, Tensor], key: str) -> bool:
    """Whether the conversion accepts the absence of one key."""
    try:
        convert({k: v for k, v in tensors.items() if k != key})
    except ValueError:
        return False
    return True


def test_a_whole_layer_missing_in_the_middle_is_noticed():
    tensors = theirs(keys.IDEFICS, build("resampler", 8, 8, **TINY), "perceiver_resampler.")
    without = {key: value for key, value in tensors.items() if ".blocks.1." not in key}
    with pytest.raises(
        ValueError, match=r"missing keys: 12, unknown keys: 0; first missing perceiver_resampler.blocks.1.0"
    ):
        keys.idefics(without)


def test_a_layer_number_out_of_all_proportion_is_unknown():
    tensors = theirs(keys.IDEFICS, build("resampler", 8, 8, **TINY), "perceiver_resampler.")
    with pytest.raises(ValueError, match="unknown keys: 1; "):
        keys.idefics(tensors | {"perceiver_resampler.blocks.999999.1.fc.weight": torch.ones(1)})


def test_the_fused_keys_and_values_of_open_flamingo_come_apart():
    connector = Resampler(8, 8, **TINY)
    tensors = theirs(keys.IDEFICS, connector, "")
    renamed = {
        "blocks.": "layers.",
        "0.context_layer_norm": "0.norm_media",
        "0.latents_layer_norm": "0.norm_latents",
        "0.q_proj": "0.to_q",
        "0.output_proj": "0.to_out",
        "1.ln.": "1.0.",
        "1.fc.": "1.1.",
        "1.c_proj.": "1.3.",
        "layer_norm.": "norm.",
    }
    flamingo = {}
    for key, value in tensors.items():
        for old, new in renamed.items():
            key = key.replace(old, new) if not (old == "layer_norm." and "blocks" in key) else key
        if "k_proj" in key:
            key, value = key.replace("k_proj", "to_kv"), torch.cat([value, value + 1])
        if "v_proj" not in key:
            flamingo["perceiver." + key] = value
    converted = keys.open_flamingo(flamingo)
    Resampler(8, 8, **TINY).load_state_dict(converted)
    for i in range(3):
        assert torch.equal(converted[f"layers.{i}.v.weight"], converted[f"layers.{i}.k.weight"] + 1)
        assert torch.equal(converted[f"layers.{i}.k.weight"], connector.state_dict()[f"layers.{i}.k.weight"])


@pytest.mark.parametrize(("rows", "kept"), [(9, 9), (10, 9), (576, 576), (577, 576)])
def test_honeybees_position_of_the_class_token_is_dropped(rows: int, kept: int):
    connector = build("c-abstractor", 6, 8, (rows, 1), width=8, depth=1)
    tensors = theirs(keys.HONEYBEE, connector, "abstractor.")
    converted = keys.honeybee(tensors)
    assert torch.equal(converted["positions"], tensors["abstractor.pos_emb"][:, rows - kept :])
