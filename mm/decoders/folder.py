"""Language models from folders of transformers: weights, tokenizer and chat template, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mm.checkpoints.reading import check_folder, load_weights, read_json
from mm.decoders.base import Decoder
from mm.decoders.build import build_decoder
from mm.decoders.layout import fits
from mm.encoders.build import Dtype
from mm.encoders.transformers_weights import build_model, refusing
from mm.errors import CheckpointError
from mm.generation.prompts import Plain, Prompts, Templated, begin_ids
from mm.quick import quicken

_MAX_TEMPLATE = 1_000_000  # bytes


def load_decoder(folder: Path, *, dtype: Dtype = "float32") -> Decoder:
    """The decoder of a folder, in evaluation mode and frozen. Nothing touches the network.

    Raises:
        CheckpointError: no causal language model, or files that are damaged or do not fit together.
    """
    check_folder(folder)
    lm = language_model(folder, read_config(folder), load_weights(folder), dtype=dtype)
    return build_decoder(lm, load_tokenizer(folder)).eval().requires_grad_(False)


def read_config(folder: Path) -> Any:
    """The configuration of a folder, by the class that transformers has for it."""
    from transformers import AutoConfig

    with refusing(folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def causal_class(config: Any, name: str) -> Any:
    """The model class with a language head for this configuration.

    Raises:
        CheckpointError: transformers has none: an encoder, or an encoder with a decoder.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(f"{name}: {config.model_type!r} is no causal language model, so it cannot write")
    return MODEL_FOR_CAUSAL_LM_MAPPING[kind]


def language_model(folder: Path, config: Any, tensors: dict[str, Tensor], *, dtype: Dtype) -> Any:
    """The model of these tensors, and the ends of answers that the folder's `generation_config.json` tells.

    tensors: by the keys of the class with the language head.
    """
    from transformers import GenerationConfig

    lm = build_model(folder, causal_class(config, folder.name), config, tensors, dtype=dtype)
    if (folder / "generation_config.json").is_file():
        with refusing(folder):
            lm.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    if not fits(lm):
        quicken(lm)
    return lm


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with refusing(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The template that the folder itself holds, in any of the places where it is kept; None for a base model."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        if plain.stat().st_size > _MAX_TEMPLATE:
            raise CheckpointError(f"{plain.name}: a template of more than {_MAX_TEMPLATE:,} bytes")
        return plain.read_text("utf-8")
    for file in ("chat_template.json", "processor_config.json"):
        found = read_json(folder / file).get("chat_template") if (folder / file).is_file() else None
        if isinstance(found, str):
            return found
    own = getattr(tokenizer, "chat_template", None)
    return own.get("default") if isinstance(own, dict) else own


def prompts_for(tokenizer: Any, template: str | None, *, image_token: str | None = None) -> Prompts:
    """How this decoder is asked: by its template, or as a base model.

    image_token: its spelling in a model that was published with pictures. Its processor then puts the beginning in
    front of a rendered text; a tokenizer with a template of its own puts nothing there.
    """
    begin = begin_ids(tokenizer)
    if template is None:
        return Plain(tokenizer, begin, image_token)
    return Templated(tokenizer, template, image_token, begin if image_token else ())
