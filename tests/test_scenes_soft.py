"""Soft scenes: their alpha and colours are the truth, and ordinary scenes are what they always were."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mm.scenes.render import render_scene, render_single
from mm.scenes.soft import MATERIALS, matte_of, render_soft
from mm.scenes.vocabulary import HELD_OUT_PAIRS

# Of the scenes below as they were when the embedded weights were trained and their scores measured.
ORDINARY = "602a630d94954961aa6617bdf2ffe6e8848431582e25a3ff5005c8e21579f222"


def drawing(radius: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """A green disc on a patch with some room."""
    side = 2 * round(radius * 1.4) + 2
    place = np.indices((side, side)) - (side - 1) / 2
    alpha = np.clip(radius - np.hypot(*place) + 0.5, 0, 1).astype(np.float32)
    return np.full((side, side, 3), (20, 160, 40), np.uint8), alpha


def test_ordinary_scenes_are_bit_identical_to_those_of_the_first_release() -> None:
    running = hashlib.sha256()
    for seed in range(12):
        for size in (96, (128, 80)):
            for pairs in ("seen", "all", "unseen"):
                scene = render_scene(seed, size, pairs=pairs)
                running.update(scene.pixels.tobytes())
                for thing in scene.objects:
                    running.update(thing.soft_alpha.tobytes() + thing.foreground.tobytes() + thing.label.encode())
    running.update(render_single(3, "car", "red").pixels.tobytes())
    assert running.hexdigest() == ORDINARY


def test_a_soft_scene_is_a_function_of_its_seed() -> None:
    first, again, other = render_soft(5), render_soft(5), render_soft(6)
    assert (first.pixels == again.pixels).all() and first.pixels.shape == (128, 128, 3)
    assert [o.label for o in first.objects] == [o.label for o in again.objects]
    assert (first.pixels != other.pixels).any()
    assert render_soft(5, (160, 96)).size_hw == (96, 160)


def test_soft_scenes_keep_the_rules_of_pairs() -> None:
    assert not any(render_soft(seed, 64).has_held_out for seed in range(20))
    assert all(render_soft(seed, 64, pairs="unseen").has_held_out for seed in range(5))
    assert ("red", "circle") in HELD_OUT_PAIRS


def test_a_scene_is_the_blend_of_its_matte_and_its_background() -> None:
    tested = 0
    for seed in range(60):
        scene = render_soft(seed)
        alpha, foreground = matte_of(scene, [True] * len(scene.objects))
        behind = scene.pixels[alpha == 0]
        if len(behind) and (behind == behind[0]).all():  # a flat background, and no grain
            share = alpha[..., None]
            blend = share * foreground + (1 - share) * behind[0].astype(np.float32)
            assert np.abs(blend - scene.pixels).max() <= 1.5  # two roundings
            tested += 1
    assert tested >= 5


def test_shares_of_all_things_and_the_rest_make_a_whole() -> None:
    scene = render_soft(8)
    total = sum(thing.soft_alpha for thing in scene.objects)
    whole, _ = matte_of(scene, [True] * len(scene.objects))
    np.testing.assert_allclose(whole, np.minimum(total, 1), atol=1e-6)
    assert np.max(total) <= 1 + 1e-5


def test_a_matte_of_nothing_is_empty_and_one_of_a_part_is_that_part() -> None:
    scene = next(s for s in map(render_soft, range(50)) if len(s.objects) >= 2)
    empty, colours = matte_of(scene, [False] * len(scene.objects))
    assert not empty.any() and not colours.any()
    first = scene.objects[0]
    alpha, foreground = matte_of(scene, [True] + [False] * (len(scene.objects) - 1))
    np.testing.assert_allclose(alpha, first.soft_alpha, atol=1e-6)
    seen = alpha > 0.01
    assert np.abs(foreground[seen].astype(int) - first.foreground[seen]).max() <= 1


def test_every_thing_has_a_box_and_many_pixels_are_shared() -> None:
    scenes = [render_soft(seed) for seed in range(40)]
    alphas = np.stack([matte_of(s, [True] * len(s.objects))[0] for s in scenes])
    assert all((o.box_xyxy[2:] > o.box_xyxy[:2]).all() for s in scenes for o in s.objects)
    shared = ((alphas > 0.05) & (alphas < 0.95)).sum() / (alphas > 0.05).sum()
    assert 0.2 < shared < 0.7


@pytest.mark.parametrize("name", MATERIALS)
def test_a_material_keeps_its_colour_and_stays_a_cover(name: str) -> None:
    patch = drawing()
    rgb, alpha = MATERIALS[name][1](patch, 20.0, np.random.default_rng(3))
    assert rgb.dtype == np.uint8 and alpha.shape == rgb.shape[:2]
    assert alpha.min() >= 0 and alpha.max() <= 1 and (alpha > 0.5).sum() > 100
    own = (np.abs(rgb.astype(int) - (20, 160, 40)).max(-1) <= 2)[alpha > 0.01].mean()
    assert own == 1 if name != "glass" else own > 0.3  # a highlight is white


def test_materials_are_soft_each_in_its_own_way() -> None:
    patch, rng = drawing(), np.random.default_rng(4)
    made = {name: draw(patch, 20.0, rng)[1] for name, (_, draw) in MATERIALS.items()}
    soft = {name: ((a > 0.05) & (a < 0.95)).mean() * a.size for name, a in made.items()}
    assert (made["solid"] == patch[1]).all()
    assert all(soft[name] > 1.5 * soft["solid"] for name in MATERIALS if name != "solid")
    reach = {name: (a > 0.02).sum() for name, a in made.items()}
    assert all(reach[name] > reach["solid"] for name in ("fur", "strands", "smoke", "motion"))
    middle = made["glass"].shape[0] // 2
    assert made["glass"][middle, middle] < made["glass"][middle, middle - 17] < 1  # clearer inside than at the rim


def test_motion_keeps_how_much_of_a_thing_there_is() -> None:
    patch = drawing()
    _, alpha = MATERIALS["motion"][1](patch, 20.0, np.random.default_rng(5))
    assert alpha.sum() == pytest.approx(patch[1].sum(), rel=1e-4)
