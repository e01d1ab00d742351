"""The version of the library, alone in its file so that packaging and the inside read it without the face."""

from __future__ import annotations

__version__ = "0.1.0"
