"""The sentences in which a zero-shot classifier reads a label, and the rules for a caller's own."""

from __future__ import annotations

from collections.abc import Sequence

from mm.errors import InputError, nearest

PLACE = "{}"  # where the label goes
AS_IS = (PLACE,)
PHOTO = ("a photo of a {}.",)  # Radford et al. 2021, section 3.1.4

# The seven that a search over eighty found to serve ImageNet as well as all of them:
# openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb.
SIMPLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

ENSEMBLES: dict[str, tuple[str, ...]] = {"as is": AS_IS, "photo": PHOTO, "simple": SIMPLE}


def chosen(templates: str | Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """The templates that a caller means: None for the model's own, a name of `ENSEMBLES`, one template, or several.

    Raises:
        InputError: none given, an unknown name, or a template without exactly one `{}`.
    """
    if templates is None:
        return default
    if isinstance(templates, str):
        if templates in ENSEMBLES:
            return ENSEMBLES[templates]
        if PLACE not in templates:
            raise InputError(
                f"templates: expected {', '.join(map(repr, ENSEMBLES))} or a sentence with {PLACE}, got "
                f"{ascii(templates[:60])}.{nearest(templates, ENSEMBLES)}"
            )
        templates = [templates]
    found = tuple(templates)
    if not found:
        raise InputError("templates: expected at least one, got none")
    for template in found:
        if not isinstance(template, str) or template.count(PLACE) != 1:
            shown = ascii(template[:60]) if isinstance(template, str) else type(template).__name__
            raise InputError(f"templates: expected a sentence with one {PLACE} for the label, got {shown}")
    return tuple(dict.fromkeys(found))


def filled(template: str, label: str) -> str:
    """The sentence; braces inside the label stay as they are."""
    return template.replace(PLACE, label)
