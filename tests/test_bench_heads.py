"""Detection and segmentation beside their peers: the rows, on towers of a few thousand weights."""

from __future__ import annotations

import pytest

from mm.bench import heads


def test_detection_is_timed_beside_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "DETECT_LABELS", (1, 3))
    rows = heads.run_detect(repeats=1, small=True)
    assert [row["labels"] for row in rows] == [1, 3]
    assert all(row["ratio"] == pytest.approx(row["peer_ms"] / row["ms"]) for row in rows)


def test_segmentation_is_timed_beside_the_model_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "SEGMENT_PROMPTS", (1, 2))
    assert [row["prompts"] for row in heads.run_segment(repeats=1, small=True)] == [1, 2]
