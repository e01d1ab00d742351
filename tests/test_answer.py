"""Answers with a draft that guesses ahead: the same words for fewer readings, and drafts that do not fit refused."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mm
from mm.checkpoints.loading import load
from mm.errors import CheckpointError, InputError
from mm.generation.drafts import Lookup
from mm.joined import Joined
from mm.scenes import render_scene
from mm.types import Caption, Stats, result_from_dict
from mm.zoo import EMBEDDED
from tests.parity.llava_folders import CHATML, processor, reference, saved

PICTURES = [render_scene(seed, 128).pixels for seed in (7, 8, 9)]
QUESTION = "how many cats are there?"


@pytest.fixture(scope="module")
def tiny() -> Joined:
    return load("tiny")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    """A vision-language model of another encoder and another vocabulary."""
    made = reference("clip_vision_model", "qwen2")
    folder = tmp_path_factory.mktemp("vlm") / "folder"
    return load(saved(folder, made, processor("clip_vision_model", made.config, CHATML)))


def drafts(tiny: Joined) -> dict[str, Any]:
    assert tiny.speaker is not None
    return {
        "lookup": "lookup",
        "a lookup": Lookup(longest=1),
        "a joined model by name": "tiny",
        "a joined model": tiny,
        "a language model": tiny.speaker.decoder,
        "a language model's folder": EMBEDDED / "tiny" / "decoder",
    }


@pytest.mark.parametrize("kind", list(drafts(load("tiny"))))
def test_a_draft_changes_what_an_answer_costs_and_not_a_word_of_it(tiny: Joined, kind: str) -> None:
    draft = drafts(tiny)[kind]
    for call in (mm.caption, lambda *a, **k: mm.ask(*a, QUESTION, **k)):
        plain, drafted = call(PICTURES[0]), call(PICTURES[0], draft=draft)
        assert (drafted.text, drafted.tokens, drafted.finish_reason) == (plain.text, plain.tokens, plain.finish_reason)
        assert drafted.stats.tokens == plain.stats.tokens == plain.stats.forwards == plain.tokens + 1
        assert plain.stats.guessed == 0 and drafted.stats.forwards <= plain.stats.forwards
    together = mm.caption(PICTURES, draft=draft)
    assert [each.text for each in together] == [mm.caption(picture).text for picture in PICTURES]


def test_a_draft_that_sees_the_picture_guesses_what_a_blind_one_cannot(tiny: Joined) -> None:
    assert tiny.speaker is not None
    sighted = mm.caption(PICTURES[0], draft=tiny).stats
    blind = mm.caption(PICTURES[0], draft=tiny.speaker.decoder).stats
    assert sighted.acceptance == 1.0 and sighted.tokens_per_forward > 4
    assert blind.guessed > 0 and blind.acceptance < 0.6


def test_a_draft_of_another_connector_over_the_same_encoder_is_one(tiny: Joined) -> None:
    assert tiny.speaker is not None
    noisy = mm.join(encoder="tiny", decoder=EMBEDDED / "tiny", connector="mlp", seed=3)
    drafted = mm.caption(PICTURES[0], draft=noisy)
    assert drafted.text == mm.caption(PICTURES[0]).text and drafted.stats.guessed > 0


def test_pieces_and_draws_with_a_draft() -> None:
    stream = mm.caption(PICTURES[0], stream=True, draft="tiny")
    assert "".join(stream) == mm.caption(PICTURES[0]).text == stream.result.text
    how = mm.Sampling(temperature=1.5, seed=3)
    drawn = mm.caption(PICTURES[0], sampling=how)
    assert drawn.text == mm.caption(PICTURES[0], sampling=how, draft="lookup").text != mm.caption(PICTURES[0]).text
    assert mm.caption(PICTURES[0], stop=[" and"]).text == mm.caption(PICTURES[0]).text.partition(" and")[0]


def test_prompts_with_and_without_pictures_go_in_one_batch() -> None:
    asked = [[PICTURES[0], QUESTION], ["a red"], [PICTURES[1], "and", PICTURES[2], QUESTION]]
    alone = [mm.generate(each, max_new_tokens=12).text for each in asked]
    for draft in (None, "lookup", "tiny"):
        assert [each.text for each in mm.generate(asked, max_new_tokens=12, draft=draft)] == alone


def test_an_answer_is_cancelled_from_another_thread() -> None:
    stream = mm.caption(PICTURES[0], stream=True)
    first = next(iter(stream))
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    thread.join()
    assert stream.result.finish_reason == "cancelled" and stream.result.text.startswith(first)
    assert stream.result.tokens < mm.caption(PICTURES[0]).tokens


def test_drafts_that_do_not_fit_are_refused(tiny: Joined, chatty: Joined, tmp_path: Path) -> None:
    encoder: Any = load("tiny").encoder
    other = dataclasses.replace(tiny, encoder=_moved(encoder), name="other")
    mute = dataclasses.replace(tiny, speaker=None)
    refused = [(chatty, "another one"), (other, "'other' sees pictures through another encoder"), (mute, "no speaker")]
    for draft, message in [*refused, (3, "expected lookup, a model or its name, got int")]:
        with pytest.raises(InputError, match=message):
            mm.caption(PICTURES[0], draft=draft)
    with pytest.raises(CheckpointError, match="no model 'lookpu'"):
        mm.caption(PICTURES[0], draft="lookpu")


def _moved(encoder: Any) -> Any:
    import copy

    moved = copy.deepcopy(encoder)
    with torch.no_grad():
        next(moved.parameters()).add_(1e-3)
    return moved


def test_what_an_answer_has_cost_passes_through_json() -> None:
    made = mm.caption(PICTURES[0], draft="lookup")
    assert result_from_dict(made.to_dict()) == made and Caption.from_dict(made.to_dict()).stats == made.stats
    assert Stats(4, 10, 8, 6).tokens_per_forward == 2.5 and Stats(4, 10, 8, 6).acceptance == 0.75
    assert Stats(0, 0).tokens_per_forward == Stats(0, 0).acceptance == 0
    for wrong in ({"forwards": 1}, {"forwards": -1, "tokens": 1, "guessed": 0, "accepted": 0}, 3):
        with pytest.raises(InputError, match="stats"):
            Caption.from_dict(made.to_dict() | {"stats": wrong})


# Conversations


def test_a_conversation_goes_on_from_what_was_said(chatty: Joined) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    chat = mm.Chat(picture, model=chatty, max_new_tokens=8)
    first = chat.say("what is it?").result
    assert first == mm.ask(picture, "what is it?", model=chatty, max_new_tokens=8)
    second = "".join(chat.say("is it red?"))
    led = mm.generate(["is it red?"], model=chatty, max_new_tokens=8, examples=[(picture, "what is it?", first.text)])
    assert second == led.text and chat.turns == [("what is it?", first.text), ("is it red?", second)]
    chat.show(picture[::-1])
    assert chat.turns == [] and chat.say("what is it?").result.text != first.text


def test_tiny_is_asked_each_question_alone() -> None:
    chat = mm.Chat(PICTURES[0])
    for question in (QUESTION, "what colour is the background?", QUESTION):
        assert chat.say(question).result.text == mm.ask(PICTURES[0], question).text
    assert len(chat.turns) == 3


def test_the_oldest_turns_are_left_out_where_the_context_is_full(chatty: Joined) -> None:
    assert chatty.speaker is not None
    chat = mm.Chat(PICTURES[0], model=chatty, max_new_tokens=4)
    chat.turns = [("where? " * 12, "there " * 12)] * 40
    long = chat.say("what is it?").result
    kept = mm.Chat(PICTURES[0], model=chatty, max_new_tokens=4).say("what is it?").result
    assert long.tokens == 4 and long.text != kept.text and len(chat.turns) == 41


def test_a_bad_turn_leaves_the_conversation_as_it_was() -> None:
    chat = mm.Chat(PICTURES[0])
    chat.say(QUESTION).result  # noqa: B018  (written to its end)
    with pytest.raises(mm.errors.ImageInputError):
        chat.show("nowhere.png")
    with pytest.raises(mm.errors.TextInputError):
        chat.say("  ")
    assert [said for said, _ in chat.turns] == [QUESTION]
    stream = chat.say("what colour is the background?")
    stream.cancel()
    assert stream.result.finish_reason == "cancelled" and len(chat.turns) == 2
