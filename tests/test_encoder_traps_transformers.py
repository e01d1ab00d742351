"""Where transformers checkpoints are commonly read wrong without an error: one test for each known trap."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from mm.checkpoints.loading import load
from mm.encoders.build import load_encoder
from mm.errors import CheckpointError, ImageInputError
from mm.images import open_image
from tests.parity import encoder_transformers_folders as make


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.clip(tmp_path_factory.mktemp("clip"))


def siglip_reference(folder: Path, ids: list[list[int]], mask: torch.Tensor | None = None) -> torch.Tensor:
    model = transformers.SiglipModel.from_pretrained(folder).eval()
    return model.get_text_features(input_ids=torch.tensor(ids), attention_mask=mask).pooler_output


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_trap_01_siglip_text_is_padded_to_its_length(siglip: Path) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(siglip)
    ours = load_encoder(siglip).encoder.encode_text(["a red cat"]).pooled
    row = tokenizer("a red cat")["input_ids"]
    assert len(row) < 64
    close(ours, siglip_reference(siglip, [row + [1] * (64 - len(row))]))
    assert F.cosine_similarity(ours, siglip_reference(siglip, [row])) < 0.95


@torch.inference_mode()
def test_trap_02_siglip_gets_no_mask_and_its_padding_on_the_right(tmp_path: Path) -> None:
    folder = make.siglip(tmp_path, second=True)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.padding_side == "left" and "attention_mask" in tokenizer.model_input_names
    ours = load_encoder(folder).encoder.encode_text(["a red cat"]).pooled
    row = tokenizer("a red cat")["input_ids"]
    right, left = row + [0] * (64 - len(row)), [0] * (64 - len(row)) + row
    close(ours, siglip_reference(folder, [right]))
    mask = (torch.arange(64) < len(row)).long()[None]
    for wrong in (siglip_reference(folder, [right], mask), siglip_reference(folder, [left])):
        assert F.cosine_similarity(ours, wrong) < 0.95


@torch.inference_mode()
@pytest.mark.parametrize("second", [False, True])
def test_trap_03_siglip_text_is_canonical_before_it_is_cut_into_tokens(tmp_path: Path, second: bool) -> None:
    encoder = load_encoder(make.siglip(tmp_path, second=second)).encoder
    spellings = ["A  Red, Cat!", "a red cat", "a_red_cat.", " a red\tcat ", '"A RED" (cat)?']
    pooled = encoder.encode_text(spellings).pooled
    close(pooled, pooled[1:2].expand_as(pooled))
    assert F.cosine_similarity(pooled[:1], encoder.encode_text(["a blue cat"]).pooled) < 0.999


@torch.inference_mode()
def test_trap_04_siglip_scores_are_sigmoids_with_a_bias(siglip: Path) -> None:
    encoder = load_encoder(siglip).encoder
    weights = load_file(siglip / "model.safetensors")
    image, text = torch.randn(2, 32), torch.randn(3, 32)
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    scores = encoder.similarity(image, text)
    close(scores, (weights["logit_scale"].exp() * cosine + weights["logit_bias"]).sigmoid())
    close(scores[:, :1], encoder.similarity(image, text[:1]))  # a score does not hang on the other texts
    assert not torch.allclose(scores.sum(-1), torch.ones(2))


@torch.inference_mode()
def test_trap_05_clip_pools_at_the_end_mark(tmp_path: Path) -> None:
    """By the highest id where the configuration says 2, else by the id it says; a padded text stays the same."""
    for end_first, eos in ((False, 2), (False, 519), (True, 0)):
        folder = make.clip(tmp_path / f"{end_first}{eos}", end_first=end_first, eos=eos)
        encoder = load_encoder(folder).encoder
        model = transformers.CLIPModel.from_pretrained(folder).eval()
        texts = ["a red cat", "mat"]
        ours = encoder.encode_text(texts)
        for i, text in enumerate(texts):
            ids = torch.tensor([transformers.CLIPTokenizer.from_pretrained(folder)(text)["input_ids"]])
            states = model.text_model(ids).last_hidden_state
            close(ours.pooled[i], model.text_projection(states[0, -1]))


@pytest.mark.parametrize(("end_first", "eos"), [(True, 2), (False, 7), (True, 1)])
def test_trap_05_a_tokenizer_whose_end_the_tower_would_not_find_is_refused(
    tmp_path: Path, end_first: bool, eos: int
) -> None:
    folder = make.clip(tmp_path, end_first=end_first, eos=eos)
    with pytest.raises(CheckpointError, match="pools at id"):
        load_encoder(folder)


def test_trap_05_owl_vit_pools_at_the_highest_id(tmp_path: Path) -> None:
    folder = make.owl(tmp_path, "OwlViT")
    text = load_encoder(folder).encoder.spec.text
    assert text is not None and text.length == 16 and text.end == (519,)
    make.clip_tokenizer(folder, end_first=True)
    with pytest.raises(CheckpointError, match="pools at id 519"):
        load_encoder(folder)


def test_trap_06_numbers_come_from_the_folder_not_from_a_processors_class(tmp_path: Path) -> None:
    folder = make.clipseg(tmp_path)
    assert load_encoder(folder).encoder.spec.preprocessing.mean == (0.485, 0.456, 0.406)
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text())
    for key in ("image_mean", "image_std", "size", "resample"):
        file.write_text(json.dumps({k: v for k, v in said.items() if k != key}))
        with pytest.raises(CheckpointError, match=f"{key} is missing"):
            load_encoder(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="no preprocessor_config.json"):
        load_encoder(folder)


def test_trap_07_transparency_is_laid_on_white_from_a_path_as_from_an_object(clip: Path, tmp_path: Path) -> None:
    hidden = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    hidden.save(tmp_path / "hidden.png")
    joined = load(str(clip))
    mean, std = (torch.tensor(make.CLIP_STATS[k]) for k in ("image_mean", "image_std"))
    white = ((1 - mean) / std)[:, None, None].expand(3, 32, 32)
    for source in (hidden, tmp_path / "hidden.png", np.asarray(hidden)):
        torch.testing.assert_close(joined.pixels(open_image(source)), white, atol=1e-5, rtol=0)


def test_trap_08_pictures_are_turned_upright_from_a_path_as_from_an_object(clip: Path, tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (44, 36, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(data, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(data.getvalue())
    joined = load(str(clip))
    expected = joined.pixels(open_image(upright))
    for source in (tmp_path / "turned.png", data.getvalue(), Image.open(tmp_path / "turned.png")):
        torch.testing.assert_close(joined.pixels(open_image(source)), expected, atol=0, rtol=0)


def test_trap_11_an_array_that_reads_two_ways_needs_its_order(clip: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 40, 3), dtype=np.uint8)
    with pytest.raises(ImageInputError, match="channel_order"):
        open_image(array)
    joined = load(str(clip))
    processor = transformers.CLIPImageProcessorPil.from_pretrained(clip)
    for order, rows in (("HWC", array), ("CHW", array.transpose(1, 2, 0))):
        expected = processor(Image.fromarray(np.ascontiguousarray(rows)), return_tensors="pt")["pixel_values"][0]
        ours = joined.pixels(open_image(array, channel_order=order))
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_trap_17_positions_of_other_grids_are_bicubic_without_antialiasing(name: str, tmp_path: Path) -> None:
    folder = getattr(make, name)(tmp_path)
    encoder = load_encoder(folder).encoder
    tower = encoder.model.vision_model
    table = load_file(folder / "model.safetensors")["vision_model.embeddings.position_embedding.weight"]
    first = 1 if name == "clip" else 0
    seen = []
    hook = tower.embeddings.register_forward_hook(lambda module, given, got: seen.append(got))
    pixels = torch.randn(1, 3, 16, 72)
    features = encoder.encode_image(pixels)
    hook.remove()
    assert features.grid == (2, 9) and features.map().shape == (1, 32, 2, 9)
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    square = table[first:].T.reshape(1, 32, 4, 4)
    placed = F.interpolate(square, (2, 9), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    close(seen[0][:, first:], patches + placed)


@torch.inference_mode()
def test_trap_18_siglip_positions_are_not_scrambled_where_only_the_count_fits(tmp_path: Path) -> None:
    folder = make.siglip(tmp_path, image_size=48)
    encoder = load_encoder(folder).encoder
    reference = transformers.SiglipModel.from_pretrained(folder).eval()
    pixels = torch.randn(1, 3, 32, 72)  # 4 x 9 patches for 6 x 6 places
    ours = encoder.encode_image(pixels).pooled
    close(ours, reference.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output)
    assert F.cosine_similarity(ours, reference.get_image_features(pixels).pooler_output) < 0.999


@torch.inference_mode()
def test_trap_19_weights_are_float32_unless_asked_otherwise(clip: Path, tmp_path: Path) -> None:
    folder = make.clip(tmp_path)
    file = folder / "model.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}, file)
    for asked, got in (("float32", torch.float32), ("auto", torch.float16), ("bfloat16", torch.bfloat16)):
        encoder = load_encoder(folder, dtype=asked).encoder
        kinds = {p.dtype for p in encoder.parameters()}
        assert kinds == {got}
    pixels = torch.randn(2, 3, 32, 32)
    full = load_encoder(clip).encoder
    half = load_encoder(clip, dtype="bfloat16").encoder
    expected = full.similarity(full.encode_image(pixels).pooled, full.encode_text(make.TEXTS).pooled)
    image = half.encode_image(pixels.bfloat16())
    ours = half.similarity(image.pooled, half.encode_text(make.TEXTS).pooled)
    assert image.tokens.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, atol=0.05, rtol=0)
