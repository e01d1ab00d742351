"""The comparison with transformers' own generation: what a row says, and that both write the same tokens."""

from __future__ import annotations

import pytest

from mm.bench import generate as bench_generate
from tests.test_compiled import there

SHAPE = bench_generate.Shape(
    {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
     "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 256},
    {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
     "intermediate_size": 64},
)  # fmt: skip


def test_both_ways_write_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_generate, "SHAPES", {"small": SHAPE})
    monkeypatch.setattr(bench_generate, "NEW", 5)
    monkeypatch.setattr(bench_generate, "ANSWER", 3)
    monkeypatch.setattr(bench_generate, "DTYPES", ("float32", "int8"))
    rows = bench_generate.run(repeats=1, shapes=("small",))
    one, compiled, several = "5 tokens, small", "5 tokens, small, compiled", "8 questions about one picture, small"
    floats, whole = ([row for row in rows if row["dtype"] == dtype] for dtype in ("float32", "int8"))
    assert [row["step"] for row in floats] == [one, *[compiled] * there(), several]
    assert [row["step"] for row in whole if row["step"] != compiled] == [one, several]  # it needs bfloat16's order too
    assert all(row["same_tokens"] == 1.0 for row in floats)
    assert all(row["ratio"] == pytest.approx(row["peer_ms"] / row["ms"]) for row in rows)


def test_agreement_ends_at_the_first_difference() -> None:
    assert bench_generate._agreement([[1, 2, 9, 4], [5, 6]], [[1, 2, 3, 4], [5, 6]]) == pytest.approx(4 / 6)
