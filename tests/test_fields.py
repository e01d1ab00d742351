from __future__ import annotations

import numpy as np
import pytest

from mm.errors import InputError
from mm.results.fields import bools, dictionaries, entry_of, finite, floats, size, texts, whole


def test_arrays_are_copied_once_and_then_kept():
    given = np.arange(3.0, dtype=np.float32)
    kept = floats("scores", given, ("n",))
    assert kept is not given and not kept.flags.writeable
    assert floats("scores", kept, ("n",)) is kept
    view = given[:2]
    view.flags.writeable = False
    copied = floats("scores", view, ("n",))
    given[0] = 7
    assert copied[0] == 0, "a read-only view of what the caller may write is copied"


def test_strides_and_types_do_not_matter():
    strided = np.arange(12, dtype=np.int16).reshape(3, 4).T[::-1]
    result = floats("boxes", strided, ("n", 3))
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, strided)


def test_an_empty_list_is_an_empty_array_where_one_may_be_empty():
    assert floats("boxes", [], ("n", 4)).shape == (0, 4)
    assert bools("masks", [], ("K", 3, 4)).shape == (0, 3, 4)
    with pytest.raises(InputError, match=r"expected float32\[4\], got float64\[0\]"):
        floats("box", [], (4,))


def test_what_is_no_array_of_numbers_is_refused():
    for value in (None, "x", [object()], [[1], [2, 3]], np.array([1j]), np.array([b"x"])):
        with pytest.raises(InputError, match="scores: expected"):
            floats("scores", value, ("n",))


def test_masks_are_boolean_or_zeros_and_ones():
    assert bools("mask", [[0, 1]], ("H", "W")).tolist() == [[False, True]]
    for value in ([[0, 2]], [[0.0, 1.0]], [["a"]]):
        with pytest.raises(InputError, match="mask: expected bool"):
            bools("mask", value, ("H", "W"))


def test_numbers_are_told_from_what_looks_like_them():
    assert finite("x", np.float32(0.5)) == 0.5 and finite("x", 3) == 3 and whole("n", np.int64(3)) == 3
    for value in ("1", None, True, [1]):
        with pytest.raises(InputError, match="x: expected a number"):
            finite("x", value)
        with pytest.raises(InputError, match="n: expected a whole number"):
            whole("n", value)
    for value in (float("nan"), float("inf"), 10**400, 1e39):
        with pytest.raises(InputError, match="x: expected a finite number"):
            finite("x", value)
    for value in (-1, 2**53, 10**4000, 1.0):
        with pytest.raises(InputError, match="n: expected a whole number of at least 0"):
            whole("n", value)


def test_sizes_texts_and_dictionaries():
    assert size("s", np.array([3, 4])) == (3, 4) and size("s", [3, 4]) == (3, 4)
    assert texts("t", np.array(["a", "b"])) == ("a", "b") and type(texts("t", np.array(["a"]))[0]) is str
    assert texts("t", (word for word in "ab")) == ("a", "b")
    assert dictionaries("d", [{}]) == [{}] and entry_of("d", {"a": 1}, "a") == 1
    for value in ({}, "x", None, [3]):
        with pytest.raises(InputError, match="d"):
            dictionaries("d", value)
    for value in ({}, {"b": 1}, None, [3]):
        with pytest.raises(InputError, match='d: expected a dictionary with "a"'):
            entry_of("d", value, "a")
