"""From a model's name to a folder on this machine; only a hub id ever touches the network."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.checkpoints.names import Reference, parse
from mm.checkpoints.reading import PICKLES, no_pickles
from mm.encoders.build import Form
from mm.errors import CheckpointError, nearest
from mm.zoo import EMBEDDED, MODELS

_WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
_UNWANTED = (*(f"*{suffix}" for suffix in PICKLES), "onnx/*", "openvino/*", "coreml/*", "*.fp16.safetensors")
# The other library's weights in a repository that serves two.
_OTHERS: dict[Form | None, tuple[str, ...]] = {
    "open_clip": ("model.safetensors", "model-*.safetensors"),
    "timm": ("open_clip*.safetensors",),
    None: (),
}


@dataclass(frozen=True)
class Located:
    """revision: the resolved commit of a hub id, "local" for a folder.

    form: whose format to read where a folder holds several; None leaves it to the folder.
    """

    folder: Path
    revision: str
    form: Form | None = None


def locate(name: str | os.PathLike[str]) -> Located:
    """The folder that a name stands for (`mm.checkpoints.names`); what comes from a hub is fetched, unless the cache
    holds it.

    Raises:
        CheckpointError: no such model, the hub cannot be reached, or it has no weights that may be loaded.
    """
    found = parse(name)
    if found.kind == "embedded":
        return Located(EMBEDDED / found.name, "local")
    if found.kind == "folder":
        return Located(_folder(Path(found.name)), "local")
    if found.kind == "hub":
        return _snapshot(found.name, found.revision, None)
    if found.kind == "timm":
        return _snapshot(_timm_repository(found), found.revision, "timm")
    settings = _open_clip_settings(found)
    if found.file is not None:
        return Located(_staged(found, found.file, settings), "local", "open_clip")
    repository, _, file = settings.get("hf_hub", "").removesuffix("/").partition(":")
    if not repository:
        raise CheckpointError(f"open_clip:{found.name}/{found.tag}: only pickled weights are published; {no_pickles()}")
    return _snapshot("/".join(repository.split("/")[:2]), found.revision, "open_clip")


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix == ".safetensors" and path.is_file():
        raise CheckpointError(
            f"{path.name}: a file alone does not say what it is; pass its folder, or open_clip:NAME/TAG//{path.name}"
        )
    if path.suffix in PICKLES and path.is_file():
        raise CheckpointError(f"{path.name}: {no_pickles()}")
    raise CheckpointError(f"no model {path.name!r}: no such folder." + nearest(str(path), MODELS))


def _timm_repository(found: Reference) -> str:
    import timm
    from timm.models import get_pretrained_cfg

    known = timm.list_models(pretrained=True)
    settings = get_pretrained_cfg(found.name) if timm.is_model(found.name) else None
    repository = getattr(settings, "hf_hub_id", None)
    if settings is None or not repository:
        raise CheckpointError(f"timm has no published weights {found.name!r}." + nearest(found.name, known))
    name = f"{settings.architecture}.{settings.tag}" if settings.tag else settings.architecture
    return f"{repository}{name}" if repository.endswith("/") else repository


def _open_clip_settings(found: Reference) -> dict[str, Any]:
    """What open_clip knows of a pretrained tag: where it lies and how its pictures are prepared."""
    import open_clip

    names = open_clip.list_models()
    if found.name not in names:
        raise CheckpointError(f"open_clip has no model {found.name!r}." + nearest(found.name, names))
    tags = open_clip.list_pretrained_tags_by_model(found.name)
    if found.tag is None or found.tag not in tags:
        said = "no tag is given" if found.tag is None else f"no tag {found.tag!r}"
        listed = ", ".join(tags) or "none"
        raise CheckpointError(
            f"open_clip:{found.name}: {said}; expected open_clip:{found.name}/TAG with one of: {listed}."
            + nearest(found.tag or "", tags)
        )
    return open_clip.get_pretrained_cfg(found.name, found.tag)


def _snapshot(repository: str, revision: str | None, form: Form | None) -> Located:
    """The repository's files in the hub's own cache, fetched where they are missing; the bar goes to stderr."""
    from huggingface_hub import errors, snapshot_download

    at = f"{repository}@{revision}" if revision else repository
    elsewhere = (
        f"Where there is a network: `hf download {repository}{f' --revision {revision}' if revision else ''}"
        " --local-dir FOLDER`; then pass the folder as the model."
    )
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(_WANTED),
            ignore_patterns=[*_UNWANTED, *_OTHERS[form]],
        )
    except errors.GatedRepoError:
        raise CheckpointError(f"{at}: its owner asks you to accept terms on the hub, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        hint = nearest(f"hf:{repository}", (entry.reference for entry in MODELS.values()))
        raise CheckpointError(f"{at}: the hub has no such repository, or it is private.{hint}") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{at}: the repository has no such revision") from None
    # Which HTTP library it is depends on the hub library's version; only this name leads to its errors.
    except (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError, TimeoutError):  # pyright: ignore[reportPrivateImportUsage]
        raise CheckpointError(f"{at}: not in the cache, and the hub cannot be reached. {elsewhere}") from None
    except OSError as error:
        raise CheckpointError(f"{at}: cannot be stored ({error.strerror or type(error).__name__})") from None
    located = Located(Path(folder), Path(folder).name, form)
    if not any(located.folder.rglob("open_clip*.safetensors" if form == "open_clip" else "*.safetensors")):
        raise CheckpointError(f"{at}: no safetensors weights there, or the cache is not complete; {no_pickles()}")
    return located


_stages: dict[tuple[Any, ...], tempfile.TemporaryDirectory[str]] = {}
_staging = threading.Lock()


def _staged(found: Reference, file: Path, settings: dict[str, Any]) -> Path:
    """A folder in open_clip's format around one weight file: linked where the disk allows, else copied."""
    import open_clip

    if not file.is_file() or file.suffix != ".safetensors":
        raise CheckpointError(f"open_clip:{found.name}/{found.tag}: no safetensors file {file.name!r}")
    source = file.resolve()
    state = source.stat()
    key = (found.name, found.tag, source, state.st_mtime_ns, state.st_size)
    with _staging:
        if key not in _stages:
            stage = tempfile.TemporaryDirectory(prefix="mm-open-clip-")
            model = dict(open_clip.get_model_config(found.name) or {})
            if settings.get("quick_gelu"):
                model["quick_gelu"] = True
            pictures = {k: settings[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in settings}
            config = Path(stage.name, "open_clip_config.json")
            config.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": pictures}), "utf-8")
            weights = Path(stage.name, "open_clip_model.safetensors")
            try:
                os.link(source, weights)
            except OSError:
                shutil.copyfile(source, weights)
            _stages[key] = stage
        return Path(_stages[key].name)
