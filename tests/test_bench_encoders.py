"""The encoder benchmark on towers of a few thousand weights: what it compares, and what a row says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm.bench import encoders as bench_encoders


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return bench_encoders.run(repeats=1, batch=3, small=True)


def test_every_encoder_reads_pictures_and_texts_in_both_dtypes(rows: list[dict]) -> None:
    seen = {(row["encoder"], row["input"], row["dtype"]) for row in rows}
    names = [case.name for case in bench_encoders.CASES]
    assert seen == {(n, i, d) for n in names for i in ("images", "texts") for d in ("float32", "bfloat16")}
    assert len(rows) == 12


def test_both_sides_compute_the_same_features(rows: list[dict]) -> None:
    for row in rows:
        exact = row["dtype"] == "float32"
        # transformers resizes with torchvision by default, which differs by a grey level
        assert row["cosine"] > (0.9999 if exact else 0.98), row


def test_the_ratio_is_that_of_the_rates(rows: list[dict]) -> None:
    for row in rows:
        assert row["ratio"] == pytest.approx(row["per_s"] / row["peer_per_s"])
        assert row["per_s"] > 0
    assert {row["peer"] for row in rows} == {"transformers", "open_clip"}


def test_the_pictures_are_jpeg_files_of_photographs_size(tmp_path: Path) -> None:
    first, second = bench_encoders.pictures(tmp_path, 2)
    with Image.open(first) as picture, Image.open(second) as other:
        assert picture.format == "JPEG" and picture.size == (640, 480)
        assert not np.array_equal(np.asarray(picture), np.asarray(other))
    assert 30_000 < first.stat().st_size < 400_000
