"""The feature store: nothing is encoded twice, nothing stale or damaged is used, and the bound holds."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mm
import mm.store as store_module
from mm.checkpoints.loading import load
from mm.cli.app import app
from mm.encoders.base import ImageFeatures
from mm.errors import InputError
from mm.images import open_image
from mm.scenes import render_scene
from mm.store import FeatureStore, StoreLimits, as_store, feature_key

KEY = "ab" * 32


def features(fill: float = 1.0, side: int = 8) -> ImageFeatures:
    """About 5 kB: 2 x side tokens of width 64."""
    torch.manual_seed(int(fill * 1000))
    return ImageFeatures(
        torch.randn(1, 2 * side, 64), (2, side), torch.randn(1, 0, 64), torch.full((1, 16), fill),
        {-1: torch.randn(1, 4, 8).half()}, {-1: (2, 2)}, {-1: torch.randn(1, 1, 8).bfloat16()},
    )  # fmt: skip


def same(a: ImageFeatures, b: ImageFeatures) -> bool:
    plain = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "prefix", "pooled"))
    layers = all(torch.equal(a.layers[i], b.layers[i]) and a.layers[i].dtype == b.layers[i].dtype for i in b.layers)
    prefixes = all(torch.equal(a.layer_prefix[i], b.layer_prefix[i]) for i in b.layer_prefix)
    grids = (a.grid, a.layer_grids) == (b.grid, b.layer_grids)
    return plain and layers and prefixes and grids and a.layers.keys() == b.layers.keys()


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def the_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every pass of the image tower."""
    counted: list[int] = []
    kind = type(load("tiny").encoder)
    real = kind.encode_image

    def counting(self: Any, pixels: torch.Tensor, layers: tuple[int, ...] = ()) -> Any:
        counted.append(len(pixels))
        return real(self, pixels, layers)

    monkeypatch.setattr(kind, "encode_image", counting)
    return counted


def test_a_second_run_encodes_nothing_and_gives_the_same_to_the_bit(tmp_path: Path, passes: list[int]) -> None:
    pictures = [render_scene(seed, (96, 128)).pixels for seed in range(3)]
    labels = ["car", "star", "tree"]

    def run(cache: Path | None) -> list[Any]:
        found = [mm.detect(p, labels, threshold=0.0, cache=cache) for p in pictures]
        masks = [mm.segment(p, labels, cache=cache) for p in pictures]
        scores = mm.classify(pictures, labels, cache=cache)
        vectors = mm.embed(pictures, cache=cache).vectors.tobytes()
        return [found, masks, scores, vectors, mm.caption(pictures[0], cache=cache).text]

    plain = [mm.detect(p, labels, threshold=0.0) for p in pictures]
    passes.clear()
    first = run(tmp_path)
    assert passes == [1, 1, 1]
    second = run(tmp_path)
    assert passes == [1, 1, 1]
    assert first == second and first[0] == plain


def test_tiles_are_kept_as_whole_pictures_are(tmp_path: Path, passes: list[int]) -> None:
    pixels = render_scene(1, (200, 120)).pixels
    first = mm.segment(pixels, ["car", "star"], tile=128, cache=tmp_path)
    files = list(tmp_path.rglob("*.safetensors"))
    assert passes == [1, 1, 1] and len(files) == 3  # two tiles, and the whole for its warnings
    assert mm.segment(pixels, "car", tile=128, cache=tmp_path).labels == ("car",)
    assert passes == [1, 1, 1]
    assert mm.segment(pixels, ["car", "star"], tile=128) == first


def test_the_command_line_keeps_features_where_it_is_told(tmp_path: Path, passes: list[int]) -> None:
    picture = tmp_path / "scene.png"
    Image.fromarray(render_scene(0, (96, 128)).pixels).save(picture)
    arguments = [str(picture), "--cache", str(tmp_path / "kept")]
    answers = [CliRunner().invoke(app, ["detect", *arguments, "-l", "car", "--json"]) for _ in range(2)]
    assert CliRunner().invoke(app, ["caption", *arguments]).exit_code == 0
    assert [answer.exit_code for answer in answers] == [0, 0] and answers[0].stdout == answers[1].stdout
    assert passes == [1] and len(list((tmp_path / "kept").rglob("*.safetensors"))) == 1


def test_only_pictures_that_are_not_held_are_encoded_and_the_order_stays(tmp_path: Path, passes: list[int]) -> None:
    pictures = [render_scene(seed, (96, 128)).pixels for seed in range(4)]
    mm.encode(pictures[2], cache=tmp_path)
    encoded = mm.encode(pictures, cache=FeatureStore(tmp_path))
    assert passes == [1, 3]
    alone = [mm.encode(p).features.pooled for p in pictures]
    for value, expected in zip(encoded, alone, strict=True):
        torch.testing.assert_close(value.features.pooled, expected, atol=1e-5, rtol=1e-5)


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    assert store.get(KEY) is None
    assert store.put(KEY, features()) == ""
    found = store.get(KEY)
    assert found is not None and same(found, features())


def test_every_ingredient_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, scene = load("tiny"), render_scene(0, (96, 128)).pixels
    picture = open_image(scene)
    key = feature_key(tiny, picture)
    assert key == feature_key(tiny, open_image(scene.copy()))
    keys = {key, feature_key(tiny, open_image(render_scene(1, (96, 128)).pixels))}
    flat = scene.reshape(scene.shape[1], scene.shape[0], 3)
    keys.add(feature_key(tiny, open_image(flat)))  # the same bytes in another shape
    keys.add(feature_key(dataclasses.replace(tiny, sha256="0" * 64), picture))
    spec = tiny.spec
    brighter = dataclasses.replace(spec.preprocessing, mean=(0.4, 0.5, 0.5))
    for change in ({"preprocessing": brighter}, {"layers": (0, 1)}, {"tokens": "others"}):
        monkeypatch.setattr(tiny.encoder, "spec", dataclasses.replace(spec, **change))
        keys.add(feature_key(tiny, picture))
    monkeypatch.setattr(tiny.encoder, "spec", spec)
    for name, value in (("FORMAT", 2), ("__version__", "another")):
        with monkeypatch.context() as patch:
            patch.setattr(store_module, name, value)
            keys.add(feature_key(tiny, picture))
    assert feature_key(tiny, picture) == key
    assert len(keys) == 9


def test_dtype_device_and_architecture_change_the_key() -> None:
    from types import SimpleNamespace

    tiny, picture = load("tiny"), open_image(render_scene(0, (96, 128)).pixels)

    def key(module: torch.nn.Module) -> str:
        module.spec = tiny.spec  # type: ignore[assignment]
        model: Any = SimpleNamespace(
            name="m", sha256="1" * 64, spec=tiny.spec, encoder=module.eval().requires_grad_(False)
        )
        return feature_key(model, picture)

    gelu = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())
    relu = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    assert len({key(gelu), key(relu), key(gelu.half()), key(gelu.to("meta"))}) == 4


def test_a_model_without_a_fingerprint_or_in_training_is_refused(tmp_path: Path) -> None:
    from types import SimpleNamespace

    tiny, picture = load("tiny"), open_image(render_scene(0, (96, 128)).pixels)
    with pytest.raises(InputError, match="no fingerprint"):
        feature_key(dataclasses.replace(tiny, sha256=""), picture)
    module: Any = torch.nn.Linear(1, 1)
    model: Any = SimpleNamespace(name="mine", sha256="1", spec=tiny.spec, encoder=module)
    for training in (True, False):  # what is trained may run in evaluation mode
        module.train(training)
        with pytest.raises(InputError, match="'mine' is in training"):
            feature_key(model, picture)
    module.requires_grad_(False)
    assert len(feature_key(model, picture)) == 64


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "garbage", "renamed"])
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path: Path, damage: str) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, features())
    path = the_file(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "renamed":
        path.unlink()
        store.put("ab" + "0" * 62, features(2.0))
        os.replace(the_file(tmp_path), path)
    else:
        flipped = data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]
        path.write_bytes({"cut": data[:-100], "empty": b"", "flipped": flipped, "garbage": b"\xff" * 500}[damage])
    assert store.get(KEY) is None
    assert store.put(KEY, features()) == ""
    found = store.get(KEY)
    assert found is not None and same(found, features())


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = _size(tmp_path / "one")
    store = FeatureStore(tmp_path / "many", StoreLimits(max_bytes=3 * size + 200))
    keys = [f"{i:02d}" * 32 for i in range(4)]
    for i, key in enumerate(keys[:3]):
        store.put(key, features())
        path = next((tmp_path / "many" / key[:2]).iterdir())
        os.utime(path, (1000 + i, 1000 + i))
    assert store.get(keys[0]) is not None  # used again: now the second is the oldest
    store.put(keys[3], features())
    assert [store.get(key) is not None for key in keys] == [True, False, False, True]
    assert held(tmp_path / "many") == 2 * size  # nine tenths of the bound are left


def test_a_store_with_room_is_looked_through_only_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = FeatureStore._make_room
    monkeypatch.setattr(FeatureStore, "_make_room", lambda self: looks.append(1) or real(self))
    size = _size(tmp_path / "one")
    looks.clear()
    store = FeatureStore(tmp_path / "many", StoreLimits(max_bytes=100 * size))
    for i in range(14):
        store.put(f"{i:02d}" * 32, features())
    assert len(looks) == 2  # at the first file, and once an eighth of what was free then is written
    assert as_store(tmp_path) is as_store(str(tmp_path))


def _size(folder: Path) -> int:
    FeatureStore(folder).put(KEY, features())
    return held(folder)


def test_features_larger_than_the_store_are_said_not_to_be_kept(tmp_path: Path, passes: list[int]) -> None:
    store = FeatureStore(tmp_path, StoreLimits(max_bytes=1000))
    assert "may hold 1,000" in store.put(KEY, features())
    result = mm.embed(render_scene(0, (96, 128)).pixels, cache=store)
    assert passes == [1] and any("not kept in the cache" in warning for warning in result.source.warnings)
    assert held(tmp_path) == 0


def test_a_full_disk_costs_no_result_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    result = mm.embed(render_scene(0, (96, 128)).pixels, cache=tmp_path)
    assert any("No space left" in warning for warning in result.source.warnings)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_files_get_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        FeatureStore(tmp_path).put(KEY, features())
    finally:
        os.umask(before)
    assert stat.S_IMODE(the_file(tmp_path).stat().st_mode) == 0o640


def test_what_a_killed_process_left_is_removed_after_a_while(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, features())
    old, new = (the_file(tmp_path).with_name(f"{name}.tmp") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    FeatureStore(tmp_path).put("ab" + "1" * 62, features())  # looks through the folder at its first file
    assert not old.exists() and new.exists()


def test_what_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder 'file'"):
        as_store(tmp_path / "file")
    for bound in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="max_bytes"):
            StoreLimits(max_bytes=bound)  # type: ignore[arg-type]


def _hammer(folder: str, seed: int, bound: int, faults: Any) -> None:
    """Puts and gets 60 of 12 keys in a store that holds three; each key has features of its own."""
    torch.set_num_threads(1)
    store = FeatureStore(folder, StoreLimits(max_bytes=bound))
    order = np.random.default_rng(seed).integers(0, 12, 60)
    for i in map(int, order):
        key = f"{i:02d}" * 32
        found = store.get(key)
        if found is None:
            said = store.put(key, features(float(i)))
            if said:
                faults.put(said)
        elif not same(found, features(float(i))):
            faults.put(f"{i} came back as another's")


def test_processes_share_one_small_store(tmp_path: Path) -> None:
    bound = 3 * _size(tmp_path / "one") + 200
    context = multiprocessing.get_context("fork")
    faults = context.Queue()
    workers = [
        context.Process(target=_hammer, args=(str(tmp_path / "shared"), seed, bound, faults)) for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert faults.empty()
    assert 0 < held(tmp_path / "shared") <= bound
    assert not list((tmp_path / "shared").rglob("*.tmp"))
