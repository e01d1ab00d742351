"""Work of Pillow's kind on several pictures at once: decoding and resizing leave Python's lock to others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_MOST = 8  # threads


def side_by_side(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`[work(item) for item in items]`, in as many threads as there are cores; the first error in order is raised."""
    given = list(items)
    threads = min(len(given), os.cpu_count() or 1, _MOST)
    if threads < 2:
        return [work(item) for item in given]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, given))
