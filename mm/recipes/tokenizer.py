"""Trains the byte-fallback BPE tokenizer that both text towers of `tiny` share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from mm.scenes.language import phrase
from mm.scenes.vocabulary import COLOURS, COUNTS, KINDS, RELATIONS, SEEN_PAIRS, SIZES, TEXTURES, plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<s>", "<unk>", "</s>")
DEFAULT_PROMPT = "describe the picture"

_QUESTIONS = (
    "what colour is the background?", "what colour is the car?", "what is the texture of the car?",
    "is the car small or large?", "how many cars are there?", "is there a red car? yes no",
    "where is the red car, seen from the blue star?", "a drawing of a red thing", "the red object",
)  # fmt: skip


def _sentences() -> list[str]:
    rng = np.random.default_rng(0)
    words = [
        *COLOURS,
        *KINDS,
        *map(plural, KINDS),
        *TEXTURES,
        *SIZES,
        *RELATIONS,
        *COUNTS,
        DEFAULT_PROMPT,
        *_QUESTIONS,
    ]
    lines = []
    for _ in range(4000):
        colour, kind = SEEN_PAIRS[rng.integers(len(SEEN_PAIRS))]
        count = int(rng.integers(1, 6))
        ground = COLOURS[rng.integers(len(COLOURS))]
        lines.append(f"{phrase(TEXTURES[rng.integers(3)], colour, kind, count)}, and on a an {ground} background")
    return lines + words * 40


def train_tokenizer(vocabulary: int = 512) -> PreTrainedTokenizerFast:
    """A fast tokenizer of at most `vocabulary` tokens; anything outside its words falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    first = Tokenizer(models.BPE(unk_token="<unk>"))
    first.pre_tokenizer = _splitter(pre_tokenizers)
    room = vocabulary - len(SPECIALS) - len(byte_tokens)
    first.train_from_iterator(_sentences(), trainers.BpeTrainer(vocab_size=room, show_progress=False, min_frequency=2))
    state = json.loads(first.to_str())["model"]
    learned = [token for token, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    vocab = {token: i for i, token in enumerate([*SPECIALS, *byte_tokens, *learned])}
    merges = [tuple(merge) for merge in state["merges"]]
    final = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    final.pre_tokenizer = _splitter(pre_tokenizers)
    final.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=final, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>",
        model_max_length=256, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _splitter(pre_tokenizers):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"),
        pre_tokenizers.Punctuation(behavior="isolated"),
    ])  # fmt: skip
