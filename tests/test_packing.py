from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from mm.errors import InputError, ResourceLimitError
from mm.limits import Limits
from mm.results.packing import decode_rle, encode_rle, pack, unpack


@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_masks_return_from_run_lengths(shape, density):
    mask = np.random.default_rng(0).random(shape) < density
    code = encode_rle(mask)
    assert code["size"] == list(shape) and isinstance(code["counts"], str)
    np.testing.assert_array_equal(decode_rle("mask", code), mask)
    np.testing.assert_array_equal(decode_rle("mask", code | {"counts": code["counts"].encode()}), mask)


def test_run_lengths_may_be_a_list():
    mask = decode_rle("mask", {"size": [2, 3], "counts": [1, 2, 3]})
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


@pytest.mark.parametrize(
    "code",
    [
        None,
        [],
        {"size": [3, 3]},
        {"size": [3, 3], "counts": "9", "more": 1},
        {"size": [3], "counts": "9"},
        {"size": "33", "counts": "9"},
        {"size": [-3, -3], "counts": "9"},
        {"size": [0, 3], "counts": "0"},
        {"size": ["3", 3], "counts": "9"},
        {"size": [3.5, 3], "counts": "9"},
        {"size": [3, 3], "counts": ""},
        {"size": [3, 3], "counts": b""},
        {"size": [3, 3], "counts": "8"},
        {"size": [3, 3], "counts": "99"},
        {"size": [3, 3], "counts": "4N7"},
        {"size": [3, 3], "counts": "1P"},
        {"size": [3, 3], "counts": "o" * 40},
        {"size": [3, 3], "counts": "ÿé"},
        {"size": [3, 3], "counts": "\ud800"},
        {"size": [3, 3], "counts": "\x009"},
        {"size": [3, 3], "counts": None},
        {"size": [3, 3], "counts": 9},
        {"size": [3, 3], "counts": [4, 4]},
        {"size": [3, 3], "counts": [-1, 10]},
        {"size": [3, 3], "counts": [4.5, 4.5]},
        {"size": [3, 3], "counts": [10**30]},
        {"size": [3, 3], "counts": [[9]]},
    ],
    ids=ascii,
)
def test_malformed_run_lengths_are_refused(code):
    with pytest.raises(InputError):
        decode_rle("mask", code)


def test_random_run_lengths_give_a_mask_or_an_error():
    rng = np.random.default_rng(0)
    for _ in range(500):
        counts = bytes(rng.integers(48, 112, rng.integers(0, 12), dtype=np.uint8)).decode()
        try:
            mask = decode_rle("mask", {"size": [5, 4], "counts": counts})
        except InputError:
            continue
        assert mask.shape == (5, 4) and mask.dtype == bool


def test_the_size_of_a_mask_is_checked_before_it_is_decoded():
    for counts in ("11", [10**10]):
        with pytest.raises(ResourceLimitError, match="100000 x 100000"):
            decode_rle("mask", {"size": [100_000, 100_000], "counts": counts})
    code = encode_rle(np.ones((5, 5), bool))
    with pytest.raises(ResourceLimitError, match="at most 24 pixels"):
        decode_rle("mask", code, Limits(max_pixels=24))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_dense_arrays_return_exactly(dtype):
    array = (np.random.default_rng(0).random((2, 37, 53)) * 255).astype(dtype)
    back = unpack("scores", pack(array), ("uint8", "float32"), max_bytes=array.nbytes)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_damaged_or_inflating_packages_are_refused():
    good = pack(np.zeros((4, 5), np.uint8))
    bomb = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()
    short = base64.b64encode(zlib.compress(bytes(19))).decode()
    for change in (
        {"deflated": bomb},
        {"deflated": short},
        {"deflated": "*"},
        {"deflated": "é"},
        {"deflated": good["deflated"][:-8]},
        {"deflated": "AAAA"},
        {"deflated": 3},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"dtype": ["uint8"]},
        {"shape": [-4, -5]},
        {"shape": 20},
        {"shape": [4, 5.0]},
    ):
        with pytest.raises(InputError):
            unpack("scores", good | change, ("uint8", "float32"), max_bytes=1000)
    with pytest.raises(ResourceLimitError, match="at most 10 bytes"):
        unpack("scores", good, ("uint8",), max_bytes=10)
