"""The figures of the drawn world, worked out by hand for perfect, blind and partly wrong speakers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mm.errors import InputError
from mm.evaluation import scenes as evaluate
from mm.evaluation.scene_scores import (
    AnswerScore,
    CaptionScore,
    DetectScore,
    HallucinationScore,
    SegmentScore,
    asked_of,
    labels_of,
)  # fmt: skip
from mm.evaluation.scenes import Said, classify_figures, evaluate_scenes, matte_figures, scene_figures
from mm.recipes.batches import TRAIN_SEED
from mm.scenes import Scene, SceneObject, caption_of, render_scene, render_single
from mm.scenes.soft import matte_of
from mm.scenes.vocabulary import HELD_OUT_PAIRS, SEEN_PAIRS
from mm.types import Detections, Matte, Segmentation


def thing(kind: str, colour: str, x: int, y: int, texture: str = "plain") -> SceneObject:
    """A 10 x 10 object with its upper left corner at (x, y) of a 100 x 100 picture."""
    alpha = np.ones((10, 10), np.float32)
    rgb = np.zeros((10, 10, 3), np.uint8)
    return SceneObject(kind, colour, texture, "small", (100, 100), (x, y), rgb, alpha, alpha)


def scene(*objects: SceneObject, background: str = "white") -> Scene:
    return Scene(np.zeros((100, 100, 3), np.uint8), objects, background, 0)


def boxes(*found: tuple[list[int], float, str]) -> Detections:
    rows = np.array([box for box, _, _ in found], float).reshape(-1, 4)
    return Detections(rows, np.array([s for _, s, _ in found]), tuple(label for *_, label in found), (100, 100))


def masks(shown: Scene, **of: np.ndarray) -> Segmentation:
    """The true masks, but those named in `of` ("red_car") as given."""
    labels = labels_of(shown)
    given = {label.replace("_", " "): mask for label, mask in of.items()}
    truth = {o: np.any([t.mask for t in shown.objects if t.label == o], axis=0) for o in labels}
    stack = np.stack([(truth | given)[label] for label in labels])
    return Segmentation(stack, stack.astype(np.float32), tuple(labels))


def oracle(shown: Scene) -> Said:
    rows = np.stack([o.box_xyxy for o in shown.objects])
    scores = np.linspace(0.9, 0.5, len(rows))
    detections = Detections(rows, scores, tuple(o.label for o in shown.objects), shown.size_hw)
    answers = tuple(answer for _, answer in asked_of(shown))
    return Said(detections, masks(shown), caption_of(shown), answers, ("",) * len(answers))


def blind(shown: Scene) -> Said:
    labels = tuple(labels_of(shown))
    nothing = np.zeros((len(labels), *shown.size_hw))
    answers = ("",) * len(asked_of(shown))
    return Said(
        Detections.empty(shown.size_hw), Segmentation(nothing > 0, nothing, labels), "a picture", answers, answers
    )


def figures(scenes: list[Scene], speaker: Callable[[Scene], Said], unseen: bool = False) -> dict:
    return scene_figures(iter(scenes), lambda part: [speaker(each) for each in part], unseen)


def drawn(count: int, pairs: str) -> list[Scene]:
    return [render_scene(seed, 64, pairs=pairs) for seed in range(count)]


@pytest.mark.parametrize("pairs", ["seen", "unseen"])
def test_a_perfect_speaker_scores_one_everywhere(pairs: str):
    scenes = drawn(20, pairs)
    scores = figures(scenes, oracle, unseen=pairs == "unseen")
    assert all(scores["detect"][name] == pytest.approx(1) for name in ("AP50", "AP", "AR100"))
    assert scores["segment"]["mIoU"] == 1
    assert set(scores["caption"].values()) == {1.0}
    assert scores["hallucination"] == {"mentions": 0, "captions": 0}
    answers = scores["answers"]
    assert (answers["accuracy"], answers["blind"]) == (1, 0) and set(answers["by"].values()) == {1.0}
    assert answers["questions"] == sum(len(asked_of(each)) for each in scenes)
    assert answers["yes"] == answers["true_yes"] > 0
    assert ("unseen_recall" in scores["caption"]) == ("all" in scores["detect"]) == (pairs == "unseen")


def test_a_blind_speaker_scores_nothing():
    scores = figures(drawn(5, "unseen"), blind, unseen=True)
    assert scores["detect"] == {
        "AP50": 0, "AP": 0, "AR100": 0, "labels": 240, "all": {"AP50": 0, "AP": 0, "AR100": 0}
    }  # fmt: skip
    assert scores["segment"]["mIoU"] == scores["segment"]["all"]["mIoU"] == 0
    assert set(scores["caption"].values()) == {0.0}
    assert scores["answers"]["accuracy"] == scores["answers"]["yes"] == 0


def test_average_precision_is_a_mean_over_the_labels_that_are_there():
    score = DetectScore(unseen=False)
    shown = scene(thing("car", "red", 0, 0), thing("cat", "red", 50, 50))
    score.add(shown, boxes(([0, 0, 10, 10], 0.9, "red car")))
    assert score.figures() == {"AP50": 0.5, "AP": 0.5, "AR100": 0.5, "labels": 240}


def test_a_box_counts_at_each_overlap_it_reaches():
    # 8 of 10 columns: an IoU of 0.8, enough at 0.5, 0.55, ... 0.75 and 0.8 - seven of ten thresholds.
    score = DetectScore(unseen=False)
    score.add(scene(thing("car", "red", 0, 0)), boxes(([0, 0, 8, 10], 0.9, "red car")))
    found = score.figures()
    assert found["AP50"] == pytest.approx(1)
    assert found["AP"] == pytest.approx(0.7) and found["AR100"] == pytest.approx(0.7)


def test_a_false_box_that_scores_higher_halves_the_precision():
    score = DetectScore(unseen=False)
    score.add(
        scene(thing("car", "red", 0, 0)),
        boxes(
            ([60, 60, 70, 70], 0.9, "red car"),
            ([0, 0, 10, 10], 0.5, "red car"),
            ([0, 0, 10, 10], 0.99, "red cat"),
        ),
    )
    assert score.figures()["AP50"] == pytest.approx(0.5)


def test_unseen_detection_is_of_held_out_labels_with_all_beside_it():
    score = DetectScore(unseen=True)
    shown = scene(thing("circle", "red", 0, 0), thing("cat", "red", 50, 50), thing("sun", "red", 80, 0))
    score.add(shown, boxes(([50, 50, 60, 60], 0.9, "red cat"), ([80, 0, 90, 10], 0.8, "red sun")))
    found = score.figures()
    assert (found["AP50"], found["AR100"]) == (0, 0)
    assert found["all"]["AP50"] == pytest.approx(2 / 3) and found["all"]["AR100"] == pytest.approx(2 / 3)


def test_a_mask_is_compared_with_all_things_of_its_label():
    shown = scene(thing("car", "red", 0, 0), thing("car", "red", 50, 50), thing("cat", "blue", 80, 80))
    one_car = shown.objects[0].mask
    score = SegmentScore(unseen=False)
    score.add(shown, masks(shown, red_car=one_car))
    assert score.figures() == {"mIoU": 0.75, "masks": 2}  # (100 / 200 + 100 / 100) / 2
    twice = np.zeros((100, 100), bool)
    twice[80:90, 60:90] = True
    score.add(shown, masks(shown, blue_cat=twice))
    assert score.figures() == {"mIoU": pytest.approx((0.5 + 1 + 1 + 1 / 3) / 4), "masks": 4}


def test_unseen_segmentation_is_of_held_out_labels_with_all_beside_it():
    shown = scene(thing("circle", "red", 0, 0), thing("cat", "red", 50, 50))
    score = SegmentScore(unseen=True)
    score.add(shown, masks(shown, red_circle=np.zeros((100, 100), bool)))
    assert score.figures() == {"mIoU": 0.0, "masks": 1, "all": {"mIoU": 0.5, "masks": 2}}


def test_captions_count_things_by_colour_and_kind():
    shown = scene(
        thing("car", "red", 0, 0, "striped"), thing("car", "red", 20, 0, "striped"),
        thing("cat", "blue", 50, 50), thing("circle", "red", 80, 0),
    )  # fmt: skip
    score = CaptionScore(unseen=True)
    score.add(shown, "three red cars and a blue cat on a white background")
    found = score.figures()
    # Said 4 things, there are 4, and 3 agree; of the groups only the cat is right: 1 of 2 said, of 3 there.
    assert (found["object_precision"], found["object_recall"], found["object_F1"]) == (0.75, 0.75, 0.75)
    assert found["strict_F1"] == pytest.approx(2 * 1 / (2 + 3))
    assert (found["background_accuracy"], found["exact"]) == (1, 0)
    assert found["unseen_recall"] == 0.5  # of the blue cat and the red circle


def test_captions_are_counted_over_all_scenes_together():
    score = CaptionScore(unseen=False)
    one, many = scene(thing("car", "red", 0, 0)), scene(*(thing("cat", "red", x, 0) for x in (0, 20, 40)))
    score.add(one, "a red car on a white background")
    score.add(many, "a blue cat on a black background")
    found = score.figures()
    assert (found["object_precision"], found["object_recall"]) == (0.5, 0.25)
    assert found["object_F1"] == pytest.approx(1 / 3)
    assert (found["background_accuracy"], found["exact"]) == (0.5, 0.5)


def test_what_is_not_there_is_invented_by_its_kind():
    score = HallucinationScore()
    score.add(scene(thing("car", "red", 0, 0)), "two blue cars and a red cat on a white background")
    score.add(scene(thing("cat", "red", 0, 0)), "a red cat on a white background")
    assert score.figures() == {"mentions": 1 / 4, "captions": 1 / 2}  # a car is there, of whatever colour


def test_every_question_has_one_form_and_blind_answers_are_counted_apart():
    scenes, score, forms = drawn(60, "seen"), AnswerScore(), set()
    for shown in scenes:
        truth = [answer for _, answer in asked_of(shown)]
        score.add(shown, truth, ["yes"] * len(truth))
    found = score.figures()
    forms = set(found["by"])
    assert forms == {"colour", "texture", "count", "existence", "relation", "size"}
    every = [answer for shown in scenes for _, answer in asked_of(shown)]
    assert found["blind"] == every.count("yes") / len(every) and found["accuracy"] == 1


def test_mattes_stand_beside_masks_and_colours():
    shown = scene(thing("car", "red", 0, 0), thing("cat", "red", 50, 50))
    alpha, colours = matte_of(shown, [True, False])

    def cut(_: Scene, label: str) -> tuple[Matte, Segmentation]:
        assert label == "red car"
        shifted = np.roll(alpha > 0, 5, 1)[None]
        return Matte(alpha / 2, np.full_like(colours, 30)), Segmentation(shifted, shifted.astype(np.float32), (label,))

    found = matte_figures(iter([shown]), cut)
    assert found["SAD"] == pytest.approx(0.05) and found["MSE"] == pytest.approx(0.0025)  # 100 pixels, each half off
    assert found["mask"]["SAD"] == pytest.approx(0.1) and found["pictures"] == 1  # 5 of 10 columns, twice
    assert found["colours"] == pytest.approx(30) and "pictures" not in found["mask"]


def test_half_the_answers_right_is_half():
    scenes, turn = drawn(8, "seen"), iter([True, False] * 4)

    def speaker(shown: Scene) -> Said:
        said = oracle(shown)
        return said if next(turn) else replace(said, answers=("perhaps",) * len(said.answers))

    expected = sum(len(asked_of(each)) for each in scenes[::2]) / sum(len(asked_of(each)) for each in scenes)
    assert figures(scenes, speaker)["answers"]["accuracy"] == pytest.approx(expected)


def test_classification_is_the_share_of_best_labels_that_are_right():
    singles = [render_single(0, kind, colour, 48) for colour, kind in SEEN_PAIRS[:20]]
    name = lambda part: [each.objects[0].label if each.objects[0].colour == "red" else "" for each in part]  # noqa: E731
    red = sum(colour == "red" for colour, _ in SEEN_PAIRS[:20])
    assert classify_figures(iter(singles), name) == {"accuracy": red / 20, "pictures": 20, "labels": 240}


def test_what_is_drawn_is_cycled_seeded_and_of_several_sizes(monkeypatch: pytest.MonkeyPatch):
    shown: list[Scene] = []
    single: list[Scene] = []

    def respond(_: str, part: list[Scene]) -> list[Said]:
        shown.extend(part)
        return [oracle(each) for each in part]

    def name(_: str, part: list[Scene]) -> list[str]:
        single.extend(part)
        return [each.objects[0].label for each in part]

    monkeypatch.setattr(evaluate, "_respond", respond)
    monkeypatch.setattr(evaluate, "_name", name)
    monkeypatch.setattr(evaluate, "_has_matter", lambda _: False)
    scores = evaluate_scenes("fake", count=30, seed=500, unseen=True)
    assert [each.seed for each in shown] == list(range(500, 530)) and all(each.has_held_out for each in shown)
    sizes = [each.size_hw for each in shown[:6]]
    assert sizes == [(128, 128), (128, 128), (112, 160), (128, 128), (128, 128), (160, 112)]
    pairs = [(each.objects[0].colour, each.objects[0].kind) for each in single]
    assert len(pairs) == 48 and all(pairs.count(pair) == 2 for pair in HELD_OUT_PAIRS)
    assert scores["classify"] == {"accuracy": 1.0, "pictures": 48, "labels": 240}
    assert list(scores) == [
        "model", "world", "count", "seed", "unseen", "detect", "segment", "caption", "hallucination", "answers",
        "classify",
    ]  # fmt: skip
    assert scores["detect"]["AP"] == 1.0 and scores["detect"]["all"]["AP"] == 1.0
    evaluate_scenes("fake", count=1)
    assert len(single) == 48 + len(SEEN_PAIRS) and not shown[-1].has_held_out


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [(0, 0, "count: expected 1"), (1, -1, "seed"), (10, TRAIN_SEED - 5, "seed"), (1, TRAIN_SEED, "seed")],
)
def test_seeds_of_training_and_empty_runs_are_refused(count: int, seed: int, message: str):
    with pytest.raises(InputError, match=message):
        evaluate_scenes(count=count, seed=seed)


def test_the_embedded_model_is_asked_through_the_public_tasks(capsys: pytest.CaptureFixture[str]):
    scores = evaluate_scenes(count=4, unseen=True, progress=True)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert (scores["model"], scores["count"], scores["classify"]["pictures"]) == ("tiny", 4, 24)
    numbers = [value for task in ("detect", "segment", "caption") for value in flat(scores[task])]
    assert all(0 <= value <= 1 and round(value, 4) == value for value in numbers)
    captured = capsys.readouterr()
    assert captured.out == "" and "scenes" in captured.err
    assert evaluate_scenes(count=4, unseen=True) == scores
    assert capsys.readouterr().err == ""


def flat(values: dict) -> list[float]:
    inner = [each for value in values.values() if isinstance(value, dict) for each in flat(value)]
    return inner + [value for value in values.values() if isinstance(value, float)]
