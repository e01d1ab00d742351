"""Times the library on this machine: starts in fresh processes, each task when warm, and the peer beside it.

A peer runs the reference library on the same weights, in the same process and in turns with ours, so that
the ratio is fair on a machine whose speed drifts. A ratio above 1 means that `mm` is faster.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mm.bench.timing import Step, times_of
from mm.scenes.render import render_scene
from mm.zoo import find

LABELS = ("cat", "boat", "blue mushroom", "diamond", "tree")
COLD_TURNS = 5

_FIRST_CAPTION = "import sys; from mm.tasks.caption import caption; caption(sys.argv[1], model=sys.argv[2])"


def run(model: str = "tiny", repeats: int = 20, progress: bool = False) -> list[dict[str, Any]]:
    """Rows ``step, ms, peer, peer_ms, ratio``; times are medians in milliseconds, `ratio` is that of peer / ours.

    `repeats` counts the timed turns of each warm step; starts of a process are timed `COLD_TURNS` times.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "scene.png")
        Image.fromarray(scene()).save(picture)
        steps = (*_cold_steps(model, picture), *_warm_steps(model, picture))
        for step in tqdm(steps, disable=not progress, leave=False, unit="step"):
            times = times_of(step, COLD_TURNS if step.cold else repeats)
            cells = {"ms": times.ms, "peer": step.peer, "peer_ms": times.peer_ms, "ratio": times.ratio}
            rows.append({"step": step.name, **cells})
    return rows


def scene() -> np.ndarray:
    """uint8[240, 320, 3]: one drawn scene, the same at every call."""
    return render_scene(7, (320, 240)).pixels


def _cold_steps(model: str, picture: Path) -> list[Step]:
    def start(*arguments: str) -> Callable[[], Any]:
        command = [sys.executable, *arguments]
        return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return [
        Step("python -c pass", start("-c", "pass"), cold=True),
        Step("import mm", start("-c", "import mm"), cold=True),
        Step("mm --help", start("-m", "mm", "--help"), cold=True),
        Step("first caption", start("-c", _FIRST_CAPTION, str(picture), model), cold=True),
    ]


def _warm_steps(model: str, picture: Path) -> list[Step]:
    from mm.images import open_image
    from mm.tasks.caption import caption
    from mm.tasks.detect import detect
    from mm.tasks.encode import encode
    from mm.tasks.segment import segment

    pixels = open_image(picture)
    encoded = encode(pixels, model=model)
    peers = {"encode": _timm_encode(model, pixels.pil()), "caption": _transformers_caption(model, encoded)}
    return [
        Step("encode", lambda: encode(pixels, model=model), peer="timm", theirs=peers["encode"]),
        Step("caption", lambda: caption(pixels, model=model)),
        Step(
            "caption, encoded before",
            lambda: caption(encoded, model=model),
            peer="transformers generate",
            theirs=peers["caption"],
        ),
        Step(f"detect {len(LABELS)} labels", lambda: detect(pixels, LABELS, model=model)),
        Step(f"segment {len(LABELS)} labels", lambda: segment(pixels, LABELS, model=model)),
    ]


def _timm_encode(model: str, image: Image.Image) -> Callable[[], Any]:
    """timm's own way from a picture to the joint embedding, with the same weights."""
    import timm
    import torch
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    net: Any = timm.create_model(f"local-dir:{find(model) / 'vision'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(net), is_training=False)

    @torch.inference_mode()
    def call() -> Any:
        return net(transform(image)[None])

    return call


def _transformers_caption(model: str, encoded: Any) -> Callable[[], Any]:
    """transformers' own generation from the same encoded picture, prompt and weights."""
    import torch

    from mm.checkpoints.loading import load

    speaker = load(model).speaker
    assert speaker is not None
    decoder, features = speaker.decoder, encoded.features
    prompt = decoder.embed(torch.tensor([decoder.prompt_ids(speaker.prompt)]))

    @torch.inference_mode()
    def call() -> Any:
        tokens, _ = speaker.connector(features.tokens, features.grid)
        return decoder.lm.generate(inputs_embeds=torch.cat([tokens, prompt], 1), max_new_tokens=96, do_sample=False)

    return call
