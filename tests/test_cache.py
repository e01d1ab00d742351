"""The caches themselves: room, holes, positions, what is copied and what is forgotten."""

from __future__ import annotations

import pytest
import torch

from mm.kernels.cache import KVCache, KVPrefix
from mm.kernels.states import StateCache, StatePrefix, merge

CPU = torch.device("cpu")


def prefix(length: int, batch: int = 1, seed: int = 0) -> KVPrefix:
    chance = torch.Generator().manual_seed(seed)
    sides = [tuple(torch.randn(batch, 2, length, 3, generator=chance) for _ in range(2)) for _ in range(2)]
    return KVPrefix(*sides)


def write(cache: KVCache, count: int, value: float = 1.0, lengths: list[int] | None = None) -> None:
    cache.begin(count, lengths, CPU)
    for layer in range(2):
        cache.write(layer, *(torch.full((cache.batch, 2, count, 3), value) for _ in range(2)))
    cache.end(count)


def test_a_fork_is_a_copy_that_is_never_grown_by_concatenation() -> None:
    start = prefix(4)
    cache = KVCache.fork([start], 6)
    places = [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)]
    write(cache, 1)
    write(cache, 1)
    assert [buffer.data_ptr() for buffer in (*cache.keys, *cache.values)] == places
    assert not {buffer.data_ptr() for buffer in (*start.keys, *start.values)} & set(places)
    torch.testing.assert_close(start.keys[0], prefix(4).keys[0], atol=0, rtol=0)
    torch.testing.assert_close(cache.keys[1][:, :, :4], start.keys[1], atol=0, rtol=0)
    assert cache.keys[1][:, :, 4:].eq(1).all()


def test_both_in_one_copy_are_what_each_is_alone() -> None:
    alone, together = KVCache(2, 5), KVCache(2, 5)
    for count in (3, 1):
        both = torch.randn(2, 2, 4, count, 3)
        for cache in (alone, together):
            cache.begin(count, None, CPU)
        expected, found = alone.write(0, *both), together.write_both(0, both)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=0, rtol=0)
        for cache in (alone, together):
            cache.end(count)


def test_keys_and_values_may_differ_in_width() -> None:
    cache = KVCache(1, 4)
    cache.begin(2, None, CPU)
    keys, values = cache.write(0, torch.ones(1, 2, 2, 3), torch.ones(1, 2, 2, 5))
    assert (keys.shape, values.shape) == ((1, 2, 2, 3), (1, 2, 2, 5))


def test_a_full_cache_refuses_and_stays_as_it_is() -> None:
    cache = KVCache.fork([prefix(4)], 5)
    write(cache, 1)
    with pytest.raises(ValueError, match="room for 5 tokens, 6 are needed"):
        cache.begin(1, None, CPU)
    assert cache.length == 5
    with pytest.raises(ValueError, match="room for 3"):
        KVCache.fork([prefix(4)], 3)


def test_prefixes_of_unequal_length_end_at_the_same_slot() -> None:
    parts = [prefix(4, seed=1), prefix(2, batch=2, seed=2)]
    cache = KVCache.fork(parts, 7)
    assert (cache.batch, cache.length) == (3, 4)
    torch.testing.assert_close(cache.keys[0][1:, :, 2:4], parts[1].keys[0], atol=0, rtol=0)
    assert cache.positions(1, CPU).tolist() == [[4], [2], [2]]
    seen = cache.seen(1, CPU)
    assert seen is not None and seen[:, 0, 0].tolist() == [[True] * 5, *[[False, False, True, True, True]] * 2]


def test_positions_count_only_a_row_s_own_tokens() -> None:
    cache = KVCache.fork([prefix(2, batch=2)], 8)
    cache.begin(3, [3, 1], CPU)
    assert cache.positions(3, CPU).tolist() == [[2, 3, 4], [1, 1, 2]]
    seen = cache.seen(3, CPU)
    assert seen is not None and seen[1, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]
    assert seen[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_a_row_comes_out_without_its_holes() -> None:
    cache = KVCache.fork([prefix(2, batch=2)], 8)
    write(cache, 3, value=7.0, lengths=[3, 1])
    assert [cache.row(i).length for i in range(2)] == [5, 3]
    row = cache.row(1)
    torch.testing.assert_close(row.keys[0][:, :, :2], prefix(2, batch=2)[1].keys[0], atol=0, rtol=0)
    assert row.values[1][:, :, 2].eq(7).all()
    write(cache, 1, value=9.0)
    assert row.length == 3 and not row.keys[0].eq(9).any()


def test_forgetting_frees_slots_and_their_holes() -> None:
    cache = KVCache.fork([prefix(2, batch=2)], 5)
    write(cache, 3, lengths=[3, 1])
    cache.crop(3)
    write(cache, 2)
    assert cache.positions(1, CPU).tolist() == [[4], [4]]
    assert [cache.row(i).length for i in range(2)] == [4, 4]
    for count in (5, -1):
        with pytest.raises(ValueError, match="expected to forget 0 to 4"):
            cache.crop(count)


def test_without_holes_one_token_needs_no_mask() -> None:
    cache = KVCache.fork([prefix(2)], 5)
    assert cache.seen(1, CPU) is None
    assert cache.positions(2, CPU).tolist() == [[2, 3]]
    stacked = KVPrefix.stack([prefix(2), prefix(2, seed=1)])
    assert stacked.batch == 2 and torch.equal(stacked[1].keys[0], prefix(2, seed=1).keys[0])


def test_a_state_goes_on_from_a_copy_and_back_to_its_mark() -> None:
    start = StatePrefix({"conv": [torch.zeros(2, 3), None], "steps": 4}, 4, 2)
    cache = StateCache(2, 9, start)
    cache.state["conv"][0] += 1
    cache.fed.append(torch.ones(2, 1, 3))
    cache.length += 1
    assert start.state["conv"][0].sum() == 0
    cache.mark()
    cache.state["conv"][0] += 5
    cache.length += 1
    assert cache.restart() == [] and cache.length == 5
    assert cache.state["conv"][0].eq(1).all() and cache.state["steps"] == 4
    both = StatePrefix.stack([cache.row(1), start[0]])
    assert both.state["conv"][0].tolist() == [[1, 1, 1], [0, 0, 0]] and both.batch == 2


def test_trees_of_plain_objects_are_merged_by_their_tensors() -> None:
    class Box:
        def __init__(self, value: float) -> None:
            self.kind, self.inner = Box, {"t": torch.full((1, 2), value), "scalar": torch.tensor(value)}

    made = merge([Box(1.0), Box(2.0)], torch.cat)
    assert made.inner["t"].tolist() == [[1, 1], [2, 2]] and made.inner["scalar"] == 1 and made.kind is Box
