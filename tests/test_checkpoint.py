"""Weights are read strictly: nothing missing, nothing left over, nothing executed."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mm.checkpoint import load_into, load_tensors, read_json
from mm.errors import CheckpointError


def _raw(path: Path, header: str, body: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + body)
    return path


def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return Path.touch, (canary,)

    for name in ("model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(CheckpointError, match="never loaded"):
            load_tensors(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize("cut", [3, 20, -1])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:cut])
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_tensors(tmp_path / "w.safetensors")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    path = _raw(tmp_path / "twice.safetensors", "{" + entry + "," + entry + "}", b"\0" * 4)
    with pytest.raises(CheckpointError, match="given twice"):
        load_tensors(path)
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="given twice"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"fine": torch.ones(2), "broken": torch.tensor([1.0, value])}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="broken"):
        load_tensors(tmp_path / "w.safetensors")


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


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 5000, json.dumps({"a": "x" * 1_000_001})])
def test_a_broken_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(tmp_path / "config.json")
