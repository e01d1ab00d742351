"""Encoders from transformers folders against transformers itself: features, layers, texts, scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mm.encoders.base import Encoder
from mm.encoders.build import load_encoder
from tests.parity import encoder_transformers_folders as make

PAIRS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "clip": (make.clip, {}),
    "clip_end_first": (make.clip, {"end_first": True, "eos": 0}),
    "clip_uneven": (make.clip, {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 5}),
    "clip_gelu": (make.clip, {"hidden_act": "gelu"}),
    "siglip": (make.siglip, {}),
    "siglip_remainder": (make.siglip, {"image_size": 37}),
    "siglip2": (make.siglip, {"second": True}),
    "aimv2": (make.aimv2, {}),
    "aimv2_native": (make.aimv2, {"is_native": True}),
    "owlvit": (make.owl, {"kind": "OwlViT"}),
    "owlv2": (make.owl, {"kind": "Owlv2"}),
    "clipseg": (make.clipseg, {}),
}
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPVision", {}),
    "clip_projected": ("CLIPVisionModelWithProjection", {"projection_dim": 20}),
    "siglip": ("SiglipVision", {}),
    "siglip_headless": ("SiglipVision", {"vision_use_head": False}),
    "dinov2": ("Dinov2", {}),
    "dinov2_registers": ("Dinov2WithRegisters", {"num_register_tokens": 3}),
    "aimv2": ("Aimv2Vision", {}),
    "aimv2_headless": ("Aimv2Vision", {"use_head": False, "is_native": True}),
}
SIZES = [(32, 32), (40, 24), (45, 33)]  # the trained one; another; one with pixels beyond the last patch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Encoder, Any]]:
    """The encoder of a case and the reference model, both read from one folder."""
    made: dict[str, tuple[Encoder, Any]] = {}

    def get(case: str) -> tuple[Encoder, Any]:
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            if case.startswith("tower_"):
                kind, said = TOWERS[case.removeprefix("tower_")]
                make.tower(folder, kind, **said)
            else:
                maker, said = PAIRS[case]
                maker(folder, **said)
            config = transformers.AutoConfig.from_pretrained(folder)
            name = config.architectures[0]
            reference = getattr(transformers, name).from_pretrained(folder).eval()
            made[case] = (load_encoder(folder).encoder, reference)
        return made[case]

    return get


def inner(reference: Any) -> Any:
    """The pair inside a detector or segmenter, else the model itself."""
    return next((getattr(reference, n) for n in ("owlvit", "owlv2", "clip") if hasattr(reference, n)), reference)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def blocks_of(tower: Any, run: Callable[[], Any]) -> tuple[Any, list[torch.Tensor]]:
    """What `run` returns, and what each block of `tower` gave out meanwhile."""
    seen: list[torch.Tensor] = []
    blocks = tower.encoder.layer if hasattr(tower.encoder, "layer") else tower.encoder.layers

    def note(module: Any, given: Any, got: Any) -> None:
        seen.append(got[0] if isinstance(got, tuple) else got)

    hooks = [block.register_forward_hook(note) for block in blocks]
    out = run()
    for hook in hooks:
        hook.remove()
    return out, seen


def sizes_of(tower: Any) -> list[tuple[int, int]]:
    if tower.config.model_type == "aimv2_vision_model" and not tower.config.is_native:
        return SIZES[:1]
    return [(tower.config.image_size,) * 2, *SIZES[1:]]


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("case", PAIRS)
def test_image_features_of_a_pair_equal_the_reference(folders, case: str, batch: int) -> None:
    encoder, reference = folders(case)
    pair = inner(reference)
    tower = pair.vision_model
    for height, width in sizes_of(tower):
        pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
        out, blocks = blocks_of(tower, lambda px=pixels: pair.get_image_features(px, interpolate_pos_encoding=True))
        ours = encoder.encode_image(pixels, (0, 2, -1))
        close(ours.pooled, out.pooler_output)
        normed = out.last_hidden_state
        if hasattr(tower, "post_layernorm") and hasattr(pair, "visual_projection"):
            normed = tower.post_layernorm(normed)
        first = normed.shape[1] - (height // 8) * (width // 8)
        assert first == (0 if "siglip" in case or "aimv2" in case else 1)
        assert ours.grid == (height // 8, width // 8)
        close(ours.tokens, normed[:, first:])
        close(ours.prefix, normed[:, :first])
        for i in (0, 2, -1):
            close(ours.layers[i], blocks[i][:, first:])
            assert ours.layer_grids[i] == ours.grid
        assert ours.tokens.shape[2] == encoder.spec.width and ours.pooled.shape[1] == encoder.spec.embedding


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("case", TOWERS)
def test_image_features_of_a_tower_equal_the_reference(folders, case: str, batch: int) -> None:
    encoder, reference = folders(f"tower_{case}")
    tower = reference.vision_model if case == "clip_projected" else reference
    first = {"clip": 1, "clip_projected": 1, "dinov2": 1, "dinov2_registers": 4}.get(case, 0)
    for height, width in sizes_of(tower):
        pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
        extra = {} if case.startswith(("dinov2", "aimv2")) else {"interpolate_pos_encoding": True}
        out, blocks = blocks_of(tower, lambda px=pixels, extra=extra: reference(px, **extra))
        ours = encoder.encode_image(pixels, (0, -2))
        tokens = tower.post_layernorm(out.last_hidden_state) if case.startswith("clip") else out.last_hidden_state
        close(ours.tokens, tokens[:, first:])
        close(ours.prefix, tokens[:, :first])
        for i in (0, -2):
            close(ours.layers[i], blocks[i][:, first:])
        if case == "clip_projected":
            close(ours.pooled, out.image_embeds)
        else:
            close(ours.pooled, out.last_hidden_state.mean(1) if "headless" in case else out.pooler_output)
        assert ours.grid == (height // 8, width // 8) and ours.pooled.shape[1] == encoder.spec.embedding


@torch.inference_mode()
@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("texts", [make.TEXTS[:1], make.TEXTS])
def test_text_features_and_similarity_equal_the_reference(folders, case: str, texts: list[str]) -> None:
    encoder, reference = folders(case)
    pair = inner(reference)
    rows = [reference_ids(encoder, text) for text in texts]
    length = encoder.spec.text.length
    rows = [row if len(row) <= length else row[: length - 1] + row[-1:] for row in rows]
    # One place more than the longest, as AIMv2 is causal only in a padded batch.
    width = 64 if encoder.spec.text.fill else min(length, max(map(len, rows)) + 1)
    ids = torch.tensor([row + [encoder.spec.text.pad] * (width - len(row)) for row in rows])
    mask = None if encoder.spec.text.fill else (torch.arange(width) < torch.tensor([[len(r)] for r in rows])).long()
    pixels = torch.randn(3, 3, 32, 32)
    if case == "siglip_remainder":
        pixels = torch.randn(3, 3, 37, 37)
    theirs = pair(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    ours = encoder.encode_text(texts)
    close(ours.pooled, pair.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
    for i, row in enumerate(rows):
        assert int(ours.mask[i].sum()) == len(row)
        close(ours.tokens[i, : len(row)], theirs.text_model_output.last_hidden_state[i, : len(row)])
    scores = encoder.similarity(encoder.encode_image(pixels).pooled, ours.pooled)
    logits = theirs.logits_per_image
    close(scores, logits.sigmoid() if "siglip" in case else logits.softmax(-1))
    assert scores.std() > 1e-3 or len(texts) == 1


def reference_ids(encoder: Encoder, text: str) -> list[int]:
    """By the tokenizer alone, its own marks around the text."""
    assert encoder.rules is not None
    return encoder.rules.tokenizer(text)["input_ids"]


@torch.inference_mode()
def test_naflex_equals_the_references_padded_run(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from mm.images import Picture

    folder = make.naflex(tmp_path)
    encoder = load_encoder(folder).encoder
    reference = transformers.Siglip2Model.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    noise = np.random.default_rng(0)
    texts = ["a red cat", "mat"]
    ids = tokenizer(texts, padding="max_length", max_length=64, padding_side="right", return_tensors="pt")["input_ids"]
    for size in [(64, 64), (90, 31), (7, 200), (1, 1), (333, 250)]:
        picture = Picture(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
        inputs = processor(Image.fromarray(picture.pixels), return_tensors="pt")
        assert inputs["pixel_values"].shape[1] == 24
        tower_blocks: list[torch.Tensor]
        out, tower_blocks = blocks_of(
            reference.vision_model, lambda given=inputs: reference(input_ids=ids, attention_mask=None, **given)
        )
        pixels = encoder.spec.preprocessing.pixels(picture.pixels)[None]
        ours = encoder.encode_image(pixels.expand(3, -1, -1, -1), (0, -1))
        count = ours.grid[0] * ours.grid[1]
        assert [list(ours.grid)] == inputs["spatial_shapes"].tolist() and ours.prefix.shape == (3, 0, 32)
        vision = out.vision_model_output
        close(ours.tokens, vision.last_hidden_state[:, :count].expand(3, -1, -1))
        close(ours.layers[0], tower_blocks[0][:, :count].expand(3, -1, -1))
        close(ours.layers[-1], tower_blocks[-1][:, :count].expand(3, -1, -1))
        close(ours.pooled, vision.pooler_output.expand(3, -1))
        close(encoder.similarity(ours.pooled[:1], encoder.encode_text(texts).pooled), out.logits_per_image.sigmoid())


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["CLIPVision", "SiglipVision"])
def test_keys_with_the_older_prefix_load_equal(tmp_path: Path, kind: str) -> None:
    make.tower(tmp_path, kind)
    pixels = torch.randn(1, 3, 32, 32)
    before = load_encoder(tmp_path).encoder.encode_image(pixels)
    file = tmp_path / "model.safetensors"
    older = {f"vision_model.{key}": value for key, value in load_file(file).items()}
    older["vision_model.embeddings.position_ids"] = torch.arange(17 if kind == "CLIPVision" else 16)[None]
    save_file(older, file, metadata={"format": "pt"})
    after = load_encoder(tmp_path).encoder.encode_image(pixels)
    torch.testing.assert_close(before.tokens, after.tokens, atol=0, rtol=0)
    torch.testing.assert_close(before.pooled, after.pooled, atol=0, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_image_tower_comes_out_of_a_whole_checkpoint(tmp_path: Path, kind: str) -> None:
    folder = getattr(make, kind)(tmp_path)
    pair = load_encoder(folder).encoder
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vision_config.projection_dim = 20
    config.vision_config.save_pretrained(folder)
    tower = load_encoder(folder).encoder
    assert tower.spec.text is None and tower.spec.embedding == pair.spec.embedding
    pixels = torch.randn(2, 3, 32, 32)
    close(tower.encode_image(pixels).pooled, pair.encode_image(pixels).pooled)
    close(tower.encode_image(pixels).tokens, pair.encode_image(pixels).tokens)


def test_weights_in_parts_equal_one_file(tmp_path: Path) -> None:
    folder = make.clip(tmp_path / "whole")
    parts = make.clip(tmp_path / "parts")
    transformers.CLIPModel.from_pretrained(folder).save_pretrained(parts, max_shard_size="50KB")
    (parts / "model.safetensors").unlink(missing_ok=True)
    assert len(list(parts.glob("model-*.safetensors"))) > 1
    ours, theirs = (dict(load_encoder(f).encoder.named_parameters()) for f in (parts, folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_tokenizer_of_vocabulary_and_merges_gives_the_same_ids(tmp_path: Path) -> None:
    import json

    folder = make.clip(tmp_path)
    before = load_encoder(folder).encoder.rules
    saved = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(saved["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in saved["merges"]))
    (folder / "tokenizer.json").unlink()
    after = load_encoder(folder).encoder.rules
    assert before is not None and after is not None and before.spec == after.spec
    assert torch.equal(before(make.TEXTS)[0], after(make.TEXTS)[0])
