"""Names become folders: the right repository at the right commit, nothing fetched that was not asked for."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from mm.checkpoints.hub import Located, locate
from mm.checkpoints.names import Reference, parse
from mm.checkpoints.paths import plain_name
from mm.errors import CheckpointError, InputError
from mm.zoo import EMBEDDED

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and a hub that cannot be reached."""
    home = tmp_path / "hub"
    home.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home


def kept(cache: Path, repository: str, ref: str = "main", **files: bytes) -> Path:
    """A snapshot in the cache's own layout: links into blobs. Keys of `files` have __ for a dot."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for folder in (home / "refs", home / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "refs" / ref).write_text(COMMIT)
    for number, (name, data) in enumerate(files.items()):
        (home / "blobs" / str(number)).write_bytes(data)
        (snapshot / name.replace("__", ".")).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that has everything: what each download asked for."""
    calls: list[dict[str, Any]] = []

    def fake(repository: str, **options: Any) -> str:
        calls.append({"repository": repository, **options})
        folder = tmp_path / "snapshots" / COMMIT
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "open_clip_model.safetensors"):
            save_file({"a": torch.ones(1)}, folder / name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return calls


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", Reference("embedded", "tiny")),
        ("siglip2-base-patch16-224", Reference("hub", "google/siglip2-base-patch16-224")),
        ("clip-vit-b-32-laion2b", Reference("open_clip", "ViT-B-32", tag="laion2b_s34b_b79k")),
        ("hf:org/name", Reference("hub", "org/name")),
        ("hf:org/name@v1.0", Reference("hub", "org/name", "v1.0")),
        ("org/na.me-2@refs/pr/7", Reference("hub", "org/na.me-2", "refs/pr/7")),
        ("open_clip:ViT-B-32/openai@main", Reference("open_clip", "ViT-B-32", "main", "openai")),
        (
            "open_clip:ViT-B-32/openai///data/w.safetensors",
            Reference("open_clip", "ViT-B-32", None, "openai", Path("/data/w.safetensors")),
        ),
        ("timm:vit_tiny_patch16_224.augreg_in21k", Reference("timm", "vit_tiny_patch16_224.augreg_in21k")),
        ("./runs/one", Reference("folder", "./runs/one")),
        ("../one", Reference("folder", "../one")),
        (Path("org/name"), Reference("folder", "org/name")),
    ],
)
def test_a_name_says_where_the_model_lies(name: Any, expected: Reference) -> None:
    assert parse(name) == expected


def test_a_folder_that_exists_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name").kind == "folder"
    assert parse("hf:org/name").kind == "hub"


ESCAPES = [
    "../../x", "a/../b", "/abs/x", "C:/x", "C:\\x", "\\\\host\\s", "a\0b/c", "a\nb/c", "CON/x", "org/nul.txt",
    "org/COM1", "org/x.", "org/ x", "org//x", "./x", "org/" + "x" * 300, "org/x:stream", "org/x*",
]  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_leave_their_folder_on_any_system_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="no plain name|model"):
        plain_name(name, "model")
    for text in (f"hf:{name}", f"hf:org/name@{name}", f"open_clip:{name}/openai", f"timm:{name}"):
        with pytest.raises(CheckpointError):
            parse(text)


@pytest.mark.parametrize("name", ["plain", "a/b.c", "refs/pr/1", "model-00001-of-00002.safetensors", "console/x"])
def test_plain_names_pass(name: str) -> None:
    assert plain_name(name, "model") == name


@pytest.mark.parametrize("name", ["\\\\host\\share\\model", "//host/share", "./a\0b", "./CON", "/models/aux.txt"])
def test_paths_to_hosts_and_devices_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="a host or a device"):
        parse(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", 'Did you mean "tiny"'),
        ("siglip2-base-patch16-22", 'Did you mean "siglip2-base-patch16-224"'),
        ("hg:org/name", "'hg' is no source"),
        ("hf:name", "expected org/name"),
        ("hf:a/b/c", "expected org/name"),
        ("hf:org/name@", "no plain name"),
        ("", "expected a name"),
        ("open_clip:ViT-B-32/openai/more", "expected open_clip:NAME/TAG"),
        ("open_clip:ViT-B-32//w.safetensors", "the tag says how pictures are prepared"),
        ("timm:org/name", "expected timm:NAME"),
    ],
)
def test_a_malformed_or_unknown_name_is_told_what_was_expected(name: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(name)
    assert said in str(caught.value)


def test_what_is_no_name_is_an_input_error() -> None:
    with pytest.raises(InputError, match="got int"):
        parse(3)  # type: ignore[arg-type]


def test_folders_and_the_embedded_model_open_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert locate("tiny") == Located(EMBEDDED / "tiny", "local")
    assert locate(str(tmp_path)) == locate(tmp_path) == Located(tmp_path, "local")


def test_paths_that_are_no_folder_say_what_to_pass(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    (tmp_path / "w.pt").write_bytes(b"x")
    for name, said in (("none", "no such folder"), ("w.safetensors", "open_clip:NAME/TAG//"), ("w.pt", "Pickled")):
        with pytest.raises(CheckpointError) as caught:
            locate(str(tmp_path / name))
        assert said in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_download_asks_for_plain_files_and_records_the_commit(asked: list[dict[str, Any]]) -> None:
    found = locate("hf:org/name@main")
    assert found.revision == COMMIT and found.folder.name == COMMIT
    (call,) = asked
    assert (call["repository"], call["revision"]) == ("org/name", "main")
    assert {"*.safetensors", "*.json", "*.txt", "*.model", "README.md"} <= set(call["allow_patterns"])
    assert {"*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"} <= set(call["ignore_patterns"])
    assert not any(pattern.endswith(".py") for pattern in call["allow_patterns"])


def test_names_of_the_libraries_lead_to_their_repositories(asked: list[dict[str, Any]]) -> None:
    assert locate("open_clip:ViT-B-16-SigLIP/webli").form == "open_clip"
    assert locate("timm:vit_tiny_patch16_224.augreg_in21k").form == "timm"
    assert locate("timm:vit_base_patch16_224").form == "timm"
    assert locate("siglip2-base-patch16-224").form is None
    assert [call["repository"] for call in asked] == [
        "timm/ViT-B-16-SigLIP",
        "timm/vit_tiny_patch16_224.augreg_in21k",
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "google/siglip2-base-patch16-224",
    ]
    assert (
        "open_clip*.safetensors" in asked[1]["ignore_patterns"] and "model.safetensors" in asked[0]["ignore_patterns"]
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-B-32", "no tag is given; expected open_clip:ViT-B-32/TAG with one of: openai, laion400m_e31"),
        ("open_clip:ViT-B-32/openaii", 'Did you mean "openai"'),
        ("open_clip:ViT-B-33/openai", 'Did you mean "ViT-B-32"'),
        ("timm:vit_base_patch16_225", "timm has no published weights"),
    ],
)
def test_what_a_library_does_not_have_gets_the_nearest(name: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    assert said in str(caught.value)


def test_without_a_network_the_cache_serves_and_gives_the_commit(cache: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    weights = (tmp_path / "w.safetensors").read_bytes()
    snapshot = kept(cache, "org/name", config__json=b"{}", model__safetensors=weights)
    for name in ("hf:org/name", "org/name@main", f"org/name@{COMMIT}"):
        assert locate(name) == Located(snapshot, COMMIT)


def test_without_network_and_cache_the_message_says_what_to_do(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate("hf:org/name@v2")
    said = str(caught.value)
    assert "org/name@v2: not in the cache" in said and "hf download org/name --revision v2" in said
    assert "pass the folder" in said and str(cache) not in said


def test_a_repository_without_safetensors_gets_the_hint(cache: Path) -> None:
    kept(cache, "org/old", config__json=b"{}", pytorch_model__bin=b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"org/old: no safetensors .*never loaded; convert them"):
        locate("hf:org/old")


def _hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "https://somewhere/api")
    return error


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _hub_error(errors.GatedRepoError), "accept terms"),
        (lambda: _hub_error(errors.RepositoryNotFoundError), "no such repository"),
        (lambda: _hub_error(errors.RevisionNotFoundError), "no such revision"),
        (lambda: _hub_error(errors.HTTPError), "cannot be reached"),
        (lambda: errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
        (lambda: ConnectionResetError(104, "reset"), "cannot be reached"),
        (lambda: OSError(28, "No space left on device"), "cannot be stored (No space left on device)"),
    ],
)
def test_each_fault_of_the_hub_has_its_own_message(
    make: Callable[[], Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise make()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        locate("hf:google/siglip2-base-patch16-22")
    assert said in str(caught.value) and "https" not in str(caught.value)


def test_one_file_of_open_clip_weights_gets_the_settings_of_its_tag(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "mine.safetensors")
    found = locate(f"open_clip:ViT-B-32/openai//{tmp_path}/mine.safetensors")
    assert (found.revision, found.form) == ("local", "open_clip")
    config = json.loads((found.folder / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["patch_size"] == 32 and config["model_cfg"]["quick_gelu"] is True
    assert config["preprocess_cfg"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    weights = found.folder / "open_clip_model.safetensors"
    assert weights.read_bytes() == (tmp_path / "mine.safetensors").read_bytes() and not weights.is_symlink()
    assert locate(f"open_clip:ViT-B-32/openai//{tmp_path}/mine.safetensors") == found
    with pytest.raises(CheckpointError, match=r"no safetensors file 'none\.safetensors'"):
        locate(f"open_clip:ViT-B-32/openai//{tmp_path}/none.safetensors")
