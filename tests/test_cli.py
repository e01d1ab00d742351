"""The loop of the command line over pictures and texts, with tasks that are faked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mm.cli.app import app
from mm.cli.run import SaveFolder, expand
from mm.errors import CheckpointError, ImageInputError, TextInputError

ROOT = Path(__file__).resolve().parents[1]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def draw(path: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)
    return path


def fake_caption(picture: Any, *, warnings: tuple[str, ...] = (), **options: Any) -> Any:
    """A result with all that the loop needs; its text is the picture's size and its prompt."""
    height, width = picture.size_hw
    text = f"{width}x{height} {options.get('prompt')}"
    return SimpleNamespace(
        text=text,
        source=SimpleNamespace(warnings=warnings),
        to_dict=lambda: {"text": text},
        plot=lambda shown: shown.pil(),
    )


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a function in the place of a task, so that the loop is tested without a model."""

    def put(name: str, function: Callable[..., Any]) -> None:
        monkeypatch.setitem(sys.modules, f"mm.tasks.{name}", SimpleNamespace(**{name: function}))

    put("caption", fake_caption)
    return put


@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_bad_picture_never_costs_the_others(task: Any, tmp_path: Path, place: int):
    files = [draw(tmp_path / f"{index}.png") for index in range(7)]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    files.insert(place, bad)
    answer = invoke("caption", *files)
    assert answer.exit_code == 1
    assert answer.stdout.splitlines() == [f"{file}\t8x6 None" for file in files if file != bad]
    first, last = answer.stderr.splitlines()
    assert first.startswith("error: ") and first.count("bad.png") == 1
    assert last == "1 of 8 failed"


def test_json_has_one_line_per_picture_in_order_and_the_stage_of_an_error(task: Any, tmp_path: Path):
    good, missing = draw(tmp_path / "good.png"), tmp_path / "missing.png"
    answer = invoke("caption", missing, good, "--json", "--prompt", "A")
    assert answer.exit_code == 1
    error, result = map(json.loads, answer.stdout.splitlines())
    assert error["name"] == str(missing) and error["ok"] is False
    assert error["error"]["type"] == "ImageInputError" and error["error"]["stage"] == "read"
    assert set(error["error"]) == {"type", "message", "stage"}
    assert result == {"name": str(good), "ok": True, "result": {"text": "8x6 A"}}


def test_all_good_is_exit_code_0_with_nothing_on_stderr(task: Any, tmp_path: Path):
    answer = invoke("caption", draw(tmp_path / "a.png"))
    assert (answer.exit_code, answer.stderr) == (0, "")


def test_an_error_while_running_is_the_pictures_own(task: Any, tmp_path: Path):
    def refuse(picture: Any, **_: Any) -> Any:
        raise ImageInputError("too flat")

    task("caption", refuse)
    answer = invoke("caption", draw(tmp_path / "a.png"), "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["error"] == {
        "type": "ImageInputError",
        "message": "too flat",
        "stage": "run",
    }


@pytest.mark.parametrize("error", [TextInputError, CheckpointError])
def test_an_error_of_the_request_ends_the_run_once_with_exit_code_2(task: Any, tmp_path: Path, error: Any):
    def refuse(picture: Any, *_: Any, **__: Any) -> Any:
        raise error("no such thing")

    task("detect", refuse)
    answer = invoke("detect", draw(tmp_path / "a.png"), draw(tmp_path / "b.png"), "-l", " ")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (2, "", "error: no such thing\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["detect", "a.png"],
        ["caption"],
        ["embed"],
        ["embed", "a.png", "--text", "b"],
        ["caption", "a.png", "--max-new-tokens", "0"],
        ["detect", "a.png", "-l", "x", "--threshold", "2"],
        ["detect", "a.png", "-l", "x", "--threshold", "nan"],
        ["no-such-command"],
    ],
)
def test_usage_errors_are_exit_code_2(task: Any, arguments: list[str]):
    for name in ("detect", "embed"):
        task(name, fake_caption)
    answer = invoke(*arguments)
    assert answer.exit_code == 2
    assert answer.stdout == "" or arguments == ["caption"]


def test_an_interrupt_is_exit_code_130(task: Any, tmp_path: Path):
    def interrupt(picture: Any, **_: Any) -> Any:
        raise KeyboardInterrupt

    task("caption", interrupt)
    assert invoke("caption", draw(tmp_path / "a.png")).exit_code == 130


def test_a_closed_pipe_ends_quietly(tmp_path: Path):
    script = (
        "import sys; from types import SimpleNamespace as N; sys.modules['mm.tasks.caption'] = N(caption="
        "lambda picture, **_: N(text='x' * 4096, source=N(warnings=())))\nfrom mm.cli import main; main()"
    )
    names = [str(draw(tmp_path / "a.png"))] * 400
    command = [sys.executable, "-c", script, "caption", *names]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_warnings_are_said_once_per_picture_on_stderr(task: Any, tmp_path: Path):
    task("caption", lambda picture, **_: fake_caption(picture, warnings=("far\nout", "far\nout")))
    file = draw(tmp_path / "a.png")
    answer = invoke("caption", file)
    assert answer.exit_code == 0
    assert answer.stderr == f"warning: {file}: far\\nout\n"


def test_control_characters_never_reach_the_terminal(task: Any, tmp_path: Path):
    task("caption", lambda picture, **_: fake_caption(picture, prompt="\x1b[31mred\n\u202eback\tx\ud800"))
    file = draw(tmp_path / "a\x1b[0m.png")
    answer = invoke("caption", file)
    name, text = answer.stdout.rstrip("\n").split("\t")
    assert name.endswith("a\\x1b[0m.png")
    assert text == "8x6 \\x1b[31mred\\n\\u202eback\\tx\\ud800"


def test_folders_become_their_pictures_sorted(task: Any, tmp_path: Path):
    for name in ("b.PNG", "a.png", "deep/c.png"):
        draw(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    single = draw(tmp_path / "z.png")
    expected = [str(tmp_path / "in" / "a.png"), str(tmp_path / "in" / "b.PNG"), str(single)]
    assert expand([str(tmp_path / "in"), str(single)]) == expected
    assert [line.split("\t")[0] for line in invoke("caption", tmp_path / "in", single).stdout.splitlines()] == expected


def test_a_name_too_long_for_a_path_is_one_failed_item(task: Any, tmp_path: Path):
    answer = invoke("caption", "data:image/png;base64," + "A" * 5000, draw(tmp_path / "a.png"), "--save", tmp_path)
    assert answer.exit_code == 1 and answer.stdout.count("\n") == 1
    assert answer.stderr.endswith("1 of 2 failed\n")


def test_an_empty_folder_is_an_error(task: Any, tmp_path: Path):
    answer = invoke("caption", tmp_path)
    assert answer.exit_code == 1 and answer.stderr.startswith("error: ")


def test_saved_pictures_of_equal_stems_do_not_overwrite_each_other(task: Any, tmp_path: Path):
    files = [draw(tmp_path / "one" / "a.png", (255, 0, 0)), draw(tmp_path / "two" / "a.bmp", (0, 255, 0))]
    files.append(draw(tmp_path / "three" / "A.png", (0, 0, 255)))
    out = tmp_path / "deep" / "out"
    assert invoke("caption", *files, "--save", out).exit_code == 0
    assert sorted(os.listdir(out)) == ["A-3_caption.png", "a-2_caption.png", "a_caption.png"]
    colours = [Image.open(out / name).getpixel((0, 0)) for name in ("a_caption.png", "a-2_caption.png")]
    assert colours == [(255, 0, 0), (0, 255, 0)]


def test_saving_never_overwrites_an_input(task: Any, tmp_path: Path):
    taken = draw(tmp_path / "a_caption.png", (1, 2, 3))
    before = taken.read_bytes()
    assert invoke("caption", draw(tmp_path / "a.png"), taken, "--save", tmp_path).exit_code == 0
    assert taken.read_bytes() == before
    assert (tmp_path / "a-2_caption.png").is_file() and (tmp_path / "a_caption_caption.png").is_file()


def test_a_failed_save_leaves_no_partial_file(tmp_path: Path):
    def save(path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        SaveFolder(tmp_path, "caption").save("a.png", SimpleNamespace(save=save))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["https://example.org/a%2Fb?c=../../d", "x" * 300 + ".png", "..", ""])
def test_any_name_gets_a_place_inside_the_folder(tmp_path: Path, name: str):
    place = SaveFolder(tmp_path, "detect").place(name)
    assert place.parent == tmp_path and len(place.name) < 130


def test_a_save_folder_that_cannot_be_made_is_a_usage_error_before_any_work(task: Any, tmp_path: Path):
    (tmp_path / "file").write_text("")
    answer = invoke("caption", draw(tmp_path / "a.png"), "--save", tmp_path / "file" / "out")
    assert answer.exit_code == 2 and answer.stdout == ""


def test_urls_are_refused_until_they_are_allowed(task: Any):
    answer = invoke("caption", "http://127.0.0.1:9/a.png")
    assert answer.exit_code == 1 and "error: " in answer.stderr


def test_texts_are_embedded_by_name(task: Any):
    def embed(texts: list[str], *, model: str, kind: str) -> Any:
        assert (texts, model, kind) == (["a dog"], "tiny", "text")
        vectors = np.arange(6, dtype=np.float32)[None]
        return SimpleNamespace(vectors=vectors, source=SimpleNamespace(warnings=()), to_dict=lambda: {"n": 6})

    task("embed", embed)
    assert invoke("embed", "--text", "a dog").stdout == "a dog\t6 numbers: 0.0000 1.0000 2.0000 3.0000 …\n"
    assert json.loads(invoke("embed", "-t", "a dog", "--json").stdout)["result"] == {"n": 6}
