"""Matting from words: sizes, colours, the two ways, what is refused, and what is written."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from mm.pictures import foreground
from mm.pictures.foreground import foreground_of
from mm.pictures.upsampling import along_colours
from mm.recipes.matting import config_for
from mm.scenes.render import render_scene, render_single
from mm.scenes.soft import matte_of, render_soft
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


def enlarged(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32[height, width] or uint8[height, width, 3], bilinear."""
    return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


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
    want = along_colours(
        logits.alpha()[0], guided.spec.preprocessing.coloured(pixels[0]), SQUARE.pixels, encoded.geometry
    )
    np.testing.assert_allclose(made.alpha, want.clip(0, 1), atol=1e-6)
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
    want = along_colours(
        logits.alpha()[0], model.spec.preprocessing.coloured(model.pixels(picture)), WIDE.pixels, encoded.geometry
    )
    np.testing.assert_allclose(mm.matte(WIDE.pixels, "red car", model=model).alpha, want.clip(0, 1), atol=1e-6)


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


def test_colours_that_are_found_in_tiles_are_those_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = render_soft(3)
    alpha, _ = matte_of(scene, [True] * len(scene.objects))
    picture, alpha = enlarged(scene.pixels, 240, 310), enlarged(alpha, 240, 310).clip(1e-5, 1)
    at_once = foreground_of(picture, alpha)
    monkeypatch.setattr(foreground, "_WHOLE", 5000)
    monkeypatch.setattr(foreground, "_TILE", 48)
    seen = np.round(alpha * 255) > 0
    np.testing.assert_array_equal(foreground_of(picture, alpha)[seen], at_once[seen])
    assert (np.abs(at_once.astype(int) - picture)[seen].max(-1) > 20).mean() > 0.1  # there was something to find


def test_a_large_blend_gives_back_the_colours_it_was_made_of() -> None:
    size, random = (560, 640), np.random.default_rng(0)
    assert size[0] * size[1] > foreground._WHOLE
    front, behind = np.array([210, 50, 40.0]), np.array([20, 130, 220.0])
    alpha = enlarged(random.uniform(-0.5, 1.5, (14, 16)).astype(np.float32), *size).clip(0, 1)
    picture = (alpha[..., None] * front + (1 - alpha[..., None]) * behind + 0.5).astype(np.uint8)
    found, seen = foreground_of(picture, alpha), alpha > 0.1
    assert np.abs(found - front)[seen].max() <= 2
    blend = alpha[..., None] * found + (1 - alpha[..., None]) * behind
    assert np.abs(blend - picture)[seen].max() <= 1.5


def test_a_pixel_that_is_written_as_opaque_keeps_its_colour() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    alpha = np.full((40, 50), 0.999, np.float32)
    alpha[:, :20] = 0.4
    opaque = np.round(alpha * 255) == 255
    np.testing.assert_array_equal(foreground_of(picture, alpha)[opaque], picture[opaque])


def test_memory_for_the_colours_does_not_grow_with_the_picture() -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (1000, 1200, 3), np.uint8)
    alpha = random.uniform(0.02, 0.98, (1000, 1200)).astype(np.float32)  # nothing is known: the most there is to do
    tracemalloc.start()
    try:
        result = foreground_of(picture, alpha)
        beside = tracemalloc.get_traced_memory()[1] - result.nbytes - alpha.nbytes
    finally:
        tracemalloc.stop()
    assert beside < 60e6, f"{beside / 1e6:.0f} MB"  # a single float32 picture of both colours takes 29


def test_colours_are_only_sought_where_they_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    swept, sweep = [], foreground._swept

    def counted(image: np.ndarray, *rest: Any, **more: Any) -> np.ndarray:
        swept.append(image[0].size)
        return sweep(image, *rest, **more)

    monkeypatch.setattr(foreground, "_swept", counted)
    place = np.indices((1000, 1200)) - np.array([500, 600])[:, None, None]
    alpha = np.clip((100 - np.hypot(*place)) / 12 + 0.5, 1e-4, 1 - 1e-4).astype(np.float32)  # never quite 0 or 1
    foreground_of(np.zeros((1000, 1200, 3), np.uint8), alpha)
    assert sum(swept) < 0.25 * alpha.size  # of all levels together


def test_a_large_cut_out_laid_on_its_own_background_is_the_picture() -> None:
    picture = enlarged(SQUARE.pixels, 620, 700)
    made = mm.matte(picture, "red car", model="tiny")
    seen = made.alpha > 0.1
    assert 0.1 < seen.mean() < 0.2
    anew = np.asarray(made.over((255, 255, 255))).astype(int)
    assert np.abs(anew - picture)[seen].mean() < 4
    assert np.abs(255 - picture.astype(int))[seen].mean() > 100
