"""Our way through ViTMatte against transformers' own processor and model, on tiny random checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting, VitMatteImageProcessor

from mm.errors import CheckpointError, InputError
from mm.heads.vitmatte import VitMatte, load_vitmatte


def checkpoint(folder: Path, seed: int = 0) -> VitMatteForImageMatting:
    """A tiny ViTMatte with window and global blocks, every weight random, in the library's own format."""
    torch.manual_seed(seed)
    backbone = VitDetConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_channels=4, image_size=64,
        pretrain_image_size=64, patch_size=16, window_size=2, window_block_indices=[0, 2], residual_block_indices=[1],
        use_relative_position_embeddings=True, out_features=["stage4"],
    )  # fmt: skip
    reference = VitMatteForImageMatting(
        VitMatteConfig(
            backbone_config=backbone,
            hidden_size=32,
            convstream_hidden_sizes=[4, 6, 8],
            fusion_hidden_sizes=[16, 12, 8, 4],
        )
    ).eval()
    for name, value in reference.state_dict().items():
        if value.is_floating_point():
            (value.uniform_(0.5, 1.5) if name.endswith("running_var") else value.normal_(std=0.3))
    reference.save_pretrained(folder)
    VitMatteImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.4, 0.6]).save_pretrained(folder)
    return reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vitmatte") / "weights"


@pytest.fixture(scope="module")
def reference(folder: Path) -> VitMatteForImageMatting:
    return checkpoint(folder)


@pytest.fixture(scope="module")
def ours(folder: Path, reference: VitMatteForImageMatting) -> VitMatte:
    return load_vitmatte(folder)


def picture(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((height, width))
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    trimap = np.full((height, width), 128, np.uint8)
    trimap[: height // 4], trimap[-height // 4 :] = 0, 255
    return pixels, trimap


@torch.inference_mode()
def expected(reference: VitMatteForImageMatting, pixels: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    """The reference's alpha of the whole picture, its known pixels set."""
    values = VitMatteImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.4, 0.6])(
        images=pixels, trimaps=trimap, return_tensors="pt"
    ).pixel_values
    alpha = reference(values).alphas[0, 0, : trimap.shape[0], : trimap.shape[1]].numpy()
    return np.where(trimap == 128, alpha, trimap == 255)


@pytest.mark.parametrize("size", [(64, 64), (37, 90), (96, 33)])
def test_inputs_and_alpha_equal_the_reference(ours: VitMatte, reference: VitMatteForImageMatting, size) -> None:
    pixels, trimap = picture(*size)
    processor = VitMatteImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.4, 0.6])
    values = processor(images=pixels, trimaps=trimap, return_tensors="pt").pixel_values
    torch.testing.assert_close(ours.inputs(pixels, trimap), values, atol=1e-5, rtol=1e-5)
    want, got = expected(reference, pixels, trimap), ours.alpha(pixels, trimap)
    assert want[trimap == 128].std() > 0.01
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert got.dtype == np.float32 and got.shape == size


def test_tiles_are_the_reference_on_each_square_and_cover_the_picture(ours: VitMatte, reference) -> None:
    pixels, trimap = picture(64, 150)
    trimap[:] = 0
    trimap[10:50, 5:40] = 128  # within the first square only, so nothing is blended there
    got = ours.alpha(pixels, trimap, tile=64)
    want = expected(reference, pixels[:, :64], trimap[:, :64])
    assert (got[:, 64:] == 0).all()
    free = np.s_[:, :21]  # the second square starts at 43 at the earliest, the third later
    np.testing.assert_allclose(got[free], want[free], atol=1e-5)


def test_squares_without_a_doubt_are_never_run(ours: VitMatte, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    run = VitMatte._run
    monkeypatch.setattr(VitMatte, "_run", lambda self, p, t: sizes.append(t.shape) or run(self, p, t))
    pixels, trimap = picture(64, 600)
    trimap[:] = 255
    trimap[20:30, 4:12] = 128
    alpha = ours.alpha(pixels, trimap, tile=64)
    assert sizes == [(64, 64)]
    assert (alpha[trimap == 255] == 1).all() and alpha.shape == (64, 600)


def test_a_trimap_without_unknown_pixels_is_its_own_alpha(ours: VitMatte) -> None:
    pixels, trimap = picture(40, 40)
    trimap[trimap == 128] = 0
    np.testing.assert_array_equal(ours.alpha(pixels, trimap), trimap == 255)


def test_bad_trimaps_and_tiles_are_refused(ours: VitMatte) -> None:
    pixels, trimap = picture(40, 40)
    with pytest.raises(InputError, match=r"expected uint8\[40, 40\], got uint8\[40, 39\]"):
        ours.alpha(pixels, trimap[:, :-1])
    with pytest.raises(InputError, match="only 0, 128 and 255, got 7"):
        ours.alpha(pixels, np.full_like(trimap, 7))
    with pytest.raises(InputError, match="multiple of 32"):
        ours.alpha(pixels, trimap, tile=100)


def test_another_model_or_missing_weights_are_refused(tmp_path: Path, folder: Path, reference) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_file({"a": torch.ones(1)}, other / "model.safetensors")
    (other / "config.json").write_text(json.dumps({"model_type": "clip"}), "utf-8")
    with pytest.raises(CheckpointError, match='expected model_type "vitmatte"'):
        load_vitmatte(other)
    short = tmp_path / "short"
    short.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (short / name).write_text((folder / name).read_text("utf-8"), "utf-8")
    tensors = load_file(folder / "model.safetensors")
    del tensors["decoder.matting_head.matting_convs.0.weight"]
    save_file(tensors, short / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing decoder.matting_head"):
        load_vitmatte(short)
