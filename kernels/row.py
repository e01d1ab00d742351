"""Compiled routines for a single row through the layers of a decoder (`row.cpp`), for a CPU.

torch reads bfloat16 matrices at half the speed of memory when one row is multiplied, and between two products it
spends more time on calling operations than on numbers. The routines are built by the system's C++ compiler when they
are first asked for, in about a second, into a folder that is gone again once they are loaded.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 32  # inputs read at once: those of a layer have to be a multiple of it
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
_KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_TRIALS, _ROWS = 4, 512  # rows that a matrix is tried on; outputs that are enough to see an order by
_LENGTHS = (3, 16, 45, 130, 517, 1290)  # keys that attention is tried on; torch takes 512 at once


class NotCompiled(Exception):
    """Why there are no compiled routines for something; torch's own have to do."""


class _Part(ctypes.Structure):
    """As in `row.cpp`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")] + [("outputs", ctypes.c_int64)]


@functools.cache
def library() -> ctypes.CDLL:
    """The routines.

    Raises:
        NotCompiled: there is no compiler, or it does not accept the source.
    """
    compiler, *options = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(compiler) is None:
        raise NotCompiled(f"there is no C++ compiler {compiler} here (CXX names another)")
    with tempfile.TemporaryDirectory(prefix="mm-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "row.so"
        source = Path(__file__).with_name("row.cpp")
        try:
            line = [compiler, *options, *_FLAGS, str(source), "-o", str(made), *_threads()]
            subprocess.run(line, check=True, capture_output=True, text=True)
            loaded = ctypes.CDLL(str(made))
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            why = next((text for text in said if "error" in text), said[-1])
            raise NotCompiled(f"{compiler} does not build the routines: {why}") from None
        except OSError as error:
            raise NotCompiled(f"the routines that {compiler} built do not load: {error}") from None
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    for kind in ("float32", "bfloat16", "int8"):
        routine = getattr(loaded, f"project_{kind}")
        routine.argtypes = [pointer, pointer, real, pointer, number, pointer, pointer, number, number]
        routine.restype = None
    for kind in ("float32", "bfloat16"):
        routine = getattr(loaded, f"rotate_{kind}")
        routine.argtypes = [*[pointer] * 5, real, *[number] * 3, *[pointer] * 3, number]
        routine.restype = None
    loaded.attend_bfloat16.argtypes = [*[pointer] * 3, *[number] * 5, real, pointer, number]
    loaded.attend_bfloat16.restype = None
    return loaded


def _threads() -> list[str]:
    """torch's own OpenMP, so that its threads are used and no others wait beside them."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"))
    return ["-Wl,--as-needed", str(found[0])] if found else []


class Projection:
    """Linear layers with the same input, side by side, for float[K] on a CPU; the norm in front of them with them.

    weights: [N, K] each, in the dtype of the row, or int8 with one scale an output. biases, scales: [N] each; None for
    a layer without. norm: [K], the weight of a root mean square norm. Weights are read where they lie, so they have to
    stay there.

    Raises:
        NotCompiled: a dtype or a width that the routines do not know; or there are none.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], scales: Sequence[Tensor | None],
        norm: Tensor | None = None, epsilon: float = 0.0, *, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        inputs = weights[0].shape[1]
        small = weights[0].dtype == torch.int8
        known = dtype == torch.bfloat16 if small else dtype in _KINDS
        alike = {w.dtype for w in weights} == {torch.int8 if small else dtype}
        others = [t for t in (*biases, *scales, norm) if t is not None]
        if not known or not alike or any(t.dtype != dtype for t in others):
            raise NotCompiled(f"no compiled routine for {', '.join(str(t.dtype) for t in (*weights, *others))}")
        if inputs % AT_ONCE:
            raise NotCompiled(f"a layer has {inputs} inputs, no multiple of {AT_ONCE}")
        if not all(t.device.type == "cpu" and t.is_contiguous() for t in (*weights, *others)):
            raise NotCompiled("a layer's weights do not lie in a row in the processor's memory")
        self._routine = getattr(library(), f"project_{'int8' if small else _KINDS[dtype]}")
        self._kept = weights, biases, scales, norm
        parts = [_Part(_at(w), _at(s), _at(b), len(w)) for w, s, b in zip(weights, scales, biases, strict=True)]
        self._parts = (_Part * len(parts))(*parts)
        self._address, self._count = ctypes.addressof(self._parts), len(parts)
        self._norm, self._epsilon = _at(norm), epsilon
        self.inputs, self.outputs, self.dtype, self.rounded = inputs, sum(map(len, weights)), dtype, small
        self.biased = any(bias is not None for bias in biases)

    def __call__(self, row: Tensor, onto: Tensor | None = None) -> Tensor:
        """float[K] -> float[N1 + N2 + …]: the row through norm and layers, then added to `onto`."""
        out = torch.empty(self.outputs, dtype=self.dtype)
        self._routine(
            row.data_ptr(), self._norm, self._epsilon, self._address, self._count,
            None if onto is None else onto.data_ptr(), out.data_ptr(), self.inputs, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def check(self) -> None:
        """Compares norm and layers with torch's own, and sums of as many numbers where nothing but rounding decides. In
        bfloat16 the smallest difference would grow to other words.

        Raises:
            NotCompiled: torch sums in another order on this processor.
        """
        chance = torch.Generator().manual_seed(0)
        for weight in self._kept[0]:
            small = _cancelling((min(len(weight), _ROWS), self.inputs), chance).to(self.dtype)
            self._compare(Projection([small], [None], [None], dtype=self.dtype), torch.ones_like(small[0]))
        for _ in range(_TRIALS):
            row = torch.randn(self.inputs, generator=chance)
            self._compare(self, (row * 2.0 ** torch.randint(-8, 9, row.shape, generator=chance)).to(self.dtype))

    @staticmethod
    def _compare(made: Projection, row: Tensor) -> None:
        weights, biases, _, norm = made._kept
        given = row if norm is None else rms_norm(row, norm, made._epsilon)
        theirs = torch.cat([F.linear(given, w, b) for w, b in zip(weights, biases, strict=True)])
        if not torch.equal(made(row), theirs):
            raise NotCompiled("torch sums in another order on this processor")


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm (Zhang and Sennrich, 2019) in float32, rounded before the weight is applied."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


class Rotation:
    """Rotary positions for one token's heads, which come as queries, keys, values: float[H + 2 Hk, Dh].

    norms: of queries and of keys, [Dh] each; None for none.
    """

    def __init__(
        self, heads: int, shared: int, width: int, norms: tuple[Tensor, Tensor] | None, epsilon: float, *,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        if dtype not in _KINDS or any(n.dtype != dtype for n in norms or ()):
            raise NotCompiled(f"no compiled routine for {dtype}")
        self._routine, self._kept = getattr(library(), f"rotate_{_KINDS[dtype]}"), norms
        self._norms, self._epsilon = tuple(map(_at, norms or (None, None))), epsilon
        self.heads, self.shared, self.width, self.dtype = heads, shared, width, dtype

    def __call__(self, mixed: Tensor, turns: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
        """Queries float[H, Dh]; keys and values go to their place.

        mixed: float[(H + 2 Hk) Dh]. turns: float[2, 1, Dh], the place's cosines and sines, whose first half is negated.
        keys, values: float[1, Hk, capacity, Dh].
        """
        out = torch.empty(self.heads, self.width, dtype=self.dtype)
        size = mixed.element_size()
        line, there = size * self.width, turns.data_ptr()
        self._routine(
            mixed.data_ptr(), there, there + line, *self._norms, self._epsilon, self.heads, self.shared, self.width,
            out.data_ptr(), keys.data_ptr() + place * line, values.data_ptr() + place * line, keys.stride(1),
        )  # fmt: skip
        return out


class Attention:
    """Attention of one token's queries to all keys so far, in bfloat16, in the order in which torch sums for one query.

    Raises:
        NotCompiled: a width that the routine does not know, or there is none.
    """

    def __init__(self, heads: int, shared: int, width: int, scale: float) -> None:
        if width % 16:
            raise NotCompiled(f"no compiled attention for heads of {width} numbers")
        self._routine = library().attend_bfloat16
        self.heads, self.shared, self.width, self.scale = heads, shared, width, scale

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
        """query: [H, Dh]; keys, values: [1, Hk, capacity, Dh], of which the first `length` are there -> [H Dh]."""
        out = torch.empty(self.heads * self.width, dtype=torch.bfloat16)
        self._routine(
            query.data_ptr(), keys.data_ptr(), values.data_ptr(), keys.stride(1), self.heads, self.shared, self.width,
            length, self.scale, out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def check(self) -> None:
        """Compares it with torch's own: on any numbers, and where nothing but rounding decides, first which key is the
        best, then what the values give together. The softmax hides in what order it is summed, so torch has to have
        vectors of the width that the routine was written for.

        Raises:
            NotCompiled: torch has other bits on this processor.
        """
        other = NotCompiled("torch attends in another order on this processor")
        if torch.backends.cpu.get_cpu_capability() != "AVX512":
            raise other
        sharp = Attention(self.heads, self.shared, self.width, 2.0**40)
        chance = torch.Generator().manual_seed(0)
        for length in _LENGTHS:
            lie = (1, self.shared, length, self.width)
            keys, values = torch.randn(2, *lie, generator=chance).bfloat16()
            query = 2 * torch.randn(self.heads, self.width, generator=chance).bfloat16()
            cancelled = _cancelling((1, self.shared, self.width, length), chance).transpose(2, 3).contiguous()
            if not (
                self._agrees(query, keys, values)
                and sharp._agrees(torch.ones_like(query), _cancelling(lie, chance), values)
                and self._agrees(torch.zeros_like(query), keys, cancelled)
            ):
                raise other

    def _agrees(self, query: Tensor, keys: Tensor, values: Tensor) -> bool:
        every_key, every_value = (s.repeat_interleave(self.heads // self.shared, 1) for s in (keys, values))
        theirs = F.scaled_dot_product_attention(query[None, :, None], every_key, every_value, scale=self.scale)
        return torch.equal(self(query, keys, values, keys.shape[2]), theirs.reshape(-1))


def _cancelling(shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
    """bfloat16 numbers of many sizes, whose sums over the last axis would be nothing if nothing were rounded."""
    *rows, count = shape
    half = torch.randn(*rows, count // 2, generator=chance)
    half = half * 2.0 ** torch.randint(-8, 9, half.shape, generator=chance)
    every = torch.cat([half, -half, half.new_zeros(*rows, count % 2)], -1).bfloat16()
    return every[..., torch.randperm(count, generator=chance)].contiguous()


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
