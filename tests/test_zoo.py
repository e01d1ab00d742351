"""The table of models: its names, references, licences and figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mm.checkpoints.families import FAMILIES
from mm.errors import CheckpointError
from mm.zoo import EMBEDDED, MODELS, SPEAKING_FAMILIES, Entry, find, reference

PUBLISHED = [entry for entry in MODELS.values() if entry.reference]
TESTS = Path(__file__).parent


def test_the_embedded_model_comes_first() -> None:
    assert next(iter(MODELS)) == "tiny"
    assert reference("tiny") is None and find("tiny") == EMBEDDED / "tiny"


def test_names_are_spelt_alike_and_point_to_one_place_each() -> None:
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) and entry.name == name for name, entry in MODELS.items())
    references = [entry.reference for entry in PUBLISHED]
    assert len(set(references)) == len(references)
    assert all(re.fullmatch(r"hf:[\w.-]+/[\w.-]+|open_clip:[\w.-]+/\w+", each) for each in references)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("siglip2-base-patch16-224", "hf:google/siglip2-base-patch16-224"),
        ("clip-vit-large-patch14-336", "open_clip:ViT-L-14-336/openai"),
        ("mobileclip2-s0", "open_clip:MobileCLIP2-S0/dfndr2b"),
        ("tinyclip-vit-8m-16-text-3m-yfcc15m", "hf:wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M"),
        ("no-such-model", None),
    ],
)
def test_a_name_gives_its_reference(name: str, expected: str | None) -> None:
    assert reference(name) == expected


def test_every_open_clip_reference_is_one_that_open_clip_knows_with_our_size_and_width() -> None:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    for entry in PUBLISHED:
        where, _, rest = entry.reference.partition(":")
        if where != "open_clip":
            continue
        name, tag = rest.split("/")
        config = open_clip.get_model_config(name)
        assert config is not None and get_pretrained_cfg(name, tag), entry.name
        assert config["embed_dim"] == entry.embedding, entry.name
        assert entry.input == "{0}x{0}".format(config["vision_cfg"]["image_size"]), entry.name


def test_what_a_family_expects_is_what_open_clip_was_told_at_release() -> None:
    from open_clip.pretrained import get_pretrained_cfg

    fits = {"shortest": "crop", "squash": "squash"}
    for entry in PUBLISHED:
        where, _, rest = entry.reference.partition(":")
        if where == "open_clip":
            told, family = get_pretrained_cfg(*rest.split("/")), FAMILIES[entry.family]
            assert (told["mean"], told["std"]) == (family.mean, family.std), entry.name
            assert told["interpolation"] in family.resample and fits[told["resize_mode"]] == family.policy


def test_research_only_weights_are_marked() -> None:
    marked = {entry.name for entry in MODELS.values() if entry.research_only}
    assert marked == {name for name in MODELS if name.startswith(("mobileclip", "metaclip"))}
    assert all(entry.licence for entry in MODELS.values())


def test_figures_have_a_source_and_a_percentage() -> None:
    for entry in MODELS.values():
        assert (entry.top1 is None) == (entry.top1_source == "")
        assert entry.top1 is None or 40 < entry.top1 < 90
        assert entry.parameters > 1 and entry.embedding > 0
    assert MODELS["siglip-so400m-patch14-384"].top1 == 83.08


def test_every_published_model_has_a_family() -> None:
    assert {entry.family for entry in PUBLISHED} == {*FAMILIES, *SPEAKING_FAMILIES}


def test_a_family_is_checked_only_where_its_test_exists() -> None:
    named = {family.parity for family in FAMILIES.values()} - {""} | {*SPEAKING_FAMILIES.values()}
    assert named and all((TESTS / name).is_file() for name in named)
    assert not Entry("x", (), "", 1, "", 1, "").checked


def test_an_unknown_name_gets_the_nearest_and_a_folder_is_found_by_its_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='Did you mean "siglip2-base-patch16-224"'):
        find("siglip2-base-patch16-22")
    with pytest.raises(CheckpointError, match="neither"):
        find(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert find(str(tmp_path)) == tmp_path
