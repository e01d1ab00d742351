"""The recipe of `tiny`: batches, cells, losses, the tokenizer, and checkpoints that survive a kill."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mm.decoders.causal import CausalDecoder
from mm.encoders.base import ImageFeatures
from mm.encoders.text import fast_rules
from mm.recipes import fit
from mm.recipes.batches import GRID, LABEL_GROUPS, TRAIN_SEED, Batch, draw_frame, make_batch
from mm.recipes.dialogue_batches import make_dialogue_batch
from mm.recipes.fit import Checkpoint, Stream, cosine, fit_stage
from mm.recipes.losses import generalised_iou, quality_focal
from mm.recipes.tiny_parts import TEXT, WIDTH, build_decoder, dialogue_loss
from mm.recipes.tokenizer import train_tokenizer
from mm.scenes import Scene, caption_of, mentions, questions_of, render_scene
from mm.scenes.vocabulary import (
    COLOURS,
    COUNTS,
    KINDS,
    PAIR_LABELS,
    RELATIONS,
    SEEN_PAIRS,
    SIZES,
    TEXTURES,
    is_held_out,
)


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return [make_batch(step, 8) for step in range(12)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


def assert_same(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        same = torch.equal(value, other) if isinstance(value, Tensor) else value == other
        assert same, name


def test_a_batch_is_a_pure_function_of_its_step(batches: list[Batch]):
    torch.manual_seed(1)
    np.random.seed(1)
    assert_same(make_batch(3, 8), batches[3])
    assert not torch.equal(batches[3].pixels, batches[4].pixels)


def test_a_stream_that_starts_late_goes_on_exactly(batches: list[Batch]):
    for late, early in zip(Stream(functools.partial(make_batch, size=8), 9, 12), batches[9:], strict=True):
        assert_same(late, early)


def test_scenes_of_a_batch_are_those_of_its_training_seeds(batches: list[Batch]):
    backgrounds = [render_scene(TRAIN_SEED + 2 * 8 + i, 64).background for i in range(8)]
    assert [caption.split()[-2] for caption in batches[2].captions] == backgrounds


def test_held_out_pairs_occur_in_nothing_that_is_trained_on(batches: list[Batch]):
    for batch in batches:
        said = [*batch.texts, *batch.captions, *(text for _, *both in batch.dialogues for text in both)]
        pairs = set(re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})", "; ".join(said)))
        assert len(pairs) >= len(SEEN_PAIRS) and not any(is_held_out(*pair) for pair in pairs)
        assert not any(is_held_out(colour, kind) for c in batch.captions for _, colour, kind in mentions(c))


def test_every_object_has_one_cell_of_full_weight_and_no_cell_two_objects(batches: list[Batch]):
    for batch in batches:
        full = batch.cell_object[batch.cell_weight == 1].tolist()
        assert sorted(full) == list(range(len(batch.owner)))
        cells = list(zip(batch.owner[batch.cell_object].tolist(), batch.cell_index.tolist(), strict=True))
        assert len(set(cells)) == len(cells)
        assert batch.cell_index.min() >= 0 and batch.cell_index.max() < GRID * GRID
        assert set(batch.cell_weight.tolist()) <= {1.0, float(np.float32(0.4))}


def test_the_cell_of_a_lone_object_lies_at_its_centre(batches: list[Batch]):
    for batch in batches:
        for i in np.flatnonzero((batch.owner[:, None] == batch.owner).sum(1) == 1):
            own = (batch.cell_object == i) & (batch.cell_weight == 1)
            cell = int(batch.cell_index[own])
            centre = batch.boxes[i, :2] * GRID
            assert abs(cell % GRID + 0.5 - centre[0]) <= 0.5 and abs(cell // GRID + 0.5 - centre[1]) <= 0.5


def test_labels_fit_the_objects_they_name(batches: list[Batch]):
    for batch in batches:
        assert batch.match.shape == (len(batch.owner), len(batch.texts)) and batch.match.dtype == torch.bool
        for start, stop in LABEL_GROUPS:
            assert (batch.match[:, start:stop].sum(1) == 1).all()
        for i, pair in enumerate(batch.pair_index.tolist()):
            (place,) = np.flatnonzero(batch.match[i, : len(SEEN_PAIRS)])
            assert place == pair
            assert " ".join(SEEN_PAIRS[pair]) in batch.texts[place]


def test_truth_lies_within_the_picture(batches: list[Batch]):
    for batch in batches:
        corners = torch.cat([batch.boxes[:, :2] - batch.boxes[:, 2:] / 2, batch.boxes[:, :2] + batch.boxes[:, 2:] / 2])
        assert corners.min() > -1e-6 and corners.max() < 1 + 1e-6 and batch.boxes[:, 2:].min() > 0
        assert batch.ask_mask.shape == (len(batch.ask_owner), 64, 64)
        assert batch.ask_mask.min() >= 0 and batch.ask_mask.max() <= 1
        for owner, label, mask in zip(batch.ask_owner, batch.ask_label, batch.ask_mask, strict=True):
            present = bool(batch.match[batch.owner == owner, label].any())
            assert present == bool((mask > 0.5).any())


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [
        (0.0, 1.0, 0.5 * math.log(2)),
        (0.0, 0.0, 0.5 * math.log(2)),
        (0.0, 0.5, 0.0),
        (math.log(3), 0.0, 0.75 * math.log(4)),  # p = 3/4
        (math.log(3), 1.0, 0.25 * math.log(4 / 3)),
    ],
)
def test_quality_focal_by_hand(logit: float, target: float, expected: float):
    assert quality_focal(torch.tensor([logit]), torch.tensor([target])).item() == pytest.approx(expected, abs=1e-6)


def test_quality_focal_is_a_sum():
    logits, targets = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.5], [0.0, 0.5]])
    assert quality_focal(logits, targets).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0.5, 0.5, 1.0, 1.0), 1.0),
        ((1.0, 0.5, 1.0, 1.0), 1 / 3),  # half over half: 0.5 / 1.5, and the hull is the union
        ((1.5, 0.5, 1.0, 1.0), 0.0),  # side by side
        ((2.5, 0.5, 1.0, 1.0), -1 / 3),  # one box between them: 0 - (3 - 2) / 3
        ((0.5, 0.5, 0.5, 0.5), 0.25),  # inside
        ((1.5, 1.5, 1.0, 1.0), -0.5),  # corner to corner: 0 - (4 - 2) / 4
    ],
)
def test_generalised_iou_by_hand(other: tuple[float, ...], expected: float):
    box = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert generalised_iou(box, torch.tensor([other])).item() == pytest.approx(expected, abs=1e-6)
    assert generalised_iou(torch.tensor([other]), box).item() == pytest.approx(expected, abs=1e-6)


def test_captions_questions_and_labels_survive_the_tokenizer(tokenizer: Any):
    scenes = [render_scene(seed, 64, pairs="all") for seed in range(40)]
    texts = [caption_of(scene) for scene in scenes] + list(PAIR_LABELS)
    texts += [text for scene in scenes for both in questions_of(scene) for text in both]
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert tokenizer.decode(ids) == text
        assert not set(tokenizer.convert_ids_to_tokens(ids)) & byte_tokens()


def byte_tokens() -> set[str]:
    return {f"<0x{byte:02X}>" for byte in range(256)}


@pytest.mark.parametrize("text", ["a zygote", "Ω 漢字 🙂", "naïve café", "x\ty", "1 + 2 = 3"])
def test_unknown_words_fall_back_to_bytes(tokenizer: Any, text: str):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_letters_outside_the_world_are_bytes(tokenizer: Any):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Ω", add_special_tokens=False)["input_ids"])
    assert tokens[-2:] == ["<0xCE>", "<0xA9>"]


@pytest.mark.parametrize("text", ["<s>", "</s> <pad>", "a <unk> car</s>", "<0x0A>", "<S>red<PAD>"])
def test_user_text_never_becomes_special(tokenizer: Any, text: str):
    special = set(tokenizer.all_special_ids)
    decoder = CausalDecoder(None, tokenizer)
    begin, *asked, newline = decoder.prompt_ids(text)
    assert begin == tokenizer.bos_token_id and newline == decoder.newline
    assert not special & set(asked) and newline not in asked
    assert tokenizer.decode(asked) == text.lower()
    ids, mask, cut = fast_rules(tokenizer, TEXT)([text])
    assert mask.all() and cut == (False,) and not special & set(ids[0, 1:-1].tolist())


def test_training_the_tokenizer_again_gives_the_same(tokenizer: Any):
    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) <= 512


def test_the_rate_warms_up_and_falls_to_its_floor():
    rates = [cosine(step, 1000, warm=100) for step in range(1001)]
    assert rates[0] == 0.01 and rates[99] == rates[100] == 1.0 == max(rates)
    assert rates[550] == pytest.approx(0.505) and rates[1000] == pytest.approx(0.01)


class Small(nn.Module):
    """Everything a checkpoint has to hold: weights, a buffer of floats, one of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 1))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        numbers = batch.pixels[:, :, 0, :4].float().flatten(0, 1) / 255
        return {"square": self.layers(numbers).square().mean()}


def started(path: Path) -> tuple[Small, torch.optim.Optimizer, Checkpoint]:
    torch.manual_seed(0)
    module = Small()
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    return module, optimiser, Checkpoint(path, module, optimiser)


def step_through(module: Small, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        module.layers(batch).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def assert_equal_states(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


def test_three_steps_and_three_more_are_six_to_the_bit(tmp_path: Path):
    whole, optimiser, _ = started(tmp_path / "none")
    step_through(whole, optimiser, range(6))
    half, optimiser, checkpoint = started(tmp_path / "small.safetensors")
    assert checkpoint.load() == 0
    step_through(half, optimiser, range(3))
    checkpoint.save(3)
    resumed, optimiser, checkpoint = started(tmp_path / "small.safetensors")
    first = checkpoint.load()
    assert first == 3
    assert_equal_states(resumed, half)
    step_through(resumed, optimiser, range(first, 6))
    assert_equal_states(resumed, whole)


@pytest.mark.parametrize("cut", ["while writing", "before renaming"])
def test_a_killed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str):
    module, optimiser, checkpoint = started(tmp_path / "small.safetensors")
    checkpoint.save(1)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    step_through(module, optimiser, range(2))

    def half_written(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"\x10\x00\x00")
        raise KeyboardInterrupt

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((fit, "save_file", half_written) if cut == "while writing" else (fit.os, "replace", killed)))
        checkpoint.save(2)
    again, _, checkpoint = started(tmp_path / "small.safetensors")
    assert checkpoint.load() == 1
    assert all(torch.equal(value, before[key]) for key, value in again.state_dict().items())
    checkpoint.save(5)
    assert checkpoint.load() == 5


def test_a_stage_that_is_killed_ends_where_an_undisturbed_one_does(tmp_path: Path):
    def stage(folder: Path, losses: Any, module: Small) -> Small:
        folder.mkdir(exist_ok=True)
        fit_stage(
            "s", folder, module, losses, make=functools.partial(make_batch, size=2), steps=4, peak=0.05, save_every=2
        )
        return module

    torch.manual_seed(3)
    state = Small().state_dict()

    def fresh() -> Small:
        module = Small()
        module.load_state_dict({key: value.clone() for key, value in state.items()})
        return module

    undisturbed = fresh()
    stage(tmp_path / "whole", undisturbed.losses, undisturbed)
    struck = fresh()

    def struck_at_three(batch: Batch) -> dict[str, Tensor]:
        if batch.step == 3:
            raise KeyboardInterrupt
        return struck.losses(batch)

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "cut", struck_at_three, struck)
    resumed = fresh()
    stage(tmp_path / "cut", resumed.losses, resumed)
    assert_equal_states(resumed, undisturbed)


def test_questions_of_a_picture_share_its_row_and_do_not_see_each_other(tokenizer: Any):
    torch.manual_seed(0)
    speaker = build_decoder(tokenizer)
    image = ImageFeatures(torch.randn(2, 64, WIDTH), (8, 8), torch.zeros(2, 0, WIDTH), torch.randn(2, 4))
    dialogues = make_dialogue_batch(3, 2).dialogues
    assert {picture for picture, _, _ in dialogues} == {0, 1} and len(dialogues) > 8
    together = dialogue_loss(speaker, tokenizer, image, dialogues)
    alone = [dialogue_loss(speaker, tokenizer, image, [each]) for each in dialogues]
    weights = torch.tensor(
        [len(tokenizer(said, add_special_tokens=False)["input_ids"]) + 1.0 for *_, said in dialogues]
    )
    assert torch.allclose(together, (torch.stack(alone) * weights).sum() / weights.sum(), atol=1e-5)
    speaker["decoder"].set_attn_implementation("eager")
    assert torch.allclose(dialogue_loss(speaker, tokenizer, image, dialogues), together, atol=1e-5)


def test_dialogues_ask_where_things_lie_and_never_about_held_out_pairs():
    batch = make_dialogue_batch(5, 16)
    assert batch.pixels.shape == (16, 3, 128, 128)
    assert sum(prompt.startswith("where") for _, prompt, _ in batch.dialogues) >= 8
    for _, prompt, answer in batch.dialogues:
        assert not any(is_held_out(*pair) for _, *pair in (*mentions(prompt), *mentions(answer)))


def scenes_of(step: int, size: int, most: int) -> list[Scene]:
    """The scenes of a batch of a lesson with so many things."""
    rng = np.random.default_rng((step, 31))
    return [render_scene(TRAIN_SEED + step * size + i, draw_frame(128, rng), most=most) for i in range(size)]


def test_the_first_lesson_asks_what_one_of_two_things_is_like():
    batch, scenes = make_dialogue_batch(5, 12, lesson="names"), scenes_of(5, 12, most=2)
    assert {len(scene.objects) for scene in scenes} == {1, 2}
    assert len(batch.dialogues) > 12
    for picture, prompt, answer in batch.dialogues:
        assert answer in ("yes", "no") or any(f" {thing.kind}" in prompt for thing in scenes[picture].objects)
        assert answer in (*COLOURS, *TEXTURES, "small", "large", "yes", "no") and "background" not in prompt


def test_the_second_lesson_asks_of_few_things_how_many_how_large_and_where():
    batch, scenes = make_dialogue_batch(5, 24, lesson="counts"), scenes_of(5, 24, most=3)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    answers = Counter(answer for *_, answer in batch.dialogues)
    assert set(answers) <= {*COLOURS, *SIZES, *RELATIONS, *COUNTS[:3]}
    assert answers["one"] <= len(scenes) and answers["two"] > 2 and answers["large"] > 10 and answers["left of"] > 2
    assert max(Counter(picture for picture, _, _ in batch.dialogues).values()) <= 9


def test_questions_come_in_other_words_too():
    ordinary = {question for scene in scenes_of(5, 24, most=3) for draw in range(6) for question, _ in
                questions_of(scene, draw)}  # fmt: skip
    asked = [prompt for _, prompt, _ in make_dialogue_batch(5, 24, lesson="counts").dialogues]
    assert 0.3 < sum(prompt in ordinary for prompt in asked) / len(asked) < 0.5
