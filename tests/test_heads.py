"""Heads on the features of no particular encoder: shapes, non-square grids, batches."""

from __future__ import annotations

import pytest
import torch

from mm.connectors.projections import MLP, Linear
from mm.encoders.base import ImageFeatures
from mm.heads.clipseg_style import ClipSegStyleHead
from mm.heads.owlvit import OwlBoxes, OwlHead


def features(batch: int = 2, grid: tuple[int, int] = (4, 7), width: int = 12) -> ImageFeatures:
    h, w = grid
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, h * w, width, generator=generator)
    fine = torch.randn(batch, 4 * h * w, 6, generator=generator)
    return ImageFeatures(tokens, grid, tokens[:, :0], tokens.mean(1), {0: fine}, {0: (2 * h, 2 * w)})


def owl() -> OwlHead:
    torch.manual_seed(1)
    return OwlHead(width=12, embedding=8).eval()


def segmenter() -> ClipSegStyleHead:
    torch.manual_seed(1)
    return ClipSegStyleHead(
        width=12, embedding=8, reduced=8, depth=1, layers=(0,), layer_widths=(6,), widths=(4,)
    ).eval()


def test_detection_says_one_box_a_token_and_one_logit_a_text() -> None:
    out = owl()(features(), torch.randn(5, 8))
    assert out.logits.shape == (2, 28, 5)
    assert out.boxes_cxcywh.shape == (2, 28, 4) and out.boxes_cxcywh.min() >= 0 and out.boxes_cxcywh.max() <= 1
    torch.testing.assert_close(out.embeds.norm(dim=-1), torch.ones(2, 28), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_the_best_label_is_the_argmax_however_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    head, image, text = owl(), features(), torch.randn(11, 8)
    found = head.boxes(image)
    whole, pairs = head.best(found, text), head.pairs(_first(found), text, 40)
    monkeypatch.setattr("mm.heads.owlvit._TEXTS_AT_ONCE", 3)
    for a, b in zip(whole + pairs, head.best(found, text) + head.pairs(_first(found), text, 40), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(whole[1], head(image, text).logits.argmax(-1))


@torch.inference_mode()
def test_the_best_pairs_are_those_of_the_whole_table() -> None:
    head, image, text = owl(), features(), torch.randn(11, 8)
    found, out = _first(head.boxes(image)), head(image, text)
    assert out.objectness is not None
    table = out.logits[0].sigmoid() * out.objectness[0].sigmoid()[:, None]
    scores, tokens, places = head.pairs(found, text, 40)
    torch.testing.assert_close(scores, table.flatten().topk(40).values)
    torch.testing.assert_close(table[tokens, places], scores)


def _first(found: OwlBoxes) -> OwlBoxes:
    return OwlBoxes(*(None if v is None else v[:1] for v in vars(found).values()))


@torch.inference_mode()
def test_mask_questions_are_independent_of_their_company() -> None:
    head, image, text = segmenter(), features(), torch.randn(3, 8)
    together = head(image, text, torch.tensor([0, 1, 1]))
    assert together.shape == (3, 8, 14)
    for i, owner in enumerate([0, 1, 1]):
        torch.testing.assert_close(together[i : i + 1], head(image, text[i : i + 1], torch.tensor([owner])))


@torch.inference_mode()
def test_a_longer_text_vector_asks_the_same() -> None:
    head, image, text = segmenter(), features(), torch.randn(1, 8)
    torch.testing.assert_close(head(image, text, torch.tensor([0])), head(image, 7 * text, torch.tensor([0])))


def test_features_become_maps_row_by_row() -> None:
    image = features(1, (2, 3), 12)
    torch.testing.assert_close(image.map()[0, :, 1, 2], image.tokens[0, 5])
    assert image.map(0).shape == (1, 6, 4, 6)


@pytest.mark.parametrize("kind", [Linear, MLP])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (8, 8)])
def test_a_connector_says_its_tokens_before_it_runs(kind, grid) -> None:
    connector = kind(12, 20)
    tokens = torch.randn(2, grid[0] * grid[1], 12, requires_grad=True)
    out, out_grid = connector(tokens, grid)
    assert out.shape == (2, connector.tokens(grid), 20) and out_grid == grid
    out.square().sum().backward()
    assert tokens.grad is not None and all(p.grad is not None for p in connector.parameters())
