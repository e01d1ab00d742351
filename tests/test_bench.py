"""The measuring itself: medians, alternation with the peer, and what a row says."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mm.bench import library, timing


def test_a_step_and_its_peer_take_turns_after_one_warm_up():
    calls: list[str] = []
    step = timing.Step("x", lambda: calls.append("ours"), peer="p", theirs=lambda: calls.append("theirs"))
    times = timing.times_of(step, turns=3)
    assert calls == ["ours", "theirs"] * 4
    assert times.ms >= 0 and times.peer_ms is not None


def test_the_ratio_is_the_median_of_what_each_turn_says(monkeypatch: pytest.MonkeyPatch):
    """A machine that becomes slower in the middle moves both medians, but no turn's ratio."""
    ours_and_theirs = [(1, 2), (1, 3), (4, 8), (4, 8), (5, 1)]
    clock = iter(np.cumsum([0, *(t for turn in ours_and_theirs for own in turn for t in (own, 0))])[:-1].tolist())
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    times = timing.times_of(timing.Step("x", int, peer="p", theirs=int), turns=5)
    assert times == timing.Times(4000, 3000, 2.0)


def test_a_cold_step_is_never_warmed_up():
    calls: list[int] = []
    assert timing.times_of(timing.Step("x", lambda: calls.append(1), cold=True), turns=2).ratio is None
    assert len(calls) == 2


def test_times_are_milliseconds():
    assert 20 <= timing.times_of(timing.Step("sleep", lambda: time.sleep(0.02)), turns=3).ms < 200


def test_the_scene_is_the_same_every_time():
    assert library.scene().shape == (240, 320, 3) and library.scene().dtype == np.uint8
    np.testing.assert_array_equal(library.scene(), library.scene())


def test_run_times_starts_and_tasks(monkeypatch: pytest.MonkeyPatch):
    for name in ("caption", "detect", "encode", "segment"):
        fake = SimpleNamespace(**{name: lambda *_, **__: None})
        monkeypatch.setitem(sys.modules, f"mm.tasks.{name}", fake)
    monkeypatch.setattr(library, "_timm_encode", lambda *_: lambda: time.sleep(0.01))
    monkeypatch.setattr(library, "_transformers_caption", lambda *_: lambda: None)
    monkeypatch.setattr(library, "COLD_TURNS", 1)
    monkeypatch.setattr(library, "_FIRST_CAPTION", "pass")
    rows = {row["step"]: row for row in library.run(repeats=2)}
    assert {"import mm", "mm --help", "first caption", "encode", "caption", "detect 5 labels"} <= rows.keys()
    assert all(set(row) == {"step", "ms", "peer", "peer_ms", "ratio"} for row in rows.values())
    assert rows["import mm"]["ms"] > 1 > rows["encode"]["ms"]
    assert rows["encode"]["peer_ms"] >= 10 and rows["encode"]["ratio"] > 1 and rows["caption"]["peer"] == ""


def test_machine_names_the_versions():
    import torch

    assert timing.machine()["torch"] == torch.__version__
