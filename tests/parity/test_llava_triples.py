"""Any encoder with any causal language model: the joined model equals the language model's own forward and generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import mm
from mm.generation.loop import generate
from mm.generation.prompts import asked
from tests.parity.llava_folders import TOWERS, WIDTH, shaken, tokenizer

_SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 515}
_LLAMA = _SHAPE | {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}
_STATE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "vocab_size": 515, "state_size": 8, "conv_kernel": 4}
LANGUAGE: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mixtral": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 515},
    "mamba": _STATE,
    "mamba2": _STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "rwkv": {"hidden_size": WIDTH, "num_hidden_layers": 2, "vocab_size": 515, "attention_hidden_size": WIDTH,
             "context_length": 128},
    "jamba": _LLAMA | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
                       "expert_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
}  # fmt: skip
ENCODERS = ("clip", "siglip", "dinov2", "fastvit")
NEW = 6


def _save_tower(name: str, folder: Path) -> Path:
    import transformers

    square = {"height": 24, "width": 24}
    if name == "fastvit":
        import timm

        folder.mkdir()
        sizes = {"embed_dims": [16, 32, 64, 128], "layers": [1, 1, 1, 1]}
        made = timm.create_model("fastvit_t8", num_classes=0, **{k: tuple(v) for k, v in sizes.items()})
        pictures = {"input_size": [3, 64, 64], "mean": [0.0] * 3, "std": [1.0] * 3, "crop_pct": 1.0}
        config = {"architecture": "fastvit_t8", "num_classes": 0, "model_args": sizes, "pretrained_cfg": pictures}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(made.state_dict(), folder / "model.safetensors")
        return folder
    kinds = {"clip": ("CLIPVisionModel", "clip_vision_model"), "siglip": ("SiglipVisionModel", "siglip_vision_model"),
             "dinov2": ("Dinov2Model", "dinov2")}  # fmt: skip
    kind, model_type = kinds[name]
    sizes = {k: v for k, v in TOWERS["clip_vision_model"].items() if name != "dinov2" or k != "intermediate_size"}
    shaken(getattr(transformers, kind)(AutoConfig.for_model(model_type, **sizes))).save_pretrained(folder)
    if name == "siglip":
        transformers.SiglipImageProcessorPil(size=square, resample=3).save_pretrained(folder)
    else:
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=square).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    return {name: mm.load(_save_tower(name, home / name)) for name in ENCODERS}


@pytest.fixture(scope="module", params=list(LANGUAGE))
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language") / request.param
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        request.param, **LANGUAGE[request.param], bos_token_id=1, eos_token_id=3, pad_token_id=0
    )
    lm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim == 2 and "A_log" not in name:
                parameter.mul_(4)
    lm.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tower", ENCODERS)
def test_the_joined_model_equals_the_language_model_on_the_same_embeddings(
    encoders: dict[str, Any], language: Path, tower: str
) -> None:
    model = mm.join(encoder=encoders[tower], decoder=language, connector="mlp")
    speaker = model.speaker
    encoded = mm.encode(np.random.default_rng(3).integers(0, 256, (40, 31, 3), dtype=np.uint8), model=model)
    prompt = speaker.prompts(asked("what is it?"))
    embeds = speaker.embeds(prompt, [encoded.features])
    assert embeds.shape[1] == model.plan.out + sum(map(len, prompt.parts))

    theirs = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = theirs(inputs_embeds=embeds, use_cache=False).logits[0]
        written = theirs.generate(
            inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=NEW, do_sample=False,
        )[0].tolist()  # fmt: skip
    torch.testing.assert_close(speaker.logits(prompt, [encoded.features]), logits, atol=1e-4, rtol=1e-4)
    prefix, ids = speaker.read(prompt, [encoded])
    *_, (row,) = generate(speaker.decoder, prefix, ids, max_new_tokens=NEW)
    assert row.ids == (written[: written.index(3)] if 3 in written else written)
