"""The CLIPMat-style head on the features of no particular encoder, and its losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mm.checkpoints.loading import load
from mm.encoders.base import ImageFeatures, TextFeatures
from mm.heads.clipmat import ClipMatConfig, ClipMatHead, MatteLogits
from mm.recipes.matting import classes_of, config_for, laplacian, matte_losses

SMALL = ClipMatConfig(
    width=12, text_width=10, embedding=8, dim=16, heads=2, context=3, template="the {}",
    layers=(0, 1), layer_widths=(6, 7), detail_widths=(4, 6, 8), semantic_widths=(6, 8), guided=False,
    refine_widths=(),
)  # fmt: skip


def head() -> ClipMatHead:
    torch.manual_seed(1)
    made = ClipMatHead(**vars(SMALL))
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return made.eval()


def scene(batch: int = 2, pixels_hw: tuple[int, int] = (34, 56)) -> tuple[torch.Tensor, ImageFeatures]:
    """Pictures and features whose grids are those of no pyramid: 3 x 4, and earlier maps of 17 x 28 and 5 x 9."""
    numbers = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, 12, 12, generator=numbers)
    layers = {0: torch.randn(batch, 17 * 28, 6, generator=numbers), 1: torch.randn(batch, 45, 7, generator=numbers)}
    grids = {0: (17, 28), 1: (5, 9)}
    pixels = torch.randn(batch, 3, *pixels_hw, generator=numbers)
    return pixels, ImageFeatures(tokens, (3, 4), tokens[:, :0], tokens.mean(1), layers, grids)


def words(count: int = 3, length: int = 5) -> TextFeatures:
    numbers = torch.Generator().manual_seed(2)
    tokens = torch.randn(count, length, 10, generator=numbers)
    mask = torch.arange(length)[None] < torch.tensor([length - i for i in range(count)])[:, None]
    return TextFeatures(torch.randn(count, 8, generator=numbers), tokens, mask)


@torch.inference_mode()
def test_alpha_has_the_size_of_the_pixels_whatever_the_grids() -> None:
    out = head()(*scene(), words(), torch.tensor([0, 1, 1]))
    assert out.detail.shape == (3, 34, 56) and out.semantic.shape == (3, 3, 17, 28)
    alpha = out.alpha()
    assert alpha.shape == (3, 34, 56) and alpha.dtype == torch.float32
    assert alpha.min() >= 0 and alpha.max() <= 1 and alpha.std() > 1e-4


@torch.inference_mode()
def test_fusion_takes_details_where_unknown_and_one_where_foreground() -> None:
    sure = torch.full((1, 3, 1, 3), -40.0)
    sure[0, 0, 0, 0] = sure[0, 1, 0, 1] = sure[0, 2, 0, 2] = 40.0
    detail = torch.tensor([[[0.0, -1.0, 5.0]]])
    alpha = MatteLogits(sure, detail).fused()
    torch.testing.assert_close(
        alpha[0, 0], torch.stack([torch.tensor(0.0), torch.tensor(-1.0).sigmoid(), torch.tensor(1.0)])
    )


@torch.inference_mode()
def test_nearly_nothing_is_nothing_and_nearly_all_is_all() -> None:
    unknown = torch.tensor([-40.0, 40.0, -40.0]).view(1, 3, 1, 1)
    found = torch.tensor([[[0.005, 0.012, 0.1, 0.5, 0.9, 0.99]]])
    fused = MatteLogits(unknown, found.logit()).alpha()[0, 0]
    assert fused[:2].tolist() == [0, 0] and fused[5] == 1 and fused[3] == 0.5
    assert 0.08 < fused[2] < 0.1 and 0.9 < fused[4] < 0.92
    refined = MatteLogits(unknown, torch.zeros(1, 1, 6), found)
    torch.testing.assert_close(refined.alpha()[0, 0], fused)


@torch.inference_mode()
def test_questions_are_independent_of_their_company() -> None:
    made, (pixels, image), text = head(), scene(), words()
    together = made(pixels, image, text, torch.tensor([0, 1, 1])).alpha()
    for i, owner in enumerate([0, 1, 1]):
        one = TextFeatures(text.pooled[i : i + 1], text.tokens[i : i + 1], text.mask[i : i + 1])
        alone = made(pixels, image, one, torch.tensor([owner])).alpha()
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_padding_of_the_words_says_nothing_and_the_words_do() -> None:
    made, (pixels, image), text = head(), scene(), words()
    owner = torch.tensor([0, 0, 0])
    before = made(pixels, image, text, owner).alpha()
    other = text.tokens.clone()
    other[~text.mask] = 99.0
    torch.testing.assert_close(made(pixels, image, replace(text, tokens=other), owner).alpha(), before)
    other[text.mask] += 1 * torch.randn(10, generator=torch.Generator().manual_seed(3))
    assert (made(pixels, image, replace(text, tokens=other), owner).alpha() - before).abs().max() > 1e-4
    longer = replace(text, pooled=7 * text.pooled)  # its direction counts, not its length
    torch.testing.assert_close(made(pixels, image, longer, owner).alpha(), before, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_pixels_reach_alpha_at_their_own_place() -> None:
    made, (pixels, image), text = head(), scene(1), words(1)
    before = made(pixels, image, text, torch.tensor([0])).detail
    changed = pixels.clone()
    changed[0, :, 3, 50] += 2
    moved = (made(changed, image, text, torch.tensor([0])).detail - before).abs()[0]
    row, column = divmod(int(moved.argmax()), 56)
    assert abs(row - 3) <= 3 and abs(column - 50) <= 3
    assert moved[-8:, :20].max() < 1e-6


def test_every_weight_is_trained() -> None:
    made = head().train()
    pixels, image = scene()
    alpha = torch.rand(3, 34, 56, generator=torch.Generator().manual_seed(4))
    colours = torch.full((3, 3, 34, 56), 90.0)
    owner = torch.tensor([0, 1, 1])
    out = made(pixels, image, words(), owner)
    sum(matte_losses(out, alpha, colours, 128 + 30 * pixels[owner]).values()).backward()  # type: ignore[union-attr]
    still = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The bias of keys cannot change a softmax; it lies inside `in_proj_bias`, whose other parts do.
    assert still == []


def test_a_label_goes_into_the_template() -> None:
    assert head().asks("red car") == "the red car"


def test_the_embedded_encoder_gets_a_small_head() -> None:
    config = config_for(load("tiny"))
    assert (config.width, config.text_width, config.layer_widths) == (256, 128, (48, 48, 96))
    assert sum(p.numel() for p in ClipMatHead(**vars(config)).parameters()) < 700_000


def test_classes_leave_a_band_around_whatever_is_soft() -> None:
    alpha = torch.zeros(1, 9, 40)
    alpha[:, :, 20:] = 1
    classes = classes_of(alpha, band=3)[0, 4]  # a hard edge between two pixels
    assert classes.tolist() == [0] * 17 + [1] * 6 + [2] * 17
    alpha[:, :, 19:22] = 0.5
    assert classes_of(alpha, band=2)[0, 4].tolist() == [0] * 17 + [1] * 7 + [2] * 16
    assert (classes_of(torch.zeros(1, 5, 5)) == 0).all() and (classes_of(torch.ones(1, 5, 5)) == 2).all()


def test_the_pyramid_sees_shapes_and_not_constants() -> None:
    a = torch.rand(2, 33, 47, generator=torch.Generator().manual_seed(5))
    assert laplacian(a, a).item() == 0
    torch.testing.assert_close(laplacian(a + 0.25, a), torch.tensor(0.0), atol=1e-5, rtol=0)
    dot = torch.zeros(1, 32, 32)
    dot[0, 16, 16] = 1
    empty = torch.zeros(1, 32, 32)
    assert laplacian(dot, empty) > 1e-3
    torch.testing.assert_close(laplacian(dot, empty), laplacian(empty, dot))


def truth() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A soft disc of one colour on another: alpha, foreground, and the picture they blend to."""
    place = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")) - 23.5
    alpha = ((16 - place.norm(dim=0)) / 6 + 0.5).clamp(0, 1)[None]
    front = torch.tensor([200.0, 40.0, 30.0])[None, :, None, None].expand(1, 3, 48, 48)
    behind = torch.tensor([10.0, 120.0, 220.0])[None, :, None, None]
    return alpha, front, alpha[:, None] * front + (1 - alpha[:, None]) * behind


def test_the_true_matte_costs_next_to_nothing_and_a_wrong_one_much() -> None:
    alpha, front, picture = truth()
    classes = 30 * torch.nn.functional.one_hot(classes_of(alpha), 3).permute(0, 3, 1, 2).float()
    logit = torch.logit(alpha, 1e-6)
    right = matte_losses(MatteLogits(classes, logit), alpha, front, picture)
    assert set(right) == {"classes", "detail", "whole", "blend"}
    assert all(term < 1e-4 for term in right.values()), right
    wrong = matte_losses(MatteLogits(classes, -logit), alpha, front, picture)
    assert wrong["detail"] > 0.05 and wrong["whole"] > 0.02 and wrong["blend"] > 0.005
    assert wrong["classes"] == pytest.approx(right["classes"].item())


def test_a_head_with_a_refiner_answers_with_its_alpha_and_learns_it() -> None:
    torch.manual_seed(3)
    refined = ClipMatHead(**vars(replace(SMALL, refine_widths=(4, 5, 6)))).train()
    pixels, image = scene()
    out = refined(pixels, image, words(), torch.tensor([0, 1, 1]))
    assert out.refined is not None
    torch.testing.assert_close(out.refined, out.fused(), atol=0.003, rtol=0)  # so it begins
    alpha = torch.rand(3, 34, 56)
    terms = matte_losses(out, alpha, torch.full((3, 3, 34, 56), 9.0), 128 + 30 * pixels[torch.tensor([0, 1, 1])])
    terms["refined"].backward()
    assert refined.refiner is not None and refined.refiner.out.weight.grad is not None
    assert refined.refiner.out.weight.grad.abs().sum() > 0


def test_an_empty_truth_has_finite_losses() -> None:
    _, front, picture = truth()
    out = MatteLogits(torch.zeros(1, 3, 12, 12), torch.zeros(1, 48, 48))
    terms = matte_losses(out, torch.zeros(1, 48, 48), front, picture)
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms["detail"] == 0 and terms["whole"] > 0.05
