"""Pictures and words in any order: one reading of a picture serves many questions, and every sample counts its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mm
from mm.checkpoints.loading import load
from mm.decoders.base import Decoder
from mm.encoders.base import ImageFeatures
from mm.errors import ImageInputError, InputError, TextInputError
from mm.generation.prompts import Prompt, Turn, asked
from mm.generation.sampling import Sampling
from mm.vlm import Speaker, View
from tests.parity.llava_folders import CHATML, processor, reference, saved

QUESTIONS = ["what is it?", "how many things are there in the picture?", "is it red?"]
NEW = 8


def pixels(seed: int, hw: tuple[int, int] = (40, 31)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = reference("clip_vision_model", "qwen2")
    reader = processor("clip_vision_model", made.config, CHATML)
    return mm.load(saved(tmp_path_factory.mktemp("vlm") / "folder", made, reader))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, model: Any) -> dict[str, list[int]]:
    """Pictures of every pass of the image tower, and tokens of every reading of more than one row's word."""
    counted: dict[str, list[int]] = {"tower": [], "decoder": []}
    see, read = type(model.encoder).encode_image, Decoder.extend

    def seeing(self: Any, given: torch.Tensor, layers: tuple[int, ...] = ()) -> ImageFeatures:
        counted["tower"].append(len(given))
        return see(self, given, layers)

    def reading(self: Any, embeds: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counted["decoder"].append(embeds.shape[1])
        return read(self, embeds, *args, **kwargs)

    monkeypatch.setattr(type(model.encoder), "encode_image", seeing)
    monkeypatch.setattr(Decoder, "extend", reading)
    return counted


def test_many_questions_about_one_picture_read_it_once(model: Any, passes: dict[str, list[int]]) -> None:
    encoded = mm.encode(pixels(0), model=model)
    kept = [mm.ask(encoded, q, model=model, max_new_tokens=NEW).text for q in QUESTIONS]
    mm.caption(encoded, model=model, max_new_tokens=1)
    mm.generate([encoded, QUESTIONS[0]], model=model, max_new_tokens=1)
    prompt = model.speaker.prompts(asked(QUESTIONS[0]))
    whole = 16 + len(prompt.parts[0])
    assert passes["tower"] == [1] and passes["decoder"].count(whole) == 1
    fresh = [mm.ask(pixels(0), q, model=model, max_new_tokens=NEW).text for q in QUESTIONS]
    assert fresh == kept and len(set(kept)) > 1
    assert passes["tower"] == [1] * 4


def test_a_picture_that_is_asked_once_is_read_together_with_its_question(
    model: Any, passes: dict[str, list[int]]
) -> None:
    whole = 16 + sum(map(len, model.speaker.prompts(asked(QUESTIONS[0])).parts))
    said = mm.ask(pixels(0), QUESTIONS[0], model=model, max_new_tokens=3)
    stream = mm.ask(pixels(0), QUESTIONS[0], model=model, max_new_tokens=3, stream=True)
    assert "".join(stream) == said.text and said.finish_reason == "length"
    mm.generate([pixels(0), QUESTIONS[0]], model=model, max_new_tokens=3)
    assert passes["decoder"] == [whole, 1, 1] * 3
    passes["decoder"].clear()
    kept, more = mm.encode(pixels(1), model=model), (pixels(2), QUESTIONS[0])
    first = mm.generate([kept, *more], model=model, max_new_tokens=1)
    assert len(passes["decoder"]) == 2  # up to the first picture, which is kept; then the rest
    assert mm.generate([pixels(1), *more], model=model, max_new_tokens=1).text == first.text
    assert len(passes["decoder"]) == 3


def test_threads_share_one_reading(model: Any, passes: dict[str, list[int]]) -> None:
    expected = [mm.ask(pixels(1), q, model=model, max_new_tokens=NEW).text for q in QUESTIONS * 2]
    passes["decoder"].clear()
    encoded = mm.encode(pixels(1), model=model)
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = mm.ask(encoded, (QUESTIONS * 2)[i], model=model, max_new_tokens=NEW).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(expected))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i] for i in range(len(expected))] == expected
    assert passes["decoder"].count(16 + len(model.speaker.prompts(asked("x")).parts[0])) == 1


def test_a_question_leaves_the_kept_reading_as_it_was(model: Any) -> None:
    encoded = mm.encode(pixels(2), model=model)
    first = mm.ask(encoded, QUESTIONS[1], model=model, max_new_tokens=NEW)
    mm.ask(encoded, QUESTIONS[0], model=model, max_new_tokens=NEW)
    assert mm.ask(encoded, QUESTIONS[1], model=model, max_new_tokens=NEW) == first


def test_training_makes_a_kept_reading_anew(model: Any) -> None:
    encoded = mm.encode(pixels(3), model=model)
    before = encoded.prefix(model.speaker)
    assert encoded.prefix(model.speaker) is before
    weight = model.speaker.connector.linear_2.weight
    with torch.no_grad():
        weight.mul_(1.5)
    after = encoded.prefix(model.speaker)
    with torch.no_grad():
        weight.div_(1.5)
    assert after is not before and not torch.allclose(after.keys[0], before.keys[0])


def test_prefix_and_rest_equal_the_whole_prompt_at_once(model: Any) -> None:
    encoded = [mm.encode(pixels(seed), model=model) for seed in range(3)]
    for content in (("see", None, "x"), (None, None, "y"), ("a", None, "b", None, "c", None, "d")):
        prompt = model.speaker.prompts([Turn("user", content)])
        shown = encoded[: prompt.pictures]
        whole = model.speaker.logits(prompt, [e.features for e in shown])
        prefix, rest = model.speaker.read(prompt, shown)
        ids = torch.tensor([rest])
        decoder = model.speaker.decoder
        parts, _ = decoder.extend(decoder.embed(ids), decoder.settled(prefix))
        torch.testing.assert_close(parts[0], whole[-1], atol=1e-4, rtol=1e-4)


def test_the_order_of_pictures_matters(model: Any) -> None:
    first, second = mm.encode(pixels(4), model=model), mm.encode(pixels(5), model=model)
    prompt = model.speaker.prompts(asked("compare", pictures=2))
    one = model.speaker.logits(prompt, [first.features, second.features])
    other = model.speaker.logits(prompt, [second.features, first.features])
    assert not torch.allclose(one[-1], other[-1], atol=1e-3)


def test_every_prompt_counts_its_own_pictures(model: Any) -> None:
    encoded = [mm.encode(pixels(seed), model=model) for seed in range(2)]
    prompt = model.speaker.prompts(asked("compare", pictures=2))
    for given in ([], encoded[:1], [*encoded, *encoded]):
        with pytest.raises(InputError, match=f"places for 2 pictures, {len(given)} were given"):
            model.speaker.read(prompt, given)
        with pytest.raises(InputError, match=f"places for 2 pictures, {len(given)} were given"):
            model.speaker.embeds(prompt, [e.features for e in given])
    with pytest.raises(InputError, match="behind the last picture"):
        model.speaker.read(Prompt(((1,), ())), encoded[:1])


def test_a_batch_equals_each_alone_whatever_their_lengths(model: Any) -> None:
    path = Path("no such file.png")
    batch = [["short", pixels(0)], [pixels(1), "and", pixels(2, (20, 70)), "which of these two is brighter?"], ["hi"]]
    together = mm.generate(batch, model=model, max_new_tokens=NEW)
    assert [t.text for t in together] == [mm.generate(b, model=model, max_new_tokens=NEW).text for b in batch]
    assert [t.size_hw for t in together] == [(40, 31), (40, 31), (1, 1)]
    with pytest.raises(ImageInputError):
        mm.generate([["look", path]], model=model)


def test_examples_and_a_system_text_go_in_front(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Prompt] = []
    real = Speaker.read
    monkeypatch.setattr(Speaker, "read", lambda self, prompt, shown: read.append(prompt) or real(self, prompt, shown))
    shown = [(pixels(7), "what is it?", "a red car"), ([pixels(8), pixels(9)], "and these?", "two blue stars")]
    asks: list[dict[str, Any]] = [{}, {"examples": shown}, {"system": "be brief"}, {"examples": shown, "chat": False}]
    for options in asks:
        mm.generate([pixels(1), "what now?"], model=model, max_new_tokens=1, **options)
    words = model.speaker.decoder.tokenizer
    plain, led, told, base = ([words.decode(part) for part in prompt.parts] for prompt in read)
    assert [len(parts) - 1 for parts in (plain, led, told, base)] == [1, 4, 1, 4]
    assert "a red car" in led[1] and led[2] == "" and "two blue stars" in led[3] and led[4] == plain[1]
    assert "be brief" in told[0] and "be brief" not in plain[0]
    assert "assistant" in led[1] and not any("assistant" in part for part in base)
    with pytest.raises(InputError, match=r"example 2: expected \(pictures, text, answer\)"):
        mm.generate("x", model=model, examples=[shown[0], (pixels(1), "what?")])  # type: ignore[list-item]


def test_sampling_and_stops_reach_the_decoder(model: Any) -> None:
    drawn = {
        mm.generate([pixels(0), "x"], model=model, max_new_tokens=NEW, sampling=Sampling(temperature=5.0, seed=s)).text
        for s in range(3)
    }
    assert len(drawn) == 3
    whole = mm.generate([pixels(0), "x"], model=model, max_new_tokens=NEW).text
    cut = mm.generate([pixels(0), "x"], model=model, max_new_tokens=NEW, stop=[whole[2:4]])
    assert cut.text == whole[:2] and cut.finish_reason == "stop"


@pytest.mark.parametrize(
    ("prompt", "error"),
    [([], InputError), ([""], TextInputError), (["x" * 30_000], TextInputError), ([3.5], ImageInputError)],
)
def test_what_is_neither_words_nor_a_picture_is_refused(model: Any, prompt: list[Any], error: type) -> None:
    with pytest.raises(error):
        mm.generate(prompt, model=model)
    with pytest.raises(InputError, match="max_new_tokens"):
        mm.generate("x", model=model, max_new_tokens=0)


def test_a_picture_of_another_model_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="was encoded by model 'tiny'"):
        mm.generate([mm.encode(pixels(0)), "x"], model=model)


def test_the_embedded_model_takes_interleaved_prompts() -> None:
    said = mm.generate(["compare", pixels(0), "with", pixels(1)], max_new_tokens=4)
    assert said.tokens <= 4 and said.source.model == "tiny"
    alone = mm.generate([pixels(0), load("tiny").speaker.prompt], max_new_tokens=12)
    assert alone.text == mm.caption(pixels(0), max_new_tokens=12).text


def test_lines_of_a_question_stay_lines(model: Any) -> None:
    question = "which?\nA. one\nB. two"
    assert mm.ask(pixels(0), question, model=model, max_new_tokens=1).prompt == question
    numbers = model.speaker.prompts(asked(question)).parts[1]
    assert question in model.speaker.decoder.tokenizer.decode(numbers)


def _features(prefix: int) -> ImageFeatures:
    tokens = torch.arange(24.0).reshape(1, 6, 4)
    heads = -torch.arange(4.0 * prefix).reshape(1, prefix, 4) - 1
    return ImageFeatures(
        tokens, (2, 3), heads, tokens[:, 0], {-2: tokens + 100, 0: tokens + 200}, {-2: (2, 3), 0: (2, 3)},
        {-2: heads - 100, 0: heads - 200},
    )  # fmt: skip


def test_a_view_picks_layers_and_leaves_out_what_it_should() -> None:
    last, grid = View()(_features(1))
    assert torch.equal(last, _features(1).tokens) and grid == (2, 3)
    both, grid = View((-2, 0))(_features(1))
    assert both.shape == (1, 6, 8) and grid == (2, 3) and both[0, 0, 0] == 100 and both[0, 0, 4] == 200
    whole, grid = View((-2,), skip=0)(_features(1))
    assert whole.shape == (1, 7, 4) and grid == (1, 7) and whole[0, 0, 0] == -101
    without, grid = View((-2,), skip=1)(_features(0))
    assert torch.equal(without, _features(0).layers[-2][:, 1:]) and grid == (1, 5)
    with pytest.raises(InputError, match="without layer -3"):
        View((-3,))(_features(1))
