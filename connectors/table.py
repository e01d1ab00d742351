"""All connectors by name."""

from __future__ import annotations

import inspect
from typing import Any

from mm.connectors.abstractor import CAbstractor
from mm.connectors.base import Connector, Grid
from mm.connectors.keys import nearest
from mm.connectors.ldp import LDP, LDPv2
from mm.connectors.pixel_shuffle import InternVLProjector, PixelShuffle
from mm.connectors.pooling import AveragePool
from mm.connectors.projections import MLP, Linear, LinearCompression
from mm.connectors.qformer import QFormer
from mm.connectors.regions import Regions
from mm.connectors.resampler import PerceiverResampler, Resampler

CONNECTORS: dict[str, type[Connector]] = {
    "linear": Linear,
    "mlp": MLP,
    "mlp2x_gelu": MLP,
    "mlp3x_gelu": MLP,
    "mlp4x_gelu": MLP,
    "compression": LinearCompression,
    "pool": AveragePool,
    "pixel-shuffle": PixelShuffle,
    "internvl": InternVLProjector,
    "resampler": Resampler,
    "perceiver": PerceiverResampler,
    "q-former": QFormer,
    "c-abstractor": CAbstractor,
    "ldp": LDP,
    "ldpv2": LDPv2,
    "regions": Regions,
}

# What a name says beyond its class.
SETTINGS: dict[str, dict[str, int]] = {
    "mlp2x_gelu": {"depth": 2},
    "mlp3x_gelu": {"depth": 3},
    "mlp4x_gelu": {"depth": 4},
}


def build(name: str, d_in: int, d_out: int, grid: Grid | None = None, **settings: Any) -> Connector:
    """The connector of this name between two widths, with random weights.

    grid: (h, w) of the tokens that will come in, for connectors whose weights are made for one grid; others ignore it.
    settings: keyword arguments of the class.

    Raises:
        ValueError: unknown name or setting, or a grid is needed and not given.
    """
    if name not in CONNECTORS:
        raise ValueError(f"unknown connector {name!r}; known: {', '.join(CONNECTORS)}.{nearest(name, CONNECTORS)}")
    kind = CONNECTORS[name]
    fixed = SETTINGS.get(name, {})
    taken = inspect.signature(kind).parameters
    free = [each for each in taken if each not in ("d_in", "d_out", "grid", *fixed)]
    for setting in settings:
        if setting not in free:
            known = f"its settings: {', '.join(free) or 'none'}"
            raise ValueError(f"connector {name!r} has no setting {setting!r}; {known}.{nearest(setting, free)}")
    if "grid" in taken and grid is not None:
        settings["grid"] = grid
    elif "grid" in taken and taken["grid"].default is inspect.Parameter.empty:
        raise ValueError(
            f"connector {name!r} is made for one grid: expected grid=(h, w) of the encoder's tokens, got None"
        )
    return kind(d_in, d_out, **fixed, **settings)
