"""`mm eval detect`, `segment` and `matte`: what is printed and written, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mm.cli.app import app
from tests.test_dataset_eval import SCENES, dataset_of, grey_folder, masks_of, written


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["eval", *(str(argument) for argument in arguments)])


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return written(tmp_path / "set", dataset_of(SCENES), SCENES, "elsewhere")


@pytest.mark.parametrize("command", ["detect", "segment", "matte"])
def test_help_teaches_with_an_example(command: str) -> None:
    answer = invoke(command, "--help")
    assert answer.exit_code == 0 and f"\n  mm eval {command} " in answer.stdout


def test_a_report_is_printed_written_and_drawn(coco: Path, tmp_path: Path) -> None:
    images, out, worst = coco.parent / "elsewhere", tmp_path / "report.json", tmp_path / "worst"
    (images / "2.png").write_bytes(b"no picture")
    options = ["--images", images, "--worst", 2, "--save", worst, "--out", out]
    answer = invoke("detect", coco, "--format", "coco", *options, "--json")
    assert answer.exit_code == 1
    report = json.loads(answer.stdout)
    assert json.loads(out.read_text()) == report and report["pictures"] == len(SCENES) - 1
    assert "2.png" in answer.stderr and f"1 of {len(SCENES)} failed" in answer.stderr
    assert sorted(path.name for path in worst.iterdir()) == [each["file"] for each in report["worst"]]
    assert report["worst"][0]["file"].startswith("001_") and len(report["worst"]) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_table_shows_the_figures_and_the_worst(tmp_path: Path) -> None:
    home = grey_folder(tmp_path / "set", "masks", [masks_of(scene) for scene in SCENES])
    answer = invoke("segment", home, "--format", "folder", "--limit", 1, "--worst", 1)
    assert answer.exit_code == 0, answer.output
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert ["pictures", "1"] in lines and any(line[0] == "cIoU" for line in lines)
    assert lines[-1][0] == "0.png" and lines[-1][-2] == "IoU"
    assert not any(line[0] == "per_label" for line in lines)


def test_what_cannot_be_measured_ends_with_code_2(coco: Path, tmp_path: Path) -> None:
    for arguments, said in [
        (("detect", tmp_path / "nowhere.json"), "cannot be read"),
        (("detect", coco, "--format", "yolo"), "detect reads coco, lvis"),
        (("detect", coco, "--images", coco.parent / "elsewhere", "-m", "tinny"), 'Did you mean "tiny"'),
        (("segment", tmp_path, "--format", "folder"), "no folder"),
        (("matte", tmp_path, "--format", "coco"), "matte reads folder"),
        (("detect", coco, "--save", tmp_path / "worst"), "--worst"),
        (("detect", coco, "--out", tmp_path / "nowhere" / "report.json"), "cannot write"),
    ]:
        answer = invoke(*arguments)
        assert answer.exit_code == 2 and said in " ".join(answer.stderr.split()), arguments
        assert answer.stdout == ""
    assert not (tmp_path / "worst").exists()
