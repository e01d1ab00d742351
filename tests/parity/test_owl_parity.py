"""Detection through our loader against transformers' OWL-ViT and OWLv2, on tiny random released-format folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mm.checkpoints.loading import load
from mm.tasks.detect import detect
from mm.tasks.encode import encode
from tests.parity import encoder_transformers_folders as make

LABELS = ["cat", "two red cats", "a mat", "dog"]
KINDS = ["OwlViT", "Owlv2"]
CASES = [(kind, side, depth) for kind in KINDS for side, depth in ((40, 3), (56, 11))]


def released(folder: Path, kind: str, side: int, depth: int) -> tuple[Any, Any]:
    """The reference model and its processor; grids of 5 x 5 and 7 x 7."""
    text = make.TEXT | {"max_position_embeddings": 16}
    vision = make.VISION | {"image_size": side, "num_hidden_layers": depth}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    model = make.shaken(getattr(transformers, f"{kind}ForObjectDetection")(config))
    with torch.no_grad():  # so that sigmoids do not saturate and hide, or float32 noise grow beyond, a difference
        for name, parameter in model.named_parameters():
            parameter.mul_(0.4 if "_head." in name else 1.0)
    model.save_pretrained(folder)
    size = {"height": side, "width": side}
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(size=size)
    processor.save_pretrained(folder)
    make.clip_tokenizer(folder)
    return model, processor


def picture(size_wh: tuple[int, int]) -> Image.Image:
    width, height = size_wh
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, tuple[Path, Any, Any]]:
    found = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("owl")
        found[case] = (folder, *released(folder, *case))
    return found


def inputs(folder: Path, labels: list[str]) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(labels, padding="max_length", max_length=16, truncation=True, return_tensors="pt"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]])
@torch.inference_mode()
def test_logits_boxes_and_objectness_equal_the_reference(made, case, labels) -> None:
    folder, model, processor = made[case]
    image = picture((91, 64))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    wanted = model(**inputs(folder, labels), pixel_values=pixels)
    ours = load(str(folder))
    encoded = encode(image, model=str(folder))
    out = ours.detector(encoded.features, ours.encoder.encode_text(labels).pooled)
    torch.testing.assert_close(out.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.boxes_cxcywh, wanted.pred_boxes, atol=1e-5, rtol=1e-5)
    if case[0] == "Owlv2":
        torch.testing.assert_close(out.objectness, wanted.objectness_logits, atol=1e-5, rtol=1e-5)
    else:
        assert out.objectness is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size_wh", [(64, 64), (91, 64), (37, 91)])
@torch.inference_mode()
def test_trap_12_boxes_lie_where_the_picture_was(made, case, size_wh) -> None:
    """v1 squashed the picture, v2 laid it on a square: the scale differs, and padding is no place for a box."""
    folder, model, processor = made[case]
    image = picture(size_wh)
    wanted = model(**inputs(folder, LABELS), pixel_values=processor(image, return_tensors="pt")["pixel_values"])
    (reference,) = processor.post_process_object_detection(wanted, threshold=0.0, target_sizes=[image.size[::-1]])
    width, height = size_wh
    scale = [width, height] if case[0] == "OwlViT" else [max(size_wh)] * 2
    cxcywh = wanted.pred_boxes[0].numpy() * np.array(scale * 2)
    corners = np.concatenate([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], 1)
    np.testing.assert_allclose(reference["boxes"], corners, rtol=1e-4, atol=1e-3)  # so the reference agrees
    clipped = np.clip(corners, 0, [width, height] * 2)

    found = detect(image, LABELS, model=str(folder), threshold=0.0, nms=None)
    order = np.argsort(-reference["scores"].numpy(), kind="stable")
    np.testing.assert_allclose(found.scores, reference["scores"].numpy()[order], atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy, clipped[order], atol=1e-3)
    assert found.labels == tuple(LABELS[int(i)] for i in reference["labels"][order])


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_an_example_picture_asks_what_the_reference_asks(made, case) -> None:
    folder, model, processor = made[case]
    image, example = picture((91, 64)), picture((30, 40))
    pixels, query = (processor(p, return_tensors="pt")["pixel_values"] for p in (image, example))
    wanted = model.image_guided_detection(pixel_values=pixels, query_pixel_values=query)
    found = detect(image, like=example, model=str(folder), threshold=0.0, nms=None)
    scores = wanted.logits[0].amax(-1).sigmoid().sort(descending=True).values
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert set(found.labels) == {"example"}


@torch.inference_mode()
def test_of_many_sure_things_the_surest_is_the_example(tmp_path: Path) -> None:
    """Their probabilities are all 1 in float32; their logits differ."""
    model, processor = released(tmp_path, "Owlv2", 40, 3)
    with torch.no_grad():
        model.objectness_head.dense2.bias += 30
    model.save_pretrained(tmp_path)
    image, example = picture((91, 64)), picture((30, 40))
    pixels, query = (processor(p, return_tensors="pt")["pixel_values"] for p in (image, example))
    wanted = model.image_guided_detection(pixel_values=pixels, query_pixel_values=query)
    found = detect(image, like=example, model=str(tmp_path), threshold=0.0, nms=None, scores="all")
    scores = wanted.logits[0].amax(-1).sigmoid().sort(descending=True).values
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)


@torch.inference_mode()
def test_many_labels_encode_the_picture_once(made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made[CASES[0]][0]
    ours, passes = load(str(folder)), []
    plain = type(ours.encoder).encode_image
    monkeypatch.setattr(type(ours.encoder), "encode_image", lambda *a, **k: passes.append(1) or plain(*a, **k))
    labels = [f"cat number {i}" for i in range(1203)]
    found = detect(picture((91, 64)), labels, model=str(folder), scores="all")
    assert len(passes) == 1 and len(found) == 1000
    assert (np.diff(found.scores) <= 0).all()


def test_a_label_with_a_comma_is_one_label(made) -> None:
    found = detect(picture((64, 64)), "cat, dog", model=str(made[CASES[0]][0]), threshold=0.0, nms=None)
    assert set(found.labels) == {"cat, dog"}


@torch.inference_mode()
def test_trap_19_boxes_stay_float32_when_the_weights_are_half(made) -> None:
    folder = made[CASES[0]][0]
    ours = load(str(folder), dtype="bfloat16")
    features = ours.encode([_gate(picture((64, 64)))])
    out = ours.detector.to(torch.bfloat16)(features, ours.encoder.encode_text(LABELS).pooled)
    assert out.boxes_cxcywh.dtype == out.logits.dtype == torch.float32


def _gate(image: Image.Image) -> Any:
    from mm.images import open_image

    return open_image(image)
