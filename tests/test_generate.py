"""The generation loop: cached equals uncached, batched equals single, limits hold."""

from __future__ import annotations

import copy

import pytest
import torch

from mm.checkpoints.loading import load
from mm.decoders.base import Unread
from mm.decoders.causal import greedy
from mm.errors import ResourceLimitError
from mm.generation.loop import deltas, generate
from mm.kernels.cache import KVPrefix


@pytest.fixture(scope="module")
def decoder():
    return load("tiny").speaker.decoder


def random_prefix(decoder, batch: int, length: int, seed: int = 0) -> KVPrefix:
    embeds = torch.randn(batch, length, decoder.lm.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return decoder.extend(embeds)[1]


def finished(decoder, prefix: KVPrefix, prompt: list[int], count: int) -> list[list[int]]:
    *_, rows = generate(decoder, prefix, prompt, max_new_tokens=count)
    return [row.ids for row in rows]


@torch.inference_mode()
def test_cached_steps_equal_one_full_forward(decoder) -> None:
    embeds = torch.randn(2, 9, decoder.lm.config.hidden_size, generator=torch.Generator().manual_seed(3))
    full = decoder.lm(inputs_embeds=embeds).logits[:, -1]
    by_parts, cache = None, None
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        by_parts, cache = decoder.extend(embeds[:, start:stop], cache)
    torch.testing.assert_close(by_parts, full, atol=1e-4, rtol=1e-4)
    assert cache.length == 9 and cache.batch == 2


def test_continuing_leaves_the_prefix_as_it_was(decoder) -> None:
    prefix = random_prefix(decoder, 1, 6)
    before = [k.clone() for k in prefix.keys]
    first = finished(decoder, prefix, decoder.prompt_ids("describe"), 12)
    second = finished(decoder, prefix, decoder.prompt_ids("describe"), 12)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(before, prefix.keys, strict=True))


def test_a_batch_of_prefixes_gives_each_its_own_answer(decoder) -> None:
    prefixes = [random_prefix(decoder, 1, 6, seed) for seed in range(3)]
    prompt = decoder.prompt_ids("describe the picture")
    together = finished(decoder, KVPrefix.stack(prefixes), prompt, 15)
    assert together == [finished(decoder, p, prompt, 15)[0] for p in prefixes]
    assert torch.equal(KVPrefix.stack(prefixes)[1].keys[0], prefixes[1].keys[0])


def test_it_equals_transformers_own_greedy_search(decoder) -> None:
    prompt = torch.tensor([decoder.prompt_ids("describe the picture")])
    embeds = torch.randn(1, 5, decoder.lm.config.hidden_size, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        prefix = decoder.extend(embeds)[1]
        both = torch.cat([embeds, decoder.embed(prompt)], 1)
        theirs = decoder.lm.generate(
            inputs_embeds=both, attention_mask=torch.ones(both.shape[:2]), max_new_tokens=20, do_sample=False
        )[0].tolist()
    end = decoder.tokenizer.eos_token_id
    theirs = theirs[: theirs.index(end)] if end in theirs else theirs
    assert finished(decoder, prefix, prompt[0].tolist(), 20)[0] == theirs


def test_what_is_unread_is_read_with_the_prompt_to_the_last_bit(decoder) -> None:
    narrow = copy.deepcopy(decoder).to(torch.bfloat16)
    width, prompt = narrow.lm.config.hidden_size, narrow.prompt_ids("describe the picture")
    embeds = torch.randn(1, 64, width, generator=torch.Generator().manual_seed(7)).bfloat16()
    unread = Unread(embeds[:, 9:], narrow.extend(embeds[:, :9])[1])
    assert (unread.length, unread.batch) == (64, 1)
    whole = torch.cat([embeds, narrow.embed(torch.tensor([prompt]))], 1)
    heard = []

    def listening(given, past=None, **how):
        logits, past = type(narrow).extend(narrow, given, past, **how)
        heard.append((given.shape[1], logits))
        return logits, past

    narrow.extend = listening
    next(generate(narrow, Unread(embeds), prompt, max_new_tokens=2))
    del narrow.extend
    ((count, logits),) = heard
    assert count == whole.shape[1] and torch.equal(logits, narrow.extend(whole)[0])
    behind = finished(decoder, Unread(unread.embeds.float(), decoder.extend(embeds[:, :9].float())[1]), prompt, 12)
    assert behind == finished(decoder, Unread(embeds.float()), prompt, 12)


def test_what_is_unread_may_differ_in_length_from_row_to_row(decoder) -> None:
    width, prompt = decoder.lm.config.hidden_size, decoder.prompt_ids("describe the picture")
    rows = [Unread(torch.randn(1, n, width, generator=torch.Generator().manual_seed(n))) for n in (3, 8)]
    *_, together = generate(decoder, rows, prompt, max_new_tokens=10)
    assert [row.ids for row in together] == [finished(decoder, row, prompt, 10)[0] for row in rows]


def test_a_picture_that_several_prompts_are_about_is_read_once(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, extend = [], type(decoder).extend

    def counting(self, embeds, *args, **how):
        counts.append(tuple(embeds.shape[:2]))
        return extend(self, embeds, *args, **how)

    monkeypatch.setattr(type(decoder), "extend", counting)
    unread = Unread(torch.randn(1, 20, decoder.lm.config.hidden_size))
    prompts = [decoder.prompt_ids(words) for words in ("is it red?", "how many cats are there?", "describe")]
    next(generate(decoder, unread, prompts, max_new_tokens=2))
    assert counts == [(1, 20), (3, max(map(len, prompts)))]


def test_a_full_context_is_an_error_that_says_how_much_fits(decoder) -> None:
    prefix = random_prefix(decoder, 1, decoder.context - 20)
    with pytest.raises(ResourceLimitError, match="at most 17 here"):
        next(generate(decoder, prefix, [1, 2, 3], max_new_tokens=18))
    assert finished(decoder, prefix, [1, 2, 3], 17)


def test_the_last_allowed_token_says_length(decoder) -> None:
    *_, rows = generate(decoder, random_prefix(decoder, 1, 4), decoder.prompt_ids("describe"), max_new_tokens=1)
    assert rows[0].finish_reason in ("length", "stop") and len(rows[0].ids) <= 1


def test_deltas_give_only_whole_characters(decoder) -> None:
    from mm.generation.loop import Row

    ids = [decoder.tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "né".encode()]
    steps = ([Row(ids[: i + 1], "stop" if i + 1 == len(ids) else None)] for i in range(len(ids)))
    assert list(deltas(decoder, steps)) == ["n", "é"]


def test_greedy_takes_the_likeliest() -> None:
    assert greedy(torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])).tolist() == [1, 0]
