"""The renderer of drawn scenes: the same everywhere, any size, and a truth that fits the pixels exactly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mm.errors import InputError
from mm.scenes import Scene, draw_object, render, render_scene, render_single
from mm.scenes.shapes import SHAPES, TURNS
from mm.scenes.vocabulary import (
    COLOUR_VALUES,
    COLOURS,
    COUNTS,
    HELD_OUT_PAIRS,
    KINDS,
    PAIR_LABELS,
    PAIRS,
    RELATIONS,
    SEEN_PAIRS,
    SIZES,
    TEXTURES,
    is_held_out,
)

ROOT = Path(__file__).resolve().parents[1]
FRAMES = [128, (160, 112), (112, 160), (33, 200), (301, 40), 32]


def digest(scene: Scene) -> str:
    """Of the picture and of all that is said to be true of it."""
    parts = hashlib.sha256(scene.pixels.tobytes() + scene.background.encode())
    for thing in scene.objects:
        parts.update(f"{thing.label} {thing.texture} {thing.size} {thing.box_xyxy.tolist()}".encode())
        parts.update(thing.visible.tobytes() + thing.rgb.tobytes())
    return parts.hexdigest()


@pytest.fixture(scope="module")
def seen() -> list[Scene]:
    return [render_scene(seed, FRAMES[seed % 3]) for seed in range(400)]


@pytest.fixture(scope="module")
def unseen() -> list[Scene]:
    return [render_scene(seed, FRAMES[seed % 3], pairs="unseen") for seed in range(150)]


def test_the_words_are_spelt_so():
    assert " ".join(COLOURS) == "red green blue yellow purple orange pink white black brown"
    assert " ".join(KINDS) == (
        "circle square triangle star diamond hexagon heart moon ring cross house tree car fish cup flower "
        "arrow boat key umbrella mushroom cloud sun cat"
    )
    assert TEXTURES == ("plain", "striped", "dotted") and SIZES == ("small", "large")
    assert RELATIONS == ("left of", "right of", "above", "below")
    assert COUNTS == ("one", "two", "three", "four", "five")
    assert len(PAIR_LABELS) == len(set(PAIR_LABELS)) == 240


def test_every_word_can_be_drawn():
    assert set(SHAPES) == set(TURNS) == set(KINDS)
    assert set(COLOUR_VALUES) == set(COLOURS)


def test_pairs_are_held_out_of_every_colour_and_every_kind():
    assert len(HELD_OUT_PAIRS) >= 24 and set(PAIRS) >= HELD_OUT_PAIRS
    assert {kind for _, kind in HELD_OUT_PAIRS} == set(KINDS)
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS)
    assert set(SEEN_PAIRS) == set(PAIRS) - HELD_OUT_PAIRS
    assert {kind for _, kind in SEEN_PAIRS} == set(KINDS)
    assert {colour for colour, _ in SEEN_PAIRS} == set(COLOURS)


@pytest.mark.parametrize("pairs", ["seen", "all", "unseen"])
def test_one_seed_gives_one_scene(pairs: str):
    scenes = [render_scene(seed, frame, pairs=pairs) for seed in (0, 1, 10**12) for frame in FRAMES]
    again = [render_scene(seed, frame, pairs=pairs) for seed in (0, 1, 10**12) for frame in FRAMES]
    assert [digest(a) for a in scenes] == [digest(b) for b in again]
    assert len({digest(a) for a in scenes}) == len(scenes)


def test_other_processes_draw_the_same():
    code = (
        "import hashlib; from mm.scenes import render_scene as r, render_single as s;"
        "scenes = [r(7, 96), r(8, (160, 112), pairs='unseen'), s(9, 'cat', 'red')];"
        "print(hashlib.sha256(b''.join(scene.pixels.tobytes() for scene in scenes)).hexdigest())"
    )
    mine = [render_scene(7, 96), render_scene(8, (160, 112), pairs="unseen"), render_single(9, "cat", "red")]
    expected = hashlib.sha256(b"".join(scene.pixels.tobytes() for scene in mine)).hexdigest()
    for hash_seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer.stdout.strip() == expected, answer.stderr


@pytest.mark.parametrize("frame", FRAMES)
def test_any_size_is_filled(frame: int | tuple[int, int]):
    width, height = (frame, frame) if isinstance(frame, int) else frame
    for seed in range(6):
        scene = render_scene(seed, frame)
        assert scene.pixels.shape == (height, width, 3) and scene.pixels.dtype == np.uint8
        assert scene.size_hw == (height, width) and scene.pil().size == (width, height)
        assert scene.objects and all(thing.mask.shape == (height, width) for thing in scene.objects)


@pytest.mark.parametrize(
    ("size", "pairs", "message"),
    [(31, "seen", "31 x 31"), ((200, 20), "seen", "200 x 20"), (64, "held", "'held'")],
)
def test_what_cannot_be_drawn_is_refused(size: int | tuple[int, int], pairs: str, message: str):
    with pytest.raises(InputError, match=message):
        render_scene(0, size, pairs=pairs)


def test_boxes_are_tight_around_masks(seen: list[Scene], unseen: list[Scene]):
    for scene in seen + unseen:
        for thing in scene.objects:
            ys, xs = np.nonzero(thing.mask)
            assert thing.box_xyxy.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert thing.box_xyxy.dtype == np.float32


def test_masks_are_disjoint_and_what_is_kept_is_mostly_seen(seen: list[Scene]):
    for scene in seen:
        assert np.sum([thing.mask for thing in scene.objects], axis=0).max() <= 1
        for thing in scene.objects:
            assert thing.mask.sum() >= 0.5 * (thing.alpha > 0.5).sum() > 0


def test_soft_alphas_share_out_each_pixel(seen: list[Scene]):
    for scene in seen[:100]:
        total = np.sum([thing.soft_alpha for thing in scene.objects], axis=0)
        assert total.min() >= 0 and total.max() <= 1 + 1e-5


def test_a_scene_without_weather_is_its_layers(monkeypatch: pytest.MonkeyPatch):
    grounds: list[np.ndarray] = []
    real = render._background

    def background(*args) -> np.ndarray:
        grounds.append(real(*args))
        return grounds[-1].copy()

    monkeypatch.setattr(render, "_background", background)
    monkeypatch.setattr(render, "_weather", lambda pixels, rng: pixels)
    for seed in range(30):
        scene = render_scene(seed, FRAMES[seed % 3])
        layers = [(thing.soft_alpha[..., None], thing.foreground.astype(float)) for thing in scene.objects]
        rest = 1 - np.sum([alpha for alpha, _ in layers], axis=0)
        recomposed = rest * grounds[seed] + np.sum([alpha * colour for alpha, colour in layers], axis=0)
        np.testing.assert_allclose(recomposed, scene.pixels, atol=0.01)


def test_seen_scenes_hold_no_held_out_pair_and_unseen_ones_do(seen: list[Scene], unseen: list[Scene]):
    assert not any(scene.has_held_out for scene in seen)
    for scene in unseen:
        held_out = [thing for thing in scene.objects if is_held_out(thing.colour, thing.kind)]
        assert held_out and scene.has_held_out
    shown = {(thing.colour, thing.kind) for scene in unseen for thing in scene.objects}
    assert len(shown & HELD_OUT_PAIRS) >= 20


def test_scenes_use_the_whole_vocabulary(seen: list[Scene]):
    things = [thing for scene in seen for thing in scene.objects]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == {scene.background for scene in seen} == set(COLOURS)
    assert {thing.texture for thing in things} == set(TEXTURES)
    assert {thing.size for thing in things} == set(SIZES)


def test_no_more_than_five_of_one_thing_and_none_of_the_backgrounds_colour(seen: list[Scene], unseen: list[Scene]):
    for scene in seen + unseen:
        alike = Counter((thing.texture, thing.colour, thing.kind) for thing in scene.objects)
        assert max(alike.values()) <= len(COUNTS)
        assert scene.background not in {thing.colour for thing in scene.objects}


def test_some_scenes_are_crowded_and_some_hold_several_alike(seen: list[Scene]):
    assert {len(scene.objects) for scene in seen} == {1, 2, 3, 4, 5, 6}
    assert any(len(scene.objects) > len({thing.label for thing in scene.objects}) for scene in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_drawn_small_and_large_in_every_texture(kind: str):
    for texture in TEXTURES:
        for radius in (4.0, 30.0):
            rgb, alpha = draw_object(kind, "orange", texture, radius, np.random.default_rng(3))
            assert rgb.shape == (*alpha.shape, 3) and rgb.dtype == np.uint8 and alpha.dtype == np.float32
            assert alpha.min() >= 0 and alpha.max() == 1 and (alpha > 0.5).sum() > 8
            edge = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
            assert edge.max() == 0, "the drawing is cut off by its patch"


def test_a_single_object_stands_alone_in_its_picture():
    for colour, kind in PAIRS[::7]:
        scene = render_single(11, kind, colour, 96)
        (thing,) = scene.objects
        assert (thing.colour, thing.kind, scene.size_hw) == (colour, kind, (96, 96))
        assert scene.background != colour and thing.mask.sum() > 50
        assert digest(scene) == digest(render_single(11, kind, colour, 96))
    assert render_single(0, "cat", "red", background="blue").background == "blue"
