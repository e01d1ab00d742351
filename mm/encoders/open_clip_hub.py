"""What open_clip's own lists say: configurations by name, and where published weights and tokenizers lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from mm.errors import CheckpointError, nearest

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class HubWeights:
    """Where open_clip says that published weights lie."""

    repo: str
    file: str


def hub_weights(name: str, tag: str) -> HubWeights:
    """The repository and safetensors file of `open_clip:NAME/TAG`. Nothing is fetched.

    Raises:
        CheckpointError: open_clip knows no such name or tag, or has pickled weights only.
    """
    repo, _, file = str(_tag_config(name, tag).get("hf_hub", "")).rpartition("/")
    if not repo:
        raise CheckpointError(f"open_clip: {name}/{tag} is published as a pickled file only, which is never loaded")
    return HubWeights(repo, str(Path(file).with_suffix(".safetensors")) if file else WEIGHTS[0])


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    named_config(name)
    found = get_pretrained_cfg(name, tag)
    if not found:
        tags = list_pretrained_tags_by_model(name)
        known = ", ".join(tags) or "none"
        raise CheckpointError(f"open_clip: {name} has no weights {tag!r}; published: {known}.{nearest(tag, tags)}")
    return found


def trained_with(name: str, tag: str | None) -> tuple[bool, dict[str, Any]]:
    """QuickGELU or not, and the preprocessing, of published weights; open_clip only warns of a wrong activation."""
    tags = [tag] if tag else list_pretrained_tags_by_model(name)
    found = []
    for each in tags:
        config = _tag_config(name, each)
        said = bool(config.get("quick_gelu", False)), merge_preprocess_dict(PreprocessCfg(), config)
        found += [said] if said not in found else []
    if len(found) > 1:
        raise CheckpointError(
            f"open_clip: the weights of {name} differ in preprocessing or activation; say which: {', '.join(tags)}"
        )
    return found[0] if found else (False, {})


def tokenizer_repo(name: str) -> str | None:
    """The repository of the tokenizer that this name needs; None where open_clip's own will do."""
    return named_config(name)["text_cfg"].get("hf_tokenizer_name")


def named_config(name: str) -> dict[str, Any]:
    known = open_clip.list_models()
    config = open_clip.get_model_config(name) if name in known else None
    if config is None:
        raise CheckpointError(f"open_clip has no model {name!r}.{nearest(name, known)}")
    return config
