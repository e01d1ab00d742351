"""The commands that report: help, version, models, doctor, eval, bench, and the text that results become."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mm import types
from mm.cli import checks, measure, render
from mm.cli.app import app
from mm.kernels import row
from mm.version import __version__
from mm.zoo import Entry

COMMANDS = [
    "caption",
    "ask",
    "detect",
    "segment",
    "classify",
    "embed",
    "models",
    "doctor",
    "bench",
    "bench encoders",
    "check",
    "eval scenes",
    "eval zeroshot",
]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_teaches_with_an_example(command: str):
    answer = invoke(*command.split(), "--help")
    assert answer.exit_code == 0
    assert f"\n  mm {command}" in answer.stdout


def test_the_help_lists_every_command():
    listed = invoke("--help").stdout
    assert all(f"\n  {command.split()[0]} " in listed for command in COMMANDS)


def test_version_is_the_librarys():
    assert invoke("--version").stdout == f"mm {__version__}\n"


def test_models_are_a_table_or_json(monkeypatch: pytest.MonkeyPatch):
    small = Entry("tiny", ("caption", "detect"), "x", 7.5, "128x128", 256, "Apache-2.0", note="drawn scenes")
    bought = Entry("m", ("embed",), "x", 75, "256x256", 512, "apple-amlr", "hf:a/b", "clip", 71.5, "a paper")
    monkeypatch.setattr("mm.zoo.MODELS", {"tiny": small, "m": bought})
    head, first, second = invoke("models").stdout.splitlines()
    assert head.split() == ["name", "tasks", "parameters", "input", "width", "top-1", "licence", "checked", "note"]
    assert first.split("  ")[0] == "tiny" and first.endswith("drawn scenes")
    assert "71.5" in second and "apple-amlr*" in second
    lines = [json.loads(line) for line in invoke("models", "--json").stdout.splitlines()]
    assert lines[0]["tasks"] == ["caption", "detect"] and lines[0]["top1"] is None
    assert lines[1]["research_only"] is True and lines[1]["top1_source"] == "a paper"


def test_the_real_models_are_listed():
    names = [json.loads(line)["name"] for line in invoke("models", "--json").stdout.splitlines()]
    assert names[0] == "tiny" and len(names) > 60
    assert invoke("models").stdout.count("\n") == len(names) + 1


def test_the_doctor_finds_a_healthy_machine_healthy():
    answer = invoke("doctor")
    assert answer.exit_code == 0, answer.stdout
    for text in ("torch + torchvision", "weights of tiny", "cpu", "max_pixels", "50000000"):
        assert text in answer.stdout
    *_, limits = map(json.loads, invoke("doctor", "--json").stdout.splitlines())
    assert limits["limits"]["max_pixels"] == 50_000_000


def test_the_doctor_names_the_cure_of_an_old_a_missing_and_an_optional_part(monkeypatch: pytest.MonkeyPatch):
    needs = [
        "numpy>=999",
        "no-such-part>=1",
        'no-such-demo>=6; extra == "demo"',
        'x; extra == "dev"',
        "numpy>=1",
    ]
    version = metadata.version
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == checks.DISTRIBUTION else version(name))
    _, old, missing, optional, good = checks._dependencies()
    assert old.state == "fault" and "needs >=999" in old.found and "numpy>=999" in old.cure
    assert missing.state == "fault" and "no-such-part" in missing.cure
    assert optional.state == "note" and optional.cure.endswith('"mm-upcycle[demo]"')
    assert good.state == "ok" and good.cure == ""


def test_the_doctor_says_whether_there_is_anything_to_compile_with(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row, "library", lambda: None)
    assert [finding.state for finding in checks._compiler()] == ["ok"]

    def none() -> None:
        raise row.NotCompiled("no compiler")

    monkeypatch.setattr(row, "library", none)
    (found,) = checks._compiler()
    assert found.state == "note" and "CXX" in found.cure and found.found == "no compiler"


def test_the_doctor_says_when_mm_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    def unknown(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    (only,) = checks._dependencies()
    assert only.state == "note" and "pip install -e" in only.cure


def test_the_doctor_sees_a_torchvision_that_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    import torchvision

    def missing(*_: Any) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(torchvision.ops, "nms", missing)
    (only,) = checks._torch_pair()
    assert only.state == "fault" and "nms does not exist (torch " in only.found and "one index" in only.cure
    assert torchvision.__version__ in only.found
    monkeypatch.undo()
    monkeypatch.setattr(torchvision, "__version__", "0.1+rocm7")
    (only,) = checks._torch_pair()
    assert only.state == "fault" and "rocm7" in only.found


def test_the_doctor_names_the_versions_of_a_pair_that_cannot_even_be_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (only,) = checks._torch_pair()
    assert only.state == "fault" and f"torchvision {metadata.version('torchvision')}" in only.found
    assert checks._builds("no-such-part") == "no-such-part not installed"


def test_the_doctor_says_why_a_gpu_is_not_used(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checks, "_nvidia_driver", lambda: True)
    for built, said in ((None, "CPU only"), ("12.8", "finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", built)
        last = list(checks._devices())[-1]
        assert last.state == "note" and said in last.found and "CUDA" in last.cure
    monkeypatch.setattr(checks, "_nvidia_driver", lambda: False)
    assert all(finding.state == "ok" for finding in checks._devices())


def test_the_doctor_says_when_the_hub_is_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert list(checks._hub()) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (only,) = checks._hub()
    assert only.state == "note" and "HF_HUB_OFFLINE" in only.cure


def test_a_fault_makes_the_doctor_exit_with_1(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "findings", lambda: [checks.Finding("torch", "fault", "gone", "bring it back")])
    answer = invoke("doctor")
    assert answer.exit_code == 1 and "bring it back" in answer.stdout


SCORES = {"detect": {"AP50": 0.8125, "AP": 0.5}, "caption": {"exact": 0.25}, "unseen": True, "count": 3}
README = "# x\n<!-- scores -->\nold\n<!-- /scores -->\nend\n"


def test_eval_scenes_prints_writes_and_renews_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[dict[str, Any]] = []

    def evaluate_scenes(**options: Any) -> dict[str, Any]:
        asked.append(options)
        return SCORES

    monkeypatch.setitem(sys.modules, "mm.evaluation.scenes", SimpleNamespace(evaluate_scenes=evaluate_scenes))
    out, readme = tmp_path / "scores.json", tmp_path / "README.md"
    readme.write_text(README, encoding="utf-8")
    answer = invoke("eval", "scenes", "--count", 3, "--unseen", "--out", out, "--readme", readme)
    assert answer.exit_code == 0, answer.output
    assert asked == [{"model": "tiny", "count": 3, "seed": 0, "unseen": True, "progress": False}]
    assert json.loads(out.read_text("utf-8")) == SCORES
    text = readme.read_text("utf-8")
    assert "| detect AP50 |  | 0.812 |" in text and "old" not in text and text.endswith("end\n")
    assert measure.with_scores(text, SCORES) == text
    both = measure.with_scores(text, {"unseen": False, "count": 3, "detect": {"AP50": 0.9, "AP": 0.7}})
    assert "| measure | seen | unseen |" in both and "count" not in both
    assert "| detect AP50 | 0.900 | 0.812 |" in both and "| caption exact |  | 0.250 |" in both
    assert measure.with_scores(both, SCORES) == both
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "scores.json"]
    assert json.loads(invoke("eval", "scenes", "--json").stdout) == SCORES


def test_a_readme_without_marks_is_left_alone():
    with pytest.raises(typer.BadParameter):
        measure.with_scores("# x\n<!-- scores -->\n", SCORES)


def test_bench_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch):
    rows = [{"step": "encode", "ms": 1.5, "peer": "open_clip", "peer_ms": 3.0, "ratio": 2.0}]
    monkeypatch.setattr("mm.bench.library.run", lambda **_: rows)
    assert "encode  1.500  open_clip  3.000" in invoke("bench").stdout
    assert json.loads(invoke("bench", "--json").stdout)["ratio"] == 2.0


def test_bench_encoders_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch):
    rows = [{"encoder": "CLIP", "input": "texts", "per_s": 1.5, "ratio": 2.0}]
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("mm.bench.encoders.run", lambda **options: asked.append(options) or rows)
    assert "CLIP     texts  1.500  2.000" in invoke("bench", "encoders", "--repeats", 3).stdout
    answer = json.loads(invoke("bench", "encoders", "--batch", 2, "--json").stdout)
    assert answer["ratio"] == 2.0 and "torch" in answer["machine"]
    assert [(options["repeats"], options["batch"]) for options in asked] == [(3, 8), (10, 2)]


def test_results_read_as_one_line():
    boxes = types.Detections(np.array([[0.4, 1, 9.6, 20]]), np.array([0.934]), ("red car",), (20, 10))
    assert render.detections(boxes) == "red car 0.93 [0 1 10 20]"
    assert render.detections(types.Detections.empty((20, 10))) == "nothing found"
    scores = np.array([[[0.9, 0.1]], [[0.2, 0.2]]], np.float32)
    masks = types.Segmentation(scores > 0.5, scores, ("a", "b"))
    assert render.segmentation(masks) == "a 50.0%; b 0.0%"
    assert render.classification(types.Classification(("a", "b"), np.array([0.25, 0.75]))) == "b 0.750; a 0.250"


@pytest.mark.parametrize("text", ["Straße", "日本語", "👩\u200d🚀", "é"])
def test_ordinary_text_stays_as_it_is(text: str):
    assert render.visible(text) == text


def test_tables_align_and_say_when_they_are_empty():
    assert render.table([{"a": 1, "bb": None}, {"a": "long\n", "bb": 0.5}]) == "a       bb\n1\nlong\\n  0.500"
    assert render.table([]) == "nothing to show"
    assert render.markdown([{"a": "x|y"}]) == "| a |\n| --- |\n| x\\|y |"
