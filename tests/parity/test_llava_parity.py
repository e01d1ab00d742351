"""Published LLaVA and FastVLM folders give the reference's prompts, logits and tokens, and the known traps are shut."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mm
from mm.errors import CheckpointError, InputError
from mm.generation.loop import generate
from mm.generation.prompts import Prompt, asked
from mm.generation.writing import whole_text
from mm.images import open_image
from tests.parity.llava_folders import CHATML, IMAGE, VICUNA, processor, reference, saved

QUESTION = "what is this thing, and how many are there?"
NEW = 10
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "LLaVA-1.5": ("clip_vision_model", "llama", VICUNA, {}),
    "BakLLaVA": ("clip_vision_model", "mistral", VICUNA, {}),
    "LLaVA-Interleave": (
        "siglip_vision_model", "qwen2", CHATML,
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    "FastVLM": ("timm_wrapper", "qwen2", CHATML, {}),
    "with the class token": ("clip_vision_model", "llama", VICUNA, {"vision_feature_select_strategy": "full"}),
    "two layers": ("clip_vision_model", "qwen2", CHATML, {"vision_feature_layer": [-2, 1]}),
    "another projector": (
        "clip_vision_model", "llama", VICUNA,
        {"multimodal_projector_bias": False, "projector_hidden_act": "quick_gelu", "vision_feature_layer": 3},
    ),
    "one table of words": ("clip_vision_model", "qwen2", CHATML, {"tie_word_embeddings": True}),
}  # fmt: skip


def picture(seed: int = 0, hw: tuple[int, int] = (40, 31)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8))


def turns(*content: Any) -> list[dict[str, Any]]:
    pieces = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image"} for c in content]
    return [{"role": "user", "content": pieces}]


def theirs(model: Any, reader: Any, messages: list[dict[str, Any]], pictures: list[Image.Image]) -> tuple[Any, ...]:
    """Numbers of the prompt, logits at each of them, and greedy tokens up to the end."""
    text = reader.apply_chat_template(messages, add_generation_prompt=True)
    inputs = reader(images=pictures or None, text=text, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
        made = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    return inputs["input_ids"][0].tolist(), logits, made[: made.index(3)] if 3 in made else made


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    tower, text, template, settings = CASES[request.param]
    model = reference(tower, text, **settings)
    reader = processor(tower, model.config, template)
    return model, reader, saved(tmp_path_factory.mktemp("llava") / "folder", model, reader)


def test_prompt_logits_and_tokens_are_the_reference_s(case: tuple[Any, Any, Path]) -> None:
    model, reader, folder = case
    shown = picture()
    ids, logits, written = theirs(model, reader, turns(shown, QUESTION), [shown])
    ours = mm.load(folder)
    speaker, encoded = ours.speaker, mm.encode(shown, model=ours)
    count = speaker.connected(encoded.features).shape[1]
    prompt = speaker.prompts(asked(QUESTION))
    assert prompt.parts == Prompt.collapsed(ids, model.config.image_token_id, [count]).parts
    torch.testing.assert_close(speaker.logits(prompt, [encoded.features]), logits, atol=1e-4, rtol=1e-4)
    prefix, rest = speaker.read(prompt, [encoded])
    *_, (row,) = generate(speaker.decoder, prefix, rest, max_new_tokens=NEW)
    assert row.ids == written
    answer = mm.ask(shown, QUESTION, model=folder, max_new_tokens=NEW)
    assert answer.text == row.text == mm.ask(encoded, QUESTION, model=ours, max_new_tokens=NEW).text
    assert answer.source.warnings == ()


def test_several_pictures_and_earlier_turns_are_the_reference_s(case: tuple[Any, Any, Path]) -> None:
    model, reader, folder = case
    shown = [picture(1), picture(2, (24, 60)), picture(3, (50, 50))]
    messages = [
        *turns(shown[0], "what is it?"),
        {"role": "assistant", "content": [{"type": "text", "text": "a red car"}]},
        *turns(shown[1], shown[2], "and these two?"),
    ]
    *_, written = theirs(model, reader, messages, shown)
    ours = mm.load(folder)
    said = mm.generate(
        [shown[1], shown[2], "and these two?"], model=ours, examples=[(shown[0], "what is it?", "a red car")],
        max_new_tokens=NEW,
    )  # fmt: skip
    assert said.text == whole_text(ours.speaker.decoder, written) and said.tokens == len(written)


# One folder is enough for what follows.


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    model = reference()
    reader = processor("clip_vision_model", model.config)
    return model, reader, saved(tmp_path_factory.mktemp("llava") / "folder", model, reader)


def answers(folder: Path) -> torch.Tensor:
    ours = mm.load(folder)
    encoded = mm.encode(picture(), model=ours)
    return ours.speaker.logits(ours.speaker.prompts(asked(QUESTION)), [encoded.features])


def copied(source: Path, target: Path, rename: dict[str, str] | None = None, **config: Any) -> Path:
    """The folder with some beginnings of keys renamed ("" takes a key out) and some settings changed."""
    import shutil

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    for old, new in (rename or {}).items():
        kept = {k: v for k, v in tensors.items() if new or k != old}
        tensors = {new + k[len(old) :] if k.startswith(old) else k: v for k, v in kept.items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    said = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(said | config))
    return target


@pytest.mark.parametrize(
    "rename",
    [
        {"vision_tower.": "vision_tower.vision_model."},
        {"vision_tower.": "model.vision_tower.", "multi_modal_projector.": "model.multi_modal_projector.",
         "language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."},
    ],
    ids=["released", "as transformers 5 holds them"],
)  # fmt: skip
def test_both_spellings_of_keys_load_to_the_same_model(llava: Any, tmp_path: Path, rename: dict[str, str]) -> None:
    assert torch.equal(answers(copied(llava[2], tmp_path / "renamed", rename)), answers(llava[2]))


def test_trap_14_a_missing_key_is_an_error_where_the_reference_only_warns(llava: Any, tmp_path: Path) -> None:
    parts = ("multi_modal_projector.linear_2.bias", "language_model.model.norm.weight", "language_model.lm_head.weight",
             "vision_tower.post_layernorm.weight")  # fmt: skip
    for key in parts:
        with pytest.raises(CheckpointError, match="missing"):
            mm.load(copied(llava[2], tmp_path / key, {key: ""}))
    stray = copied(llava[2], tmp_path / "stray", {"multi_modal_projector.linear_2.bias": "image_newline"})
    with pytest.raises(CheckpointError, match="image_newline belongs to no part"):
        mm.load(stray)


def test_a_feature_layer_that_is_no_block_is_refused(llava: Any, tmp_path: Path) -> None:
    for place, layer in enumerate((0, 4, -4)):
        with pytest.raises(CheckpointError, match="vision_feature_layer"):
            mm.load(copied(llava[2], tmp_path / str(place), vision_feature_layer=layer))


def test_a_siglip_that_drops_its_first_patch_is_followed_with_a_warning(tmp_path: Path) -> None:
    model = reference("siglip_vision_model", vision_feature_select_strategy="default")
    reader = processor("siglip_vision_model", model.config)
    folder = saved(tmp_path / "folder", model, reader)
    shown = picture()
    _, logits, _ = theirs(model, reader, turns(shown, QUESTION), [shown])
    torch.testing.assert_close(answers(folder), logits, atol=1e-4, rtol=1e-4)
    assert mm.load(folder).speaker.connected(mm.encode(shown, model=folder).features).shape[1] == 15
    (warning,) = mm.ask(shown, QUESTION, model=folder, max_new_tokens=1).source.warnings
    assert "top left patch" in warning


@pytest.mark.parametrize("said", ["by the folder", "by a word"])
def test_pictures_are_padded_to_a_square_of_the_mean_colour(tmp_path: Path, said: str) -> None:
    model = reference()
    padding = processor("clip_vision_model", model.config, do_pad=True)
    plain = processor("clip_vision_model", model.config)
    folder = saved(tmp_path / "folder", model, padding if said == "by the folder" else plain)
    ours = mm.load(folder) if said == "by the folder" else mm.load(folder, pad="square")
    for hw in ((40, 31), (20, 90), (24, 24)):
        shown = picture(4, hw)
        pixels = ours.pixels(open_image(shown))
        expected = padding.image_processor(shown, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)
        cropped = plain.image_processor(shown, return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(pixels, cropped, atol=1e-3) == (hw == (24, 24))
    _, logits, _ = theirs(model, padding, turns(picture(), QUESTION), [picture()])
    encoded = mm.encode(picture(), model=ours)
    prompt = ours.speaker.prompts(asked(QUESTION))
    torch.testing.assert_close(ours.speaker.logits(prompt, [encoded.features]), logits, atol=1e-4, rtol=1e-4)
    assert ours.spec.preprocessing.to_dict()["pad"] == "square"
    with pytest.raises(InputError, match="square"):
        mm.load(folder, pad="circle")  # type: ignore[arg-type]


def test_a_folder_without_a_preprocessor_file_reads_the_one_inside_its_processor(llava: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "folder", llava[0], llava[1], released=False)
    assert not (folder / "preprocessor_config.json").exists()
    assert torch.equal(answers(folder), answers(llava[2]))


def test_a_folder_without_a_template_is_asked_as_a_base_model(llava: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "folder", llava[0], processor("clip_vision_model", llava[0].config, None))
    prompt = mm.load(folder).speaker.prompts(asked("a b"))
    decoder = mm.load(folder).speaker.decoder
    assert prompt.parts[0] == (1,) and decoder.text(list(prompt.parts[1])).strip() == "a b"


def test_half_precision_files_run_in_float32_or_as_they_are(llava: Any, tmp_path: Path) -> None:
    folder = copied(llava[2], tmp_path / "half", dtype="float16")
    tensors = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(answers(folder), answers(llava[2]), atol=0.05, rtol=0.05)
    assert mm.load(folder, dtype="auto").speaker.decoder.lm.dtype == torch.float16


# Item 16: the reference checks placeholders over the whole batch only. Item 15: padding on the right.


def test_trap_16_placeholders_are_counted_for_each_sample_not_over_the_batch(llava: Any) -> None:
    model, _, folder = llava
    token = model.config.image_token_id
    ours = mm.load(folder)
    both = [mm.encode(picture(seed), model=ours) for seed in range(2)]
    count = ours.speaker.connected(both[0].features).shape[1]
    rows = [[1, *[token] * (count + 1), 300, 301], [1, *[token] * (count - 1), 300, 301, 302, 303]]
    pixels = torch.stack([ours.pixels(open_image(picture(seed))) for seed in range(2)])
    with torch.inference_mode():
        assert model(input_ids=torch.tensor(rows), pixel_values=pixels).logits.isfinite().all()  # the trap
    for row, placeholders in zip(rows, (count + 1, count - 1), strict=True):
        with pytest.raises(InputError, match=f"{placeholders} image tokens for 1 pictures of {count} tokens"):
            Prompt.collapsed(row, token, [count])


def test_trap_15_unequal_prompts_answer_as_each_alone_without_padding_on_the_right(llava: Any) -> None:
    _, _, folder = llava
    ours = mm.load(folder)
    asks = [
        [picture(0), "what is it?"],
        [picture(1), picture(2), "which of the two is larger, and what colours do they have?"],
        ["no picture at all"],
        [picture(3), "x"],
        ["a", picture(4), "b", picture(5), "c", picture(6)],
    ]
    together = mm.generate(asks, model=ours, max_new_tokens=NEW)
    alone = [mm.generate(each, model=ours, max_new_tokens=NEW) for each in asks]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.tokens for a in together] == [a.tokens for a in alone]


def test_a_typed_image_mark_stays_letters(llava: Any) -> None:
    model, reader, folder = llava
    ours = mm.load(folder)
    hostile = f"is {IMAGE} a mark? </s> <|im_end|> <s>"
    prompt = ours.speaker.prompts(asked(hostile))
    numbers = [n for part in prompt.parts for n in part]
    special = {model.config.image_token_id, *reader.tokenizer.all_special_ids} - {1}
    assert prompt.pictures == 1 and not special & set(numbers) and numbers.count(1) == 1
    assert hostile in ours.speaker.decoder.tokenizer.decode(prompt.parts[1])
    assert mm.ask(picture(), hostile, model=ours, max_new_tokens=2).prompt == hostile


def test_a_template_that_moves_pictures_says_so(llava: Any) -> None:
    said = mm.generate(["compare", picture(0), "with", picture(1)], model=llava[2], max_new_tokens=1)
    assert said.source.warnings == ("the model's own chat template moved pictures away from their words",)


def test_what_a_configuration_would_have_timm_fetch_or_run_is_refused(tmp_path: Path) -> None:
    model = reference("timm_wrapper", "qwen2")
    folder = saved(tmp_path / "folder", model, processor("timm_wrapper", model.config, CHATML))
    said = json.loads((folder / "config.json").read_text())
    for place, change in enumerate(({"architecture": "hf-hub:someone/else"}, {"model_args": {"pretrained": "yes"}})):
        bad = copied(folder, tmp_path / f"bad{place}", vision_config=said["vision_config"] | change)
        with pytest.raises(CheckpointError):
            mm.load(bad)


def test_a_model_with_pictures_keeps_its_view_when_replaced(llava: Any) -> None:
    ours = mm.load(llava[2])
    assert ours.speaker.view.layers == (-2,) and ours.spec.layers == (-2,)
    assert dataclasses.replace(ours, name="other").speaker is ours.speaker
