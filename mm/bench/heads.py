"""Times text-prompted detection and segmentation beside transformers, on the same random weights, from a JPEG file.

The detector's peer is the `zero-shot-object-detection` pipeline, which runs the image tower once a label; the
segmenter's is the model class driven as its documentation shows, one copy of the picture a prompt. Ours and theirs
take turns; a ratio above 1 means that `mm` is faster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from mm.bench.encoders import byte_tokenizer, pictures
from mm.bench.timing import Step, times_of
from mm.encoders.transformers_weights import quiet
from mm.tasks.detect import detect
from mm.tasks.segment import segment

DETECT_LABELS, SEGMENT_PROMPTS = (1, 20, 80), (1, 10)
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def run_detect(repeats: int = 3, small: bool = False, progress: bool = False) -> list[dict[str, Any]]:
    """Rows ``labels, ms, peer_ms, ratio`` on an OWL-ViT of base/32 size at 768 pixels.

    small: a detector of a few thousand weights, to test the measuring itself.
    """
    with tempfile.TemporaryDirectory() as home, quiet():
        (file,) = pictures(Path(home), 1)
        folder = Path(home, "owlvit")
        _make_owlvit(folder, small)
        peer = _pipeline(folder)
        cases = [
            (
                count,
                lambda names=names: detect(file, names, model=str(folder), threshold=0.1),
                lambda names=names: peer(str(file), candidate_labels=names, threshold=0.1),
            )
            for count, names in ((n, _names(n)) for n in DETECT_LABELS)
        ]
        return _rows("labels", cases, repeats, progress)


def run_segment(repeats: int = 3, small: bool = False, progress: bool = False) -> list[dict[str, Any]]:
    """Rows ``prompts, ms, peer_ms, ratio`` on a CLIPSeg of the rd64 shape at 352 pixels."""
    with tempfile.TemporaryDirectory() as home, quiet():
        (file,) = pictures(Path(home), 1)
        folder = Path(home, "clipseg")
        _make_clipseg(folder, small)
        peer = _by_hand(folder)
        cases = [
            (
                count,
                lambda names=names: segment(file, names, model=str(folder)),
                lambda names=names: peer(file, names),
            )
            for count, names in ((n, _names(n)) for n in SEGMENT_PROMPTS)
        ]
        return _rows("prompts", cases, repeats, progress)


def _rows(
    name: str, cases: list[tuple[int, Callable[[], Any], Callable[[], Any]]], repeats: int, progress: bool
) -> list[dict[str, Any]]:
    rows = []
    for count, ours, theirs in tqdm(cases, disable=not progress, leave=False, unit="case"):
        times = times_of(Step(name, ours, theirs=theirs), repeats)
        cells = {"ms": times.ms, "peer": "transformers", "peer_ms": times.peer_ms, "ratio": times.ratio}
        rows.append({name: count, **cells})
    return rows


def _names(count: int) -> list[str]:
    return [f"thing number {i}" for i in range(count)]


def _make_owlvit(folder: Path, small: bool) -> None:
    """transformers' defaults are base/32."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor

    folder.mkdir()
    marks = byte_tokenizer(folder, 16)
    text = (_SMALL if small else {}) | marks
    vision = _SMALL | {"image_size": 64} if small else {}
    config: Any = OwlViTConfig(text_config=text, vision_config=vision, projection_dim=32 if small else 512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        OwlViTForObjectDetection(config).save_pretrained(folder)
    side = config.vision_config.image_size
    OwlViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)


def _make_clipseg(folder: Path, small: bool) -> None:
    """The rd64 shape: ViT-B/16, three layers reduced to 64."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, ViTImageProcessor

    folder.mkdir()
    marks = byte_tokenizer(folder, 77)
    vision = _SMALL | {"image_size": 64, "patch_size": 16} if small else {"image_size": 352, "patch_size": 16}
    layers: dict[str, Any] = {"extract_layers": [0, 1]} if small else {}
    config: Any = CLIPSegConfig(text_config=(_SMALL if small else {}) | marks, vision_config=vision, **layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPSegForImageSegmentation(config).save_pretrained(folder)
    side = config.vision_config.image_size
    stats: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    ViTImageProcessor(size={"height": side, "width": side}, **stats).save_pretrained(folder)


def _pipeline(folder: Path) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer, OwlViTForObjectDetection, pipeline

    model = OwlViTForObjectDetection.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return pipeline("zero-shot-object-detection", model=model, image_processor=processor, tokenizer=tokenizer)


def _by_hand(folder: Path) -> Callable[[Path, list[str]], Any]:
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation, ViTImageProcessor

    loaded: Any = CLIPSegForImageSegmentation.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = loaded.eval()
    processor: Any = ViTImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def call(file: Path, names: list[str]) -> Any:
        image = Image.open(file).convert("RGB")
        pixels = processor([image] * len(names), return_tensors="pt")
        ids = tokenizer(names, padding=True, truncation=True, return_tensors="pt")
        logits = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], **pixels).logits
        logits = logits.reshape(len(names), 1, *pixels["pixel_values"].shape[2:])
        size = image.size[::-1]
        return torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).sigmoid() > 0.5

    return call
