"""What the README shows is what happens: its Python and commands run, its scores are the measured ones."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mm
from mm.cli.app import app
from mm.cli.measure import with_scores

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with the example pictures, so that nothing is written into the checkout."""
    (tmp_path / "demos").symlink_to(ROOT / "demos")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_scratch")
def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]):
    names: dict[str, object] = {}
    assert len(blocks("python")) == 4
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert Path("marked.png").is_file()
    assert "ImageInputError" in capsys.readouterr().out


def test_the_calls_that_need_a_download_fit_the_functions():
    calls = [node for block in blocks("py") for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    faces = [c for c in calls if isinstance(c.func, ast.Attribute) and ast.unparse(c.func).startswith("mm.")]
    assert len(faces) >= 8
    for call in faces:
        assert isinstance(call.func, ast.Attribute)
        given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        spread = {"encoder": None, "decoder": None} if any(k.arg is None for k in call.keywords) else {}
        inspect.signature(getattr(mm, call.func.attr)).bind(*call.args, **given, **spread)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.usefixtures("_scratch")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run(command: str):
    program, *arguments = shlex.split(command)
    assert program == "mm"
    answer = CliRunner().invoke(app, arguments, input="what is there?\n")
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.strip()


@pytest.mark.parametrize("name", ["scores.json", "scores_unseen.json"])
def test_the_scores_of_the_readme_are_the_measured_ones(name: str):
    scores = json.loads((ROOT / "mm" / "weights" / "tiny" / name).read_text(encoding="utf-8"))
    assert with_scores(README, scores) == README


def test_the_files_that_the_readme_names_are_there():
    named = re.findall(r"\]\(([\w./]+)\)|`([A-Z]+\.md|LICENSE|mm/results/fonts/)`", README)
    assert len(named) >= 4
    assert [name for pair in named for name in pair if name and not (ROOT / name).exists()] == []
