from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mm.errors import InputError, ResourceLimitError
from mm.types import Matte, Segment, Segmentation, result_from_dict

SIZE = (37, 53)


def segmentation(seed: int = 0) -> Segmentation:
    scores = np.random.default_rng(seed).random((3, *SIZE)).astype(np.float32)
    return Segmentation(scores > 0.5, scores, ("car", "tree", "car"))


def test_probabilities_return_as_closely_as_asked():
    result = segmentation()
    rough = result_from_dict(json.loads(json.dumps(result.to_dict())))
    assert isinstance(rough, Segmentation)
    np.testing.assert_array_equal(rough.masks, result.masks)
    np.testing.assert_allclose(rough.scores, result.scores, rtol=0, atol=1 / 510 + 1e-6)
    assert result_from_dict(rough.to_dict()) == rough
    assert result_from_dict(json.loads(json.dumps(result.to_dict(scores="float32")))) == result
    left_out = Segmentation.from_dict(result.to_dict(scores="none"))
    np.testing.assert_array_equal(left_out.scores, result.masks.astype(np.float32))
    with pytest.raises(InputError, match='"uint8", "float32" or "none"'):
        result.to_dict(scores="float16")  # type: ignore[arg-type]


def test_a_few_bytes_cannot_declare_masks_without_bound():
    good = segmentation().to_dict()
    with pytest.raises(ResourceLimitError, match="at most 50000000 pixels"):
        Segmentation.from_dict(good | {"size_hw": [100_000, 100_000]})
    code = {"size": [7000, 7000], "counts": "0"}
    with pytest.raises(ResourceLimitError, match="20 masks of 7000 x 7000"):
        Segmentation.from_dict(good | {"size_hw": [7000, 7000], "masks": [code] * 20})
    bomb = good["scores"] | {"shape": [3, 37, 5300]}
    with pytest.raises(ResourceLimitError, match="scores"):
        Segmentation.from_dict(good | {"scores": bomb})
    with pytest.raises(InputError, match=r"masks\[1\]: expected the size 37 x 53"):
        other = {"size": [1, 1], "counts": "1"}
        Segmentation.from_dict(good | {"masks": [good["masks"][0], other, other]})


@pytest.mark.parametrize(
    ("masks", "scores", "labels", "message"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), "ab", r"bool\[K, H, W\] \(compare the probabilities"),
        (np.full((2, 3, 4), 2), np.zeros((2, 3, 4)), "ab", "got int64"),
        (np.zeros((3, 4), bool), np.zeros((2, 3, 4)), "ab", r"bool\[K, H, W\], got bool\[3, 4\]"),
        (np.zeros((2, 0, 4), bool), np.zeros((2, 0, 4)), "ab", "at least 1, got 0"),
        (np.zeros((2, 3, 4), bool), np.zeros((2, 4, 3)), "ab", r"float32\[K, 3, 4\], got float64\[2, 4, 3\]"),
        (np.zeros((2, 3, 4), bool), np.zeros((1, 3, 4)), "ab", "scores: expected 2, one for each of masks"),
        (np.zeros((2, 3, 4), bool), np.full((2, 3, 4), 7.0), "ab", "from 0 to 1, got 7"),
        (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4)), "a", "labels: expected 2"),
    ],
)
def test_segmentations_that_do_not_fit_together_are_refused(masks, scores, labels, message):
    with pytest.raises(InputError, match=message):
        Segmentation(masks, scores, tuple(labels))


def test_segments_are_picked_like_an_array():
    result = segmentation()
    assert len(result) == 3 and isinstance(result[0], Segment) and [s.label for s in result][1] == "tree"
    assert result[1:].labels == ("tree", "car") and result.size_hw == SIZE
    assert result.filter(label="car").masks.shape == (2, *SIZE)
    np.testing.assert_array_equal(result[[True, False, True]].masks, result.masks[[0, 2]])


def test_confidence_is_the_mean_probability_inside_and_ranks():
    masks = np.zeros((3, 4, 5), bool)
    masks[0, :2], masks[1, 1, 1] = True, True
    scores = np.full((3, 4, 5), 0.25)
    scores[1, 1, 1] = 0.75
    result = Segmentation(masks, scores, ("a", "b", "empty"))
    assert result.confidence.tolist() == [0.25, 0.75, 0]
    assert result.top(2).labels == ("b", "a") and result.filter(score=0.5).labels == ("b",)
    assert result.boxes_xyxy.tolist() == [[0, 0, 5, 2], [1, 1, 2, 2], [0, 0, 0, 0]]


def test_a_cutout_keeps_one_label():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    result = segmentation()
    hard = np.asarray(result.cutout(image, "car"))
    assert hard.shape == (*SIZE, 4)
    np.testing.assert_array_equal(hard[..., :3], image)
    np.testing.assert_array_equal(hard[..., 3] == 255, result.masks[[0, 2]].any(axis=0))
    assert set(np.unique(hard[..., 3])) == {0, 255}
    soft = np.asarray(result.cutout(image, "tree", soft=True))
    np.testing.assert_allclose(soft[..., 3] / 255, result.scores[1], atol=1 / 509)
    with pytest.raises(InputError, match='expected one of .* Did you mean "tree"'):
        result.cutout(image, "trees")
    with pytest.raises(InputError, match="37 x 53 .height x width., got 53 x 37"):
        result.cutout(image.transpose(1, 0, 2), "car")


def test_a_matte_goes_over_colours_and_pictures():
    alpha = np.array([[0, 0.5, 1], [0, 0, 0]])
    matte = Matte(alpha, np.full((2, 3, 3), 200, np.uint8))
    over = matte.over((100, 0, 0))
    assert over.mode == "RGB" and np.asarray(over)[0].tolist() == [
        [100, 0, 0],
        [150, 100, 100],
        [200, 200, 200],
    ]
    picture = np.zeros((2, 3, 3), np.uint8)
    assert np.asarray(matte.over(picture))[0, 1].tolist() == [100, 100, 100]
    assert matte.rgba().mode == "RGBA" and np.asarray(matte.rgba())[0, :, 3].tolist() == [0, 128, 255]
    for background, message in (
        ((1, 2), "colour"),
        ((1, 2, 256), "colour"),
        (np.zeros((5, 6, 3), np.uint8), "2 x 3"),
    ):
        with pytest.raises(InputError, match=message):
            matte.over(background)


def test_a_tall_matte_is_blended_like_each_of_its_rows():
    chance = np.random.default_rng(0)
    alpha, colours, behind = chance.random((700, 4)), *(chance.integers(0, 256, (700, 4, 3), np.uint8) for _ in "ab")
    over = np.asarray(Matte(alpha, colours).over(Image.fromarray(behind)))
    for row in (0, 255, 256, 699):
        one = Matte(alpha[row : row + 1], colours[row : row + 1]).over(Image.fromarray(behind[row : row + 1]))
        np.testing.assert_array_equal(over[row], np.asarray(one)[0])


def test_a_matte_is_checked():
    with pytest.raises(InputError, match=r"foreground: expected uint8\[2, 3, 3\], got uint8\[3, 2, 3\]"):
        Matte(np.zeros((2, 3)), np.zeros((3, 2, 3), np.uint8))
    with pytest.raises(InputError, match="foreground: expected uint8"):
        Matte(np.zeros((2, 3)), np.zeros((2, 3, 3)))
    with pytest.raises(InputError, match="alpha: expected numbers from 0 to 1, got 255"):
        Matte(np.full((2, 3), 255), np.zeros((2, 3, 3), np.uint8))
