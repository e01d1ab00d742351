"""The drawn world `tiny` was trained on: a seeded renderer of scenes with exact ground truth."""

from mm.scenes.language import background_of, caption_of, mentions, phrase, questions_of, relation
from mm.scenes.render import Scene, SceneObject, draw_object, render_scene, render_single

__all__ = [
    "Scene", "SceneObject", "background_of", "caption_of", "draw_object", "mentions",
    "phrase", "questions_of", "relation", "render_scene", "render_single",
]  # fmt: skip
