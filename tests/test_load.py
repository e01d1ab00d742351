"""The embedded folder: what the library loads, its parts' own libraries load too."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mm
from mm.checkpoints.loading import as_model, load
from mm.checkpoints.reading import fingerprint
from mm.errors import CheckpointError, InputError
from mm.joined import Joined
from mm.scenes import render_scene
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
    assert load(copy) is found[0]


def _load_in_a_child(folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    joined = load(folder)
    on_meta = any(p.is_meta for p in joined.encoder.parameters())
    answers.put((joined.sha256, on_meta, float(joined.encoder.logit_scale)))


def test_processes_that_load_at_once_get_the_same_weights(copy: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_load_in_a_child, args=(str(copy), answers)) for _ in range(8)]
    for worker in workers:
        worker.start()
    got = {answers.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join(60)
    tiny = load("tiny")
    assert got == {(tiny.sha256, False, float(tiny.encoder.logit_scale))}


def test_the_face_loads_and_every_task_takes_what_it_gave(copy: Path) -> None:
    picture = render_scene(1, (96, 128)).pixels
    model = mm.load(copy)
    assert isinstance(model, Joined) and as_model(model) is model
    ours, named = (mm.detect(picture, "car", model=each, threshold=0.0) for each in (model, "tiny"))
    np.testing.assert_allclose(ours.boxes_xyxy, named.boxes_xyxy, atol=1e-3)
    assert (ours.source.model, named.source.model) == (str(copy), "tiny")
    encoded = mm.encode(picture, model=model)
    assert mm.caption(encoded, model=model).text == mm.caption(picture).text
    assert mm.caption(picture, model=model, stream=True).result.text == mm.caption(picture).text
    assert mm.ask(encoded, "how many cars are there?", model=model).source.model == model.name
    assert mm.segment(encoded, "car", model=model).labels == ("car",)
    assert mm.classify(encoded, ["car", "star"], model=str(copy)).labels == ("car", "star")
    for vectors in (mm.embed(picture, model=model), mm.embed("a car", model=model)):
        assert vectors.source.model == model.name and vectors.source.sha256 == model.sha256


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float31"}, 'Did you mean "float32"'),
        ({"dtype": "int8"}, "expected one of float32, bfloat16, float16, auto"),
        ({"dtype": "bfloat16"}, "a joined model runs in float32"),
        ({"device": "cudda"}, 'Did you mean "cuda"'),
        ({"device": "meta"}, "expected one of cpu, cuda, mps"),
        ({"device": "cuda"}, "this machine has no CUDA device"),
        ({"device": "cuda:7"}, "this machine has no CUDA device"),
        ({"device": "mps"}, "this machine has none"),
    ],
)
def test_dtypes_and_devices_that_cannot_be_are_refused(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        load("tiny", **options)
    assert said in str(caught.value)


def test_the_source_of_a_result_says_dtype_and_device() -> None:
    source = mm.embed("a car").source
    assert (source.dtype, source.device) == ("float32", "cpu")
    assert load("tiny", dtype="auto").encoder.logit_scale.dtype == torch.float32


def test_an_encoder_alone_follows_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    folder = _tower(tmp_path, torch.float16)
    pixels = torch.zeros(1, 3, 32, 32)
    plain, half, auto = (load(folder, dtype=dtype) for dtype in ("float32", "bfloat16", "auto"))
    kinds = [next(iter(m.encoder.parameters())).dtype for m in (plain, half, auto)]
    assert kinds == [torch.float32, torch.bfloat16, torch.float16]
    with torch.inference_mode():
        exact = plain.encoder.encode_image(pixels).tokens
        rough = half.encoder.encode_image(pixels.bfloat16()).tokens
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)
    assert plain.revision == "local" and plain.sha256 == fingerprint([folder / "model.safetensors"])
    assert mm.embed(render_scene(1, (96, 128)).pixels, model=half).source.dtype == "bfloat16"


def test_sharded_weights_equal_the_same_in_one_file(tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    folder = _tower(tmp_path / "one", torch.float32)
    many = Path(shutil.copytree(folder, tmp_path / "many"))
    (many / "model.safetensors").unlink()
    CLIPVisionModel.from_pretrained(folder).save_pretrained(many, max_shard_size="20KB")
    assert len(list(many.glob("model-*.safetensors"))) > 1
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        a, b = (load(each).encoder.encode_image(pixels).pooled for each in (folder, many))
    assert torch.equal(a, b)


def _tower(folder: Path, dtype: torch.dtype) -> Path:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=16)
    CLIPVisionModel(config).to(dtype).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder


def test_a_repository_of_the_hub_gives_its_commit_to_every_result(tmp_path: Path, monkeypatch: Any) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = _tower(tmp_path / "snapshots" / commit, torch.float32)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    source = mm.embed(render_scene(1, (96, 128)).pixels, model="hf:org/name@main").source
    assert (source.model, source.revision) == ("hf:org/name@main", commit)


def test_a_joined_folder_that_asks_for_impossible_sizes_is_refused(copy: Path) -> None:
    config = json.loads((copy / "decoder" / "config.json").read_text())
    (copy / "decoder" / "config.json").write_text(json.dumps(config | {"hidden_size": 10**9}))
    with pytest.raises(CheckpointError, match=r"config\.json: hidden_size: 1,000,000,000"):
        load(copy)


@pytest.mark.parametrize("key", ["revision", "licence", "encoder"])
def test_a_joined_folder_without_its_papers_is_refused(copy: Path, key: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config[key]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        load(copy)


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


def test_a_folder_that_was_written_again_is_read_again(copy: Path) -> None:
    first = load(str(copy))
    assert load(str(copy)) is first
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"revision": "another"}))
    assert load(str(copy)).revision == "another"
