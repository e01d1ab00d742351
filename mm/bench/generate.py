"""Times generation beside transformers' own `generate()`, on the same random weights and in turns with it.

A ratio above 1 means that `mm` is faster. The peer is LLaVA: a SigLIP tower, two matrices, and a Llama. Both see a
picture, from its pixels on, read a prompt of `PROMPT` tokens and write `NEW` tokens, ours with and without compiled
routines; or they answer `QUESTIONS` questions of `QUESTION` tokens about one picture in `ANSWER` tokens each. Rows of
`int8` are ours with rounded weights of the decoder beside transformers in bfloat16.
Random weights find most words about equally likely, so tokens part at the first bit that differs. In bfloat16 only the
compiled rows sum as the peer does; weights in int8 are others. It says nothing of what rounding costs a trained model.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mm.bench.timing import Step, times_of

if TYPE_CHECKING:
    from mm.joined import Joined

PROMPT, NEW = 96, 64
QUESTIONS, QUESTION, ANSWER = 8, 12, 16


@dataclass(frozen=True)
class Shape:
    """decoder: of a LlamaConfig. tower: of a SiglipVisionConfig."""

    decoder: dict[str, int]
    tower: dict[str, int]


_TINY = Shape(
    {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6,
     "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 256},
    {"image_size": 128, "patch_size": 16, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
     "intermediate_size": 1024},
)  # fmt: skip
_SMOL = Shape(
    {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
     "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192},
    {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
     "intermediate_size": 3072},
)  # fmt: skip
SHAPES = {"tiny": _TINY, "135M": _SMOL}
DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Case:
    """One comparison: the two ways to the same tokens. Each call gives the answers' token numbers."""

    name: str
    ours: Callable[[], list[list[int]]]
    theirs: Callable[[], list[list[int]]]


def run(repeats: int = 5, shapes: tuple[str, ...] = tuple(SHAPES), progress: bool = False) -> list[dict[str, Any]]:
    """Rows ``step, dtype, ms, peer, peer_ms, ratio, same_tokens``; medians of alternating turns in milliseconds.

    same_tokens: the part of the greedy tokens, up to the first that differs, that both ways agree on.
    """
    from mm.encoders.transformers_weights import quiet

    rows: list[dict[str, Any]] = []
    plan = [(shape, dtype) for shape in shapes for dtype in DTYPES]
    with tempfile.TemporaryDirectory() as home, quiet():
        for shape in shapes:
            save_random(Path(home, shape), SHAPES[shape])
        for shape, dtype in tqdm(plan, disable=not progress, leave=False, unit="model"):
            for case in cases(Path(home, shape), shape, dtype):
                agreed = _agreement(case.ours(), case.theirs())
                times = times_of(Step(case.name, case.ours, theirs=case.theirs), repeats)
                rows.append({
                    "step": case.name, "dtype": dtype, "ms": times.ms, "peer": "transformers generate",
                    "peer_ms": times.peer_ms, "ratio": times.ratio, "same_tokens": agreed,
                })  # fmt: skip
    return rows


def cases(folder: Path, shape: str, dtype: str) -> list[Case]:
    """One answer, the same by compiled routines where this machine has them, and several questions about a picture."""
    import torch

    from mm.checkpoints.loading import load

    narrow = "float32" if dtype == "float32" else "bfloat16"
    peer = Peer(folder, narrow)
    chance = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, peer.side, peer.side, generator=chance).to(getattr(torch, narrow))
    prompt = torch.randint(3, peer.picture, (1, PROMPT), generator=chance).tolist()
    questions = torch.randint(3, peer.picture, (QUESTIONS, QUESTION), generator=chance).tolist()

    def compared(name: str, asked: list[list[int]], count: int, *, compile: bool = False) -> Case:
        joined = load(folder, dtype=narrow, int8=dtype == "int8", compile=compile)
        return Case(name, lambda: answers(joined, pixels, asked, count), lambda: peer(pixels, asked, count))

    one = f"{NEW} tokens, {shape}"
    found = [
        compared(one, prompt, NEW),
        compared(f"{QUESTIONS} questions about one picture, {shape}", questions, ANSWER),
    ]
    with warnings.catch_warnings(), contextlib.suppress(UserWarning):
        warnings.filterwarnings("error", message="compile: ")  # nothing could be compiled
        found.insert(1, compared(f"{one}, compiled", prompt, NEW, compile=True))
    return found


def answers(joined: Joined, pixels: Any, asked: list[list[int]], count: int) -> list[list[int]]:
    """Of `mm`: the picture is seen once, and a decoder that is asked more than one thing reads it once."""
    from mm.decoders.base import Unread
    from mm.generation.loop import generate

    speaker = joined.speaker
    assert speaker is not None
    picture = speaker.connected(joined.encoder.encode_image(pixels, joined.spec.layers))
    *_, rows = generate(speaker.decoder, Unread(picture), asked, max_new_tokens=count)
    return [row.ids for row in rows]


class Peer:
    """The LLaVA of a folder, driven as its own library does: a call for each prompt.

    side: of its pictures, in pixels. picture: the number that stands for one of the tokens of a picture.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        from transformers import LlavaForConditionalGeneration

        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        tower = self.model.config.vision_config
        self.side, self.picture = tower.image_size, self.model.config.image_token_id
        self._patches = (self.side // tower.patch_size) ** 2

    def __call__(self, pixels: Any, asked: list[list[int]], count: int) -> list[list[int]]:
        import torch

        answers = []
        for prompt in asked:
            ids = torch.tensor([[self.picture] * self._patches + prompt])
            made = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=count,
                do_sample=False,
            )  # fmt: skip
            answers.append(made[0, ids.shape[1] :].tolist())
        return answers


def save_random(folder: Path, shape: Shape) -> None:
    """A LLaVA folder of that shape with seeded weights. It never ends an answer by itself; and its weights are larger
    than at the start of training, where a decoder says one word for ever and no difference would show."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerFast,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    marks: Any = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.1}
    text: Any = LlamaConfig(**shape.decoder, **marks)
    head: Any = {"vision_use_head": False}
    tower: Any = SiglipVisionConfig(**shape.tower, **head)
    words = {f"w{number}": number for number in range(text.vocab_size - 1)} | {"<image>": text.vocab_size - 1}
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=words["<image>"],
        vision_feature_select_strategy="full", vision_feature_layer=-2, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    side = {"height": tower.image_size, "width": tower.image_size}
    SiglipImageProcessor(size=side).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(words, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", unk_token="w2").save_pretrained(folder)


def _agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    same = 0
    for mine, other in zip(ours, theirs, strict=True):
        same += next((i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(other))
    return same / sum(map(len, theirs))
