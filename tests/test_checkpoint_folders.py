"""A stranger's folder is looked through before any of it is built: its configurations, its sizes, its links."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mm.checkpoints.reading import check_folder, read_json
from mm.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder without fault: two tensors and what a configuration says of them."""
    home = tmp_path / "model"
    home.mkdir()
    save_file({"a.weight": torch.ones(8, 16), "b.weight": torch.ones(4)}, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps({"model_type": "clip", "hidden_size": 16, "num_hidden_layers": 2}))
    return home


# --- configurations


def _with(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_sound_folder_passes(folder: Path) -> None:
    check_folder(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"trust_remote_code": True},
        {"_attn_implementation_internal": "evil/kernels"},
        {"custom_pipeline": "evil/pipeline"},
        {"vision_config": {"trust_remote_code": True}},
        {"parts": [{"_attn_implementation_internal": "evil/kernels"}]},
        {"_attn_implementation": "evil/kernels"},
        {"attn_implementation": "evil/kernels:attention"},
    ],
)
def test_a_configuration_that_asks_for_code_is_refused(folder: Path, values: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: .*(never done|never fetched)"):
        check_folder(_with(folder, **values))


def test_harmless_spellings_of_the_same_keys_pass(folder: Path) -> None:
    check_folder(_with(folder, trust_remote_code=False, _attn_implementation="flash_attention_2"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", 10**9, "1,000,000,000 is not from 1 to 16"),
        ("hidden_size", 17, "not from 1 to 16"),
        ("hidden_size", -16, "-16 is not from 1"),
        ("hidden_size", 0, "0 is not from 1"),
        ("hidden_size", "16", "expected a whole number, got '16'"),
        ("hidden_size", 16.0, "expected a whole number, got 16.0"),
        ("hidden_size", True, "expected a whole number, got True"),
        ("num_hidden_layers", 3, "3 is not from 0 to 2"),
        ("vocab_size", 10**9, "not from 1 to 4,096"),
        ("image_size", [224, 10**9], "not from 1 to 4,096"),
        ("max_position_embeddings", 10**9, "not from 1"),
    ],
)
def test_sizes_are_held_against_the_tensors_before_anything_is_built(
    folder: Path, key: str, value: Any, said: str
) -> None:
    for values in ({key: value}, {"text_config": {"inner": [{key: value}]}}):
        with pytest.raises(CheckpointError) as caught:
            check_folder(_with(folder, **values))
        assert f"config.json: {key}" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("depth", [65, 1000, 100_000])
def test_a_deep_configuration_is_refused(tmp_path: Path, depth: int) -> None:
    (tmp_path / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        read_json(tmp_path / "config.json")


BROKEN = ["", "[1]", "{", "[" * 5000, '{"a": NaN}', '{"a": -Infinity}', json.dumps({"a": "x" * 1_000_001})]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_a_configuration_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        read_json(tmp_path / "config.json")


def test_code_that_a_folder_offers_is_neither_imported_nor_run(tmp_path: Path) -> None:
    """`auto_map` is in the files of models that transformers reads by itself; its offer is never taken up."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from mm.encoders.build import load_encoder

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=16)).save_pretrained(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "evil_module.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    offer = {"auto_map": {"AutoModel": "evil_module.Evil", "AutoConfig": "evil_module.EvilConfig"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(_PICTURES | offer))
    check_folder(_with(tmp_path, **offer))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(_PICTURES))
    encoder = load_encoder(tmp_path).encoder
    with torch.inference_mode():
        assert encoder.encode_image(torch.zeros(1, 3, 32, 32)).tokens.shape == (1, 16, 32)
    assert not canary.exists() and not any("evil_module" in name for name in sys.modules)
    with pytest.raises(CheckpointError, match=r"no adapter for model_type 'evil'"):
        load_encoder(_with(tmp_path, model_type="evil"))
    assert not canary.exists()


_PICTURES = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "resample": 3,
    "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip


# --- links


def test_links_that_leave_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    link = folder / "vocab.txt"
    for target in ("../outside.txt", str(tmp_path / "outside.txt"), "nowhere", str(tmp_path)):
        link.symlink_to(target)
        with pytest.raises(CheckpointError, match=r"vocab\.txt: a link that leaves its folder"):
            check_folder(folder)
        link.unlink()
    link.symlink_to("config.json")
    check_folder(folder)


def test_a_hubs_cache_may_link_into_its_blobs_and_no_further(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--org--name"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        os.replace(folder / name, home / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    check_folder(snapshot)
    (tmp_path / "other.txt").write_text("")
    (snapshot / "vocab.txt").symlink_to("../../../other.txt")
    with pytest.raises(CheckpointError, match="leaves its folder"):
        check_folder(snapshot)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none: no such folder"):
        check_folder(tmp_path / "none")
