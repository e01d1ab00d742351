"""Models of a few thousand weights go the way of large ones: through oneDNN, where torch would do for their size."""

from __future__ import annotations

import pytest

from mm.kernels import linear


@pytest.fixture(autouse=True)
def as_large_models_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_WORTH", 1)
