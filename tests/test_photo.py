"""The name `photo`: one published model a task, what is said before a download, and what has none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

import mm
from mm.checkpoints.photo import for_matte, for_task
from mm.cli.app import app
from mm.errors import CheckpointError
from mm.zoo import MODELS, PHOTO, PHOTO_MATTER
from tests.test_hub import kept

PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, a hub that would be asked, and a process that has said nothing yet."""
    home = tmp_path / "hub"
    home.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mm.checkpoints.photo._told", set())
    return home


@pytest.mark.parametrize("task", list(PHOTO))
def test_each_task_has_a_published_model_that_does_it(task: str) -> None:
    entry = MODELS[PHOTO[task]]
    assert entry.reference.startswith("hf:") and ("segment" if task == "matte" else task) in entry.tasks
    assert for_task("photo", task) == entry.name


def test_other_models_stay_what_they_are() -> None:
    given = [SimpleNamespace(), "tiny", "./photo", Path("photo")]
    assert all(for_task(each, "detect") is each for each in given)
    assert for_matte("tiny", "clipmat", None) == ("tiny", "clipmat", None)


def test_size_and_licence_are_said_once_where_the_weights_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        for_task("photo", "detect")
    said = "photo: fetching hf:google/owlv2-base-patch16-ensemble, about 620 MB; licence: Apache-2.0\n"
    assert capsys.readouterr() == ("", said)
    for_task("photo", "ask")
    assert "llava-interleave-qwen-0.5b-hf, about 1,728 MB; licence: see model card" in capsys.readouterr().err
    for_task("photo", "classify")
    for_task("photo", "embed")
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_is_said_of_what_is_in_the_cache_or_cannot_come(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(cache, "google/owlv2-base-patch16-ensemble", model__safetensors=b"x")
    for_task("photo", "detect")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for_task("photo", "segment")
    assert capsys.readouterr() == ("", "")


def test_mattes_are_made_by_trimap(capsys: pytest.CaptureFixture[str]) -> None:
    assert for_matte("photo", "clipmat", "mine") == (PHOTO["matte"], "trimap", "mine")
    assert for_matte("photo", "clipmat", None) == (PHOTO["matte"], "trimap", PHOTO_MATTER.reference)
    assert "hf:hustvl/vitmatte-small-composition-1k, about 103 MB" in capsys.readouterr().err


CALLS: dict[str, Any] = {
    "caption": lambda: mm.caption(PICTURE, model="photo"),
    "ask": lambda: mm.ask(PICTURE, "What is it?", model="photo"),
    "detect": lambda: mm.detect(PICTURE, "cat", model="photo"),
    "segment": lambda: mm.segment(PICTURE, "cat", model="photo"),
    "matte": lambda: mm.matte(PICTURE, "cat", model="photo"),
    "classify": lambda: mm.classify(PICTURE, ["cat", "dog"], model="photo"),
    "embed": lambda: mm.embed([PICTURE], model="photo", kind="image"),
}


@pytest.mark.parametrize("task", list(CALLS))
def test_without_a_network_the_error_names_the_repository_and_the_way_out(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reference = PHOTO_MATTER.reference if task == "matte" else MODELS[PHOTO[task]].reference
    repository = reference.removeprefix("hf:")
    with pytest.raises(CheckpointError, match=rf"{repository}: not in the cache.*hf download {repository} --local-dir"):
        CALLS[task]()


@pytest.mark.parametrize("task", list(CALLS))
def test_each_task_asks_the_hub_for_its_own_model(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def hub(repository: str, **_: Any) -> str:
        asked.append(repository)
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(CheckpointError):
        CALLS[task]()
    reference = PHOTO_MATTER.reference if task == "matte" else MODELS[PHOTO[task]].reference
    assert asked == [reference.removeprefix("hf:")]


@pytest.mark.parametrize(
    "call",
    [
        lambda: mm.encode(PICTURE, model="photo"),
        lambda: mm.load("photo"),
    ],
)
def test_what_has_no_model_for_photographs_says_what_has(call: Any) -> None:
    listed = r"without a task and encode.*caption \(llava.*detect \(owlv2-base.*embed \(siglip2-base"
    with pytest.raises(CheckpointError, match=listed):
        call()


def test_the_table_of_models_shows_the_name() -> None:
    lines = CliRunner().invoke(app, ["models"]).stdout.splitlines()
    noted = {line.split()[0]: line.partition("photo: ")[2] for line in lines if "photo: " in line}
    assert noted == {
        "llava-interleave-qwen-0.5b": "caption; ask",
        "owlv2-base-patch16-ensemble": "detect",
        "clipseg-rd64-refined": "segment; matte, with vitmatte-small-composition-1k",
        "siglip2-base-patch16-224": "classify; embed",
    }
