"""What heads learn from: folders in COCO's layout, pairs and scenes, and the batches that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm.encoders.preprocess import Preprocessing, squashed
from mm.errors import ImageInputError, InputError, TextInputError
from mm.training.batches import HeadBatch, HeadBatches, Rules
from mm.training.coco import CocoFolder
from mm.training.data import held_out, open_data
from mm.training.examples import Example, Examples
from mm.types import Detections
from tests.training_parts import COLOURS, SIDE, coco_folder, drawing, pairs

PLAIN = squashed(SIDE, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CROP = Preprocessing((32, 32), "crop", "bilinear", (0.5,) * 3, (0.5,) * 3, None, "floor", (0, 0, 0), None, None)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "données avec blancs", 5)


def changed(folder: Path, change: Any) -> Path:
    """The folder, its JSON file changed in place."""
    file = folder / "annotations" / "instances_train.json"
    dataset = json.loads(file.read_text())
    change(dataset)
    file.write_text(json.dumps(dataset))
    return folder


def batches(examples: Examples, preprocessing: Preprocessing = PLAIN, **rules: Any) -> HeadBatches:
    chosen = {"size": 3, "seed": 0, "flips": False, "negatives": 5, "asks": 2} | rules
    return HeadBatches(examples, examples.labels, preprocessing, Rules(**chosen), range(4))


def same(a: HeadBatch, b: HeadBatch) -> bool:
    return all(
        torch.equal(value, getattr(b, name)) if isinstance(value, torch.Tensor) else value == getattr(b, name)
        for name, value in vars(a).items()
    )


def assert_shows(example: Example, seed: int) -> None:
    pixels, truth = drawing(seed)
    assert np.array_equal(example.picture.pixels, pixels)
    assert list(example.labels) == truth["labels"]
    assert np.array_equal(example.boxes_xyxy, np.array(truth["boxes_xyxy"], np.float32))
    assert example.masks is not None and np.array_equal(example.masks, np.array(truth["masks"], np.float32))


def test_a_coco_folder_gives_boxes_and_masks_of_its_pictures(folder: Path):
    examples = open_data(folder)
    assert len(examples) == 5 and examples.has == {"boxes", "masks"}
    assert {*examples.labels} <= {*COLOURS}
    for place in range(5):
        assert_shows(examples[place], place)


def test_pairs_give_the_same_as_the_folder(folder: Path):
    given, read = open_data(pairs(5)), open_data(str(folder))
    assert given.things == read.things and {*given.labels} == {*read.labels}
    for place in range(5):
        assert_shows(given[place], place)


def test_boxes_come_from_masks_where_only_those_are_given():
    pixels, truth = drawing(3)
    example = open_data([(pixels, {"labels": truth["labels"], "masks": truth["masks"]})])[0]
    assert np.array_equal(example.boxes_xyxy, truth["boxes_xyxy"])


def test_results_of_the_library_are_truth_too():
    pixels, truth = drawing(1)
    said = Detections(np.array(truth["boxes_xyxy"]), np.ones(len(truth["labels"])), truth["labels"], (SIDE, SIDE))
    examples = open_data([(pixels, said)])
    assert examples.has == {"boxes"} and np.array_equal(examples[0].boxes_xyxy, truth["boxes_xyxy"])


def test_crowds_are_no_things_but_leave_their_label_unsure(folder: Path):
    def crowd(dataset: dict[str, Any]) -> None:
        first = dataset["annotations"][0]
        first |= {"iscrowd": 1, "segmentation": {"size": [SIDE, SIDE], "counts": [0, 100, SIDE * SIDE - 100]}}

    before = open_data(folder)[0]
    after = open_data(changed(folder, crowd))[0]
    assert list(after.labels) == list(before.labels)[1:] and after.unsure == {before.labels[0]}


def test_a_broken_picture_costs_only_itself(folder: Path):
    (folder / "images" / "drawing 2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    examples = open_data(folder)
    with pytest.raises(ImageInputError, match=r"drawing 2\.png"):
        examples[2]
    made = [each for each in batches(examples, asks=0)]
    assert {name for batch in made for name, _ in batch.broken} == {"picture 2"}
    assert all(len(batch.pixels) == 3 for batch in made)


def test_a_picture_of_another_size_than_said_is_broken(folder: Path):
    examples = open_data(changed(folder, lambda dataset: dataset["images"][1].update(height=40)))
    with pytest.raises(ImageInputError, match=r"says \(40, 48\), the upright picture is \(48, 48\)"):
        examples[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"].clear(), "not one thing"),
        (lambda d: d["annotations"][0].update(category_id=99), "annotation 1.category_id"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotation 1.image_id"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, -3, 4]), "annotation 1.bbox"),
        (lambda d: d["images"][0].update(file_name="../../secret.png"), "no plain name"),
        (lambda d: d["images"][0].pop("file_name"), "file_name"),
        (lambda d: d["images"].clear(), "image_id"),
        (lambda d: d["categories"].append({"id": 77, "name": "red square"}), "a second time"),
        (lambda d: d.pop("categories"), "categories"),
    ],
)
def test_a_malformed_folder_is_refused_by_the_name_of_its_fault(folder: Path, change: Any, message: str):
    with pytest.raises(InputError, match=message):
        open_data(changed(folder, change))


def test_other_data_is_refused(tmp_path: Path, folder: Path):
    for data, message in (
        (tmp_path / "nowhere", "no folder"),
        ("scenes:0", "count from 1"),
        (7, "int"),
        ([], "no picture"),
        ([(drawing(0)[0], {"labels": []})], "not one thing"),
        ([drawing(0)[0]], "item 0"),
        ([(drawing(0)[0], {"labels": ["x"], "boxes": [[0, 0, 1, 1]]})], 'Did you mean "boxes_xyxy"'),
        ([(drawing(0)[0], {"labels": ["x"], "boxes_xyxy": [[5, 5, 2, 9]]})], "left < right"),
        ([(drawing(0)[0], {"labels": ["x"], "masks": np.zeros((2, 8, 8))})], "item 0, masks"),
    ):
        with pytest.raises(InputError, match=message):
            open_data(data)
    with pytest.raises(TextInputError, match="item 0, label 1"):
        open_data([(drawing(0)[0], {"labels": [" "], "boxes_xyxy": [[0, 0, 1, 1]]})])
    (folder / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(InputError, match=r"instances_train.json, instances_val.json; pass the file"):
        open_data(folder)
    (folder / "broken.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        CocoFolder(folder / "broken.json")


def test_a_share_is_held_out_once_and_for_all():
    kept, away = held_out(open_data(pairs(10)), 0.3, seed=1)
    again = held_out(open_data(pairs(10)), 0.3, seed=1)
    assert (len(kept), len(away)) == (7, 3) and [each.digest() for each in again] == [kept.digest(), away.digest()]
    shown = {each[i].picture.digest for each in (kept, away) for i in range(len(each))}
    assert len(shown) == 10
    for share in (0.0, 1.0, 0.01, True):
        with pytest.raises(InputError, match="validation"):
            held_out(open_data(pairs(10)), share, seed=1)


def test_a_digest_changes_with_the_truth_and_the_pictures(folder: Path):
    before = open_data(folder).digest()
    assert open_data(folder).digest() == before
    (folder / "images" / "drawing 0.png").write_bytes(b"longer or shorter")
    other = open_data(folder).digest()
    assert other != before
    assert open_data(changed(folder, lambda d: d["annotations"][0].update(area=1))).digest() != other
    one, two = pairs(2), pairs(2)
    two[0][1]["boxes_xyxy"][0][0] += 1
    assert open_data(one).digest() == open_data(pairs(2)).digest() != open_data(two).digest()


def test_a_batch_is_a_pure_function_of_its_step():
    examples = open_data(pairs(7))
    first, again = batches(examples, flips=True), batches(examples, flips=True)
    np.random.seed(4)
    late = [again.make(step) for step in (3, 2, 1, 0)]
    assert all(same(a, b) for a, b in zip(first, reversed(late), strict=True))
    assert not same(late[0], late[1])


def test_an_epoch_shows_every_picture_once():
    examples = open_data(pairs(12))
    made = list(batches(examples))
    assert len({each.numpy().tobytes() for batch in made for each in batch.pixels}) == 12


def test_boxes_and_masks_lie_where_the_things_are():
    for batch in batches(open_data(pairs(6)), flips=True):
        names = [open_data(pairs(6)).labels[i] for i in batch.asked.tolist()]
        for owner, label, box in zip(batch.owner, batch.label, batch.boxes, strict=True):
            x, y = (box[:2] * SIDE).int().tolist()
            seen = (batch.pixels[owner, :, y, x] * 255).round().int().tolist()
            assert tuple(seen) == COLOURS[names[label]]
        for owner, alpha, colour in zip(batch.ask_owner, batch.ask_alpha, batch.ask_colour, strict=True):
            inside = alpha > 0.5
            assert torch.allclose(colour[:, inside], batch.pixels[owner][:, inside] * 255, atol=1e-3)


def test_negatives_are_labels_that_nothing_in_the_batch_has():
    examples = open_data([(drawing(0)[0], {"labels": [str(i)], "boxes_xyxy": [[0, 0, 9, 9]]}) for i in range(50)])
    for batch in batches(examples, asks=0, negatives=8):
        assert len(batch.asked) == 3 + 8 == len(set(batch.asked.tolist()))
        assert sorted(batch.label.tolist()) == [0, 1, 2]


def test_what_a_crop_cuts_away_is_no_target():
    boxes = [[0, 0, 60, 20], [0, 0, 8, 20], [2, 0, 30, 20], [50, 0, 70, 20]]
    wide = np.full((32, 96, 3), 90, np.uint8)  # the frame shows the columns 32 to 64
    examples = open_data([(wide, {"labels": list("abcd"), "boxes_xyxy": boxes})] * 3)
    batch = batches(examples, CROP, asks=0, size=1).make(0)
    asked = [examples.labels[batch.asked[i]] for i in batch.label.tolist()]
    assert asked == ["a", "d"]
    assert torch.allclose(batch.boxes[0], torch.tensor([14 / 32, 10 / 32, 28 / 32, 20 / 32]))
    assert torch.allclose(batch.boxes[1], torch.tensor([25 / 32, 10 / 32, 14 / 32, 20 / 32]))


def test_scenes_show_what_they_say_and_no_held_out_pair():
    from mm.scenes.vocabulary import HELD_OUT_PAIRS

    examples, other = open_data("scenes:3", soft=True), open_data("scenes:3", held_out=True)
    unseen = {f"{colour} {kind}" for colour, kind in HELD_OUT_PAIRS}
    assert not unseen & {*examples.labels} and {*examples[0].labels} <= {*examples.labels}
    assert examples[0].picture != other[0].picture
    assert examples[1].picture.size_hw == (112, 160)
    made = next(iter(batches(examples, asks=1)))
    assert made.ask_alpha.shape == (3, SIDE, SIDE) and made.ask_alpha.min() >= 0 and made.ask_alpha.max() <= 1
