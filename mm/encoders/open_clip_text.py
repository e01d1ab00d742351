"""Texts as open_clip's tokenizers read them, for text that nobody has vetted.

Ids equal open_clip's own, but for two things: the spelling of a special token is read as the letters it consists of,
and a word is merged in n log n steps, where open_clip's tokenizer needs seconds for a word of some thousand letters.
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from mm.encoders.text import Canonical, TextRules, TextSpec, fast_rules
from mm.errors import CheckpointError

_FORMS: dict[str, Canonical] = {
    "lower": "mended lower",
    "whitespace": "mended",
    "canonicalize": "mended letters",
}
_LENGTH = 77  # where a configuration names none, as in open_clip


def open_clip_rules(text_cfg: dict[str, Any], folder: Path | None, name: str) -> TextRules:
    """The rules of a `text_cfg`. Files of a transformers tokenizer are looked for in `folder`, nowhere else.

    Every text is filled to the full length: open_clip's towers add all their position embeddings.

    Raises:
        CheckpointError: the tokenizer's files are missing, or the configuration wants what is not supported.
    """
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    wanted = text_cfg.get("hf_tokenizer_name")
    length = int(text_cfg.get("context_length", _LENGTH))
    clean = str(options.pop("clean", "whitespace" if wanted else "lower"))
    if clean not in _FORMS:
        raise CheckpointError(f"{name}: unknown text cleaning {clean!r}; known are {', '.join(_FORMS)}")
    if text_cfg.get("tokenizer_mode"):
        raise CheckpointError(f"{name}: tokenizer_mode {text_cfg['tokenizer_mode']!r} is not supported")
    if wanted:
        return _hub_rules(str(wanted), options, length, _FORMS[clean], folder, name)
    extra = options.pop("additional_special_tokens", None)
    _nothing_left(options, name)
    tokenizer = SimpleTokenizer(additional_special_tokens=extra, context_length=length)
    if tokenizer.vocab_size > int(text_cfg.get("vocab_size", tokenizer.vocab_size)):
        raise CheckpointError(f"{name}: the tokenizer has {tokenizer.vocab_size} ids, more than the text tower")
    spec = TextSpec(length, _FORMS[clean], True, (tokenizer.sot_token_id,), (tokenizer.eot_token_id,), 0)
    return _simple_rules(tokenizer, spec)


def _nothing_left(options: dict[str, Any], name: str) -> None:
    if options:
        raise CheckpointError(f"{name}: tokenizer_kwargs {', '.join(sorted(options))} not supported")


def _simple_rules(tokenizer: SimpleTokenizer, spec: TextSpec) -> TextRules:
    marks = "|".join(tokenizer.decoder[i] for i in tokenizer.all_special_ids)
    words = regex.compile(tokenizer.pat.pattern.removeprefix(marks + "|"), regex.IGNORECASE)

    def plain_ids(text: str) -> list[int]:
        pieces = (piece for word in words.findall(text) for piece in _merged(_letters(word, tokenizer), tokenizer))
        return [tokenizer.encoder[piece] for piece in pieces]

    return TextRules(tokenizer, spec, plain_ids)


def _letters(word: str, tokenizer: SimpleTokenizer) -> list[str]:
    """The word's bytes as the vocabulary writes them; the last is marked as an end."""
    letters = [tokenizer.byte_encoder[byte] for byte in word.encode("utf-8")]
    return [*letters[:-1], letters[-1] + "</w>"]


def _merged(parts: list[str], tokenizer: SimpleTokenizer) -> list[str]:
    """Byte-pair encoding (Sennrich et al. 2016, section 3.2): the earliest learned pair first, left before right."""
    ranks = tokenizer.bpe_ranks
    after = [*range(1, len(parts)), -1]
    before = [-1, *range(len(parts) - 1)]
    pairs = ((ranks.get(pair), i) for i, pair in enumerate(pairwise(parts)))
    heap = [(rank, i, parts[i], parts[i + 1]) for rank, i in pairs if rank is not None]
    heapq.heapify(heap)

    def offer(i: int) -> None:
        if i >= 0 and after[i] >= 0 and (rank := ranks.get((parts[i], parts[after[i]]))) is not None:
            heapq.heappush(heap, (rank, i, parts[i], parts[after[i]]))

    while heap:
        _, i, left, right = heapq.heappop(heap)
        other = after[i]
        if other < 0 or parts[i] != left or parts[other] != right:
            continue  # one of the two was merged meanwhile
        parts[i], parts[other] = left + right, ""
        after[i] = after[other]
        if after[i] >= 0:
            before[after[i]] = i
        offer(before[i])
        offer(i)
    return [part for part in parts if part]


def _hub_rules(
    wanted: str, options: dict[str, Any], length: int, form: Canonical, folder: Path | None, name: str
) -> TextRules:
    strip_separator = options.pop("strip_sep_token", False)
    language = options.pop("language", None)
    _nothing_left(options, name)
    missing = (
        f"{name}: the texts are for the tokenizer {wanted!r}, whose files (tokenizer.json, tokenizer_config.json) "
        f"are not {'in the folder' if folder else 'at hand; give the folder that has them'}"
    )
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(missing)
    try:
        tokenizer = HFTokenizer(
            str(folder), length, language=language, local_files_only=True, trust_remote_code=False
        ).tokenizer
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(f"{missing}, or cannot be read ({type(error).__name__})") from error
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{name}: the tokenizer has no padding token")
    begin, end = _marks(tokenizer)
    if strip_separator:
        begin, end = (tuple(0 if i == tokenizer.sep_token_id else i for i in ids) for ids in (begin, end))
    return fast_rules(tokenizer, TextSpec(length, form, True, begin, end, int(tokenizer.pad_token_id)))


def _marks(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts in front of a text and behind it."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:at]), tuple(whole[at + len(bare) :])
