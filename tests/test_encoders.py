"""The encoder contract on the layout in which `tiny` is stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mm.checkpoints.loading import load
from mm.encoders.base import Encoder
from mm.images import open_image
from mm.scenes import render_scene
from mm.zoo import EMBEDDED


@pytest.fixture(scope="module")
def encoder():
    return load("tiny").encoder


@torch.inference_mode()
def test_features_have_the_shapes_of_the_contract(encoder) -> None:
    assert isinstance(encoder, Encoder)
    spec = encoder.spec
    out = encoder.encode_image(torch.randn(3, 3, *spec.preprocessing.input_hw), spec.layers)
    assert out.grid == (8, 8)
    assert out.tokens.shape == (3, 64, spec.width)
    assert out.prefix.shape == (3, 0, spec.width)
    assert out.pooled.shape == (3, spec.embedding)
    assert {i: out.layer_grids[i] for i in spec.layers} == {0: (64, 64), 1: (32, 32), 2: (16, 16)}
    assert all(out.layers[i].shape[1] == h * w for i, (h, w) in out.layer_grids.items())


@torch.inference_mode()
def test_asking_for_layers_changes_nothing_else(encoder) -> None:
    pixels = torch.randn(2, 3, 128, 128)
    plain, deep = encoder.encode_image(pixels), encoder.encode_image(pixels, (0, 1, 2))
    torch.testing.assert_close(plain.tokens, deep.tokens)
    torch.testing.assert_close(plain.pooled, deep.pooled)


@torch.inference_mode()
def test_a_batch_equals_its_pictures_alone(encoder) -> None:
    pixels = torch.randn(5, 3, 128, 128)
    together = encoder.encode_image(pixels)
    for i in range(5):
        torch.testing.assert_close(
            encoder.encode_image(pixels[i : i + 1]).tokens[0], together.tokens[i], atol=1e-4, rtol=1e-4
        )


@torch.inference_mode()
def test_texts_of_unequal_length_equal_themselves_alone(encoder) -> None:
    texts = ["cat", "two striped blue stars on a green background", "a drawing of a red car"]
    together = encoder.encode_text(texts)
    assert together.pooled.shape == (3, 256) and together.mask.shape == together.tokens.shape[:2]
    for i, text in enumerate(texts):
        torch.testing.assert_close(encoder.encode_text([text]).pooled[0], together.pooled[i], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_case_is_folded_as_in_training(encoder) -> None:
    torch.testing.assert_close(encoder.encode_text(["Red CAR"]).pooled, encoder.encode_text(["red car"]).pooled)


@torch.inference_mode()
def test_similarity_is_a_softmax_with_the_learned_temperature(encoder) -> None:
    image, text = torch.randn(2, 256), torch.randn(4, 256)
    cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    expected = (encoder.logit_scale.exp() * cosine).softmax(-1)
    torch.testing.assert_close(encoder.similarity(image, text), expected)
    torch.testing.assert_close(encoder.similarity(3 * image, text), expected)


@pytest.mark.parametrize("size", [(128, 128), (97, 171), (640, 400), (40, 300)])
def test_preprocessing_equals_timms_own_transform_of_the_folder(size: tuple[int, int]) -> None:
    from timm.data import create_transform, resolve_data_config

    folder = EMBEDDED / "tiny" / "vision"
    settings = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config(pretrained_cfg=settings))
    picture = open_image(render_scene(3, size).pixels)
    theirs = transform(Image.fromarray(np.asarray(picture.pixels)))
    torch.testing.assert_close(load("tiny").pixels(picture), theirs, atol=1e-6, rtol=0)
