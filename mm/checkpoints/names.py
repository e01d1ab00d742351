"""What a model's name says: an embedded model, one of the zoo, a hub id, a library's own name, or a folder.

Parsing looks at the name and at whether a folder of that name exists; it reads no file and reaches no network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mm.checkpoints.paths import is_device, plain_name
from mm.errors import CheckpointError, InputError, nearest
from mm.zoo import MODELS, PHOTO_NAME, no_photo, reference

Kind = Literal["embedded", "folder", "hub", "open_clip", "timm"]

FORMS = "a name of `mm models`, hf:org/name@revision, open_clip:NAME/TAG, timm:NAME, or a folder"

_SCHEMES = ("hf", "open_clip", "timm")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A parsed name.

    name: of the embedded model, `org/name` of a hub, a library's name of an architecture, or a path.
    revision: a branch, tag or commit on the hub. tag: of open_clip's pretrained weights.
    file: weights of your own that stand for the download of an open_clip name.
    """

    kind: Kind
    name: str
    revision: str | None = None
    tag: str | None = None
    file: Path | None = None


def parse(name: str | os.PathLike[str]) -> Reference:
    """The reference that a name stands for.

    A string is a path where it starts with `.`, `/` or `~` or names a folder that exists; `org/name` is a hub id
    otherwise. A `pathlib.Path` is always a path.

    Raises:
        CheckpointError: the name is malformed or unknown; the message has the nearest valid one.
        InputError: not a string or a path.
    """
    if isinstance(name, os.PathLike):
        return _folder(os.fspath(name))
    if not isinstance(name, str):
        raise InputError(f"model: expected {FORMS}, got {type(name).__name__}")
    if name in MODELS:
        source = reference(name)
        return parse(source) if source else Reference("embedded", name)
    if name == PHOTO_NAME:
        raise no_photo()
    scheme, colon, rest = name.partition(":")
    if colon and scheme in _SCHEMES:
        return {"hf": _hub, "open_clip": _open_clip, "timm": _timm}[scheme](rest)
    if _looks_like_path(name):
        return _folder(name)
    if colon and len(scheme) > 1:
        raise CheckpointError(f"no model {name!r}: {scheme!r} is no source; expected {FORMS}." + nearest(name, MODELS))
    if _HUB_ID.fullmatch(name.partition("@")[0]):
        return _hub(name)
    raise CheckpointError(f"no model {name!r}: expected {FORMS}." + nearest(name, MODELS))


def _looks_like_path(name: str) -> bool:
    if name.startswith((".", "/", "~", "\\")) or "\0" in name:
        return True
    return os.path.isdir(name) or (os.name == "nt" and re.match(r"[A-Za-z]:[\\/]|[^:]*\\", name) is not None)


def _folder(path: str) -> Reference:
    """A path of the caller's, who may climb and be absolute; but it names no host and no device."""
    parts = [part for part in re.split(r"[\\/]", path) if part]
    remote = path.startswith(("\\\\", "//"))
    if remote or "\0" in path or any(map(is_device, parts)):
        raise CheckpointError(f"no model {path!r}: this names a host or a device, not a folder")
    return Reference("folder", os.path.expanduser(path))


def _split_revision(text: str, what: str) -> tuple[str, str | None]:
    name, at, revision = text.partition("@")
    return name, plain_name(revision, f"{what}, revision") if at else None


def _hub(text: str) -> Reference:
    name, revision = _split_revision(text, f"hf:{text}")
    plain_name(name, "hub id")
    if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        raise CheckpointError(f"hub id {text!r}: expected org/name or org/name@revision." + nearest(text, MODELS))
    return Reference("hub", name, revision)


def _open_clip(text: str) -> Reference:
    """`NAME/TAG`, then `@revision` of its hub repository or `//path/weights.safetensors` in place of the download."""
    head, slashes, file = text.partition("//")
    head, revision = _split_revision(head, f"open_clip:{text}")
    name, _, tag = head.partition("/")
    plain_name(name, "open_clip")
    if tag:
        plain_name(tag, f"open_clip:{name}, tag")
    if "/" in tag:
        raise CheckpointError(f"open_clip:{text}: expected open_clip:NAME/TAG, then //file.safetensors if you have one")
    if slashes and not (file and tag):
        raise CheckpointError(
            f"open_clip:{text}: expected open_clip:NAME/TAG//file.safetensors; the tag says how pictures are prepared"
        )
    return Reference("open_clip", name, revision, tag or None, Path(os.path.expanduser(file)) if slashes else None)


def _timm(text: str) -> Reference:
    name, revision = _split_revision(text, f"timm:{text}")
    plain_name(name, "timm")
    if "/" in name:
        raise CheckpointError(f"timm:{text}: expected timm:NAME or timm:NAME.TAG")
    return Reference("timm", name, revision)
