"""What `mm export` writes is loaded by transformers and gives the same; what cannot be said is refused unwritten."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import mm
from mm.checkpoints.llava_export import export_llava
from mm.cli.app import app
from mm.errors import CheckpointError, InputError
from mm.generation.writing import whole_text
from mm.joining import save_joined
from tests.parity.llava_folders import CHATML, TOWERS, WIDTH, processor, reference, saved, shaken, tokenizer

CHAT = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SHOWN = Image.fromarray(np.random.default_rng(5).integers(0, 256, (30, 44, 3), dtype=np.uint8))


def tower(folder: Path, kind: str = "CLIPVisionModel", model_type: str = "clip_vision_model") -> Path:
    import transformers

    sizes = TOWERS["clip_vision_model"]
    torch.manual_seed(0)
    shaken(getattr(transformers, kind)(AutoConfig.for_model(model_type, **sizes))).save_pretrained(folder)
    square = {"height": 24, "width": 24}
    if model_type == "siglip_vision_model":
        made: Any = transformers.SiglipImageProcessorPil(size=square, resample=3)
    else:
        made = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=square)
    made.save_pretrained(folder)
    return folder


def words(folder: Path, kind: str = "llama", template: str | None = CHAT, spare: int = 0, **more: Any) -> Path:
    """spare: rows of the table beyond the tokenizer's; below 0 the picture's mark has no row."""
    from mm.recipes.tokenizer import train_tokenizer

    reader = train_tokenizer() if spare < 0 else tokenizer()
    reader.chat_template = template
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4}
    elif kind != "gpt2":
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        kind, vocab_size=len(reader) + max(spare, 0), bos_token_id=1, eos_token_id=3, pad_token_id=0, **sizes, **more
    )
    torch.manual_seed(1)
    shaken(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}, {"layer": -2}),
    "tied, and the mark has no row": ({}, {"kind": "qwen2", "spare": -1, "tie_word_embeddings": True}, {"layer": -1}),
    "untied, and the mark has no row": ({}, {"kind": "mistral", "spare": -1}, {"layer": [-2, 0]}),
    "experts, padded pictures": ({}, {"kind": "mixtral", "num_local_experts": 2}, {"layer": 1, "pad": "square"}),
    "a base model": ({}, {"template": None, "spare": -1}, {"layer": -2}),
    "squashed pictures": (
        {"kind": "SiglipVisionModel", "model_type": "siglip_vision_model"}, {"kind": "qwen2"}, {"layer": -1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_the_reference_loads_what_was_written_and_gives_the_same(tmp_path: Path, case: str) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    sees, says, options = CASES[case]
    joined = mm.join(encoder=tower(tmp_path / "tower", **sees), decoder=words(tmp_path / "words", **says), **options)
    before = {key: value.clone() for key, value in joined.speaker.decoder.lm.state_dict().items()}
    receipt = export_llava(joined, tmp_path / "out")
    assert receipt.same_tokens == 1.0 and receipt.logits < 1e-5 and receipt.pixels < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in joined.speaker.decoder.lm.state_dict().items())

    model, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    reader = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}
    text = reader.apply_chat_template([turn], add_generation_prompt=True)
    inputs = reader(images=SHOWN, text=text, return_tensors="pt")
    with torch.inference_mode():
        made = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ours = mm.ask(SHOWN, "what is it?", model=joined, max_new_tokens=12)
    assert ours.text == whole_text(joined.speaker.decoder, made[made != 3].tolist())
    back = mm.load(tmp_path / "out")
    assert mm.ask(SHOWN, "what is it?", model=back, max_new_tokens=12).text == ours.text


@pytest.mark.parametrize("kind", ["LLaVA", "with a class token"])
def test_a_published_folder_survives_loading_and_writing(tmp_path: Path, kind: str) -> None:
    model = reference(text="qwen2", vision_feature_select_strategy="default" if kind == "LLaVA" else "full")
    folder = saved(tmp_path / "folder", model, processor("clip_vision_model", model.config, CHATML))
    receipt = export_llava(mm.load(folder), tmp_path / "out")
    assert receipt.same_tokens == 1.0 and receipt.logits < 1e-5
    told = [json.loads((home / "config.json").read_text()) for home in (folder, tmp_path / "out")]
    keys = ("vision_feature_layer", "vision_feature_select_strategy", "image_token_index", "projector_hidden_act")
    assert [told[0][key] for key in keys] == [told[1][key] for key in keys]


@pytest.mark.parametrize(
    ("sees", "says", "options", "reason"),
    [
        ({}, {"kind": "gpt2"}, {"layer": -2}, "its decoder is gpt2; expected one of llama"),
        ({}, {}, {"layer": None}, r"after the tower's last norm, the format those of blocks; layer=-1"),
        ({}, {}, {"layer": -2, "connector": "linear"}, "its connector is Linear; expected an MLP of two matrices"),
        ({}, {}, {"layer": -2, "connector": "mlp3x_gelu"}, "expected an MLP of two matrices"),
        ("tiny", {}, {"layer": 2, "connector": "mlp"}, "its image tower is TimmClipEncoder; expected one of clip"),
    ],
)
def test_what_the_format_cannot_say_is_refused_before_writing(
    tmp_path: Path, sees: Any, says: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    encoder = sees if isinstance(sees, str) else tower(tmp_path / "tower", **sees)
    more = {} if says.get("kind") == "gpt2" else {"max_position_embeddings": 512}
    joined = mm.join(encoder=encoder, decoder=words(tmp_path / "words", **says, **more), **options)
    with pytest.raises(InputError, match=f"llava-hf cannot hold this model: .*{reason}"):
        export_llava(joined, tmp_path / "out")
    assert "out" not in os.listdir(tmp_path)


def test_the_embedded_model_and_plain_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in front of the first mark"):
        export_llava(mm.load("tiny"), tmp_path / "out")
    with pytest.raises(InputError, match="has no speaker"):
        export_llava(mm.load(tower(tmp_path / "tower")), tmp_path / "out")


def test_nothing_stays_where_the_reference_disagrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mm.checkpoints.llava_export as writing

    joined = mm.join(encoder=tower(tmp_path / "tower"), decoder=words(tmp_path / "words"), layer=-2)
    real = writing._model
    monkeypatch.setattr(writing, "_model", lambda *given: real(*given[:3], -1, *given[4:]))
    with pytest.raises(CheckpointError, match="gives other numbers"):
        export_llava(joined, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["tower", "words"]


def test_the_command_prints_the_receipt_or_the_reason(tmp_path: Path) -> None:
    joined = mm.join(encoder=tower(tmp_path / "tower"), decoder=words(tmp_path / "words"), layer=-2)
    save_joined(joined, tmp_path / "model")
    runner = CliRunner()
    done = runner.invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["same_tokens"] == 1.0
    assert (tmp_path / "out" / "processor_config.json").is_file()
    again = runner.invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "out")])
    assert again.exit_code == 2 and "something already" in again.output
    wrong = runner.invoke(app, ["export", "tiny", str(tmp_path / "other"), "--format", "llava"])
    assert wrong.exit_code == 2 and "llava-hf" in wrong.output
