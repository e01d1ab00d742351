"""Joining by name: what fits is known before any weight is read, and a saved model is the model that was saved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mm
from mm.checkpoints.loading import load
from mm.errors import CheckpointError, InputError
from mm.generation.prompts import asked
from mm.joining import Plan, save_joined
from tests.parity.llava_folders import TOWERS, WIDTH, shaken, tokenizer

WORDS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An image tower and a language model, in folders of their own."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    home = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    shaken(CLIPVisionModel(CLIPVisionConfig(**TOWERS["clip_vision_model"]))).save_pretrained(home / "tower")
    square = {"height": 24, "width": 24}
    CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=square).save_pretrained(home / "tower")
    words = tokenizer(WORDS)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(words), max_position_embeddings=96, bos_token_id=1, eos_token_id=3,
    )  # fmt: skip
    shaken(LlamaForCausalLM(config)).save_pretrained(home / "words")
    words.save_pretrained(home / "words")
    return home / "tower", home / "words"


def without_weights(folder: Path, target: Path) -> Path:
    """A copy in which nobody can read a weight."""
    target.mkdir()
    for path in folder.iterdir():
        data = b"no weights" if path.suffix == ".safetensors" else path.read_bytes()
        (target / path.name).write_bytes(data)
    return target


def logits(model: Any, question: str = "what is it?") -> torch.Tensor:
    encoded = mm.encode(PIXELS, model=model)
    return model.speaker.logits(model.speaker.prompts(asked(question)), [encoded.features])


def test_a_plan_says_what_fits_and_reads_no_weight(parts: tuple[Path, Path], tmp_path: Path) -> None:
    tower, words = (without_weights(part, tmp_path / part.name) for part in parts)
    plan = mm.join(encoder=tower, decoder=words, connector="mlp", layer=-2, build=False)
    assert isinstance(plan, Plan)
    assert (plan.tower.kind, plan.tower.tokens, plan.width) == ("clip_vision_model", 16, 32)
    assert (plan.out, plan.parameters) == (16, 2 * (32 * 32 + 32))
    assert (plan.language.kind, plan.language.width, plan.context_left) == ("llama", 32, 80)
    assert plan.fresh == ("connector",)
    text = str(plan)
    for said in ("16 (4 x 4) of width 32, blocks -2", "mlp: 16 tokens of width 32, 2,112 parameters", "(llama)",
                 "its own chat template", "80 of 96 tokens left", 'mm.fit(model, data, stage="align")'):  # fmt: skip
        assert said in text
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        plan.build()


def test_regions_are_found_by_the_encoder_s_own_detection_head(parts: tuple[Path, Path]) -> None:
    model = mm.join(encoder="tiny", decoder=parts[1], connector="regions", regions=3)
    detector, connector = load("tiny").detector, model.speaker.connector
    assert model.plan.out == 7 and detector is not None
    theirs = detector.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in connector.finder.state_dict().items())
    with pytest.raises(InputError, match="'regions' finds things as a detection head"):
        mm.join(encoder=parts[0], decoder=parts[1], connector="regions")


def test_the_plan_s_figures_are_those_of_the_model_that_is_built(parts: tuple[Path, Path]) -> None:
    model = mm.join(encoder=parts[0], decoder=parts[1], connector="resampler", layer=[-2, 0], latents=5, depth=1)
    plan, speaker = model.plan, model.speaker
    encoded = mm.encode(PIXELS, model=model)
    assert speaker.connected(encoded.features).shape == (1, plan.out, plan.language.width) == (1, 5, 32)
    assert plan.width == 64 and sum(p.numel() for p in speaker.connector.parameters()) == plan.parameters
    assert speaker.decoder.context == plan.language.context
    assert sum(p.numel() for p in speaker.decoder.lm.parameters()) == plan.language.parameters
    caption = mm.caption(encoded, model=model, max_new_tokens=3)
    assert "random weights" in caption.source.warnings[0]
    assert caption.source.licence == "unknown" and len(caption.source.sha256) == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connector": "mpl"}, 'unknown connector .mpl.*Did you mean "mlp"'),
        ({"connector": "pool", "windows": 2}, 'no setting .windows.*Did you mean "window"'),
        ({"connector": "pixel-shuffle", "factor": 3}, "connector: .*4 x 4"),
        ({"layer": 3}, r"blocks 0 to 2 \(or -3 to -1\), got 3"),
        ({"layer": -4}, "got -4"),
        ({"connector": "resampler", "latents": 90}, "a picture is 90 tokens .* reads 96, which leaves no room"),
        ({"pad": "circle"}, "square"),
        ({"dtype": "float31"}, "float32"),
        ({"weights": "nothing.bin"}, "expected a safetensors file, got 'nothing.bin'"),
    ],
)
def test_what_cannot_be_joined_is_refused_with_the_reason(parts: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        mm.join(**{"encoder": parts[0], "decoder": parts[1], "build": False} | change)


def test_parts_that_are_no_encoder_or_decoder_are_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(d_model=32, num_layers=1, num_heads=4, d_ff=48, vocab_size=64).save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="'t5' is no causal language model"):
        mm.join(encoder=parts[0], decoder=tmp_path / "t5", build=False)
    with pytest.raises(InputError, match="'clip_vision_model' is no causal language model"):
        mm.join(encoder=parts[0], decoder=parts[0], build=False)
    with pytest.raises(CheckpointError, match="'llama' is no image tower"):
        mm.join(encoder=parts[1], decoder=parts[1], build=False)
    with pytest.raises(CheckpointError, match='Did you mean "tiny"'):
        mm.join(encoder="tinny", decoder=parts[1], build=False)


def test_random_weights_depend_on_the_seed_alone(parts: tuple[Path, Path]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = mm.join(encoder=parts[0], decoder=parts[1])
    assert torch.equal(torch.rand(3), expected)
    again, other = (mm.join(encoder=parts[0], decoder=parts[1], seed=seed) for seed in (0, 1))
    assert torch.equal(logits(first), logits(again)) and not torch.equal(logits(first), logits(other))


def test_one_encoder_can_stand_in_several_models(parts: tuple[Path, Path]) -> None:
    tower = mm.load(parts[0])
    one, two = (mm.join(encoder=tower, decoder=parts[1], layer=layer) for layer in (-2, None))
    assert one.encoder is not tower.encoder and one.encoder.tower is tower.encoder.tower
    assert (tower.spec.layers, one.spec.layers, two.spec.layers) == ((), (-2,), ())
    assert not torch.equal(logits(one), logits(two))


@pytest.mark.parametrize("kind", ["inside", "by name"])
@pytest.mark.parametrize("encoder", ["tower", "tiny"])
def test_a_saved_model_is_the_same_model(parts: tuple[Path, Path], tmp_path: Path, kind: Any, encoder: str) -> None:
    name = parts[0] if encoder == "tower" else "tiny"
    options: dict[str, Any] = {"connector": "pool", "window": 2, "layer": 2, "pad": "square"}
    model = mm.join(encoder=name, decoder=parts[1], **options)
    with torch.no_grad():
        next(model.speaker.connector.parameters()).mul_(1.1)
    save_joined(model, tmp_path / "saved", parts=kind)
    again = mm.load(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model)) and again.plan is None
    assert again.speaker.notes == model.speaker.notes and again.speaker.prompts.style == "template"
    assert again.spec.preprocessing == model.spec.preprocessing
    assert (tmp_path / "saved" / "encoder").exists() == (kind == "inside")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]  # nothing unfinished is left
    with pytest.raises(InputError, match="something already"):
        save_joined(model, tmp_path / "saved")


def test_parts_by_name_must_have_the_weights_they_had(parts: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    words = Path(shutil.copytree(parts[1], tmp_path / "words"))
    save_joined(mm.join(encoder=parts[0], decoder=words), tmp_path / "saved", parts="by name")
    tensors = load_file(words / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, words / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="not the weights that the model was joined with"):
        mm.load(tmp_path / "saved")


@pytest.mark.parametrize("fault", ["key", "extra", "setting", "connector", "climbs"])
def test_a_damaged_folder_is_refused(parts: tuple[Path, Path], tmp_path: Path, fault: str) -> None:
    save_joined(mm.join(encoder=parts[0], decoder=parts[1]), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    tensors = load_file(tmp_path / "saved" / "joined.safetensors")
    if fault == "key":
        del tensors["connector.linear_1.bias"]
    elif fault == "extra":
        tensors["connector.more"] = torch.zeros(1)
    elif fault == "setting":
        config["speaker"]["stile"] = config["speaker"].pop("style")
    elif fault == "connector":
        config["speaker"]["connector"] = "mpl"
    else:
        config["speaker"]["decoder"] = {"inside": "../words"}
    save_file(tensors, tmp_path / "saved" / "joined.safetensors", {"format": "pt"})
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    said = {"key": "missing linear_1.bias", "extra": "unexpected more", "setting": 'Did you mean "style"',
            "connector": 'Did you mean "mlp"', "climbs": "no plain name"}[fault]  # fmt: skip
    with pytest.raises(CheckpointError, match=said):
        mm.load(tmp_path / "saved")


def test_published_weights_of_a_connector_leave_nothing_to_train(parts: tuple[Path, Path], tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    theirs = {f"model.mm_projector.{i}.{leaf}": torch.randn((32, 32) if leaf == "weight" else (32,), generator=chance)
              for i in (0, 2) for leaf in ("weight", "bias")}  # fmt: skip
    save_file(theirs, tmp_path / "mm_projector.safetensors")
    model = mm.join(encoder=parts[0], decoder=parts[1], weights=tmp_path / "mm_projector.safetensors")
    assert model.plan.fresh == () and model.speaker.notes == ()
    assert torch.equal(model.speaker.connector.linear_2.weight, theirs["model.mm_projector.2.weight"])
    assert "nothing has to be" in str(model.plan)


def test_only_what_was_joined_here_can_be_saved_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not made by mm.join"):
        save_joined(mm.load("tiny"), tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_the_plan_of_a_timm_tower_is_what_loading_gives(tmp_path: Path) -> None:
    import timm

    tower = tmp_path / "vit"
    tower.mkdir()
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 48}
    made = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)  # type: ignore[arg-type]
    pictures = {"input_size": [3, 48, 48], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": sizes, "pretrained_cfg": pictures}
    (tower / "config.json").write_text(json.dumps(config))
    save_file(made.state_dict(), tower / "model.safetensors")
    plan = mm.join(encoder=tower, decoder="tiny", layer=-2, build=False)
    assert (plan.tower.input_hw, plan.grid, plan.width) == ((48, 48), (3, 3), 32)
    model = plan.build()
    features = mm.encode(PIXELS, model=model).features
    assert features.layers[-2].shape == (1, 9, 32) and features.layer_grids[-2] == (3, 3)
