"""The recipes that made the embedded weights."""
