"""What can be said about a scene: its caption, the things it mentions, and questions with answers."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from mm.scenes.render import Scene, SceneObject
from mm.scenes.vocabulary import COLOURS, COUNTS, KINDS, PAIRS, SEEN_PAIRS, TEXTURES, plural

Mention = tuple[str, str, str]  # texture, colour, kind

_SINGULAR = {plural(kind): kind for kind in KINDS} | {kind: kind for kind in KINDS}
_PHRASE = re.compile(
    rf"\b(an?|{'|'.join(COUNTS)})\s+(?:({'|'.join(TEXTURES[1:])})\s+)?({'|'.join(COLOURS)})\s+"
    rf"({'|'.join(sorted(_SINGULAR, key=len, reverse=True))})\b"
)


def phrase(texture: str, colour: str, kind: str, count: int = 1) -> str:
    """`"a red car"`, `"an orange sun"`, `"two striped blue stars"`."""
    words = [colour] if texture == "plain" else [texture, colour]
    if count > 1:
        return " ".join([COUNTS[count - 1], *words, plural(kind)])
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words, kind])


def _spoken(count: int) -> list[int]:
    """A number as a sum of those that have a word."""
    whole, rest = divmod(count, len(COUNTS))
    return [len(COUNTS)] * whole + [rest] * (rest > 0)


def caption_of(scene: Scene) -> str:
    """Every visible object, left to right by the leftmost of each group, then the background. Six alike are five and
    one: no word is known for more."""
    ordered = sorted(scene.objects, key=lambda o: o.centre_xy[0])
    groups = Counter((o.texture, o.colour, o.kind) for o in ordered)  # keeps the order of first sight
    phrases = [phrase(*what, part) for what, count in groups.items() for part in _spoken(count)]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    article = "an" if scene.background[0] in "aeiou" else "a"
    return f"{listed} on {article} {scene.background} background"


def mentions(text: str) -> Counter[Mention]:
    """The objects a caption mentions, counts expanded; what is not of a caption's form is not a mention."""
    found: Counter[Mention] = Counter()
    for count, texture, colour, kind in _PHRASE.findall(text.lower()):
        number = COUNTS.index(count) + 1 if count in COUNTS else 1
        found[(texture or "plain", colour, _SINGULAR[kind])] += number
    return found


# Other ways to ask about a scene, with what is named at other places in the sentence.
_WORDINGS = {
    r"what colour is (the .+)\?": (
        "what is the colour of {}?", "what colour does {} have?", "what colour is {} in the picture?",
        "{} is of what colour?", "say what colour {} is", "{}, what colour is it?",
    ),
    r"what colour are (the .+)\?": (
        "what is the colour of {}?", "which colour have {}?", "{} are of what colour?",
        "what colour are {} in the picture?",
    ),
    r"what is the texture of (the .+)\?": (
        "what texture does {} have?", "which texture has {}?", "{} has which texture?",
        "what is the texture of {} here?",
    ),
    r"is (the .+) small or large\?": (
        "is {} large or small?", "what size is {}?", "how large is {}?", "what is the size of {}?",
        "{}, is it small or large?",
    ),
    r"how many (.+) are there\?": (
        "how many {} do you see?", "how many {}?", "count the {}", "what is the number of {}?",
        "how many {} are in the picture?",
    ),
    r"is there (an? .+)\?": (
        "do you see {}?", "is {} in the picture?", "is there {} here?", "does the picture show {}?",
    ),
    r"where is (the .+), seen from (the .+)\?": (
        "seen from {1}, where is {0}?", "where does {} lie, seen from {}?", "where is {} from {}?",
    ),
}  # fmt: skip


def reworded(question: str, rng: np.random.Generator) -> str:
    """A question of `questions_of`, or one for the colour of several things, in other words; its answer is the same.

    Raises:
        ValueError: it is neither.
    """
    for form, wordings in _WORDINGS.items():
        if match := re.fullmatch(form, question):
            return wordings[rng.integers(len(wordings))].format(*match.groups())
    raise ValueError(f"not a question of this world: {question}")


def background_of(text: str) -> str | None:
    """The background's colour that a caption names."""
    match = re.search(rf"\bon an? ({'|'.join(COLOURS)}) background\b", text.lower())
    return match[1] if match else None


def relation(a: SceneObject, b: SceneObject) -> str:
    """Where a lies as seen from b, along the longer of the two distances between centres."""
    (ax, ay), (bx, by) = a.centre_xy, b.centre_xy
    if abs(ax - bx) >= abs(ay - by):
        return "left of" if ax < bx else "right of"
    return "above" if ay < by else "below"


def questions_of(scene: Scene, seed: int = 0) -> list[tuple[str, str]]:
    """Questions whose answers are certain, in an order drawn from `seed`."""
    rng = np.random.default_rng((scene.seed, seed, 7))
    labels, kinds = Counter(o.label for o in scene.objects), Counter(o.kind for o in scene.objects)
    asked = [("what colour is the background?", scene.background)]
    for thing in scene.objects:
        if kinds[thing.kind] == 1:
            asked.append((f"what colour is the {thing.kind}?", thing.colour))
            asked.append((f"what is the texture of the {thing.kind}?", thing.texture))
            asked.append((f"is the {thing.kind} small or large?", thing.size))
    for kind, count in kinds.items():
        if count <= len(COUNTS):
            asked.append((f"how many {plural(kind)} are there?", COUNTS[count - 1]))
    present = scene.objects[rng.integers(len(scene.objects))]
    asked.append((f"is there {phrase('plain', present.colour, present.kind)}?", "yes"))
    # A question may give a held-out pair away, so only scenes that show one ask for such pairs.
    pool = PAIRS if scene.has_held_out else SEEN_PAIRS
    colour, kind = pool[rng.integers(len(pool))]
    answer = "yes" if labels[f"{colour} {kind}"] else "no"
    asked.append((f"is there {phrase('plain', colour, kind)}?", answer))
    single = [o for o in scene.objects if labels[o.label] == 1]
    if len(single) >= 2:
        i, j = rng.choice(len(single), 2, replace=False)
        a, b = single[i], single[j]
        dx, dy = np.abs(np.subtract(a.centre_xy, b.centre_xy))
        if max(dx, dy) > 1.3 * min(dx, dy):  # near the diagonal either word would be right
            asked.append((f"where is the {a.label}, seen from the {b.label}?", relation(a, b)))
    return [asked[i] for i in rng.permutation(len(asked))]
