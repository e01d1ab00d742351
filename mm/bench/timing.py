"""How things are timed: ours and the peer's in turns."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Step:
    """One thing that is timed, with its peer where there is one. `cold` steps start a process each time."""

    name: str
    ours: Callable[[], Any]
    cold: bool = False
    peer: str = ""
    theirs: Callable[[], Any] | None = None


def machine() -> dict[str, str]:
    """What a time depends on beside the code."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


@dataclass(frozen=True)
class Times:
    """Medians in milliseconds. ratio: the median of what each turn says, peer / ours, which a machine whose speed
    drifts from turn to turn hardly moves; without a peer there is none."""

    ms: float
    peer_ms: float | None = None
    ratio: float | None = None


def times_of(step: Step, turns: int) -> Times:
    """A step and its peer in alternation; a warm step runs once untimed."""
    calls = [call for call in (step.ours, step.theirs) if call is not None]
    times: list[list[float]] = [[] for _ in calls]
    if not step.cold:
        for call in calls:
            call()
    for _ in range(turns):
        for kept, call in zip(times, calls, strict=True):
            begin = time.perf_counter()
            call()
            kept.append((time.perf_counter() - begin) * 1000)
    if step.theirs is None:
        return Times(statistics.median(times[0]))
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*times, strict=True))
    return Times(statistics.median(times[0]), statistics.median(times[1]), ratio)
