"""A run over a folder: what it was asked, where it stands, and how it goes on exactly after a kill."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from mm.errors import CheckpointError, InputError, ResourceLimitError
from mm.recipes.fit import Checkpoint, append_row
from mm.training.chance import chance_state, restore_chance

_SHOWN = 5  # of what was left out
_FREE = ("save_every", "validation", "workers")  # may differ when a run goes on: they change no weight


class Run:
    """One folder with the checkpoint and the log of one run.

    Raises:
        InputError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(dict(settings)))
        self.log = folder / "log.jsonl"
        self._checkpoint: Checkpoint | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / "write.tmp"
            probe.write_bytes(b"")
            for orphan in (*folder.glob("*.tmp"), *folder.glob(".tmp*")):
                orphan.unlink()
        except OSError as error:
            raise InputError(f"out: cannot write into {folder.parent.name[:80]!r} ({error.strerror})") from None

    def resume(self, module: nn.Module, optimiser: torch.optim.Optimizer, *, force: bool) -> int:
        """Loads what the folder holds into both, and the streams of random numbers; how many steps are done.

        Raises:
            InputError: the checkpoint is of a run with other settings or data, and `force` is not given.
            CheckpointError: the checkpoint is damaged, or of another head.
        """
        self._checkpoint = Checkpoint(self.folder / "checkpoint.safetensors", module, optimiser)
        try:
            before = json.loads(self._checkpoint.notes().get("settings", "null"))
            if before is not None and not force:
                self._refuse_change(before)
            done = self._checkpoint.load()
        except (SafetensorError, OSError, RuntimeError, KeyError, json.JSONDecodeError) as error:
            raise CheckpointError(
                f"checkpoint.safetensors: cannot go on from it ({reason(error)}); remove the folder to begin anew"
            ) from None
        restore_chance(self._checkpoint.extra)
        self._forget_rows(done)
        return done

    def save(self, done: int) -> None:
        """Raises ResourceLimitError where the disk does not take it; the checkpoint before is whole then."""
        assert self._checkpoint is not None
        try:
            self._checkpoint.save(done, chance_state(), settings=json.dumps(self.settings))
            (self.folder / "checkpoint.safetensors").chmod(0o644)
        except (OSError, SafetensorError) as error:
            held = self._checkpoint.notes().get("step", "none")
            raise ResourceLimitError(
                f"checkpoint.safetensors: step {done} could not be written ({reason(error)}); kept: step {held}"
            ) from None

    def note(self, row: Mapping[str, Any]) -> None:
        append_row(self.log, row)

    def _refuse_change(self, before: Mapping[str, Any]) -> None:
        keys = [key for key in {**before, **self.settings} if key not in _FREE]
        changed = [
            f"{key}: {before.get(key)!r} -> {self.settings.get(key)!r}"
            for key in keys
            if before.get(key) != self.settings.get(key)
        ]
        if changed:
            raise InputError(
                "out: the folder holds a run with other settings or data; pass force=True (--force) to go on all the "
                "same, or another folder. " + "; ".join(changed)
            )

    def _forget_rows(self, done: int) -> None:
        """Drops what the log says of steps behind the checkpoint, and a torn last line."""
        if not self.log.is_file():
            return
        kept = [line for line in self.log.read_text("utf-8").splitlines() if _before(line, done)]
        temporary = self.log.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        os.replace(temporary, self.log)


def warn_of(broken: Mapping[str, str], *, stacklevel: int) -> None:
    """One warning of all that was left out, by name and reason, if there is anything."""
    if broken:
        names = "; ".join(f"{name}: {why}" for name, why in list(broken.items())[:_SHOWN])
        warnings.warn(f"{len(broken)} pictures were left out: {names}", stacklevel=stacklevel + 1)


def reason(error: Exception) -> str:
    """What went wrong, without the machine's paths."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or (str(error).splitlines() or [type(error).__name__])[0][:200]


def _before(line: str, done: int) -> bool:
    try:
        return int(json.loads(line)["step"]) < done
    except (ValueError, KeyError, TypeError):
        return False
