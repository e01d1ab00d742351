"""Published connector weights by the names of ours: pure functions over declared tables of keys.

Each takes the tensors of a checkpoint, of the connector alone or of the whole model, and returns the connector's under
our keys, ready for a strict `load_state_dict`. Keys of other parts are left alone; within the connector every key is
accounted for, and a missing or unknown one raises `ValueError`.

In a table, `*` stands for `weight` and for `bias`; `{i}` for every layer up to the highest number that occurs;
`{some}` for the numbers that occur, where only some layers have the part.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """One published spelling.

    prefixes: where the connector lies in a checkpoint, one of these. parts: what its keys begin with after the prefix,
    for connectors that share the prefix with other parts. optional: entries that some checkpoints lack. first: the
    number of the first layer.
    """

    name: str
    prefixes: tuple[str, ...]
    table: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ("",)
    first: int = 0


_PROJECTOR = ("mm_projector.", "model.mm_projector.")
_HF_PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")
_HF_CONNECTOR = ("connector.", "model.connector.")
_HF_RESAMPLER = ("perceiver_resampler.", "model.perceiver_resampler.")

LLAVA_LINEAR = Layout("LLaVA, linear", _PROJECTOR, {"*": "proj.*"})
LLAVA = Layout(
    "LLaVA, original",
    _PROJECTOR,
    {"0.*": "linear_1.*", "2.*": "linear_2.*"},
    {"4.*": "linear_3.*", "6.*": "linear_4.*"},
)
LLAVA_HF = Layout("LLaVA, transformers", _HF_PROJECTOR, {"linear_1.*": "linear_1.*", "linear_2.*": "linear_2.*"})
IDEFICS2 = Layout(
    "Idefics2",
    _HF_CONNECTOR,
    {
        "modality_projection.gate_proj.weight": "widen.gate.weight",
        "modality_projection.up_proj.weight": "widen.up.weight",
        "modality_projection.down_proj.weight": "widen.down.weight",
        "perceiver_resampler.latents": "latents",
        "perceiver_resampler.layers.{i}.input_context_norm.weight": "layers.{i}.norm_tokens.weight",
        "perceiver_resampler.layers.{i}.input_latents_norm.weight": "layers.{i}.norm_latents.weight",
        "perceiver_resampler.layers.{i}.self_attn.q_proj.weight": "layers.{i}.q.weight",
        "perceiver_resampler.layers.{i}.self_attn.k_proj.weight": "layers.{i}.k.weight",
        "perceiver_resampler.layers.{i}.self_attn.v_proj.weight": "layers.{i}.v.weight",
        "perceiver_resampler.layers.{i}.self_attn.o_proj.weight": "layers.{i}.o.weight",
        "perceiver_resampler.layers.{i}.post_attention_layernorm.weight": "layers.{i}.norm.weight",
        "perceiver_resampler.layers.{i}.mlp.gate_proj.weight": "layers.{i}.mlp.gate.weight",
        "perceiver_resampler.layers.{i}.mlp.up_proj.weight": "layers.{i}.mlp.up.weight",
        "perceiver_resampler.layers.{i}.mlp.down_proj.weight": "layers.{i}.mlp.down.weight",
        "perceiver_resampler.norm.weight": "norm.weight",
    },
)
IDEFICS = Layout(
    "Idefics",
    _HF_RESAMPLER,
    {
        "latents": "latents",
        "blocks.{i}.0.context_layer_norm.*": "layers.{i}.norm_tokens.*",
        "blocks.{i}.0.latents_layer_norm.*": "layers.{i}.norm_latents.*",
        "blocks.{i}.0.q_proj.weight": "layers.{i}.q.weight",
        "blocks.{i}.0.k_proj.weight": "layers.{i}.k.weight",
        "blocks.{i}.0.v_proj.weight": "layers.{i}.v.weight",
        "blocks.{i}.0.output_proj.weight": "layers.{i}.o.weight",
        "blocks.{i}.1.ln.*": "layers.{i}.norm.*",
        "blocks.{i}.1.fc.weight": "layers.{i}.up.weight",
        "blocks.{i}.1.c_proj.weight": "layers.{i}.down.weight",
        "layer_norm.*": "norm.*",
    },
    {
        "blocks.{i}.0.q_layer_norm.*": "layers.{i}.norm_q.*",
        "blocks.{i}.0.k_layer_norm.*": "layers.{i}.norm_k.*",
    },
)
OPEN_FLAMINGO = Layout(
    "OpenFlamingo",
    ("perceiver.",),
    {
        "latents": "latents",
        "layers.{i}.0.norm_media.*": "layers.{i}.norm_tokens.*",
        "layers.{i}.0.norm_latents.*": "layers.{i}.norm_latents.*",
        "layers.{i}.0.to_q.weight": "layers.{i}.q.weight",
        "layers.{i}.0.to_kv.weight": "layers.{i}.kv.weight",
        "layers.{i}.0.to_out.weight": "layers.{i}.o.weight",
        "layers.{i}.1.0.*": "layers.{i}.norm.*",
        "layers.{i}.1.1.weight": "layers.{i}.up.weight",
        "layers.{i}.1.3.weight": "layers.{i}.down.weight",
        "norm.*": "norm.*",
    },
)
BLIP2 = Layout(
    "BLIP-2",
    ("", "model."),
    {
        "query_tokens": "queries",
        "qformer.layernorm.*": "norm.*",
        "qformer.encoder.layer.{i}.attention.attention.query.*": "layers.{i}.attention.q.*",
        "qformer.encoder.layer.{i}.attention.attention.key.*": "layers.{i}.attention.k.*",
        "qformer.encoder.layer.{i}.attention.attention.value.*": "layers.{i}.attention.v.*",
        "qformer.encoder.layer.{i}.attention.output.dense.*": "layers.{i}.attention.o.*",
        "qformer.encoder.layer.{i}.attention.output.LayerNorm.*": "layers.{i}.attention.norm.*",
        "qformer.encoder.layer.{some}.crossattention.attention.query.*": "layers.{some}.cross.q.*",
        "qformer.encoder.layer.{some}.crossattention.attention.key.*": "layers.{some}.cross.k.*",
        "qformer.encoder.layer.{some}.crossattention.attention.value.*": "layers.{some}.cross.v.*",
        "qformer.encoder.layer.{some}.crossattention.output.dense.*": "layers.{some}.cross.o.*",
        "qformer.encoder.layer.{some}.crossattention.output.LayerNorm.*": "layers.{some}.cross.norm.*",
        "qformer.encoder.layer.{i}.intermediate_query.dense.*": "layers.{i}.feed.up.*",
        "qformer.encoder.layer.{i}.output_query.dense.*": "layers.{i}.feed.down.*",
        "qformer.encoder.layer.{i}.output_query.LayerNorm.*": "layers.{i}.feed.norm.*",
        "language_projection.*": "proj.*",
    },
    parts=("query_tokens", "qformer.", "language_projection."),
)
IDEFICS3 = Layout("Idefics3", _HF_CONNECTOR, {"modality_projection.proj.weight": "proj.weight"})
INTERNVL = Layout("InternVL, original", ("mlp1.",), {"0.*": "norm.*", "1.*": "linear_1.*", "3.*": "linear_2.*"})
INTERNVL_HF = Layout(
    "InternVL, transformers",
    _HF_PROJECTOR,
    {"layer_norm.*": "norm.*", "linear_1.*": "linear_1.*", "linear_2.*": "linear_2.*"},
)
_REGNET_BLOCK = ("conv1.conv.weight", "conv1.bn.*", "conv2.conv.weight", "conv2.bn.*", "se.fc1.*", "se.fc2.*")
_REGNET_BLOCK += ("conv3.conv.weight", "conv3.bn.*")
HONEYBEE = Layout(
    "Honeybee, C-Abstractor",
    ("abstractor.", "model.abstractor."),
    {f"net.0.b{{i}}.{part}": f"before.b{{i}}.{part}" for part in _REGNET_BLOCK}
    | {f"net.2.b{{i}}.{part}": f"after.b{{i}}.{part}" for part in _REGNET_BLOCK}
    | {"readout.0.*": "readout.0.*"},
    {
        "net.0.b1.downsample.conv.weight": "before.b1.downsample.conv.weight",
        "net.0.b1.downsample.bn.*": "before.b1.downsample.bn.*",
        "readout.2.*": "readout.2.*",
        "pos_emb": "positions",
        "eos_tokens": "ends",
        "prenorm.*": "prenorm.*",
    },
    first=1,
)
_MOBILE_BLOCK = {"0.0.weight": "depthwise.weight", "0.1.*": "norm_1.*", "1.fc1.*": "squeeze.*", "1.fc2.*": "excite.*"}
_MOBILE_BLOCK |= {"2.0.weight": "pointwise.weight", "2.1.*": "norm_2.*"}
MOBILEVLM = Layout(
    "MobileVLM, LDP",
    _PROJECTOR,
    {"model.mlp.1.*": "mlp.linear_1.*", "model.mlp.3.*": "mlp.linear_2.*"}
    | {f"model.mb_block.1.block.{theirs}": f"keep.{ours}" for theirs, ours in _MOBILE_BLOCK.items()}
    | {f"model.mb_block.2.block.{theirs}": f"halve.{ours}" for theirs, ours in _MOBILE_BLOCK.items()},
)
MOBILEVLM_V2 = Layout(
    "MobileVLM V2, LDPv2",
    _PROJECTOR,
    {"mlp.mlp.0.*": "mlp.linear_1.*", "mlp.mlp.2.*": "mlp.linear_2.*", "peg.peg.0.*": "place.*"},
)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: ' Did you mean "x"?' for the closest of `known`, or '' where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def convert(tensors: Mapping[str, Tensor], *layouts: Layout) -> dict[str, Tensor]:
    """The connector's tensors under our keys, by the one of these layouts whose prefix is there.

    Raises:
        ValueError: no layout's prefix, or more than one; a key missing or unknown behind it.
    """
    found = [(at, prefix, keys) for at in layouts for prefix in at.prefixes if (keys := _owned(tensors, at, prefix))]
    if len(found) != 1:
        places = " or ".join(prefix + part for at in layouts for prefix in at.prefixes for part in at.parts)
        got = ", ".join(prefix + keys[0] for _, prefix, keys in found) or ", ".join(sorted(tensors)[:3]) or "no tensors"
        raise ValueError(f"{layouts[0].name}: expected one connector with keys that begin with {places}; got {got}")
    layout, prefix, keys = found[0]
    needed = _expand(layout.table, keys, layout.first)
    names = needed | _expand(layout.optional, keys, layout.first)
    unknown = sorted(set(keys) - names.keys())
    missing = sorted(needed.keys() - set(keys))
    if missing or unknown:
        counts = f"missing keys: {len(missing)}, unknown keys: {len(unknown)}"
        named = "missing " + prefix + missing[0] if missing else "unknown " + prefix + unknown[0]
        hint = nearest(unknown[0], missing or names) if unknown else ""
        raise ValueError(f"{layout.name}: {counts}; first {named}.{hint}")
    return {names[key]: tensors[prefix + key] for key in keys}


def _owned(tensors: Mapping[str, Tensor], layout: Layout, prefix: str) -> list[str]:
    """The keys of the connector, without the prefix."""
    starts = tuple(prefix + part for part in layout.parts)
    return sorted(key[len(prefix) :] for key in tensors if key.startswith(starts))


def _expand(table: Mapping[str, str], keys: list[str], first: int) -> dict[str, str]:
    """{their key: our key}, with the numbers that occur in `keys`."""
    patterns = {theirs: _pattern(theirs) for theirs in table}
    seen: dict[str, set[int]] = {"{i}": set(), "{some}": set()}
    for theirs, pattern in patterns.items():
        for mark in (mark for mark in seen if mark in theirs):
            seen[mark] |= {int(match[1]) for key in keys if (match := pattern.fullmatch(key))}
    # A number beyond the count of keys cannot belong to layers that are all there.
    highest = min(max(seen["{i}"], default=first), len(keys))
    numbers = {"{i}": range(first, highest + 1), "{some}": sorted(seen["{some}"])}
    expanded = {}
    for theirs, ours in table.items():
        mark = next((mark for mark in numbers if mark in theirs), "")
        for number in numbers.get(mark, ("",)):
            for leaf in ("weight", "bias") if "*" in theirs else ("",):
                their_key, our_key = (
                    name.replace("*", leaf).replace(mark, str(number)) if mark else name.replace("*", leaf)
                    for name in (theirs, ours)
                )
                expanded[their_key] = our_key
    return expanded


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\*", "(?:weight|bias)")
    return re.compile(text.replace(r"\{i\}", "([0-9]{1,6})").replace(r"\{some\}", "([0-9]{1,6})"))


def llava_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LLaVA's single matrix, for `Linear`."""
    return convert(tensors, LLAVA_LINEAR)


def llava(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projector of LLaVA-1.5 and later, in the spelling of its authors or of transformers, for `MLP`."""
    return convert(tensors, LLAVA, LLAVA_HF)


def idefics(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The resampler of the first Idefics, for `Resampler(activation="relu")` with d_out = d_in."""
    return convert(tensors, IDEFICS)


def open_flamingo(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The resampler of OpenFlamingo, for `Resampler` with d_out = d_in. Keys and values lie there in one matrix."""
    converted = convert(tensors, OPEN_FLAMINGO)
    for key in [key for key in converted if key.endswith(".kv.weight")]:
        k, v = converted.pop(key).chunk(2)
        converted |= {key.replace(".kv.", ".k."): k, key.replace(".kv.", ".v."): v}
    return converted


def idefics2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gated MLP and the resampler of Idefics2, for `PerceiverResampler`."""
    return convert(tensors, IDEFICS2)


def blip2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, Q-Former and language projection of a BLIP-2 with a decoder, for `QFormer`."""
    return convert(tensors, BLIP2)


def idefics3(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrix of Idefics3 and SmolVLM, for `PixelShuffle`."""
    return convert(tensors, IDEFICS3)


def internvl(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projector of InternVL, in the spelling of its authors or of transformers, for `InternVLProjector`."""
    return convert(tensors, INTERNVL, INTERNVL_HF)


def honeybee(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Honeybee's C-Abstractor, for `CAbstractor`; the first release has one more position, of the class token."""
    converted = convert(tensors, HONEYBEE)
    positions = converted.get("positions")
    # Its grids are square, and no n > 1 has both n and n - 1 square.
    if positions is not None and isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1 > 0:
        converted["positions"] = positions[:, 1:]
    return converted


def mobilevlm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileVLM's projector, for `LDP`."""
    return convert(tensors, MOBILEVLM)


def mobilevlm_v2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileVLM V2's projector, for `LDPv2`."""
    return convert(tensors, MOBILEVLM_V2)
