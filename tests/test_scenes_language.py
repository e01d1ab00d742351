"""What is said about drawn scenes: grammar, order, reading it back, and answers that the objects bear out."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from mm.scenes import (
    Scene,
    SceneObject,
    background_of,
    caption_of,
    mentions,
    phrase,
    questions_of,
    relation,
    render_scene,
)
from mm.scenes.language import reworded
from mm.scenes.vocabulary import COLOURS, COUNTS, KINDS, PAIRS, RELATIONS, TEXTURES, is_held_out, plural


def thing(kind: str, colour: str, x: int, y: int, texture: str = "plain", size: str = "small") -> SceneObject:
    """An 8 x 8 object with its upper left corner at (x, y) of a 100 x 100 picture."""
    alpha = np.ones((8, 8), np.float32)
    return SceneObject(kind, colour, texture, size, (100, 100), (x, y), np.zeros((8, 8, 3), np.uint8), alpha, alpha)


def scene(*objects: SceneObject, background: str = "white") -> Scene:
    return Scene(np.zeros((100, 100, 3), np.uint8), objects, background, 0)


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [render_scene(seed, (112, 80), pairs=("seen", "all", "unseen")[seed % 3]) for seed in range(300)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("plain", "red", "car", 1), "a red car"),
        (("plain", "orange", "umbrella", 1), "an orange umbrella"),
        (("striped", "orange", "sun", 1), "a striped orange sun"),
        (("striped", "blue", "star", 2), "two striped blue stars"),
        (("plain", "black", "fish", 3), "three black fish"),
        (("dotted", "pink", "cross", 5), "five dotted pink crosses"),
    ],
)
def test_phrases_have_the_right_article_order_and_plural(words: tuple[str, str, str, int], expected: str):
    assert phrase(*words) == expected


def test_plurals_are_english():
    assert [plural(k) for k in ("cross", "fish", "house", "key")] == ["crosses", "fish", "houses", "keys"]
    assert len({plural(kind) for kind in KINDS}) == len(KINDS)


def test_a_caption_goes_from_left_to_right_and_ends_with_the_background():
    cat, car, sun = thing("cat", "red", 60, 0), thing("car", "orange", 5, 50), thing("sun", "blue", 30, 9)
    assert caption_of(scene(cat)) == "a red cat on a white background"
    assert caption_of(scene(cat, car)) == "an orange car and a red cat on a white background"
    whole = caption_of(scene(cat, car, sun, background="orange"))
    assert whole == "an orange car, a blue sun and a red cat on an orange background"


def test_things_alike_are_one_group_at_the_place_of_the_leftmost():
    objects = [
        thing("cat", "red", 80, 0),
        thing("cat", "red", 1, 0),
        thing("cat", "red", 40, 50, texture="dotted"),
        thing("sun", "pink", 60, 20),
    ]
    expected = "two red cats, a dotted red cat and a pink sun on a black background"
    assert caption_of(scene(*objects, background="black")) == expected


def test_more_alike_than_there_are_words_for_are_said_in_parts() -> None:
    stars = [thing("star", "blue", 10 * i, 10) for i in range(6)]
    said = caption_of(scene(*stars))
    assert said == "five blue stars and a blue star on a white background"
    assert mentions(said) == Counter({("plain", "blue", "star"): 6})


def test_captions_read_back_as_the_truth(drawn: list[Scene]):
    for each in drawn:
        caption = caption_of(each)
        assert mentions(caption) == Counter((o.texture, o.colour, o.kind) for o in each.objects)
        assert background_of(caption) == each.background


def test_every_phrase_reads_back():
    for i, (colour, kind) in enumerate(PAIRS):
        texture, count = TEXTURES[i % 3], i % len(COUNTS) + 1
        assert mentions(phrase(texture, colour, kind, count)) == {(texture, colour, kind): count}


def test_what_is_not_a_phrase_is_not_a_mention():
    assert mentions("red car, the red car, a car, a redcar, six red cars, a red carpet") == Counter()
    assert mentions("A Red Car. Two red cars!") == {("plain", "red", "car"): 3}
    assert mentions("on a red background") == Counter()
    assert background_of("a red car") is None
    assert background_of("a red car on an orange background") == "orange"


@pytest.mark.parametrize(
    ("at", "expected"),
    [((0, 40), "left of"), ((90, 45), "right of"), ((42, 0), "above"), ((38, 90), "below")],
)
def test_relations_follow_the_longer_distance(at: tuple[int, int], expected: str):
    a, b = thing("cat", "red", *at), thing("car", "blue", 40, 40)
    assert relation(a, b) == expected
    opposite: dict[str, str] = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    assert relation(b, a) == opposite[expected]


def answer_from_objects(question: str, shown: Scene) -> str:
    """The answer, worked out from the words of the question alone."""
    singular = {plural(kind): kind for kind in KINDS}

    def only(description: str) -> SceneObject:
        words = description.split()
        fits = [o for o in shown.objects if o.kind == words[-1] and words[0] in (o.colour, o.kind)]
        assert len(fits) == 1, f"{question} has no single answer"
        return fits[0]

    if question == "what colour is the background?":
        return shown.background
    if found := re.fullmatch(r"what colour is the (\w+)\?", question):
        return only(found[1]).colour
    if found := re.fullmatch(r"what is the texture of the (\w+)\?", question):
        return only(found[1]).texture
    if found := re.fullmatch(r"is the (\w+) small or large\?", question):
        return only(found[1]).size
    if found := re.fullmatch(r"how many (\w+) are there\?", question):
        return COUNTS[sum(o.kind == singular[found[1]] for o in shown.objects) - 1]
    if found := re.fullmatch(r"is there an? (\w+ \w+)\?", question):
        return "yes" if found[1] in {o.label for o in shown.objects} else "no"
    found = re.fullmatch(r"where is the (\w+ \w+), seen from the (\w+ \w+)\?", question)
    assert found, question
    (ax, ay), (bx, by) = only(found[1]).centre_xy, only(found[2]).centre_xy
    sides = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
    return max(sides, key=lambda side: sides[side])


def test_answers_are_true(drawn: list[Scene]):
    first_words = Counter()
    for each in drawn:
        for question, answer in questions_of(each):
            assert answer == answer_from_objects(question, each)
            first_words[" ".join(question.split()[:2])] += 1
    assert set(first_words) >= {"what colour", "what is", "how many", "is the", "is there", "where is"}


def test_both_yes_and_no_are_asked_for(drawn: list[Scene]):
    answers = Counter(a for each in drawn for q, a in questions_of(each) if q.startswith("is there"))
    assert answers["yes"] >= len(drawn) and answers["no"] > 0.8 * len(drawn)


def test_questions_about_seen_scenes_never_name_a_held_out_pair():
    named = {
        pair
        for seed in range(300)
        for question, _ in questions_of(render_scene(seed, 64), seed)
        for pair in re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(KINDS)})", question)
    }
    assert len(named) > 150 and not any(is_held_out(*pair) for pair in named)


def test_questions_are_drawn_by_scene_and_seed(drawn: list[Scene]):
    crowd = next(each for each in drawn[::3] if len(each.objects) == 4)
    assert questions_of(crowd) == questions_of(crowd) == questions_of(render_scene(crowd.seed, (112, 80)))
    assert len({tuple(questions_of(crowd, seed)) for seed in range(5)}) == 5


def test_a_question_in_other_words_names_the_same(drawn: list[Scene]):
    rng, asked = np.random.default_rng(0), Counter()
    names = {*COLOURS, *KINDS, *map(plural, KINDS)}
    for each in drawn[:100]:
        for question, _ in questions_of(each):
            other = reworded(question, rng)
            assert other != question
            assert names & {*re.findall(r"\w+", other)} == names & {*re.findall(r"\w+", question)}
            asked[question.split()[0]] += 1
    assert set(asked) == {"what", "is", "how", "where"}
    with pytest.raises(ValueError, match="not a question"):
        reworded("why?", rng)


def test_several_things_are_asked_for_in_other_words():
    rng = np.random.default_rng(0)
    ways = {reworded("what colour are the cats?", rng) for _ in range(20)}
    assert len(ways) == 4 and all("the cats" in way for way in ways)


def test_in_other_words_where_keeps_who_is_seen_from_whom():
    rng, ways = np.random.default_rng(0), set()
    for _ in range(40):
        ways.add(reworded("where is the red car, seen from the blue cat?", rng))
    assert "seen from the blue cat, where is the red car?" in ways and len(ways) == 3
    assert all(way.startswith(("seen", "where")) and "from the blue cat" in way for way in ways)
