"""Models against data sets on disk: the figures are the metrics' own, a bad picture costs only itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mm
from mm.checkpoints.loading import load
from mm.errors import InputError
from mm.evaluation.report import evaluate_detect, evaluate_matte, evaluate_segment
from mm.heads.clipmat import ClipMatHead
from mm.joined import Joined
from mm.metrics.detection import detection_figures
from mm.metrics.lvis import lvis_figures
from mm.metrics.matting import MattingScore
from mm.metrics.segmentation import MaskScore
from mm.recipes.matting import config_for
from mm.results.packing import encode_rle
from mm.scenes import Scene, render_scene

SEEDS = (1, 2, 5, 7)
SCENES = [render_scene(seed, (96, 64) if seed == 5 else 96) for seed in SEEDS]


def dataset_of(scenes: list[Scene], *, lvis: bool = False) -> dict[str, Any]:
    """The scenes in COCO's layout, categories by colour and kind, masks as run lengths."""
    labels = sorted({thing.label for scene in scenes for thing in scene.objects})
    ids = {label: place for place, label in enumerate(labels, start=1)}
    images, annotations = [], []
    for number, scene in enumerate(scenes, start=1):
        height, width = scene.size_hw
        shown = {ids[thing.label] for thing in scene.objects}
        image = {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        if lvis:
            del image["file_name"]
            image |= {"coco_url": f"http://images.example/val/{number}.png"}
            image |= {"neg_category_ids": sorted({*ids.values()} - shown), "not_exhaustive_category_ids": []}
        images.append(image)
        for thing in scene.objects:
            left, top, right, bottom = thing.box_xyxy.tolist()
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": ids[thing.label], "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top], "area": int(thing.mask.sum()),
                "segmentation": encode_rle(thing.mask),
            })  # fmt: skip
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    if lvis:
        categories = [
            {**each, "name": each["name"].replace(" ", "_"), "frequency": "rcf"[place % 3]}
            for place, each in enumerate(categories)
        ]
    return {"images": images, "annotations": annotations, "categories": categories}


def written(home: Path, dataset: Any, scenes: list[Scene], folder: str = "images") -> Path:
    """The JSON file in `home`, its pictures in a folder below."""
    (home / folder).mkdir(parents=True)
    for number, scene in enumerate(scenes, start=1):
        scene.pil().save(home / folder / f"{number}.png")
    file = home / "truth.json"
    file.write_text(json.dumps(dataset))
    return file


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return written(tmp_path / "set", dataset_of(SCENES), SCENES)


def changed(file: Path, change: Any) -> Path:
    dataset = json.loads(file.read_text())
    change(dataset)
    file.write_text(json.dumps(dataset))
    return file


def test_boxes_have_the_figures_that_the_metrics_give_when_asked_directly(coco: Path) -> None:
    dataset = dataset_of(SCENES)
    labels = [each["name"] for each in dataset["categories"]]
    found = {i: mm.detect(scene.pixels, labels, scores="all") for i, scene in enumerate(SCENES, start=1)}
    wanted = detection_figures(dataset, found)
    report = evaluate_detect(coco).report
    assert report["figures"] | {"per_label": report["per_label"]} == wanted
    assert wanted["AP"] > 0.05 and wanted["AR100"] > 0.1
    assert (report["pictures"], report["failed"], report["labels"]) == (len(SCENES), [], len(labels))
    assert (report["task"], report["model"], report["data"]) == ("detect", "tiny", "truth.json")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_lvis_names_are_read_with_spaces_and_its_frequencies_count(tmp_path: Path) -> None:
    dataset = dataset_of(SCENES, lvis=True)
    file = written(tmp_path, dataset, SCENES, "val")
    report = evaluate_detect(file, form="lvis", images=tmp_path).report
    spoken = {**dataset, "categories": [c | {"name": c["name"].replace("_", " ")} for c in dataset["categories"]]}
    labels = [each["name"] for each in spoken["categories"]]
    found = {i: mm.detect(scene.pixels, labels, scores="all") for i, scene in enumerate(SCENES, start=1)}
    wanted = lvis_figures(spoken, found)
    assert report["figures"] | {"per_label": report["per_label"]} == wanted
    assert None not in (wanted["AP_rare"], wanted["AP_common"], wanted["AP_frequent"])


def masks_of(scene: Scene) -> dict[str, np.ndarray]:
    together: dict[str, np.ndarray] = {}
    for thing in scene.objects:
        together[thing.label] = together.get(thing.label, np.zeros(scene.size_hw, bool)) | thing.mask
    return together


def mask_figures(masks: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    score = MaskScore()
    for scene, truth in zip(SCENES, masks, strict=True):
        for label, mask in truth.items():
            score.add(mm.segment(scene.pixels, label).masks[0], mask)
    return score.figures()


def test_masks_of_a_label_count_together(coco: Path) -> None:
    def twice(dataset: dict[str, Any]) -> None:
        first = dataset["annotations"][0]
        polygon = [1, 1, 20, 1, 20, 10, 1, 10]
        dataset["annotations"].append({**first, "id": 999, "bbox": [1, 1, 19, 9], "segmentation": [polygon]})

    masks = [masks_of(scene) for scene in SCENES]
    masks[0][SCENES[0].objects[0].label][1:10, 1:20] = True
    report = evaluate_segment(changed(coco, twice)).report
    wanted = mask_figures(masks)
    assert report["figures"] == wanted and 0.2 < wanted["cIoU"] < 1
    assert sum(each["masks"] for each in report["per_label"].values()) == wanted["masks"] == sum(map(len, masks))


def grey_folder(home: Path, kind: str, truths: list[dict[str, np.ndarray]]) -> Path:
    """truths: float[H, W] in 0..1 by label, one dictionary for each of SCENES."""
    (home / "images").mkdir(parents=True)
    for number, (scene, truth) in enumerate(zip(SCENES, truths, strict=True)):
        scene.pil().save(home / "images" / f"{number}.png")
        for label, alpha in truth.items():
            folder = home / kind / label.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(alpha * 255).astype(np.uint8)).save(folder / f"{number}.png")
    return home


def test_a_folder_of_masks_gives_the_same(tmp_path: Path) -> None:
    masks = [masks_of(scene) for scene in SCENES]
    home = grey_folder(tmp_path / "set", "masks", masks)
    assert evaluate_segment(home, form="folder").report["figures"] == mask_figures(masks)


@pytest.fixture(scope="module")
def matting() -> Joined:
    """`tiny` with a matting head that knows nothing yet."""
    tiny = load("tiny")
    torch.manual_seed(0)
    return dataclasses.replace(tiny, matter=ClipMatHead(**vars(config_for(tiny))).eval().requires_grad_(False))


def test_mattes_have_the_figures_that_the_metrics_give_when_asked_directly(tmp_path: Path, matting: Joined) -> None:
    truths = [{scene.objects[-1].label: np.round(scene.objects[-1].soft_alpha * 255) / 255} for scene in SCENES]
    outcome = evaluate_matte(grey_folder(tmp_path / "set", "alpha", truths), model=matting, worst=2)
    score, apart = MattingScore(), []
    for scene, truth in zip(SCENES, truths, strict=True):
        for label, alpha in truth.items():
            found = mm.matte(scene.pixels, label, model=matting).alpha
            score.add(found, alpha)
            apart.append(float(np.abs(found - alpha).mean()))
    wanted = score.figures()
    for name in ("SAD", "MSE", "MAD", "Grad", "Conn"):
        assert outcome.report["figures"][name] == pytest.approx(wanted[name], rel=1e-5)
    assert outcome.report["figures"]["mattes"] == len(SCENES)
    worst = [each["MAD"] for each in outcome.report["worst"]]
    assert worst == pytest.approx(sorted(apart, reverse=True)[:2], rel=1e-5)
    width, height = outcome.worst[0].drawing().size
    assert width > 3 * 96 and height > 64


def test_a_flat_folder_of_mattes_needs_a_label(tmp_path: Path, matting: Joined) -> None:
    scene = SCENES[0]
    for folder in ("images", "alpha"):
        (tmp_path / folder).mkdir()
    scene.pil().save(tmp_path / "images" / "a.jpg")
    Image.fromarray(scene.objects[0].mask.astype(np.uint8) * 255).save(tmp_path / "alpha" / "a.png")
    with pytest.raises(InputError, match="--label"):
        evaluate_matte(tmp_path, model=matting)
    report = evaluate_matte(tmp_path, model=matting, label=scene.objects[0].label).report
    assert report["figures"]["mattes"] == 1 and list(report["per_label"]) == [scene.objects[0].label]


def test_a_bad_picture_is_recorded_and_left_out(coco: Path) -> None:
    images = coco.parent / "images"
    (images / "1.png").write_bytes(b"no picture")
    (images / "2.png").unlink()
    Image.new("RGB", (5, 5)).save(images / "3.png")
    report = evaluate_detect(coco).report
    assert report["pictures"] == 1
    assert [each["name"] for each in report["failed"]] == ["1.png", "2.png", "3.png"]
    assert "no such file" in report["failed"][1]["message"] and "(5, 5)" in report["failed"][2]["message"]
    left = dataset_of(SCENES)
    labels = [each["name"] for each in left["categories"]]
    left["images"] = left["images"][3:]
    left["annotations"] = [each for each in left["annotations"] if each["image_id"] == 4]
    assert (
        report["figures"]["AP"] == detection_figures(left, {4: mm.detect(SCENES[3].pixels, labels, scores="all")})["AP"]
    )


def test_a_malformed_mask_costs_only_its_picture(coco: Path) -> None:
    def broken(dataset: dict[str, Any]) -> None:
        dataset["annotations"][0]["segmentation"] = [[1, 2, 3]]

    report = evaluate_segment(changed(coco, broken)).report
    assert [each["name"] for each in report["failed"]] == ["1.png"] and report["pictures"] == len(SCENES) - 1


def test_masks_that_do_not_fit_their_picture_or_number_things_are_bad(tmp_path: Path) -> None:
    masks = [masks_of(scene) for scene in SCENES]
    home = grey_folder(tmp_path / "set", "masks", masks)
    first, *_ = sorted((home / "masks").glob("*/0.png"))
    Image.new("L", (5, 5)).save(first)
    second, *_ = sorted((home / "masks").glob("*/1.png"))
    Image.fromarray((masks[1][second.parent.name.replace("_", " ")] * 3).astype(np.uint8)).save(second)
    (home / "images" / "3.png").unlink()
    failed = evaluate_segment(home, form="folder").report["failed"]
    assert [
        said for said, each in zip(("size", "black and white", "no picture"), failed, strict=True)
        if said in each["message"]
    ] == ["size", "black and white", "no picture"]  # fmt: skip


def test_the_worst_come_first_and_are_drawn_truth_beside_answer(coco: Path) -> None:
    outcome = evaluate_segment(coco, worst=3)
    ious = [each["IoU"] for each in outcome.report["worst"]]
    every = sorted(each["IoU"] for each in evaluate_segment(coco, worst=1000).report["worst"])
    assert ious == sorted(ious) == every[:3]
    case = outcome.worst[0]
    picture = case.drawing()
    assert picture.width >= 2 * 96 and picture.height > 64
    boxes = evaluate_detect(coco, worst=2)
    assert boxes.report["worst"][0]["AP50"] <= boxes.report["worst"][1]["AP50"]
    assert boxes.worst[1].drawing().width >= 2 * 96


def test_only_the_first_pictures_are_asked(coco: Path) -> None:
    (coco.parent / "images" / "4.png").write_bytes(b"no picture")
    report = evaluate_detect(coco, limit=2).report
    assert report["pictures"] == 2 and not report["failed"]


@pytest.mark.parametrize("folder", ["val", "images", "images/val", "annotations"])
def test_pictures_are_found_where_data_sets_keep_them(tmp_path: Path, folder: str) -> None:
    file = written(tmp_path, dataset_of(SCENES[:1]), SCENES[:1], folder)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    moved = file.rename(tmp_path / "annotations" / "instances_val.json")
    assert evaluate_segment(moved).report["pictures"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["categories"][0].pop("name"), "category 1.*name"),
        (lambda d: d.update(annotations=[]), "no annotations"),
        (lambda d: d["categories"][0].update(name=" "), "label 1"),
        (lambda d: d.pop("images"), "images"),
        (lambda d: d.pop("categories"), "categories"),
        (lambda d: d["images"][0].pop("file_name"), "file_name"),
        (lambda d: d["images"][0].update(file_name="../1.png"), "no plain name"),
        (lambda d: [i.update(file_name="x" + i["file_name"]) for i in d["images"]], "none of its 4 pictures"),
    ],
)
def test_a_malformed_data_set_is_refused_before_any_work(coco: Path, change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate_detect(changed(coco, change), model="no such model")


def test_what_is_no_data_set_of_the_format_is_refused(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='detect reads coco, lvis, got "?\'?coko.*Did you mean "coco"'):
        evaluate_detect(coco, form="coko")
    with pytest.raises(InputError, match="cannot be read"):
        evaluate_detect(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="got a folder"):
        evaluate_detect(coco.parent)
    with pytest.raises(InputError, match="neg_category_ids"):
        evaluate_detect(coco, form="lvis")
    with pytest.raises(InputError, match="in 'empty'"):
        evaluate_detect(coco, images=tmp_path / "empty")
    with pytest.raises(InputError, match="no folder"):
        evaluate_segment(tmp_path / "nowhere", form="folder")
    with pytest.raises(InputError, match="segmentation"):
        evaluate_segment(changed(coco, lambda d: d["annotations"][0].pop("segmentation")))
    with pytest.raises(InputError, match="no matter"):
        home = grey_folder(tmp_path / "mattes", "alpha", [masks_of(scene) for scene in SCENES])
        evaluate_matte(home, model=dataclasses.replace(load("tiny"), matter=None))
