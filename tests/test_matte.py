"""Matting from words: sizes, colours, the two ways, what is refused, and what is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mm
from mm.checkpoints.loading import load
from mm.errors import ImageInputError, InputError, TextInputError
from mm.heads.clipmat import ClipMatHead
from mm.heads.vitmatte import VitMatte, VitMatteConfig
from mm.images import open_image
from mm.joined import Joined
from mm.recipes.matting import config_for
from mm.scenes.render import render_scene, render_single
from mm.types import ErrorRecord, Matte


class Echo(nn.Module):
    """Stands for a network: its alpha is the trimap, so unknown pixels come back as 128 / 255."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(alphas=values[:, 3:])


ECHO = VitMatte(Echo(), VitMatteConfig((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "echo", "local", "0" * 64)
WIDE = render_scene(4, (200, 120))
SQUARE = render_single(3, "car", "red", 128, background="white")


def close(a: Matte, b: Matte) -> bool:
    """Equal but for the order in which a batch adds its numbers up."""
    colours = np.abs(a.foreground.astype(int) - b.foreground).max() <= 1
    return np.allclose(a.alpha, b.alpha, atol=1e-5) and bool(colours)


@pytest.fixture(scope="module")
def model() -> Joined:
    """`tiny` with a matting head that knows nothing yet."""
    tiny = load("tiny")
    torch.manual_seed(0)
    head = ClipMatHead(**vars(config_for(tiny))).eval().requires_grad_(False)
    return dataclasses.replace(tiny, matter=head)


def test_a_matte_has_the_size_of_the_upright_original(model: Joined) -> None:
    made = mm.matte(WIDE.pixels, "red car", model=model)
    assert isinstance(made, Matte) and made.size_hw == (120, 200)
    assert made.alpha.dtype == np.float32 and made.foreground.dtype == np.uint8
    assert 0 <= made.alpha.min() <= made.alpha.max() <= 1
    assert made.source.model == "tiny" and made.source.sha256 == model.sha256


@torch.inference_mode()
def test_a_guided_head_reads_the_segmentation(model: Joined) -> None:
    torch.manual_seed(0)
    head = ClipMatHead(**vars(config_for(model, guided=True))).eval()
    guided = dataclasses.replace(model, matter=head)
    made = mm.matte(SQUARE.pixels, "red car", model=guided)
    encoded = mm.encode(SQUARE.pixels, model=guided)
    text, owner = model.encoder.encode_text(["red car"]), torch.tensor([0])
    guide = head.guide(model.segmenter, encoded.features, text, owner)
    assert guide is not None and guide.std() > 0.1 and guide.abs().max() <= 1
    pixels = guided.pixels(open_image(SQUARE.pixels))[None]
    logits = head(pixels, encoded.features, text, owner, guide)
    np.testing.assert_allclose(made.alpha, encoded.geometry.masks_to_original(logits.alpha().numpy())[0], atol=1e-6)
    assert (head(pixels, encoded.features, text, owner, -guide).alpha() - logits.alpha()).abs().max() > 1e-4
    with pytest.raises(ValueError, match="guide: expected one"):
        head(pixels, encoded.features, text, owner)
    with pytest.raises(InputError, match="has no segmenter"):
        mm.matte(SQUARE.pixels, "red car", model=dataclasses.replace(guided, segmenter=None))


def test_alpha_is_the_heads_own_brought_back_to_the_picture(model: Joined) -> None:
    head = model.matter
    assert isinstance(head, ClipMatHead)
    encoded = mm.encode(WIDE.pixels, model=model)
    picture = open_image(WIDE.pixels)
    with torch.inference_mode():
        text = model.encoder.encode_text(["the red car"])
        logits = head(model.pixels(picture)[None], encoded.features, text, torch.tensor([0]))
    want = encoded.geometry.masks_to_original(logits.alpha().numpy())[0]
    np.testing.assert_allclose(mm.matte(WIDE.pixels, "red car", model=model).alpha, want, atol=1e-6)


def test_many_pictures_give_many_mattes_and_a_bad_one_costs_only_itself(model: Joined) -> None:
    pictures = [WIDE.pixels, "no such file.png", SQUARE.pixels]
    first, failed, last = mm.matte(pictures, "car", model=model, on_error="record")
    assert isinstance(failed, ErrorRecord) and failed.type == "ImageInputError"
    assert close(last, mm.matte(SQUARE.pixels, "car", model=model))
    assert [m.size_hw for m in mm.matte(pictures, "car", model=model, on_error="skip")] == [(120, 200), (128, 128)]
    assert first.size_hw == (120, 200)
    with pytest.raises(ImageInputError, match="no such file"):
        mm.matte(pictures, "car", model=model)


def test_what_is_encoded_already_is_not_encoded_again(model: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = mm.encode([SQUARE.pixels, WIDE.pixels], model=model)
    want = mm.matte(SQUARE.pixels, "car", model=model)
    passes = []
    monkeypatch.setattr(Joined, "encode", lambda self, pictures: passes.append(pictures))
    assert close(mm.matte(SQUARE.pixels, "car", model=model, encoded=encoded), want)
    assert close(mm.matte(SQUARE.pixels, "car", model=model, encoded=encoded[0]), want)
    assert passes == []
    with pytest.raises(InputError, match="none of them is of <array>"):
        mm.matte(WIDE.pixels, "car", model=model, encoded=encoded[0])


def test_an_encoded_value_cannot_stand_for_its_pixels(model: Joined) -> None:
    with pytest.raises(InputError, match="needs the picture itself"):
        mm.matte(mm.encode(SQUARE.pixels, model=model), "car", model=model)


def test_a_model_without_the_head_says_so(model: Joined) -> None:
    with pytest.raises(InputError, match="model 'tiny' has no matter"):
        mm.matte(SQUARE.pixels, "car", model=dataclasses.replace(model, matter=None))


def test_bad_requests_name_what_is_wrong(model: Joined) -> None:
    with pytest.raises(TextInputError, match="label"):
        mm.matte(SQUARE.pixels, "  ", model=model)
    with pytest.raises(TextInputError, match="expected a string, got list"):
        mm.matte(SQUARE.pixels, ["car"], model=model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match='Did you mean "trimap"'):
        mm.matte(SQUARE.pixels, "car", model=model, method="trimaps")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs matter="):
        mm.matte(SQUARE.pixels, "car", model=model, method="trimap")
    with pytest.raises(InputError, match='matter: only method="trimap"'):
        mm.matte(SQUARE.pixels, "car", model=model, matter=ECHO)


def test_trimap_keeps_what_the_mask_is_sure_of_and_asks_for_the_rest(model: Joined) -> None:
    made = mm.matte(SQUARE.pixels, "red car", model=model, method="trimap", matter=ECHO)
    truth = SQUARE.objects[0].mask
    core, far = made.alpha == 1, made.alpha == 0
    asked = np.isclose(made.alpha, 128 / 255)
    assert (core | far | asked).all() and core.any() and asked.any()
    assert truth[core].all() and not truth[far].any()
    assert made.source.model == "tiny + echo"


def test_trimap_with_a_segmenter_of_its_own_reads_that_model(model: Joined) -> None:
    blind = dataclasses.replace(model, segmenter=None)
    with pytest.raises(InputError, match="has no segmenter"):
        mm.matte(SQUARE.pixels, "red car", model=blind, method="trimap", matter=ECHO)
    made = mm.matte(SQUARE.pixels, "red car", model=blind, method="trimap", matter=ECHO, segmenter=model)
    assert made == mm.matte(SQUARE.pixels, "red car", model=model, method="trimap", matter=ECHO)


def test_a_large_picture_is_settled_at_its_own_size(model: Joined) -> None:
    large = render_single(3, "car", "red", 400, background="white")
    made = mm.matte(large.pixels, "red car", model=model, method="trimap", matter=ECHO, tile=128)
    assert made.size_hw == (400, 400)
    core, far = made.alpha == 1, made.alpha == 0
    assert large.objects[0].mask[core].mean() > 0.99 and large.objects[0].mask[far].mean() < 0.01


def test_nothing_found_is_warned_of(model: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    sure = lambda *_: torch.full((1, 64, 64), -9.0)  # noqa: E731
    assert model.segmenter is not None
    monkeypatch.setattr(model.segmenter, "forward", sure)
    made = mm.matte(SQUARE.pixels, "red car", model=model, method="trimap", matter=ECHO)
    assert not made.alpha.any()
    assert "nothing found for 'red car'" in made.source.warnings


def test_a_saved_matte_is_rgba_and_whole(tmp_path: Path) -> None:
    alpha = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    made = Matte(alpha, np.full((3, 4, 3), (10, 200, 30), np.uint8))
    made.save(tmp_path / "cut.png")
    with Image.open(tmp_path / "cut.png") as read:
        values = np.asarray(read)
    assert values.shape == (3, 4, 4)
    np.testing.assert_array_equal(values[..., 3], np.round(alpha * 255))
    assert [p.name for p in tmp_path.iterdir()] == ["cut.png"]
    with pytest.raises(OSError):
        made.save(tmp_path / "missing" / "cut.png")
