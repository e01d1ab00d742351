"""Zero-shot classification: templates, ensembles, many labels in bounded memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mm
from mm.checkpoints.loading import load
from mm.encoders.text import TextRules
from mm.errors import InputError, TextInputError
from mm.joined import TextCache
from mm.scenes import render_scene
from mm.templates import AS_IS, ENSEMBLES, PHOTO, SIMPLE, chosen, filled

LABELS = ["red car", "blue star", "{} tree", "cat"]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return render_scene(3).pixels


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The batch sizes of every pass of the two towers."""
    counted: dict[str, list[int]] = {"image": [], "text": []}
    kind = type(load("tiny").encoder)
    image, text = kind.encode_image, kind.encode_text

    def encode_image(self: Any, pixels: torch.Tensor, layers: tuple[int, ...] = ()) -> Any:
        counted["image"].append(len(pixels))
        return image(self, pixels, layers)

    def encode_text(self: Any, texts: list[str]) -> Any:
        counted["text"].append(len(texts))
        return text(self, texts)

    monkeypatch.setattr(kind, "encode_image", encode_image)
    monkeypatch.setattr(kind, "encode_text", encode_text)
    return counted


def test_the_simple_ensemble_is_openais() -> None:
    import open_clip

    label = "red fox"
    assert [filled(t, label) for t in SIMPLE] == [t(label) for t in open_clip.SIMPLE_IMAGENET_TEMPLATES]


def test_what_a_caller_may_mean_by_templates() -> None:
    assert chosen(None, PHOTO) == PHOTO
    assert chosen("simple", AS_IS) == ENSEMBLES["simple"] == SIMPLE
    assert chosen("a {}", PHOTO) == ("a {}",)
    assert chosen(["a {}", "the {}", "a {}"], PHOTO) == ("a {}", "the {}")
    assert filled("a {}!", "{x} {}") == "a {x} {}!"


@pytest.mark.parametrize(
    ("templates", "said"),
    [
        ("simpel", 'Did you mean "simple"'),
        ("a photo", "a sentence with {}"),
        ([], "got none"),
        (["a {}", "a {} {}"], "one {}"),
        (["a {}", 3], "got int"),
    ],
)
def test_a_template_without_one_place_is_refused(pixels: np.ndarray, templates: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        mm.classify(pixels, "cat", templates=templates)


@torch.inference_mode()
def test_an_ensemble_is_the_renormalised_mean_of_normalised_embeddings(pixels: np.ndarray) -> None:
    encoder = load("tiny").encoder
    rows = [
        F.normalize(F.normalize(encoder.encode_text([filled(t, label) for t in SIMPLE]).pooled, dim=-1).mean(0), dim=0)
        for label in LABELS
    ]
    made, cut = TextCache().embed(encoder, LABELS, SIMPLE)
    torch.testing.assert_close(made, torch.stack(rows), atol=1e-5, rtol=0)
    assert cut == [False] * len(LABELS)
    expected = encoder.similarity(mm.encode(pixels).features.pooled, torch.stack(rows))[0]
    scores = mm.classify(pixels, LABELS, templates="simple").scores
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


def test_one_template_is_its_sentence(pixels: np.ndarray) -> None:
    inside = mm.classify(pixels, ["car", "star"], templates="a drawing of a {}")
    spelt = mm.classify(pixels, ["a drawing of a car", "a drawing of a star"])
    np.testing.assert_allclose(inside.scores, spelt.scores, atol=1e-5)
    assert inside.labels == ("car", "star")


def test_the_embedded_model_reads_labels_as_they_are_and_other_pairs_in_a_photo(
    pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = mm.classify(pixels, LABELS)
    assert plain == mm.classify(pixels, LABELS, templates="as is")
    elsewhere = dataclasses.replace(load("tiny"), world=None, texts=TextCache())
    monkeypatch.setattr("mm.tasks.each.as_model", lambda *_, **__: elsewhere)
    assert mm.classify(pixels, LABELS).scores.tolist() == mm.classify(pixels, LABELS, templates=PHOTO).scores.tolist()
    assert mm.classify(pixels, LABELS).scores.tolist() != plain.scores.tolist()


def test_embeddings_are_kept_for_each_set_of_templates(pixels: np.ndarray, towers: dict[str, list[int]]) -> None:
    labels = ["kept one", "kept two"]
    for templates in ("simple", "simple", "as is", "as is", "photo"):
        mm.classify(pixels, labels, templates=templates)
    assert towers["text"] == [14, 2, 2]


def test_ten_thousand_labels_pass_in_parts_and_the_picture_once(
    pixels: np.ndarray, towers: dict[str, list[int]]
) -> None:
    few = ["red car", "blue star"]
    many = [*(f"word{i}" for i in range(9_998)), *few]
    result = mm.classify(pixels, many)
    assert towers["image"] == [1]
    assert sum(towers["text"]) >= 9_998 and max(towers["text"]) <= 256
    assert len(result.scores) == 10_000 and result.scores.sum() == pytest.approx(1, abs=1e-4)
    alone = mm.classify(pixels, few).scores
    assert result.scores[-2] / result.scores[-1] == pytest.approx(alone[0] / alone[1], rel=1e-3)


def test_a_pass_holds_few_sentences_however_many_templates(towers: dict[str, list[int]]) -> None:
    templates = tuple(f"{i} {{}}" for i in range(100))
    TextCache().embed(load("tiny").encoder, [f"thing {i}" for i in range(5)], templates)
    assert towers["text"] == [200, 200, 100]


def test_a_label_that_the_canonical_form_empties_is_named(pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextRules, "canonical", lambda self, text: text.replace("+", ""))
    with pytest.raises(TextInputError, match=r"'\+\+': nothing is left"):
        mm.classify(pixels, ["cat", "++"])
    assert len(mm.classify(pixels, ["cat", "c++"])) == 2


def test_a_cut_label_inside_any_template_is_reported(pixels: np.ndarray) -> None:
    result = mm.classify(pixels, ["very " * 190 + "red", "car"], templates="simple")
    assert [w for w in result.source.warnings if "was cut" in w and "very" in w]
    assert not [w for w in result.source.warnings if "'car'" in w]
