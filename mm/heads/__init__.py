"""Heads over any encoder's features."""
