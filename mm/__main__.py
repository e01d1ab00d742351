"""``python -m mm`` is the command ``mm``."""

from __future__ import annotations

from mm.cli import main

if __name__ == "__main__":
    main()
