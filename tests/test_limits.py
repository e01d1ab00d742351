"""Limits check themselves and are replaced whole."""

from __future__ import annotations

import dataclasses

import pytest

from mm.errors import InputError
from mm.limits import DEFAULT_LIMITS, Limits


def test_limits_are_frozen_and_replaced_whole():
    smaller = dataclasses.replace(DEFAULT_LIMITS, max_pixels=10)
    assert (smaller.max_pixels, smaller.max_side) == (10, DEFAULT_LIMITS.max_side)
    with pytest.raises(dataclasses.FrozenInstanceError):
        smaller.max_pixels = 11


@pytest.mark.parametrize("bound", [0, -1, 1.5, "many", None, True, float("nan")])
def test_a_bound_that_bounds_nothing_is_refused(bound):
    with pytest.raises(InputError, match="max_pixels"):
        Limits(max_pixels=bound)


def test_no_redirects_and_a_fraction_of_a_second_are_bounds():
    assert Limits(max_redirects=0, fetch_timeout_s=0.25).fetch_timeout_s == 0.25
    for endless in (float("inf"), float("nan")):
        with pytest.raises(InputError, match="fetch_timeout_s"):
            Limits(fetch_timeout_s=endless)
