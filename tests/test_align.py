"""Training of a connector: it learns, nothing else changes, and what is written is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mm
from mm.checkpoints.loading import load
from mm.cli.app import app
from mm.errors import InputError
from mm.generation.prompts import asked
from mm.training.align import AlignTraining, Batch
from mm.training.checks import weights_digest
from mm.training.dialogues import Dialogues
from tests.test_join import parts  # noqa: F401  (a fixture)

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
PAIRS = [(np.full((24, 24, 3), rgb, np.uint8), "which colour?", name) for name, rgb in COLOURS.items()]
WORDS: dict[str, Any] = {"steps": 30, "batch": 2, "rate": 1e-2, "warm": 1, "stage": "align"}


@pytest.fixture(scope="module")
def joined(parts: tuple[Path, Path]) -> Any:  # noqa: F811
    return mm.join(encoder=parts[0], decoder=parts[1], connector="mlp", layer=-2)


def loss(model: Any) -> float:
    training = AlignTraining(model, model.speaker)
    dialogues = Dialogues(PAIRS, "?")
    with torch.no_grad():
        return training.losses(Batch([(dialogues[i], dialogues[i].picture()) for i in range(2)]))["words"].item()


def test_the_connector_learns_and_nothing_else_changes(joined: Any) -> None:
    halves = joined.encoder, joined.speaker.decoder, joined.speaker.connector
    before = [weights_digest(part) for part in halves]
    made = mm.fit(joined, PAIRS, **WORDS)
    assert [weights_digest(part) for part in halves] == before
    assert loss(made) < 0.85 * loss(joined)
    assert made.speaker.notes == () and joined.speaker.notes != ()
    assert not any(p.requires_grad for p in made.speaker.connector.parameters())
    assert made.sha256 != joined.sha256
    again = mm.fit(joined, PAIRS, **WORDS)
    assert again.sha256 == made.sha256
    assert weights_digest(again.speaker.connector) == weights_digest(made.speaker.connector)


def test_the_loss_is_that_of_the_answer_behind_the_prompt(joined: Any) -> None:
    speaker, losses = joined.speaker, []
    for image, question, answer in PAIRS:
        features = mm.encode(image, model=joined).features
        prompt = speaker.prompts(asked(question))
        said = [*speaker.decoder.tokenizer(answer, add_special_tokens=False)["input_ids"], 3]
        embeds = torch.cat([speaker.embeds(prompt, [features]), speaker.decoder.embed(torch.tensor([said]))], 1)
        logits = speaker.decoder.extend(embeds, keep=len(said) + 1)[0][0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(said), reduction="none"))
    assert loss(joined) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_a_stopped_run_goes_on_and_is_written_whole(
    joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mm.fit(joined, PAIRS, out=tmp_path / "whole", save_every=10, **WORDS)
    losses, count = AlignTraining.losses, []

    def killed(self: AlignTraining, batch: Any) -> dict[str, torch.Tensor]:
        count.append(1)
        if len(count) == 15:
            raise KeyboardInterrupt
        return losses(self, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(AlignTraining, "losses", killed)
        mm.fit(joined, PAIRS, out=tmp_path / "parts", save_every=10, **WORDS)
    assert not (tmp_path / "parts").exists()
    mm.fit(joined, PAIRS, out=tmp_path / "parts", save_every=10, **WORDS)
    written = load(tmp_path / "parts")
    assert weights_digest(written.speaker.connector) == weights_digest(whole.speaker.connector)
    with pytest.raises(InputError, match="there is something at 'parts' already"):
        mm.fit(joined, PAIRS, out=tmp_path / "parts", **WORDS)
    further = mm.fit(tmp_path / "parts", PAIRS, out=tmp_path / "further", **WORDS)  # a folder of ours, on and on
    assert loss(further) < loss(written) == pytest.approx(loss(whole), abs=1e-5)
    assert loss(load(tmp_path / "further")) == pytest.approx(loss(further), abs=1e-5)


def test_a_file_in_llava_s_layout_is_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "images" / "a.png")
    said = [("human", "<image>\nwhat is it?"), ("gpt", "a wall"), ("human", "which colour?"), ("gpt", "red")]
    record = {"id": "1", "image": "a.png", "conversations": [{"from": role, "value": text} for role, text in said]}
    words_alone = {"id": "2", "conversations": record["conversations"]}
    (tmp_path / "data.json").write_text(json.dumps([record, words_alone]))
    dialogues = Dialogues(tmp_path / "data.json", "?")
    assert len(dialogues) == 2 and dialogues[0].picture().size_hw == (9, 9)
    assert [each.answer for each in (dialogues[0], dialogues[1])] == ["a wall", "red"]
    assert [turn.content for turn in dialogues[1].turns] == [(None, "what is it?"), ("a wall",), ("which colour?",)]


def test_the_picture_goes_with_the_first_question_whoever_speaks_first(tmp_path: Path) -> None:
    said = [("gpt", "hello"), ("human", "which colour?"), ("gpt", "red"), ("human", "sure?"), ("gpt", "yes")]
    record = {"image": "a.png", "conversations": [{"from": role, "value": text} for role, text in said]}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    dialogues = Dialogues(tmp_path / "data.json", "?")
    assert [each.answer for each in (dialogues[0], dialogues[1])] == ["red", "yes"]
    assert [turn.content for turn in dialogues[0].turns] == [("hello",), (None, "which colour?")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no dialogue"),
        ([("a.png",)], "item 0.*image, answer"),
        ([("a.png", " ")], "item 0.*words"),
        ("scenes:none", "scenes:COUNT"),
        ("nowhere.json", "no file 'nowhere.json'"),
        (3, "LLaVA's layout"),
    ],
)
def test_what_holds_no_dialogues_is_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dialogues(data, "?")


def test_one_broken_picture_costs_only_itself(joined: Any) -> None:
    with pytest.warns(UserWarning, match="1 pictures were left out: gone.png"):
        made = mm.fit(joined, [*PAIRS, ("gone.png", "red")], **{**WORDS, "batch": 3, "steps": 2})
    assert made.speaker is not None


def test_a_dialogue_too_long_for_the_decoder_costs_only_itself(joined: Any) -> None:
    endless = (PAIRS[0][0], "which colour?", "red " * joined.speaker.decoder.context)
    with pytest.warns(UserWarning, match="1 pictures were left out: item 2: .*tokens with the picture"):
        made = mm.fit(joined, [*PAIRS, endless], **{**WORDS, "batch": 3, "steps": 2})
    assert made.speaker is not None
    with pytest.raises(InputError, match="nothing of a batch can be used.*tokens with the picture"):
        mm.fit(joined, [endless], **WORDS)


def test_mixed_precision_trains_too(joined: Any) -> None:
    made = mm.fit(joined, PAIRS, **WORDS, bf16=True)
    assert loss(made) < 0.85 * loss(joined)
    assert weights_digest(made.speaker.connector) != weights_digest(mm.fit(joined, PAIRS, **WORDS).speaker.connector)


@pytest.mark.parametrize("word", [{"flips": True}, {"negatives": 3}, {"encoder_rate": 0.5}, {"workers": 1}])
def test_settings_of_heads_alone_are_refused(joined: Any, word: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f'{next(iter(word))}: stage="align" has no use for it'):
        mm.fit(joined, PAIRS, **WORDS, **word)


@pytest.mark.parametrize("words", [{"head": "detect"}, {"labels": ["a"]}, {"fresh": True}, {"encoder": "trained"}])
def test_words_on_heads_are_refused(joined: Any, words: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f'{next(iter(words))}: stage="align" trains the connector alone'):
        mm.fit(joined, PAIRS, **WORDS, **words)
    with pytest.raises(InputError, match="head: expected one of detect"):
        mm.fit(joined, PAIRS)


def test_the_command_aligns_the_embedded_model(tmp_path: Path) -> None:
    words = ["fit", "tiny", "--stage", "align", "--data", "scenes:8", "--out", tmp_path / "out", "--steps", 2]
    answer = CliRunner().invoke(app, [str(word) for word in [*words, "--batch", 2]])
    assert answer.exit_code == 0, answer.output
    before, after = load("tiny").speaker, load(tmp_path / "out").speaker
    assert weights_digest(before.connector) != weights_digest(after.connector)
    assert mm.caption(PAIRS[0][0], model=str(tmp_path / "out")).text
