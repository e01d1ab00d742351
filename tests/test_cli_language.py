"""caption, ask and chat on the command line: words as they come, drafts, chance, and a conversation from stdin."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import mm
from mm.checkpoints import loading
from mm.cli.app import app
from mm.cli.language import _answer
from mm.kernels import row
from mm.recipes.tokenizer import DEFAULT_PROMPT
from mm.scenes import render_scene
from tests.parity.llava_folders import VICUNA, processor, reference, saved


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [folder / "a.png", folder / "b.png"]
    for seed, path in enumerate(made, 7):
        Image.fromarray(render_scene(seed, 128).pixels).save(path)
    return made


def invoke(*arguments: object, said: str = "") -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=said)


def test_streamed_lines_are_those_of_whole_answers(files: list[Path]) -> None:
    whole = invoke("caption", *files)
    for words in (["--stream"], ["--stream", "--draft", "lookup"], ["--draft", "tiny"]):
        answer = invoke("caption", *files, *words)
        assert answer.exit_code == 0 and answer.stdout == whole.stdout
    broken = invoke("caption", files[0], "nowhere.png", files[1], "--stream")
    assert broken.exit_code == 1 and broken.stdout == whole.stdout and "nowhere.png" in broken.stderr


def test_json_tells_what_an_answer_has_cost(files: list[Path]) -> None:
    answer = invoke("ask", files[0], "how many cats are there?", "--draft", "tiny", "--json")
    stats = json.loads(answer.stdout)["result"]["stats"]
    assert stats["accepted"] == stats["guessed"] > 0 and stats["forwards"] < stats["tokens"]


def test_chance_has_a_seed(files: list[Path]) -> None:
    drawn = [invoke("caption", files[0], "--temperature", 3, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stream", "--json"], "give one of them"),
        (["--top-p", "0.5"], "with a temperature"),
        (["--draft", "lookpu"], "no model 'lookpu'"),
        (["--temperature", "-1"], "above 0"),
        (["--seed", "3"], "give both"),
    ],
)
def test_words_that_do_not_go_together_are_exit_code_2(files: list[Path], words: list[str], message: str) -> None:
    answer = invoke("caption", files[0], *words)
    assert answer.exit_code == 2 and message in answer.stderr and answer.stdout == ""


def test_a_conversation_goes_on_after_errors_and_other_pictures(files: list[Path]) -> None:
    ground = "what colour is the background?"
    lines = [
        ground,
        "/new",
        "/nex b.png",
        "",
        "/new nowhere.png",
        ground,
        f"/new {files[1]}",
        ground,
        "/forget",
        "/help",
    ]
    answer = invoke("chat", files[0], said="\n".join(lines) + "\n")
    first, other = (mm.ask(file, ground).text for file in files)
    said = answer.stdout.splitlines()
    assert answer.exit_code == 0 and said[:3] == [first, first, other] and said[3].startswith("/new IMAGE")
    errors = answer.stderr.splitlines()
    assert len(errors) == 3 and "expected a picture" in errors[0] and 'Did you mean "/new"' in errors[1]
    assert "nowhere.png" in errors[2]


def test_a_conversation_ends_where_it_is_told_to(files: list[Path]) -> None:
    answer = invoke("chat", files[0], said="/quit\nis there a cat?\n")
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert invoke("chat", "nowhere.png").exit_code == 2
    assert invoke("chat", files[0], "--model", "clip-vit-base-patch32x").exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_answer_and_what_was_written_stays(
    files: list[Path], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = mm.Chat(files[0])
    question = DEFAULT_PROMPT  # a long answer
    stream = talk.say(question)

    class Struck:
        cancel = stream.cancel

        def __iter__(self) -> Any:
            for piece in stream:
                signal.raise_signal(number)
                yield piece

    ended = pytest.raises(typer.Exit) if number == signal.SIGTERM else nullcontext()
    with ended:
        _answer(Struck())  # pyright: ignore[reportArgumentType]
    written = capsys.readouterr().out.rstrip("\n")
    assert talk.turns == [(question, written)] and written
    assert len(written) < len(mm.caption(files[0]).text) and mm.caption(files[0]).text.startswith(written)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language folder as others publish them."""
    made = reference("clip_vision_model", "llama")
    return saved(tmp_path_factory.mktemp("cli") / "folder", made, processor("clip_vision_model", made.config, VICUNA))


def test_how_a_model_is_loaded_may_be_said(files: list[Path], published: Path) -> None:
    asked = ["ask", files[0], "what is it?", "-m", published, "--max-new-tokens", 3, "--json"]
    sources = []
    for words in ([], ["--dtype", "bfloat16"], ["--dtype", "bfloat16", "--int8"]):
        answer = invoke(*asked, *words)
        assert answer.exit_code == 0, answer.stderr
        sources.append(json.loads(answer.stdout)["result"]["source"]["dtype"])
    assert sources == ["float32", "bfloat16", "bfloat16, decoder in int8"]
    plain, words = invoke("caption", files[0]), ("--compile",)
    assert invoke("caption", files[0], *words).stdout == plain.stdout
    said = invoke("chat", files[0], *words, said="how many cats are there?\n").stdout
    assert said == invoke("chat", files[0], said="how many cats are there?\n").stdout != ""


def test_where_nothing_is_compiled_one_line_says_so(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr(row, "library", row.library.__wrapped__)
    answer = invoke("caption", *files, "--compile")
    assert answer.exit_code == 0 and answer.stdout == invoke("caption", *files).stdout
    notes = [line for line in answer.stderr.splitlines() if "no-such-compiler" in line]
    assert len(notes) == 1 and notes[0].startswith("note: compile: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "half"], "expected one of float32"),
        (["--dtype", "bfloat16"], "runs in float32"),
        (["--int8"], "int8"),
    ],
)
def test_what_cannot_be_loaded_so_is_an_error_of_one_line(files: list[Path], words: list[str], message: str) -> None:
    for answer in (invoke("caption", files[0], *words), invoke("chat", files[0], *words)):
        assert answer.exit_code == 2 and message in answer.stderr and "Traceback" not in answer.stderr
