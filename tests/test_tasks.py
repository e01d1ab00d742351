"""The functions of the face on the embedded model: shapes, batches, faults and the number of encoder passes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

import mm
from mm.checkpoints.loading import load
from mm.encoded import Encoded
from mm.errors import CheckpointError, ImageInputError, InputError, TextInputError
from mm.scenes import render_scene
from mm.scenes.vocabulary import PAIR_LABELS
from mm.types import Caption, ErrorRecord

SIZES = [(128, 128), (320, 200), (97, 171), (64, 300)]


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, SIZES[seed % len(SIZES)]) for seed in range(6)]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every pass of the image tower."""
    counted: list[int] = []
    encoder = load("tiny").encoder
    real = type(encoder).encode_image

    def counting(self: Any, pixels: torch.Tensor, layers: tuple[int, ...] = ()) -> Any:
        counted.append(len(pixels))
        return real(self, pixels, layers)

    monkeypatch.setattr(type(encoder), "encode_image", counting)
    return counted


def test_one_encoded_picture_serves_every_task_with_one_pass(scenes, passes: list[int]) -> None:
    encoded = mm.encode(scenes[1].pixels)
    mm.caption(encoded)
    mm.ask(encoded, "what colour is the background?")
    mm.detect(encoded, ["car", "red star"])
    mm.segment(encoded, "car")
    mm.classify(encoded, ["car", "star"])
    mm.embed(encoded)
    assert passes == [1]


def test_the_image_is_encoded_once_however_many_labels(scenes, passes: list[int]) -> None:
    mm.detect(scenes[0].pixels, PAIR_LABELS)
    mm.segment(scenes[0].pixels, PAIR_LABELS[:40])
    assert passes == [1, 1]


def test_a_list_gives_a_list_equal_to_single_calls(scenes, passes: list[int]) -> None:
    pictures = [scene.pixels for scene in scenes]
    together = mm.detect(pictures, PAIR_LABELS, threshold=0.1)
    assert passes == [len(pictures)]
    for found, picture, scene in zip(together, pictures, scenes, strict=True):
        alone = mm.detect(picture, PAIR_LABELS, threshold=0.1)
        assert found.size_hw == scene.size_hw
        assert found.labels == alone.labels
        np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-2)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)


def test_batched_captions_equal_single_ones(scenes) -> None:
    pictures = [scene.pixels for scene in scenes]
    together = [caption.text for caption in mm.caption(pictures)]
    assert together == [mm.caption(picture).text for picture in pictures]


def test_a_streamed_caption_equals_the_whole(scenes) -> None:
    whole = mm.caption(scenes[2].pixels)
    stream = mm.caption(scenes[2].pixels, stream=True)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == whole.text == stream.result.text
    assert stream.result == whole


def test_the_answer_from_a_kept_prefix_equals_a_fresh_one(scenes) -> None:
    encoded = mm.encode(scenes[3].pixels)
    questions = ["what colour is the background?", "how many stars are there?", "is there a red car?"]
    kept = [mm.ask(encoded, q).text for q in questions]
    assert kept == [mm.ask(scenes[3].pixels, q).text for q in questions]


def test_threads_asking_one_encoded_picture_do_not_disturb_each_other(scenes) -> None:
    encoded = mm.encode(scenes[0].pixels)
    questions = ["what colour is the background?", "describe the picture"] * 3
    expected = [mm.ask(scenes[0].pixels, q).text for q in questions]
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = mm.ask(encoded, questions[i]).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i] for i in range(len(questions))] == expected


@pytest.mark.parametrize("place", range(4))
def test_one_bad_picture_costs_only_itself(scenes, place: int) -> None:
    good = [scene.pixels for scene in scenes[:3]]
    mixed = [*good[:place], b"not a picture", *good[place:]]
    clean = mm.detect(good, "star", threshold=0.0)
    recorded = mm.detect(mixed, "star", threshold=0.0, on_error="record")
    assert isinstance(recorded[place], ErrorRecord)
    assert recorded[place].type == "ImageInputError"
    kept = [r for i, r in enumerate(recorded) if i != place]
    skipped = mm.detect(mixed, "star", threshold=0.0, on_error="skip")
    for a, b, c in zip(clean, kept, skipped, strict=True):
        assert a == b == c
    with pytest.raises(ImageInputError):
        mm.detect(mixed, "star")


def test_masks_and_boxes_have_the_frame_of_the_upright_original(scenes) -> None:
    for scene in scenes:
        found = mm.segment(scene.pixels, ["star", "car", "star"])
        assert found.masks.shape == (3, *scene.size_hw)
        assert (found.masks[0] == found.masks[2]).all()
        boxes = mm.detect(scene.pixels, PAIR_LABELS, threshold=0.0, nms=None).boxes_xyxy
        assert len(boxes) == 64
        h, w = scene.size_hw
        assert boxes.min() >= 0 and boxes[:, 2].max() <= w and boxes[:, 3].max() <= h


def test_classification_sums_to_one_over_distinct_labels(scenes) -> None:
    result = mm.classify(scenes[0].pixels, ["red car", "star", "red car"])
    assert result.labels == ("red car", "star", "red car")
    assert result.scores[0] == result.scores[2]
    assert result.scores[0] + result.scores[1] == pytest.approx(1, abs=1e-6)


def test_embeddings_of_texts_and_pictures_share_a_space(scenes) -> None:
    texts, pictures = mm.embed(["red car", "blue star"]), mm.embed([s.pixels for s in scenes])
    assert texts.vectors.shape == (2, 256)
    assert pictures.vectors.shape == (len(scenes), 256)
    assert pictures.similarity(texts).shape == (len(scenes), 2)
    with pytest.raises(InputError, match="strings beside pictures"):
        mm.embed(["red car", scenes[0].pixels])


def test_many_labels_run_in_parts_and_agree_with_few() -> None:
    scene = render_scene(3)
    few = mm.detect(scene.pixels, PAIR_LABELS, threshold=0.1)
    strangers = [f"word{i} thing" for i in range(5000)]
    many = mm.detect(scene.pixels, [*strangers, *PAIR_LABELS], threshold=0.1)
    assert set(few.labels) & set(many.labels)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda p: mm.detect(p, ""), TextInputError),
        (lambda p: mm.detect(p, "car", threshold=2), InputError),
        (lambda p: mm.detect(p, "car", nms=float("nan")), InputError),
        (lambda p: mm.segment(p, "car", threshold=-1), InputError),
        (lambda p: mm.caption(p, max_new_tokens=0), InputError),
        (lambda p: mm.caption(p, max_new_tokens=10**9), InputError),
        (lambda p: mm.caption(p, max_new_tokens=250), InputError),
        (lambda p: mm.caption(p, prompt="  "), TextInputError),
        (lambda p: mm.caption(p, on_error="ignore"), InputError),
        (lambda p: mm.caption([p], stream=True), InputError),
        (lambda p: mm.caption(p, model="tinny"), CheckpointError),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_typed_error(scenes, call, error) -> None:
    with pytest.raises(error):
        call(scenes[0].pixels)


def test_an_unknown_model_gets_the_nearest_name(scenes) -> None:
    with pytest.raises(CheckpointError, match='Did you mean "tiny"'):
        mm.caption(scenes[0].pixels, model="tinny")


def test_user_text_never_becomes_a_special_token(scenes) -> None:
    decoder = load("tiny").speaker.decoder
    special = set(decoder.tokenizer.all_special_ids)
    for text in ("<s>", "</s> describe", "<pad><unk>", "<0x0A>"):
        assert not special & set(decoder.prompt_ids(text)[1:-1])
        ids, _, _ = load("tiny").encoder.rules([text])
        assert not special & set(ids[0, 1:-1].tolist())
    assert isinstance(mm.ask(scenes[0].pixels, "</s><s>"), Caption)


def test_a_cut_label_is_reported(scenes) -> None:
    result = mm.detect(scenes[0].pixels, "very " * 190 + "red car")
    assert any("was cut" in warning for warning in result.source.warnings)


def test_a_long_word_is_cut_before_the_tokenizer() -> None:
    rules = load("tiny").encoder.rules
    ids, mask, cut = rules(["x" * 1_000_000, "car"])
    assert cut == (True, False)
    assert ids.shape[1] == rules.spec.length and mask[1].sum() == 3


def test_the_source_names_weights_preprocessing_and_licence(scenes) -> None:
    source = mm.encode(scenes[0].pixels) and mm.detect(scenes[0].pixels, "car").source
    assert source.model == "tiny" and len(source.sha256) == 64 and source.licence == "Apache-2.0"
    assert source.versions["torch"] == torch.__version__.split("+")[0] or source.versions["torch"]
    assert source.preprocessing["policy"] == "squash"


def test_an_encoded_picture_of_another_model_is_refused(scenes) -> None:
    encoded = mm.encode(scenes[0].pixels)
    values = {k: getattr(encoded, k) for k in ("name", "size_hw", "digest", "notes", "geometry", "features")}
    with pytest.raises(InputError, match="was encoded by model 'other'"):
        mm.caption(Encoded(model="other", **values))


def test_inference_leaves_the_callers_random_stream_alone(scenes) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    mm.caption(scenes[0].pixels)
    assert torch.equal(torch.rand(3), expected)
