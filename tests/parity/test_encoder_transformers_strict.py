"""What a transformers folder must hold, what it may not, and what a caller's text can never do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mm.encoders.build import load_encoder
from mm.errors import CheckpointError, InputError, MissingExtraError
from tests.parity import encoder_transformers_folders as make

Weights = dict[str, torch.Tensor]
PROJECTION = "visual_projection.weight"


def changed(folder: Path, change: Callable[[Weights], object]) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


BROKEN: dict[str, tuple[Callable[[Weights], object], str]] = {
    "missing": (lambda w: w.pop(PROJECTION), f"missing {PROJECTION}"),
    "left over": (lambda w: w.update(extra=torch.ones(2)), "unexpected extra"),
    "shape": (lambda w: w.update({PROJECTION: torch.ones(20, 31)}), r"should be \(20, 32\).*is \(20, 31\)"),
    "quantised": (lambda w: w.update({PROJECTION: torch.ones(20, 32, dtype=torch.int8)}), "quantised"),
    "nan": (lambda w: w[PROJECTION].fill_(torch.nan), f"NaN or infinity in {PROJECTION}"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(changed(make.clip(tmp_path), change))
    assert str(tmp_path) not in str(caught.value)


def test_an_image_tower_refuses_keys_of_nothing_it_knows(tmp_path: Path) -> None:
    make.tower(tmp_path, "CLIPVision")
    changed(tmp_path, lambda w: w.update({"text_model.odd": torch.ones(2)}))
    load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="unexpected head.weight"):
        load_encoder(changed(tmp_path, lambda w: w.update({"head.weight": torch.ones(2)})))


def test_a_configuration_that_transformers_refuses_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = make.clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        load_encoder(folder)


def test_a_folder_without_a_tokenizer_is_refused_without_its_path(tmp_path: Path) -> None:
    folder = make.clip(tmp_path)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer") as caught:
        load_encoder(folder)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(("absent", "package"), [("sentencepiece", "sentencepiece"), ("google", "protobuf")])
def test_a_sentencepiece_model_alone_names_the_package_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, package: str
) -> None:
    folder = make.siglip(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith(absent) else object())
    with pytest.raises(MissingExtraError, match=f"pip install {package}"):
        load_encoder(folder)


def test_an_activation_of_the_configuration_is_the_one_that_runs(tmp_path: Path) -> None:
    outputs = []
    pixels = torch.randn(1, 3, 32, 32)
    for name in ("quick_gelu", "gelu"):
        folder = make.clip(tmp_path / name, hidden_act=name)
        ours = load_encoder(folder).encoder.encode_image(pixels).pooled
        theirs = transformers.CLIPModel.from_pretrained(folder).eval().get_image_features(pixels).pooler_output
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        outputs.append(ours)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_training_mode_keeps_gradients_and_evaluation_does_not(tmp_path: Path) -> None:
    folder = make.clip(tmp_path)
    for train in (True, False):
        encoder = load_encoder(folder, train=train).encoder
        modules = list(encoder.modules())[1:]
        assert {module.training for module in modules} == {train}
        assert {p.requires_grad for p in encoder.parameters()} == {train}
    encoder = load_encoder(folder, train=True).encoder
    encoder.encode_image(torch.randn(1, 3, 32, 32)).pooled.sum().backward()
    assert encoder.model.visual_projection.weight.grad.abs().sum() > 0


def test_loading_draws_no_random_numbers_and_leaves_the_librarys_log_as_it_was(tmp_path: Path) -> None:
    from transformers.utils import logging

    folder = make.siglip(tmp_path)
    torch.manual_seed(3)
    before, level, bars = torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_encoder(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


@pytest.mark.parametrize("name", ["clip", "owl", "siglip", "siglip2"])
def test_a_callers_text_never_becomes_a_mark(tmp_path: Path, name: str) -> None:
    folder = {
        "clip": lambda: make.clip(tmp_path), "owl": lambda: make.owl(tmp_path, "OwlViT"),
        "siglip": lambda: make.siglip(tmp_path), "siglip2": lambda: make.siglip(tmp_path, second=True),
    }[name]()  # fmt: skip
    rules = load_encoder(folder).encoder.rules
    assert rules is not None
    for text in ("<|endoftext|>", "<|startoftext|>", "a</s>", "<eos> cat", "<pad>", "<bos>", "<mask>"):
        ids, mask, _ = rules([text])
        inside = ids[0][mask[0]].tolist()[len(rules.spec.begin) : -1]
        assert inside and not {*inside} & {*rules.spec.begin, *rules.spec.end, rules.spec.pad}
        assert not {*inside} & {rules.tokenizer.bos_token_id, rules.tokenizer.mask_token_id}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_of_a_word_of_16000_letters_only_the_beginning_is_read(tmp_path: Path, name: str) -> None:
    rules = load_encoder(getattr(make, name)(tmp_path)).encoder.rules
    assert rules is not None
    read: list[int] = []

    def counted(text: str) -> list[int]:
        read.append(len(text))
        return rules.plain_ids(text)

    ids, _, cut = replace(rules, plain_ids=counted)(["ab" * 8000])
    assert sum(read) <= 20 * rules.spec.length and cut == (True,)
    assert ids.shape == (1, rules.spec.length) and ids[0, -1] == rules.spec.end[0]


@torch.inference_mode()
def test_sizes_and_layers_that_a_tower_has_not_are_refused(tmp_path: Path) -> None:
    encoder = load_encoder(make.aimv2(tmp_path / "aimv2")).encoder
    with pytest.raises(InputError, match="32 x 32 and no other size"):
        encoder.encode_image(torch.randn(1, 3, 16, 64))
    naflex = load_encoder(make.naflex(tmp_path / "naflex")).encoder
    with pytest.raises(InputError, match="multiples of 8"):
        naflex.encode_image(torch.randn(1, 3, 30, 32))
    clip = load_encoder(make.clip(tmp_path / "clip")).encoder
    for pixels in (torch.randn(1, 3, 7, 32), torch.randn(3, 32, 32), torch.randn(1, 4, 32, 32)):
        with pytest.raises(InputError, match="expected"):
            clip.encode_image(pixels)
    for layer in (3, -4):
        with pytest.raises(InputError, match="blocks 0 to 2"):
            clip.encode_image(torch.randn(1, 3, 32, 32), (layer,))


def test_an_image_tower_has_no_texts(tmp_path: Path) -> None:
    make.tower(tmp_path, "Dinov2")
    encoder = load_encoder(tmp_path).encoder
    assert encoder.spec.text is None and encoder.spec.rule is None and encoder.rules is None
    with pytest.raises(InputError, match="without a text tower"):
        encoder.encode_text(["cat"])
    with pytest.raises(InputError, match="no similarity"):
        encoder.similarity(torch.randn(1, 32), torch.randn(1, 32))


def test_clipseg_names_the_layers_of_its_head(tmp_path: Path) -> None:
    encoder = load_encoder(make.clipseg(tmp_path)).encoder
    assert encoder.spec.layers == (0, 1, 2) and encoder.spec.preprocessing.input_hw == (48, 48)
