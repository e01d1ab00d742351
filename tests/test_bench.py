"""The measuring itself: medians, alternation with the peer, and what a row says."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mm import bench


def test_a_step_and_its_peer_take_turns_after_one_warm_up():
    calls: list[str] = []
    step = bench.Step("x", lambda: calls.append("ours"), peer="p", theirs=lambda: calls.append("theirs"))
    ours, theirs = bench.medians_ms(step, turns=3)
    assert calls == ["ours", "theirs"] * 4
    assert ours >= 0 and theirs is not None


def test_a_cold_step_is_never_warmed_up():
    calls: list[int] = []
    assert bench.medians_ms(bench.Step("x", lambda: calls.append(1), cold=True), turns=2)[1] is None
    assert len(calls) == 2


def test_times_are_milliseconds():
    ours, _ = bench.medians_ms(bench.Step("sleep", lambda: time.sleep(0.02)), turns=3)
    assert 20 <= ours < 200


def test_the_scene_is_the_same_every_time():
    assert bench.scene().shape == (240, 320, 3) and bench.scene().dtype == np.uint8
    np.testing.assert_array_equal(bench.scene(), bench.scene())


def test_run_times_starts_and_tasks(monkeypatch: pytest.MonkeyPatch):
    for name in ("caption", "detect", "encode", "segment"):
        fake = SimpleNamespace(**{name: lambda *_, **__: None})
        monkeypatch.setitem(sys.modules, f"mm.tasks.{name}", fake)
    monkeypatch.setattr(bench, "_timm_encode", lambda *_: lambda: time.sleep(0.01))
    monkeypatch.setattr(bench, "_transformers_caption", lambda *_: lambda: None)
    monkeypatch.setattr(bench, "COLD_TURNS", 1)
    monkeypatch.setattr(bench, "_FIRST_CAPTION", "pass")
    rows = {row["step"]: row for row in bench.run(repeats=2)}
    assert {"import mm", "mm --help", "first caption", "encode", "caption", "detect 5 labels"} <= rows.keys()
    assert all(set(row) == {"step", "ms", "peer", "peer_ms", "ratio"} for row in rows.values())
    assert rows["import mm"]["ms"] > 1 > rows["encode"]["ms"]
    assert rows["encode"]["peer_ms"] >= 10 and rows["encode"]["ratio"] > 1 and rows["caption"]["peer"] == ""


def test_machine_names_the_versions():
    import torch

    assert bench.machine()["torch"] == torch.__version__
