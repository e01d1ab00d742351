"""The doctor's checks. Each gives findings; a finding that is not `ok` says what cures it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

DISTRIBUTION = "mm-upcycle"
EXTRAS = ("demo", "supervision")
EMBEDDED = ("tiny",)
WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state`: "fault" will not work, "note" is about something optional."""

    what: str
    state: Literal["ok", "note", "fault"]
    found: str
    cure: str = ""


def findings() -> list[Finding]:
    """Every check in the order of the report."""
    return [*_dependencies(), *_torch_pair(), *_devices(), *_compiler(), *_hub(), *_weights()]


def _dependencies() -> Iterator[Finding]:
    """Each declared dependency against its floor; the missing parts of an extra are no fault."""
    try:
        declared = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
        yield Finding(DISTRIBUTION, "ok", metadata.version(DISTRIBUTION))
    except metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, "note", "runs from a folder, not installed", "python -m pip install -e .")
        return
    for need in declared:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield _dependency(need, "fault", f'python -m pip install --upgrade "{need.name}{need.specifier}"')
        for extra in EXTRAS:
            if need.marker is not None and need.marker.evaluate({"extra": extra}):
                yield _dependency(need, "note", f'python -m pip install "{DISTRIBUTION}[{extra}]"')


def _dependency(need: Requirement, otherwise: Literal["note", "fault"], cure: str) -> Finding:
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return Finding(need.name, otherwise, "not installed", cure)
    if not need.specifier.contains(version, prereleases=True):
        return Finding(need.name, otherwise, f"{version}, needs {need.specifier}", cure)
    return Finding(need.name, "ok", version)


def _torch_pair() -> Iterator[Finding]:
    """torch and torchvision are built for each other: versions and compute platforms must match.

    The usual accident is a CPU torch from PyTorch's own index beside PyPI's torchvision for CUDA. Importing the
    latter fails then, and timm, open_clip and transformers' image processors fail with it.
    """
    name = "torch + torchvision"
    builds = _builds("torch", "torchvision")
    together = "python -m pip install --upgrade --force-reinstall torch torchvision"
    cure = f"install both from one index, in one command: {together}"
    try:
        import torch
        import torchvision

        builds = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        yield Finding(name, "fault", f"do not work together: {said} ({builds})", cure)
        return
    if Version(torch.__version__).local != Version(torchvision.__version__).local:
        yield Finding(name, "fault", f"built for different platforms: {builds}", cure)
    else:
        yield Finding(name, "ok", "work together")


def _builds(*names: str) -> str:
    """Versions by the installer's records, which can be read of a package that cannot be imported."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError):
        return  # The pair's finding has said it.
    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", "ok", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    if _nvidia_driver() and not torch.cuda.is_available():
        built = torch.version.cuda
        found = f"a driver is here, but torch {'finds no GPU' if built else 'is built for the CPU only'}"
        cure = f"update the driver to one for CUDA {built}" if built else "install torch and torchvision for CUDA"
        yield Finding("nvidia gpu", "note", found, cure)


def _nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None


def _compiler() -> Iterator[Finding]:
    """Whether `mm.load(…, compile=True)` has anything to compile with."""
    try:
        from mm.kernels.row import NotCompiled, library
    except (ImportError, OSError):
        return  # The pair's finding has said it.
    try:
        library()
    except NotCompiled as error:
        yield Finding("compile=True", "note", str(error), "install g++, or name a compiler in CXX")
    else:
        yield Finding("compile=True", "ok", "a C++ compiler builds a decoder's routines")


def _hub() -> Iterator[Finding]:
    """Whether published checkpoints may be fetched."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: only downloaded models load", "unset HF_HUB_OFFLINE")


def _weights() -> Iterator[Finding]:
    """The weights that ship inside the package."""
    for name in EMBEDDED:
        if any(WEIGHTS.joinpath(name).rglob("*.safetensors")):
            yield Finding(f"weights of {name}", "ok", "in the package")
        else:
            cure = f"python -m pip install --force-reinstall --no-deps {DISTRIBUTION}"
            yield Finding(f"weights of {name}", "fault", "not in the package", cure)
