"""Times encoders beside their reference libraries: pictures from JPEG files and texts, on the same random weights.

Both sides do the whole way in one process and on the same threads: read the file, prepare the pixels, run the tower.
They take turns, and the medians are compared; a ratio above 1 means that `mm` is faster.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mm.bench.timing import Step, times_of
from mm.encoders.build import Dtype, load_encoder
from mm.encoders.transformers_weights import quiet
from mm.images import open_image
from mm.pictures.side_by_side import side_by_side

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
PICTURE_HW = (480, 640)

_WORDS = (
    "a", "photo", "of", "red", "blue", "small", "large", "cat", "dog", "car",
    "boat", "tree", "house", "on", "the", "green", "hill", "near", "water",
)  # fmt: skip
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Case:
    """make: writes the checkpoint into a folder; peer: builds the reference's two ways from that folder, from files
    to float[B, E] and from texts to float[K, E]."""

    name: str
    library: str
    make: Callable[[Path, bool], None]
    peer: Callable[[Path], tuple[Callable[[list[Path]], Tensor], Callable[[list[str]], Tensor]]]


def run(repeats: int = 10, batch: int = 8, small: bool = False, progress: bool = False) -> list[dict[str, Any]]:
    """Rows ``encoder, input, dtype, per_s, peer, peer_per_s, ratio, cosine``: items per second by medians, and the
    least cosine between the features of an item on both sides. The peer always runs in float32.

    batch: pictures or texts in one pass. small: towers of a few thousand weights, to test the measuring itself.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home, torch.inference_mode(), quiet():
        files = pictures(Path(home), batch)
        texts = [" ".join(_WORDS[(i + k * (i + 3)) % len(_WORDS)] for k in range(4 + i % 9)) for i in range(batch)]
        for case in tqdm(CASES, disable=not progress, leave=False, unit="encoder"):
            folder = Path(home, case.name)
            folder.mkdir()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                case.make(folder, small)
            rows += _rows(case, folder, files, texts, repeats)
    return rows


def _rows(case: Case, folder: Path, files: list[Path], texts: list[str], repeats: int) -> list[dict[str, Any]]:
    images, words = case.peer(folder)
    rows = []
    for dtype in DTYPES:
        encoder = load_encoder(folder, dtype=dtype).encoder
        prepare = encoder.spec.preprocessing.pixels

        def ours(prepare: Any = prepare, encoder: Any = encoder, dtype: Dtype = dtype) -> Tensor:
            pixels = torch.stack(side_by_side(lambda file: prepare(open_image(file).pixels), files))
            return encoder.encode_image(pixels.to(getattr(torch, dtype))).pooled

        def read(encoder: Any = encoder) -> Tensor:
            return encoder.encode_text(texts).pooled

        for name, mine, theirs in (
            ("images", ours, lambda: images(files)),
            ("texts", read, lambda: words(texts)),
        ):
            cosine = float(F.cosine_similarity(mine().float(), theirs().float(), dim=-1).min())
            times = times_of(Step(name, mine, theirs=theirs), repeats)
            assert times.peer_ms is not None
            rows.append(
                {
                    "encoder": case.name, "input": name, "dtype": dtype, "per_s": len(files) * 1000 / times.ms,
                    "peer": case.library, "peer_per_s": len(files) * 1000 / times.peer_ms, "ratio": times.ratio,
                    "cosine": cosine,
                }
            )  # fmt: skip
    return rows


def pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of `PICTURE_HW`: slopes, waves and a little noise, about as large as photographs of that size."""
    rows, columns = np.mgrid[0 : PICTURE_HW[0], 0 : PICTURE_HW[1]]
    files = []
    for i in range(count):
        waves = 60 * np.sin(rows / (7 + i)) + 60 * np.cos(columns / (11 + i)) + rows / 8 + columns / 8
        noise = np.random.default_rng(i).normal(0, 12, (*PICTURE_HW, 3))
        pixels = np.clip(waves[..., None] + noise + [40, 60, 80], 0, 255).astype(np.uint8)
        files.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    return files


def byte_tokenizer(folder: Path, length: int) -> dict[str, int]:
    """A byte tokenizer in transformers' format; the ids of its marks."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length).save_pretrained(folder)
    return {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}


def _plain_letters(folder: Path, length: int) -> None:
    """Words and letters with one end mark and no begin mark, as SigLIP's tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz")]
    inner: Any = Tokenizer(models.Unigram([*pieces, *((f"▁{word}", -1.0) for word in _WORDS)], unk_id=1))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    marks = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "model_max_length": length}
    PreTrainedTokenizerFast(tokenizer_object=inner, **marks).save_pretrained(folder)


def _make_clip(folder: Path, small: bool) -> None:
    """transformers' defaults are ViT-B/32."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vision = _SMALL | {"image_size": 32, "patch_size": 8} if small else {}
    config = CLIPConfig(text_config=(_SMALL if small else {}) | byte_tokenizer(folder, 77), vision_config=vision)
    CLIPModel(config).save_pretrained(folder)
    side = 32 if small else 224
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)


def _make_siglip(folder: Path, small: bool) -> None:
    """transformers' defaults are ViT-B/16 at 224 pixels."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    _plain_letters(folder, 64)
    vision = _SMALL | {"image_size": 32, "patch_size": 8} if small else {}
    text = _SMALL | {"projection_size": 32} if small else {}
    marks = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = SiglipConfig(text_config=text | marks, vision_config=vision)
    SiglipModel(config).save_pretrained(folder)
    side = 32 if small else 224
    SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)


def _make_mobileclip(folder: Path, small: bool) -> None:
    """open_clip's configuration of MobileCLIP2-S0; small: its smallest relative, few pixels, one text block."""
    import open_clip
    from safetensors.torch import save_file

    model = copy.deepcopy(open_clip.get_model_config("MobileCLIP2-S0"))
    assert model is not None
    if small:
        model["vision_cfg"] |= {"timm_model_name": "fastvit_t8", "image_size": 64}
        model["text_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    side = model["vision_cfg"]["image_size"]
    stats = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}
    config = {"model_cfg": model, "preprocess_cfg": stats | {"size": [side, side]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    net = open_clip.CustomTextCLIP(**{k: v for k, v in model.items() if k != "custom_text"})
    _settle(net)
    tensors = {key: value.contiguous().clone() for key, value in net.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")


def _settle(net: torch.nn.Module) -> None:
    """Running statistics other than 0 and 1, so that fusing has something to fold in."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def _transformers_peer(folder: Path) -> tuple[Callable[[list[Path]], Tensor], Callable[[list[str]], Tensor]]:
    from transformers import AutoImageProcessor, AutoModel, PreTrainedTokenizerFast

    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    sigmoid = hasattr(model, "logit_bias")

    def images(files: list[Path]) -> Tensor:
        opened = [Image.open(file).convert("RGB") for file in files]
        return model.get_image_features(**processor(images=opened, return_tensors="pt")).pooler_output

    def texts(given: list[str]) -> Tensor:
        made = tokenizer(given, padding="max_length" if sigmoid else True, truncation=True, return_tensors="pt")
        kept = ("input_ids",) if sigmoid else ("input_ids", "attention_mask")
        return model.get_text_features(**{name: made[name] for name in kept}).pooler_output

    return images, texts


def _open_clip_peer(folder: Path) -> tuple[Callable[[list[Path]], Tensor], Callable[[list[str]], Tensor]]:
    import open_clip

    created: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model, transform = created[0].eval(), created[1]
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")

    def images(files: list[Path]) -> Tensor:
        return model.encode_image(torch.stack([transform(Image.open(file)) for file in files]))

    return images, lambda given: model.encode_text(tokenizer(given))


CASES = (
    Case("CLIP ViT-B-32", "transformers", _make_clip, _transformers_peer),
    Case("SigLIP ViT-B-16", "transformers", _make_siglip, _transformers_peer),
    Case("MobileCLIP2-S0", "open_clip", _make_mobileclip, _open_clip_peer),
)
