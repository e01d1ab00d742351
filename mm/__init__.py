"""mm joins pretrained models: pixels -> Encoder -> Connector -> Head or Decoder -> a result in your image.

This is the face: names arrive when first used, so ``import mm`` loads no torch. Inside the library nothing
imports this file; the inside writes ``from mm.images import ...``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mm.version import __version__

if TYPE_CHECKING:
    import mm.errors as errors
    from mm.checkpoints.loading import load
    from mm.generation.sampling import Sampling
    from mm.joining import join
    from mm.tasks.ask import ask
    from mm.tasks.caption import caption
    from mm.tasks.chat import Chat
    from mm.tasks.classify import classify
    from mm.tasks.detect import detect
    from mm.tasks.embed import embed
    from mm.tasks.encode import encode
    from mm.tasks.generate import generate
    from mm.tasks.matte import matte
    from mm.tasks.segment import segment
    from mm.training.fit import fit

__all__ = [
    "Chat",
    "Sampling",
    "__version__",
    "ask",
    "caption",
    "classify",
    "detect",
    "embed",
    "encode",
    "errors",
    "fit",
    "generate",
    "join",
    "load",
    "matte",
    "segment",
]
_HOMES = {
    "Chat": "mm.tasks.chat",
    "Sampling": "mm.generation.sampling",
    "fit": "mm.training.fit",
    "join": "mm.joining",
    "load": "mm.checkpoints.loading",
}


def __getattr__(name: str) -> Any:
    """One of `__all__`: a task, `load`, `join`, `fit`, `Chat`, `Sampling`, or the module `mm.errors`."""
    if name not in __all__:
        raise AttributeError(f"module 'mm' has no attribute {name!r}; it offers {', '.join(__all__)}")
    if name == "errors":
        return import_module("mm.errors")
    return getattr(import_module(_HOMES.get(name, f"mm.tasks.{name}")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
