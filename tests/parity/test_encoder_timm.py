"""Image towers of timm through our adapter, against timm itself on the same random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.layers.conv_bn_act import ConvNormAct
from timm.utils.model import reparameterize_model
from torch import nn

from mm.encoders.base import Encoder
from mm.encoders.build import load_encoder
from mm.encoders.fuse import fused, has_branches
from mm.encoders.timm_tower import load, load_named, timm_preprocessing
from mm.errors import CheckpointError, InputError
from tests.parity import encoder_open_clip_folders as make
from tests.parity.encoder_open_clip_folders import close

PREFIX = {"vit": 1, "vit registers": 3, "eva": 1}
CONVOLUTIONAL = ("convnext", "resnet", "fastvit")


@pytest.fixture(scope="module", params=make.TIMM)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """The case, ours, theirs."""
    folder = tmp_path_factory.mktemp("timm")
    theirs = make.timm_folder(folder, request.param)
    return request.param, load_encoder(folder).encoder, theirs


def pixels(encoder: Any, count: int) -> torch.Tensor:
    return torch.randn(count, 3, *encoder.spec.preprocessing.input_hw, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 5])
@torch.inference_mode()
def test_tokens_and_prefix_equal_forward_features(tower: Any, count: int) -> None:
    case, ours, theirs = tower
    picture = pixels(ours, count)
    out, final = ours.encode_image(picture), theirs.forward_features(picture)
    assert isinstance(ours, Encoder) and out.prefix.shape[1] == PREFIX.get(case, 0)
    if final.ndim == 3:
        close(torch.cat([out.prefix, out.tokens], 1), final)
    else:
        close(out.map(), final.permute(0, 3, 1, 2) if case == "swin" else final)
    assert out.tokens.shape == (count, out.grid[0] * out.grid[1], ours.spec.width)


@torch.inference_mode()
def test_pooled_is_the_projection_or_what_comes_before_the_labels(tower: Any) -> None:
    case, ours, theirs = tower
    picture = pixels(ours, 2)
    pooled = ours.encode_image(picture).pooled
    labels = case == "convnext"  # 1,000 of them
    close(pooled, theirs.forward_head(theirs.forward_features(picture), pre_logits=labels))
    assert pooled.shape[1] == ours.spec.embedding != 1000


@torch.inference_mode()
def test_layers_equal_forward_intermediates(tower: Any) -> None:
    case, ours, theirs = tower
    picture = pixels(ours, 2)
    plain, deep = ours.encode_image(picture), ours.encode_image(picture, (0, -1))
    close(deep.tokens, plain.tokens)
    close(deep.pooled, plain.pooled)
    first = int(case == "resnet")  # timm lists a ResNet's stem in front of its stages
    expected = theirs.forward_intermediates(picture, norm=False, intermediates_only=True)
    close(deep.map(0), expected[first])
    close(deep.map(-1), expected[-1])
    with pytest.raises(InputError, match="blocks, got"):
        ours.encode_image(picture, (len(expected) - first,))


@torch.inference_mode()
def test_pixels_that_are_not_square_keep_rows_and_columns_apart(tower: Any) -> None:
    case, ours, theirs = tower
    if case in CONVOLUTIONAL or case == "vit registers":
        picture = torch.randn(2, 3, 64, 96)
        out = ours.encode_image(picture, (0,))
        assert out.grid[0] * 3 == out.grid[1] * 2
        first = theirs.forward_intermediates(picture, norm=False, intermediates_only=True)[int(case == "resnet")]
        close(out.map(0), first)
    else:
        with pytest.raises(InputError, match=r"expected \[B, 3, (64, 64|56, 56)\], got \[2, 3, 64, 96\]"):
            ours.encode_image(torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize("case", ["vit", "eva"])
@torch.inference_mode()
def test_another_input_size_is_resampled_as_timm_does(tmp_path: Path, case: str) -> None:
    theirs = make.timm_folder(tmp_path, case)
    stride = theirs.feature_info[-1]["reduction"]
    hw = (5 * stride, 3 * stride)
    theirs.set_input_size(img_size=hw)
    ours = load(tmp_path, dtype="float32", train=False, image_hw=hw)
    picture = torch.randn(2, 3, *hw)
    out = ours.encode_image(picture)
    assert out.grid == (5, 3) and ours.spec.preprocessing.input_hw == hw
    close(torch.cat([out.prefix, out.tokens], 1), theirs.forward_features(picture))


@torch.inference_mode()
def test_a_fused_tower_equals_its_branches(tmp_path: Path) -> None:
    theirs = make.timm_folder(tmp_path, "fastvit")
    ours = load(tmp_path, dtype="float32", train=False)
    branches = load(tmp_path, dtype="float32", train=True)
    assert has_branches(branches.trunk) and branches.training and all(p.requires_grad for p in branches.parameters())
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    counts = [sum(p.numel() for p in m.parameters()) for m in (ours, reparameterize_model(theirs), theirs)]
    assert counts[0] < counts[1] < counts[2]  # norms folded; branches fused; as published
    assert not any(isinstance(m, ConvNormAct) and isinstance(m.bn, nn.BatchNorm2d) for m in ours.modules())
    picture = pixels(ours, 2)
    expected = theirs.forward_features(picture)
    close(ours.encode_image(picture).map(), expected)
    close(branches.eval().encode_image(picture).map(), expected)


def test_fusing_that_changes_the_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name, options = make.TIMM["fastvit"]
    tower = make.shaken(timm.create_model(name, **options))
    other = reparameterize_model(make.shaken(timm.create_model(name, **options), seed=1))
    monkeypatch.setattr("mm.encoders.fuse.reparameterize_model", lambda _tower, inplace: other)
    with pytest.raises(CheckpointError, match="tiny: the fused tower differs from its branches"):
        fused(tower, (64, 64), "tiny")


@torch.inference_mode()
def test_convolutional_towers_run_with_channels_last(tmp_path: Path) -> None:
    make.timm_folder(tmp_path / "conv", "fastvit")
    make.timm_folder(tmp_path / "vit", "vit")
    conv: Any = load_encoder(tmp_path / "conv").encoder
    seen: list[torch.Tensor] = []
    conv.trunk.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    conv.trunk.stem.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    conv.encode_image(torch.randn(2, 3, 64, 64))
    assert seen and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    vit: Any = load_encoder(tmp_path / "vit").encoder
    assert not vit.channels_last


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
@torch.inference_mode()
def test_the_dtype_is_the_one_asked_for(tmp_path: Path, dtype: Any) -> None:
    theirs = make.timm_folder(tmp_path, "vit")
    weights = {k: v.half() for k, v in load_file(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors")
    ours = load_encoder(tmp_path, dtype=dtype).encoder
    picture = pixels(ours, 2)
    out = ours.encode_image(picture)
    assert out.tokens.dtype == {"bfloat16": torch.bfloat16, "auto": torch.float16}[dtype]
    expected = theirs.forward_features(picture)[:, 1:]
    assert torch.nn.functional.cosine_similarity(out.tokens.float(), expected, dim=-1).min() > 0.99


TRANSFORMS = {
    "as released": {},
    "crop": {"crop_pct": 0.9, "interpolation": "bilinear"},
    "squash": {"crop_pct": 1.0, "crop_mode": "squash", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "squash and crop": {"crop_pct": 0.9, "crop_mode": "squash"},
    "border": {"crop_pct": 1.0, "crop_mode": "border"},
}


@pytest.mark.parametrize("said", TRANSFORMS)
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (201, 90), (63, 399)])
def test_pixels_equal_timms_own_transform(said: str, size: tuple[int, int]) -> None:
    config = {"input_size": (3, 64, 64), **TRANSFORMS[said]}
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs: Any = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    ours = timm_preprocessing(config, (64, 64), "test").pixels(picture)
    torch.testing.assert_close(ours, theirs(Image.fromarray(picture)), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_a_name_of_timm_and_a_file_make_the_same_tower(tmp_path: Path) -> None:
    theirs = make.shaken(timm.create_model("test_convnext"))
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = load_named("test_convnext", tmp_path / "weights.safetensors")
    picture = pixels(ours, 1)
    close(ours.encode_image(picture).map(), theirs.forward_features(picture))
    fresh = load_named("test_convnext", None, train=True)
    assert fresh.encode_image(picture).tokens.shape == (1, 25, ours.spec.width)


def changed(folder: Path, **said: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | said))
    return folder


def test_what_a_folder_may_not_hold_is_named(tmp_path: Path) -> None:
    make.timm_folder(tmp_path, "convnext")
    with pytest.raises(CheckpointError, match=r"no model 'test_convnex'\. Did you mean \"test_convnext\""):
        load_encoder(changed(tmp_path, architecture="test_convnex"))
    with pytest.raises(CheckpointError, match="timm has no model 'hf-hub:timm/resnet18'"):
        load_encoder(changed(tmp_path, architecture="hf-hub:timm/resnet18"))
    with pytest.raises(CheckpointError, match="cannot be built from its configuration.*unheard"):
        load_encoder(changed(tmp_path, architecture="test_convnext", model_args={"unheard": 1}))
    with pytest.raises(CheckpointError, match="missing blocks"):
        load_encoder(changed(tmp_path, architecture="test_vit", model_args={}))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickled weights are never loaded"):
        load_encoder(tmp_path)


def test_a_tower_alone_has_no_texts(tmp_path: Path) -> None:
    make.timm_folder(tmp_path, "vit")
    ours = load_encoder(tmp_path).encoder
    assert (ours.rules, ours.spec.text, ours.spec.rule) == (None, None, None)
    with pytest.raises(InputError, match="no text tower"):
        ours.encode_text(["cat"])
    with pytest.raises(InputError, match="no text tower"):
        ours.similarity(torch.ones(1, 24), torch.ones(1, 24))
