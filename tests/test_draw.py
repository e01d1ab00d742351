from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm.errors import ImageInputError, InputError
from mm.results.draw import checkerboard, color_of, text_color_on
from mm.types import Caption, Classification, Detections, Matte, Segmentation

SIZE = (120, 160)
GREY = np.full((*SIZE, 3), 90, np.uint8)
HARD_TEXT = "猫 👩‍🚀 \u202eevil\x1b[31m\n\ud800 é Ω Ж ש ع"


def found(*rows: tuple[list[float], float, str], size_hw: tuple[int, int] = SIZE) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(np.array(boxes), np.array(scores), labels, size_hw)


def painted(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """bool[H, W]: where a picture has exactly this colour."""
    return (np.asarray(picture) == color).all(axis=2)


def inks_of_tags(picture: Image.Image, labels: list[str]) -> list[np.ndarray]:
    return [painted(picture, color_of(label)) for label in labels]


def test_a_picture_may_be_anything_that_can_be_opened(tmp_path: Path):
    result = found(([20, 40, 80, 100], 0.9, "car"))
    path = tmp_path / "grey.png"
    Image.fromarray(GREY).save(path)
    drawn = [result.plot(image) for image in (GREY, Image.fromarray(GREY), path, path.read_bytes())]
    for each in drawn:
        assert each.mode == "RGB" and each.size == (160, 120)
        np.testing.assert_array_equal(np.asarray(each), np.asarray(drawn[0]))
    assert (GREY == 90).all(), "the picture given is left as it is"
    with pytest.raises(ImageInputError):
        result.plot(tmp_path / "none.png")


@pytest.mark.parametrize(
    "result",
    [
        found(([0, 0, 1, 1], 0.5, "a"), size_hw=(37, 53)),
        Segmentation(np.ones((1, 37, 53), bool), np.ones((1, 37, 53)), ("a",)),
        Matte(np.ones((37, 53)), np.ones((37, 53, 3), np.uint8)),
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_picture_of_another_size_is_refused(result):
    with pytest.raises(InputError, match=r"37 x 53 \(height x width\), got 120 x 160"):
        result.plot(GREY)


def test_a_box_is_drawn_on_its_edges_in_the_colour_of_its_label():
    drawn = found(([30, 40, 90, 100], 0.9, "car")).plot(GREY)
    line = painted(drawn, color_of("car"))
    ys, xs = np.nonzero(line[45:])  # Below the tag.
    assert (xs.min(), xs.max(), ys.max() + 45) == (30, 89, 99)
    assert line[60, [30, 31, 88, 89]].all() and not line[60, 32:88].any()
    assert (np.asarray(drawn)[50:95, 35:85] == 90).all()


def test_the_rim_of_a_box_stands_out_where_its_colour_may_not():
    for label in ("car", "tree", "house", "person", "dog"):
        rim = painted(found(([30, 40, 90, 100], 0.9, label)).plot(GREY), text_color_on(color_of(label)))
        assert rim[60, [29, 90]].all()


@pytest.mark.parametrize("size_hw", [(37, 53), (120, 160), (600, 900)])
def test_lines_grow_with_the_picture(size_hw):
    height, width = size_hw
    box = [width * 0.1, height * 0.3, width * 0.6, height * 0.95]
    drawn = found((box, 0.5, "a"), size_hw=size_hw).plot(np.full((*size_hw, 3), 90, np.uint8))
    run = painted(drawn, color_of("a"))[round(height * 0.8), : width // 2].sum()
    assert run == max(2, round((width * height) ** 0.5 / 200))


def test_tags_stay_inside_and_apart():
    """Five boxes of one place in five colours: each tag must show whole, so each colour has a tag's area."""
    labels = ["car", "tree", "house", "person", "dog"]
    rows = [([100.0, 0.0, 160.0, 60.0], 0.9 - place / 10, label) for place, label in enumerate(labels)]
    drawn = found(*rows).plot(GREY)
    for label, area in zip(labels, inks_of_tags(drawn, labels), strict=True):
        ys, xs = np.nonzero(area)
        alone = painted(found(([60, 60, 60, 60], 0.5, label)).plot(GREY), color_of(label))
        assert area.sum() >= alone.sum() * 0.95, f"the tag of {label} is covered"


def test_a_label_wider_than_the_picture_is_shortened():
    for size_hw in ((37, 53), (9, 5), (1, 1), (4, 900)):
        picture = np.full((*size_hw, 3), 90, np.uint8)
        drawn = found(([0, 0, 1, 1], 0.9, "a very long label " * 20), size_hw=size_hw).plot(Image.fromarray(picture))
        assert drawn.size == size_hw[::-1]


def test_boxes_beyond_the_picture_and_without_area_are_drawn():
    rows = [([-500, -500, 900, 900], 0.5, "a"), ([5, 5, 5, 5], 0.5, "b"), ([1e6, 1e6, 2e6, 2e6], 0.5, "c")]
    assert found(*rows).plot(GREY).size == (160, 120)
    assert np.array_equal(np.asarray(Detections.empty(SIZE).plot(GREY)), GREY)


def test_any_text_can_be_drawn():
    size_hw = (240, 640)
    picture = np.full((*size_hw, 3), 90, np.uint8)
    escaped = "\\u732b \\U0001f469\u200d\\U0001f680 \\u202eevil\\x1b[31m\\n\\ud800 é Ω Ж ש ع"
    colors = {HARD_TEXT: (0, 200, 0), escaped: (0, 200, 0)}
    hard, plain = (found(([9, 90, 600, 200], 0.5, text), size_hw=size_hw) for text in (HARD_TEXT, escaped))
    assert np.array_equal(np.asarray(hard.plot(picture, colors=colors)), np.asarray(plain.plot(picture, colors=colors)))
    Segmentation(np.ones((1, *size_hw), bool), np.ones((1, *size_hw)), (HARD_TEXT,)).plot(picture)
    Caption(HARD_TEXT, HARD_TEXT, 1, "stop", size_hw).plot(picture)
    Classification((HARD_TEXT,), np.array([0.5])).plot(picture)


def test_a_label_has_one_colour_and_common_labels_differ():
    assert color_of("car") == color_of("car")
    assert len({color_of(label) for label in ("car", "tree", "house", "person", "dog", "cat", "boat")}) == 7
    assert len({color_of(str(number)) for number in range(2000)}) == 72
    color_of("\ud800")


def test_text_on_a_tag_stands_out():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for number in range(500):
        low, high = sorted((luminance(color_of(str(number))), luminance(text_color_on(color_of(str(number))))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, "WCAG AA"


def test_colours_can_be_chosen():
    result = found(([30, 60, 90, 100], 0.9, "car"))
    assert painted(result.plot(GREY, colors={"car": (1, 2, 3)}), (1, 2, 3)).any()
    assert np.array_equal(result.plot(GREY, colors={"tree": (1, 2, 3)}), result.plot(GREY))
    for wrong in ((1, 2), (1, 2, 300), (0.5, 0, 0), "red"):
        with pytest.raises(InputError, match="colour: expected"):
            result.plot(GREY, colors={"car": wrong})  # type: ignore[dict-item]


def test_a_mask_is_translucent_inside_its_contour_and_nothing_outside():
    mask = np.zeros((1, *SIZE), bool)
    mask[0, 30:110, 40:140] = True
    drawn = np.asarray(Segmentation(mask, mask * 1.0, ("car",)).plot(GREY))
    color = np.array(color_of("car"))
    np.testing.assert_array_equal(drawn[30, 50], color)
    np.testing.assert_allclose(drawn[40, 50], 90 * 0.55 + color * 0.45, atol=1)
    np.testing.assert_array_equal(drawn[29, 50], text_color_on(color_of("car")))
    assert (drawn[:29] == 90).all() and (drawn[:, 141:] == 90).all()


def test_an_empty_mask_leaves_the_picture_as_it_is():
    empty = Segmentation(np.zeros((1, *SIZE), bool), np.zeros((1, *SIZE)), ("car",))
    assert np.array_equal(np.asarray(empty.plot(GREY)), GREY)


def test_a_tag_of_a_ring_lies_on_the_ring():
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    radius = np.hypot(ys - 60, xs - 80)
    mask = (radius < 55) & (radius > 40)
    tag = painted(Segmentation(mask[None], mask[None] * 1.0, ("a",)).plot(GREY), color_of("a"))
    assert not tag[50:70, 70:90].any()


def test_a_caption_stands_in_a_band_below():
    for size_hw in ((120, 160), (37, 53), (50, 900)):
        picture = np.full((*size_hw, 3), 90, np.uint8)
        drawn = Caption("Two red cars stand by a tree. " * 4, "Describe.", 9, "stop", size_hw).plot(picture)
        pixels, left = np.asarray(drawn), (drawn.width - size_hw[1]) // 2
        assert drawn.width >= 200 and drawn.height > size_hw[0]
        assert (pixels[: size_hw[0], left : left + size_hw[1]] == 90).all()
        band = pixels[size_hw[0] :]
        dark = band.max(axis=2) < 128
        assert dark.any() and not dark[:, :3].any() and not dark[:, -3:].any() and not dark[-3:].any()
    assert Caption("", None, 0, "stop", SIZE).plot(GREY).size == (160, 120)
    endless = Caption("word \n" * 20_000, None, 9, "length", SIZE).plot(GREY)
    assert endless.height < 5000


def test_bars_have_the_length_of_their_scores_best_first():
    result = Classification(("tree", "car", "none"), np.array([0.25, 0.75, 0.0]))
    drawn = result.plot(GREY)
    runs = {label: painted(drawn, color_of(label)) for label in result.labels}
    lengths = {label: int(run.sum(axis=1).max()) for label, run in runs.items()}
    assert lengths["car"] == pytest.approx(3 * lengths["tree"], abs=4) and lengths["none"] == 0
    assert np.nonzero(runs["car"])[0].max() < np.nonzero(runs["tree"])[0].min()
    assert result.plot(GREY, best=1).height < drawn.height
    assert np.array_equal(np.asarray(Classification((), np.array([])).plot(GREY)), GREY)
    Classification(("a" * 300, "b"), np.array([12.5, -3])).plot(GREY)


def test_a_matte_is_shown_on_a_checkerboard():
    alpha = np.zeros(SIZE)
    alpha[40:80] = 1
    drawn = np.asarray(Matte(alpha, GREY).plot(GREY))
    assert (drawn[40:80] == 90).all()
    np.testing.assert_array_equal(drawn[:40], checkerboard(SIZE)[:40])
    assert np.array_equal(drawn, np.asarray(Matte(alpha, GREY).plot()))
    assert len(np.unique(checkerboard((37, 53)))) == 2
