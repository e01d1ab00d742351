"""From bytes to upright pixels and back: reading, fetching, squares and frames; and a subject's own colours.

`mm.images` is the gate.
"""
