"""The embedded folder: what the library loads, its parts' own libraries load too."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from mm.errors import CheckpointError
from mm.loading import _loaded, load
from mm.zoo import EMBEDDED

TINY = EMBEDDED / "tiny"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def test_all_weights_together_stay_small() -> None:
    assert sum(p.stat().st_size for p in EMBEDDED.rglob("*") if p.is_file()) <= 30 * 2**20


def test_timm_alone_loads_the_image_tower_and_gives_the_same_embedding() -> None:
    import timm

    theirs = timm.create_model(f"local-dir:{TINY / 'vision'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(pixels), load("tiny").encoder.encode_image(pixels).pooled)


def test_transformers_alone_loads_the_text_tower_and_gives_the_same_embedding() -> None:
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    tokenizer = AutoTokenizer.from_pretrained(TINY / "text")
    theirs, info = CLIPTextModelWithProjection.from_pretrained(
        TINY / "text", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    texts = ["red car", "two striped blue stars", "dog"]
    ours = load("tiny").encoder.encode_text(texts).pooled
    for text, row in zip(texts, ours, strict=True):
        ids = [
            tokenizer.bos_token_id,
            *tokenizer(text, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        with torch.inference_mode():
            alone = theirs(input_ids=torch.tensor([ids])).text_embeds[0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


def test_transformers_alone_loads_the_decoder() -> None:
    from transformers import AutoModelForCausalLM

    theirs, info = AutoModelForCausalLM.from_pretrained(TINY / "decoder", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.arange(4, 14)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, load("tiny").speaker.decoder.lm(ids).logits)


def test_a_folder_loads_by_its_path_and_equals_the_name(copy: Path) -> None:
    pixels = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        a = load(str(copy)).encoder.encode_image(pixels).pooled
        b = load("tiny").encoder.encode_image(pixels).pooled
    assert torch.equal(a, b)
    assert load(str(copy)).sha256 == load("tiny").sha256


def test_threads_that_ask_at_once_share_one_load(copy: Path) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(load(str(copy)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1
    assert (copy.resolve(), "float32", "cpu") in _loaded


def test_an_unknown_or_missing_setting_is_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    pixels = config["encoder"]["preprocessing"]
    pixels["polizy"] = pixels.pop("policy")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing \['policy'\].*polizy.*Did you mean"):
        load(str(copy))


def test_a_missing_weight_is_named(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "joined.safetensors")
    del weights["detector.norm.weight"]
    save_file(weights, copy / "joined.safetensors")
    with pytest.raises(CheckpointError, match=r"missing norm\.weight"):
        load(str(copy))


def test_a_weight_that_no_part_asked_for_is_named(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "joined.safetensors")
    save_file(weights | {"stranger.weight": torch.ones(1)}, copy / "joined.safetensors")
    with pytest.raises(CheckpointError, match=r"stranger\.weight"):
        load(str(copy))
