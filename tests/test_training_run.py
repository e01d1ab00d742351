"""Runs that are interrupted: they end where an undisturbed one does, or say why they do not go on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mm.checkpoints.loading import load
from mm.cli.app import app
from mm.errors import CheckpointError, InputError, ResourceLimitError
from mm.joined import Joined
from mm.recipes.fit import Checkpoint
from mm.training.chance import chance_state, own_chance, restore_chance
from mm.training.fit import fit
from mm.training.interrupt import stop_on_signal
from mm.training.run import Run
from mm.training.session import _After
from tests.training_parts import clip_folder, coco_folder, pairs, rows

ROOT = Path(__file__).resolve().parents[1]
WORDS: dict[str, Any] = {"head": "detect", "steps": 8, "batch": 3, "rate": 3e-3, "save_every": 2, "flips": True}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("encoders") / "tiny-clip")


@pytest.fixture(scope="module")
def whole(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Joined, Path]:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return fit(clip, pairs(6), out=out, validation=pairs(3), **WORDS), out


def weights(model: Joined, part: str = "detector") -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in getattr(model, part).state_dict().items()}


def terms(out: Path) -> list[dict[str, Any]]:
    """The log without its clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(out)]


def struck(monkeypatch: pytest.MonkeyPatch, at: int, act: Any) -> None:
    """Does `act` once, right after the step `at`."""
    original = _After.__call__

    def call(self: _After, step: int, *rest: Any) -> bool:
        if step == at:
            monkeypatch.setattr(_After, "__call__", original)
            act()
        return original(self, step, *rest)

    monkeypatch.setattr(_After, "__call__", call)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_the_next_call_goes_on_to_the_bit(
    clip: Path, whole: tuple[Joined, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    struck(monkeypatch, 4, lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 8"):
        fit(clip, pairs(6), out=tmp_path / "out", validation=pairs(3), **WORDS)
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert not (tmp_path / "out" / "config.json").exists()
    torch.manual_seed(99)
    made = fit(clip, pairs(6), out=tmp_path / "out", validation=pairs(3), **WORDS)
    assert weights(made) == weights(whole[0]) and terms(tmp_path / "out") == terms(whole[1])
    assert made.sha256 == whole[0].sha256


def test_what_was_done_behind_the_last_checkpoint_is_done_again_exactly(
    clip: Path, whole: tuple[Joined, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise RuntimeError("struck")

    struck(monkeypatch, 4, fail)
    with pytest.raises(RuntimeError, match="struck"):
        fit(clip, pairs(6), out=tmp_path / "out", validation=pairs(3), **WORDS)
    log = tmp_path / "out" / "fit" / "log.jsonl"
    assert [row["step"] for row in terms(tmp_path / "out") if "class" in row] == [0, 1, 2, 3, 4]
    with open(log, "a") as file:
        file.write('{"step": 5, "cla')  # a torn line
    made = fit(clip, pairs(6), out=tmp_path / "out", validation=pairs(3), **WORDS)
    assert weights(made) == weights(whole[0]) and terms(tmp_path / "out") == terms(whole[1])


def test_a_trained_encoder_goes_on_to_the_bit(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chosen = WORDS | {"encoder": "trained", "steps": 4}
    undisturbed = fit(clip, pairs(6), out=tmp_path / "a", **chosen)
    struck(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(clip, pairs(6), out=tmp_path / "b", **chosen)
    resumed = fit(clip, pairs(6), out=tmp_path / "b", **chosen)
    for part in ("detector", "encoder"):
        assert weights(resumed, part) == weights(undisturbed, part)


def test_a_finished_run_is_not_run_again(clip: Path, whole: tuple[Joined, Path]):
    before = (whole[1] / "fit" / "log.jsonl").read_text()
    again = fit(clip, pairs(6), out=whole[1], validation=pairs(3), **WORDS)
    assert weights(again) == weights(whole[0]) and (whole[1] / "fit" / "log.jsonl").read_text() == before
    assert load(whole[1]).sha256 == again.sha256


def test_a_run_with_other_settings_or_data_is_refused_with_the_difference(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    struck(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(clip, pairs(6), out=tmp_path / "out", **WORDS)
    with pytest.raises(InputError, match=r"rate: 0\.003 -> 0\.1; seed: 0 -> 1$"):
        fit(clip, pairs(6), out=tmp_path / "out", **(WORDS | {"rate": 0.1, "seed": 1}))
    with pytest.raises(InputError, match=r"pass force=True \(--force\).* data: '[0-9a-f]{64}' -> "):
        fit(clip, pairs(7), out=tmp_path / "out", **WORDS)
    with pytest.raises(InputError, match="design: "):
        fit(clip, pairs(6), out=tmp_path / "out", **(WORDS | {"head": "segment"}))
    with pytest.raises(CheckpointError, match="remove the folder to begin anew"):
        fit(clip, pairs(6), out=tmp_path / "out", force=True, **(WORDS | {"head": "segment"}))
    fit(clip, pairs(7), out=tmp_path / "out", force=True, **(WORDS | {"rate": 0.1}))
    assert [row["step"] for row in terms(tmp_path / "out")] == list(range(8))


@pytest.fixture
def _heard() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell starts what it runs in the background deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard")
def test_a_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stop_on_signal() as stop:
            seen.append((signal.getsignal(signal.SIGINT) is before, bool(stop)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


def test_a_full_disk_keeps_the_checkpoint_before(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    struck(monkeypatch, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    try:
        with pytest.raises(ResourceLimitError, match="step 4 could not be written .*File too large.*kept: step 2"):
            fit(clip, pairs(6), out=tmp_path / "out", **WORDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in (tmp_path / "out" / "fit").iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    undisturbed = fit(clip, pairs(6), **WORDS)
    assert weights(fit(clip, pairs(6), out=tmp_path / "out", **WORDS)) == weights(undisturbed)


def test_leftovers_of_a_kill_are_cleared_and_files_are_for_all_who_may_read(clip: Path, tmp_path: Path):
    work = tmp_path / "out" / "fit"
    work.mkdir(parents=True)
    for name in (".tmpAb12", "checkpoint.tmp"):
        (work / name).write_bytes(b"half")
    fit(clip, pairs(2), out=tmp_path / "out", **(WORDS | {"steps": 1}))
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    for path in (work / "checkpoint.safetensors", tmp_path / "out" / "head.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o644


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      trailing")
    module = torch.nn.Linear(2, 2)
    run = Run(tmp_path, {"steps": 1})
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: cannot go on"):
        run.resume(module, torch.optim.AdamW(module.parameters()), force=False)


def test_the_streams_of_random_numbers_go_on_where_they_were():
    with own_chance(3):
        np.random.normal()
        state = chance_state()
        expected = torch.rand(2).tolist(), np.random.normal(size=3).tolist()
        torch.rand(5)
        restore_chance(state)
        assert (torch.rand(2).tolist(), np.random.normal(size=3).tolist()) == expected


def test_a_checkpoint_without_extra_words_is_still_read(tmp_path: Path):
    module = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    Checkpoint(tmp_path / "checkpoint.safetensors", module, optimiser).save(7)
    assert Run(tmp_path, {"steps": 9}).resume(module, optimiser, force=False) == 7


def test_the_command_answers_130_when_it_is_interrupted(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    struck(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    words = ["fit", clip, "--data", coco_folder(tmp_path / "data", 3), "--head", "detect", "--out", tmp_path / "out"]
    answer = CliRunner().invoke(app, [str(word) for word in [*words, "--steps", "4", "--batch", "1"]])
    assert answer.exit_code == 130 and "stopped after step 2 of 4" in answer.stderr


KILLED = """
import os, random, signal, sys, time
from collections.abc import Iterator
from pathlib import Path
import torch
from mm.training.run import Run

def parts():
    torch.manual_seed(0)
    module = torch.nn.Linear(200, 200)
    return module, torch.optim.AdamW(module.parameters())

def work():
    module, optimiser = parts()
    run = Run(Path(sys.argv[1]), {"steps": 1})
    done = run.resume(module, optimiser, force=False)
    while True:
        done += 1
        torch.nn.init.constant_(module.weight, done)
        run.save(done)

random.seed(0)
parts()  # so that what it imports is there for all
last = 0
for _ in range(20):
    child = os.fork()
    if not child:
        work()
    time.sleep(random.uniform(0.02, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    module, optimiser = parts()
    done = Run(Path(sys.argv[1]), {"steps": 1}).resume(module, optimiser, force=False)
    assert done >= last and (not done or (module.weight == done).all()), (done, last)
    last = done
assert last
print("whole every time")
"""


def test_twenty_kills_while_saving_always_leave_a_whole_checkpoint(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.stdout == "whole every time\n", answer.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint.safetensors"}
