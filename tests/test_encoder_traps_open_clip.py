"""Where open_clip and timm checkpoints are commonly read wrong without an error: one test for each known trap."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.utils.model import reparameterize_model

from mm.encoders import open_clip_hub, open_clip_pair, timm_tower
from mm.encoders.build import load_encoder
from mm.encoders.open_clip_text import open_clip_rules
from mm.encoders.text import canonical_form
from mm.errors import CheckpointError, InputError
from mm.images import open_image
from tests.parity import encoder_open_clip_folders as make
from tests.parity.encoder_open_clip_folders import close

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
TEXTS = [
    "a photo of a cat", "TWO  Cats,\tand a DOG!!", "it's 3 o'clock; we'll see", "naïve café, 東京 ☃ 👩\u200d🚀",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; more", "&#38;#38;#38;amp; &AMP;AMP;", "a < b &amp;amp;amp; c", "ﬁne ＬＯＵＤ",
    "a_b__c (d) [e] {f}", "", "   ", "Â£5 â€œmojibakeâ€\x9d", "antidisestablishmentarianism " * 60,
    "1234567890 " * 40, "x" * 90 + " y",
]  # fmt: skip


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    make.open_clip_folder(folder, "siglip")
    return folder


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mobile")
    make.open_clip_folder(folder, "mobile fastvit")
    return folder


@pytest.fixture(scope="module")
def simple() -> Any:
    return open_clip_rules({}, None, "test")


def changed(folder: Path, part: str, **said: Any) -> Path:
    """The same folder, with other words in `part` of its model's configuration."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][part] |= said
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@torch.inference_mode()
def test_trap_01_siglip_texts_are_filled_to_their_full_length(siglip: Path) -> None:
    encoder: Any = load_encoder(siglip).encoder
    ids, mask, _ = encoder.rules(["cat"])
    assert ids.shape == (1, 64) and mask.sum() == 2 and ids[0, 1:].tolist() == [1] + [0] * 62
    assert encoder.encode_text(["cat"]).tokens.shape == (1, 64, 32)


def test_trap_03_siglip_texts_lose_case_and_punctuation(siglip: Path) -> None:
    rules: Any = load_encoder(siglip).encoder.rules
    assert torch.equal(rules(["A Cat, red!"])[0], rules(["a cat red"])[0])
    assert not torch.equal(rules(["a cat red"])[0], rules(["a cat"])[0])
    assert canonical_form("A&amp;B_c,  D", "mended letters") == "ab c d"
    assert torch.equal(rules(TEXTS)[0], make.open_clip_tokenizer(siglip)(TEXTS))


def test_trap_04_siglip_scores_are_sigmoids_with_the_bias(siglip: Path) -> None:
    encoder: Any = load_encoder(siglip).encoder
    one = torch.nn.functional.normalize(torch.ones(1, 32), dim=-1)
    score = encoder.similarity(3 * one, torch.cat([one, -one]))
    scale = encoder.model.logit_scale.exp()
    close(score, torch.sigmoid(torch.stack([scale - 10, -scale - 10])[None]))
    assert encoder.spec.rule == "sigmoid" and score.sum() < 1


def test_trap_04_a_missing_bias_is_not_made_up(siglip: Path, tmp_path: Path) -> None:
    for file in siglip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "open_clip_model.safetensors")
    weights.pop("logit_bias")
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match="missing logit_bias"):
        load_encoder(tmp_path)


@torch.inference_mode()
def test_trap_05_the_end_mark_is_what_is_pooled_even_of_cut_texts(mobile: Path) -> None:
    encoder: Any = load_encoder(mobile).encoder
    ids, _, cut = encoder.rules(["cat", "word " * 200, "<end_of_text> cat"])
    assert cut == (False, True, False)
    assert [int(row.argmax()) for row in ids] == [2, 76, len(encoder.rules.plain_ids("<end_of_text> cat")) + 1]
    assert [int((row == 49407).sum()) for row in ids] == [1, 1, 1]


def test_trap_06_published_weights_bring_their_own_normalisation() -> None:
    for name, tag, mean, resample in [
        ("MobileCLIP2-S0", "dfndr2b", (0.0, 0.0, 0.0), "bilinear"),
        ("MobileCLIP-S2", "datacompdr", (0.0, 0.0, 0.0), "bilinear"),
        ("MobileCLIP2-S3", "dfndr2b", CLIP_MEAN, "bilinear"),
        ("MobileCLIP2-L-14", "dfndr2b", CLIP_MEAN, "bicubic"),
        ("ViT-B-16-SigLIP", "webli", (0.5, 0.5, 0.5), "bicubic"),
    ]:
        _, said = open_clip_hub.trained_with(name, tag)
        prepared = open_clip_pair.open_clip_preprocessing(said, (224, 224), name)
        assert (prepared.mean, prepared.resample) == (mean, resample), name
        assert prepared.policy == ("squash" if "SigLIP" in name else "crop")


def test_trap_06_open_clips_and_timms_words_about_the_same_weights_differ_and_each_is_kept() -> None:
    _, said = open_clip_hub.trained_with("MobileCLIP2-S0", "dfndr2b")
    theirs = open_clip_pair.open_clip_preprocessing(said, (256, 256), "test")
    config = timm.get_pretrained_cfg("fastvit_mci0").to_dict()  # type: ignore[union-attr]
    timms = timm_tower.timm_preprocessing(config, (256, 256), "test")
    assert (theirs.resample, theirs.shortest_edge) == ("bilinear", None)
    assert (timms.resample, timms.shortest_edge) == ("bicubic", 269)


def test_trap_06_weights_that_were_trained_in_several_ways_need_their_tag() -> None:
    with pytest.raises(CheckpointError, match="weights of ViT-B-32 differ.*say which: openai, laion400m"):
        open_clip_hub.trained_with("ViT-B-32", None)
    assert open_clip_hub.trained_with("ViT-B-32", "openai")[0]
    assert not open_clip_hub.trained_with("ViT-B-32", "laion2b_s34b_b79k")[0]


def test_trap_06_the_activation_is_the_checkpoints(tmp_path: Path) -> None:
    picture = torch.randn(1, 3, 32, 32)
    pooled = []
    for case in ("vit gelu", "vit quickgelu"):
        make.open_clip_folder(tmp_path / case, case)
        with torch.inference_mode():
            pooled.append(load_encoder(tmp_path / case).encoder.encode_image(picture).pooled)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-2  # the weights are the same


def test_trap_07_transparency_is_composited_before_any_adapter(mobile: Path) -> None:
    preprocessing = load_encoder(mobile).encoder.spec.preprocessing
    clear = Image.new("RGBA", (80, 70), (255, 0, 0, 0))
    data = io.BytesIO()
    clear.save(data, "PNG")
    from_object, from_bytes = (preprocessing.pixels(open_image(x).pixels) for x in (clear, data.getvalue()))
    assert torch.equal(from_object, from_bytes)
    assert (preprocessing.mean, preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)
    torch.testing.assert_close(from_object, torch.ones(3, 64, 64))


def test_trap_11_arrays_that_are_no_pictures_in_rows_are_refused(mobile: Path) -> None:
    encoder = load_encoder(mobile).encoder
    for shape in [(3, 64, 64), (1, 64, 64, 3), (1, 1, 64, 64)]:
        with pytest.raises(InputError, match=r"pixels: expected \[B, 3, H, W\]"):
            encoder.encode_image(torch.zeros(shape))


@torch.inference_mode()
def test_trap_17_grids_that_are_not_square_stay_so(mobile: Path, tmp_path: Path) -> None:
    make.open_clip_folder(tmp_path, "vit oblong")
    for folder, hw, grid in [(tmp_path, (32, 48), (4, 6)), (mobile, (64, 96), (2, 3))]:
        picture = torch.zeros(1, 3, *hw)
        picture[:, :, :, hw[1] // 2 :] = 1
        out = load_encoder(folder).encoder.encode_image(picture)
        assert out.grid == grid and out.map().shape[2:] == grid


def test_trap_18_as_many_patches_in_another_shape_are_refused(tmp_path: Path) -> None:
    make.open_clip_folder(tmp_path, "vit gelu")
    encoder = load_encoder(tmp_path).encoder
    with pytest.raises(InputError, match=r"expected \[B, 3, 32, 32\], got \[1, 3, 16, 64\]"):
        encoder.encode_image(torch.zeros(1, 3, 16, 64))


@torch.inference_mode()
def test_trap_19_the_temperature_keeps_its_precision_in_half_precision(siglip: Path) -> None:
    full: Any = load_encoder(siglip).encoder
    half: Any = load_encoder(siglip, dtype="bfloat16").encoder
    assert half.encode_image(torch.zeros(1, 3, 32, 32)).pooled.dtype == torch.bfloat16
    assert half.encode_text(["cat"]).pooled.dtype == torch.bfloat16
    assert torch.equal(half.model.logit_scale, full.model.logit_scale)
    image, text = torch.randn(2, 32), torch.randn(3, 32)
    close(half.similarity(image, text), full.similarity(image, text))


@torch.inference_mode()
def test_trap_21_fusing_comes_after_the_weights(mobile: Path) -> None:
    encoder: Any = load_encoder(mobile).encoder
    branches: Any = load_encoder(mobile, train=True).encoder
    assert (
        branches.training
        and branches.model.state_dict().keys() == make.open_clip_folder(mobile, "mobile fastvit").state_dict().keys()
    )
    assert len(encoder.model.state_dict()) < len(branches.model.state_dict())
    picture = torch.rand(2, 3, 64, 64)
    close(encoder.encode_image(picture).tokens, branches.eval().encode_image(picture).tokens)


def test_trap_21_keys_of_a_tower_that_was_fused_before_are_refused(mobile: Path, tmp_path: Path) -> None:
    model = make.open_clip_reference(make.CONFIGS["mobile fastvit"])
    model.visual.trunk = reparameterize_model(model.visual.trunk)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_bytes((mobile / "open_clip_config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"missing .*; unexpected visual\.trunk.*reparam_conv"):
        load_encoder(tmp_path)


def test_trap_21_tokens_are_after_the_final_convolution_and_layers_before_it(mobile: Path) -> None:
    encoder = load_encoder(mobile).encoder
    with torch.inference_mode():
        out = encoder.encode_image(torch.rand(1, 3, 64, 64), (0, 1, 2, 3))
    assert out.tokens.shape[2] == encoder.spec.width == 128
    assert [out.layers[i].shape[2] for i in range(4)] == [8, 16, 32, 64]
    assert [out.layer_grids[i] for i in range(4)] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_ids_equal_open_clips_own_tokenizer(simple: Any) -> None:
    assert torch.equal(simple(TEXTS)[0], SimpleTokenizer()(TEXTS))


def test_merging_by_heap_equals_open_clips_merging(simple: Any) -> None:
    draw = random.Random(0)
    theirs = SimpleTokenizer()
    for letters in ("ab", "the", "abcdefghijklmnopqrstuvwxyz", "éü漢🚀-=!"):
        for length in (1, 2, 7, 60, 200):
            word = "".join(draw.choices(letters, k=length))
            assert simple.plain_ids(word) == theirs.encode(word), word


def test_the_spelling_of_a_special_token_is_read_as_letters(simple: Any, siglip: Path) -> None:
    for text in ("<end_of_text>", "a <start_of_text> b", "<END_OF_TEXT><|endoftext|>"):
        assert max(simple.plain_ids(simple.canonical(text))) < 49406
        assert max(SimpleTokenizer().encode("<end_of_text>")) == 49407  # as open_clip reads it
    hub: Any = load_encoder(siglip).encoder.rules
    assert 1 not in hub.plain_ids("a </s> b") and 0 not in hub.plain_ids("<pad>")


@pytest.mark.parametrize("text", ["x" * 16_000, "&" + "amp;" * 4000, "ab" * 8000, "&#38;" + "#38;" * 4000])
def test_texts_that_open_clip_reads_in_seconds_take_few_steps(simple: Any, text: str) -> None:
    steps = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    ids, _, cut = simple([text])
    sys.setprofile(None)
    assert ids.shape == (1, 77) and steps < 40_000
    assert cut == (not text.startswith("&"),)


def test_a_tokenizer_that_is_not_in_the_folder_is_named(siglip: Path, tmp_path: Path) -> None:
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).write_bytes((siglip / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"'org/letters', whose files \(tokenizer.json.*not in the folder"):
        load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer 'timm/ViT-B-16-SigLIP', whose files"):
        open_clip_pair.load_named("ViT-B-16-SigLIP", None)


def test_what_an_open_clip_folder_may_not_hold_is_named(tmp_path: Path) -> None:
    make.open_clip_folder(tmp_path, "mobile vit")
    for part, said, message in [
        ("vision_cfg", {"timm_model_name": "tiny_vitt"}, "no model 'tiny_vitt'. Did you mean \"tiny_vit\""),
        ("vision_cfg", {"timm_model_name": "hf-hub:org/model"}, "no model 'hf-hub:org/model'"),
        ("vision_cfg", {"timm_model_name": "tiny_vit", "unheard": 1}, "cannot be built.*unheard"),
        ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/x"}}, "tokenizer_kwargs bpe_path not supported"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "scrub"}}, "unknown text cleaning 'scrub'"),
        ("text_cfg", {"tokenizer_kwargs": {}, "tokenizer_mode": "clips"}, "tokenizer_mode 'clips'"),
        ("text_cfg", {"tokenizer_mode": None, "hf_model_name": "roberta-base"}, "'roberta-base' of transformers"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_encoder(changed(tmp_path, part, **said))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no model_cfg"):
        load_encoder(tmp_path)


def test_published_weights_are_found_by_name_and_tag() -> None:
    found = open_clip_hub.hub_weights("MobileCLIP2-S0", "dfndr2b")
    assert (found.repo, found.file) == ("timm/MobileCLIP2-S0-OpenCLIP", "open_clip_model.safetensors")
    assert open_clip_hub.tokenizer_repo("ViT-B-16-SigLIP") == "timm/ViT-B-16-SigLIP"
    assert open_clip_hub.tokenizer_repo("MobileCLIP2-S0") is None
    with pytest.raises(CheckpointError, match=r"no weights 'dfndr2'; published: dfndr2b\. Did you mean"):
        open_clip_hub.hub_weights("MobileCLIP2-S0", "dfndr2")
    with pytest.raises(CheckpointError, match=r"no model 'MobileCLIP2-S9'\. Did you mean"):
        open_clip_hub.hub_weights("MobileCLIP2-S9", "dfndr2b")


@pytest.mark.parametrize(
    ("name", "width", "grid", "prefix"),
    [
        ("MobileCLIP2-S0", 1024, (8, 8), 0),
        ("MobileCLIP-B", 768, (14, 14), 1),
        ("ViT-B-32", 768, (7, 7), 1),
        ("RN50", 2048, (7, 7), 0),
        ("coca_ViT-B-32", 768, (7, 7), 1),
        ("EVA02-B-16", 768, (14, 14), 1),
        ("convnext_base", 1024, (7, 7), 0),
    ],
)
def test_published_shapes_without_memory(name: str, width: int, grid: tuple[int, int], prefix: int) -> None:
    config = open_clip.get_model_config(name)
    assert config is not None
    with torch.device("meta"):
        model = open_clip_pair.open_clip_model(config, name, text_files=None).eval()
    size = model.visual.image_size
    height, breadth = (size, size) if isinstance(size, int) else size
    encoder = open_clip_pair.OpenClipEncoder(model, open_clip_rules({}, None, name), None, channels_last=False)  # type: ignore[arg-type]
    with torch.no_grad():
        out = encoder.encode_image(torch.zeros(1, 3, height, breadth, device="meta"))
    assert (out.tokens.shape[2], out.grid, out.prefix.shape[1]) == (width, grid, prefix)
    assert out.pooled.shape == (1, config["embed_dim"])


def test_a_joined_model_hands_its_pixels_over_in_any_layout(mobile: Path) -> None:
    encoder: Any = load_encoder(mobile).encoder
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    pixels = encoder.spec.preprocessing.pixels(picture)[None]
    seen: list[torch.Tensor] = []
    encoder.model.visual.trunk.stem.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.inference_mode():
        rows, channels = (
            encoder.encode_image(x).tokens for x in (pixels, pixels.contiguous(memory_format=torch.channels_last))
        )
    assert torch.equal(rows, channels) and len(seen) == 2
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
