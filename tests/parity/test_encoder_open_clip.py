"""Pairs of open_clip through our adapter, against open_clip itself on the same random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image

from mm.encoders.base import Encoder
from mm.encoders.build import load_encoder
from mm.errors import InputError
from tests.parity import encoder_open_clip_folders as make
from tests.parity.encoder_open_clip_folders import close

Pair = tuple[Any, Any]


@pytest.fixture(scope="module", params=make.CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Ours, theirs, and the folder."""
    folder = tmp_path_factory.mktemp("open_clip")
    theirs = make.open_clip_folder(folder, request.param)
    return load_encoder(folder).encoder, theirs, folder


def pixels(encoder: Any, count: int) -> torch.Tensor:
    return torch.randn(count, 3, *encoder.spec.preprocessing.input_hw, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 5])
@torch.inference_mode()
def test_pooled_features_equal_encode_image(pair: Any, count: int) -> None:
    ours, theirs, _ = pair
    picture = pixels(ours, count)
    out = ours.encode_image(picture)
    close(out.pooled, theirs.encode_image(picture, normalize=False))
    assert isinstance(ours, Encoder) and out.pooled.shape == (count, ours.spec.embedding)
    assert out.tokens.shape == (count, out.grid[0] * out.grid[1], ours.spec.width)


@torch.inference_mode()
def test_layers_are_what_the_blocks_give_out(pair: Any) -> None:
    ours, theirs, _ = pair
    picture = pixels(ours, 2)
    plain, deep = ours.encode_image(picture), ours.encode_image(picture, (0, -1))
    close(deep.tokens, plain.tokens)
    close(deep.pooled, plain.pooled)
    caught = caught_outputs(theirs, picture)
    for asked, block in ((0, caught[0]), (-1, caught[-1])):
        assert tuple(deep.map(asked).shape[2:]) == deep.layer_grids[asked]
        if block.ndim == 3:
            close(deep.layers[asked], block[:, block.shape[1] - deep.layers[asked].shape[1] :])
        else:
            close(deep.map(asked), block)
    with pytest.raises(InputError, match="blocks, got 99"):
        ours.encode_image(picture, (99,))


def caught_outputs(model: Any, picture: torch.Tensor) -> list[torch.Tensor]:
    """What the reference's blocks or stages gave out, caught by hooks."""
    visual = model.visual
    if hasattr(visual, "trunk"):
        blocks = visual.trunk.stages if hasattr(visual.trunk, "stages") else visual.trunk.blocks
    elif hasattr(visual, "layer1"):
        blocks = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    else:
        blocks = visual.transformer.resblocks
    caught: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: caught.append(out)) for block in blocks]
    model.encode_image(picture)
    for hook in hooks:
        hook.remove()
    return caught


@torch.inference_mode()
def test_texts_equal_encode_text(pair: Any) -> None:
    ours, theirs, folder = pair
    ids = make.open_clip_tokenizer(folder)(make.TEXTS)
    assert torch.equal(ours.rules(make.TEXTS)[0], ids)
    out = ours.encode_text(make.TEXTS)
    close(out.pooled, theirs.encode_text(ids, normalize=False))
    assert out.tokens.shape[:2] == out.mask.shape == ids.shape
    assert out.mask.sum(1).tolist() == [int((row != 0).sum()) for row in ids]
    close(ours.encode_text([make.TEXTS[1]]).pooled[0], out.pooled[1])


@torch.inference_mode()
def test_similarity_follows_the_checkpoint(pair: Any) -> None:
    ours, theirs, folder = pair
    ids, picture = make.open_clip_tokenizer(folder)(make.TEXTS), pixels(ours, 3)
    image, text = (F.normalize(x, dim=-1) for x in (theirs.encode_image(picture), theirs.encode_text(ids)))
    logits = theirs.logit_scale.exp() * image @ text.T
    expected = logits.softmax(-1) if theirs.logit_bias is None else (logits + theirs.logit_bias).sigmoid()
    got = ours.similarity(ours.encode_image(picture).pooled, ours.encode_text(make.TEXTS).pooled)
    assert ours.spec.rule == ("softmax" if theirs.logit_bias is None else "sigmoid")
    close(got, expected)


@torch.inference_mode()
def test_tokens_of_a_native_vit_are_after_its_last_norm(tmp_path: Path) -> None:
    theirs = make.open_clip_folder(tmp_path, "vit quickgelu")
    ours = load_encoder(tmp_path).encoder
    picture = pixels(ours, 2)
    theirs.visual.output_tokens = True
    pooled, tokens = theirs.visual(picture)
    out = ours.encode_image(picture)
    close(out.tokens, tokens)
    close(out.prefix[:, 0] @ theirs.visual.proj, pooled)
    assert out.grid == (4, 4)


@torch.inference_mode()
def test_tokens_of_a_fastvit_are_after_its_final_convolution(tmp_path: Path) -> None:
    theirs = make.open_clip_folder(tmp_path, "mobile fastvit")
    ours = load_encoder(tmp_path).encoder
    picture = pixels(ours, 2)
    out = ours.encode_image(picture, (3,))
    close(out.map(), theirs.visual.trunk.forward_features(picture))
    assert (ours.spec.width, out.layers[3].shape[2]) == (128, 64) and "final convolution" in ours.spec.tokens


@torch.inference_mode()
@pytest.mark.parametrize(("case", "prefix"), [("siglip", 0), ("mobile vit", 1)])
def test_tokens_of_a_timm_vit_are_split_as_the_tower_says(tmp_path: Path, case: str, prefix: int) -> None:
    theirs = make.open_clip_folder(tmp_path, case)
    ours = load_encoder(tmp_path).encoder
    picture = pixels(ours, 2)
    final = theirs.visual.trunk.forward_features(picture)
    out = ours.encode_image(picture)
    assert out.prefix.shape[1] == prefix and out.grid == (4, 4)
    close(torch.cat([out.prefix, out.tokens], 1), final)


PREPARED = {
    "as released": {},
    "bilinear 0/1": make.MOBILE,
    "squash": make.HALF,
    "longest": {"resize_mode": "longest", "fill_color": 37},
}


@pytest.mark.parametrize("said", PREPARED)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (101, 45), (31, 200), (480, 331)])
def test_pixels_equal_open_clips_own_transform(said: str, size: tuple[int, int]) -> None:
    from mm.encoders.open_clip_pair import open_clip_preprocessing

    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(size=(32, 32)), PREPARED[said]))
    theirs: Any = image_transform_v2(config, is_train=False)
    ours = open_clip_preprocessing(PREPARED[said], (32, 32), "test").pixels(picture)
    torch.testing.assert_close(ours, theirs(Image.fromarray(picture)), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_the_folder_gives_what_open_clip_makes_of_it(tmp_path: Path) -> None:
    make.open_clip_folder(tmp_path, "vit gelu", "model.safetensors")
    theirs, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")  # type: ignore[misc]
    picture = np.random.default_rng(1).integers(0, 256, (61, 45, 3), dtype=np.uint8)
    ours = load_encoder(tmp_path).encoder
    expected = theirs.eval().encode_image(transform(Image.fromarray(picture))[None])  # type: ignore[operator]
    close(ours.encode_image(ours.spec.preprocessing.pixels(picture)[None]).pooled, expected)


@torch.inference_mode()
def test_another_input_size_is_resampled_as_open_clip_does(tmp_path: Path) -> None:
    from mm.encoders.open_clip_pair import load

    make.open_clip_folder(tmp_path, "vit gelu")
    theirs = open_clip.create_model(f"local-dir:{tmp_path}", force_image_size=(48, 64)).eval()
    ours = load(tmp_path, dtype="float32", train=False, image_hw=(48, 64))
    picture = torch.randn(2, 3, 48, 64)
    out = ours.encode_image(picture)
    assert out.grid == (6, 8) and ours.spec.preprocessing.input_hw == (48, 64)
    close(out.pooled, theirs.encode_image(picture))  # type: ignore[operator]


@torch.inference_mode()
def test_a_text_tower_of_transformers_is_read_from_the_folder(tmp_path: Path) -> None:
    from open_clip.hf_model import HFTextEncoder
    from safetensors.torch import save_file
    from transformers import XLMRobertaConfig

    make.letters_tokenizer(tmp_path)
    XLMRobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=80, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ).save_pretrained(tmp_path)  # fmt: skip
    text = {"hf_model_name": "org/roberta", "hf_tokenizer_name": "org/roberta", "hf_pooler_type": "mean_pooler"}
    config = {"embed_dim": 24, "vision_cfg": make.VIT, "text_cfg": text}
    here = text | {"hf_model_name": str(tmp_path), "hf_model_pretrained": False}
    theirs = make.open_clip_reference(config | {"text_cfg": here, "custom_text": True})
    assert isinstance(theirs.text, HFTextEncoder)
    (tmp_path / "open_clip_config.json").write_text(make.json.dumps({"model_cfg": config}))
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    ours = load_encoder(tmp_path).encoder
    close(ours.encode_text(make.TEXTS).pooled, theirs.encode_text(make.open_clip_tokenizer(tmp_path)(make.TEXTS)))
