"""The rules of the house: what is packed, who imports whom, and what an import may load."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mm

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("kernels", "connectors", "tasks")
FACE = [
    "Chat",
    "Sampling",
    "ask",
    "caption",
    "classify",
    "detect",
    "embed",
    "encode",
    "errors",
    "fit",
    "generate",
    "join",
    "load",
    "matte",
    "segment",
]
HEAVY = ["torch", "torchvision", "transformers", "diffusers", "open_clip", "timm", "gradio", "scipy"]

# The import order, lowest first; the longest prefix decides. A module imports its own layer and those below.
# The face, the command line, the measurements and the recipes stand on top of the tasks.
LAYERS = {"mm.kernels": 0, "mm.connectors": 1, "mm": 2, "mm.tasks": 3, "demos": 5}
LAYERS |= dict.fromkeys(
    ("mm.__init__", "mm.__main__", "mm.bench", "mm.cli", "mm.evaluation", "mm.recipes", "mm.training"), 4
)


def source_files() -> Iterator[tuple[str, Path]]:
    """Every Python file of the library and the demos, as (dotted module name, path)."""
    for top, prefix in (("mm", ""), *((name, "mm.") for name in LINKED), ("demos", "")):
        for folder, folders, files in os.walk(ROOT / top):  # Does not follow the links.
            folders[:] = [name for name in folders if name != "__pycache__"]
            for path in (Path(folder, file) for file in sorted(files) if file.endswith(".py")):
                yield prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it; ``from mm import x`` counts as the face."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ("mm.__init__" if each.name == "mm" else each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield "mm.__init__" if node.module == "mm" else node.module or ""


def layer(module: str) -> int | None:
    prefixes = [known for known in LAYERS if module == known or module.startswith(f"{known}.")]
    return LAYERS[max(prefixes, key=len)] if prefixes else None


def test_imports_run_one_way_and_nobody_inside_imports_the_face():
    wrong = []
    for module, path in source_files():
        own = layer(module)
        assert own is not None
        for target in imports(path):
            above = layer(target)
            if above is not None and (above > own or (target == "mm.__init__" and own < 5)):
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_nobody_imports_the_linked_folders_by_their_bare_names():
    wrong = [path for _, path in source_files() for name in imports(path) if name.partition(".")[0] in LINKED]
    assert not wrong


def test_linked_folders_have_links_and_no_init():
    for name in LINKED:
        link = ROOT / "mm" / name
        assert link.is_symlink() and os.readlink(link) == f"../{name}"
        assert (ROOT / name).is_dir() and not (ROOT / name / "__init__.py").exists()


def test_every_file_can_be_read_in_one_sitting():
    files = [path for _, path in source_files()] + sorted((ROOT / "tests").rglob("*.py"))
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_every_file_says_what_it_is():
    mute = [path for _, path in source_files() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not mute


def test_the_face_is_pinned():
    assert sorted(set(mm.__all__) - {"__version__"}) == FACE
    assert set(FACE) <= set(dir(mm))
    with pytest.raises(AttributeError, match="no attribute 'caption_all'"):
        mm.caption_all  # noqa: B018


def test_the_names_that_type_checkers_see_are_the_face():
    tree = ast.parse((ROOT / "mm" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    lines = [node for node in block.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [each.asname or each.name for node in lines for each in node.names]
    assert sorted(names) == FACE


@pytest.mark.parametrize("name", FACE)
def test_every_name_of_the_face_arrives(name: str):
    value = getattr(mm, name)
    assert value.__name__ == ("mm.errors" if name == "errors" else name)


@pytest.mark.parametrize(
    "code",
    ["import mm", "import sys; from mm.cli import app; sys.argv = ['mm', '--help']; app.main()"],
    ids=["import mm", "mm --help"],
)
def test_starting_loads_nothing_heavy(code: str):
    found = f"sorted(set({HEAVY}) & sys.modules.keys())"
    report = f"import atexit, sys; atexit.register(lambda: print('LOADED', {found}))"
    answer = subprocess.run(
        [sys.executable, "-c", f"{report}\n{code}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.rstrip().endswith("LOADED []")
    assert answer.stderr == ""


def expected_contents() -> set[str]:
    """What a wheel holds beside its metadata: the library's code, its data, and nothing else."""
    names = {module.replace(".", "/") + ".py" for module, _ in source_files() if not module.startswith("demos")}
    for folder in ("results/fonts", "weights"):
        data = (path for path in (ROOT / "mm" / folder).rglob("*") if path.is_file())
        names |= {path.relative_to(ROOT).as_posix() for path in data if "__pycache__" not in path.parts}
    return names | {"mm/py.typed", "mm/kernels/row.cpp"}


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds with the setuptools at hand, without a network and without an environment of its own."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    target.mkdir()
    answer = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    return target / answer.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One wheel from the checkout and one from the sdist of the checkout."""
    home = tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns(".*", "out", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, home / "checkout", symlinks=True, ignore=ignored)
    sdist = build("sdist", home / "checkout", home / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(home, filter="data")
    unpacked = home / sdist.name.removesuffix(".tar.gz")
    return {
        "checkout": build("wheel", home / "checkout", home / "from-checkout"),
        "sdist": build("wheel", unpacked, home / "from-sdist"),
    }


@pytest.mark.parametrize("source", ["checkout", "sdist"])
def test_a_wheel_holds_the_library_and_nothing_else(wheels: dict[str, Path], source: str):
    with zipfile.ZipFile(wheels[source]) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - metadata == expected_contents()
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_a_wheel_runs_without_the_checkout(wheels: dict[str, Path], tmp_path: Path):
    with zipfile.ZipFile(wheels["checkout"]) as archive:
        archive.extractall(tmp_path / "site")
    code = "import mm, mm.kernels, mm.connectors, mm.tasks; print(mm.__file__, mm.__version__)"
    for arguments in (["-c", code], ["-m", "mm", "--version"]):
        answer = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.rstrip().endswith(mm.__version__)
        assert str(ROOT) not in answer.stdout


def test_the_packages_listed_are_the_packages_there():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = {module.rpartition(".")[0] for module, _ in source_files() if not module.startswith("demos")}
    assert sorted(there) == settings["tool"]["setuptools"]["packages"]
