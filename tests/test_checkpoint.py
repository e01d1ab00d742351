"""Weights are read strictly: nothing missing, nothing left over, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mm.checkpoints.reading import (
    check_folder,
    fingerprint,
    load_into,
    load_tensors,
    load_weights,
    read_header,
    read_json,
)
from mm.errors import CheckpointError


def _raw(path: Path, header: str | bytes, body: bytes, size: int | None = None) -> Path:
    data = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(data) if size is None else size) + data + body)
    return path


def _entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder without fault: two tensors and what a configuration says of them."""
    home = tmp_path / "model"
    home.mkdir()
    save_file({"a.weight": torch.ones(8, 16), "b.weight": torch.ones(4)}, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps({"model_type": "clip", "hidden_size": 16, "num_hidden_layers": 2}))
    return home


# --- pickles


class _Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(_Evil(canary), protocol))
    with pytest.raises(CheckpointError, match=r"never loaded.*weights_only=True"):
        load_tensors(tmp_path / name)
    assert not canary.exists()


def test_a_zip_with_a_pickle_inside_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with zipfile.ZipFile(tmp_path / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Evil(canary)))
    with pytest.raises(CheckpointError, match="never loaded"):
        load_tensors(tmp_path / "model.safetensors")
    assert not canary.exists()


def test_a_folder_with_pickles_alone_gets_the_hint(folder: Path) -> None:
    os.replace(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin\. Pickled weights are never loaded; convert"):
        check_folder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="expected safetensors weights, there are none"):
        check_folder(folder)


@pytest.mark.parametrize("length", [640, 1152, 19280])
def test_a_header_whose_length_looks_like_another_formats_mark_is_read(tmp_path: Path, length: int) -> None:
    """640, 1152 and 19280 begin with the bytes of a pickle or a zip."""
    header = json.dumps({"a": _entry(0, 4, [1])}).ljust(length)
    path = _raw(tmp_path / "w.safetensors", header, b"\0" * 4)
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"PK")
    assert torch.equal(load_tensors(path)["a"], torch.zeros(1))


# --- damaged files


@pytest.mark.parametrize("cut", [0, 3, 8, 20, -1])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:cut])
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("header", "body", "said"),
    [
        ({"a": _entry(0, 4, [1])}, 5, "the tensors take 4 bytes, the file has 5"),
        ({"a": _entry(0, 4, [1]), "b": _entry(2, 6, [1])}, 6, "overlap or leave a gap"),
        ({"a": _entry(0, 4, [1]), "b": _entry(8, 12, [1])}, 12, "overlap or leave a gap"),
        ({"a": _entry(0, 8, [1])}, 8, "which its shape (1,) does not"),
        ({"a": _entry(0, 4, [2**62, 2**62])}, 4, "takes 4 bytes"),
        ({"a": _entry(0, 4, [-1])}, 4, "no proper shape"),
        ({"a": _entry(4, 0, [1])}, 4, "takes -4 bytes"),
        ({"a": _entry(0, 1, [1], "F8_E4M3")}, 1, "'F8_E4M3'; expected one of F64, F32"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "'a' is no tensor"),
        ({"a": [0, 4]}, 4, "'a' is no tensor"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, header: dict[str, Any], body: int, said: str
) -> None:
    path = _raw(tmp_path / "w.safetensors", json.dumps(header), b"\0" * body)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert "w.safetensors" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 2**62, 100_000_001])
def test_a_header_of_impossible_length_is_refused_without_reading_it(tmp_path: Path, size: int) -> None:
    path = _raw(tmp_path / "w.safetensors", "{}", b"\0" * 8, size)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_tensors(path)


def test_a_header_in_another_encoding_or_very_deep_is_refused(tmp_path: Path) -> None:
    for header in ('{"é": 1}'.encode("latin-1"), b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}"):
        with pytest.raises(CheckpointError, match="damaged header"):
            load_tensors(_raw(tmp_path / "w.safetensors", header, b""))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    path = _raw(tmp_path / "twice.safetensors", "{" + entry + "," + entry + "}", b"\0" * 4)
    with pytest.raises(CheckpointError, match="given twice"):
        load_tensors(path)
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="given twice"):
        read_json(tmp_path / "config.json")


def test_a_header_says_shapes_and_types_without_reading_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3).half(), "none": torch.ones(0, 4)}, tmp_path / "w.safetensors", {"format": "pt"})
    stored = read_header(tmp_path / "w.safetensors")
    assert {key: (each.dtype, each.shape) for key, each in stored.items()} == {
        "a": ("F16", (2, 3)),
        "none": ("F32", (0, 4)),
    }


# --- values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    save_file({"fine": torch.ones(2), "broken": torch.tensor([1.0, value], dtype=dtype)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity in broken"):
        load_tensors(tmp_path / "w.safetensors")


# --- keys and shapes


def test_missing_unexpected_and_misshapen_keys_are_listed() -> None:
    layer = torch.nn.Linear(2, 3)
    good = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(CheckpointError, match="missing bias"):
        load_into(layer, {"weight": good["weight"]}, "layer")
    with pytest.raises(CheckpointError, match="unexpected scale"):
        load_into(layer, good | {"scale": torch.ones(1)}, "layer")
    with pytest.raises(CheckpointError, match=r"weight should be \(3, 2\) .* is \(2, 3\)"):
        load_into(layer, good | {"weight": torch.ones(2, 3)}, "layer")
    load_into(layer, {k: torch.ones_like(v) for k, v in good.items()}, "layer")
    assert layer.weight.eq(1).all()


def test_a_long_list_of_keys_is_cut_and_counted() -> None:
    with pytest.raises(CheckpointError, match=r"missing a0, a1, a2, a3, a4 and 4 more"):
        load_into(torch.nn.ParameterDict({f"a{i}": torch.ones(1) for i in range(9)}), {}, "many")


def test_the_likely_cause_is_said() -> None:
    layer = torch.nn.Linear(2, 3)
    wrapped = {f"module.{k}": v for k, v in layer.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"Every key starts with 'module\.', as a wrapper leaves it"):
        load_into(layer, wrapped, "layer")
    with pytest.raises(CheckpointError, match="No key fits: this is another model's file"):
        load_into(layer, {"gamma": torch.ones(3)}, "layer")
    with pytest.raises(CheckpointError, match="No key fits"):
        load_into(layer, {}, "layer")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_any_float_width_load_to_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 3)
    values = {k: torch.full_like(v, 0.5).to(dtype) for k, v in layer.state_dict().items()}
    save_file(values, tmp_path / "w.safetensors")
    load_into(layer, load_tensors(tmp_path / "w.safetensors"), "layer")
    assert layer.weight.dtype == torch.float32 and layer.weight.eq(0.5).all()


def test_quantised_weights_are_not_taken_for_numbers() -> None:
    layer = torch.nn.Linear(2, 3)
    values = {k: torch.ones_like(v).to(torch.int8) for k, v in layer.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"stored as torch\.int8; quantised"):
        load_into(layer, values, "layer")


# --- shards


def _sharded(folder: Path, places: dict[str, str], metadata: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    index = {"metadata": metadata or {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_joined(tmp_path: Path) -> None:
    home = _sharded(tmp_path / "m", {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    save_file({"a": torch.ones(1)}, home / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, home / "model-2.safetensors")
    check_folder(home)
    assert {k: v.tolist() for k, v in load_weights(home).items()} == {"a": [1.0], "b": [0.0, 0.0]}


def test_a_missing_shard_is_named_and_so_is_one_with_other_keys(tmp_path: Path) -> None:
    home = _sharded(tmp_path / "m", {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    save_file({"a": torch.ones(1)}, home / "model-1.safetensors")
    for read in (check_folder, load_weights):
        with pytest.raises(CheckpointError, match=r"the shard model-2\.safetensors is missing"):
            read(home)
    save_file({"c": torch.ones(1)}, home / "model-2.safetensors")
    for read in (check_folder, load_weights):
        with pytest.raises(CheckpointError, match=r"model-2\.safetensors does not hold what it should: b, c"):
            read(home)


@pytest.mark.parametrize("shard", ["../out.safetensors", "/out.safetensors", "..\\out.safetensors", "C:\\out", "a\0b"])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "out.safetensors")
    home = _sharded(tmp_path / "m", {"a": shard})
    for read in (check_folder, load_weights):
        with pytest.raises(CheckpointError, match="no plain name below its folder"):
            read(home)


@pytest.mark.parametrize("places", [None, {}, [], {"a": 3}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, places: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a weight_map"):
        load_weights(_sharded(tmp_path / "m", places))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_weights(tmp_path)


# --- fingerprints


def test_a_fingerprint_changes_with_bytes_and_names_alone(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(b"same")
    first = fingerprint(paths)
    assert fingerprint(paths[::-1]) == first and len(first) == 64
    paths[0].write_bytes(b"other")
    assert fingerprint(paths) != first
    paths[0].write_bytes(b"same")
    os.replace(paths[0], tmp_path / "c")
    assert fingerprint([tmp_path / "c", paths[1]]) != first
