from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mm.errors import InputError
from mm.types import (
    Caption,
    Classification,
    Detection,
    Detections,
    Embeddings,
    ErrorRecord,
    Matte,
    Segmentation,
    Source,
    result_from_dict,
)

SIZE = (37, 53)
HARD_TEXT = "naïve 猫 👩‍🚀 \u202eevil\x1b[31m\n\ud800 é"
SOURCE = Source(
    model="tiny",
    revision="1",
    sha256="ab" * 32,
    preprocessing={"size": [128, 128], "policy": "squash"},
    kernel="sdpa",
    dtype="float32",
    device="cpu",
    versions={"torch": "2.10"},
    licence="Apache-2.0",
    warnings=("far from the scenes it knows",),
)


def detections(n: int = 4, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    low = rng.random((n, 2)) * 20
    boxes = np.concatenate([low, low + rng.random((n, 2)) * 15], axis=1)
    return Detections(boxes, rng.random(n), [f"label {k % 3}" for k in range(n)], SIZE, SOURCE)  # type: ignore[arg-type]


def every_result() -> list:
    rng = np.random.default_rng(1)
    probabilities = rng.random((3, *SIZE)).astype(np.float32)
    return [
        Caption(HARD_TEXT, None, 7, "stop", SIZE, SOURCE),
        Caption("", "What is it?", 0, "length", SIZE),
        detections(),
        Detections.empty(SIZE, SOURCE),
        Segmentation(probabilities > 0.5, (probabilities > 0.5) * 1.0, ("a", HARD_TEXT, "a"), SOURCE),
        Segmentation(np.zeros((0, *SIZE), bool), np.zeros((0, *SIZE)), ()),
        Classification((HARD_TEXT, "b"), np.array([0.1, 0.9]), SOURCE),
        Classification((), np.array([])),
        Embeddings(rng.normal(size=(2, 5)), "text", SOURCE),
        Matte(rng.random(SIZE), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), SOURCE),
        ErrorRecord("a.png", "ImageInputError", HARD_TEXT, "read"),
    ]


@pytest.mark.parametrize("result", every_result(), ids=lambda result: type(result).__name__)
def test_every_result_returns_exactly_from_json_pickle_and_copy(result):
    line = result.to_json()
    assert line.isascii() and "\n" not in line
    for back in (
        result_from_dict(json.loads(line)),
        type(result).from_dict(result.to_dict()),
        pickle.loads(pickle.dumps(result)),
        copy.deepcopy(result),
        dataclasses.replace(result),
    ):
        assert type(back) is type(result) and back == result
        for field in dataclasses.fields(back):
            if isinstance(array := getattr(back, field.name), np.ndarray):
                assert not array.flags.writeable
    assert line.startswith(f'{{"type": "{result.type_name()}"')
    assert repr(result).isprintable() and len(repr(result)) < 600


@pytest.mark.parametrize("result", every_result(), ids=lambda result: type(result).__name__)
def test_a_result_from_json_with_a_key_too_many_or_too_few_is_refused(result):
    good = result.to_dict()
    for key in good:
        with pytest.raises(InputError):
            result_from_dict({name: value for name, value in good.items() if name != key})
    with pytest.raises(InputError, match="no field is called 'extra'"):
        result_from_dict(good | {"extra": 1})


def test_result_from_dict_names_the_nearest_type():
    with pytest.raises(InputError, match='Did you mean "detections"'):
        result_from_dict({"type": "detection"})
    for value in (None, [], {"type": 3}, {}):
        with pytest.raises(InputError, match='a dictionary with a "type"'):
            result_from_dict(value)
    with pytest.raises(InputError, match="expected 'caption', got 'detections'"):
        Caption.from_dict(Caption("x", None, 1, "stop", SIZE).to_dict() | {"type": "detections"})


def test_results_are_equal_by_content_and_only_to_their_own_kind():
    assert detections() == detections() and detections() != detections(seed=3)
    assert detections() != dataclasses.replace(detections(), source=Source(model="other"))
    assert detections() != "detections"


def test_a_result_keeps_a_copy_and_cannot_be_changed():
    boxes = np.array([[1.0, 2, 3, 4]], np.float32)
    found = Detections(boxes, [0.5], ["a"], SIZE)  # type: ignore[arg-type]
    boxes[:] = 0
    assert found.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(ValueError, match="read-only"):
        found.boxes_xyxy[0, 0] = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.labels = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes_xyxy": [[5, 0, 4, 1]]}, r"boxes_xyxy\[0\]: expected left <= right"),
        ({"boxes_xyxy": [[0, 3, 4, 1]]}, "top <= bottom"),
        ({"boxes_xyxy": [[0, 0, np.nan, 1]]}, r"finite numbers, got nan at \[0, 2\]"),
        ({"boxes_xyxy": [[0, 0, 1e39, 1]]}, "finite numbers, got inf"),
        ({"boxes_xyxy": [[0, 0, 1]]}, r"expected float32\[n, 4\], got int64\[1, 3\]"),
        ({"boxes_xyxy": [0, 0, 1, 1]}, r"expected float32\[n, 4\], got int64\[4\]"),
        ({"boxes_xyxy": [["0", "0", "1", "1"]]}, "got <U1"),
        ({"boxes_xyxy": [[0, 0, 1, 1], [0, 0]]}, "got list"),
        ({"scores": [0.5, 0.5]}, "scores: expected 1, one for each of boxes_xyxy, got 2"),
        ({"scores": [1.5]}, "numbers from 0 to 1, got 1.5"),
        ({"scores": [-0.5]}, "numbers from 0 to 1, got -0.5"),
        ({"scores": [True]}, "got bool"),
        ({"labels": ["a", "b"]}, "labels: expected 1, one for each of boxes_xyxy, got 2"),
        ({"labels": "a"}, "labels: expected a sequence of strings, got str 'a'"),
        ({"labels": [3]}, r"labels\[0\]: expected a string, got int"),
        ({"size_hw": (0, 5)}, r"size_hw\[0\]: expected a whole number of at least 1, got 0"),
        ({"size_hw": (5.0, 5)}, "got 5.0"),
        ({"size_hw": 5}, r"\(height, width\), got 5"),
        ({"source": None}, "source: expected a mm.types.Source, got NoneType"),
    ],
)
def test_detections_that_do_not_fit_together_are_refused(change, message):
    good = {"boxes_xyxy": [[0, 0, 1, 1]], "scores": [0.5], "labels": ["a"], "size_hw": SIZE}
    Detections(**good)
    with pytest.raises(InputError, match=message):
        Detections(**(good | change))


def test_half_precision_boxes_do_not_overflow():
    boxes = np.array([[0, 0, 40000, 40000]], np.float16)
    found = Detections(boxes, np.array([0.5], np.float16), ("a",), (50000, 50000))
    assert found.boxes_xyxy.dtype == np.float32 and found.scores.dtype == np.float32
    assert found.areas[0] == pytest.approx(1.6e9, rel=1e-3)
    assert len(found.nms()) == 1


def test_probabilities_may_leave_their_range_by_rounding_only():
    assert Detections([[0, 0, 1, 1]], [1.000001], ["a"], SIZE).scores[0] == 1  # type: ignore[arg-type]


def test_detections_are_picked_like_an_array():
    found = detections()
    assert len(found) == 4 and [each.label for each in found] == list(found.labels)
    first = found[0]
    assert isinstance(first, Detection) and isinstance(first.score, float)
    assert found[-1].label == "label 0" and found[1:3].labels == ("label 1", "label 2")
    assert found[np.array([True, False, False, True])].labels == ("label 0", "label 0")
    assert found[found.scores > 2].labels == () and found[[]].labels == ()
    assert found[[3, 1]].scores.tolist() == found.scores[[3, 1]].tolist()
    assert found[[3, 1]].source is found.source
    with pytest.raises(IndexError):
        found[4]
    for key, message in (([True, False], r"bool\[4\]"), ("label 0", "an index"), ([[0]], "an index")):
        with pytest.raises(InputError, match=message):
            found[key]


def test_filter_and_top():
    found = Detections([[0, 0, 1, 1]] * 4, [0.3, 0.9, 0.3, 0.1], ["a", "b", "c", "a"], SIZE)  # type: ignore[arg-type]
    assert found.filter(score=0.3).labels == ("a", "b", "c")
    assert found.filter(label="a").scores.tolist() == pytest.approx([0.3, 0.1])
    assert found.filter(label=["a", "b"], score=0.2).labels == ("a", "b")
    assert found.filter(label="none").labels == ()
    assert found.top(3).labels == ("b", "a", "c") and len(found.top(99)) == 4 and len(found.top(0)) == 0
    with pytest.raises(InputError):
        found.top(-1)


def test_nms_keeps_the_better_of_two_that_overlap():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 5, 5], [5, 5, 5, 5]]
    labels = ("a", "a", "b", "a", "a", "a")
    found = Detections(boxes, [0.5, 0.9, 0.8, 0.1, 0.3, 0.2], labels, SIZE)  # type: ignore[arg-type]
    kept = found.nms(0.5)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.3, 0.2, 0.1])
    assert found.nms(0.5, across_labels=True).scores.tolist() == pytest.approx([0.9, 0.3, 0.2, 0.1])
    assert len(found.nms(0.95)) == 6
    assert len(Detections.empty(SIZE).nms()) == 0


def test_classification_keeps_the_order_of_the_caller_and_ranks_on_request():
    result = Classification(("cat", "dog", "car"), np.array([0.2, 0.5, 0.3]))
    assert [label for label, _ in result] == ["cat", "dog", "car"] and result.best == "dog"
    assert result.top(2).labels == ("dog", "car")
    assert result[1] == ("dog", 0.5) and result.filter(score=0.25).labels == ("dog", "car")
    with pytest.raises(InputError, match="one for each of labels"):
        Classification(("a",), np.array([0.1, 0.2]))
    with pytest.raises(InputError, match="finite"):
        Classification(("a",), np.array([np.nan]))
    with pytest.raises(InputError, match="at least one label"):
        Classification((), np.array([])).best  # noqa: B018


def test_embeddings_compare_by_cosine():
    texts = Embeddings(np.array([[3.0, 0], [0, 0]]), "text")
    images = Embeddings(np.array([[1.0, 0], [1, 1], [-2, 0]]), "image")
    expected = [[1, 0.5**0.5, -1], [0, 0, 0]]
    np.testing.assert_allclose(texts.similarity(images), expected, atol=1e-6)
    assert len(images) == 3
    with pytest.raises(InputError, match="vectors of 2 numbers, got 3"):
        texts.similarity(Embeddings(np.ones((1, 3)), "text"))
    with pytest.raises(InputError, match='"image" or "text"'):
        Embeddings(np.ones((1, 3)), "sound")  # type: ignore[arg-type]


def test_a_caption_is_its_text():
    caption = Caption("a red car", "Describe:", 3, "stop", SIZE)
    assert str(caption) == "a red car" and caption.tokens == 3
    for change in ({"text": 3}, {"prompt": 3}, {"tokens": -1}, {"tokens": True}, {"finish_reason": None}):
        with pytest.raises(InputError, match=next(iter(change))):
            dataclasses.replace(caption, **change)


def test_an_error_record_is_made_from_an_error():
    record = ErrorRecord.of(InputError("blank label"), name="a.png", stage="run")
    assert record == ErrorRecord("a.png", "InputError", "blank label", "run")


def test_a_source_is_checked_and_a_value():
    assert hash(SOURCE) == hash(copy.deepcopy(SOURCE)) and Source() == Source()
    for change in (
        {"model": 3},
        {"versions": [1]},
        {"versions": {"torch": 2}},
        {"warnings": "one"},
        {"preprocessing": {"f": object()}},
        {"preprocessing": 3},
    ):
        with pytest.raises(InputError, match=f"source.{next(iter(change))}"):
            dataclasses.replace(SOURCE, **change)


def test_results_load_neither_torch_nor_anything_heavy():
    code = (
        "import sys, numpy as np; from mm.types import Detections, Segmentation;"
        "import mm.results.draw, mm.results.formats;"
        "d = Detections([[0, 0, 2, 2]], [0.5], ['a'], (5, 6)); d.plot(np.zeros((5, 6, 3), np.uint8));"
        "s = Segmentation(np.ones((1, 3, 3), bool), np.ones((1, 3, 3)), ['a']); s.to_dict();"
        "print({'torch', 'scipy', 'supervision', 'matplotlib', 'cv2', 'transformers'} & sys.modules.keys())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "set()" and answer.stderr == ""


def test_a_box_that_stays_is_the_mean_of_those_that_go_for_it():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 10, 11], [30, 30, 40, 40]], np.float32)
    found = Detections(boxes, np.array([0.6, 0.3, 0.5, 0.4]), ("cat", "cat", "dog", "cat"), (50, 50))
    kept = found.nms(0.5, across_labels=True, vote=True)
    assert kept.labels == ("cat", "cat") and kept.scores.tolist() == pytest.approx([0.6, 0.4])
    np.testing.assert_allclose(kept.boxes_xyxy[0], [0, 0, 10, (0.6 * 10 + 0.3 * 12) / 0.9], rtol=1e-6)
    np.testing.assert_allclose(kept.boxes_xyxy[1], boxes[3])
    assert len(Detections.empty((50, 50)).nms(vote=True)) == 0
