"""The command line. `app` puts the commands together, `run` is the loop over pictures, `render` the text."""

from __future__ import annotations

from mm.cli.app import main

__all__ = ["main"]
